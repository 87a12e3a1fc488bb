package interop

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/MicahParks/keyfunc/v3"
	"github.com/golang-jwt/jwt/v5"
	"github.com/lestrrat-go/httprc/v3"
	"github.com/lestrrat-go/jwx/v3/jwk"
	jwxjwt "github.com/lestrrat-go/jwx/v3/jwt"
	"golang.org/x/time/rate"
)

// A key signs for 2 s here: it lives for 5 and stops one and a half tokens before that.
// It is published 6 s before it signs.
var hurried = []string{"-key-ttl", "5s", "-token-ttl", "2s", "-publish-ahead", "6s"}

// Nothing else runs meanwhile, because a busy machine signs and verifies too late.
func TestVerifiersThatHoldTheSet(t *testing.T) {
	t.Run("for almost as long as publish-ahead never refuse a token", func(t *testing.T) {
		t.Parallel()
		hold := 5500 * time.Millisecond // no multiple of 2 s: a copy is taken at all phases of a key
		kids, errs := follow(t, start(t, hurried...), hold, 15*time.Second)
		for i, h := range holders {
			if errs[i] != nil {
				t.Errorf("%s: %v; want no error", h.name, errs[i])
			}
		}
		if kids < 4 {
			t.Errorf("there were %d keys in use; want 3 rotations at least", kids)
		}
	})
	// This shows that the test above would notice a key that is published too late.
	t.Run("for longer than publish-ahead refuse tokens in the end", func(t *testing.T) {
		t.Parallel()
		_, errs := follow(t, start(t, hurried...), time.Hour, 13*time.Second)
		for i, h := range holders {
			if errs[i] == nil || !strings.Contains(errs[i].Error(), h.unknown) {
				t.Errorf("%s: %v; want that the key is unknown", h.name, errs[i])
			}
		}
	})
}

// A check verifies a token.
type check = func(ctx context.Context, token string) error

// follow has each verifier, which holds the JWK Set for as long as hold, check each
// token again and again from its issue until just before its expiry. It returns how
// many keys were in use, and the first error of each verifier.
func follow(t *testing.T, s server, hold, long time.Duration) (kids int, errs []error) {
	checks, errs := make([]check, len(holders)), make([]error, len(holders))
	for i, h := range holders {
		checks[i] = h.new(t, s, hold)
	}
	seen := map[any]bool{}
	var tokens []*jwt.Token
	alive := func(token *jwt.Token) bool { // for long enough to say so
		return time.Until(token.Claims.(*jwt.RegisteredClaims).ExpiresAt.Time) > 300*time.Millisecond
	}
	for end := time.Now().Add(long); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		token, _, err := jwt.NewParser().ParseUnverified(s.token(t, ""), &jwt.RegisteredClaims{})
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

// holders are verifiers that keep a copy of the JWK Set for as long as they are told, and
// look for no newer one before, not even for a kid that they do not know.
var holders = []struct {
	name    string
	new     func(t *testing.T, s server, hold time.Duration) check
	unknown string // what an error says of a key that the copy lacks
}{
	{"golang-jwt with keyfunc", holdKeyfunc, "refresh rate limiter"},
	{"jwx with jwk.Cache", holdJWX, "failed to find key with key ID"},
}

func holdKeyfunc(t *testing.T, s server, hold time.Duration) check {
	override := keyfunc.Override{RefreshInterval: hold, RefreshUnknownKID: rate.NewLimiter(0, 0)}
	keys, err := keyfunc.NewDefaultOverrideCtx(t.Context(), []string{s.jwks}, override)
	if err != nil {
		t.Fatal(err)
	}
	return func(ctx context.Context, token string) error {
		_, err := jwt.Parse(token, keys.KeyfuncCtx(ctx))
		return err
	}
}

func holdJWX(t *testing.T, s server, hold time.Duration) check {
	cache, err := jwk.NewCache(t.Context(), httprc.NewClient())
	if err == nil {
		err = cache.Register(t.Context(), s.jwks, jwk.WithConstantInterval(hold))
	}
	if err != nil {
		t.Fatal(err)
	}
	set, err := cache.CachedSet(s.jwks)
	if err != nil {
		t.Fatal(err)
	}
	return func(ctx context.Context, token string) error {
		_, err := jwxjwt.ParseString(token, jwxjwt.WithContext(ctx), jwxjwt.WithKeySet(set))
		return err
	}
}
