package main

import (
	"context"
	"net/http"

	"github.com/lestrrat-go/httprc/v3"
	"github.com/lestrrat-go/jwx/v3/jwk"
	"github.com/lestrrat-go/jwx/v3/jwt"
)

func jwx(ctx context.Context, issuer, jwksURL, audience string) (http.Handler, error) {
	cache, err := jwk.NewCache(ctx, httprc.NewClient())
	if err != nil {
		return nil, err
	}
	if err := cache.Register(ctx, jwksURL, jwk.WithMinInterval(every(httprc.DefaultMinInterval))); err != nil {
		return nil, err
	}
	jwks, err := cache.CachedSet(jwksURL)
	return protect(func(ctx context.Context, token string) error {
		_, err := jwt.ParseString(token, jwt.WithContext(ctx), jwt.WithKeySet(jwks),
			jwt.WithIssuer(issuer), jwt.WithAudience(audience))
		return err
	}), err
}
