package main

import (
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
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

func TestTokenVerifiesWithServedKey(t *testing.T) {
	h, _ := newTest(t, testConfig(t))
	claims, err := fetch(t, h).verify(issue(t, h))
	if err != nil {
		t.Fatal(err)
	}
	if claims["sub"] != "user123" || time.Unix(int64(claims["exp"].(float64)), 0).Before(time.Now()) {
		t.Errorf("claims = %v", claims)
	}
}
