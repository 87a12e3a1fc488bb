package main

import (
	"slices"
	"time"
)

const tick = time.Second // interval of the maintenance loop

// A rotation is the policy of which key signs and when keys are made. Its methods are pure.
// They take keys in order of expiry.
type rotation struct {
	keyTTL       time.Duration // how long a key lives after the key before it stops signing
	tokenTTL     time.Duration // how long a token lives
	publishAhead time.Duration // how long a key is published before it signs
}

// overlap is how long before its expiry a key stops signing: the lifetime of a token, so that
// every token can be verified until it expires, and half of another for clock skew.
func (r rotation) overlap() time.Duration { return r.tokenTTL + r.tokenTTL/2 }

// maxAge is how long a cache may keep the JWK Set: a small part of publishAhead.
func (r rotation) maxAge() time.Duration {
	return min(max(r.publishAhead/24, time.Second), 5*time.Minute)
}

// queueLength is how far into the future keys must be able to sign: publishAhead, and the
// time until every replica has seen a new key.
func (r rotation) queueLength() time.Duration { return r.publishAhead + max(3*tick, r.maxAge()) }

// signsUntil is the last moment at which k signs.
func (r rotation) signsUntil(k key) time.Time { return k.expires.Add(-r.overlap()) }

// beyondHorizon reports whether k stops signing so late that it was made with other flags or
// a wrong clock. Such a key is published, because its tokens may still be in use, but it
// neither signs nor counts for the queue until the horizon reaches it.
func (r rotation) beyondHorizon(k key, now time.Time) bool {
	return r.signsUntil(k).After(now.Add(r.queueLength() + r.keyTTL))
}

// signer returns the key that signs: the first one that has not stopped signing.
func (r rotation) signer(keys []key, now time.Time) (k key, ok bool) {
	i := slices.IndexFunc(keys, func(k key) bool { return !r.signsUntil(k).Before(now) })
	if i < 0 || r.beyondHorizon(keys[i], now) {
		return key{}, false
	}
	return keys[i], true
}

// end is when the last key in the queue stops signing; zero if the queue is empty.
func (r rotation) end(keys []key, now time.Time) (end time.Time) {
	for _, k := range keys {
		if !r.beyondHorizon(k, now) {
			end = r.signsUntil(k)
		}
	}
	return end
}

// due reports whether a key has to be made: whether the queue ends before target from now.
func (r rotation) due(keys []key, now time.Time, target time.Duration) bool {
	return r.end(keys, now).Before(now.Add(target))
}

// nextExpiry returns the expiry of the next key, which takes over when the queue ends, or now
// if it has ended.
func (r rotation) nextExpiry(keys []key, now time.Time) time.Time {
	takeover := r.end(keys, now)
	if takeover.Before(now) {
		takeover = now
	}
	return takeover.Add(r.keyTTL)
}

// unexpired returns the keys that belong in the JWK Set.
func unexpired(keys []key, now time.Time) []key {
	return slices.DeleteFunc(slices.Clone(keys), func(k key) bool { return k.expired(now) })
}

// logFields returns the fields of a log line about k.
func (r rotation) logFields(k key) []any {
	return []any{
		"kid", k.kid, "signs_from", k.expires.Add(-r.keyTTL).Format(time.RFC3339),
		"signs_until", r.signsUntil(k).Format(time.RFC3339), "expires", k.expires.Format(time.RFC3339),
	}
}
