package main

import (
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// pages returns the Markdown pages of the repository, by path.
func pages(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	ok(t, filepath.WalkDir(".", func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && (entry.Name() == "node_modules" || entry.Name() == ".git" || entry.Name() == "keys"):
			return fs.SkipDir
		case filepath.Ext(path) == ".md":
			found[path] = string(must(os.ReadFile(path)))
		}
		return nil
	}))
	return found
}

var (
	fence   = regexp.MustCompile("(?ms)^```.*?^```$")
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#+ (.*)$`)
	noSlug  = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// anchors returns the anchors of a page's headings, as GitHub makes them.
func anchors(page string) map[string]bool {
	found := map[string]bool{}
	for _, h := range heading.FindAllStringSubmatch(fence.ReplaceAllString(page, ""), -1) {
		found[strings.ReplaceAll(noSlug.ReplaceAllString(strings.ToLower(h[1]), ""), " ", "-")] = true
	}
	return found
}

func TestEveryLinkOnAPageResolves(t *testing.T) {
	all, links := pages(t), 0
	for path, page := range all {
		for _, l := range link.FindAllStringSubmatch(fence.ReplaceAllString(page, ""), -1) {
			if strings.Contains(l[1], "://") {
				continue // nothing here reaches other hosts
			}
			links++
			file, anchor, _ := strings.Cut(l[1], "#")
			target := path
			if file != "" {
				target = filepath.Join(filepath.Dir(path), filepath.FromSlash(file))
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s links to %s, which does not exist", path, l[1])
			} else if anchor != "" && !anchors(all[target])[anchor] {
				t.Errorf("%s links to %s, which has no such heading", path, l[1])
			}
		}
	}
	equal(t, "the pages have links", links > 10, true)
}

func TestEveryFlagIsOnAPage(t *testing.T) {
	var text strings.Builder
	for _, page := range pages(t) {
		text.WriteString(page)
	}
	flags := flag.NewFlagSet("", flag.ContinueOnError)
	new(config).define(flags)
	flags.VisitAll(func(f *flag.Flag) {
		if !regexp.MustCompile(`(?m)(^|[\s"'` + "`" + `])-` + f.Name + `\b`).MatchString(text.String()) {
			t.Errorf("-%s is on no page", f.Name)
		}
	})
}
