package main

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/hashicorp/cap/jwt"
)

func hashicorpCapStrict(ctx context.Context, issuer, jwksURL, audience string) (http.Handler, error) {
	keys, err := jwt.NewJSONWebKeySet(ctx, jwksURL, "")
	if err != nil {
		return nil, err
	}
	validator, err := jwt.NewValidator(keys)
	return protect(func(ctx context.Context, token string) error {
		if strings.Count(token, ".") != 2 {
			return errors.New("not in the compact serialization")
		}
		claims, err := validator.Validate(ctx, token, jwt.Expected{
			Issuer: issuer, Audiences: []string{audience}, SigningAlgorithms: []jwt.Alg{jwt.RS256},
		})
		if exp, ok := claims["exp"].(float64); err == nil && (!ok || exp == 0) {
			return errors.New("no exp")
		}
		return err
	}), err
}
