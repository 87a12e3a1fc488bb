package main

import (
	"encoding/json"
	"math"
	"net/http"
	"strconv"
	"testing"
	"time"
)

// fromNow returns a number of seconds since 1970, so many after now.
func fromNow(seconds int64) json.Number {
	return json.Number(strconv.FormatInt(time.Now().Unix()+seconds, 10))
}

func TestToken(t *testing.T) {
	for _, test := range []struct {
		name, query string
		args        []string
		iat, exp    int64 // wanted, from now
	}{
		{name: "it lives for ten minutes", exp: 600},
		{name: "it lives for -token-ttl", args: []string{"-token-ttl", "90s"}, exp: 90},
		{name: "it lives for whole seconds", args: []string{"-token-ttl", "1999ms"}, exp: 1},
		{name: "it has -audience", args: []string{"-audience", "api"}, exp: 600},
		{name: "it lives for expires_in seconds", query: "?expires_in=60", exp: 60},
		{name: "it may live for no time", query: "?expires_in=0"},
		{name: "an expired token was issued its lifetime before exp", query: "?expired=true", iat: -4200, exp: -3600},
		{name: "an expired token had -token-ttl", query: "?expired", args: []string{"-token-ttl", "90s"}, iat: -3690, exp: -3600},
		{name: "it may have expired long ago", query: "?expires_in=-86400", iat: -87000, exp: -86400},
	} {
		bubble(t, test.name, func(t *testing.T) {
			s := newServerWithKey(t, test.args...)
			time.Sleep(time.Second - 1) // because iat must not be ahead of the clock
			w := s.do("POST", "/auth"+test.query, "")
			token := w.token(t)
			header, claims := parts(t, token)
			equal(t, "header", header, map[string]any{"alg": "RS256", "typ": "JWT", "kid": thumbprint(&readyMade()[0].PublicKey)})
			want := map[string]any{
				"iss": "http://issuer.test", "sub": "user123", "iat": fromNow(test.iat), "exp": fromNow(test.exp), "jti": claims["jti"],
			}
			if s.profile.audience != "" {
				want["aud"] = "api"
			}
			equal(t, "claims", claims, want)
			if jti, _ := claims["jti"].(string); jti == "" {
				t.Errorf("jti = %v; want a string that is not empty", claims["jti"])
			}
			response := map[string]any{"token": token, "access_token": token, "token_type": "Bearer"}
			if test.exp > 0 { // clients refuse any other
				response["expires_in"] = json.Number(strconv.FormatInt(test.exp, 10))
			}
			equal(t, "response", w.json(t), response)
			checkHeader(t, test.name, w.header, http.Header{"Content-Type": {"application/json"},
				"Cache-Control": {"no-store"}, "Pragma": {"no-cache"}, "X-Content-Type-Options": {"nosniff"}})
		})
	}
}

func TestAJtiHas128RandomBits(t *testing.T) { // as many as the characters at each position suggest
	s := newServerWithKey(t)
	seen := map[string]bool{}
	for range 200 {
		_, claims := parts(t, s.token(t, "", ""))
		seen[claims["jti"].(string)] = true
	}
	positions := map[int]map[rune]bool{}
	for jti := range seen {
		for i, c := range jti {
			if positions[i] == nil {
				positions[i] = map[rune]bool{}
			}
			positions[i][c] = true
		}
	}
	bits := 0.0
	for _, characters := range positions {
		bits += math.Log2(float64(len(characters)))
	}
	if len(seen) != 200 || bits < 128 {
		t.Errorf("200 tokens have %d jtis with about %.0f random bits; want 200, and 128 bits or more", len(seen), bits)
	}
}

func TestExp(t *testing.T) {
	for _, test := range []struct {
		name, query, exp string // from now
		want             string // expires_in; "400" if exp is refused
	}{
		{name: "it may be the server's own", exp: "600", want: "600"},
		{name: "it may be earlier", exp: "60", want: "60"},
		{name: "it may have a fraction", exp: "60.75", want: "60"},
		{name: "it may be past", exp: "-60"},
		{name: "it is not a second later", exp: "601", want: "400"},
		{name: "it is not a fraction later", exp: "600.25", want: "400"},
		{name: "it is not later than expires_in", query: "?expires_in=60", exp: "61", want: "400"},
		{name: "it may be that of an expired token", query: "?expired", exp: "-3600"},
		{name: "it is not later than that of an expired token", query: "?expired", exp: "-3599", want: "400"},
		{name: "it is not later than that of a token by an untrusted key", query: "?expired=key", exp: "-3599", want: "400"},
	} {
		bubble(t, test.name, func(t *testing.T) {
			offset := must(strconv.ParseFloat(test.exp, 64))
			exp := strconv.FormatFloat(float64(time.Now().Unix())+offset, 'f', -1, 64)
			w := newServerWithKey(t).do("POST", "/auth"+test.query, `{"exp":`+exp+`}`)
			if test.want == "400" {
				w.checkError(t, exp, 400, "invalid_request")
				return
			}
			expiresIn, _ := w.json(t)["expires_in"].(json.Number)
			equal(t, "expires_in", expiresIn, json.Number(test.want))
			equal(t, "exp", granted(t, w)["exp"], any(json.Number(exp)))
		})
	}
}
