package main

import (
	"cmp"
	"fmt"
	"time"
)

const (
	knownLimit = 10 * time.Second // how long a known key's token may take while the JWK Set cannot be read
	watchEvery = 20 * time.Millisecond
)

const (
	legalSet    = "all keys should be accepted in a legal JWK Set: "
	unusableSet = "known keys should be accepted while the JWK Set is unusable: "
)

// oddSet is the row of a legal but unusual JWK Set. The service should accept a new key in it, and
// known keys as before.
func (c *serviceCheck) oddSet(set catalogueEntry) result {
	if r, ok := c.prepareSet(); !ok {
		return r
	}
	c.setFault(set.Fault)
	limit := c.patience(waitForRead)
	t := c.tryNewKey(limit, c.ask)
	known := c.askInARow(c.good, c.ask)
	forged := c.forged(known)
	switch {
	case forged.accepted():
		return c.restoreAfter(failed(hole, "a token with a wrong signature: %s, and must be refused", forged))
	case t.reads == 0 && !t.answer.accepted():
		return unread(limit)
	case t.answer.void != "":
		return skipped("%s", t.answer.void)
	case known.void != "":
		return skipped("%s", known.void)
	}
	text := fmt.Sprintf("a new key: %s; a known key: %s", t, known.brief())
	switch {
	case t.answer.accepted() && known.accepted() && t.crash == "":
		return passed("%s", text)
	case t.crash != "" || known.crashed():
		return c.restoreAfter(advised(crash, text, legalSet+set.reason()))
	case !known.accepted():
		return c.restoreAfterRefusal(advised(strictness, text, legalSet+set.reason()), known)
	}
	return c.restoreAfter(advised(strictness, text, legalSet+set.reason()))
}

// algWithoutAlg is the row of a token with another alg than RS256 in a set whose keys have no
// alg. Only a service that believes the alg of the token accepts it.
func (c *serviceCheck) algWithoutAlg() result {
	if c.answers["alg"].accepted() {
		return skipped("the token alg is accepted whatever the set says")
	}
	if r, ok := c.prepareSet(); !ok {
		return r
	}
	c.setFault("no-alg")
	if t := c.tryNewKey(c.patience(waitForRead), c.ask); !t.answer.accepted() {
		return skipped("no new key was accepted in the set no-alg: %s", t)
	}
	a := c.ask(c.fault("alg"))
	r := verdict(a, "must", "the token says RS512, and a service should know its algorithm (RFC 8725 section 3.1)")
	if a.crashed() {
		r = advised(crash, a.String(), "a token should not crash a service")
	}
	return r
}

// brokenSet is the row of an unusable JWK Set. Tokens of unknown keys make the service read it.
// The service must refuse them, and should accept known keys during the read and after it.
func (c *serviceCheck) brokenSet(set catalogueEntry) result {
	if r, ok := c.prepareSet(); !ok {
		return r
	}
	c.setFault(set.Fault)
	limit := c.patience(waitForRead)
	p := c.provokeRead(limit)
	if !p.read {
		if unknown := <-p.answer; unknown.accepted() {
			return c.restoreAfter(failed(hole, "a token of an unknown key: %s, and must be refused", unknown))
		}
		return unread(limit)
	}
	began := time.Now()
	during, duringTook := c.timed(1)
	unknown := <-p.answer // a late answer must not overlap with the next row
	if unknown.busy() {
		unknown = c.ask(c.fault("unknown-key"))
	}
	after, afterTook := c.timed(inARow)
	for range c.attempts(c.backgroundTime(set.Fault, time.Since(began))) {
		if !after.accepted() {
			break
		}
		after, afterTook = c.timed(1)
	}
	forged := c.forged(after)
	times := fmt.Sprintf("a known key: %s during the read, %s after it", during.withTime(duringTook), after.withTime(afterTook))
	switch {
	case unknown.accepted():
		return c.restoreAfter(failed(hole, "a token of an unknown key: %s, and must be refused; %s", unknown, times))
	case forged.accepted():
		return c.restoreAfter(failed(hole, "a token with a wrong signature: %s, and must be refused; %s", forged, times))
	case cmp.Or(unknown.void, during.void, after.void) != "":
		return skipped("%s", cmp.Or(unknown.void, during.void, after.void))
	case !during.accepted():
		return c.restoreAfterRefusal(advised(findingOf(during), times, unusableSet+set.reason()), during)
	case !after.accepted():
		return c.restoreAfterRefusal(advised(findingOf(after), times, unusableSet+set.reason()), after)
	case unknown.crashed():
		text := fmt.Sprintf("a token of an unknown key: %s; %s", unknown, times)
		return c.restoreAfter(advised(crash, text, "unknown keys should be refused: "+set.reason()))
	}
	return passed("%s", times)
}

// forged asks with a token with a wrong signature, which the service refused before, if it has
// just accepted a good one. A service that cannot use a set may accept all tokens from then on.
func (c *serviceCheck) forged(good answer) answer {
	if !good.accepted() || !c.answers["signature"].refused() {
		return answer{void: "not asked"}
	}
	return c.ask(c.fault("signature"))
}

// unread returns the result of a row whose set the service has not read within limit.
func unread(limit time.Duration) result {
	if limit == 0 {
		return skipped("the service did not read this set at once, and was not waited for again")
	}
	return skipped("the service has not read this set within %s", seconds(limit))
}

// prepareSet makes the JWK Set good. ok is false, with the result of the row, if the row
// cannot be tried: a known key's token has to be accepted, because the service may still hold
// the set before; and refused tokens must not cost the next verdict.
func (c *serviceCheck) prepareSet() (r result, ok bool) {
	if c.lockouts > 0 {
		return skipped("the service locks the caller out after a token that it refuses"), false
	}
	_, a := c.restoreSet(1)
	if a.accepted() {
		return result{}, true
	}
	c.endIfLost(a)
	return skipped("before this set, and with a good one, a known key: %s", a.brief()), false
}

// restoreSet makes the JWK Set good, and waits until a known key's token is accepted, for as
// many times the wait as given.
func (c *serviceCheck) restoreSet(times time.Duration) (after time.Duration, a answer) {
	previous, start := c.set, time.Now()
	c.setFault("")
	for range c.attempts(times * c.patience(waitForKnownKey)) {
		a, after = c.ask(c.good), time.Since(start)
		if a.accepted() {
			a = c.askInARow(c.good, c.ask)
		}
		if a.accepted() {
			break
		}
	}
	if !a.accepted() {
		after = time.Since(start)
	}
	c.inVain[waitForKnownKey] = !a.accepted()
	if !a.accepted() && previous != "" && c.dropped == "" {
		c.dropped = fmt.Sprintf("after the set %s the service still did not accept known keys after %.1f s, so later rows may suffer from it",
			previous, after.Seconds())
	}
	return after, a
}

// restoreAfter makes the set good again, and adds to the result of a row whether known and new keys
// are accepted then: a service that goes on to refuse all keys is the worst finding.
func (c *serviceCheck) restoreAfter(r result) result {
	after, known := c.restoreSet(1)
	c.endIfLost(known)
	return c.addRecovery(r, known, after)
}

// restoreAfterRefusal is restoreAfter for a row in which the answer to a known key's token was
// known, which is not accepted. If the service then accepts known keys without another read of
// the set, it had not lost them: it had locked the caller out. If it accepts them at once, it had
// locked nobody out: another worker refused the token.
func (c *serviceCheck) restoreAfterRefusal(r result, known answer) result {
	before := c.reads().JWKS
	after, again := c.restoreSet(maxLockouts)
	c.endIfLost(again)
	if known.refused() && again.accepted() && after >= firstPause && c.reads().JWKS == before {
		return skipped("a known key: %s, but accepted %.1f s later without another read of the set: the service locked the caller out",
			known, after.Seconds())
	}
	return c.addRecovery(r, again, after)
}

// addRecovery adds to the result of a row whether the service accepts known keys and new keys,
// now that the set is good again. A service that does not read the set again for a known kid may
// read it for a new one, and accept known keys from then on, so that later rows can be tried.
func (c *serviceCheck) addRecovery(r result, known answer, after time.Duration) result {
	r.text += fmt.Sprintf("; with a good set again, a known key is %s", within(known, after))
	if c.bail != "" {
		return r
	}
	t := c.tryNewKey(c.wait, c.ask)
	r.text += fmt.Sprintf(", a new one is %s", within(t.answer, t.after))
	if !known.accepted() && t.answer.accepted() {
		r.text += fmt.Sprintf(", and then the known one is %s", c.askInARow(c.good, c.ask).brief())
	}
	return r
}

func within(a answer, after time.Duration) string {
	if a.accepted() {
		return fmt.Sprintf("accepted after %.1f s", after.Seconds())
	}
	return fmt.Sprintf("still not accepted after %.1f s (%s)", after.Seconds(), a.brief())
}

func findingOf(a answer) finding {
	if a.crashed() {
		return crash
	}
	return strictness
}

// timed asks with good tokens, and for no longer than knownLimit. It returns the first answer
// that is not accepted, and how long it took, or the last answer and the longest time.
func (c *serviceCheck) timed(tokens int) (a answer, longest time.Duration) {
	start := time.Now()
	for n := 0; n < tokens && (n == 0 || time.Since(start) < knownLimit); n++ {
		asked := time.Now()
		a = c.askWithin(c.good, knownLimit)
		took := time.Since(asked)
		if !a.accepted() {
			return a, took
		}
		longest = max(longest, took)
	}
	return a, longest
}

// A provocation is a request with a token of an unknown key, which makes a service read the JWK Set.
type provocation struct {
	read   bool        // whether the set has been read
	answer chan answer // will have one answer
}

// provokeRead asks with tokens of unknown keys until the service begins to read the JWK Set.
func (c *serviceCheck) provokeRead(limit time.Duration) (p provocation) {
	before := c.reads().JWKS
	unknown := c.fault("unknown-key")
	for range c.attempts(limit) {
		answers := make(chan answer, 1)
		go func() { answers <- c.request(unknown, answerLimit) }()
		p.answer = answers
		for p.read = c.reads().JWKS > before; !p.read && len(p.answer) == 0 && c.ctx.Err() == nil; {
			sleep(c.ctx, watchEvery)
			p.read = c.reads().JWKS > before
		}
		if p.read = p.read || c.reads().JWKS > before; p.read { // it may have been read just before the answer
			break
		}
	}
	c.inVain[waitForRead] = !p.read
	return p
}
