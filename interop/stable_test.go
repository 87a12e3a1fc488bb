package interop

import (
	"slices"
	"testing"
)

func TestResultsLeaveOutWhatDiffersFromRunToRun(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ name, line, want string }{
		{name: "a comment of the check",
			line: "not ok 7 - crit: accepted with 200, and must be refused: crit names an extension (RFC 7515)", want: "accepted with 200"},
		{name: "a short time", line: "ok 4 - new-key: accepted after 0.2 s and 1 read of the JWK Set", want: "accepted at once"},
		{name: "a long time", line: "ok 4 - new-key: accepted after 30.7 s and 2 reads of the JWK Set", want: "accepted after 30 s"},
		{name: "how long an answer took", line: "ok 6 - sets/cut: a known key: accepted with 200 in 0.1 s during the read, accepted with 200 in 4.0 s after it",
			want: "a known key: accepted with 200 during the read, accepted with 200 after it"},
		{name: "when during a read a known key was refused first",
			line: "not ok 6 - sets/cut: a known key: accepted with 200 in 0.1 s during the read, refused with 401 in 0.0 s after it # TODO keep it",
			want: "a known key: refused with 401 during the read or after it"},
		{name: "how long a key was tried",
			line: "not ok 4 - new-key: refused with 401 for 3.7 s, with 1 read of the JWK Set # TODO look again", want: "refused with 401"},
		{name: "how long a removed key was tried",
			line: "ok 9 - removed-key: accepted for 10.4 s and longer, with 0 reads of the JWK Set, which is allowed",
			want: "accepted for longer than -check-wait"},
		{name: "numbers of answers",
			line: "ok 8 - unknown-keys: 20 tokens of unknown keys cost 2 reads of the JWK Set: " +
				"18 answered 500, which is no refusal, 2 refused with 401",
			want: "20 tokens of unknown keys cost 2 reads at most: answered 500, refused with 401"},
		{name: "a port", line: `ok 2 - challenge: refused with 401 and WWW-Authenticate: Bearer realm="http://127.0.0.1:4711"`,
			want: `refused with 401 and WWW-Authenticate: Bearer realm="http://127.0.0.1:…"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			rows := parseTAP(test.line + "\n")
			if len(rows) != 1 || rows[0].text != test.want {
				t.Errorf("parseTAP(%q) = %v; want a row with %q", test.line, rows, test.want)
			}
		})
	}
}

func TestResultsOfTokensAreMergedWithThoseOfASlowRun(t *testing.T) {
	t.Parallel()
	ok := func(name, text string) row { return row{status: "ok", name: name, text: text} }
	quick := results{rows: []row{ok("good", "accepted"), ok("known-reads", "2"), ok("none", "refused")}}
	slow := results{rows: []row{ok("sets/odd", "refused"), ok("new-key", "30 s"), ok("new-key-after", "30 s")}}
	want := []row{ok("good", "accepted"), ok("new-key", "30 s"), ok("known-reads", "2"), ok("none", "refused"),
		ok("sets/odd", "refused"), ok("new-key-after", "30 s")}
	if got := quick.with(slow).rows; !slices.Equal(got, want) {
		t.Errorf("with() = %v; want %v", got, want)
	}
}
