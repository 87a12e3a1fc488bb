package main

import (
	"slices"
	"time"
)

const tick = time.Second // how often the loop looks

// A rotation is the policy of which key signs and when keys are made. It is pure: it
// looks at keys and a time, and at nothing else. Keys are in order of expiry.
type rotation struct {
	keyTTL       time.Duration // how long a key lives from when it may sign
	tokenTTL     time.Duration // how long a token lives
	publishAhead time.Duration // how long a key is published before it signs
}

// overlap is how long before its expiry a key stops signing: the life of a token, so
// that every token can be verified to its last second, and half of one more, because
// the clocks of verifiers differ.
func (r rotation) overlap() time.Duration { return r.tokenTTL + r.tokenTTL/2 }

// maxAge is how long a cache may keep the JWK Set: a small part of publishAhead.
func (r rotation) maxAge() time.Duration {
	return min(max(r.publishAhead/24, time.Second), 5*time.Minute)
}

// ahead is how far the queue of keys has to reach. Keys are made earlier than
// publishAhead, because a replica is one more cache and sees them late.
func (r rotation) ahead() time.Duration { return r.publishAhead + max(3*tick, r.maxAge()) }

// signsUntil is the last moment at which k signs.
func (r rotation) signsUntil(k key) time.Time { return k.expires.Add(-r.overlap()) }

// far reports whether k is beyond the horizon: it was made under other flags or a wrong
// clock. Such a key is published, because its tokens may be about, but it neither signs
// nor counts for the queue until the horizon reaches it.
func (r rotation) far(k key, now time.Time) bool {
	return r.signsUntil(k).After(now.Add(r.ahead() + r.keyTTL))
}

// signer returns the key that signs: the first one that outlives a token issued now by
// more than clock skew.
func (r rotation) signer(keys []key, now time.Time) (k key, ok bool) {
	i := slices.IndexFunc(keys, func(k key) bool { return !r.signsUntil(k).Before(now) })
	if i < 0 || r.far(keys[i], now) {
		return key{}, false
	}
	return keys[i], true
}

// end is when the last key in the queue stops signing; zero if there is none.
func (r rotation) end(keys []key, now time.Time) (end time.Time) {
	for _, k := range keys {
		if !r.far(k, now) {
			end = r.signsUntil(k)
		}
	}
	return end
}

// next returns when the next key has to expire, and whether it is due: the queue ends
// sooner than ahead from now. The key takes over where the queue ends.
func (r rotation) next(keys []key, now time.Time, ahead time.Duration) (expires time.Time, due bool) {
	end := r.end(keys, now)
	due = end.Before(now.Add(ahead))
	if end.Before(now) {
		end = now
	}
	return end.Add(r.keyTTL), due
}

// unexpired returns the keys that belong in the JWK Set.
func unexpired(keys []key, now time.Time) []key {
	return slices.DeleteFunc(slices.Clone(keys), func(k key) bool { return k.expired(now) })
}
