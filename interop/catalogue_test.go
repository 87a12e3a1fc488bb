package interop

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/golang-jwt/jwt/v5"
)

func TestCatalogueScript(t *testing.T) {
	t.Parallel()
	s := start(t, "-audience", audience)
	for _, test := range []struct {
		name   string
		skip   string   // what the service does not check
		wanted []string // faults that the script prints
	}{
		{"a service that checks all passes", "", nil},
		{"a service without a check of the signature fails", "signature",
			[]string{"signature", "payload", "unsigned", "none", "wrong-key", "unknown-key", "hs256", "jwk", "jku", "x5c"}},
		{"a service that takes an empty signature fails", "unsigned", []string{"unsigned"}},
		{"a service that takes alg none fails", "none", []string{"none"}},
		{"a service that takes the public key as a secret fails", "hs256", []string{"hs256"}},
		{"a service that takes unknown keys fails", "kid", []string{"unknown-key", "jku"}},
		{"a service that takes the key of jwk fails", "jwk", []string{"jwk"}},
		{"a service that takes the key of jku fails", "jku", []string{"jku"}},
		{"a service that takes the key of x5c fails", "x5c", []string{"x5c"}},
		{"a service without a check of crit fails", "crit", []string{"crit"}},
		{"a service without a check of exp fails", "exp", []string{"expired"}},
		{"a service without a check of nbf fails", "nbf", []string{"not-yet"}},
		{"a service without a check of iss fails", "iss", []string{"issuer"}},
		{"a service without a check of aud fails", "aud", []string{"audience"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var want strings.Builder
			for _, fault := range test.wanted {
				want.WriteString("fault=" + fault + ": the service answered 200\n")
			}
			wantScript(t, s.issuer, service(t, s, test.skip), want.String(), min(len(test.wanted), 1))
		})
	}

	statuses := func(first, later int) string {
		requests := 0
		return serve(t, func(w http.ResponseWriter, r *http.Request) {
			if requests++; requests > 1 {
				first = later
			}
			w.WriteHeader(first)
		})
	}
	issuer, err := url.Parse(s.issuer)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(issuer)
	breaking := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.RawQuery == "fault=crit" {
			panic(http.ErrAbortHandler)
		}
		proxy.ServeHTTP(w, r)
	})
	const nowhere = "http://127.0.0.1:1"
	for _, test := range []struct{ name, issuer, service, want string }{
		{"a service that refuses everything fails", s.issuer, statuses(401, 401), "good: the service answered 401\ngood: the service answered 401\n"},
		{"a service that soon refuses everything fails", s.issuer, statuses(200, 401), "good: the service answered 401\n"},
		{"a service that is not there fails", s.issuer, nowhere, ""},
		{"an issuer that is not there fails", nowhere, statuses(200, 401), ""},
		{"an issuer that breaks fails", breaking, service(t, s, ""), ""},
	} {
		t.Run(test.name, func(t *testing.T) { wantScript(t, test.issuer, test.service, test.want, 1) })
	}

	t.Run("README.md shows the script", func(t *testing.T) {
		if block := "```sh\n" + readFile(t, "catalogue.sh") + "```\n"; !strings.Contains(readFile(t, "../README.md"), block) {
			t.Errorf("../README.md has no such block; want\n%s", block)
		}
	})
}

// wantScript runs the script and compares what it prints and its exit status.
func wantScript(t *testing.T, issuer, service, want string, wantStatus int) {
	t.Helper()
	cmd := exec.Command("sh", "catalogue.sh", issuer, service)
	cmd.Stderr = t.Output()
	stdout, err := cmd.Output()
	if got := string(stdout); got != want || cmd.ProcessState.ExitCode() != wantStatus {
		t.Errorf("catalogue.sh printed %q, %v; want %q and exit status %d", got, err, want, wantStatus)
	}
}

func serve(t *testing.T, h http.HandlerFunc) (url string) {
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

// service starts a service for which the server issues tokens. It checks what it has to,
// but for one thing.
func service(t *testing.T, s server, skip string) (url string) {
	var jwks jose.JSONWebKeySet
	getJSON(t, s.jwks, &jwks)
	return serve(t, func(w http.ResponseWriter, r *http.Request) {
		claims := &jwt.RegisteredClaims{}
		raw := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
		token, parts, err := jwt.NewParser().ParseUnverified(raw, claims)
		if err != nil {
			http.Error(w, err.Error(), http.StatusUnauthorized)
			return
		}
		for check, ok := range map[string]bool{
			"signature": signed(t, token, parts, jwks, skip),
			"crit":      token.Header["crit"] == nil,
			"exp":       claims.ExpiresAt != nil && time.Now().Before(claims.ExpiresAt.Time),
			"nbf":       claims.NotBefore == nil || time.Now().After(claims.NotBefore.Time),
			"iss":       claims.Issuer == s.issuer,
			"aud":       slices.Contains(claims.Audience, audience),
		} {
			if !ok && check != skip {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
		}
	})
}

// signed reports whether a key of the JWK Set signed a token, or whether the service is
// taken in because of what it skips.
func signed(t *testing.T, token *jwt.Token, parts []string, jwks jose.JSONWebKeySet, skip string) bool {
	var key any
	known := jwks.Key(fmt.Sprint(token.Header["kid"]))
	if len(known) == 1 {
		key = known[0].Key
	}
	want := "RS256"
	switch given := token.Header[skip]; {
	case skip == "none" && token.Method.Alg() == "none", skip == "unsigned" && parts[2] == "", skip == "kid" && key == nil:
		return want == token.Method.Alg() || skip == "none"
	case skip == "hs256" && token.Method.Alg() == "HS256":
		der, err := x509.MarshalPKIXPublicKey(key)
		if err != nil {
			t.Error(err)
		}
		want, key = "HS256", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	case given == nil:
	case skip == "jku":
		var others jose.JSONWebKeySet
		getJSON(t, given.(string), &others)
		key = others.Keys[0].Key
	case skip == "jwk":
		var other jose.JSONWebKey
		text, _ := json.Marshal(given)
		if err := json.Unmarshal(text, &other); err != nil {
			t.Error(err)
		}
		key = other.Key
	case skip == "x5c":
		der, _ := base64.StdEncoding.DecodeString(given.([]any)[0].(string))
		certificate, err := x509.ParseCertificate(der)
		if err != nil {
			t.Error(err)
			return false
		}
		key = certificate.PublicKey
	}
	signature, err := base64.RawURLEncoding.DecodeString(parts[2])
	return err == nil && key != nil && token.Method.Alg() == want &&
		token.Method.Verify(parts[0]+"."+parts[1], signature, key) == nil
}
