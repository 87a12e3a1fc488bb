package main

import (
	"context"
	"net/http"
	"time"

	"github.com/MicahParks/keyfunc/v3"
	"github.com/golang-jwt/jwt/v5"
	echojwt "github.com/labstack/echo-jwt/v4"
	"github.com/labstack/echo/v4"
)

func echoJWT(ctx context.Context, issuer, jwksURL, audience string) (http.Handler, error) {
	jwks, err := keyfunc.NewDefaultOverrideCtx(ctx, []string{jwksURL}, keyfunc.Override{RefreshInterval: every(time.Hour)})
	if err != nil {
		return nil, err
	}
	e := echo.New()
	e.Use(echojwt.WithConfig(echojwt.Config{
		ParseTokenFunc: func(c echo.Context, token string) (any, error) {
			return jwt.Parse(token, jwks.Keyfunc, jwt.WithValidMethods([]string{"RS256"}),
				jwt.WithIssuer(issuer), jwt.WithAudience(audience), jwt.WithExpirationRequired())
		},
	}))
	e.GET("/", echo.WrapHandler(hello))
	return e, nil
}
