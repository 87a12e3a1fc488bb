package main

import (
	"context"
	"net/http"

	"github.com/coreos/go-oidc/v3/oidc"
)

func goOIDC(ctx context.Context, issuer, _, audience string) (http.Handler, error) {
	provider, err := oidc.NewProvider(ctx, issuer)
	if err != nil {
		return nil, err
	}
	verifier := provider.Verifier(&oidc.Config{ClientID: audience})
	return protect(func(ctx context.Context, token string) error {
		_, err := verifier.Verify(ctx, token)
		return err
	}), nil
}
