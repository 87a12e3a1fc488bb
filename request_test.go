package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
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
	for _, test := range []struct {
		name    string
		queries []string
		want    error // of a verifier
		refused bool
	}{
		{name: "without expired the token is good", queries: []string{"", "x=true", "Expired=true", "x=%3B"}},
		{name: "expired takes what ParseBool takes for true", want: jwt.ErrTokenExpired,
			queries: []string{"expired=1", "expired=t", "expired=T", "expired=TRUE", "expired=true", "expired=True", "expired=%74rue",
				"expired=true&x=y"}},
		{name: "expired takes what ParseBool takes for false",
			queries: []string{"expired=0", "expired=f", "expired=F", "expired=FALSE", "expired=false", "expired=False"}},
		{name: "a bare expired means true", queries: []string{"expired", "expired="}, want: jwt.ErrTokenExpired},
		{name: "expired=key signs with a key that is not in the set", queries: []string{"expired=key"}, want: errUnknownKid},
		{name: "expired takes nothing else", refused: true,
			queries: []string{"expired=yes", "expired=tRUE", "expired=KEY", "expired=2", "expired=key+", "expired=%20", "expired=\"\\"}},
		{name: "expired may be given once", refused: true,
			queries: []string{"expired=true&expired=true", "expired=key&expired=key", "expired=&expired=", "expired=false&expired"}},
		{name: "expires_in may be -token-ttl", queries: []string{"expires_in=600", "expires_in=60&x=y"}},
		{name: "expires_in of the past is an expired token", want: jwt.ErrTokenExpired,
			queries: []string{"expires_in=0", "expires_in=-1", "expires_in=-315360000"}},
		{name: "expires_in is -token-ttl at most", refused: true,
			queries: []string{"expires_in=601", "expires_in=9223372036854775807", "expires_in=9223372036854775808"}},
		{name: "expires_in is ten years ago at most", refused: true,
			queries: []string{"expires_in=-315360001", "expires_in=-9223372036854775808"}},
		{name: "expires_in is a number", refused: true, queries: []string{"expires_in", "expires_in=", "expires_in=x", "expires_in=1.5",
			"expires_in=1e2", "expires_in=+5", "expires_in=0x1", "expires_in=1m"}},
		{name: "expires_in may be given once", refused: true, queries: []string{"expires_in=60&expires_in=60", "expires_in=&expires_in=60"}},
		{name: "the parameters exclude each other", refused: true, queries: []string{"expired=true&expires_in=60", "expired=false&expires_in=60",
			"expired&fault=none", "expired=false&fault=none", "expires_in=60&fault=none", "fault=none&fault=none", "expired&expires_in=1&fault=none",
			"expired=false&fault=", "expires_in=60&expired="}},
		{name: "an unreadable query is refused", refused: true, queries: []string{"%zz", "a;b", "expired=true&%zz", "expired=true;x"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, query := range test.queries {
				if test.refused {
					s.post(query, "").checkError(t, query, 400, "invalid_request")
					continue
				}
				_, err := s.set(t).verify(s.token(t, "?"+query, ""))
				unverified := errors.Is(err, jwt.ErrTokenUnverifiable) || errors.Is(err, jwt.ErrTokenSignatureInvalid)
				if !errors.Is(err, test.want) || test.want != errUnknownKid && unverified {
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
	deep := `{"a":` + strings.Repeat("[", 8000) + strings.Repeat("]", 8000) + `,"aud":"api","sub":"user123"}`
	for _, test := range []struct {
		name, label string
		bodies      []string
		want        string // claims, without iss, iat, exp and jti if they are the server's own
		wantError   string // in the description
	}{
		{name: "it may be absent or blank", label: "application/json", bodies: []string{"", " ", " \r\n\t", "{}", "\r\n{\t}\n"}, want: own},

		{name: "a JSON object is claims, under any label", label: "application/json; charset=utf-8",
			bodies: []string{`{"sub":"alice"}`}, want: alice},
		{name: "a JSON object is claims, though curl labels it a form", label: formType,
			bodies: []string{`{"sub":"alice","roles":["admin"]}`}, want: `{"aud":"api","roles":["admin"],"sub":"alice"}`},
		{name: "claims keep their names, OAuth parameters or not",
			bodies: []string{`{"client_id":"svc","username":"alice","audience":["x"],"resource":null,"scope":5,"refresh_token":"r"}`},
			want:   `{"aud":"api","audience":["x"],"client_id":"svc","refresh_token":"r","scope":5,"sub":"user123","username":"alice"}`},
		{name: "claims may be of any type",
			bodies: []string{`{"iss":5,"sub":{"a":[null]},"jti":[],"aud":7,"iat":"now","nbf":true,"scope":["a"],"":false}`},
			want:   `{"":false,"aud":7,"iat":"now","iss":5,"jti":[],"nbf":true,"scope":["a"],"sub":{"a":[null]}}`},
		{name: "claims replace the server's own",
			bodies: []string{`{"iss":"https://evil.test","jti":"again","sub":"","aud":["x","y"],"iat":1.5,"exp":1}`},
			want:   `{"aud":["x","y"],"exp":1,"iat":1.5,"iss":"https://evil.test","jti":"again","sub":""}`},
		{name: "numbers keep their digits", bodies: []string{`{"a":12345678901234567890,"b":[1.10,{"c":-1e40}],"d":1e400}`},
			want: `{"a":12345678901234567890,"aud":"api","b":[1.10,{"c":-1e40}],"d":1e400,"sub":"user123"}`},
		{name: "claims may nest as deep as the body has room for", bodies: []string{deep}, want: deep},
		{name: "a body may not have 129 claims", bodies: []string{members(129)}, wantError: "it may have 128"},
		{name: "claims contain no secrets of an OAuth request", wantError: "add grant_type",
			bodies: []string{`{"client_id":"a","client_secret":"hush"}`, `{"password":null}`, `{"client_assertion":["hush"]}`}},

		{name: "OAuth parameters may be a JSON object with grant_type", want: `{"aud":["x"],"roles":[],"scope":"a b","sub":"alice"}`,
			bodies: []string{`{"grant_type":"password","username":"alice","audience":["x"],"scope":"a b","roles":[]}`}},
		{name: "OAuth secrets never become claims", want: alice, bodies: []string{
			`{"grant_type":"","sub":"alice","client_id":"hush","client_secret":"hush","client_assertion":"hush","client_assertion_type":"hush"}`,
			`{"grant_type":"password","sub":"alice","password":"hush","refresh_token":"hush"}`,
			"sub=alice&password=hush&client_id=hush&client_secret=hush&client_assertion=hush&refresh_token=hush"}},
		{name: "sub or username of a form sets sub", label: formType + "; charset=UTF-8", want: alice,
			bodies: []string{"sub=%61lice\n", "username=alice", "\r\n grant_type=password&username=alice&password=x&password=x"}},
		{name: "aud, audience or resource sets aud", label: strings.ToUpper(formType), want: `{"aud":"x","sub":"user123"}`,
			bodies: []string{"aud=x", "audience=x", "resource=x", `{"grant_type":"password","resource":"x"}`}},
		{name: "aud, audience or resource may be repeated", want: `{"aud":["x","y"],"sub":"user123"}`,
			bodies: []string{"aud=x&aud=y", "audience=x&audience=&audience=y", "resource=x&resource=y"}},
		{name: "scope of a form sets scope", label: formType, bodies: []string{"scope=a+b"}, want: `{"aud":"api","scope":"a b","sub":"user123"}`},
		{name: "other parameters of a form are ignored", label: formType, want: own,
			bodies: []string{"iss=x&iss=y&exp=1&jti=1&nbf=x&iat=x&x=1&x=2&roles=a&%7B=", "null", "1"}},
		{name: "an empty parameter of a form is ignored", label: formType, want: alice,
			bodies: []string{"sub=&username=alice&aud=&audience=&scope=&grant_type=&client_id=&fault=&key="}},
		{name: "a form begins with any character of a name", label: formType, want: alice, bodies: []string{"&sub=alice", "1=2&sub=alice",
			"*=2&sub=alice", "%73ub=alice", "_=1&sub=alice", "-=1&sub=alice", ".=1&sub=alice", "+=1&sub=alice", "=1&sub=alice", "Z=1&sub=alice"}},
		{name: "sub is given under one name", wantError: "sub is given twice, under two names", bodies: []string{"sub=a&username=a",
			`{"grant_type":"","sub":"a","username":"a"}`, `{"grant_type":"","username":null,"sub":""}`,
			`{"grant_type":"","sub":null,"username":null}`}},
		{name: "aud is given under one name", wantError: "aud is given twice, under two names", bodies: []string{
			`{"grant_type":"","audience":"a","aud":["b"]}`, `{"grant_type":"","resource":"a","audience":null}`,
			"aud=a&audience=b", "resource=b&aud=a&aud=b", "audience=a&resource=a"}},
		{name: "a parameter is given once", label: formType, wantError: "has to be given once", bodies: []string{"sub=a&sub=a",
			"username=a&username=b", "scope=a&scope=b", "grant_type=password&grant_type=password", "client_id=a&client_id=b",
			"client_secret=a&client_secret=b"}},
		{name: "another grant is refused", label: formType, wantError: "grant_type has to be client_credentials or password",
			bodies: []string{"grant_type=refresh_token", "grant_type=Password", "grant_type=authorization_code&code=x", `{"grant_type":"x"}`}},
		{name: "OAuth parameters are strings", wantError: "has to be a string", bodies: []string{`{"grant_type":1}`, `{"grant_type":null}`,
			`{"grant_type":"","client_id":null}`, `{"grant_type":"","client_secret":[]}`}},

		{name: "expired belongs in the query", wantError: "expired belongs in the query: POST /auth?expired=",
			bodies: []string{`{"expired":true}`, "expired=true"}},
		{name: "expires_in belongs in the query", wantError: "expires_in belongs in the query: POST /auth?expires_in=",
			bodies: []string{`{"expires_in":null}`, "expires_in=60"}},
		{name: "fault belongs in the query", wantError: "fault belongs in the query: POST /auth?fault=",
			bodies: []string{`{"fault":"none"}`, "fault=none&sub=a"}},
		{name: "key belongs in the query", wantError: "key belongs in the query: POST /auth?key=",
			bodies: []string{`{"key":"new"}`, `{"grant_type":"password","key":""}`, "key=new"}},

		{name: "nothing may follow the object", label: formType, wantError: "after top-level value",
			bodies: []string{"{} {}", "{}x", "{},", `{"a":1}}`, "{}null", "{}\x00", "{}&sub=x"}},
		{name: "a damaged object is refused", label: "application/json", wantError: "has to be one JSON object",
			bodies: []string{"{", `{"a"}`, `{"a":1,}`, `{'a':1}`, `{"a":"`, `{"a":01}`, `{"a":NaN}`, "{\"\x01\":1}"}},
		{name: "an unreadable form is refused", label: formType, wantError: "form in the body cannot be read",
			bodies: []string{"sub=%zz", "sub=a;b", "%"}},
		{name: "another first character is refused", label: formType, wantError: neither,
			bodies: []string{"[]", `"sub"`, "<a/>", "'sub'", ` [{"sub":"a"}]`, "\t<a>", "\x00{\x00}", "é=1"}},
		{name: "another label of a form is refused", label: "application/json", wantError: neither, bodies: []string{"null", "sub=a", "[]", "1"}},
		{name: "a multipart form is refused", label: "multipart/form-data; boundary=x", wantError: neither, bodies: []string{"--x--", "sub=a"}},
		{name: "a malformed label is refused", label: formType + "; =", wantError: neither, bodies: []string{"sub=a"}},

		{name: "letters may be of any alphabet", bodies: []string{`{"sub":"é","名":"\u00e9"}`}, want: `{"aud":"api","sub":"é","名":"é"}`},
		{name: "a pair of surrogates is a character", bodies: []string{`{"sub":"\ud83d\ude00\\ud83d","\uD83D\uDE00":1}`},
			want: `{"aud":"api","sub":"😀\\ud83d","😀":1}`},
		{name: "a replacement character may be meant", want: "{\"aud\":\"api\",\"sub\":\"\ufffd\"}",
			bodies: []string{"{\"sub\":\"\ufffd\"}", `{"sub":"\ufffd"}`, "sub=%EF%BF%BD"}},
		{name: "a body is UTF-8", wantError: "has to be UTF-8", bodies: []string{"{\"sub\":\"J\xfcrgen\"}", "{\"\xfc\":1}", "sub=J\xfcrgen",
			"\xff\xfe{\x00}\x00", "\xfe\xff\x00{\x00}"}},
		{name: "the parameters of a form are UTF-8", wantError: "has to be UTF-8",
			bodies: []string{"sub=J%FCrgen", "username=%fc", "aud=a&aud=%FC", "scope=%ED%A0%BD"}},
		{name: "an unpaired surrogate is refused", wantError: "unpaired surrogate", bodies: []string{`{"sub":"\ud83d"}`, `{"\uD83D":1}`}},
		{name: "a byte-order mark is refused", wantError: "byte-order mark",
			bodies: []string{"\xef\xbb\xbf{\"sub\":\"alice\"}", "\xef\xbb\xbfsub=alice"}},

		{name: "exp is a number", wantError: "exp has to be a number",
			bodies: []string{`{"exp":null}`, `{"exp":"1"}`, `{"exp":[1]}`, `{"exp":true}`, `{"exp":1e400}`, `{"exp":-1e400}`}},
		{name: "exp is not later than the server's own", wantError: "no token lives longer than -token-ttl",
			bodies: []string{`{"exp":1e300}`, `{"exp":9223372036854775807}`, `{"exp":99999999999999999999}`}},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, body := range test.bodies {
				w := s.do("POST", "/auth", body, "Content-Type", test.label)
				if test.wantError != "" {
					code := "invalid_request"
					if strings.HasPrefix(test.wantError, "grant_type") {
						code = "unsupported_grant_type"
					}
					w.checkError(t, body, 400, code)
					if !strings.Contains(w.body, test.wantError) || strings.Contains(w.body, "hush") {
						t.Errorf("%s = %s; want %q in it, and no secret", body, w.body, test.wantError)
					}
					continue
				}
				claims := granted(t, w)
				for _, name := range []string{"iss", "iat", "exp", "jti"} {
					if !strings.Contains(body, `"`+name+`"`) {
						delete(claims, name)
					}
				}
				equal(t, "claims of "+body, string(encode(claims)), test.want)
			}
		})
	}
	t.Run("null leaves a claim out", func(t *testing.T) {
		for _, name := range []string{"iss", "sub", "iat", "jti", "aud", "scope", "x"} {
			for _, body := range []string{`{"` + name + `":null}`, `{"grant_type":"","` + name + `":null}`} {
				_, claims := parts(t, s.token(t, "", body))
				if _, there := claims[name]; there || claims["exp"] == nil {
					t.Errorf("claims of %s = %v; want no %s", body, claims, name)
				}
			}
		}
	})
	t.Run("it may have 128 claims", func(t *testing.T) {
		_, claims := parts(t, s.token(t, "", members(128)))
		equal(t, "the last claim", claims["c127"], any(json.Number("0")))
	})
	t.Run("it has 16 KiB at most, white space and all", func(t *testing.T) {
		for _, format := range []string{`{"pad":"%s"}`, "pad=%s", `%s{"sub":"alice"}`} {
			fill := func(size int) string {
				return fmt.Sprintf(format, strings.Repeat(map[bool]string{true: " ", false: "x"}[format[0] == '%'], size+len("%s")-len(format)))
			}
			s.token(t, "", fill(16<<10))
			s.do("POST", "/auth", fill(16<<10+1)).checkError(t, "one byte more", 413, "invalid_request")
		}
	})
	t.Run("it has no Content-Encoding", func(t *testing.T) {
		for _, coding := range []string{"gzip", "identity", ""} {
			w := s.do("POST", "/auth", `{"sub":"alice"}`, "Content-Encoding", coding)
			w.checkError(t, "Content-Encoding "+coding, 415, "invalid_request")
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

func TestABodyAlwaysGetsTheSameError(t *testing.T) {
	open, closed := newServerWithKey(t), newServerWithKey(t, "-clients", clientsFile(t))
	for _, test := range []struct {
		s          *testServer
		body, want string
	}{
		{s: open, body: `{"key":1,"fault":2,"expires_in":3,"expired":4,"password":5}`, want: "expired belongs"},
		{s: open, body: `{"password":1,"client_secret":2,"client_assertion":3}`, want: "client_assertion cannot be a claim"},
		{s: open, body: `{"username":1,"sub":2,"grant_type":3,"client_secret":4,"client_id":5,"aud":6,"audience":7}`, want: "aud is given twice"},
		{s: open, body: `{"grant_type":1,"client_secret":2,"client_id":3}`, want: "client_id has to be a string"},
		{s: open, body: "username=a&username=b&sub=a&sub=b&scope=a&scope=b&grant_type=a&grant_type=b", want: "grant_type has to be given once"},
		{s: open, body: "username=%FF&scope=%FF&sub=%FF", want: "sub has to be UTF-8"},
		{s: closed, body: `{"nbf":1,"level":2,"iss":3,"aud":"z","scope":"z"}`, want: "audience has to be"},
		{s: closed, body: `{"nbf":1,"level":2,"iss":3}`, want: "iss cannot be requested"},
	} {
		for range 20 { // so that no order of a map goes unseen
			w := test.s.do("POST", "/auth", test.body, "Authorization", basic("app", secretsOf["app"]))
			if w.status != 400 || !strings.Contains(w.body, test.want) {
				t.Fatalf("%s = %d %s; want 400 and %q each time", test.body, w.status, w.body, test.want)
			}
		}
	}
}

// members returns an object with n members.
func members(n int) string {
	var list []string
	for i := range n {
		list = append(list, fmt.Sprintf(`"c%d":0`, i))
	}
	return "{" + strings.Join(list, ",") + "}"
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
	for _, test := range []struct {
		name, authorization, body string
		want                      any // sub, or nil if there is none
		refused                   bool
	}{
		{name: "it is user123 if the request names nobody", want: "user123"},
		{name: "it is the client of Basic", authorization: basic("app", "any"), want: "app"},
		{name: "it is the client of Basic, form-decoded", authorization: basic("a%3Ab+c", ""), want: "a:b c"},
		{name: "it is the client of Basic beside claims", authorization: basic("app", "any"), body: `{"x":1,"client_id":"b"}`, want: "app"},
		{name: "it is the client of a form", body: "client_id=app&client_secret=any", want: "app"},
		{name: "it is the client of an OAuth object", body: `{"grant_type":"client_credentials","client_id":"app"}`, want: "app"},
		{name: "a claim client_id is no client", body: `{"client_id":"app"}`, want: "user123"},
		{name: "it is the client that Basic and the form name", authorization: basic("app", "any"), body: "client_id=app", want: "app"},
		{name: "of two readings of Basic it is the one in the form", authorization: basic("a%3Ab", "any"), body: "client_id=a%253Ab",
			want: "a%3Ab"},
		{name: "the body says who it is", authorization: basic("app", "any"), body: "sub=alice", want: "alice"},
		{name: "the body says who it is by another name", body: "client_id=app&username=alice", want: "alice"},
		{name: "the body may leave it out", authorization: basic("app", "any"), body: `{"sub":null}`},
		{name: "another scheme names nobody", authorization: "Bearer app", want: "user123"},
		{name: "Basic without a colon names nobody", authorization: strings.Replace(basic("app", ""), "Og==", "", 1), want: "user123"},
		{name: "Basic that is not Base64 names nobody", authorization: basic("app", "any") + "!", want: "user123"},
		{name: "an empty client is nobody", authorization: basic("", "any"), want: "user123"},
		{name: "a client in Latin-1 is refused", authorization: basic("J\xfcrgen", "any"), refused: true},
		{name: "a client with an escape in Latin-1 is refused", authorization: basic("J%FCrgen", "any"), refused: true},
		{name: "two clients are refused", authorization: basic("app", "any"), body: "client_id=other", refused: true},
		{name: "two secrets are refused", authorization: basic("app", "any"), body: "client_id=app&client_secret=any", refused: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := s.do("POST", "/auth", test.body, "Authorization", test.authorization)
			if test.refused {
				w.checkError(t, test.name, 400, "invalid_request")
				return
			}
			equal(t, "sub", granted(t, w)["sub"], test.want)
		})
	}
}

func basic(id, secret string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(id+":"+secret))
}

func FuzzTokenRequest(f *testing.F) {
	for _, body := range []string{
		"", `{"sub":"alice","roles":["admin"]}`, `{"exp":1,"nbf":2.5,"iat":-1e3,"aud":["a"],"jti":"","iss":null}`, `{"a":"\ud83d\ude00\ufffd"}`,
		`{"\ud83d":"\\"}`,
		`{"grant_type":"password","username":"a","password":"b","client_id":"c","client_secret":"d","audience":"e"}`,
		`{"client_id":"a","username":"b"}`,
		"grant_type=client_credentials&client_id=a&client_secret=b&scope=c+d", "aud=a&audience=b&username=c", "sub=%zz", "sub=%FC", `[1]`,
		"&1=2", `{"a":[[{"b":[]}]]}`,
	} {
		f.Add(formType, []byte(body), true)
		f.Add("application/json", []byte(body), false)
	}
	profile := tokenProfile{issuer: "http://issuer.test", audience: "api", typ: "at+jwt", lifetime: time.Minute}
	f.Fuzz(func(t *testing.T, label string, body []byte, open bool) {
		clients := registry{"a": {}}
		if open {
			clients = nil
		}
		request, err := parseTokenRequest(http.Header{"Content-Type": {label}}, body, clients)
		if err != nil {
			if refusal := (*httpError)(nil); !errors.As(err, &refusal) || refusal.status != 400 {
				t.Errorf("parseTokenRequest(%q, %q) = %v; want a refusal", label, body, err)
			}
			return
		}
		var object map[string]json.RawMessage
		json.Unmarshal(body, &object)
		never := []string{"expired", "expires_in", "fault", "key", "client_secret", "password", "client_assertion"}
		if open && object != nil && object["grant_type"] == nil {
			if !maps.EqualFunc(object, request.claims, func(a, b json.RawMessage) bool { return bytes.Equal(a, b) }) {
				t.Errorf("parseTokenRequest(%q) has the claims %s; want all members", body, request.claims)
			}
		} else {
			never = append(never, "grant_type", "client_id", "username", "audience", "resource")
		}
		for _, name := range never {
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
		text := encode(d.claims)
		var decoded map[string]any
		decoder := json.NewDecoder(bytes.NewReader(text))
		decoder.UseNumber()
		if err := decoder.Decode(&decoded); err != nil {
			t.Fatalf("the claims of %q make no token: %s, %v", body, text, err)
		}
		unescaped, _ := url.QueryUnescape(string(body))
		meant := regexp.MustCompile("(?i)\ufffd|\\\\ufffd").MatchString(string(body) + unescaped)
		if strings.Contains(string(encode(decoded)), "\ufffd") && !meant {
			t.Errorf("the claims of %q are %s; want no replacement character that nobody asked for", body, text)
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
