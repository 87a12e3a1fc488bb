package main

import (
	"context"
	"net/http"

	"github.com/hashicorp/cap/jwt"
)

func hashicorpCap(ctx context.Context, issuer, jwksURL, audience string) (http.Handler, error) {
	keys, err := jwt.NewJSONWebKeySet(ctx, jwksURL, "")
	if err != nil {
		return nil, err
	}
	validator, err := jwt.NewValidator(keys)
	return protect(func(ctx context.Context, token string) error {
		_, err := validator.Validate(ctx, token, jwt.Expected{
			Issuer: issuer, Audiences: []string{audience}, SigningAlgorithms: []jwt.Alg{jwt.RS256},
		})
		return err
	}), err
}
