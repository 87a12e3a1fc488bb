package main

import (
	"context"
	"encoding/json"
	"errors"
	"log"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

func goJose(ctx context.Context, issuer, jwksURL, audience string) (http.Handler, error) {
	var jwks atomic.Pointer[jose.JSONWebKeySet]
	read := func() error {
		response, err := http.Get(jwksURL)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return errors.New(response.Status)
		}
		set := new(jose.JSONWebKeySet)
		if err := json.NewDecoder(response.Body).Decode(set); err != nil {
			return err
		}
		jwks.Store(set)
		return nil
	}
	go func() {
		for range time.Tick(every(10 * time.Minute)) {
			if err := read(); err != nil {
				log.Print(err)
			}
		}
	}()
	return protect(func(ctx context.Context, token string) error {
		parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.RS256})
		if err != nil {
			return err
		}
		var claims jwt.Claims
		if err := parsed.Claims(jwks.Load(), &claims); err != nil {
			return err
		}
		return claims.Validate(jwt.Expected{Issuer: issuer, AnyAudience: []string{audience}, Time: time.Now()})
	}), read()
}
