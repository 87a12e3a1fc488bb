package main

import (
	"cmp"
	"slices"
	"sync"
	"time"
)

// A keyring holds keys in memory, and their JWK Set. It waits for nothing: no key is made and
// nothing is signed under its mutex.
type keyring struct {
	rotation

	mu                    sync.Mutex // guards the following fields
	keys                  []key      // in order of expiry
	invalid               error      // describes unusable key files
	set                   *document  // the JWK Set; nil if there is no key to publish
	validFrom, validUntil time.Time  // of set
}

// current returns the JWK Set at a time; nil if there is no key to publish.
func (r *keyring) current(now time.Time) *document {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now.Before(r.validFrom) || !now.Before(r.validUntil) {
		r.render(now)
	}
	return r.set
}

// published returns the keys in the JWK Set at a time, the soonest-expiring first. They are
// the same as long as jwks returns the same document.
func (r *keyring) published(now time.Time) []key {
	r.mu.Lock()
	defer r.mu.Unlock()
	return unexpired(r.keys, now)
}

// signing returns the key that signs at a time.
func (r *keyring) signing(now time.Time) (k key, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.signer(r.keys, now)
}

// state returns the keys in memory, and an error that describes unusable key files.
func (r *keyring) state() (keys []key, invalid error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.keys, r.invalid
}

func (r *keyring) setInvalid(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.invalid = err
}

// replace installs keys and renders their JWK Set.
func (r *keyring) replace(keys []key, now time.Time) {
	slices.SortFunc(keys, func(a, b key) int { return cmp.Compare(a.name(), b.name()) })
	r.mu.Lock()
	defer r.mu.Unlock()
	r.keys = keys
	r.render(now)
}

// render renders the JWK Set. The caller holds mu.
func (r *keyring) render(now time.Time) {
	r.set, r.validFrom, r.validUntil = nil, now, time.Time{}
	if keys := unexpired(r.keys, now); len(keys) > 0 {
		r.set, r.validUntil = jwkSet(keys), keys[0].expires
	}
}
