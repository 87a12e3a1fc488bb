package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"time"
)

const (
	readRounds     = 3               // of tokens whose reads of the JWK Set are counted; in the first, each worker of a service may read
	backgroundRead = time.Second     // how long a read of the JWK Set in the background may take
	keyURLLimit    = 3 * time.Second // how long the URL in jku or x5u of a token may take
)

// verdict returns the result of a row about a token that a service must, should, may or must never
// refuse.
func verdict(a answer, refuse, why string) result {
	switch {
	case a.void != "":
		return skipped("%s", a.void)
	case a.crashed():
		return failed(crash, "%s", a)
	case refuse == "may":
		return passed("%s, which is allowed", a)
	case refuse == "never" && a.refused():
		return advised(strictness, a.String(), "should be accepted: "+why)
	case refuse == "should" && a.accepted():
		return advised(laxity, a.String(), "should be refused: "+why)
	case refuse == "must" && a.accepted():
		return failed(hole, "%s, and must be refused: %s", a, why)
	}
	return passed("%s", a)
}

func (c *serviceCheck) noToken() result {
	a := c.ask(noAuthorization)
	c.answers["no-token"] = a
	if a.accepted() {
		c.bail = fmt.Sprintf("%s is not protected, or shows a login page with %d: give -check a URL that needs a token", c.service.url, a.status)
	}
	return verdict(a, "must", "there was no token")
}

var (
	bearerChallenge = regexp.MustCompile(`(?i)(^|,)\s*bearer(\s|,|$)`)
	invalidToken    = regexp.MustCompile(`(?i)\berror\s*=\s*("invalid_token"|invalid_token\b)`)
)

func (c *serviceCheck) challenge() result {
	a := c.answers["no-token"]
	if !a.refused() {
		return skipped("no-token was not refused")
	}
	return challengeResult(a, bearerChallenge, "WWW-Authenticate: Bearer", "RFC 6750 section 3")
}

func (c *serviceCheck) challengeExpired() result {
	a := c.answers["expired"]
	if !a.refused() {
		return skipped("expired was not refused")
	}
	return challengeResult(a, invalidToken, `error="invalid_token"`, "RFC 6750 section 3.1: it tells clients that they need another token")
}

func challengeResult(a answer, want *regexp.Regexp, name, why string) result {
	challenges := strings.Join(a.header.Values("WWW-Authenticate"), ", ")
	if a.status == http.StatusUnauthorized && want.MatchString(challenges) {
		return passed("refused with 401 and %s", name)
	}
	got := fmt.Sprintf("refused with %d and without WWW-Authenticate", a.status)
	if challenges != "" {
		got = fmt.Sprintf("refused with %d and WWW-Authenticate: %s", a.status, challenges)
	}
	return advised(otherwise, got, fmt.Sprintf("should be refused with 401 and %s (%s)", name, why))
}

// tryNewKey publishes a new key and asks with tokens of it until several in a row are accepted,
// limit at most.
func (c *serviceCheck) tryNewKey(limit time.Duration, ask func(question) answer) (t keyTrial) {
	made, err := c.server.token(c.ctx, "?key=new")
	c.must(err)
	t.token, t.lifetime = c.token("Bearer", "?key="+made.kid), made.lifetime
	before, start := c.reads().JWKS, time.Now()
	var read time.Time // when a read was first seen
	for range c.attempts(limit) {
		t.answer = ask(t.token)
		t.after, t.reads = time.Since(start), c.reads().JWKS-before
		t.late = t.late || !t.answer.accepted()
		if t.answer.accepted() {
			t.answer = c.askInARow(t.token, ask)
			t.mixed = t.mixed || !t.answer.accepted()
		}
		if t.answer.crashed() && t.crash == "" {
			t.crash = t.answer.brief()
		}
		if t.reads > 0 && read.IsZero() {
			read = time.Now()
		}
		if t.answer.accepted() || !read.IsZero() && !t.mixed && time.Since(read) >= giveUpAfter {
			break
		}
	}
	c.inVain[waitForRead] = !t.answer.accepted() && t.reads == 0
	return t
}

func (c *serviceCheck) newKeyBefore() result {
	c.readsBefore = c.reads().JWKS - c.start.JWKS
	c.before = c.tryNewKey(c.wait, c.judge)
	return c.before.result("a verifier should read the JWK Set again when it meets an unknown key")
}

func (c *serviceCheck) knownReads() result {
	const tokens, allowed = 10, 2
	reads := allowed + 1
	for round := 0; round < readRounds && reads > allowed; round++ {
		var refused *answer
		reads = c.readCost(allowed, func() {
			for n := 0; n < tokens && refused == nil; n++ {
				if a := c.ask(c.good); !a.accepted() {
					refused = &a
				}
			}
		})
		if refused != nil {
			return skipped("a good token: %s", refused)
		}
	}
	text := fmt.Sprintf("%d good tokens cost %s of the JWK Set", tokens, count(reads, "read"))
	if reads > allowed {
		return advised(otherwise, text, fmt.Sprintf("they should cost %d reads at most: otherwise each request depends on the issuer", allowed))
	}
	return passed("%s", text)
}

// readCost returns how many reads of the JWK Set the requests of ask cost. If they seem to cost
// more than allowed, the reads in as much time without requests do not count: a service may read
// at intervals.
func (c *serviceCheck) readCost(allowed int, ask func()) int {
	before, start := c.reads().JWKS, time.Now()
	ask()
	sleep(c.ctx, c.backgroundTime("", 0))
	took, reads := time.Since(start), c.reads().JWKS-before
	if reads > allowed {
		sleep(c.ctx, took)
		idle := c.reads().JWKS - before - reads
		reads = max(0, reads-idle)
	}
	return reads
}

// backgroundTime returns how long a service may go on reading a set in the background, after it
// has answered the token that made it read; the answer took took. A service that accepts a new
// key at once reads the set before it answers, and an answer that took a second has waited for
// the read.
func (c *serviceCheck) backgroundTime(set string, took time.Duration) time.Duration {
	switch {
	case !c.before.late || took >= backgroundRead:
		return 0
	case set == "slow":
		return slowSet + backgroundRead
	}
	return backgroundRead
}

// badToken is the row of a token of GET /faults.
func (c *serviceCheck) badToken(f catalogueEntry) result {
	a, why := c.judge(c.fault(f.Fault)), f.reason()
	switch {
	case !a.refused():
	case f.Fault == "jku", f.Fault == "x5u":
		a.void = c.strayURL(f.Fault)
	case f.Fault == "payload":
		if changed := c.changeAccepted(); changed.accepted() {
			a, why = changed, "sub was changed in a token that the service had just accepted, so it may cache verdicts by jti or by the signature"
		}
	}
	c.answers[f.Fault] = a
	return verdict(a, f.Refuse, why)
}

// changeAccepted asks with a good token, and then with the same token with another sub.
func (c *serviceCheck) changeAccepted() answer {
	t, err := c.server.token(c.ctx, "")
	c.must(err)
	parts, claims := strings.Split(t.token, "."), map[string]any{}
	if json.Unmarshal([]byte(t.claims), &claims) != nil || !c.ask(bearer(t.token)).accepted() {
		return answer{void: "not asked"}
	}
	claims["sub"] = "someone-else"
	return c.judge(bearer(parts[0] + "." + encodePart(encode(claims)) + "." + parts[2]))
}

func bearer(token string) question {
	return func() (string, error) { return "Bearer " + token, nil }
}

// strayURL returns why the refusal of the token with jku, or with x5u, proves nothing; it is empty
// if the refusal does. The URL in the token begins with the issuer. If that does not lead to the
// server, a service that trusts the URL gets no key from it.
func (c *serviceCheck) strayURL(name string) string {
	t, err := c.server.token(c.ctx, "?fault="+name)
	c.must(err)
	if strings.HasPrefix(t.keyURL, c.server.base+"/") {
		return ""
	}
	before := c.reads()
	ctx, cancel := context.WithTimeout(c.ctx, keyURLLimit)
	defer cancel()
	serverClient{base: t.keyURL, http: c.server.http}.send(ctx, "GET", "")
	after := c.reads()
	c.start.JKU += after.JKU - before.JKU
	c.start.X5U += after.X5U - before.X5U
	if after.JKU+after.X5U > before.JKU+before.X5U {
		return ""
	}
	return fmt.Sprintf("refused, but %s does not lead to the server at %s, so a service that reads it gets no key: "+
		"set -issuer to a URL of the server", t.keyURL, c.server.base)
}

func (c *serviceCheck) lookups() result {
	reads := c.reads()
	jku, x5u := reads.JKU-c.start.JKU, reads.X5U-c.start.X5U
	switch {
	case jku+x5u > 0:
		return failed(otherwise, "the service read the jku of tokens %s and the x5u %s: anyone can make it send requests",
			count(jku, "time"), count(x5u, "time"))
	case c.answers["jku"].void != "", c.answers["x5u"].void != "":
		return skipped("jku or x5u got no verdict")
	}
	return passed("the service read neither jku nor x5u of the tokens")
}

// goodAgain waits, because the service may have locked the caller out for a while.
func (c *serviceCheck) goodAgain() result {
	start := time.Now()
	a := c.askInARow(c.good, c.ask)
	if a.accepted() {
		return passed("%s", a)
	}
	if a.crashed() {
		return failed(crash, "%s", a)
	}
	for range c.attempts(c.wait) {
		if c.askInARow(c.good, c.ask).accepted() {
			return passed("%s at first, and accepted after %.1f s", a, time.Since(start).Seconds())
		}
	}
	return failed(strictness, "%s, and must be accepted", a)
}

// goodToken is the row on which all others rest. If the service refuses a good token, the
// check ends after this row, with what the service got and answered, and what to do.
func (c *serviceCheck) goodToken() result {
	a := c.ask(c.good)
	if a.accepted() {
		return passed("%s", a)
	}
	c.details = c.describeRefusal(a)
	c.bail = fmt.Sprintf("a good token: %s: %s", a.brief(), c.advice(a.status))
	if a.crashed() {
		return failed(crash, "%s", a)
	}
	return failed(strictness, "%s, and must be accepted", a)
}

// describeRefusal returns lines about a good token that the service did not accept: the token,
// the response, and what is known about the service's reads of the JWK Set.
func (c *serviceCheck) describeRefusal(a answer) []string {
	token, err := c.server.token(c.ctx, "")
	c.must(err)
	lines := []string{fmt.Sprintf("the token: typ %s, claims %s", token.typ, token.claims)}
	if a.status == http.StatusUnauthorized && !strings.Contains(token.claims, `"aud":`) {
		lines = append(lines, "the token has no aud, which most verifiers require: set it with -audience")
	}
	for _, name := range []string{"WWW-Authenticate", "Location"} {
		if value := a.header.Get(name); value != "" {
			lines = append(lines, "the response: "+name+": "+value)
		}
	}
	if body := strings.TrimSpace(a.body); body != "" {
		lines = append(lines, "the body: "+body)
	}
	reads := c.reads().JWKS - c.start.JWKS
	lines = append(lines, fmt.Sprintf("the JWK Set was read %s since the check began", count(reads, "time")))
	if reads > 0 || a.status != http.StatusUnauthorized {
		return lines
	}
	lines = append(lines, "if the service still uses keys of an earlier server, restart the service, and let the server keep its keys with -keys")
	if !c.running {
		lines = append(lines, "if the service reads keys only when it starts, start the server first (this command without -check), "+
			"then the service, and then the check")
	}
	return lines
}

// advice says what to do about a service that answered a good token with status.
func (c *serviceCheck) advice(status int) string {
	server := ""
	if c.running {
		server = " of the server that runs, and restart it"
	}
	switch {
	case status == http.StatusUnauthorized:
		text := "compare its iss and aud with what the service expects (set them with -issuer and -audience" + server + ")"
		if c.reads().JWKS == c.start.JWKS {
			text += ", and the URL from which the service reads keys with " + c.server.base + jwkSetPath
		}
		return text
	case status == http.StatusForbidden:
		return "the service may require a role or a scope: set it with -claims" + server + `, such as -claims '{"roles":["admin"]}'`
	case status == http.StatusNotFound:
		return "correct the path of -check"
	case status/100 == 3:
		return "the check follows no redirects: give -check a URL that answers with 2xx itself and takes bearer tokens"
	case status == http.StatusMethodNotAllowed:
		return "the check sends GET requests: give -check a URL that answers them"
	case status == http.StatusTooManyRequests:
		return "the service limits requests: raise its limit, or wait until it accepts requests again"
	}
	return "the log of the service may say why"
}
