package main

import (
	"context"
	"net/http"
	"time"

	"k8s.io/apiserver/pkg/apis/apiserver"
	"k8s.io/apiserver/pkg/authentication/request/bearertoken"
	"k8s.io/apiserver/plugin/pkg/authenticator/token/oidc"
	"k8s.io/utils/ptr"
)

// kubernetes answers as the API server does. It wants https.
func kubernetes(ctx context.Context, issuer, _, audience string) (http.Handler, error) {
	oidcAuthenticator, err := oidc.New(ctx, oidc.Options{JWTAuthenticator: apiserver.JWTAuthenticator{
		Issuer: apiserver.Issuer{URL: issuer, Audiences: []string{audience}},
		ClaimMappings: apiserver.ClaimMappings{
			Username: apiserver.PrefixedClaimOrExpression{Claim: "sub", Prefix: ptr.To("jwks:")},
		},
	}})
	if err != nil {
		return nil, err
	}
	for oidcAuthenticator.HealthCheck() != nil { // until it has read the metadata
		time.Sleep(100 * time.Millisecond)
	}
	bearer := bearertoken.New(oidcAuthenticator)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, ok, err := bearer.AuthenticateRequest(r); err != nil || !ok {
			http.Error(w, "Unauthorized", http.StatusUnauthorized)
			return
		}
		hello(w, r)
	}), nil
}
