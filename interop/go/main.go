// Command go serves GET / on 127.0.0.1:$PORT with the Go recipe of ../README.md that its
// argument names. Tokens have to be of $ISSUER, with $AUDIENCE in aud.
package main

import (
	"context"
	"fmt"
	"log"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// recipes makes the handlers of the recipes, by name. A handler answers 200 to a good token.
var recipes = map[string]func(ctx context.Context, issuer, jwksURL, audience string) (http.Handler, error){
	"auth0-strict":      auth0Strict,
	"auth0":             auth0,
	"cap-strict":        hashicorpCapStrict,
	"cap":               hashicorpCap,
	"echo-strict":       echoJWTStrict,
	"echo":              echoJWT,
	"go-jose":           goJose,
	"go-oidc-strict":    goOIDCStrict,
	"go-oidc":           goOIDC,
	"golang-jwt":        golangJWT,
	"golang-jwt-strict": golangJWTStrict,
	"golang-jwt-struct": golangJWTStruct,
	"jwx":               jwx,
	"jwx-strict":        jwxStrict,
	"kubernetes":        kubernetes,
	"opa":               opa,
}

func main() {
	if len(os.Args) != 2 || recipes[os.Args[1]] == nil {
		log.Fatalf("usage: go RECIPE, one of %q", slices.Sorted(maps.Keys(recipes)))
	}
	handler, err := recipes[os.Args[1]](context.Background(), os.Getenv("ISSUER"), os.Getenv("JWKS_URL"), os.Getenv("AUDIENCE"))
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(http.ListenAndServe(net.JoinHostPort("127.0.0.1", os.Getenv("PORT")), handler))
}

// every returns the time between two reads of the JWK Set: READ_EVERY seconds if that is set, and otherwise d.
func every(d time.Duration) time.Duration {
	if seconds, err := strconv.Atoi(os.Getenv("READ_EVERY")); err == nil {
		return time.Duration(seconds) * time.Second
	}
	return d
}

// hello is what the recipes protect.
var hello = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "hello") })

// protect answers 401 to requests without a bearer token that verify accepts.
func protect(verify func(ctx context.Context, token string) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		if !strings.EqualFold(scheme, "Bearer") {
			w.Header().Set("WWW-Authenticate", "Bearer")
			http.Error(w, "want a bearer token", http.StatusUnauthorized)
			return
		}
		if err := verify(r.Context(), token); err != nil {
			w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token"`)
			http.Error(w, err.Error(), http.StatusUnauthorized)
			return
		}
		hello(w, r)
	})
}
