package main

import (
	"encoding/json"
	"math"
	"net/http"
	"strconv"
	"strings"
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
	t.Run("its error names the faults that make other tokens", func(t *testing.T) {
		s := newServerWithKey(t)
		for _, body := range []string{`{"exp":null}`, `{"exp":"1"}`, `{"exp":1e300}`} {
			w := s.do("POST", "/auth", body)
			w.checkError(t, body, 400, "invalid_request")
			for _, name := range []string{"no-expiry", "expiry-null", "expiry-text"} {
				must(findFault(name))
				if !strings.Contains(w.body, name) {
					t.Errorf("%s = %s; want %s in it", body, w.body, name)
				}
			}
		}
	})
}

func TestClaimsOfEveryToken(t *testing.T) {
	s := newServerWithKey(t, "-audience", "api",
		"-claims", `{"roles":["admin"],"sub":"alice","aud":["x"],"iss":"https://a.test","iat":null,"big":12345678901234567890,"n":null}`)
	type claims = map[string]any
	every := claims{
		"roles": []any{"admin"}, "sub": "alice", "aud": []any{"x"}, "iss": "https://a.test", "big": json.Number("12345678901234567890"),
	}
	for _, test := range []struct {
		name, body string
		want       claims // that differ; nil if they are absent
	}{
		{name: "they replace the server's own, and null leaves one out"},
		{name: "those of a request replace them", body: `{"roles":[],"sub":7,"iat":5,"n":1}`,
			want: claims{"roles": []any{}, "sub": json.Number("7"), "iat": json.Number("5"), "n": json.Number("1")}},
		{name: "a request leaves them out by null", body: `{"roles":null,"aud":null,"x":null}`, want: claims{"roles": nil, "aud": nil}},
		{name: "a form replaces them", body: "sub=bob&aud=y", want: claims{"sub": "bob", "aud": "y"}},
		{name: "the client of a request is sub", body: "grant_type=client_credentials&client_id=app", want: claims{"sub": "app"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, got := parts(t, s.token(t, "", test.body))
			delete(got, "exp")
			delete(got, "jti")
			equal(t, "claims", got, overlay(every, test.want))
		})
	}
	t.Run("they are in bad tokens, too", func(t *testing.T) {
		_, got := parts(t, s.token(t, "?fault=wrong-key", ""))
		equal(t, "roles", got["roles"], every["roles"])
	})
}

func TestTyp(t *testing.T) {
	for _, test := range []struct {
		name, typ, body, authorization string
		want                           any // client_id; nil if there is none
	}{
		{name: "it is -typ", typ: "logout+jwt", body: "client_id=app"},
		{name: "JWT has no client_id", typ: "JWT", body: "client_id=app"},
		{name: "at+jwt has the client of a form as client_id", typ: "at+jwt", body: "client_id=app&sub=alice", want: "app"},
		{name: "at+jwt has the client of Basic as client_id", typ: "at+jwt", authorization: basic("app", "x"), want: "app"},
		{name: "at+jwt may be in capitals", typ: "AT+JWT", body: "client_id=app", want: "app"},
		{name: "without a client it is sub", typ: "at+jwt", want: "user123"},
		{name: "without a client it is the requested sub", typ: "at+jwt", body: `{"sub":{"a":1}}`, want: map[string]any{"a": json.Number("1")}},
		{name: "without a client and sub there is none", typ: "at+jwt", body: `{"sub":null}`},
		{name: "a requested client_id replaces it", typ: "at+jwt", body: `{"client_id":"x"}`, authorization: basic("app", "x"), want: "x"},
		{name: "a request leaves it out by null", typ: "at+jwt", body: `{"client_id":null}`, authorization: basic("app", "x")},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newServerWithKey(t, "-typ", test.typ)
			header, claims := parts(t, s.do("POST", "/auth", test.body, "Authorization", test.authorization).token(t))
			equal(t, "typ", header["typ"], any(test.typ))
			equal(t, "client_id", claims["client_id"], test.want)
		})
	}
	t.Run("with -clients it is the client, whatever typ is", func(t *testing.T) {
		for _, typ := range []string{"JWT", "at+jwt"} {
			s := newServerWithKey(t, "-typ", typ, "-clients", clientsFile(t))
			header, claims := parts(t, s.do("POST", "/auth", "", "Authorization", basic("one", secretsOf["one"])).token(t))
			equal(t, "typ and client_id", []any{header["typ"], claims["client_id"]}, []any{typ, "one"})
		}
	})
	t.Run("a client id that is not UTF-8 is refused even if sub is requested", func(t *testing.T) {
		s := newServerWithKey(t, "-typ", "at+jwt")
		w := s.do("POST", "/auth", "sub=alice", "Authorization", basic("J\xfcrgen", "x"))
		w.checkError(t, "Latin-1", 400, "invalid_request")
	})
}
