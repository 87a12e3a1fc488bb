package main

import (
	"fmt"
	"io"
	"strings"
)

// A result is what a row of the check found.
type result struct {
	status  string // of the row: "ok" or "not ok"
	text    string // what happened
	skipped string // why the row could not be tried; the row is ok then
	todo    string // what should have happened, in a row that is not ok and does not fail the check
	finding finding
}

// A finding is what is wrong in a row that is not ok. It is a heading of the summary.
type finding string

const (
	hole       finding = "accepted, and must be refused"
	laxity     finding = "accepted, and should be refused"
	strictness finding = "refused, and should be accepted"
	crash      finding = "crashed, or gave no answer"
	otherwise  finding = "other deviations"
)

func passed(format string, args ...any) result {
	return result{status: "ok", text: fmt.Sprintf(format, args...)}
}

func skipped(format string, args ...any) result {
	return result{status: "ok", skipped: fmt.Sprintf(format, args...)}
}

// failed returns the result of a row that fails the check.
func failed(f finding, format string, args ...any) result {
	return result{status: "not ok", finding: f, text: fmt.Sprintf(format, args...)}
}

// advised returns the result of a row that is not as it should be, and does not fail the check.
func advised(f finding, text, should string) result {
	return result{status: "not ok", finding: f, text: text, todo: should}
}

func (r result) failed() bool { return r.status == "not ok" && r.todo == "" }

// A tap prints the rows of the check in the Test Anything Protocol, version 13.
type tap struct {
	out  io.Writer
	rows []tapRow // printed so far
	err  error    // of the first line that could not be printed
}

type tapRow struct {
	name string
	must bool
	result
}

func (t *tap) line(text string) {
	if _, err := io.WriteString(t.out, text+"\n"); err != nil && t.err == nil {
		t.err = fmt.Errorf("cannot print the results: %w", err)
	}
}

func (t *tap) comment(format string, args ...any) {
	t.line("# " + oneTapLine(fmt.Sprintf(format, args...)))
}

// row prints the result of a row. must says whether the row must hold.
func (t *tap) row(name string, must bool, r result) {
	t.rows = append(t.rows, tapRow{name: name, must: must, result: r})
	line := fmt.Sprintf("%s %d - %s", r.status, len(t.rows), name)
	if r.text != "" {
		line += ": " + escapeTAP(r.text)
	}
	switch {
	case r.skipped != "":
		line += " # SKIP " + escapeTAP(r.skipped)
	case r.todo != "":
		line += " # TODO " + escapeTAP(r.todo)
	}
	t.line(line)
}

func (t *tap) bailOut(text string) { t.line("Bail out! " + oneTapLine(text)) }

// oneTapLine replaces control characters, because the end of the line ends a text.
func oneTapLine(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, text)
}

// escapeTAP escapes #, which would begin a directive.
func escapeTAP(text string) string {
	return strings.NewReplacer(`\`, `\\`, "#", `\#`).Replace(oneTapLine(text))
}

// finish prints the plan and a summary, with extra lines.
func (t *tap) finish(extra []string) {
	t.line(fmt.Sprintf("1..%d", len(t.rows)))
	skipped := t.names(func(r tapRow) bool { return r.skipped != "" })
	if len(skipped) > 0 {
		t.comment("%d of %s could not be tried", len(skipped), count(len(t.rows), "row"))
	}
	for _, f := range []finding{hole, laxity, strictness, crash, otherwise} {
		if names := t.names(func(r tapRow) bool { return r.finding == f }); len(names) > 0 {
			t.comment("%s: %s", f, strings.Join(names, ", "))
		}
	}
	for _, line := range extra {
		t.comment("%s", line)
	}
	last := "nothing that was tried failed"
	if failed := t.failed(); len(failed) > 0 {
		last = "failed: " + strings.Join(failed, ", ")
	}
	last += fmt.Sprintf("; not tried: %d", len(skipped))
	if must := t.names(func(r tapRow) bool { return r.skipped != "" && r.must }); len(must) > 0 {
		last += ", of which must hold: " + strings.Join(must, ", ")
	}
	t.comment("%s", last)
}

// failed returns the names of the rows that fail the check.
func (t *tap) failed() []string { return t.names(func(r tapRow) bool { return r.failed() }) }

// names returns the names of the rows for which match is true.
func (t *tap) names(match func(tapRow) bool) (names []string) {
	for _, r := range t.rows {
		if match(r) {
			names = append(names, r.name)
		}
	}
	return names
}

// count returns a number with its noun.
func count(n int, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return fmt.Sprintf("%d %s", n, noun)
}
