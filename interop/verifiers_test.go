package interop

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const audience = "https://api.example" // of the recipes

var update = flag.Bool("update", false, "write what is seen into seen/, its tables and the recipes into README.md")

// A recipe is one of README.md. Tokens are those to try it with, by fault; "good" is the
// good one. Each meets a fresh verifier, so that no cache is left by another, and then one
// that meets all of them: it tries the good token last.
type recipe struct {
	Name   string            `json:"name"`
	Code   string            `json:"code"`
	Tokens map[string]string `json:"tokens"`

	language string
	issuer   string
}

// refusals are the errors of recipes, by recipe and fault. An error is empty if the token was
// accepted.
type refusals map[string]map[string]string

// accepted returns the names of the faults that a recipe accepts.
func (r refusals) accepted(name string, faults []fault, refuse string) (names []string) {
	for _, f := range faults {
		if f.Refuse == refuse && r[name][f.Name] == "" {
			names = append(names, f.Name)
		}
	}
	return names
}

func TestVerifiers(t *testing.T) {
	t.Parallel()
	page := readFile(t, "README.md")
	plain := start(t, "-audience", audience)
	secure, _ := startTLS(t, "-audience", audience)
	faults := plain.faults(t)
	recipes := parseRecipes(t, page, plain, secure, faults)
	additions, better := parseAdditions(t, page, recipes)
	seen, versions := try(t, slices.Concat(recipes, better))

	for _, r := range recipes {
		t.Run(r.Name+" accepts a good token, also after bad ones", func(t *testing.T) {
			wantAccepted(t, seen[r.Name])
		})
	}
	for i, a := range additions {
		t.Run(a.name+" refuses more with an addition", func(t *testing.T) {
			wantAccepted(t, seen[better[i].Name])
			for _, fault := range a.faults {
				without, with := seen[a.name][fault], seen[better[i].Name][fault]
				if without != "" || with == "" {
					t.Errorf("%s: %q without %s, %q with it; want it accepted, and then refused", fault, without, a.code, with)
				}
			}
		})
	}
	t.Run("the page shows what each accepts", func(t *testing.T) {
		before, rest, ok1 := strings.Cut(page, "<!-- seen -->\n")
		_, after, ok2 := strings.Cut(rest, "<!-- end -->\n")
		if !ok1 || !ok2 {
			t.Fatal("README.md has no place for it: want the lines <!-- seen --> and <!-- end -->")
		}
		wantFile(t, "README.md", before+"<!-- seen -->\n"+table(recipes, seen, faults, versions)+"<!-- end -->\n"+after)
	})
}

func wantAccepted(t *testing.T, errs map[string]string) {
	t.Helper()
	for _, when := range []string{"good", "good at last"} {
		if err, tried := errs[when]; !tried || err != "" {
			t.Errorf("%s: tried %t, %s; want it accepted", when, tried, err)
		}
	}
}

// wantFile compares a file with what it should be, or writes it if asked to by -update.
func wantFile(t *testing.T, name, want string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(name, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got := readFile(t, name); got != want {
		diff := exec.Command("diff", name, "-")
		diff.Stdin = strings.NewReader(want)
		lines, _ := diff.Output()
		t.Errorf("%s is not what was seen (>); if that is right, go test -run TestVerifiers -update\n%s", name, lines)
	}
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	content, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

var block = regexp.MustCompile("(?m)^### (.*)\n(?:[^#`].*\n|\n)*```(python|go)\n((?s:.*?))```\n")

// parseRecipes returns the recipes of the page that can run, with the URL of a server in
// place of that on the page, and with its tokens.
func parseRecipes(t *testing.T, page string, plain, secure server, faults []fault) (recipes []recipe) {
	t.Helper()
	tokens := map[server]map[string]string{plain: plain.catalogue(t, faults), secure: secure.catalogue(t, faults)}
	for _, found := range block.FindAllStringSubmatch(page, -1) {
		r := recipe{Name: found[1], language: found[2], Code: found[3]}
		for url, s := range map[string]server{"http://127.0.0.1:8080": plain, "https://127.0.0.1:8443": secure} {
			if r.language == "go" && s == plain || strings.Contains(r.Code, url) {
				r.Tokens, r.issuer = tokens[s], s.issuer
				r.Code = strings.ReplaceAll(r.Code, url, s.issuer)
			}
		}
		recipes = append(recipes, r)
	}
	return recipes
}

// catalogue returns a good token and one with each fault.
func (s server) catalogue(t *testing.T, faults []fault) map[string]string {
	t.Helper()
	tokens := map[string]string{"good": s.token(t, "")}
	for _, f := range faults {
		tokens[f.Name] = s.token(t, "?fault="+f.Name)
	}
	return tokens
}

// An addition to a recipe makes it refuse more.
type addition struct {
	name, code string
	faults     []string
}

var (
	additionRow = regexp.MustCompile("(?m)^\\| ([^|]+) \\| `([^|]+)` \\| ((?:`[a-z-]+` ?)+)\\|$")
	algorithms  = regexp.MustCompile(`algorithms(: |=)\[['"]RS256['"]\],`)
)

// parseAdditions returns the additions of the page, and for each the recipe that has it.
func parseAdditions(t *testing.T, page string, recipes []recipe) (additions []addition, better []recipe) {
	t.Helper()
	for _, row := range additionRow.FindAllStringSubmatch(page, -1) {
		i := slices.IndexFunc(recipes, func(r recipe) bool { return r.Name == row[1] })
		if i < 0 || !algorithms.MatchString(recipes[i].Code) {
			t.Fatalf("there is no recipe %q with algorithms", row[1])
		}
		a := addition{name: row[1], code: row[2], faults: strings.Fields(strings.ReplaceAll(row[3], "`", ""))}
		r := recipes[i]
		r.Name += " with " + a.code
		r.Code = algorithms.ReplaceAllString(r.Code, "$0 "+a.code+",")
		additions, better = append(additions, a), append(better, r)
	}
	if additions == nil {
		t.Fatal("README.md has no additions; want a table of them")
	}
	return additions, better
}

// try tries each recipe with its tokens.
func try(t *testing.T, recipes []recipe) (refusals, []string) {
	t.Helper()
	python := exec.Command("/usr/bin/python3", "verify.py") // Debian's, which has Debian's packages
	python.Dir = "python"
	seen, versions := refusals{}, goVersions(t)
	for language, cmd := range map[string]*exec.Cmd{"python": python} {
		var out struct {
			Versions []string
			Results  refusals
		}
		runProgram(t, cmd, slices.DeleteFunc(slices.Clone(recipes), func(r recipe) bool { return r.language != language }), &out)
		for name, errs := range out.Results {
			seen[name] = errs
		}
		versions = append(versions, out.Versions...)
	}
	source := readFile(t, "recipes_test.go")
	for _, r := range recipes {
		if r.language != "go" {
			continue
		}
		if goRecipes[r.Name] == nil || !strings.Contains(source, r.Code) {
			t.Errorf("recipe %s is not in recipes_test.go as it is on the page; want the same text", r.Name)
			continue
		}
		load := func() func(token string) string {
			verify, err := goRecipes[r.Name](t.Context(), r.issuer, audience)
			if err != nil {
				t.Fatalf("recipe %s: %v", r.Name, err)
			}
			return func(token string) string {
				if err := verify(t.Context(), token); err != nil {
					return err.Error()
				}
				return ""
			}
		}
		errs, veteran := map[string]string{}, load() // which meets all tokens
		for fault, token := range r.Tokens {
			errs[fault] = load()(token)
			veteran(token)
		}
		errs["good at last"] = veteran(r.Tokens["good"])
		seen[r.Name] = errs
	}
	slices.SortFunc(versions, func(a, b string) int { return strings.Compare(strings.ToLower(a), strings.ToLower(b)) })
	return seen, versions
}

// goVersions returns the versions of the libraries that the Go recipes use.
func goVersions(t *testing.T) (versions []string) {
	t.Helper()
	required := regexp.MustCompile(`(?m)/(golang-jwt/jwt|keyfunc|go-oidc|go-jose|jwx)/v\d+ v(\S+)$`)
	for _, found := range required.FindAllStringSubmatch(readFile(t, "go.mod"), -1) {
		versions = append(versions, found[1]+" "+found[2])
	}
	return versions
}

// table is what the page says of the recipes.
func table(recipes []recipe, seen refusals, faults []fault, versions []string) string {
	var b strings.Builder
	fmt.Fprint(&b, "| recipe | accepts of `must` | of `should` | of `may` |\n|---|---|---|---|\n")
	for _, r := range recipes {
		fmt.Fprintf(&b, "| %s |", r.Name)
		for _, refuse := range []string{"must", "should", "may"} {
			fmt.Fprint(&b, " ")
			for _, name := range seen.accepted(r.Name, faults, refuse) {
				fmt.Fprintf(&b, "`%s` ", name)
			}
			fmt.Fprint(&b, "|")
		}
		fmt.Fprintln(&b)
	}
	fmt.Fprintf(&b, "\nSeen with %s.\n", strings.Join(versions, ", "))
	return b.String()
}
