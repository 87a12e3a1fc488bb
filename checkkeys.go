package main

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"
)

// unknownKeys is the row that asks with 20 tokens of unknown keys.
func (c *serviceCheck) unknownKeys() result {
	const tokens, allowed = 20, 10
	if r, ok := c.prepareSet(); !ok {
		return r
	}
	var answers map[string]int
	accepted, crashes, unavailable := 0, 0, 0
	earlier, reads := 0, allowed+1
	for round := 0; round < readRounds && reads > allowed; round++ {
		if round > 0 {
			earlier += reads
		}
		answers = map[string]int{}
		reads = c.readCost(allowed, func() {
			for range tokens {
				a := c.request(c.fault("unknown-key"), answerLimit)
				answers[a.String()]++
				switch {
				case a.accepted():
					accepted++
				case a.status == http.StatusServiceUnavailable:
					unavailable++
				case a.crashed():
					crashes++
				}
			}
		})
	}
	good := c.request(c.good, answerLimit)
	text := fmt.Sprintf("%d tokens of unknown keys cost %s of the JWK Set: %s", tokens, count(reads, "read"), counts(answers))
	if good.accepted() && unavailable > 1 {
		crashes += unavailable
	}
	if good.busy() {
		good = c.ask(c.good)
	}
	if good.lost != "" {
		c.awaitService(good)
		return failed(crash, "%s; a good token afterwards: %s", text, good)
	}
	if !good.accepted() {
		c.goodAccepted()
	}
	switch {
	case accepted > 0:
		return failed(hole, "%s, and must be refused", text)
	case crashes > 0:
		return failed(crash, "%s", text)
	case reads > allowed:
		return advised(otherwise, text, fmt.Sprintf("they should cost %d reads at most: otherwise anyone can make the service flood its issuer", allowed))
	case !good.accepted():
		return skipped("the service locked the caller out after %d tokens of unknown keys: a good token: %s", tokens, good.brief())
	}
	if earlier > 0 {
		text += fmt.Sprintf("; others before them cost %s", count(earlier, "read"))
	}
	return passed("%s", text)
}

// counts lists each kind of answer with its number.
func counts(answers map[string]int) string {
	var list []string
	for _, text := range slices.Sorted(maps.Keys(answers)) {
		list = append(list, fmt.Sprintf("%d %s", answers[text], text))
	}
	return strings.Join(list, ", ")
}

func (c *serviceCheck) newKeyAfter() result {
	if r, ok := c.prepareSet(); !ok {
		return r
	}
	c.after = c.tryNewKey(c.wait, c.judge)
	return c.after.result("tokens of unknown keys should not keep a service from reading new keys")
}

// removedKey is the row that asks with tokens of a key that was removed from the JWK Set.
func (c *serviceCheck) removedKey() result {
	if r, ok := c.prepareSet(); !ok {
		return r
	}
	t := c.tryNewKey(c.wait, c.judge)
	switch {
	case !t.answer.accepted():
		return skipped("no new key was accepted that could be removed: %s", t)
	case t.lifetime < c.wait:
		return skipped("tokens live for %s, which is shorter than -check-wait", seconds(t.lifetime))
	}
	c.setFault("") // removes the key
	before, start := c.reads().JWKS, time.Now()
	var a answer
	var took float64
	var cost string
	for range c.attempts(c.wait) {
		a = c.judge(t.token)
		took, cost = time.Since(start).Seconds(), count(c.reads().JWKS-before, "read")+" of the JWK Set"
		for n := 1; n < inARow && a.refused(); n++ { // another worker may still accept it
			a = c.ask(t.token)
		}
		if !a.accepted() {
			break
		}
	}
	switch {
	case a.accepted():
		c.removed = fmt.Sprintf("a removed key was still accepted after %.1f s", took)
		return passed("accepted for %.1f s and longer, with %s, which is allowed", took, cost)
	case a.refused():
		c.removed = fmt.Sprintf("a removed key was accepted for %.1f s", took)
		return passed("refused after %.1f s and %s, which is allowed", took, cost)
	}
	return verdict(a, "may", "")
}
