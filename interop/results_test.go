package interop

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// results are what -check found out about a service. They are committed in seen/, without
// what differs from run to run.
type results struct {
	versions string
	rows     []row
}

// A row is a line of -check's TAP.
type row struct {
	status string // ok, not ok, todo (should be otherwise) or skip
	name   string
	text   string // what happened
}

var (
	tapRow = regexp.MustCompile(`^(ok|not ok) \d+ - ([^ :]+)(?:: (.*?))?(?: # (TODO|SKIP) (.*))?$`)

	// What the check says of the row and not of the service.
	comments = regexp.MustCompile(`, which is (allowed$|no refusal)|, and must be (refused|accepted)(: [^;]*)?`)
	// Times and reads that depend on when the check asked.
	refusedFor = regexp.MustCompile(` for \d+\.\d s, with \d+ reads? of the JWK Set`)
	longer     = regexp.MustCompile(`for \d+(\.\d)? s and longer(, with \d+ reads? of the JWK Set)?`)
	afterReads = regexp.MustCompile(`(after \d+\.\d s) and \d+ reads? of the JWK Set`)
	moment     = regexp.MustCompile(`after (\d+\.\d) s`)
	took       = regexp.MustCompile(` in \d+\.\d s (during the read|after it)`)
	twice      = regexp.MustCompile(`a known key: ([^,;]*) during the read, ([^;]*) after it`)
	cost       = regexp.MustCompile(`cost (\d+) reads? of the JWK Set`)
	answers    = regexp.MustCompile(`(: |, )\d+ (refused|accepted|answered|the connection|no answer)`)
	inTime     = regexp.MustCompile(`within \d+(\.\d)? s, see new-key`)
	still      = regexp.MustCompile(`still not accepted after \d+\.\d s`)
	loopback   = regexp.MustCompile(`(127\.0\.0\.1|localhost):\d+`)
)

func parseTAP(output string) (rows []row) {
	for line := range strings.Lines(output) {
		found := tapRow.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
		if found == nil {
			continue
		}
		r := row{status: found[1], name: found[2], text: found[3]}
		switch {
		case found[4] == "SKIP":
			r.status, r.text = "skip", found[5]
		case found[4] == "TODO" && r.status == "not ok":
			r.status = "todo"
		}
		r.text = stable(strings.NewReplacer(`\\`, `\`, `\#`, "#").Replace(r.text))
		rows = append(rows, r)
	}
	return rows
}

// stable returns text with classes in place of times and numbers of reads, so that runs on a
// busy machine find the same.
func stable(text string) string {
	text = comments.ReplaceAllString(text, "")
	text = strings.ReplaceAll(text, ": the token ended the service, nothing listened afterwards", "") // it may listen again by then
	text = refusedFor.ReplaceAllString(text, "")
	text = inTime.ReplaceAllString(text, "in time, see new-key")
	text = still.ReplaceAllString(text, "still not accepted")
	text = longer.ReplaceAllString(text, "for longer than -check-wait")
	text = afterReads.ReplaceAllString(text, "$1")
	text = took.ReplaceAllString(text, " $1") // within 10 s, or there was no answer
	text = twice.ReplaceAllStringFunc(text, func(found string) string {
		answers := twice.FindStringSubmatch(found)[1:]
		if strings.HasPrefix(answers[0], "accepted") {
			answers = answers[1:]
		}
		if strings.HasPrefix(answers[0], "accepted") {
			return found
		}
		return "a known key: " + answers[0] + " during the read or after it" // the read may end in between
	})
	text = moment.ReplaceAllStringFunc(text, func(found string) string {
		seconds, _ := strconv.ParseFloat(moment.FindStringSubmatch(found)[1], 64)
		if class := timeClass(seconds); class != atOnce {
			return "after " + class
		}
		return atOnce
	})
	text = cost.ReplaceAllStringFunc(text, func(found string) string {
		reads, _ := strconv.Atoi(cost.FindStringSubmatch(found)[1])
		return "cost " + readClass(reads)
	})
	text = answers.ReplaceAllString(text, "$1$2")
	return loopback.ReplaceAllString(text, "$1:…")
}

const atOnce = "at once"

// timeClass returns the class of a number of seconds. Its limits lie between what verifiers
// are known to wait.
func timeClass(seconds float64) string {
	for _, class := range []struct {
		limit float64
		name  string
	}{{3, atOnce}, {7.5, "5 s"}, {15, "10 s"}, {45, "30 s"}, {90, "1 min"}, {200, "2 min"}, {420, "5 min"}, {750, "10 min"}, {1200, "15 min"}} {
		if seconds < class.limit {
			return class.name
		}
	}
	return "more than 20 min"
}

func readClass(reads int) string {
	switch {
	case reads <= 2:
		return "2 reads at most"
	case reads <= 10:
		return "10 reads at most"
	}
	return "20 reads or so"
}

// format returns the results as they are committed: rows of the same result share a line.
func (r results) format() string {
	names := map[row][]string{}
	var kinds []row
	for _, row := range r.rows {
		kind := row
		kind.name = ""
		if names[kind] == nil {
			kinds = append(kinds, kind)
		}
		names[kind] = append(names[kind], row.name)
	}
	var b strings.Builder
	fmt.Fprintln(&b, r.versions)
	for _, kind := range kinds {
		fmt.Fprintf(&b, "\n%s: %s\n", kind.status, kind.text)
		line := " "
		for _, name := range names[kind] {
			if len(line)+len(name) > 110 {
				fmt.Fprintln(&b, line)
				line = " "
			}
			line += " " + name
		}
		fmt.Fprintln(&b, line)
	}
	return b.String()
}

// readResults returns the committed results of a service, or none.
func readResults(t *testing.T, s service) (r results) {
	t.Helper()
	content, err := os.ReadFile(s.resultsFile())
	if err != nil {
		return results{}
	}
	var kind row
	for i, line := range strings.Split(strings.TrimSuffix(string(content), "\n"), "\n") {
		switch names, indented := strings.CutPrefix(line, "  "); {
		case i == 0:
			r.versions = line
		case indented:
			for _, name := range strings.Fields(names) {
				kind.name = name
				r.rows = append(r.rows, kind)
			}
		case line != "":
			kind.status, kind.text, _ = strings.Cut(line, ": ")
		}
	}
	return r
}

// resultsFile is where the results of a service are committed.
func (s service) resultsFile() string {
	name := strings.Trim(regexp.MustCompile(`[^a-z0-9]+`).ReplaceAllString(strings.ToLower(s.name), "-"), "-")
	return filepath.Join("seen", name+".txt")
}

func (r results) row(name string) row {
	if i := slices.IndexFunc(r.rows, func(row row) bool { return row.name == name }); i >= 0 {
		return r.rows[i]
	}
	return row{}
}

// waits reports whether the result of a row depends on -check-wait.
func waits(r row) bool {
	return isSet(r) || slices.Contains([]string{"new-key", "unknown-keys", "new-key-after", "removed-key"}, r.name)
}

// replace returns r with another result of a row.
func (r results) replace(other row) results {
	rows := slices.Clone(r.rows)
	for i, row := range rows {
		if row.name == other.name {
			rows[i] = other
		}
	}
	return results{r.versions, rows}
}

func isSet(r row) bool { return strings.HasPrefix(r.name, "sets/") }

// frequent returns the results of a service that reads the JWK Set every second, with "at once" for
// the few seconds that may pass before it does.
func (r results) frequent() results {
	rows := slices.Clone(r.rows)
	for i := range rows {
		rows[i].text = strings.ReplaceAll(rows[i].text, "after 5 s", atOnce)
	}
	return results{r.versions, rows}
}

func (r results) onlyTokens() results {
	return results{r.versions, slices.DeleteFunc(slices.Clone(r.rows), waits)}
}
func (r results) withoutTokens() results {
	return results{r.versions, slices.DeleteFunc(slices.Clone(r.rows), func(row row) bool { return !waits(row) })}
}

// with returns the rows of both, in the order in which -check prints them.
func (r results) with(waiting results) results {
	rows := slices.Concat(r.rows, waiting.rows)
	second := slices.IndexFunc(r.rows, func(row row) bool { return row.name == "known-reads" })
	part := map[string]int{"new-key": 1, "unknown-keys": 4, "new-key-after": 5, "removed-key": 6}
	for i, row := range r.rows {
		if i >= second {
			part[row.name] = 2
		}
	}
	for _, row := range waiting.rows {
		if strings.HasPrefix(row.name, "sets/") {
			part[row.name] = 3
		}
	}
	slices.SortStableFunc(rows, func(a, b row) int { return part[a.name] - part[b.name] })
	return results{r.versions, rows}
}

// failed returns the rows that fail -check.
func (r results) failed() (names []string) {
	for _, row := range r.rows {
		if row.status == "not ok" {
			names = append(names, row.name)
		}
	}
	return names
}

// versionLine returns the versions of the service's packages. A package is one of npm, as
// npm:NAME, a Go module, as go:PATH or
// programs:PATH, one of Debian, as deb:NAME, or the name and version
// itself.
func (s service) versionLine(t *testing.T) string {
	t.Helper()
	var versions []string
	for _, name := range s.packages {
		kind, name, ok := strings.Cut(name, ":")
		if !ok {
			versions = append(versions, kind)
			continue
		}
		versions = append(versions, packageVersion(t, kind, name))
	}
	return strings.Join(versions, ", ")
}

func packageVersion(t *testing.T, kind, name string) string {
	t.Helper()
	switch kind {
	case "npm":
		var manifest struct{ Version string }
		if err := json.Unmarshal([]byte(readFile(t, filepath.Join("node/node_modules", name, "package.json"))), &manifest); err != nil {
			t.Fatal(err)
		}
		return name + " " + manifest.Version
	case "go", "programs":
		file := map[string]string{"go": "go.mod", "programs": "programs/go.mod"}[kind]
		found := regexp.MustCompile(`(?m)\s` + regexp.QuoteMeta(name) + ` v(\S+)`).FindStringSubmatch(readFile(t, file))
		if found == nil {
			t.Fatalf("%s does not require %s", file, name)
		}
		return name + " " + found[1]
	case "deb":
		version, err := exec.Command("dpkg-query", "-W", "-f", "${Version}", name).Output()
		if err != nil {
			t.Fatalf("dpkg-query %s: %v; make interop needs this package", name, err)
		}
		return name + " " + debianUpstream(string(version))
	}
	t.Fatalf("package %s:%s is neither of npm, go, programs nor deb", kind, name)
	return ""
}

// debianUpstream returns the part of a version of a Debian package that its authors gave it.
func debianUpstream(version string) string {
	if _, after, ok := strings.Cut(version, ":"); ok {
		version = after
	}
	if i := strings.LastIndex(version, "-"); i >= 0 {
		version = version[:i]
	}
	return version
}
