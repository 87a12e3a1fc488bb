package interop

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/MicahParks/keyfunc/v3"
	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"
	josejwt "github.com/go-jose/go-jose/v4/jwt"
	"github.com/golang-jwt/jwt/v5"
	"github.com/lestrrat-go/httprc/v3"
	"github.com/lestrrat-go/jwx/v3/jwk"
	"github.com/lestrrat-go/jwx/v3/jws"
	jwxjwt "github.com/lestrrat-go/jwx/v3/jwt"
)

// A check verifies a token.
type check = func(ctx context.Context, token string) error

// goRecipes are those of README.md, which shows each function as it is below.
var goRecipes = map[string]func(ctx context.Context, issuer, audience string) (check, error){
	"golang-jwt with keyfunc":         golangJWT,
	"golang-jwt with keyfunc, strict": golangJWTStrict,
	"go-oidc":                         goOIDC,
	"go-jose":                         goJose,
	"jwx":                             jwx,
	"jwx, strict":                     jwxStrict,
}

func golangJWT(ctx context.Context, issuer, audience string) (check, error) {
	jwks, err := keyfunc.NewDefaultCtx(ctx, []string{issuer + "/.well-known/jwks.json"})
	return func(ctx context.Context, token string) error {
		_, err := jwt.Parse(token, jwks.KeyfuncCtx(ctx), jwt.WithValidMethods([]string{"RS256"}),
			jwt.WithIssuer(issuer), jwt.WithAudience(audience), jwt.WithExpirationRequired())
		return err
	}, err
}

func golangJWTStrict(ctx context.Context, issuer, audience string) (check, error) {
	jwks, err := keyfunc.NewDefaultCtx(ctx, []string{issuer + "/.well-known/jwks.json"})
	key := func(token *jwt.Token) (any, error) {
		if crit, ok := token.Header["crit"]; ok {
			return nil, fmt.Errorf("unknown extensions %v", crit)
		}
		return jwks.Keyfunc(token)
	}
	return func(ctx context.Context, token string) error {
		_, err := jwt.Parse(token, key, jwt.WithValidMethods([]string{"RS256"}),
			jwt.WithIssuer(issuer), jwt.WithAudience(audience), jwt.WithExpirationRequired())
		return err
	}, err
}

func goOIDC(ctx context.Context, issuer, audience string) (check, error) {
	provider, err := oidc.NewProvider(ctx, issuer)
	if err != nil {
		return nil, err
	}
	verifier := provider.Verifier(&oidc.Config{ClientID: audience})
	return func(ctx context.Context, token string) error {
		_, err := verifier.Verify(ctx, token)
		return err
	}, nil
}

func goJose(ctx context.Context, issuer, audience string) (check, error) {
	response, err := http.Get(issuer + "/.well-known/jwks.json") // again every 10 minutes
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	var jwks jose.JSONWebKeySet
	err = json.NewDecoder(response.Body).Decode(&jwks)
	return func(ctx context.Context, token string) error {
		parsed, err := josejwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.RS256})
		if err != nil {
			return err
		}
		var claims josejwt.Claims
		if err := parsed.Claims(jwks, &claims); err != nil {
			return err
		}
		return claims.Validate(josejwt.Expected{Issuer: issuer, AnyAudience: []string{audience}, Time: time.Now()})
	}, err
}

func jwx(ctx context.Context, issuer, audience string) (check, error) {
	cache, err := jwk.NewCache(ctx, httprc.NewClient())
	if err != nil {
		return nil, err
	}
	url := issuer + "/.well-known/jwks.json"
	if err := cache.Register(ctx, url); err != nil {
		return nil, err
	}
	jwks, err := cache.CachedSet(url)
	return func(ctx context.Context, token string) error {
		_, err := jwxjwt.ParseString(token, jwxjwt.WithContext(ctx), jwxjwt.WithKeySet(jwks),
			jwxjwt.WithIssuer(issuer), jwxjwt.WithAudience(audience))
		return err
	}, err
}

func jwxStrict(ctx context.Context, issuer, audience string) (check, error) {
	cache, err := jwk.NewCache(ctx, httprc.NewClient())
	if err != nil {
		return nil, err
	}
	url := issuer + "/.well-known/jwks.json"
	if err := cache.Register(ctx, url); err != nil {
		return nil, err
	}
	jwks, err := cache.CachedSet(url)
	return func(ctx context.Context, token string) error {
		claims, err := jws.Verify([]byte(token), jws.WithContext(ctx), jws.WithKeySet(jwks), jws.WithCritValidation(true))
		if err != nil {
			return err
		}
		_, err = jwxjwt.Parse(claims, jwxjwt.WithVerify(false), jwxjwt.WithIssuer(issuer), jwxjwt.WithAudience(audience))
		return err
	}, err
}
