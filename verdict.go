package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"time"
)

const (
	tries        = 4               // requests of a question, while the answers are 429 or 503
	maxLockouts  = 3               // consecutive rows that wait for the service to accept good tokens again
	inARow       = 8               // accepted tokens of a key, because each worker of a service may have its own copy of the keys
	giveUpAfter  = 3 * time.Second // how long a new key may be refused after the JWK Set was read
	firstPause   = 100 * time.Millisecond
	longestPause = time.Second
)

// A serviceCheck is a check in progress. Its methods return no errors: an error that ends the
// check cancels ctx, so that all later requests fail at once, and is the cause of ctx.
type serviceCheck struct {
	ctx     context.Context
	cancel  context.CancelCauseFunc
	server  serverClient
	service serviceClient
	tap     tap
	wait    time.Duration // -check-wait
	running bool          // the server ran before the check

	set      string            // the fault that the JWK Set has, or empty
	inVain   map[waitKind]bool // whether the last wait of a kind was in vain
	lockouts int               // consecutive tokens after which a good one was not accepted
	bail     string            // why the check cannot go on after this row
	details  []string          // lines to print before that
	dropped  string            // the first set after which the service did not accept known keys

	start         readCounts        // at the start of the check
	readsBefore   int               // of the JWK Set, from the start of the check to the first new key
	brokenSets    int               // rows of JWK Sets that cannot be used
	answers       map[string]answer // of rows on which other rows depend, by name
	before, after keyTrial          // of new keys, before and after many unknown ones
	removed       string            // how long a removed key was accepted
}

// A waitKind is what the check waits for. After a wait that was in vain, the check does not wait
// for the same kind again until an attempt succeeds, so that waits do not add up.
type waitKind string

const (
	waitForVerdict  waitKind = "a verdict"
	waitForRead     waitKind = "a read of the JWK Set"
	waitForKnownKey waitKind = "the acceptance of a known key"
)

// stop ends the check because of err.
func (c *serviceCheck) stop(err error) { c.cancel(err) }

func (c *serviceCheck) stopped() bool { return c.ctx.Err() != nil || c.bail != "" }

// patience returns how long to wait.
func (c *serviceCheck) patience(w waitKind) time.Duration {
	if c.inVain[w] {
		return 0
	}
	return c.wait
}

// attempts yields the time since its start: at once, then after growing pauses, and a last
// time when limit is over. It ends early if the check is stopped.
func (c *serviceCheck) attempts(limit time.Duration) iter.Seq[time.Duration] {
	return func(yield func(time.Duration) bool) {
		start, pause := time.Now(), firstPause
		for yield(time.Since(start)) && !c.stopped() {
			rest := limit - time.Since(start)
			if rest <= 0 {
				return
			}
			sleep(c.ctx, min(pause, rest))
			pause = min(2*pause, longestPause)
		}
	}
}

// A question returns the Authorization header of one request. The error says why there is no
// such token.
type question func() (string, error)

func noAuthorization() (string, error) { return "", nil }

// token returns a question that gets a new token from the server each time, because services
// cache verdicts.
func (c *serviceCheck) token(scheme, query string) question {
	return func() (string, error) {
		t, err := c.server.token(c.ctx, query)
		if e := (*serverError)(nil); errors.As(err, &e) && e.status == http.StatusBadRequest {
			return "", err
		}
		c.must(err)
		return scheme + " " + t.token, nil
	}
}

func (c *serviceCheck) good() (string, error) { return c.token("Bearer", "")() }

func (c *serviceCheck) fault(name string) question { return c.token("Bearer", "?fault="+name) }

// must stops the check on an error of the server.
func (c *serviceCheck) must(err error) {
	if err != nil {
		c.stop(fmt.Errorf("the server at %s failed: %w; its log may say why", c.server.base, err))
	}
}

// reads returns how often the JWK Set and the URLs in bad tokens have been read.
func (c *serviceCheck) reads() readCounts {
	n, err := c.server.reads(c.ctx)
	c.must(err)
	return n
}

func (c *serviceCheck) setFault(name string) {
	c.set = name
	c.must(c.server.setFault(c.ctx, name))
}

// request asks q once, and waits for limit at most.
func (c *serviceCheck) request(q question, limit time.Duration) answer {
	authorization, err := q()
	if err != nil {
		return answer{void: err.Error()}
	}
	return c.service.ask(c.ctx, authorization, limit)
}

// ask asks q, and again while the answer is no verdict: 429, or a 503 that a good token gets as
// well. After the last try the answer is void. Only while the JWK Set has a fault is a 503 that
// lasts a verdict, because it is what the check looks for.
func (c *serviceCheck) ask(q question) answer { return c.askWithin(q, answerLimit) }

func (c *serviceCheck) askWithin(q question, limit time.Duration) answer {
	crashes := 0
	for try := 1; ; {
		a := c.request(q, limit)
		switch {
		case !a.busy():
			c.inVain[waitForVerdict] = false
			return a
		case a.status == http.StatusServiceUnavailable && c.set == "" && c.recovers(a):
			if crashes++; crashes == 2 {
				return a
			}
		case c.ctx.Err() != nil, try == tries, c.inVain[waitForVerdict]:
			if c.set == "" || a.status == http.StatusTooManyRequests {
				c.inVain[waitForVerdict] = true
				a.void = fmt.Sprintf("answered %d, which is no verdict", a.status)
			}
			return a
		default:
			try++
			sleep(c.ctx, a.retryAfter())
		}
	}
}

// recovers reports whether the service accepts a good token after it has answered 503, at once or
// after a wait. It then lets as much time pass again, so that a limit of requests has no reason
// to answer 503 to the next one: only a token that ends a service behind a proxy does.
func (c *serviceCheck) recovers(a answer) bool {
	if c.request(c.good, answerLimit).accepted() {
		return true
	}
	if c.inVain[waitForVerdict] {
		return false
	}
	start := time.Now()
	sleep(c.ctx, a.retryAfter())
	if !c.goodAccepted() {
		c.inVain[waitForVerdict] = true
		return false
	}
	sleep(c.ctx, time.Since(start))
	return true
}

// askInARow asks q several times. It returns the first answer that is not accepted, or the last one.
func (c *serviceCheck) askInARow(q question, ask func(question) answer) (a answer) {
	for range inARow {
		if a = ask(q); !a.accepted() {
			break
		}
	}
	return a
}

// judge asks q, and a good token after one that was not accepted. If the service refuses that
// one, it has locked the caller out: judge waits until a good token is accepted and asks q once
// more. After another lockout, the answer is void.
func (c *serviceCheck) judge(q question) answer {
	a, lockout := c.judgeOnce(q)
	if lockout == nil {
		return a
	}
	first := c.lockouts == 0
	c.lockouts++
	reopened := c.lockouts <= maxLockouts && c.goodAccepted()
	if a.crashed() && first { // good tokens were accepted before it
		return a
	}
	if reopened {
		if a, lockout = c.judgeOnce(q); lockout == nil {
			return a
		}
	}
	a.void = fmt.Sprintf("the service locked the caller out: a good token afterwards: %s", lockout.brief())
	return a
}

// judgeOnce asks q, and a good token after one that was not accepted. lockout is the answer to
// the good token if it was not accepted, and otherwise nil.
func (c *serviceCheck) judgeOnce(q question) (a answer, lockout *answer) {
	a = c.ask(q)
	if a.void != "" || a.accepted() {
		return a, nil
	}
	after := c.ask(c.good)
	switch {
	case after.accepted():
		c.lockouts = 0
		return a, nil
	case after.lost != "":
		c.awaitService(after)
		return a.withLoss(after), nil
	}
	return a, &after
}

// awaitService waits until the service answers again, after lost. If it does not, the check
// ends after this row.
func (c *serviceCheck) awaitService(lost answer) {
	for range c.attempts(c.wait) {
		if c.request(c.good, c.wait).lost == "" {
			c.goodAccepted()
			return
		}
	}
	c.endIfLost(lost)
}

// endIfLost ends the check after this row if a, the last of many attempts, got no response.
func (c *serviceCheck) endIfLost(a answer) {
	if a.lost != "" && c.bail == "" {
		c.bail = fmt.Sprintf("the service has not answered for %s (%s): its log may say why; "+
			"if it restarts by itself within -check-wait, the check can go on",
			seconds(c.wait), a.lost)
	}
}

// goodAccepted waits until a good token is accepted, and reports whether it is.
func (c *serviceCheck) goodAccepted() bool {
	for range c.attempts(c.wait) {
		if c.request(c.good, answerLimit).accepted() {
			return true
		}
	}
	return false
}

// A keyTrial is the result of tryNewKey.
type keyTrial struct {
	token    question
	lifetime time.Duration // of a token
	answer   answer        // the last one
	crash    string        // the first crash, also if a token was accepted later
	mixed    bool          // a token was accepted and a later one was not
	late     bool          // the first token was not accepted
	after    time.Duration // the first of the accepted answers or else the last answer, after the key was published
	reads    int           // of the JWK Set, from then on
}

// String says what happened.
func (t keyTrial) String() string {
	cost := count(t.reads, "read") + " of the JWK Set"
	if t.answer.accepted() {
		return fmt.Sprintf("accepted after %.1f s and %s", t.after.Seconds(), cost)
	}
	text := fmt.Sprintf("%s for %.1f s, with %s", t.answer.brief(), t.after.Seconds(), cost)
	if t.mixed {
		text += ", and accepted in between"
	}
	return text
}

// result returns the result of a row that needs the key to be accepted.
func (t keyTrial) result(why string) result {
	switch {
	case t.answer.void != "":
		return skipped("%s", t.answer.void)
	case t.answer.accepted() && t.crash == "":
		return passed("%s", t)
	case t.answer.accepted():
		return advised(crash, fmt.Sprintf("%s at first, %s", t.crash, t), why)
	case t.crash != "":
		return advised(crash, t.String(), why)
	}
	return advised(strictness, t.String(), why)
}
