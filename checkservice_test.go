package main

import (
	"cmp"
	"context"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// A network connects clients and servers in this process, so that they can be in the bubble
// of a synctest, in which waiting takes no time.
type network struct {
	mu        sync.Mutex
	listeners map[string]*pipeListener // by address
}

func (n *network) dial(ctx context.Context, _, address string) (net.Conn, error) {
	n.mu.Lock()
	l := n.listeners[address]
	n.mu.Unlock()
	client, server := net.Pipe()
	if l != nil {
		select {
		case l.connections <- server:
			return client, nil
		case <-l.closed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return nil, &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("connection refused")}
}

// serve serves at an address until the test is over, or it is ended.
func (n *network) serve(t *testing.T, address string, h http.Handler) {
	l := &pipeListener{connections: make(chan net.Conn), closed: make(chan struct{})}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners == nil {
		n.listeners = map[string]*pipeListener{}
	}
	server := &http.Server{Handler: h, ErrorLog: log.New(io.Discard, "", 0)}
	l.end = func() { server.Close() }
	n.listeners[address] = l
	go server.Serve(l)
	t.Cleanup(l.end)
}

// end ends the server at an address, and its connections.
func (n *network) end(address string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.listeners[address].end()
}

type pipeListener struct {
	connections chan net.Conn
	closed      chan struct{}
	once        sync.Once
	end         func() // ends the server
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.connections:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "pipe"} }

// A protectedService verifies tokens with what its fields say. It is correct with issuer and
// client only: it reads the JWK Set when it meets an unknown key, five times in a row at most.
type protectedService struct {
	issuer string
	server string // from which it reads the JWK Set; by default the issuer
	client *http.Client

	omit     []string                          // checks that are left out
	methods  []string                          // accepted values of alg, unless the JWK has one; by default RS256
	trust    func(*jwt.Token) any              // a key that is accepted besides; nil for none
	claims   func(jwt.MapClaims)               // changes claims before they are checked
	answer   func(token string, err error) int // the status; 0 for the usual one
	limit    int                               // reads that may follow each other at once; by default 5
	refill   time.Duration                     // time until one more read is allowed; by default 1 s
	maxAge   time.Duration                     // of the copy of the JWK Set; by default unlimited
	readAll  bool                              // reads the JWK Set for each token
	replace  bool                              // a read that fails costs all keys
	penalty  time.Duration                     // without reads after one that failed
	strict   bool                              // a key of an unknown type fails a read
	firstKey bool                              // the first key verifies all tokens
	firstKid bool                              // the first of two keys with one kid is taken, whatever its type
	locked   chan struct{}                     // holds a value while a token is verified, if not nil: nothing is verified during a read

	mu       sync.Mutex // guards the fields below
	keys     map[string]verifierKey
	order    []string // of keys
	reads    int
	lastRead time.Time
	blocked  time.Time // until then no read is allowed
}

type verifierKey struct {
	public *rsa.PublicKey
	alg    string
}

var (
	errToken      = errors.New("invalid token")
	errUnknownKey = errors.New("unknown key")
)

// verify returns an error unless the token is good.
func (v *protectedService) verify(token string) error {
	parsed, err := jwt.NewParser(jwt.WithValidMethods([]string{"RS256", "RS512", "none"}), jwt.WithoutClaimsValidation()).Parse(token, v.key)
	if err != nil {
		return err
	}
	claims := parsed.Claims.(jwt.MapClaims)
	if v.claims != nil {
		v.claims(claims)
	}
	options := []jwt.ParserOption{}
	if v.checks("aud") {
		options = append(options, jwt.WithAudience("api"))
	}
	if v.checks("iss") {
		options = append(options, jwt.WithIssuer(v.issuer))
	}
	if v.checks("exp") {
		options = append(options, jwt.WithExpirationRequired())
	} else {
		delete(claims, "exp")
	}
	return jwt.NewValidator(options...).Validate(claims)
}

func (v *protectedService) checks(what string) bool { return !slices.Contains(v.omit, what) }

// key returns the key of a token.
func (v *protectedService) key(t *jwt.Token) (any, error) {
	typ, _ := t.Header["typ"].(string)
	switch {
	case t.Header["crit"] != nil && v.checks("crit"):
		return nil, errToken
	case !slices.Contains([]string{"jwt", "at+jwt"}, strings.ToLower(typ)) && v.checks("typ"):
		return nil, errToken
	}
	if v.trust != nil {
		if k := v.trust(t); k != nil {
			return k, nil
		}
	}
	kid, ok := t.Header["kid"].(string)
	if !ok {
		return nil, errToken
	}
	k := v.find(kid)
	methods := v.methods
	if methods == nil {
		methods = []string{"RS256"}
	}
	if !v.checks("alg") {
		methods = []string{"RS256", "RS512"}
	} else if k.alg != "" {
		methods = []string{k.alg}
	}
	if k.public == nil {
		return nil, errUnknownKey
	}
	if !slices.Contains(methods, t.Method.Alg()) {
		return nil, errToken
	}
	return k.public, nil
}

// trustJKU returns the key that the URL in jku of a token has.
func (v *protectedService) trustJKU(t *jwt.Token) any {
	jku, ok := t.Header["jku"].(string)
	if !ok {
		return nil
	}
	keys, _, _ := v.read(jku)
	if k := keys[t.Header["kid"].(string)].public; k != nil {
		return k
	}
	return nil
}

func (v *protectedService) find(kid string) verifierKey {
	if v.locked != nil {
		v.locked <- struct{}{}
		defer func() { <-v.locked }()
	}
	v.mu.Lock()
	_, known := v.keys[kid]
	due := v.readAll || (!known || v.maxAge != 0) && time.Since(v.lastRead) >= v.maxAge && v.mayRead()
	v.mu.Unlock()
	if due {
		v.update()
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	k := v.keys[kid]
	if v.firstKey && len(v.order) > 0 {
		k = v.keys[v.order[0]]
	}
	return k
}

// mayRead counts a read and reports whether it is allowed. v.mu is held.
func (v *protectedService) mayRead() bool {
	limit, refill := 5, time.Second
	if v.limit != 0 {
		limit, refill = v.limit, v.refill
	}
	elapsed := time.Since(v.lastRead)
	if refill > 0 && !v.lastRead.IsZero() {
		v.reads = max(0, v.reads-int(elapsed/refill))
	}
	if v.reads >= limit || time.Now().Before(v.blocked) {
		return false
	}
	v.reads++
	v.lastRead = time.Now()
	return true
}

// update reads the JWK Set. If that fails, the keys stay.
func (v *protectedService) update() {
	keys, order, err := v.read(cmp.Or(v.server, v.issuer) + jwksPath)
	v.mu.Lock()
	defer v.mu.Unlock()
	if err != nil {
		v.blocked = time.Now().Add(v.penalty)
	}
	if err == nil && len(keys) > 0 || v.replace {
		v.keys, v.order = keys, order
	}
}

func (v *protectedService) read(url string) (keys map[string]verifierKey, order []string, err error) {
	limit := 5 * time.Second
	if v.locked != nil {
		limit = time.Minute
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	response, err := v.client.Do(must(http.NewRequestWithContext(ctx, "GET", url, nil)))
	if err != nil {
		return nil, nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil || response.StatusCode != 200 {
		return nil, nil, errors.New("no JWK Set")
	}
	return v.parseKeys(body)
}

// parseKeys returns the RSA keys of a JWK Set, and their order.
func (v *protectedService) parseKeys(body []byte) (keys map[string]verifierKey, order []string, err error) {
	var set struct {
		Keys []struct{ Kty, Use, Alg, Kid, N, E string }
	}
	if err := json.Unmarshal(body, &set); err != nil {
		return nil, nil, err
	}
	keys = map[string]verifierKey{}
	for _, k := range set.Keys {
		if v.strict && !slices.Contains([]string{"RSA", "EC", "OKP"}, k.Kty) {
			return nil, nil, errors.New("unknown key type")
		}
		if _, again := keys[k.Kid]; again && v.firstKid {
			continue
		}
		n, err1 := base64.RawURLEncoding.DecodeString(k.N)
		e, err2 := base64.RawURLEncoding.DecodeString(k.E)
		if err1 == nil && err2 == nil && k.Kty == "RSA" && k.Use != "enc" {
			public := &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: int(new(big.Int).SetBytes(e).Int64())}
			keys[k.Kid] = verifierKey{public: public, alg: k.Alg}
			order = append(order, k.Kid)
		} else if v.firstKid {
			keys[k.Kid] = verifierKey{}
		}
	}
	return keys, order, nil
}

// ServeHTTP answers 200 to a good token.
func (v *protectedService) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		w.Header().Set("WWW-Authenticate", "Bearer")
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	err := v.verify(token)
	status := 0
	if v.answer != nil {
		status = v.answer(token, err)
	}
	switch {
	case status != 0:
		w.WriteHeader(status)
	case err == nil:
		w.WriteHeader(http.StatusOK) // without a body, so that clients can keep the connection
	default:
		w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token"`)
		w.WriteHeader(http.StatusUnauthorized)
	}
}

// every returns a service that reads the JWK Set at intervals, in the background.
func every(interval time.Duration) func(*checkTest, http.Handler) http.Handler {
	return func(c *checkTest, next http.Handler) http.Handler {
		v := next.(*protectedService)
		v.limit = -1
		v.update()
		ctx := c.t.Context()
		go func() {
			for ctx.Err() == nil {
				sleep(ctx, interval)
				v.update()
			}
		}()
		return v
	}
}

// workers returns a service that hands requests to n workers in turn. Each is a service of its own,
// with its own copy of the JWK Set.
func workers(n int, deviate func(worker int, v *protectedService)) func(*checkTest, http.Handler) http.Handler {
	return func(c *checkTest, _ http.Handler) http.Handler {
		var list []*protectedService
		for i := range n {
			list = append(list, c.service())
			deviate(i, list[i])
		}
		var turn atomic.Int64
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			list[int(turn.Add(1))%n].ServeHTTP(w, r)
		})
	}
}

// atCrit returns a service that does something else with tokens that have crit.
func atCrit(do func(http.ResponseWriter, *http.Request)) func(*checkTest, http.Handler) http.Handler {
	return func(_ *checkTest, next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if hasCrit(r) {
				do(w, r)
				return
			}
			next.ServeHTTP(w, r)
		})
	}
}

// oncePerToken returns a service that does something else with each token that has crit, the
// first time that it is sent.
func oncePerToken(do func(http.ResponseWriter, *http.Request)) func(*checkTest, http.Handler) http.Handler {
	return onceAtCritBy(func(r *http.Request) string { return r.Header.Get("Authorization") }, do)
}

// onceAtCrit returns a service that does something else with the first token that has crit.
func onceAtCrit(do func(http.ResponseWriter, *http.Request)) func(*checkTest, http.Handler) http.Handler {
	return onceAtCritBy(func(*http.Request) string { return "" }, do)
}

func onceAtCritBy(
	name func(*http.Request) string, do func(http.ResponseWriter, *http.Request),
) func(*checkTest, http.Handler) http.Handler {
	var seen sync.Map
	return func(_ *checkTest, next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if hasCrit(r) {
				if _, again := seen.LoadOrStore(name(r), true); !again {
					do(w, r)
					return
				}
			}
			next.ServeHTTP(w, r)
		})
	}
}

func hasCrit(r *http.Request) bool {
	_, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	header, _, _ := strings.Cut(token, ".")
	text, _ := base64.RawURLEncoding.DecodeString(header)
	return strings.Contains(string(text), `"crit"`)
}

// endAtCrit returns a service that ends at tokens that have crit, and is started again after
// a while; never if it is 0.
func endAtCrit(after time.Duration) func(*checkTest, http.Handler) http.Handler {
	return func(c *checkTest, next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if hasCrit(r) {
				c.end("service.test:80")
				if after > 0 {
					time.AfterFunc(after, func() { c.serve(c.t, "service.test:80", next) })
				}
			}
			next.ServeHTTP(w, r)
		})
	}
}

// unavailableAtCrit returns a service behind a proxy. It ends at a token that has crit, up to a number
// of times, and until it is started again, the proxy answers 503.
func unavailableAtCrit(times int, duration time.Duration) func(*checkTest, http.Handler) http.Handler {
	return func(_ *checkTest, next http.Handler) http.Handler {
		var mu sync.Mutex
		var ready time.Time
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			if hasCrit(r) && times > 0 && !time.Now().Before(ready) {
				ready, times = time.Now().Add(duration), times-1
			}
			unavailable := time.Now().Before(ready)
			mu.Unlock()
			if unavailable {
				w.WriteHeader(503)
				return
			}
			next.ServeHTTP(w, r)
		})
	}
}

func everyFifth(status int) func(*checkTest, http.Handler) http.Handler {
	var n atomic.Int64
	return func(_ *checkTest, next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if n.Add(1)%5 == 0 {
				w.Header().Set("Retry-After", "2")
				w.WriteHeader(status)
				return
			}
			next.ServeHTTP(w, r)
		})
	}
}

// perSecond returns a service that answers more than limit requests a second with status.
func perSecond(limit, status int) func(*checkTest, http.Handler) http.Handler {
	return limited(limit, time.Second, status)
}

// limited returns a service that answers more than limit requests in an interval with status.
func limited(limit int, interval time.Duration, status int) func(*checkTest, http.Handler) http.Handler {
	var mu sync.Mutex
	var begun time.Time
	n := 0
	return func(_ *checkTest, next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			if time.Since(begun) >= interval {
				begun, n = time.Now(), 0
			}
			n++
			over := n > limit
			mu.Unlock()
			if over {
				w.WriteHeader(status)
				return
			}
			next.ServeHTTP(w, r)
		})
	}
}

// lockout returns a service that refuses everything for a while after a number of refused tokens.
func lockout(refusals int, duration time.Duration) func(*checkTest, http.Handler) http.Handler {
	var mu sync.Mutex
	var locked time.Time
	n := 0
	return func(_ *checkTest, next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			refuse := time.Now().Before(locked)
			mu.Unlock()
			if refuse {
				w.WriteHeader(403)
				return
			}
			recorder := &statusRecorder{ResponseWriter: w, status: 200}
			next.ServeHTTP(recorder, r)
			if recorder.status != 200 && r.Header.Get("Authorization") != "" {
				mu.Lock()
				if n++; n%refusals == 0 {
					locked = time.Now().Add(duration)
				}
				mu.Unlock()
			}
		})
	}
}

// lockoutDuring returns a service that refuses everything for a while after the first request
// for which it reads a JWK Set with this fault.
func lockoutDuring(fault string, duration time.Duration) func(*checkTest, http.Handler) http.Handler {
	return func(c *checkTest, next http.Handler) http.Handler {
		var mu sync.Mutex
		var locked time.Time
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			refuse := time.Now().Before(locked)
			mu.Unlock()
			if refuse {
				w.WriteHeader(403)
				return
			}
			tester := c.server.tester
			before := tester.reads.jwks.Load()
			next.ServeHTTP(w, r)
			mu.Lock()
			defer mu.Unlock()
			if p := tester.published.Load(); p != nil && p.fault.Name == fault && tester.reads.jwks.Load() > before && locked.IsZero() {
				locked = time.Now().Add(duration)
			}
		})
	}
}

// openAfter returns a service that accepts all tokens after it has read a JWK Set with this fault.
func openAfter(fault string) func(*checkTest, http.Handler) http.Handler {
	return func(c *checkTest, next http.Handler) http.Handler {
		var open atomic.Bool
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if open.Load() && r.Header.Get("Authorization") != "" {
				return
			}
			tester := c.server.tester
			before := tester.reads.jwks.Load()
			next.ServeHTTP(w, r)
			if p := tester.published.Load(); p != nil && p.fault.Name == fault && tester.reads.jwks.Load() > before {
				open.Store(true)
			}
		})
	}
}

// cacheVerdicts returns a service that does not verify a token again. It tells tokens apart by what
// part returns.
func cacheVerdicts(part func(token string) string) func(*checkTest, http.Handler) http.Handler {
	return func(_ *checkTest, next http.Handler) http.Handler {
		var mu sync.Mutex
		verdicts := map[string]int{}
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			token := part(r.Header.Get("Authorization"))
			mu.Lock()
			status := verdicts[token]
			mu.Unlock()
			if token != "" && status != 0 {
				w.WriteHeader(status)
				return
			}
			recorder := &statusRecorder{ResponseWriter: w, status: 200}
			next.ServeHTTP(recorder, r)
			mu.Lock()
			verdicts[token] = recorder.status
			mu.Unlock()
		})
	}
}

func wholeToken(token string) string { return token }

func signatureOf(token string) string { return token[strings.LastIndexByte(token, '.')+1:] }

// fixed answers everything with a status, but for requests without a token.
func fixed(status int, body string, fields ...string) func(*checkTest, http.Handler) http.Handler {
	return func(_ *checkTest, next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") == "" {
				next.ServeHTTP(w, r)
				return
			}
			for i := 0; i+1 < len(fields); i += 2 {
				w.Header().Set(fields[i], fields[i+1])
			}
			w.WriteHeader(status)
			io.WriteString(w, body)
		})
	}
}
