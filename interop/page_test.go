package interop

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const audience = "https://api.example" // of the recipes

var update = flag.Bool("update", false, "write what is seen into seen/, its tables and the recipes into README.md")

func TestThePageShowsEachRecipeAsItRuns(t *testing.T) {
	t.Parallel()
	page := readFile(t, "README.md")
	for _, s := range services {
		if !strings.Contains(page, "\n### "+s.name+"\n") {
			t.Errorf("README.md has no heading ### %s", s.name)
		}
		if !strings.Contains(page, s.open) {
			t.Errorf("README.md does not say of %s: %s", s.name, s.open)
		}
		for _, file := range s.files {
			path := filepath.Join(s.dir, file)
			start, end := recipeBlock(page, path)
			if start < 0 {
				t.Errorf("README.md does not show %s; want a line [%[1]s](%[1]s), and then its text in a fenced block", path)
				continue
			}
			if content := readFile(t, path); page[start:end] != content {
				if *update {
					page = page[:start] + content + page[end:]
				} else {
					t.Errorf("README.md shows %s as\n%s\nwant what it is; go test -run TestThePage -update writes it", path, page[start:end])
				}
			}
		}
	}
	if *update {
		if err := os.WriteFile("README.md", []byte(page), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// recipeBlock returns where the page has the text of a file; start is -1 if it has none.
func recipeBlock(page, path string) (start, end int) {
	link := regexp.QuoteMeta(fmt.Sprintf("[%s](%[1]s)", path))
	found := regexp.MustCompile("(?m)^" + link + "\n\n```[a-z]*\n((?s:.*?))^```$").FindStringSubmatchIndex(page)
	if found == nil {
		return -1, -1
	}
	return found[2], found[3]
}

// A jwkSet is a row of the catalogue of bad JWK Sets.
type jwkSet struct {
	Name   string `json:"fault"`
	Accept string // whose tokens should a verifier accept, new keys' or known keys'?
}

func TestThePageShowsWhatWasSeen(t *testing.T) {
	// Not parallel, because another test writes the page as well.
	issuer := start(t, "-audience", audience)
	var jwkSets []jwkSet
	getJSON(t, issuer.issuer+"/faults/sets", &jwkSets)
	page := readFile(t, "README.md")
	for _, table := range []struct {
		name string
		text string
	}{
		{"tokens", tokenTable(t, issuer.faults(t))},
		{"keys", keyTable(t, jwkSets)},
		{"answers", answerTable(t)},
	} {
		before, rest, ok1 := strings.Cut(page, "<!-- seen: "+table.name+" -->\n")
		_, after, ok2 := strings.Cut(rest, "<!-- end -->\n")
		if !ok1 || !ok2 {
			t.Fatalf("README.md has no place for it: want the lines <!-- seen: %s --> and <!-- end -->", table.name)
		}
		page = before + "<!-- seen: " + table.name + " -->\n" + table.text + "<!-- end -->\n" + after
	}
	wantFile(t, "README.md", page)
}

func TestEachServiceRefusesWhatItMustOrAStrictOneDoes(t *testing.T) {
	t.Parallel()
	for _, s := range services {
		failed := seen(t, s).failed()
		if failed == nil || s.open != "" {
			continue
		}
		i := slices.IndexFunc(services, func(other service) bool { return other.name == s.strict })
		if i < 0 {
			t.Errorf("%s fails %q, and there is no strict recipe; want one, or why there is none", s.name, failed)
		} else if failed := seen(t, services[i]).failed(); failed != nil {
			t.Errorf("%s fails %q; want that the strict recipe fails nothing", services[i].name, failed)
		}
	}
}
