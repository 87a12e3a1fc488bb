package main

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

func TestQuery(t *testing.T) {
	s := newServerWithKey(t)
	bad := errors.New("400")
	for _, test := range []struct {
		name    string
		queries []string
		want    error // of a verifier
	}{
		{"without expired the token is good", []string{"", "x=true", "Expired=true", "x=%3B"}, nil},
		{"expired takes what ParseBool takes for true", []string{"expired=1", "expired=t", "expired=T", "expired=TRUE", "expired=true", "expired=True", "expired=%74rue", "expired=true&x=y"}, jwt.ErrTokenExpired},
		{"expired takes what ParseBool takes for false", []string{"expired=0", "expired=f", "expired=F", "expired=FALSE", "expired=false", "expired=False"}, nil},
		{"a bare expired means true", []string{"expired", "expired="}, jwt.ErrTokenExpired},
		{"expired=key signs with a key that is not in the set", []string{"expired=key"}, errUnknownKid},
		{"expired takes nothing else", []string{"expired=yes", "expired=tRUE", "expired=KEY", "expired=2", "expired=key+", "expired=%20", "expired=\"\\"}, bad},
		{"expired may be given once", []string{"expired=true&expired=true", "expired=key&expired=key", "expired=&expired=", "expired=false&expired"}, bad},
		{"expires_in may be -token-ttl", []string{"expires_in=600", "expires_in=60&x=y"}, nil},
		{"expires_in of the past is an expired token", []string{"expires_in=0", "expires_in=-1", "expires_in=-315360000"}, jwt.ErrTokenExpired},
		{"expires_in is -token-ttl at most", []string{"expires_in=601", "expires_in=9223372036854775807", "expires_in=9223372036854775808"}, bad},
		{"expires_in is ten years ago at most", []string{"expires_in=-315360001", "expires_in=-9223372036854775808"}, bad},
		{"expires_in is a number", []string{"expires_in", "expires_in=", "expires_in=x", "expires_in=1.5", "expires_in=1e2", "expires_in=+5", "expires_in=0x1", "expires_in=1m"}, bad},
		{"expires_in may be given once", []string{"expires_in=60&expires_in=60", "expires_in=&expires_in=60"}, bad},
		{"the parameters exclude each other", []string{"expired=true&expires_in=60", "expired=false&expires_in=60", "expired&fault=none", "expired=false&fault=none",
			"expires_in=60&fault=none", "fault=none&fault=none", "expired&expires_in=1&fault=none", "expired=false&fault=", "expires_in=60&expired="}, bad},
		{"an unreadable query is refused", []string{"%zz", "a;b", "expired=true&%zz", "expired=true;x"}, bad},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, query := range test.queries {
				if test.want == bad {
					s.post(query, "").checkError(t, query, 400, "invalid_request")
					continue
				}
				_, err := s.set(t).verify(s.token(t, "?"+query, ""))
				if !errors.Is(err, test.want) || test.want != errUnknownKid && (errors.Is(err, jwt.ErrTokenUnverifiable) || errors.Is(err, jwt.ErrTokenSignatureInvalid)) {
					t.Errorf("verify(token of %s) = %v; want %v", query, err, test.want)
				}
			}
		})
	}
	t.Run("a token of expired=key has expired too", func(t *testing.T) {
		token := s.token(t, "?expired=key", "")
		other := parseSet(t, s.do("GET", "/faults/jwks.json", "").body)
		if _, err := other.verify(token); !errors.Is(err, jwt.ErrTokenExpired) || errors.Is(err, jwt.ErrTokenSignatureInvalid) {
			t.Errorf("verify(token of expired=key) with its key = %v; want %v alone", err, jwt.ErrTokenExpired)
		}
	})
}

func TestBody(t *testing.T) {
	s := newServerWithKey(t, "-audience", "api")
	const own, alice = `{"aud":"api","sub":"user123"}`, `{"aud":"api","sub":"alice"}`
	const neither = "the body has to be a JSON object, or a form"
	brackets := strings.Repeat("[", 31) + strings.Repeat("]", 31)
	for _, test := range []struct {
		name, label string
		bodies      string // between bars
		want        string // claims, without iss, iat, exp and jti if they are the server's own; or what the error says
	}{
		{"it may be absent or blank", "application/json", " |  \r\n\t | {} | \r\n{\t}\n", own},
		{"an object is claims, though curl labels it a form", formType, `{"sub":"alice","roles":["admin"]}`, `{"aud":"api","roles":["admin"],"sub":"alice"}`},
		{"an object may have any label", "application/json; charset=utf-8", `{"sub":"alice"}`, alice},
		{"numbers keep their digits", "", `{"a":12345678901234567890,"b":[1.10,{"c":-1e40}]}`, `{"a":12345678901234567890,"aud":"api","b":[1.10,{"c":-1e40}],"sub":"user123"}`},
		{"claims may be of any type", "", `{"iss":5,"sub":{"a":[null]},"jti":[],"aud":7,"iat":"now","nbf":true,"scope":["a"],"":false}`,
			`{"":false,"aud":7,"iat":"now","iss":5,"jti":[],"nbf":true,"scope":["a"],"sub":{"a":[null]}}`},
		{"claims replace the server's own", "", `{"iss":"https://evil.test","jti":"again","sub":"","aud":["x","y"],"iat":1.5,"exp":1}`,
			`{"aud":["x","y"],"exp":1,"iat":1.5,"iss":"https://evil.test","jti":"again","sub":""}`},
		{"OAuth names mean the same in an object", "", `{"grant_type":"password","username":"alice","audience":["x"],"scope":"a b"}`, `{"aud":["x"],"scope":"a b","sub":"alice"}`},
		{"OAuth secrets never become claims", "", `{"sub":"alice","password":"hush","client_id":"hush","client_secret":"hush","client_assertion":"hush","client_assertion_type":"hush","refresh_token":"hush"}` +
			" | sub=alice&password=hush&client_id=hush&client_secret=hush&client_assertion=hush&refresh_token=hush", alice},
		{"sub or username of a form sets sub", formType + "; charset=UTF-8", "sub=%61lice\n | username=alice | \r\n grant_type=password&username=alice&password=x&password=x", alice},
		{"aud, audience or resource sets aud", strings.ToUpper(formType), `aud=x | audience=x | resource=x | {"resource":"x"}`, `{"aud":"x","sub":"user123"}`},
		{"aud, audience or resource may be repeated", "", "aud=x&aud=y | audience=x&audience=&audience=y | resource=x&resource=y", `{"aud":["x","y"],"sub":"user123"}`},
		{"scope of a form sets scope", formType, "scope=a+b", `{"aud":"api","scope":"a b","sub":"user123"}`},
		{"everything else in a form is ignored", formType, "iss=x&iss=y&exp=1&jti=1&nbf=x&iat=x&x=1&x=2&roles=a&%7B= | null | 1", own},
		{"an empty value in a form is as absent", formType, "sub=&username=alice&aud=&audience=&scope=&grant_type=&client_id=&fault=", alice},
		{"a form begins with anything that names begin with", formType, "&sub=alice | 1=2&sub=alice | *=2&sub=alice | %73ub=alice | _=1&sub=alice", alice},
		{"letters may be of any alphabet", "", `{"sub":"é","名":"\u00e9"}`, `{"aud":"api","sub":"é","名":"é"}`},
		{"a pair of surrogates is a character", "", `{"sub":"\ud83d\ude00\\ud83d","\uD83D\uDE00":1}`, `{"aud":"api","sub":"😀\\ud83d","😀":1}`},
		{"a replacement character may be meant", "", "{\"sub\":\"\ufffd\"} | {\"sub\":\"\\ufffd\"} | sub=%EF%BF%BD", "{\"aud\":\"api\",\"sub\":\"\ufffd\"}"},
		{"it may nest 32 deep", "", nested(32), `{"a":` + brackets + `,"aud":"api","b":[],"sub":"user123"}`},
		{"it may not have 129 claims", "", members(129), "it may have 128"},
		{"it may not nest 33 deep", "", nested(33) + ` | {"a":` + strings.Repeat("[", 8000) + strings.Repeat("]", 8000) + "}", "deeper than 32"},
		{"brackets in a string do not nest", "", `{"sub":"` + strings.Repeat("[", 40) + `\"{"}`, `{"aud":"api","sub":"` + strings.Repeat("[", 40) + `\"{"}`},

		{"nothing may follow the object", formType, "{} {} | {}x | {}, | {\"a\":1}} | {}null | {}\x00 | {}&sub=x", "after top-level value"},
		{"a damaged object is refused", "application/json", "{ | {\"a\"} | {\"a\":1,} | {'a':1} | {\"a\":\" | {\"a\":01} | {\"a\":NaN} | {\"\x01\":1}", "has to be one JSON object"},
		{"sub has one of its names", "", `{"sub":"a","username":"a"} | {"username":null,"sub":""} | {"sub":null,"username":null} | sub=a&username=a`, "sub is there under two names"},
		{"aud has one of its names", "", `{"audience":"a","aud":["b"]} | {"resource":"a","audience":null} | aud=a&audience=b | resource=b&aud=a&aud=b | audience=a&resource=a`, "aud is there under two names"},
		{"a parameter is given once", formType, "sub=a&sub=a | username=a&username=b | scope=a&scope=b | grant_type=password&grant_type=password | client_id=a&client_id=b | client_secret=a&client_secret=b", "has to be given once"},
		{"another grant is refused", formType, `grant_type=refresh_token | grant_type=Password | grant_type=authorization_code&code=x | {"grant_type":"x"}`, "grant_type has to be client_credentials or password"},
		{"OAuth names are strings", "", `{"grant_type":1} | {"client_id":null} | {"client_secret":[]}`, "has to be a string"},
		{"expired belongs in the query", "", `{"expired":true} | expired=true`, "expired belongs in the query: POST /auth?expired="},
		{"expires_in belongs in the query", "", `{"expires_in":null} | expires_in=60`, "expires_in belongs in the query: POST /auth?expires_in="},
		{"fault belongs in the query", "", `{"fault":"none"} | fault=none&sub=a`, "fault belongs in the query: POST /auth?fault="},
		{"an unreadable form is refused", formType, "sub=%zz | sub=a;b | %", "form in the body cannot be read"},
		{"another first character is refused", formType, "[] | \"sub\" | <a/> | 'sub' |  [{\"sub\":\"a\"}] | \t<a> | \x00{\x00}", neither},
		{"another label of a form is refused", "application/json", "null | sub=a | [] | 1", neither},
		{"a multipart form is refused", "multipart/form-data; boundary=x", "--x-- | sub=a", neither},
		{"a label without sense is refused", formType + "; =", "sub=a", neither},
		{"what is not UTF-8 is refused", "", "{\"sub\":\"J\xfcrgen\"} | {\"\xfc\":1} | sub=J\xfcrgen | \xff\xfe{\x00}\x00 | \xfe\xff\x00{\x00}", "has to be UTF-8"},
		{"an escape that is not UTF-8 is refused", "", "sub=J%FCrgen | username=%fc | aud=a&aud=%FC | scope=%ED%A0%BD", "has to be UTF-8"},
		{"half a character is refused", "", `{"sub":"\ud83d"} | {"sub":"\ude00"} | {"sub":"\ude00\ud83d"} | {"\uD83D":1} | {"a":["\ud83d\\ude00"]} | {"sub":"\ud83dx"} | {"sub":"\ud83d\u0041"} | {"sub":"\\\ud83d"} | {"sub":"\ud83d\ude00\ud83d"}`, "is half a character"},
		{"a byte-order mark is refused", "", "\xef\xbb\xbf{\"sub\":\"alice\"} | \xef\xbb\xbfsub=alice", "byte-order mark"},
		{"exp is a number", "", `{"exp":null} | {"exp":"1"} | {"exp":[1]} | {"exp":true} | {"exp":1e400} | {"exp":-1e400}`, "exp has to be a number"},
		{"exp is not later than the server's own", "", `{"exp":1e300} | {"exp":9223372036854775807} | {"exp":99999999999999999999}`, "no token lives longer than -token-ttl"},
	} {
		t.Run(test.name, func(t *testing.T) {
			for body := range strings.SplitSeq(test.bodies, " | ") {
				w := s.do("POST", "/auth", body, "Content-Type", test.label)
				if !strings.HasPrefix(test.want, "{") {
					code := "invalid_request"
					if strings.Contains(test.want, "grant_type") {
						code = "unsupported_grant_type"
					}
					w.checkError(t, body, 400, code)
					if !strings.Contains(w.body, test.want) {
						t.Errorf("%s = %s; want %q in it", body, w.body, test.want)
					}
					continue
				}
				claims := granted(t, w)
				for _, name := range []string{"iss", "iat", "exp", "jti"} {
					if !strings.Contains(body, `"`+name+`"`) {
						delete(claims, name)
					}
				}
				if got := string(encode(claims)); got != test.want {
					t.Errorf("claims of %s = %s; want %s", body, got, test.want)
				}
			}
		})
	}
	t.Run("null leaves a claim out", func(t *testing.T) {
		for name, claim := range map[string]string{"iss": "iss", "sub": "sub", "username": "sub", "iat": "iat", "jti": "jti", "aud": "aud", "resource": "aud", "scope": "scope", "x": "x"} {
			_, claims := parts(t, s.token(t, "", `{"`+name+`":null}`))
			if _, there := claims[claim]; there || claims["exp"] == nil {
				t.Errorf("claims of a null %s = %v; want no %s", name, claims, claim)
			}
		}
	})
	t.Run("it has 16 KiB at most, white space and all", func(t *testing.T) {
		for _, pad := range []string{`{"pad":"x"}`, "pad=x", `x{"sub":"alice"}`} {
			fill := func(size int) string {
				filler := "x"
				if pad[0] == 'x' {
					filler = " "
				}
				return strings.Replace(pad, "x", strings.Repeat(filler, size-len(pad)+1), 1)
			}
			s.token(t, "", fill(16<<10))
			s.do("POST", "/auth", fill(16<<10+1)).checkError(t, "one byte more", 413, "invalid_request")
		}
	})
	t.Run("one that breaks off is refused", func(t *testing.T) {
		cause := iotest.ErrReader(errors.New("hush"))
		w := s.send(httptest.NewRequest("POST", "/auth", io.MultiReader(strings.NewReader(`{"sub":"alice"}`), cause)))
		w.checkError(t, "half a body", 400, "invalid_request")
		if strings.Contains(w.body, "hush") {
			t.Errorf("half a body = %s; want no internal cause", w.body)
		}
	})
}

// members returns an object with so many members.
func members(n int) string {
	var list []string
	for i := range n {
		list = append(list, fmt.Sprintf(`"c%d":0`, i))
	}
	return "{" + strings.Join(list, ",") + "}"
}

// nested returns an object that nests so deep, beside an array that does not count.
func nested(depth int) string {
	return `{"b":[],"a":` + strings.Repeat("[", depth-1) + strings.Repeat("]", depth-1) + "}"
}

// granted returns the claims of the token in a good response.
func granted(t testing.TB, w response) map[string]any {
	t.Helper()
	token, _ := w.json(t)["token"].(string)
	if w.status != 200 || token == "" {
		t.Fatalf("POST /auth = %d %s; want 200 and a token", w.status, w.body)
	}
	_, claims := parts(t, token)
	if scope, text := claims["scope"].(string); text && w.json(t)["scope"] != scope {
		t.Errorf("POST /auth = %s; want the scope of the token, %s", w.body, scope)
	}
	return claims
}

func TestSubject(t *testing.T) {
	s := newServerWithKey(t)
	for _, test := range []struct{ name, authorization, body, want string }{
		{"it is user123 if the request names nobody", "", "", "user123"},
		{"it is the client of Basic", basic("app", "any"), "", "app"},
		{"it is the client of Basic, form-decoded", basic("a%3Ab+c", ""), "", "a:b c"},
		{"it is the client of a form", "", "client_id=app&client_secret=any", "app"},
		{"it is the client of an object", "", `{"client_id":"app"}`, "app"},
		{"it is the client that Basic and the form name", basic("app", "any"), "client_id=app", "app"},
		{"the body says who it is", basic("app", "any"), "sub=alice", "alice"},
		{"the body says who it is by another name", "", "client_id=app&username=alice", "alice"},
		{"the body may leave it out", basic("app", "any"), `{"sub":null}`, ""},
		{"another scheme names nobody", "Bearer app", "", "user123"},
		{"an empty client is nobody", basic("", "any"), "", "user123"},
		{"a client in Latin-1 is refused", basic("J\xfcrgen", "any"), "", "400"},
		{"a client with an escape in Latin-1 is refused", basic("J%FCrgen", "any"), "", "400"},
		{"two clients are refused", basic("app", "any"), "client_id=other", "400"},
		{"two secrets are refused", basic("app", "any"), "client_id=app&client_secret=any", "400"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := s.do("POST", "/auth", test.body, "Authorization", test.authorization)
			if test.want == "400" {
				w.checkError(t, test.name, 400, "invalid_request")
				return
			}
			token, _ := w.json(t)["token"].(string)
			if _, claims := parts(t, token); cmp.Or(claims["sub"], any("")) != test.want {
				t.Errorf("sub = %v; want %s", claims["sub"], test.want)
			}
		})
	}
}

func basic(id, secret string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(id+":"+secret))
}

func FuzzTokenRequest(f *testing.F) {
	for _, body := range []string{
		"", `{"sub":"alice","roles":["admin"]}`, `{"exp":1,"nbf":2.5,"iat":-1e3,"aud":["a"],"jti":"","iss":null}`, `{"a":"\ud83d\ude00\ufffd"}`, `{"\ud83d":"\\"}`,
		`{"grant_type":"password","username":"a","password":"b","client_id":"c","client_secret":"d","audience":"e"}`,
		"grant_type=client_credentials&client_id=a&client_secret=b&scope=c+d", "aud=a&audience=b&username=c", "sub=%zz", "sub=%FC", `[1]`, "&1=2", nested(33),
	} {
		f.Add(formType, []byte(body))
		f.Add("application/json", []byte(body))
	}
	profile := tokenProfile{issuer: "http://issuer.test", audience: "api", typ: "at+jwt", lifetime: time.Minute}
	f.Fuzz(func(t *testing.T, label string, body []byte) {
		request, err := parseTokenRequest(http.Header{"Content-Type": {label}}, body)
		if err != nil {
			if refusal := (*httpError)(nil); !errors.As(err, &refusal) || refusal.status != 400 {
				t.Errorf("parseTokenRequest(%q, %q) = %v; want a refusal", label, body, err)
			}
			return
		}
		for _, name := range []string{"grant_type", "client_id", "client_secret", "password", "client_assertion", "username", "audience", "resource", "expired", "fault"} {
			if v, ok := request.claims[name]; ok {
				t.Errorf("parseTokenRequest(%q, %q) has the claim %s, %s", label, body, name, v)
			}
		}
		now := time.Unix(1_000_000_000, 0)
		d, err := profile.draft(turn{now: now, key: keyAt("a", now.Add(time.Hour))}, time.Minute, request.clientID(), request.claims)
		if err != nil {
			return
		}
		if d.expires > now.Unix()+60 {
			t.Errorf("the token of %q, %q expires at %d; want %d at most", label, body, d.expires, now.Unix()+60)
		}
		text, err := json.Marshal(d.claims)
		var decoded map[string]any
		if err != nil || json.Unmarshal(text, &decoded) != nil {
			t.Fatalf("the claims of %q make no token: %s, %v", body, text, err)
		}
		unescaped, _ := url.QueryUnescape(string(body))
		meant := regexp.MustCompile("(?i)\ufffd|\\\\ufffd").MatchString(string(body) + unescaped)
		if again, _ := json.Marshal(decoded); strings.Contains(string(again), "\ufffd") && !meant {
			t.Errorf("the claims of %q are %s; want no character that nobody asked for", body, again)
		}
	})
}

func FuzzQuery(f *testing.F) {
	for _, query := range []string{
		"", "expired", "expired=", "expired=true", "expired=0", "expired=key", "expired=1&expired=1", "%zz", "a;b", "expired=%6bey",
		"expires_in=60", "expires_in=-1", "expires_in=61", "expires_in=1&fault=none", "fault=none", "fault=", "fault=expired",
	} {
		f.Add(query)
	}
	issuer := newTester(minBits)
	f.Fuzz(func(t *testing.T, query string) {
		values, err := url.ParseQuery(query)
		if err != nil {
			return // TestQuery shows that it is an error
		}
		o, err := issuer.parseOptions(t.Context(), values, time.Minute)
		given := len(values["expired"]) + len(values["expires_in"]) + len(values["fault"])
		switch {
		case err != nil:
			if refusal := (*httpError)(nil); !errors.As(err, &refusal) || refusal.status != 400 || given == 0 {
				t.Errorf("parseOptions(%q) = %v; want a refusal, and only of what is wrong", query, err)
			}
		case given > 1:
			t.Errorf("parseOptions(%q) = %v; want a refusal", query, o)
		case o.lifetime > time.Minute || o.lifetime%time.Second != 0 || o.sign == nil:
			t.Errorf("parseOptions(%q) lives for %s; want whole seconds, a minute at most", query, o.lifetime)
		case given == 0 && o.lifetime != time.Minute:
			t.Errorf("parseOptions(%q) = %v; want a good token", query, o)
		}
	})
}
