package interop

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// tokenTable is what each service accepts of bad tokens, and refuses of good ones.
func tokenTable(t *testing.T, faults []fault) string {
	var b strings.Builder
	fmt.Fprint(&b, "| recipe | accepts of `must` | of `should` | of `may` | refuses of `never` |\n|---|---|---|---|---|\n")
	for _, s := range services {
		r := seen(t, s)
		fmt.Fprintf(&b, "| [%s](#%s) |", s.name, anchor(s.name))
		if r.rows == nil {
			fmt.Fprint(&b, " not run | | | |\n")
			continue
		}
		for _, level := range []string{"must", "should", "may", "never"} {
			var names []string
			for _, name := range []string{"basic", "sets/no-alg-alg"} {
				if row := r.row(name); level == "must" && row.status == "not ok" && strings.HasPrefix(row.text, "accepted") {
					names = append(names, "`"+name+"`")
				}
			}
			for _, f := range faults {
				row := r.row(f.Name)
				switch accepted := strings.HasPrefix(row.text, "accepted"); {
				case f.Refuse != level:
				case row.status == "skip" && level != "may":
					names = append(names, "("+f.Name+": not tried)")
				case row.name != "" && row.status != "skip" && accepted != (level == "never"):
					names = append(names, "`"+f.Name+"`")
				}
			}
			fmt.Fprintf(&b, " %s |", strings.Join(names, " "))
		}
		fmt.Fprintln(&b)
	}
	fmt.Fprint(&b, "\nSeen with:\n\n")
	for _, s := range services {
		if r := readResults(t, s); r.rows != nil && !strings.HasSuffix(s.name, ", strict") {
			fmt.Fprintf(&b, "- %s: %s\n", s.name, r.versions)
		}
	}
	return b.String()
}

// anchor returns the fragment of a heading's URL, as GitHub makes it.
func anchor(heading string) string {
	return strings.ReplaceAll(regexp.MustCompile(`[^a-z0-9 _-]`).ReplaceAllString(strings.ToLower(heading), ""), " ", "-")
}

// keyTable is what each service does about keys.
func keyTable(t *testing.T, catalogue []jwkSet) string {
	var odd, unusable []string
	for _, set := range catalogue {
		if set.Accept == "new" {
			odd = append(odd, set.Name)
		} else {
			unusable = append(unusable, set.Name)
		}
	}
	var b strings.Builder
	fmt.Fprint(&b, "| recipe | new key | odd sets: refuses keys in | unusable sets: refuses known keys during | reads for 20 unknown keys | "+
		"then a new key | removed key | needs `-publish-ahead` |\n|---|---|---|---|---|---|---|---|\n")
	for _, s := range services {
		r := readResults(t, s)
		if r.rows == nil || strings.HasSuffix(s.name, ", strict") {
			continue // a strict one gets its keys in the same way
		}
		told, frequent := setResults(t, s)
		after, removed := newKey(frequent.row("new-key-after"), told), removedKey(frequent.row("removed-key"), told)
		if told.name != s.name {
			after, removed = strings.Replace(after, atOnce, nextRead, 1), strings.Replace(removed, atOnce, nextRead, 1)
		}
		fmt.Fprintf(&b, "| %s | %s |\n", s.name, strings.Join([]string{
			newKey(r.row("new-key"), s), sets(frequent, told, odd), sets(frequent, told, unusable), reads(r.row("unknown-keys")),
			after, removed, needs(r, s),
		}, " | "))
	}
	return b.String()
}

const nextRead = "at the next read"

// setResults returns the results whose rows of JWK Sets count for a service, and the service that they are of.
func setResults(t *testing.T, s service) (service, results) {
	t.Helper()
	if name := s.setsFrom(); name != "" {
		all := slices.Concat(services, frequentServices())
		i := slices.IndexFunc(all, func(other service) bool { return other.name == name })
		if i < 0 {
			t.Fatalf("there is no service %s, which %s names", name, s.name)
		}
		s = all[i]
	}
	return s, readResults(t, s)
}

// seen returns the results of a service, with the rows of JWK Sets that count for it.
func seen(t *testing.T, s service) results {
	t.Helper()
	r := readResults(t, s)
	if _, told := setResults(t, s); s.setsFrom() != "" && r.rows != nil {
		r.rows = slices.DeleteFunc(r.rows, isSet)
		r.rows = append(r.rows, slices.DeleteFunc(told.rows, func(row row) bool { return !isSet(row) })...)
	}
	return r
}

func (s service) checkWait() time.Duration { return max(s.wait, 10*time.Second) }

// longerThan returns the words for more than -check-wait.
func longerThan(s service) string {
	return fmt.Sprintf("> %.0f s", s.checkWait().Seconds())
}

func newKey(r row, s service) string {
	_, after, _ := strings.Cut(r.text, "accepted ")
	switch {
	case r.status == "skip" || r.name == "":
		return "not tried"
	case after != "" && r.status == "ok":
		return strings.TrimPrefix(after, "after ")
	case after != "":
		return strings.TrimPrefix(after, "after ") + ", and before: " + short(r.text)
	}
	return longerThan(s) + ": " + short(r.text)
}

// short returns the first answer of a text: a status, or what happened instead.
func short(text string) string {
	if found := regexp.MustCompile(`(?:refused with|answered) (\d+)`).FindStringSubmatch(text); found != nil {
		return found[1]
	}
	text, _, _ = strings.Cut(text, ";")
	return text
}

// refuses matches a row of a set in which a key was not accepted, be it with an error.
var refuses = regexp.MustCompile(`a (new|known) key: [^;]*(refused|answered|no answer|lost)`)

// sets returns those of the named JWK Sets in which a service refuses keys, and what is left of that
// when the set is good again.
func sets(r results, s service, names []string) string {
	var found []string
	tried := 0
	for _, row := range r.rows {
		name, isSet := strings.CutPrefix(row.name, "sets/")
		if !isSet || !slices.Contains(names, name) || row.status == "skip" {
			continue
		}
		tried++
		if row.status == "ok" || !refuses.MatchString(row.text) {
			continue
		}
		text := "`" + name + "`"
		if note := lasting(row.text, s); note != "" {
			text += " (" + note + ")"
		}
		found = append(found, text)
	}
	if len(found) > 1 && strings.HasPrefix(found[0], "`odd`") {
		found = found[1:] // its parts say more
	}
	if notes := distinct(found); len(found) == len(names) && len(notes) == 1 {
		return "all" + notes[0]
	}
	switch {
	case tried == 0:
		return "not tried"
	case found == nil:
		return "none"
	}
	return strings.Join(found, ", ")
}

// distinct returns what stands behind the names of sets, each once.
func distinct(found []string) (notes []string) {
	for _, text := range found {
		_, note, _ := strings.Cut(text[1:], "`")
		if !slices.Contains(notes, note) {
			notes = append(notes, note)
		}
	}
	return notes
}

var again = regexp.MustCompile(`with a good set again, a known key is (?:accepted )?(.*?), a new one is (?:accepted )?(.*?)(?:, and then the known one is (.*))?$`)

// lasting returns what a set did to a service beyond a refusal that ended with it.
func lasting(text string, s service) string {
	var notes []string
	if found := regexp.MustCompile(`answered (\d+)|no answer within \d+ s`).FindString(text); found != "" {
		notes = append(notes, found)
	}
	if found := again.FindStringSubmatch(text); found != nil {
		switch known := found[1]; {
		case strings.HasPrefix(found[3], "accepted"):
			notes = append(notes, "a known key again after a new one")
		case strings.HasPrefix(known, "still"):
			notes = append(notes, "known keys stay refused")
		case known != atOnce:
			notes = append(notes, "a known key again "+known)
		}
		if fresh := found[2]; !strings.HasPrefix(fresh, "still") && fresh != atOnce && s.wait == 0 {
			notes = append(notes, "a new one "+fresh)
		}
	}
	return strings.Join(notes, "; ")
}

func reads(r row) string {
	_, after, ok := strings.Cut(r.text, "cost ")
	if !ok {
		return "not tried"
	}
	text, _, _ := strings.Cut(after, " of")
	text, _, _ = strings.Cut(text, ":")
	return text
}

func removedKey(r row, s service) string {
	switch {
	case r.status == "skip" || r.text == "":
		return "not tried"
	case strings.Contains(r.text, "longer than -check-wait"):
		return longerThan(s)
	}
	_, after, ok := strings.Cut(r.text, "refused ")
	if !ok {
		return short(r.text)
	}
	return strings.TrimPrefix(after, "after ")
}

// needs returns the -publish-ahead that a service needs, so that it never meets an unknown key
// that it refuses.
func needs(r results, s service) string {
	if s.keeps != "" {
		return s.keeps
	}
	longest := ""
	names := []string{"new-key"}
	if s.setsFrom() == "" {
		names = append(names, "new-key-after")
	}
	for _, name := range names {
		row := r.row(name)
		_, class, ok := strings.Cut(row.text, "accepted ")
		if !ok || row.status == "skip" {
			return "not tried"
		}
		if class = strings.TrimPrefix(class, "after "); class != atOnce {
			longest = class
		}
	}
	return map[string]string{
		"": "none", "5 s": "10s", "10 s": "30s", "30 s": "1m", "1 min": "2m", "2 min": "5m", "5 min": "10m", "10 min": "15m", "15 min": "20m",
	}[longest]
}

// answerTable is which statuses the services answer.
func answerTable(t *testing.T) string {
	var b strings.Builder
	fmt.Fprint(&b, "| recipe | refuses with | `WWW-Authenticate: Bearer` without a token | `invalid_token` for an expired one | "+
		"5xx or no answer |\n|---|---|---|---|---|\n")
	yes := map[string]string{"ok": "yes", "todo": "no"}
	for _, s := range services {
		r := seen(t, s)
		if r.rows == nil || strings.HasSuffix(s.name, ", strict") {
			continue
		}
		var refusals []string
		crashes := map[string][]string{}
		for _, row := range r.rows {
			for _, found := range regexp.MustCompile(`refused with (\d+)`).FindAllStringSubmatch(row.text, -1) {
				if !slices.Contains(refusals, found[1]) {
					refusals = append(refusals, found[1])
				}
			}
			for _, found := range regexp.MustCompile(`answered 5\d\d|no answer|connection was lost|ended the service`).FindAllString(row.text, -1) {
				kind := strings.TrimPrefix(found, "answered ")
				if !slices.Contains(crashes[kind], "`"+row.name+"`") && row.status != "skip" {
					crashes[kind] = append(crashes[kind], "`"+row.name+"`")
				}
			}
		}
		slices.Sort(refusals)
		var crashed []string
		for _, kind := range slices.Sorted(maps.Keys(crashes)) {
			crashed = append(crashed, kind+": "+strings.Join(crashes[kind], " "))
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", s.name, strings.Join(refusals, ", "),
			yes[r.row("challenge").status], yes[r.row("challenge-expired").status], strings.Join(crashed, "; "))
	}
	return b.String()
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
