package main

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/MicahParks/keyfunc/v3"
	"github.com/golang-jwt/jwt/v5"
)

func golangJWTStrict(ctx context.Context, issuer, jwksURL, audience string) (http.Handler, error) {
	jwks, err := keyfunc.NewDefaultOverrideCtx(ctx, []string{jwksURL}, keyfunc.Override{RefreshInterval: every(time.Hour)})
	key := func(token *jwt.Token) (any, error) {
		if crit, ok := token.Header["crit"]; ok {
			return nil, fmt.Errorf("unknown extensions %v", crit)
		}
		return jwks.Keyfunc(token)
	}
	return protect(func(ctx context.Context, token string) error {
		_, err := jwt.Parse(token, key, jwt.WithValidMethods([]string{"RS256"}),
			jwt.WithIssuer(issuer), jwt.WithAudience(audience), jwt.WithExpirationRequired())
		return err
	}), err
}
