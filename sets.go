package main

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const maxMadeKeys = 8 // keys made on demand that are in memory at once

// A setTester changes the JWK Set for tests: it publishes keys that are made on demand, and
// gives the set a fault. All of it is in memory. It also counts how often the JWK Set, and the
// URLs in bad tokens, are read.
type setTester struct {
	*tester
	store *keystore
	reads struct{ jwks, jku, x5u atomic.Int64 }

	mu        sync.Mutex                   // held for changes of the fields below
	made      []key                        // unexpired keys made on demand, published or not, the newest last
	published atomic.Pointer[publishedSet] // nil while the store's JWK Set is served unchanged
}

// A publishedSet says how the JWK Set differs from that of the store.
type publishedSet struct {
	fault setFault // the zero value if there is none
	keys  []key    // added to those of the store: made on demand, the newest last; at most maxMadeKeys
}

func newSetTester(store *keystore) *setTester {
	return &setTester{tester: newTester(store.bits), store: store}
}

// parseOptions parses the parameter key, and those that tester.parseOptions parses. They exclude
// each other. For key=new it makes a key, which is published when its token is signed: a request
// that is refused publishes nothing.
func (t *setTester) parseOptions(ctx context.Context, query url.Values, longest time.Duration) (tokenOptions, error) {
	name, err := oneOf(query, "expired", "expires_in", "fault", "key")
	if err != nil {
		return tokenOptions{}, err
	}
	if name != "key" {
		return t.tester.parseOptions(ctx, query, longest)
	}
	var k key
	kid := query.Get("key")
	if kid == "new" {
		k, err = t.makeKey(ctx)
	} else {
		k, err = t.madeKey(kid)
	}
	sign := func(d *draft) (string, error) {
		if d.expires > k.expires.Unix() {
			return "", badRequest("the key would expire before the token: make a new one with key=new")
		}
		if kid == "new" {
			if err := t.publishKey(ctx, k); err != nil {
				return "", err
			}
		}
		d.header["kid"], d.key, d.signer = k.kid, k, k.private
		return d.sign()
	}
	return tokenOptions{lifetime: longest, sign: sign}, err
}

// makeKey makes a key. The error is that of ctx, or context.DeadlineExceeded if there is no turn
// within maxWait.
func (t *setTester) makeKey(ctx context.Context) (key, error) {
	waiting, cancel := context.WithTimeout(ctx, maxWait)
	defer cancel()
	private, err := t.store.generate(waiting)
	if err != nil {
		return key{}, err
	}
	return newKey(private, clock().Add(t.store.keyTTL)), nil
}

// publishKey publishes a key made on demand, unless ctx is canceled. The error is that of ctx.
func (t *setTester) publishKey(ctx context.Context, k key) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	t.made = append(unexpired(t.made, clock()), k)
	t.made = slices.Clone(t.made[max(0, len(t.made)-maxMadeKeys):])
	t.publish(func(set *publishedSet) {
		set.keys = append(slices.Clone(set.keys), k)
		set.keys = set.keys[max(0, len(set.keys)-maxMadeKeys):]
	})
	return nil
}

// publish changes how the JWK Set differs from that of the store. The caller holds mu.
func (t *setTester) publish(change func(*publishedSet)) {
	var set publishedSet
	if p := t.published.Load(); p != nil {
		set = *p
	}
	change(&set)
	t.published.Store(&set)
}

// madeKey returns a key made on demand that has not expired, whether or not it is still published.
func (t *setTester) madeKey(kid string) (key, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, k := range unexpired(t.made, clock()) {
		if k.kid == kid {
			return k, nil
		}
	}
	return key{}, badRequest(
		"key has to be new, or the kid of one of the last %d keys made by key=new, as long as it has not expired", maxMadeKeys)
}

// setFault is the handler of POST /faults/sets. From then on the JWK Set has the fault in the
// query. Without a fault in the query it is good again, and has no keys made on demand.
func (t *setTester) setFault(w http.ResponseWriter, r *http.Request) error {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return badRequest("the query cannot be read: %v", err)
	}
	name, err := oneOf(query, "fault")
	if err != nil {
		return err
	}
	if name == "" {
		t.mu.Lock()
		t.published.Store(nil)
		t.mu.Unlock()
		writeJSON(w, http.StatusOK, map[string]string{})
		return nil
	}
	fault, err := findSetFault(query.Get("fault"))
	if err != nil {
		return err
	}
	t.mu.Lock()
	t.publish(func(set *publishedSet) { set.fault = fault })
	t.mu.Unlock()
	writeJSON(w, http.StatusOK, map[string]string{"fault": fault.Name})
	return nil
}

// countReads is the handler of GET /faults/reads.
func (t *setTester) countReads(w http.ResponseWriter, r *http.Request) error {
	writeJSON(w, http.StatusOK, map[string]int64{"jwks": t.reads.jwks.Load(), "jku": t.reads.jku.Load(), "x5u": t.reads.x5u.Load()})
	return nil
}

// counted returns h, which counts its GET requests in reads.
func counted(reads *atomic.Int64, h handler) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		if r.Method == http.MethodGet {
			reads.Add(1)
		}
		return h(w, r)
	}
}

// jwks returns the handler of the JWK Set. It passes requests on to good, the handler of the
// store's set, while that is served unchanged. write responds with a document.
func (t *setTester) jwks(good handler, write func(http.ResponseWriter, *http.Request, *document)) handler {
	return counted(&t.reads.jwks, func(w http.ResponseWriter, r *http.Request) error {
		p := t.published.Load()
		if p == nil {
			return good(w, r)
		}
		if _, err := t.store.jwks(r.Context()); err != nil { // makes a key if there is none
			return err
		}
		now := clock()
		keys := append(t.store.published(now), unexpired(p.keys, now)...)
		slices.SortFunc(keys, func(a, b key) int { return strings.Compare(a.name(), b.name()) })
		if p.fault.respond != nil {
			return p.fault.respond(w, r, jwkSet(keys))
		}
		write(w, r, p.fault.document(keys))
		return nil
	})
}
