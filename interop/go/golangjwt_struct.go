package main

import (
	"context"
	"net/http"
	"time"

	"github.com/MicahParks/keyfunc/v3"
	"github.com/golang-jwt/jwt/v5"
)

func golangJWTStruct(ctx context.Context, issuer, jwksURL, audience string) (http.Handler, error) {
	jwks, err := keyfunc.NewDefaultOverrideCtx(ctx, []string{jwksURL}, keyfunc.Override{RefreshInterval: every(time.Hour)})
	return protect(func(ctx context.Context, token string) error {
		var claims struct {
			jwt.RegisteredClaims
			Scope string `json:"scope"`
		}
		_, err := jwt.ParseWithClaims(token, &claims, jwks.KeyfuncCtx(ctx), jwt.WithValidMethods([]string{"RS256"}),
			jwt.WithIssuer(issuer), jwt.WithAudience(audience), jwt.WithExpirationRequired())
		return err
	}), err
}
