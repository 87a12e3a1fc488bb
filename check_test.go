package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// A checkTest is a check of a service by a server, for use in a synctest bubble.
type checkTest struct {
	network
	t      *testing.T
	ctx    context.Context
	server *testServer
	config config
	out    lockedBuffer
	err    error
}

const serviceURL = "http://service.test/hello"

// fewFaults are the bad tokens of tests that are about something else, because signing takes time.
var fewFaults = []string{"signature", "unknown-key", "alg", "crit", "expired", "jku", "x5u", "no-subject"}

// newCheckTest returns a check with a server that offers some faults; all if faults is nil.
func newCheckTest(t *testing.T, names []string, args ...string) *checkTest {
	t.Helper()
	c := &checkTest{t: t, ctx: t.Context(), server: newServerWithKey(t, append([]string{"-audience", "api"}, args...)...)}
	c.server.store.bits = 1024 // because a check makes some thirty keys
	c.server.tester.tester = newTester(1024)
	time.Sleep(2 * time.Second) // so that new keys expire later than the first one
	c.config = config{service: serviceURL, checkWait: 10 * time.Second}
	routes := c.server.routes()
	c.serve(t, "issuer.test:80", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/faults" && names != nil {
			w.Write(encode(slices.DeleteFunc(slices.Clone(faults), func(f fault) bool { return !slices.Contains(names, f.Name) })))
			return
		}
		routes.ServeHTTP(w, r)
	}))
	return c
}

func (c *checkTest) service() *protectedService {
	return &protectedService{issuer: "http://issuer.test", client: newHTTPClient(c.dial)}
}

// run checks a service and returns the lines that were printed.
func (c *checkTest) run(t *testing.T, service http.Handler) []string {
	t.Helper()
	c.serve(t, "service.test:80", service)
	server := serverClient{base: "http://issuer.test", http: newHTTPClient(c.dial)}
	c.err = checkService(c.ctx, c.config, server, true, &c.out)
	t.Log("\n" + c.out.String())
	equal(t, "keys of the JWK Set at the end", c.server.set(t).kids(), []string{thumbprint(&readyMade()[0].PublicKey)})
	return strings.Split(strings.TrimSuffix(c.out.String(), "\n"), "\n")
}

var rowLine = regexp.MustCompile(`^(ok|not ok) \d+ - ([^ :]+)(.*)$`)

// rows returns the names of the rows that are not ok, those marked as TODO with a question
// mark, and the names of the rows that were skipped.
func rows(lines []string) (notOK, skipped []string) {
	for _, line := range lines {
		m := rowLine.FindStringSubmatch(line)
		switch {
		case m == nil:
		case m[1] == "not ok" && strings.Contains(line, " # TODO "):
			notOK = append(notOK, m[2]+"?")
		case m[1] == "not ok":
			notOK = append(notOK, m[2])
		case strings.Contains(line, " # SKIP "):
			skipped = append(skipped, m[2])
		}
	}
	return notOK, skipped
}

// wantLine checks that lines have one that begins with want, after its number if it is a row.
func wantLine(t *testing.T, lines []string, want string) {
	t.Helper()
	number := regexp.MustCompile(`^((?:not )?ok) \d+`)
	for _, line := range lines {
		if strings.HasPrefix(number.ReplaceAllString(line, "$1"), want) {
			return
		}
	}
	t.Errorf("no line begins with %q", want)
}

// prefixed returns those of texts that begin with prefix.
func prefixed(texts []string, prefix string) (found []string) {
	for _, text := range texts {
		if strings.HasPrefix(text, prefix) {
			found = append(found, text)
		}
	}
	return found
}

func TestCheckOfACorrectService(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCheckTest(t, nil)
		lines := c.run(t, c.service())
		notOK, skipped := rows(lines)
		equal(t, "rows that are not ok", notOK, nil)
		equal(t, "rows that were skipped", skipped, nil)
		equal(t, "error", c.err, nil)
		for _, want := range []string{
			"TAP version 13",
			"ok - no-token: refused with 401",
			"ok - challenge: refused with 401 and WWW-Authenticate: Bearer",
			"ok - new-key: accepted after 0.0 s and 1 read of the JWK Set",
			"ok - known-reads: 10 good tokens cost 0 reads of the JWK Set",
			"ok - no-subject: accepted with 200, which is allowed",
			"ok - challenge-expired: refused with 401 and error=\"invalid_token\"",
			"ok - lookups: the service read neither jku nor x5u of the tokens",
			"ok - sets/odd: a new key: accepted after",
			"ok - sets/slow: a known key: accepted with 200 in 0.0 s during the read, accepted with 200 in 0.0 s after it",
			"ok - removed-key: accepted for 10.0 s and longer, with 0 reads of the JWK Set, which is allowed",
			"# a new key was accepted after 0.0 s",
			"# a removed key was still accepted after 10.0 s",
		} {
			wantLine(t, lines, want)
		}
		plan := 0
		for _, f := range setFaults {
			if f.Accept == "known" {
				plan++
			}
		}
		plan += len(faults) + len([]string{"no-token", "challenge", "good", "new-key", "known-reads", "scheme-case", "basic",
			"challenge-expired", "lookups", "good-again", "sets/odd", "sets/no-alg-alg", "unknown-keys", "new-key-after", "removed-key"})
		wantLine(t, lines, fmt.Sprintf("1..%d", plan))
		equal(t, "last line", lines[len(lines)-1], "# nothing that was tried failed; not tried: 0")
	})
}

// A serviceTest is a service that deviates from a correct one, and what the check says then.
type serviceTest struct {
	name      string
	deviate   func(*protectedService)
	wrap      func(*checkTest, http.Handler) http.Handler // what comes before the service; may be nil
	faults    []string                                    // that the server offers; nil for all
	wait      time.Duration                               // -check-wait; 0 for the default
	notOK     []string                                    // rows, with a question mark if they do not fail the check
	skipped   []string                                    // rows
	skipsSome bool                                        // so that skipped does not matter
	lines     []string                                    // beginnings of lines
	last      []string                                    // parts of the last line
}

func (test serviceTest) run(t *testing.T) {
	t.Run(test.name, func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := newCheckTest(t, test.faults)
			service := c.service()
			if test.deviate != nil {
				test.deviate(service)
			}
			var h http.Handler = service
			if test.wrap != nil {
				h = test.wrap(c, service)
			}
			c.config.checkWait = cmp.Or(test.wait, c.config.checkWait)
			lines := c.run(t, h)
			notOK, skipped := rows(lines)
			equal(t, "rows that are not ok", notOK, test.notOK)
			if !test.skipsSome {
				equal(t, "rows that were skipped", skipped, test.skipped)
			}
			for _, want := range test.lines {
				wantLine(t, lines, want)
			}
			for _, want := range test.last {
				if last := lines[len(lines)-1]; !strings.Contains(last, want) {
					t.Errorf("the last line has no %q", want)
				}
			}
			failed := slices.DeleteFunc(slices.Clone(notOK), func(name string) bool { return strings.HasSuffix(name, "?") })
			equal(t, "the check fails", c.err != nil, len(failed) > 0 || len(prefixed(lines, "Bail out!")) > 0)
		})
	})
}

// brokenSets are the rows of JWK Sets that cannot be used, with a suffix.
func brokenSets(suffix string) (names []string) {
	for _, f := range setFaults {
		if f.Accept == "known" {
			names = append(names, "sets/"+f.Name+suffix)
		}
	}
	return names
}

// oddSets are the rows of what the set odd is made of.
func oddSets() (names []string) {
	for _, f := range setFaults {
		if f.Accept == "new" && f.Name != "odd" {
			names = append(names, "sets/"+f.Name)
		}
	}
	return names
}

// needNewKey are the rows that need a service that reads new keys.
func needNewKey() []string {
	return slices.Concat([]string{"sets/odd", "sets/no-alg-alg"}, brokenSets(""), []string{"new-key-after", "removed-key"})
}

// Only the rows about the hole of a service are not ok.
func TestCheckFindsHoles(t *testing.T) {
	t.Parallel()
	for _, test := range []serviceTest{
		{name: "none is accepted", notOK: []string{"none"},
			deviate: func(v *protectedService) {
				v.trust = func(t *jwt.Token) any {
					if t.Method == jwt.SigningMethodNone {
						return jwt.UnsafeAllowNoneSignatureType
					}
					return nil
				}
			},
			lines: []string{
				"not ok - none: accepted with 200, and must be refused: alg is none",
				"# accepted, and must be refused: none",
				"# failed: none; not tried: 0",
			}},
		{name: "exp is ignored", skipped: []string{"challenge-expired"},
			notOK:   []string{"expired", "expiry-zero", "no-expiry?", "expiry-null?", "expiry-text?", "expiry-array?"},
			deviate: func(v *protectedService) { v.omit = []string{"exp"} },
			lines: []string{
				"not ok - no-expiry: accepted with 200 # TODO should be refused: exp is missing",
				"ok - challenge-expired # SKIP expired was not refused",
				"# 1 of ",
				"# accepted, and must be refused: expired, expiry-zero",
				"# accepted, and should be refused: no-expiry",
				"# failed: expired, expiry-zero; not tried: 1",
			}},
		{name: "the alg of the token is taken", notOK: []string{"alg"}, skipped: []string{"sets/no-alg-alg"},
			deviate: func(v *protectedService) { v.omit = []string{"alg"} },
			lines: []string{
				"ok - sets/no-alg-alg # SKIP the token alg is accepted whatever the set says",
				"# failed: alg; not tried: 1, of which must hold: sets/no-alg-alg",
			}},
		{name: "the alg of the token is taken where the key has none", notOK: []string{"sets/no-alg-alg"},
			deviate: func(v *protectedService) { v.methods = []string{"RS256", "RS512"} }},
		{name: "the key in jwk is trusted", notOK: []string{"jwk"},
			deviate: func(v *protectedService) {
				v.trust = func(token *jwt.Token) any {
					if token.Header["jwk"] == nil {
						return nil
					}
					keys, order, _ := new(protectedService).parseKeys(encode(map[string]any{"keys": []any{token.Header["jwk"]}}))
					return keys[order[0]].public
				}
			}},
		{name: "crit is ignored", notOK: []string{"crit"},
			deviate: func(v *protectedService) { v.omit = []string{"crit"} }},
		{name: "typ is ignored", notOK: []string{"type?"},
			deviate: func(v *protectedService) { v.omit = []string{"typ"} }},
		{name: "the URL in jku is read", notOK: []string{"jku", "lookups"},
			deviate: func(v *protectedService) { v.trust = v.trustJKU },
			lines: []string{
				"not ok - lookups: the service read the jku of tokens 1 time and the x5u 0 times: anyone can make it send requests",
				"# accepted, and must be refused: jku",
				"# other deviations: lookups",
			}},
		{name: "the URL in jku is read, but leads nowhere", skipped: []string{"jku", "x5u", "lookups"},
			deviate: func(v *protectedService) {
				v.trust = v.trustJKU
				v.server, v.issuer = v.issuer, "http://elsewhere.test"
			},
			wrap: func(c *checkTest, next http.Handler) http.Handler {
				c.server.issuer = "http://elsewhere.test"
				return next
			},
			lines: []string{
				"ok - jku # SKIP refused, but http://elsewhere.test/faults/jwks.json does not lead to the server at http://issuer.test, ",
				"ok - lookups # SKIP jku or x5u got no verdict",
			}},
		{name: "the URL in jku is read, and the server has two names", notOK: []string{"jku", "lookups"},
			deviate: func(v *protectedService) {
				v.trust = v.trustJKU
				v.server, v.issuer = v.issuer, "http://elsewhere.test"
			},
			wrap: func(c *checkTest, next http.Handler) http.Handler {
				c.server.issuer = "http://elsewhere.test"
				c.serve(c.t, "elsewhere.test:80", c.server.routes())
				return next
			},
			lines: []string{"not ok - lookups: the service read the jku of tokens 1 time and the x5u 0 times: "}},
		{name: "verdicts are cached by signature", notOK: []string{"payload"}, wrap: cacheVerdicts(signatureOf),
			lines: []string{"not ok - payload: accepted with 200, and must be refused: sub was changed in a token that the service had just accepted, "}},
		{name: "Basic is as good as Bearer", notOK: []string{"basic"},
			wrap: func(_ *checkTest, next http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					r.Header.Set("Authorization", strings.Replace(r.Header.Get("Authorization"), "Basic ", "Bearer ", 1))
					next.ServeHTTP(w, r)
				})
			}},
	} {
		test.run(t)
	}
}

func TestCheckFindsWhatAServiceRefuses(t *testing.T) {
	t.Parallel()
	for _, test := range []serviceTest{
		{name: "the scheme has a case", notOK: []string{"scheme-case?"},
			wrap: func(_ *checkTest, next http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if strings.HasPrefix(r.Header.Get("Authorization"), "bearer") {
						r.Header.Del("Authorization")
					}
					next.ServeHTTP(w, r)
				})
			},
			lines: []string{
				"not ok - scheme-case: refused with 401 # TODO should be accepted: ",
				"# refused, and should be accepted: scheme-case",
				"# nothing that was tried failed; not tried: 0",
			}},
		{name: "refusals are not as RFC 6750 has them", notOK: []string{"challenge?", "challenge-expired?"},
			deviate: func(v *protectedService) {
				v.answer = func(_ string, err error) int { return status(err, http.StatusForbidden) }
			},
			wrap: func(_ *checkTest, next http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.Header.Get("Authorization") == "" {
						http.Redirect(w, r, "/login", http.StatusFound)
						return
					}
					next.ServeHTTP(w, r)
				})
			},
			lines: []string{
				"not ok - challenge: refused with 302 and without WWW-Authenticate # TODO should be refused with 401 and ",
				"not ok - challenge-expired: refused with 403 and without WWW-Authenticate # TODO ",
			}},
	} {
		test.run(t)
	}
}

// status returns the status of a refusal if there is an error, and otherwise 0.
func status(err error, refusal int) int {
	if err == nil {
		return 0
	}
	return refusal
}

func TestCheckFindsHowAServiceReadsKeys(t *testing.T) {
	t.Parallel()
	for _, test := range []serviceTest{
		{name: "a read that fails costs all keys", notOK: brokenSets("?"),
			deviate: func(v *protectedService) { v.replace = true },
			lines: []string{
				"not ok - sets/slow: a known key: accepted with 200 in 0.0 s during the read, refused with 401 in 5.0 s after it; " +
					"with a good set again, a known key is accepted after",
				"# refused, and should be accepted: sets/error, ",
			}},
		{name: "a key of an unknown type costs a set", notOK: []string{"sets/odd?", "sets/unknown-kty?"},
			deviate: func(v *protectedService) { v.strict = true },
			lines:   []string{"not ok - sets/unknown-kty: a new key: refused with 401 for "}},
		{name: "a key of an unknown type costs all keys for five minutes", notOK: []string{"sets/odd?"},
			deviate: func(v *protectedService) { v.strict, v.replace, v.penalty = true, true, 5*time.Minute },
			skipped: slices.Concat(oddSets(), []string{"sets/no-alg-alg"}, brokenSets(""), []string{"unknown-keys", "new-key-after", "removed-key"}),
			lines: []string{
				"not ok - sets/odd: a new key: refused with 401 for ",
				"ok - sets/error # SKIP before this set, and with a good one, a known key: refused with 401",
				"# after the set odd the service still did not accept known keys after 30.0 s, so later rows may suffer from it",
			}},
		{name: "the first of two keys with one kid is taken", notOK: []string{"sets/odd?", "sets/same-kid?"},
			deviate: func(v *protectedService) { v.firstKid = true },
			lines: []string{
				"not ok - sets/odd: a new key: refused with 401 for 3.5 s, with 1 read of the JWK Set; a known key: refused with 401; " +
					"with a good set again, a known key is still not accepted after 30.0 s (refused with 401), " +
					"a new one is accepted after 0.0 s, and then the known one is accepted with 200",
			}},
		{name: "the first key of the set verifies all tokens", notOK: []string{"new-key?"}, skipped: needNewKey(),
			deviate: func(v *protectedService) { v.firstKey = true },
			lines: []string{
				"not ok - new-key: refused with 401 for 3.5 s, with ", // given up 3 s after the first read
				"# new-key: the service read the JWK Set after the new key was published, and still did not accept its tokens",
			}},
		{name: "the JWK Set is read at the start only", notOK: []string{"new-key?"}, skipped: needNewKey(),
			deviate: func(v *protectedService) { v.update(); v.limit = -1 },
			lines: []string{
				"not ok - new-key: refused with 401 for 10.0 s, with 0 reads of the JWK Set # TODO ",
				"# new-key: the service has not read the JWK Set since the check began: it reads it only when it starts, or at intervals; " +
					"if these follow the Cache-Control of the JWK Set (public, max-age=1)",
				"ok - unknown-keys: 20 tokens of unknown keys cost 0 reads of the JWK Set: 20 refused with 401",
			}},
		{name: "the JWK Set is read every 30 s at most", notOK: []string{"new-key?"}, skipped: needNewKey(),
			deviate: func(v *protectedService) { v.limit, v.refill = 1, 30*time.Second },
			lines:   []string{"# new-key: the service read the JWK Set before the new key was published, and not again in the 10 s after that"}},
		{name: "the JWK Set is read every 30 s at most, and the check waits longer", wait: 35 * time.Second,
			deviate: func(v *protectedService) { v.limit, v.refill = 1, 30*time.Second }},
		{name: "the JWK Set is read nine times and never again", notOK: []string{"new-key-after?"},
			deviate: func(v *protectedService) { v.limit = 9 },
			skipped: []string{"sets/html", "sets/empty", "sets/no-keys", "sets/cut", "sets/slow", "sets/huge", "sets/redirect", "removed-key"},
			lines: []string{
				"ok - sets/html # SKIP the service has not read this set within 10 s",
				"ok - sets/empty # SKIP the service did not read this set at once, and was not waited for again",
			}},
		{name: "the JWK Set is read for each unknown key", notOK: []string{"unknown-keys?"},
			deviate: func(v *protectedService) { v.limit = 1000 },
			lines: []string{
				"not ok - unknown-keys: 20 tokens of unknown keys cost 20 reads of the JWK Set: 20 refused with 401 # TODO ",
				"# other deviations: unknown-keys",
			}},
		{name: "the JWK Set is read for each token", notOK: []string{"known-reads?", "unknown-keys?"},
			deviate: func(v *protectedService) { v.readAll = true },
			lines: []string{
				"not ok - known-reads: 10 good tokens cost 10 reads of the JWK Set # TODO ",
				"ok - removed-key: refused after 0.0 s and ",
				"# a removed key was accepted for 0.0 s",
			}},
		{name: "the JWK Set is read every 5 s",
			deviate: func(v *protectedService) { v.maxAge = 5 * time.Second },
			lines:   []string{"ok - removed-key: refused after "}},
		{name: "the JWK Set is read in the background, and a read that fails costs all keys", notOK: brokenSets("?"),
			deviate: func(v *protectedService) { v.replace = true },
			wrap:    every(time.Second),
			lines:   []string{"not ok - sets/slow: a known key: accepted with 200 in 0.0 s during the read, refused with 401 in 0.0 s after it; "}},
		{name: "the JWK Set is read in the background, and answers are slow",
			wrap: func(c *checkTest, next http.Handler) http.Handler {
				next = every(300*time.Millisecond)(c, next)
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					time.Sleep(200 * time.Millisecond)
					next.ServeHTTP(w, r)
				})
			}},
		{name: "the JWK Set is read in the background for each unknown key", notOK: []string{"unknown-keys?"},
			deviate: func(v *protectedService) {
				v.limit = -1
				v.update()
				v.answer = func(_ string, err error) int {
					if errors.Is(err, errUnknownKey) {
						time.AfterFunc(50*time.Millisecond, v.update)
					}
					return 0
				}
			},
			lines: []string{"not ok - unknown-keys: 20 tokens of unknown keys cost 20 reads of the JWK Set: "}},
		{name: "all tokens are accepted after a read without keys",
			notOK: []string{"sets/empty", "sets/no-keys", "sets/cut", "sets/slow", "sets/huge", "sets/redirect", "unknown-keys"},
			wrap:  openAfter("empty"),
			lines: []string{
				"not ok - sets/empty: a token with a wrong signature: accepted with 200, and must be refused; a known key: accepted with 200 ",
				"not ok - sets/no-keys: a token of an unknown key: accepted with 200, and must be refused; with a good set again, ",
				"not ok - unknown-keys: 20 tokens of unknown keys cost 0 reads of the JWK Set: 20 accepted with 200, and must be refused",
			}},
		{name: "all tokens are accepted after a read of an odd set", wrap: openAfter("odd"),
			notOK: slices.Concat([]string{"sets/odd"}, oddSets(), []string{"sets/no-alg-alg"}, brokenSets(""), []string{"unknown-keys"}),
			lines: []string{"not ok - sets/odd: a token with a wrong signature: accepted with 200, and must be refused; with a good set again, "}},
		{name: "no token is verified during a read", notOK: []string{"sets/slow?"},
			deviate: func(v *protectedService) { v.locked = make(chan struct{}, 1) },
			lines:   []string{"not ok - sets/slow: a known key: no answer within 10 s during the read, accepted with 200"}},
	} {
		test.faults = fewFaults
		test.run(t)
	}
}

// Workers that read the JWK Set on their own are judged by all of them.
func TestCheckFindsHowWorkersReadKeys(t *testing.T) {
	t.Parallel()
	for _, test := range []serviceTest{
		{name: "each reads it every 3 s at most",
			wrap: workers(8, func(_ int, v *protectedService) { v.limit, v.refill = 1, 3*time.Second }),
			lines: []string{
				"ok - known-reads: 10 good tokens cost 0 reads of the JWK Set",
				"ok - new-key-after: accepted after 3.",
				"ok - removed-key: accepted for 10.0 s and longer, with ",
			}},
		{name: "each reads it five times in a row at most", wrap: workers(8, func(int, *protectedService) {}),
			lines: []string{"ok - unknown-keys: 20 tokens of unknown keys cost 0 reads of the JWK Set: 20 refused with 401; others before them cost 38 reads"}},
		{name: "one of three refuses everything after a token that it refuses for its header", notOK: []string{"good-again"}, skipsSome: true,
			wrap: workers(3, func(worker int, v *protectedService) {
				broken := false
				v.answer = func(_ string, err error) int {
					broken = broken || worker == 1 && errors.Is(err, errToken)
					return map[bool]int{true: 403}[broken]
				}
			}),
			lines: []string{"not ok - good-again: refused with 403, and must be accepted"}},
		{name: "a read that fails costs all keys of two workers", notOK: brokenSets("?"),
			wrap:  workers(2, func(_ int, v *protectedService) { v.replace = true }),
			lines: []string{"not ok - sets/error: a known key: accepted with 200 in 0.0 s during the read, refused with 401 in 0.0 s after it; "}},
		{name: "a read that fails costs all keys of eight workers", notOK: brokenSets("?"),
			wrap: workers(8, func(_ int, v *protectedService) { v.replace = true })},
		{name: "one of three reads it at its start only", notOK: []string{"new-key?"}, skipped: needNewKey(),
			wrap: workers(3, func(worker int, v *protectedService) {
				if worker == 1 {
					v.update()
					v.limit = -1
				}
			}),
			lines: []string{
				"not ok - new-key: refused with 401 for 10.0 s, with 2 reads of the JWK Set, and accepted in between # TODO ",
				"# new-key: some tokens of the new key were accepted and others refused: the service may have several workers",
			}},
	} {
		test.faults = fewFaults
		test.run(t)
	}
}

func TestCheckFindsTokensThatCrashAService(t *testing.T) {
	t.Parallel()
	for _, test := range []serviceTest{
		{name: "500", notOK: []string{"crit"},
			wrap: atCrit(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) }),
			lines: []string{
				"not ok - crit: answered 500, which is no refusal",
				"# crashed, or gave no answer: crit",
			}},
		{name: "503 for this token only", notOK: []string{"crit"},
			wrap:  atCrit(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }),
			lines: []string{"not ok - crit: answered 503, which is no refusal"}},
		{name: "503 to everything until the service is started again", notOK: []string{"crit"},
			wrap:  unavailableAtCrit(1000, 5*time.Second),
			lines: []string{"not ok - crit: answered 503, which is no refusal"}},
		{name: "a lost connection", notOK: []string{"crit"},
			wrap:  atCrit(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }),
			lines: []string{"not ok - crit: the connection was lost"}},
		{name: "a connection that is lost once", notOK: []string{"crit"},
			wrap:  oncePerToken(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }),
			lines: []string{"not ok - crit: the connection was lost"}},
		{name: "no answer", notOK: []string{"crit"},
			wrap:  atCrit(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }),
			lines: []string{"not ok - crit: no answer within 30 s"}},
		{name: "the service ends and is started again", notOK: []string{"crit"},
			wrap:  endAtCrit(2 * time.Second),
			lines: []string{"not ok - crit: the connection was lost: the token ended the service, nothing listened afterwards"}},
		{name: "the service refuses the token and ends, and is started again", notOK: []string{"crit"},
			wrap: func(c *checkTest, next http.Handler) http.Handler {
				return atCrit(func(w http.ResponseWriter, _ *http.Request) {
					w.WriteHeader(401)
					w.(http.Flusher).Flush()
					c.end("service.test:80")
					time.AfterFunc(2*time.Second, func() { c.serve(c.t, "service.test:80", next) })
				})(c, next)
			},
			lines: []string{"not ok - crit: answered 401: the token ended the service, nothing listened afterwards"}},
		{name: "the service refuses the token, and hangs once", notOK: []string{"crit"},
			wrap: func(c *checkTest, next http.Handler) http.Handler {
				var hang atomic.Bool
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if hang.CompareAndSwap(true, false) {
						<-r.Context().Done()
					}
					hang.Store(hasCrit(r))
					next.ServeHTTP(w, r)
				})
			},
			lines: []string{"not ok - crit: answered 401: a good token afterwards: no answer within 30 s"}},
		{name: "unknown keys are an internal error", notOK: []string{"new-key?", "unknown-key", "jku", "unknown-keys"},
			skipped: needNewKey(),
			deviate: func(v *protectedService) {
				v.update()
				v.limit = -1
				v.answer = func(token string, err error) int {
					if errors.Is(err, errUnknownKey) {
						return 500
					}
					return 0
				}
			},
			lines: []string{"not ok - new-key: answered 500 for 10.0 s, with 0 reads of the JWK Set # TODO "}},
	} {
		test.faults = fewFaults
		test.run(t)
	}
}

// A service that limits requests does not refuse the token: the check asks again, and a refusal
// that good tokens get as well is no verdict.
func TestCheckTakesNoLimitForARefusal(t *testing.T) {
	t.Parallel()
	for _, test := range []serviceTest{
		{name: "429 to every fifth request", notOK: []string{"crit"},
			deviate: func(v *protectedService) { v.omit = []string{"crit"} },
			wrap:    everyFifth(429)},
		{name: "503 to more than 20 requests a second", notOK: []string{"crit"},
			deviate: func(v *protectedService) { v.omit = []string{"crit"} },
			wrap:    perSecond(20, 503)},
		{name: "429 to more than 20 requests a second", notOK: []string{"crit"},
			deviate: func(v *protectedService) { v.omit = []string{"crit"} },
			wrap:    perSecond(20, 429)},
		{name: "503 once, for another reason than crit", wrap: onceAtCrit(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }),
			lines: []string{"ok - crit: refused with 401"}},
		{name: "503 to crit once, and to everything for 5 s after it", wrap: unavailableAtCrit(1, 5*time.Second)},
		{name: "503 to more than one request in 3 s", wait: 4 * time.Second, wrap: limited(1, 3*time.Second, 503), notOK: []string{"crit"},
			deviate: func(v *protectedService) { v.omit = []string{"crit"} }},
		{name: "429 to crit, always", skipped: []string{"crit"},
			wrap: atCrit(func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Retry-After", "2"); w.WriteHeader(429) }),
			lines: []string{
				"ok - crit # SKIP answered 429, which is no verdict",
				"# nothing that was tried failed; not tried: 1, of which must hold: crit",
			}},
	} {
		test.faults = fewFaults
		test.run(t)
	}
}

// Rows between two lockouts are asked again. What cannot be tried is skipped, and neither
// passes nor fails.
func TestCheckTakesNoLockoutForARefusal(t *testing.T) {
	t.Parallel()
	for _, test := range []serviceTest{
		{name: "of 15 s after 20 refusals", notOK: []string{"crit"}, skipsSome: true,
			deviate: func(v *protectedService) { v.omit = []string{"crit"} },
			wrap:    lockout(20, 15*time.Second),
			lines:   []string{"ok - unknown-keys # SKIP the service locked the caller out after 20 tokens of unknown keys: "}},
		{name: "of 15 s while a set has a fault", skipped: []string{"sets/html"}, faults: fewFaults,
			wrap:  lockoutDuring("html", 15*time.Second),
			lines: []string{"ok - sets/html # SKIP a known key: refused with 403, but accepted 15."}},
		{name: "of a second after each refusal", skipsSome: true,
			deviate: func(v *protectedService) { v.omit = []string{"crit"} },
			wrap:    lockout(1, time.Second),
			lines: []string{
				"ok - signature # SKIP the service locked the caller out: a good token afterwards: refused with 403",
				"ok - crit # SKIP ",
				"ok - good-again: refused with 403 at first, and accepted after ",
				"ok - unknown-keys # SKIP the service locks the caller out after a token that it refuses",
				"ok - sets/error # SKIP the service locks the caller out after a token that it refuses",
			}},
	} {
		test.run(t)
	}
}

func TestCheckAsksWithFreshTokensAndReadsNoBodies(t *testing.T) {
	t.Parallel()
	for _, test := range []serviceTest{
		{name: "verdicts are cached by token", wrap: cacheVerdicts(wholeToken),
			deviate: func(v *protectedService) { v.limit, v.refill = 1, 3*time.Second },
			lines:   []string{"ok - new-key: accepted after "}},
		{name: "the body never ends",
			wrap: func(_ *checkTest, next http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					recorder := &statusRecorder{ResponseWriter: w, status: 200}
					next.ServeHTTP(recorder, r)
					w.(http.Flusher).Flush()
					if recorder.status == 200 {
						<-r.Context().Done()
					}
				})
			},
			lines: []string{"ok - sets/error: a known key: accepted with 200 in 0.0 s during the read, accepted with 200 in 0.0 s after it"}},
	} {
		test.faults = fewFaults
		test.run(t)
	}
}

func TestCheckBailsOutAndSaysWhatHelps(t *testing.T) {
	t.Parallel()
	good := "Bail out! good: a good token: "
	for _, test := range []struct {
		serviceTest
		want []string // parts of the last line
	}{
		{serviceTest{name: "no token is needed", notOK: []string{"no-token"},
			wrap: func(*checkTest, http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<title>Sign in") })
			}},
			[]string{"Bail out! no-token: http://service.test/hello is not protected, or shows a login page with 200"}},
		{serviceTest{name: "another audience", notOK: []string{"good"},
			deviate: func(v *protectedService) { v.claims = func(c jwt.MapClaims) { c["aud"] = "other" } },
			lines: []string{
				`# the token: typ JWT, claims {"aud":"api",`,
				`# the response: WWW-Authenticate: Bearer error="invalid_token"`,
				"# the JWK Set was read 1 time since the check began",
			}},
			[]string{good + "refused with 401", "-issuer and -audience"}},
		{serviceTest{name: "keys of an earlier run", notOK: []string{"good"},
			deviate: func(v *protectedService) { v.limit = -1 },
			lines: []string{
				"# the JWK Set was read 0 times since the check began",
				"# if the service still uses keys of an earlier server, restart the service, and let the server keep its keys with -keys",
			}},
			[]string{good + "refused with 401", "reads keys with http://issuer.test/.well-known/jwks.json"}},
		{serviceTest{name: "no audience", notOK: []string{"good"},
			wrap: func(c *checkTest, next http.Handler) http.Handler {
				c.server.profile.audience = ""
				return next
			},
			lines: []string{"# the token has no aud, which most verifiers require: set it with -audience"}},
			[]string{good + "refused with 401"}},
		{serviceTest{name: "a role", notOK: []string{"good"}, wrap: fixed(403, "role \"admin\" is #1\nof roles"),
			lines: []string{"# the body: role \"admin\" is #1 of roles"}},
			[]string{good + "refused with 403", "-claims"}},
		{serviceTest{name: "another path", notOK: []string{"good"}, wrap: fixed(404, strings.Repeat("x", 300)),
			lines: []string{"# the body: " + strings.Repeat("x", 200)}},
			[]string{good + "refused with 404", "path"}},
		{serviceTest{name: "a redirection", notOK: []string{"good"}, wrap: fixed(302, "", "Location", "https://login.test/"),
			lines: []string{"# the response: Location: https://login.test/"}},
			[]string{good + "refused with 302", "follows no redirects"}},
		{serviceTest{name: "a crash", notOK: []string{"good"}, wrap: fixed(500, "")},
			[]string{good + "answered 500", "log"}},
		{serviceTest{name: "a limit", notOK: []string{"good"}, wrap: fixed(429, "")},
			[]string{good + "answered 429, which is no verdict", "limit"}},
		{serviceTest{name: "the service ends for good", notOK: []string{"crit"}, wrap: endAtCrit(0)},
			[]string{"Bail out! crit: the service has not answered for 10 s", "nothing listened"}},
	} {
		test.lines = append(test.lines, "Bail out! ")
		test.last = test.want
		test.faults = fewFaults
		test.run(t)
	}
}

// freeAddress returns an address of this machine at which nothing listens.
func freeAddress(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ok(t, err)
	defer l.Close()
	return l.Addr().String()
}

// listening returns the address of a server with this handler.
func listening(t *testing.T, h http.Handler) string {
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

func TestCheckStartsAServerIfNothingListens(t *testing.T) {
	t.Parallel()
	addr := freeAddress(t)
	service := &protectedService{issuer: "http://" + addr, client: http.DefaultClient, limit: -1}
	url := "http://" + listening(t, service)
	code, stdout, stderr := runHere(t.Context(),
		withKey(t, "-addr", addr, "-audience", "api", "-claims", `{"roles":["admin"]}`, "-check", url)...)
	equal(t, "exit status", code, 1)
	lines := strings.Split(stdout, "\n")
	equal(t, "the first lines", lines[:2], []string{
		"TAP version 13", "# asking " + url + " with tokens of a server at http://" + addr + ", which was started for this check",
	})
	wantLine(t, lines, "not ok - good: refused with 401, and must be accepted")
	wantLine(t, lines, "# if the service reads keys only when it starts, start the server first ")
	for _, want := range []string{`"aud":"api"`, `"roles":["admin"]`, `"iss":"http://` + addr + `"`} {
		if !strings.Contains(stdout, want) {
			t.Errorf("the output has no claim %s", want)
		}
	}
	equal(t, "stderr, without what the server does", stderr, "jwks-server: the check could not go on: its last line says why\n")
	if conn, err := net.Dial("tcp", addr); err == nil {
		conn.Close()
		t.Error("the server still listens after the check")
	}
}

func TestCheckUsesTheServerThatRuns(t *testing.T) {
	t.Parallel()
	p := startProcess(t, withKey(t, "-audience", "api")...)
	service := &protectedService{issuer: p.base, client: http.DefaultClient, claims: func(c jwt.MapClaims) { c["aud"] = "other" }}
	code, stdout, stderr := runHere(t.Context(), "-addr", p.addr(), "-audience", "other", "-check", "http://"+listening(t, service))
	equal(t, "exit status", code, 1)
	wantLine(t, strings.Split(stdout, "\n"), "# asking "+"http://")
	for _, want := range []string{
		"flags of this command for tokens and keys have no effect on it", `"aud":"api"`, "-audience of the server that runs, and restart it",
	} {
		if !strings.Contains(stdout, want) {
			t.Errorf("the check with a server that runs does not say %q: %s", want, stdout)
		}
	}
	equal(t, "stderr", stderr, "jwks-server: the check could not go on: its last line says why\n")
}

// Other errors are one line that says what to do.
func TestCheckSaysWhyItCannotBegin(t *testing.T) {
	t.Parallel()
	service := "http://" + listening(t, &protectedService{})
	plain := startProcess(t, withKey(t)...)
	secure := startProcess(t, withKey(t, tlsFlags(t)...)...)
	closed := startProcess(t, withKey(t, "-clients", clientsFile(t))...)
	nothing := freeAddress(t)
	for _, test := range []struct {
		name string
		args []string
		want string
	}{
		{"the service cannot be reached", []string{"-addr", plain.addr(), "-check", "http://" + nothing + "/hello"},
			"cannot reach the service at http://" + nothing + "/hello: start it first, or correct the host and port of -check: "},
		{"another program is at -addr", []string{"-addr", listening(t, http.NotFoundHandler()), "-check", service},
			"is not a jwks-server: stop it, or choose another -addr"},
		{"the server runs with -clients", []string{"-addr", closed.addr(), "-check", service},
			"issues no bad tokens, because it runs with -clients"},
		{"the server speaks https", []string{"-addr", secure.addr(), "-check", service},
			"speaks https: give -tls-cert and -tls-key as well"},
		{"the server speaks http", append(tlsFlags(t), "-addr", plain.addr(), "-check", service),
			"speaks http: leave out -tls-cert and -tls-key"},
	} {
		t.Run(test.name, func(t *testing.T) {
			code, stdout, stderr := runHere(t.Context(), test.args...)
			equal(t, "exit status", code, 1)
			equal(t, "stdout", stdout, "")
			if strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, test.want) {
				t.Errorf("stderr = %q; want a line with %q", stderr, test.want)
			}
		})
	}
}

func TestCheckAsksLocalhostWhereAddrIsNoAddressToAsk(t *testing.T) {
	t.Parallel()
	for addr, want := range map[string]string{
		":8080": "localhost:8080", "0.0.0.0:8080": "localhost:8080", "[::]:8080": "localhost:8080",
		"127.0.0.1:8080": "127.0.0.1:8080", "localhost:8080": "localhost:8080", "jwks:80": "jwks:80",
	} {
		equal(t, "askedAddress("+addr+")", askedAddress(addr), want)
	}
}

// An interrupt ends the check at once, also while the service waits for the JWK Set.
func TestInterruptedCheckMakesTheSetGoodAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCheckTest(t, fewFaults)
		service := c.service()
		ctx, interrupt := context.WithCancel(t.Context())
		c.ctx = ctx
		var interrupted time.Time
		lines := c.run(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if p := c.server.tester.published.Load(); p != nil && p.fault.Name == "slow" {
				time.AfterFunc(time.Second, func() { interrupted = time.Now(); interrupt() })
			}
			service.ServeHTTP(w, r)
		}))
		equal(t, "time from the interrupt to the end", time.Since(interrupted), 0)
		equal(t, "exit status", exitStatus(c.err, io.Discard, false), 1)
		wantError(t, "error", c.err, "the check was interrupted")
		wantLine(t, lines, "ok - sets/cut")
		for _, line := range lines {
			if strings.Contains(line, "sets/slow") || strings.HasPrefix(line, "1..") {
				t.Errorf("line after the interrupt: %s", line)
			}
		}
	})
}

func TestCheckEndsWhenItsOutputCannotBeWritten(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCheckTest(t, fewFaults)
		asked := 0
		service := c.service()
		c.serve(t, "service.test:80", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked++
			service.ServeHTTP(w, r)
		}))
		err := checkService(t.Context(), c.config, serverClient{base: "http://issuer.test", http: newHTTPClient(c.dial)}, true, closedWriter{})
		wantError(t, "error", err, "cannot print the results: ")
		if asked > 3 {
			t.Errorf("the service was asked %d times after the output was closed", asked)
		}
	})
}

type closedWriter struct{}

func (closedWriter) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

// prove is Perl's parser of TAP, which Debian has, too.
func TestProveReadsTheResults(t *testing.T) {
	t.Parallel()
	prove, err := exec.LookPath("prove")
	if err != nil {
		t.Skip("prove is not installed")
	}
	for _, test := range []struct {
		name    string
		deviate func(*protectedService)
		wrap    func(*checkTest, http.Handler) http.Handler
		want    []string
	}{
		{name: "all is well", want: []string{"All tests successful", "Result: PASS"}},
		{name: "rows that should be otherwise", want: []string{"All tests successful", "Result: PASS"},
			deviate: func(v *protectedService) { v.omit, v.limit = []string{"typ"}, 1000 }},
		{name: "rows that fail, and rows that are skipped", want: []string{"Failed test", "Result: FAIL"},
			deviate: func(v *protectedService) { v.omit = []string{"exp", "crit"} }},
		{name: "a bail-out", want: []string{"Bailout called.  Further testing stopped:  good: a good token: refused with 403", `{"roles":["admin"]}`},
			wrap: fixed(403, "role \"admin\" is #1\nof roles")},
	} {
		t.Run(test.name, func(t *testing.T) {
			var out string
			synctest.Test(t, func(t *testing.T) {
				c := newCheckTest(t, fewFaults)
				service := c.service()
				if test.deviate != nil {
					test.deviate(service)
				}
				var h http.Handler = service
				if test.wrap != nil {
					h = test.wrap(c, service)
				}
				c.run(t, h)
				out = c.out.String()
			})
			output, _ := exec.Command(prove, "-e", "cat", putFile(t, out)).CombinedOutput()
			for _, want := range test.want {
				if !strings.Contains(string(output), want) {
					t.Errorf("prove has not printed %q: %s", want, output)
				}
			}
			if strings.Contains(string(output), "Parse errors") && !strings.Contains(out, "Bail out!") { // which leaves out the plan
				t.Errorf("prove cannot parse it: %s", output)
			}
		})
	}
}

func TestASignalEndsTheCheckWithStatus1(t *testing.T) {
	t.Parallel()
	p := startProcess(t, withKey(t)...)
	asked, asking := make(chan struct{}), sync.Once{}
	service := "http://" + listening(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asking.Do(func() { close(asked) })
		<-r.Context().Done()
	}))
	check := launch(t, serverCommand(t, "-addr", p.addr(), "-check", service))
	<-asked
	ok(t, check.cmd.Process.Signal(os.Interrupt))
	equal(t, "exit status", check.exitCode(t), 1)
	equal(t, "stderr", check.stderr.String(), "jwks-server: the check was interrupted; the JWK Set is good again\n")
}

func TestTextsOfRowsEndNoLineAndBeginNoDirective(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	results := tap{out: &out}
	results.row("a", true, failed(hole, "%s", "b # TODO c\nok 2 \\"))
	results.row("d", false, advised(otherwise, "e", "f # SKIP g"))
	results.row("h", false, skipped("i\r\n# TODO j"))
	equal(t, "lines", strings.Split(out.String(), "\n"), []string{
		`not ok 1 - a: b \# TODO c ok 2 \\`,
		`not ok 2 - d: e # TODO f \# SKIP g`,
		`ok 3 - h # SKIP i  \# TODO j`,
		"",
	})
}
