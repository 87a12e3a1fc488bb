package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"github.com/lestrrat-go/httprc/v3"
	"github.com/lestrrat-go/jwx/v3/jwk"
	"github.com/lestrrat-go/jwx/v3/jws"
	"github.com/lestrrat-go/jwx/v3/jwt"
)

func jwxStrict(ctx context.Context, issuer, jwksURL, audience string) (http.Handler, error) {
	cache, err := jwk.NewCache(ctx, httprc.NewClient())
	if err != nil {
		return nil, err
	}
	if err := cache.Register(ctx, jwksURL, jwk.WithMinInterval(every(httprc.DefaultMinInterval))); err != nil {
		return nil, err
	}
	jwks, err := cache.CachedSet(jwksURL)
	return protect(func(ctx context.Context, token string) error {
		if err := oneAlgorithm(token); err != nil {
			return err
		}
		claims, err := jws.Verify([]byte(token), jws.WithContext(ctx), jws.WithKeySet(jwks),
			jws.WithCritValidation(true), jws.WithCompact())
		if err != nil {
			return err
		}
		_, err = jwt.Parse(claims, jwt.WithVerify(false), jwt.WithIssuer(issuer), jwt.WithAudience(audience),
			jwt.WithRequiredClaim("exp"))
		return err
	}), err
}

// oneAlgorithm refuses a header with alg twice, of which jwx takes the first and others the last.
func oneAlgorithm(token string) error {
	encoded, _, _ := strings.Cut(token, ".")
	decoded, err := base64.RawURLEncoding.DecodeString(encoded)
	if err != nil {
		return err
	}
	var header struct {
		Algorithm string `json:"alg"`
	}
	if err := json.Unmarshal(decoded, &header); err != nil {
		return err
	}
	if header.Algorithm != "RS256" {
		return fmt.Errorf("alg %q", header.Algorithm)
	}
	return nil
}
