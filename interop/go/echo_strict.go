package main

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/MicahParks/keyfunc/v3"
	"github.com/golang-jwt/jwt/v5"
	echojwt "github.com/labstack/echo-jwt/v4"
	"github.com/labstack/echo/v4"
)

func echoJWTStrict(ctx context.Context, issuer, jwksURL, audience string) (http.Handler, error) {
	jwks, err := keyfunc.NewDefaultOverrideCtx(ctx, []string{jwksURL}, keyfunc.Override{RefreshInterval: every(time.Hour)})
	if err != nil {
		return nil, err
	}
	key := func(token *jwt.Token) (any, error) {
		if crit, ok := token.Header["crit"]; ok {
			return nil, fmt.Errorf("unknown extensions %v", crit)
		}
		return jwks.Keyfunc(token)
	}
	e := echo.New()
	e.Use(echojwt.WithConfig(echojwt.Config{
		ParseTokenFunc: func(c echo.Context, token string) (any, error) {
			return jwt.Parse(token, key, jwt.WithValidMethods([]string{"RS256"}),
				jwt.WithIssuer(issuer), jwt.WithAudience(audience), jwt.WithExpirationRequired())
		},
		ErrorHandler: func(c echo.Context, err error) error {
			c.Response().Header().Set("WWW-Authenticate", `Bearer error="invalid_token"`)
			return echo.NewHTTPError(http.StatusUnauthorized)
		},
	}))
	e.GET("/", echo.WrapHandler(hello))
	return e, nil
}
