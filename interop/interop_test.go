// Package interop drives the server as users do: with the libraries that verify its
// tokens or obtain them. It is a module of its own, so that the server's has none of
// these dependencies.
package interop

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/MicahParks/jwkset"
	"github.com/MicahParks/keyfunc/v3"
	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"
	josejwt "github.com/go-jose/go-jose/v4/jwt"
	"github.com/golang-jwt/jwt/v5"
	"github.com/lestrrat-go/httprc/v3"
	"github.com/lestrrat-go/jwx/v3/jwk"
	jwxjwt "github.com/lestrrat-go/jwx/v3/jwt"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"
	"golang.org/x/time/rate"
)

var binary string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "interop")
	if err != nil {
		panic(err)
	}
	binary = filepath.Join(dir, "jwks-server")
	build := exec.Command("go", "build", "-o", binary, ".")
	build.Dir, build.Stderr = "..", os.Stderr
	if err := build.Run(); err != nil {
		panic(err)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// A server is a process of the server under test.
type server struct{ issuer, jwks, auth string }

// start starts the server on a free port. When the test ends it is told to stop, and
// has to do so properly.
func start(t *testing.T, flags ...string) server {
	t.Helper()
	cmd := exec.Command(binary, append([]string{"-addr", "127.0.0.1:0", "-keys", t.TempDir()}, flags...)...)
	cmd.Stderr = t.Output()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("the server ended with %v; want exit status 0", err)
		}
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatalf("the server did not start: %v", err)
	}
	url := strings.TrimSpace(line)
	return server{url, url + "/.well-known/jwks.json", url + "/auth"}
}

// token returns a token fresh from the server.
func (s server) token(t *testing.T, client *http.Client, query string) string {
	t.Helper()
	response, err := client.Post(s.auth+query, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var body struct {
		Token string `json:"access_token"`
	}
	if err := json.NewDecoder(response.Body).Decode(&body); err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("POST /auth%s = %s, %v; want 200 and JSON", query, response.Status, err)
	}
	return body.Token
}

// A check verifies a token.
type check func(ctx context.Context, token string) error

// A verifier is a library, and how it says that a token has expired or that its key
// is unknown. A check that it makes holds a copy of the JWK Set for as long as hold
// and looks for no newer one before, not even for a kid that it does not know. With
// hold 0 it does as it does by default.
type verifier struct {
	name             string
	new              func(t *testing.T, s server, hold time.Duration) check
	expired, unknown func(error) bool
}

var verifiers = []verifier{
	{"golang-jwt with keyfunc", newKeyfunc, is(jwt.ErrTokenExpired), is(jwkset.ErrKeyNotFound)},
	{"jwx with jwk.Cache", newJWX, is(jwxjwt.TokenExpiredError()), says("failed to find key with key ID")},
	{"go-jose", newJose, is(josejwt.ErrExpired), is(jose.ErrJWKSKidNotFound)},
	{"go-oidc by discovery", newProvider, as[*oidc.TokenExpiredError], says("failed to verify id token signature")},
	{"go-oidc with RemoteKeySet", newRemoteKeySet, as[*oidc.TokenExpiredError], says("failed to verify id token signature")},
}

func newKeyfunc(t *testing.T, s server, hold time.Duration) check {
	var override keyfunc.Override // none: an hour, and one refetch in five minutes
	if hold > 0 {
		override = keyfunc.Override{RefreshInterval: hold, RefreshUnknownKID: rate.NewLimiter(0, 0)}
	}
	keys, err := keyfunc.NewDefaultOverrideCtx(t.Context(), []string{s.jwks}, override)
	if err != nil {
		t.Fatal(err)
	}
	return func(ctx context.Context, token string) error {
		_, err := jwt.Parse(token, keys.KeyfuncCtx(ctx), jwt.WithValidMethods([]string{"RS256"}),
			jwt.WithIssuer(s.issuer), jwt.WithIssuedAt(), jwt.WithExpirationRequired())
		return err
	}
}

func newJWX(t *testing.T, s server, hold time.Duration) check {
	cache, err := jwk.NewCache(t.Context(), httprc.NewClient())
	if err != nil {
		t.Fatal(err)
	}
	var options []jwk.RegisterOption // none: 15 minutes; never for an unknown kid
	if hold > 0 {
		options = append(options, jwk.WithConstantInterval(hold))
	}
	if err := cache.Register(t.Context(), s.jwks, options...); err != nil {
		t.Fatal(err)
	}
	set, err := cache.CachedSet(s.jwks)
	if err != nil {
		t.Fatal(err)
	}
	return func(ctx context.Context, token string) error {
		_, err := jwxjwt.ParseString(token, jwxjwt.WithContext(ctx), jwxjwt.WithKeySet(set), jwxjwt.WithIssuer(s.issuer))
		return err
	}
}

// newJose fetches the JWK Set each time, for go-jose has no cache of its own.
func newJose(t *testing.T, s server, hold time.Duration) check {
	client := cached(t, hold)
	return func(ctx context.Context, token string) error {
		response, err := client.Get(s.jwks)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		var set jose.JSONWebKeySet
		if err := json.NewDecoder(response.Body).Decode(&set); err != nil {
			return err
		}
		parsed, err := josejwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.RS256})
		if err != nil {
			return err
		}
		var claims josejwt.Claims
		if err := parsed.Claims(set, &claims); err != nil {
			return err
		}
		return claims.ValidateWithLeeway(josejwt.Expected{Issuer: s.issuer, Time: time.Now()}, 0)
	}
}

func newProvider(t *testing.T, s server, hold time.Duration) check {
	provider, err := oidc.NewProvider(oidc.ClientContext(t.Context(), cached(t, hold)), s.issuer)
	if err != nil {
		t.Fatal(err)
	}
	return withOIDC(provider.Verifier(&oidc.Config{SkipClientIDCheck: true}))
}

func newRemoteKeySet(t *testing.T, s server, hold time.Duration) check {
	keys := oidc.NewRemoteKeySet(oidc.ClientContext(t.Context(), cached(t, hold)), s.jwks)
	return withOIDC(oidc.NewVerifier(s.issuer, keys, &oidc.Config{SkipClientIDCheck: true}))
}

func withOIDC(v *oidc.IDTokenVerifier) check {
	return func(ctx context.Context, token string) error {
		_, err := v.Verify(ctx, token)
		return err
	}
}

func is(target error) func(error) bool { return func(err error) bool { return errors.Is(err, target) } }

func as[E error](err error) bool { return errors.As(err, new(E)) }

// says is for errors that have no type.
func says(text string) func(error) bool {
	return func(err error) bool { return err != nil && strings.Contains(err.Error(), text) }
}

// cached returns a client behind a cache that, whatever is asked of it, fetches once
// per hold: for libraries that fetch when they like. With hold 0 there is no cache.
func cached(t *testing.T, hold time.Duration) *http.Client {
	if hold == 0 {
		return http.DefaultClient
	}
	c := &cache{copies: map[string][]byte{}}
	go func() {
		for ticker := time.NewTicker(hold); ; {
			select {
			case <-t.Context().Done():
				ticker.Stop()
				return
			case <-ticker.C:
				c.refresh()
			}
		}
	}()
	return &http.Client{Transport: c}
}

type cache struct {
	mu     sync.Mutex
	copies map[string][]byte // by URL
}

// RoundTrip answers with the copy; only the first time there is none.
func (c *cache) RoundTrip(r *http.Request) (*http.Response, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	url := r.URL.String()
	if c.copies[url] == nil {
		if err := c.fetch(url); err != nil {
			return nil, err
		}
	}
	return &http.Response{
		StatusCode: http.StatusOK,
		Header:     http.Header{"Content-Type": {"application/json"}},
		Body:       io.NopCloser(bytes.NewReader(c.copies[url])),
		Request:    r,
	}, nil
}

func (c *cache) refresh() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for url := range c.copies {
		c.fetch(url)
	}
}

// fetch keeps the copy there is if it fails. The caller holds mu.
func (c *cache) fetch(url string) error {
	response, err := http.Get(url)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = errors.New(response.Status)
	}
	if err == nil {
		c.copies[url] = body
	}
	return err
}

func TestEachVerifierAcceptsGoodTokensAndSaysWhyItRefusesBadOnes(t *testing.T) {
	t.Parallel()
	s := start(t)
	good := s.token(t, http.DefaultClient, "")
	expired := s.token(t, http.DefaultClient, "?expired=true")
	unknown := s.token(t, http.DefaultClient, "?expired=key")
	for _, v := range verifiers {
		t.Run(v.name, func(t *testing.T) {
			verify := v.new(t, s, 0)
			if err := verify(t.Context(), good); err != nil {
				t.Errorf("a good token: %v; want no error", err)
			}
			if err := verify(t.Context(), expired); !v.expired(err) || v.unknown(err) {
				t.Errorf("an expired token: %v; want that it has expired, and nothing else", err)
			}
			if err := verify(t.Context(), unknown); !v.unknown(err) {
				t.Errorf("a token of an unpublished key: %v; want that its key is unknown", err)
			}
			if err := verify(t.Context(), good); err != nil {
				t.Errorf("a good token after the bad ones: %v; want no error", err)
			}
		})
	}
}

// A key signs for 2 s here: it lives for 5 and stops one and a half tokens before that.
// It is published 6 s before it signs.
var hurried = []string{"-key-ttl", "5s", "-token-ttl", "2s", "-publish-ahead", "6s"}

func TestVerifiersThatHoldTheSetForAlmostAsLongAsPublishAheadNeverRefuseAToken(t *testing.T) {
	t.Parallel()
	hold := 5500 * time.Millisecond // no multiple of 2 s: a copy is taken at all phases of a key
	kids, errs := follow(t, start(t, hurried...), hold, 15*time.Second)
	for i, v := range verifiers {
		if errs[i] != nil {
			t.Errorf("%s: %v; want no error", v.name, errs[i])
		}
	}
	if kids < 4 {
		t.Errorf("there were %d keys in use; want 3 rotations at least", kids)
	}
}

// This shows that the test above would notice a key that is published too late.
func TestVerifiersThatHoldTheSetForLongerThanPublishAheadRefuseTokensInTheEnd(t *testing.T) {
	t.Parallel()
	_, errs := follow(t, start(t, hurried...), time.Hour, 13*time.Second)
	for i, v := range verifiers {
		if errs[i] == nil || v.expired(errs[i]) {
			t.Errorf("%s: %v; want that the key is unknown", v.name, errs[i])
		}
	}
}

// follow has each verifier, which holds the JWK Set for as long as hold, check each
// token again and again from its issue until just before its expiry. It returns how
// many keys were in use, and the first error of each verifier.
func follow(t *testing.T, s server, hold, long time.Duration) (kids int, errs []error) {
	checks, errs := make([]check, len(verifiers)), make([]error, len(verifiers))
	for i, v := range verifiers {
		checks[i] = v.new(t, s, hold)
	}
	seen := map[any]bool{}
	var tokens []*jwt.Token
	alive := func(token *jwt.Token) bool { // for long enough to say so
		return time.Until(token.Claims.(*jwt.RegisteredClaims).ExpiresAt.Time) > 300*time.Millisecond
	}
	for end := time.Now().Add(long); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		token, _, err := jwt.NewParser().ParseUnverified(s.token(t, http.DefaultClient, ""), &jwt.RegisteredClaims{})
		if err != nil {
			t.Fatal(err)
		}
		seen[token.Header["kid"]] = true
		tokens = append(tokens, token)
		for _, token := range tokens {
			for i, verify := range checks {
				if errs[i] == nil && alive(token) {
					errs[i] = verify(t.Context(), token.Raw)
				}
			}
		}
	}
	return len(seen), errs
}

func TestOAuthClientsObtainTokensFromTheDiscoveredEndpoint(t *testing.T) {
	t.Parallel()
	const secret = `+ %&="ü/:` // all of it has to be encoded in a form, and so in Basic
	file := filepath.Join(t.TempDir(), "clients.json")
	content := fmt.Sprintf(`{"plain": {"secret_sha256": "%x", "claims": {"aud": "https://api.test"}},
		"od:d&id": {"secret_sha256": "%x", "claims": {"aud": ["https://api.test", "other"], "scope": "read"}}}`,
		sha256.Sum256([]byte("s3cret")), sha256.Sum256([]byte(secret)))
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	open := start(t, "-audience", "https://api.test")
	closed := start(t, "-clients", file)

	for _, test := range []struct {
		name       string
		server     server
		id, secret string
		style      oauth2.AuthStyle
		wantCode   string // of the error
	}{
		{"the open server gives a token to nobody in particular", open, "", "", oauth2.AuthStyleInParams, ""},
		{"the open server gives a token to any client by Basic", open, "any", "thing", oauth2.AuthStyleInHeader, ""},
		{"a client by Basic", closed, "plain", "s3cret", oauth2.AuthStyleInHeader, ""},
		{"a client in the form", closed, "plain", "s3cret", oauth2.AuthStyleInParams, ""},
		{"a client that tries what works", closed, "plain", "s3cret", oauth2.AuthStyleAutoDetect, ""},
		{"an encoded secret by Basic", closed, "od:d&id", secret, oauth2.AuthStyleInHeader, ""},
		{"an encoded secret in the form", closed, "od:d&id", secret, oauth2.AuthStyleInParams, ""},
		{"a wrong secret by Basic", closed, "plain", secret, oauth2.AuthStyleInHeader, "invalid_client"},
		{"a wrong secret in the form", closed, "plain", secret, oauth2.AuthStyleInParams, "invalid_client"},
		{"an unknown client", closed, "nobody", "s3cret", oauth2.AuthStyleInHeader, "invalid_client"},
		{"no client", closed, "", "", oauth2.AuthStyleInParams, "invalid_client"},
	} {
		t.Run(test.name, func(t *testing.T) {
			provider, err := oidc.NewProvider(t.Context(), test.server.issuer)
			if err != nil {
				t.Fatal(err)
			}
			config := clientcredentials.Config{
				ClientID:     test.id,
				ClientSecret: test.secret,
				TokenURL:     provider.Endpoint().TokenURL,
				AuthStyle:    test.style,
			}
			token, err := config.Token(t.Context())
			if test.wantCode != "" {
				if e := (*oauth2.RetrieveError)(nil); !errors.As(err, &e) || e.ErrorCode != test.wantCode {
					t.Errorf("Token() = %v; want a RetrieveError with %s", err, test.wantCode)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if left := time.Until(token.Expiry); token.Type() != "Bearer" || left < 9*time.Minute || left > 10*time.Minute {
				t.Errorf("Token() is of type %s and expires in %s; want Bearer and 10m", token.Type(), left)
			}
			verified, err := provider.Verifier(&oidc.Config{ClientID: "https://api.test"}).Verify(t.Context(), token.AccessToken)
			if err != nil {
				t.Fatalf("go-oidc: %v", err)
			}
			if test.server == closed && verified.Subject != test.id {
				t.Errorf("sub = %q; want the client id %q", verified.Subject, test.id)
			}
		})
	}
}

func TestOverTLSTheIssuerIsHTTPSAndTheProtocolHTTP2(t *testing.T) {
	t.Parallel()
	// A certificate for 127.0.0.1 and a client that trusts it; its server is not used.
	local := httptest.NewUnstartedServer(nil)
	local.EnableHTTP2 = true
	local.StartTLS()
	defer local.Close()
	client := local.Client()
	key, err := x509.MarshalPKCS8PrivateKey(local.TLS.Certificates[0].PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, block := range map[string]*pem.Block{
		"cert.pem": {Type: "CERTIFICATE", Bytes: local.Certificate().Raw},
		"key.pem":  {Type: "PRIVATE KEY", Bytes: key},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := start(t, "-tls-cert", filepath.Join(dir, "cert.pem"), "-tls-key", filepath.Join(dir, "key.pem"))

	if !strings.HasPrefix(s.issuer, "https://127.0.0.1:") {
		t.Errorf("the issuer is %s; want https://127.0.0.1 and the port", s.issuer)
	}
	response, err := client.Get(s.jwks)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.ProtoMajor != 2 {
		t.Errorf("GET %s spoke %s; want HTTP/2", s.jwks, response.Proto)
	}
	provider, err := oidc.NewProvider(oidc.ClientContext(t.Context(), client), s.issuer)
	if err != nil {
		t.Fatal(err)
	}
	verifier := provider.Verifier(&oidc.Config{SkipClientIDCheck: true})
	if _, err := verifier.Verify(t.Context(), s.token(t, client, "")); err != nil {
		t.Errorf("go-oidc over HTTPS: %v; want no error", err)
	}
}
