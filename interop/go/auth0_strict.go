package main

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"

	jwtmiddleware "github.com/auth0/go-jwt-middleware/v2"
	"github.com/auth0/go-jwt-middleware/v2/jwks"
	"github.com/auth0/go-jwt-middleware/v2/validator"
)

// expiring claims have an exp.
type expiring struct {
	Expiry float64 `json:"exp"`
}

func (c *expiring) Validate(context.Context) error {
	if c.Expiry == 0 {
		return errors.New("no exp")
	}
	return nil
}

func auth0Strict(ctx context.Context, issuer, jwksURL, audience string) (http.Handler, error) {
	issuerURL, err := url.Parse(issuer)
	if err != nil {
		return nil, err
	}
	provider := jwks.NewCachingProvider(issuerURL, every(5*time.Minute))
	v, err := validator.New(provider.KeyFunc, validator.RS256, issuer, []string{audience},
		validator.WithCustomClaims(func() validator.CustomClaims { return new(expiring) }))
	if err != nil {
		return nil, err
	}
	middleware := jwtmiddleware.New(v.ValidateToken, jwtmiddleware.WithErrorHandler(unauthorized),
		jwtmiddleware.WithTokenExtractor(compactToken))
	return middleware.CheckJWT(hello), nil
}

func unauthorized(w http.ResponseWriter, r *http.Request, err error) {
	w.Header().Set("WWW-Authenticate", "Bearer")
	if errors.Is(err, jwtmiddleware.ErrJWTInvalid) {
		w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token"`)
	}
	http.Error(w, "Unauthorized", http.StatusUnauthorized)
}

func compactToken(r *http.Request) (string, error) {
	token, err := jwtmiddleware.AuthHeaderTokenExtractor(r)
	if err == nil && token != "" && strings.Count(token, ".") != 2 {
		return "", errors.New("not in the compact serialization")
	}
	return token, err
}
