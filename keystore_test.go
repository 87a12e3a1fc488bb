package main

import (
	"bytes"
	"context"
	cryptorand "crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"maps"
	"math/big"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// testConfig is the configuration of the flags given, with keys in a directory of
// the test's own unless the flags name one.
func testConfig(t testing.TB, args ...string) config {
	t.Helper()
	cfg, err := parseFlags(append([]string{"-keys", t.TempDir(), "-issuer", "http://issuer.test"}, args...), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// newTest returns the handler of a server just started, and its keystore, whose
// loop does not run.
func newTest(t testing.TB, cfg config) (http.Handler, *keystore) {
	t.Helper()
	keys, err := openKeystore(t.Context(), cfg, log.New(t.Output(), "", 0))
	if err != nil {
		t.Fatal(err)
	}
	var clients map[string]client
	if cfg.clients != "" {
		if clients, err = readClients(cfg.clients); err != nil {
			t.Fatal(err)
		}
	}
	return newHandler(cfg, keys, clients, keys.log), keys
}

// do sends a request through the route table. A body beginning with { or not is
// labelled as curl -d would.
func do(h http.Handler, method, target, body string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	if body != "" {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// A keySet is what a verifier holds: keys rebuilt from the n and e that were served.
type keySet map[string]*rsa.PublicKey

// fetch reads the JWK Set as a verifier does.
func fetch(t testing.TB, h http.Handler) keySet {
	t.Helper()
	w := do(h, "GET", "/.well-known/jwks.json", "")
	if w.Code != http.StatusOK {
		t.Fatalf("JWK Set: %d %s", w.Code, w.Body)
	}
	return parseSet(t, w.Body.Bytes())
}

func parseSet(t testing.TB, body []byte) keySet {
	t.Helper()
	var served struct {
		Keys []map[string]string `json:"keys"`
	}
	if err := json.Unmarshal(body, &served); err != nil {
		t.Fatalf("JWK Set %s: %v", body, err)
	}
	set := keySet{}
	for _, k := range served.Keys {
		if set[k["kid"]] != nil {
			t.Errorf("kid %s is served twice", k["kid"])
		}
		n, err1 := base64.RawURLEncoding.Strict().DecodeString(k["n"])
		e, err2 := base64.RawURLEncoding.Strict().DecodeString(k["e"])
		if err := errors.Join(err1, err2); err != nil {
			t.Fatalf("JWK %v: %v", k, err)
		}
		set[k["kid"]] = &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: int(new(big.Int).SetBytes(e).Int64())}
	}
	return set
}

var errUnknownKid = errors.New("unknown kid")

// verify is a correct verifier without leeway.
func (set keySet) verify(token string) (jwt.MapClaims, error) {
	claims := jwt.MapClaims{}
	_, err := jwt.NewParser(jwt.WithValidMethods([]string{"RS256"}), jwt.WithExpirationRequired(), jwt.WithIssuedAt()).
		ParseWithClaims(token, claims, func(token *jwt.Token) (any, error) {
			kid, _ := token.Header["kid"].(string)
			if k := set[kid]; k != nil {
				return k, nil
			}
			return nil, errUnknownKid
		})
	return claims, err
}

// issue takes a token.
func issue(t testing.TB, h http.Handler) string {
	t.Helper()
	w := do(h, "POST", "/auth", "")
	var response struct{ Token string }
	if err := json.Unmarshal(w.Body.Bytes(), &response); err != nil || w.Code != http.StatusOK {
		t.Fatalf("POST /auth: %d %s", w.Code, w.Body)
	}
	return response.Token
}

func kidOf(t testing.TB, token string) string {
	t.Helper()
	parsed, _, err := jwt.NewParser().ParseUnverified(token, jwt.MapClaims{})
	if err != nil {
		t.Fatal(err)
	}
	return parsed.Header["kid"].(string)
}

// keepRunning runs the loop of keys until the test is over.
func keepRunning(t *testing.T, keys *keystore) {
	ctx, stop := context.WithCancel(t.Context())
	stopped := make(chan struct{})
	go func() { keys.keep(ctx); close(stopped) }()
	t.Cleanup(func() { stop(); <-stopped })
}

// keyFiles returns when each key expires, by kid, as a listing of the directory says.
func keyFiles(t testing.TB, dir string) map[string]time.Time {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.pem"))
	if err != nil {
		t.Fatal(err)
	}
	expiries := map[string]time.Time{}
	for _, name := range names {
		when, rest, _ := strings.Cut(filepath.Base(name), ".")
		expires, err := time.Parse(stamp, when)
		if err != nil {
			t.Fatal(err)
		}
		expiries[strings.TrimSuffix(rest, ".pem")] = expires
	}
	return expiries
}

func TestTokensVerifyForThreeDaysOfRotation(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig(t)
		h, keys := newTest(t, cfg)
		keys.log.SetOutput(io.Discard)
		keepRunning(t, keys)
		start := time.Now()
		end := start.Add(72 * time.Hour)
		random := rand.New(rand.NewPCG(1, 2))

		// A verifier fetches every few seconds, and remembers the sets.
		const step = 5 * time.Second
		var (
			mu      sync.Mutex // tokens are checked by goroutines
			etag    string
			set     keySet
			history []keySet
			expires = map[string]time.Time{}
			seen    = map[string]time.Time{}
		)
		watch := func() {
			mu.Lock()
			defer mu.Unlock()
			w := do(h, "GET", "/.well-known/jwks.json", "", "If-None-Match", etag)
			if w.Code != http.StatusNotModified {
				etag, set = w.Header().Get("ETag"), parseSet(t, w.Body.Bytes())
				maps.Copy(expires, keyFiles(t, cfg.dir))
				for kid := range set {
					if seen[kid].IsZero() {
						seen[kid] = time.Now()
					}
				}
			}
			for kid := range set {
				if !time.Now().Before(expires[kid]) {
					t.Errorf("at %s the set has a key that expired at %s", time.Now(), expires[kid])
				}
			}
			history = append(history, set)
		}
		check := func(token, when string) {
			t.Helper()
			mu.Lock()
			defer mu.Unlock()
			if _, err := fetch(t, h).verify(token); err != nil {
				t.Errorf("%s, with the set of then: %v", when, err)
			}
			if age := int(cfg.publishAhead / step); len(history) > age {
				if _, err := history[len(history)-1-age].verify(token); err != nil {
					t.Errorf("%s, with a set fetched publish-ahead before: %v", when, err)
				}
			}
		}
		tokens := 0
		use := func(token string, claims jwt.MapClaims) {
			expires := time.Unix(int64(claims["exp"].(float64)), 0)
			time.Sleep(time.Until(expires) / 2)
			check(token, "in mid-life")
			time.Sleep(time.Until(expires) - time.Nanosecond)
			check(token, "in its last second")
		}
		take := func() {
			token := issue(t, h)
			tokens++
			check(token, "at issue")
			claims, _ := set.verify(token)
			if kid := kidOf(t, token); !seen[kid].Equal(start) && time.Since(seen[kid]) < cfg.publishAhead {
				t.Errorf("key %s signs %s after it was published", kid, time.Since(seen[kid]))
			}
			go use(token, claims)
		}
		for round, next := start, start; round.Before(end); time.Sleep(time.Until(round)) {
			round = round.Add(step)
			watch()
			if !time.Now().Before(next) {
				next = next.Add(time.Duration(random.IntN(int(6 * time.Minute))))
				take()
			}
			if signer, ok := keys.signing(time.Now()); ok && keys.stops(signer).Before(round) {
				time.Sleep(time.Until(keys.stops(signer)) + 1) // as soon as another key has taken over
				take()
			}
		}
		if wanted := int(72 * time.Hour / (45 * time.Minute)); len(seen) < wanted || tokens < 1000 {
			t.Errorf("%d keys and %d tokens in three days; want %d and 1000 at least", len(seen), tokens, wanted)
		}
		time.Sleep(cfg.tokenTTL)
	})
}

func TestTheKeyThatSignsIsTheEarliestThatOutlivesItsTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(123456789 * time.Nanosecond) // a start is seldom on a second
		h, keys := newTest(t, testConfig(t))
		first, second := keys.keys[0], keys.keys[1]
		takeover := first.expires.Add(-15 * time.Minute)
		for _, test := range []struct {
			name string
			at   time.Time
			want key
		}{
			{"at the start", time.Now(), first},
			{"a second before the takeover", takeover.Add(-time.Second), first},
			{"at the takeover", takeover, first},
			{"a nanosecond after it", takeover.Add(1), second},
			{"a second before the first expiry", first.expires.Add(-time.Second), second},
			{"at the first expiry", first.expires, second},
		} {
			time.Sleep(time.Until(test.at))
			if kid := kidOf(t, issue(t, h)); kid != test.want.kid {
				t.Errorf("%s %s signs; want %s", test.name, kid, test.want.kid)
			}
		}
	})
}

func TestAnExpiredKeyIsNotServedFromItsExpiryOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Millisecond)
		h, keys := newTest(t, testConfig(t))
		first := keys.keys[0]
		if want := time.Now().Add(time.Hour + time.Second - time.Millisecond); !first.expires.Equal(want) {
			t.Errorf("the first key expires at %s; want the whole second after an hour, %s", first.expires, want)
		}
		time.Sleep(time.Until(first.expires) - 1)
		if fetch(t, h)[first.kid] == nil {
			t.Error("a nanosecond before its expiry a key is not served")
		}
		time.Sleep(1)
		if set := fetch(t, h); set[first.kid] != nil || len(set) != 2 {
			t.Errorf("at its expiry a key is in the set of %d; want the other 2", len(set))
		}
	})
}

func TestThreeKeysAreMadeAtFirstAndThenOneEvery45Minutes(t *testing.T) {
	for _, dir := range []string{t.TempDir(), ""} {
		synctest.Test(t, func(t *testing.T) {
			var logged lockedBuffer
			h, keys := newTest(t, testConfig(t, "-keys", dir))
			keys.log.SetOutput(&logged)
			keepRunning(t, keys)
			start := time.Now()
			for _, test := range []struct {
				after time.Duration
				made  int
			}{
				{0, 3}, {14 * time.Minute, 3}, {15 * time.Minute, 4}, {59 * time.Minute, 4}, {time.Hour, 5}, {104 * time.Minute, 5}, {105 * time.Minute, 6},
			} {
				time.Sleep(time.Until(start.Add(test.after)))
				synctest.Wait()
				expired := int((test.after - 15*time.Minute) / (45 * time.Minute))
				if got := len(fetch(t, h)); got != test.made-expired {
					t.Errorf("after %s there are %d keys; want %d made, less %d expired", test.after, got, test.made, expired)
				}
			}
			for event, want := range map[string]int{"made: ": 3, "takes over: ": 2, "expired: ": 2, "\n": 7} { // and no other lines
				if got := strings.Count(logged.String(), event); got != want {
					t.Errorf("the log has %d of %q; want %d:\n%s", got, event, want, logged.String())
				}
			}
		})
	}
}

func TestAFullQueueGetsNoKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for more, want := range map[time.Duration]int{0: 3, time.Second: 4} { // three keys sign for 135 minutes
			_, keys := newTest(t, testConfig(t, "-publish-ahead", (135*time.Minute-early+more).String()))
			if len(keys.keys) != want {
				t.Errorf("with -publish-ahead %s there are %d keys; want %d", keys.publishAhead, len(keys.keys), want)
			}
		}
	})
}

func TestAnExpiredKeyWhoseFileStaysIsNotServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, keys := newTest(t, testConfig(t))
		first := keys.keys[0]
		path := filepath.Join(keys.dir, first.file())
		if err := errors.Join(os.Remove(path), os.MkdirAll(filepath.Join(path, "x"), 0o700)); err != nil { // cannot be deleted
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		for range 2 {
			const want = "cannot delete the file of an expired key"
			if err := keys.grow(t.Context(), 0); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
				t.Errorf("grow = %v; want that it %s, %s", err, want, path)
			}
			if set := fetch(t, h); set[first.kid] != nil || len(set) != 2 {
				t.Errorf("an expired key is in the set of %d; want the other 2", len(set))
			}
		}
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
		if err := keys.grow(t.Context(), 0); err != nil {
			t.Errorf("grow = %v; want no error once the file is gone", err)
		}
	})
}

func TestAServerThatSleptSignsCorrectlyAtOnce(t *testing.T) {
	t.Parallel()
	for _, slept := range []time.Duration{time.Hour, 2 * time.Hour, 24 * time.Hour} {
		t.Run(slept.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h, _ := newTest(t, testConfig(t)) // nothing ticks
				known := fetch(t, h)
				time.Sleep(slept)
				token := issue(t, h)
				if _, err := fetch(t, h).verify(token); err != nil {
					t.Error(err)
				}
				if slept <= 2*time.Hour && known[kidOf(t, token)] == nil {
					t.Error("a key signs that verifiers do not know, though one that they know could")
				}
				time.Sleep(10*time.Minute - 1)
				if _, err := fetch(t, h).verify(token); err != nil {
					t.Error("in its last second:", err)
				}
			})
			synctest.Test(t, func(t *testing.T) {
				h, _ := newTest(t, testConfig(t))
				time.Sleep(slept)
				if len(fetch(t, h)) == 0 {
					t.Error("the first thing served is an empty set")
				}
			})
		})
	}
}

func TestARestartKeepsTheKeys(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		down time.Duration
		kept int // keys of before that are served
	}{{0, 3}, {50 * time.Minute, 3}, {2 * time.Hour, 1}, {24 * time.Hour, 0}} {
		t.Run(test.down.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cfg := testConfig(t)
				h, _ := newTest(t, cfg)
				before, old := fetch(t, h), issue(t, h)
				time.Sleep(test.down)

				h, _ = newTest(t, cfg)
				kept := 0
				for kid := range fetch(t, h) {
					if before[kid] != nil {
						kept++
					}
				}
				if kept != test.kept {
					t.Errorf("%d keys of before are served; want %d", kept, test.kept)
				}
				if files := keyFiles(t, cfg.dir); len(files) != len(fetch(t, h)) {
					t.Errorf("%d key files for %d keys; want those of expired keys deleted", len(files), len(fetch(t, h)))
				}
				if test.down < 10*time.Minute {
					if _, err := fetch(t, h).verify(old); err != nil {
						t.Error("a token of before:", err)
					}
				}
				token := issue(t, h)
				if _, err := fetch(t, h).verify(token); err != nil {
					t.Error(err)
				}
				if test.kept > 0 && before[kidOf(t, token)] == nil {
					t.Error("a key signs that verifiers do not know, though one that they know could")
				}
			})
		})
	}
}

func TestManyRequestsThatFindNoKeyMakeOne(t *testing.T) {
	for _, dir := range []string{t.TempDir(), ""} {
		synctest.Test(t, func(t *testing.T) {
			h, _ := newTest(t, testConfig(t, "-keys", dir))
			time.Sleep(24 * time.Hour)
			tokens := make(chan string, 50)
			for range cap(tokens) {
				go func() { tokens <- issue(t, h) }()
				go func() { fetch(t, h) }()
			}
			set := keySet{}
			for range cap(tokens) {
				token := <-tokens
				set = fetch(t, h)
				if _, err := set.verify(token); err != nil {
					t.Error(err)
				}
			}
			if len(set) != 1 {
				t.Errorf("%d keys were made; want 1", len(set))
			}
		})
	}
}

func TestThumbprintIsThatOfRFC7638(t *testing.T) {
	// The example of section 3.1.
	n, err := base64.RawURLEncoding.DecodeString("0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw")
	if err != nil {
		t.Fatal(err)
	}
	public := &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: 65537}
	if got, want := thumbprint(public), "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"; got != want {
		t.Errorf("thumbprint = %s; want %s", got, want)
	}
}

func TestParametersHaveNoLeadingZeroOctet(t *testing.T) {
	one := big.NewInt(1)
	for _, test := range []struct {
		bits, exponent int
		octets         int
		e              string
	}{
		{2048, 65537, 256, "AQAB"}, // its top bit is set: DER would put a zero octet first
		{2041, 65537, 256, "AQAB"},
		{2040, 3, 255, "Aw"}, // shorter than a key of 2048 bits: padding would put one first
		{2033, 1<<31 - 1, 255, "f____w"},
	} {
		modulus := new(big.Int).Add(new(big.Int).Lsh(one, uint(test.bits-1)), one)
		n, e := parameters(&rsa.PublicKey{N: modulus, E: test.exponent})
		octets, err := base64.RawURLEncoding.Strict().DecodeString(n)
		if err != nil || len(octets) != test.octets || octets[0] == 0 || new(big.Int).SetBytes(octets).Cmp(modulus) != 0 {
			t.Errorf("n of %d bits = %x (%v); want its %d octets", test.bits, octets, err, test.octets)
		}
		if e != test.e {
			t.Errorf("e of %d = %s; want %s", test.exponent, e, test.e)
		}
	}
}

func TestKeyFilesArePrivatePKCS8NamedByExpiryAndKid(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made")
	_, keys := newTest(t, testConfig(t, "-keys", dir, "-key-bits", "3072"))
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the directory: %v, %v; want mode 0700", info.Mode(), err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 3 {
		t.Fatalf("%d files, %v; want 3 keys and nothing else", len(entries), err)
	}
	for i, e := range entries {
		k := keys.keys[i]
		info, err := e.Info()
		if err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: %v, %v; want mode 0600", e.Name(), info.Mode(), err)
		}
		if want := k.expires.Format("20060102T150405Z") + "." + k.kid + ".pem"; e.Name() != want {
			t.Errorf("file %d is %s; want %s", i, e.Name(), want)
		}
		content, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		block, rest := pem.Decode(content)
		if block == nil || block.Type != "PRIVATE KEY" || len(rest) > 0 {
			t.Fatalf("%s is not one PEM block", e.Name())
		}
		private, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil || !k.private.Equal(private) || k.private.N.BitLen() != 3072 {
			t.Errorf("%s holds another key, or %v", e.Name(), err)
		}
	}
}

func TestAKeyHasOneExpiry(t *testing.T) {
	cfg := testConfig(t)
	h, keys := newTest(t, cfg)
	k := keys.keys[0]
	content, err := os.ReadFile(filepath.Join(cfg.dir, k.file()))
	if err != nil {
		t.Fatal(err)
	}
	longer := key{k.kid, k.private, k.expires.Add(24 * time.Hour)}
	if err := os.WriteFile(filepath.Join(cfg.dir, longer.file()), content, 0o600); err != nil {
		t.Fatal(err)
	}
	const want = "holds the key of another file"
	if err := keys.grow(t.Context(), 0); err == nil || !strings.Contains(err.Error(), longer.file()) || !strings.Contains(err.Error(), want) {
		t.Errorf("a running server: %v; want that %s %s", err, longer.file(), want)
	}
	if n := len(fetch(t, h)); n != 3 { // fetch refuses a kid that is there twice
		t.Errorf("%d keys are served; want 3", n)
	}
	if _, err := openKeystore(t.Context(), cfg, keys.log); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("a start: %v; want that %s %s", err, longer.file(), want)
	}
}

func TestAnExistingDirectoryKeepsItsMode(t *testing.T) {
	cfg := testConfig(t)
	if err := os.Chmod(cfg.dir, 0o750); err != nil {
		t.Fatal(err)
	}
	newTest(t, cfg)
	if info, err := os.Stat(cfg.dir); err != nil || info.Mode().Perm() != 0o750 {
		t.Errorf("mode %v, %v; want 0750", info.Mode(), err)
	}
}

func TestNoKeyIsUsedBeforeItIsOnDisk(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var logged lockedBuffer
		cfg := testConfig(t, "-keys", filepath.Join(t.TempDir(), "keys"))
		h, keys := newTest(t, cfg)
		keys.log.SetOutput(&logged)
		keepRunning(t, keys)
		known := fetch(t, h)

		away := cfg.dir + ".away"
		if err := os.Rename(cfg.dir, away); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(cfg.dir, nil, 0o600); err != nil { // nothing can be written to it
			t.Fatal(err)
		}
		for range 12 { // two hours
			time.Sleep(10 * time.Minute)
			for kid := range fetch(t, h) {
				if known[kid] == nil {
					t.Fatalf("key %s is published, and not on disk", kid)
				}
			}
			if kid := kidOf(t, issue(t, h)); known[kid] == nil {
				t.Fatalf("key %s signs, and is not on disk", kid)
			}
		}
		if lines := strings.Count(logged.String(), "cannot"); lines < 119 || lines > 121 {
			t.Errorf("the log says it %d times in 120 minutes; want once a minute:\n%.500s", lines, logged.String())
		}
		if !strings.HasSuffix(logged.String(), "or bring it back; the keys in hand sign until 2000-01-01T02:15:00Z\n") {
			t.Errorf("the log does not say how long the keys in hand will do:\n%.500s", logged.String())
		}

		time.Sleep(30 * time.Minute)
		if w := do(h, "POST", "/auth", ""); w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" {
			t.Errorf("when no key can sign: %d %v; want 503 with Retry-After", w.Code, w.Header())
		}
		if !strings.HasSuffix(logged.String(), "or bring it back; no key can sign\n") {
			t.Error("the log does not say that no key can sign")
		}
		time.Sleep(15 * time.Minute)
		if w := do(h, "GET", "/.well-known/jwks.json", ""); w.Code != http.StatusServiceUnavailable || w.Header().Get("Cache-Control") != "no-store" {
			t.Errorf("when no key is alive: %d %v; want 503 that is not stored", w.Code, w.Header())
		}

		if err := errors.Join(os.Remove(cfg.dir), os.Rename(away, cfg.dir)); err != nil {
			t.Fatal(err)
		}
		if _, err := fetch(t, h).verify(issue(t, h)); err != nil {
			t.Error("when the disk is back:", err)
		}
		time.Sleep(2 * time.Second)
		if !strings.Contains(logged.String(), "again") {
			t.Error("the log does not say that the disk is back")
		}
	})
}

func TestReplicasFollowOneDirectory(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig(t)
		var handlers []http.Handler
		for range 3 {
			h, keys := newTest(t, cfg)
			keepRunning(t, keys)
			handlers = append(handlers, h)
			time.Sleep(333 * time.Millisecond)
		}
		for until := time.Now().Add(12 * time.Hour); time.Now().Before(until); time.Sleep(7*time.Minute + 77*time.Millisecond) {
			kid := ""
			for i, h := range handlers {
				token := issue(t, h)
				if kid == "" {
					kid = kidOf(t, token)
				}
				if kidOf(t, token) != kid {
					t.Errorf("replica %d signs with %s; the first with %s", i, kidOf(t, token), kid)
				}
				other := handlers[(i+1)%len(handlers)]
				if _, err := fetch(t, other).verify(token); err != nil {
					t.Errorf("token of replica %d with the set of the next: %v", i, err)
				}
				if do(h, "GET", "/.well-known/jwks.json", "").Body.String() != do(other, "GET", "/.well-known/jwks.json", "").Body.String() {
					t.Errorf("replica %d serves another set than the next", i)
				}
			}
			if got := len(keyFiles(t, cfg.dir)); got > 5 {
				t.Errorf("%d keys for all; want what one server would make", got)
			}
		}
	})
}

func TestTwoKeysMadeAtOnceAreHarmless(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := testConfig(t), testConfig(t)
		h1, keys1 := newTest(t, one)
		h2, keys2 := newTest(t, two) // as if neither had seen the other's files
		two.dir = one.dir
		for _, k := range keys2.keys {
			if err := os.Rename(filepath.Join(keys2.dir, k.file()), filepath.Join(one.dir, k.file())); err != nil {
				t.Fatal(err)
			}
		}
		keys2.dir = one.dir
		keepRunning(t, keys1)
		keepRunning(t, keys2)
		time.Sleep(2 * time.Second)
		a, b := kidOf(t, issue(t, h1)), kidOf(t, issue(t, h2))
		if want := min(keys1.keys[0].kid, keys1.keys[1].kid); a != want || b != want {
			t.Errorf("they sign with %s and %s; want both with %s", a, b, want)
		}
		if len(fetch(t, h1)) != 6 || len(fetch(t, h2)) != 6 {
			t.Errorf("they serve %d and %d keys; want all 6", len(fetch(t, h1)), len(fetch(t, h2)))
		}
	})
}

// A policy is how a verifier caches the JWK Set: see the table of recipes in the
// README.
type policy struct {
	name     string
	life     time.Duration // of a set in its cache; 0 means for ever
	refetch  bool          // on an unknown kid,
	cooldown time.Duration // but not within this of the last fetch
}

// A cachingVerifier fetches as its policy says.
type cachingVerifier struct {
	policy
	set     []byte
	fetched time.Time
	refused int
}

// knows tells whether kid is known, to the set in the cache or to a fresh one. A
// verifier that cannot fetch goes on with what it has, and refuses nothing if that
// is out of date: it could not have an answer.
func (v *cachingVerifier) knows(kid string, get func() []byte) bool {
	stale := v.set == nil || v.life > 0 && time.Since(v.fetched) >= v.life
	fetch := func() bool {
		set := get()
		if set != nil {
			v.set, v.fetched = set, time.Now()
		}
		return set != nil
	}
	if stale && !fetch() {
		return true
	}
	if bytes.Contains(v.set, []byte(kid)) {
		return true
	}
	return v.refetch && time.Since(v.fetched) >= v.cooldown && (!fetch() || bytes.Contains(v.set, []byte(kid)))
}

// keyPool makes RSA keys faster than rsa.GenerateKey: from pairs of a few primes.
func keyPool(t testing.TB) func() *rsa.PrivateKey {
	var primes []*big.Int
	i, j := 0, 0
	return func() *rsa.PrivateKey {
		if i++; i >= j {
			i, j = 0, j+1
		}
		for len(primes) <= j {
			k, err := rsa.GenerateKey(cryptorand.Reader, 2048)
			if err != nil {
				t.Fatal(err)
			}
			primes = append(primes, k.Primes...)
		}
		p, q, one := primes[i], primes[j], big.NewInt(1)
		phi := new(big.Int).Mul(new(big.Int).Sub(p, one), new(big.Int).Sub(q, one))
		k := &rsa.PrivateKey{
			PublicKey: rsa.PublicKey{N: new(big.Int).Mul(p, q), E: 65537},
			D:         new(big.Int).ModInverse(big.NewInt(65537), phi),
			Primes:    []*big.Int{p, q},
		}
		k.Precompute()
		return k
	}
}

func TestNoVerifierThatCachesForLessThanPublishAheadRefusesALiveToken(t *testing.T) {
	t.Parallel()
	const month = 30 * 24 * time.Hour
	policies := []policy{
		{"jose", 10 * time.Minute, true, 30 * time.Second},
		{"jwks-rsa", 10 * time.Minute, true, 0},
		{"get-jwks", time.Minute, true, 0},
		{"express-oauth2-jwt-bearer", 10 * time.Minute, true, 30 * time.Second},
		{"aws-jwt-verify", 0, true, 10 * time.Second},
		{"keyfunc", time.Hour, true, 5 * time.Minute},
		{"keyfunc, others at the same time", time.Hour, false, 0},
		{"jwx", 15 * time.Minute, false, 0},
		{"go-oidc, kube-apiserver", 0, true, 0},
		{"PyJWT, Spring Security", 5 * time.Minute, true, 0},
		{"Authlib", 0, true, 0},
		{"Envoy", 10 * time.Minute, false, 0},
		{"Istio", 20 * time.Minute, false, 0},
		{"AWS HTTP API", 2 * time.Hour, false, 0},
		{".NET", 12 * time.Hour, false, 0}, // its refetch comes after the refusal
		{"lua-resty-openidc", 24 * time.Hour, true, 0},
		{"Hasura", 5 * time.Minute, false, 0},
		{"a cache that never looks again", 0, false, 0},
	}
	for _, test := range []struct {
		ahead   string
		refuses []string // those that cache for longer and do not refetch at once
	}{
		{"2h", []string{".NET", "a cache that never looks again"}},
		{"13h", []string{"a cache that never looks again"}},
	} {
		t.Run(test.ahead, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				seed := cryptorand.Text()
				t.Logf("seed %s", seed)
				random := rand.New(rand.NewChaCha8([32]byte([]byte(seed + "......"))))
				cfg := testConfig(t, "-publish-ahead", test.ahead)
				spare := keyPool(t)
				var (
					h      http.Handler // nil while the server is down
					keys   *keystore
					served []byte
				)
				ahead := cfg.publishAhead + early
				last := func() time.Time { return keys.stops(keys.keys[len(keys.keys)-1]) }
				fill := func() { // as the loop does, with keys from the pool
					for grow := time.Duration(0); grow < ahead; grow = max(0, time.Until(last())) + 1 {
						keys.spare = spare()
						if err := keys.grow(t.Context(), grow); err != nil {
							t.Fatal(err)
						}
					}
				}
				start := func() {
					quick := cfg // its first key will do for the start
					quick.publishAhead = time.Second
					var err error
					if keys, err = openKeystore(t.Context(), quick, log.New(io.Discard, "", 0)); err != nil {
						t.Fatal(err)
					}
					fill()
					h = newHandler(cfg, keys, nil, keys.log)
				}
				start()
				var verifiers []*cachingVerifier
				for _, p := range policies {
					verifiers = append(verifiers, &cachingVerifier{policy: p})
				}
				get := func() []byte {
					if h == nil {
						return nil
					}
					served = do(h, "GET", "/.well-known/jwks.json", "").Body.Bytes()
					return served
				}
				use := func(kid, when string) {
					for _, v := range verifiers {
						if random.IntN(3) > 0 && !v.knows(kid, get) {
							v.refused++
							if !slices.Contains(test.refuses, v.name) {
								t.Errorf("%s: %s refuses a token %s, with a set fetched %s before", time.Now(), v.name, when, time.Since(v.fetched))
							}
						}
					}
				}
				type event struct {
					at        time.Time
					kid, when string
				}
				var later []event // by time
				end := time.Now().Add(month)
				for restart := time.Now(); time.Now().Before(end); {
					if time.Now().After(restart) {
						down := []time.Duration{2 * time.Second, time.Minute, 3 * time.Hour, 40 * time.Hour}[random.IntN(10)*4/10]
						h = nil
						time.Sleep(time.Duration(random.Int64N(int64(down))))
						start()
						restart = time.Now().Add(time.Duration(random.Int64N(int64(36 * time.Hour))))
					}
					// A token now and then, and one as soon as a key has taken over.
					pause := time.Duration(random.Int64N(int64(30 * time.Minute)))
					if k, ok := keys.signing(time.Now()); ok && random.IntN(2) == 0 {
						pause = min(pause, time.Until(keys.stops(k))+1)
					}
					// The loop would tick every second; what matters is when a key is due.
					for until := time.Now().Add(pause); time.Now().Before(until); {
						due := last().Add(tick - ahead)
						wait := min(time.Until(until), time.Until(due))
						if len(later) > 0 {
							wait = min(wait, time.Until(later[0].at))
						}
						time.Sleep(max(1, wait))
						for len(later) > 0 && !time.Now().Before(later[0].at) {
							if time.Now().Before(later[0].at.Add(1)) { // else the server was down
								use(later[0].kid, later[0].when)
							}
							later = later[1:]
						}
						if !time.Now().Before(due) {
							fill()
						}
					}
					kid := kidOf(t, issue(t, h))
					use(kid, "at issue")
					later = append(later,
						event{time.Now().Add(time.Duration(random.Int64N(int64(cfg.tokenTTL)))), kid, "in mid-life"},
						event{time.Now().Add(cfg.tokenTTL - 1), kid, "in its last second"})
					slices.SortFunc(later, func(a, b event) int { return a.at.Compare(b.at) })
				}
				for _, v := range verifiers {
					if slices.Contains(test.refuses, v.name) && v.refused == 0 {
						t.Errorf("%s refuses nothing, though it caches for longer than publish-ahead", v.name)
					}
				}
			})
		})
	}
}

func FuzzKeyFile(f *testing.F) {
	k := newKey(keyPool(f)(), time.Date(2026, 11, 23, 1, 0, 0, 0, time.UTC))
	der, err := x509.MarshalPKCS8PrivateKey(k.private)
	if err != nil {
		f.Fatal(err)
	}
	file := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	f.Add(k.file(), file)
	f.Add("20260101T000000Z."+k.kid+".pem", file)
	f.Add("20260101T000000.5Z."+k.kid+".pem", append(file, file...))
	f.Add(".pem", file[:len(file)/2])
	f.Fuzz(func(t *testing.T, name string, content []byte) {
		k, err := parseKey(name, content)
		if err != nil {
			if private := k.private; private != nil {
				t.Errorf("a key in spite of %v", err)
			}
			return
		}
		if k.file() != name || k.private.N.BitLen() < 2048 || k.kid != thumbprint(&k.private.PublicKey) {
			t.Errorf("parseKey(%q) = %s of %d bits", name, k.file(), k.private.N.BitLen())
		}
	})
}
