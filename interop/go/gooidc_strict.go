package main

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/coreos/go-oidc/v3/oidc"
)

func goOIDCStrict(ctx context.Context, issuer, _, audience string) (http.Handler, error) {
	provider, err := oidc.NewProvider(ctx, issuer)
	if err != nil {
		return nil, err
	}
	verifier := provider.Verifier(&oidc.Config{ClientID: audience})
	return protect(func(ctx context.Context, token string) error {
		if strings.Count(token, ".") != 2 {
			return errors.New("not in the compact serialization")
		}
		_, err := verifier.Verify(ctx, token)
		return err
	}), nil
}
