package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func digestOf(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// secretsOf are the secrets of the clients in clientsFile.
var secretsOf = map[string]string{"app": "hush-app", "bare": "hush+b%61re: \"\\ä&=", "other": "hush:other:", "a b:c+%ä": "hush%",
	"one": "hush1"}

// clientsFile registers clients.
func clientsFile(t testing.TB) string {
	t.Helper()
	content := fmt.Sprintf(`{
		"app": {"secret_sha256": [%q, %q], "claims": {"scope": "read write admin", "aud": ["x", "y"], "level": 12345678901234567890}},
		"bare": {"secret_sha256": %q},
		"other": {"secret_sha256": %q, "claims": {"iss": "https://other.test"}},
		"a b:c+%%ä": {"secret_sha256": %q, "claims": {}},
		"one": {"secret_sha256": %q, "claims": {"aud": "x"}}
	}`, digestOf("hush-old"), digestOf("hush-app"), digestOf(secretsOf["bare"]), strings.ToUpper(digestOf(secretsOf["other"])),
		digestOf("hush%"), digestOf("hush1"))
	return putFile(t, content)
}

func TestClientsFile(t *testing.T) {
	good := digestOf("hush")
	zoe := func(members string) string { return `{"zoe":{"secret_sha256":"` + good + `"` + members + `}}` }
	claims := func(claims ...string) (contents []string) {
		for _, c := range claims {
			contents = append(contents, zoe(`,"claims":{`+c+`}`))
		}
		return contents
	}
	digest := func(raw string) string { return `{"zoe":{"secret_sha256":` + raw + `}}` }
	two := func(second string) string { return strings.TrimSuffix(zoe(""), "}") + "," + second }
	const badDigest = `client "zoe": secret_sha256 has to be the SHA-256 digest of a secret that is not empty`
	for _, test := range []struct {
		name      string
		contents  []string
		wantError string
	}{
		{name: "a client needs a digest only", contents: []string{zoe(""), "\n\t" + zoe("") + "\r\n", digest(`"` + strings.ToUpper(good) + `"`)}},
		{name: "a client may have several digests",
			contents: []string{digest(`["` + digestOf("new") + `","` + good + `"]`), digest(`["` + good + `"]`)}},
		{name: "a client may have any claims", contents: claims("", `"iss":"x","aud":["a","b"],"scope":"b","x":null,"y":{"z":[]}`,
			`"scope":"a:b/c?d=!#[]~ e","aud":"f g"`, `"x":{"":-1e300},"y":12345678901234567890,"z":[[1e-400]]`)},
		{name: "it is one JSON object", wantError: "it has to be one JSON object", contents: []string{"", " \n", "null", "[" + zoe("") + "]",
			`"` + good + `"`, "zoe: " + good, "\xef\xbb\xbf" + zoe(""), zoe("") + zoe(""), zoe("") + "}", strings.TrimSuffix(zoe(""), "}"),
			two("}")}},
		{name: "it is UTF-8", contents: []string{strings.Replace(zoe(""), "zoe", "zo\xe9", 1)}, wantError: "it has to be UTF-8"},
		{name: "an unpaired surrogate is refused", contents: claims(`"x":"\ud83d"`), wantError: "unpaired surrogate"},
		{name: "a file without clients is refused", contents: []string{"{}"}, wantError: "no clients"},
		{name: "a client is an object", contents: []string{`{"zoe":null}`, `{"zoe":"` + good + `"}`, `{"zoe":[]}`},
			wantError: `client "zoe": it has to be an object with secret_sha256`},
		{name: "a client has a digest", wantError: badDigest, contents: []string{`{"zoe":{}}`, digest("null"), digest("1234567890"), digest("[]"),
			digest("{}"), `{"zoe":{"SECRET_SHA256":"` + good + `"}}`}},
		{name: "a digest has 64 hex digits", wantError: badDigest,
			contents: []string{digest(`"hush"`), digest(`""`), digest(`"` + good[2:] + `"`),
				digest(`"` + good + `00"`), digest(`"` + good[1:] + `g"`), digest(`["` + good + `","hush"]`), digest(`["` + good + `",null]`)}},
		{name: "a secret is not empty", wantError: badDigest,
			contents: []string{digest(`"` + digestOf("") + `"`), digest(`["` + good + `","` + digestOf("") + `"]`)}},
		{name: "an id is not empty", contents: []string{strings.Replace(zoe(""), "zoe", "", 1)},
			wantError: `client "": its id must not be empty`},
		{name: "an unknown member is refused", contents: []string{zoe(`,"claim":{}`)}, wantError: `client "zoe": unknown member "claim"`},
		{name: "claims are an object", contents: []string{zoe(`,"claims":[]`), zoe(`,"claims":null`), zoe(`,"claims":"hush"`)},
			wantError: `client "zoe": claims has to be an object`},
		{name: "a duplicate client is refused", contents: []string{two(zoe("")[1:])}, wantError: "duplicate member zoe"},
		{name: "a duplicate digest is refused", contents: []string{zoe(`,"secret_sha256":"` + good + `"`)},
			wantError: "duplicate member secret_sha256"},
		{name: "a duplicate claim is refused", contents: claims(`"scope":"r","scope":"w"`, `"a":[1,{"b":{"scope":1,"c":2,"scope":1}}]`),
			wantError: "duplicate member scope"},
		{name: "a claim has a name", contents: claims(`"":1`, `"":null`), wantError: `client "zoe": claim "" has to have a name`},
		{name: "iss is a string that is not empty", contents: claims(`"iss":5`, `"iss":null`, `"iss":""`),
			wantError: `client "zoe": claim "iss" has to be a string that is not empty`},
		{name: "aud has different strings, none of them empty",
			wantError: `client "zoe": claim "aud" has to be a string or an array of different strings`,
			contents:  claims(`"aud":[5]`, `"aud":null`, `"aud":["a",null]`, `"aud":[]`, `"aud":""`, `"aud":["a",""]`, `"aud":["a","b","a"]`)},
		{name: "scope has different words, separated by single spaces, in the characters of RFC 6749",
			wantError: `client "zoe": claim "scope" has to be a string of different words, separated by single spaces`,
			contents: claims(`"scope":["a"]`, `"scope":null`, `"scope":""`, `"scope":" "`, `"scope":" a"`, `"scope":"a "`, `"scope":"a  b"`,
				`"scope":"a\tb"`, `"scope":"a\nb"`,
				`"scope":"a\n"`, `"scope":"a\u00a0b"`, `"scope":"é"`, `"scope":"a\"b"`, `"scope":"a\\b"`, `"scope":"a\u007f"`, `"scope":"a b a"`)},
		{name: "a number that is out of range is refused", contents: claims(`"x":1e400`, `"x":[{"y":-1e400}]`),
			wantError: `client "zoe": claim "x" has a number that is out of range`},
		{name: "of several invalid clients the first is named", wantError: `client "a": claim "b" has a number`,
			contents: []string{`{"d":{},"c":null,"b":[],
			"a":{"secret_sha256":"` + good + `","claims":{"b":1e400,"c":1e400,"d":1e400,"scope":"","e":1e400}}}`}},
		{name: "of several unknown members the first is named", contents: []string{zoe(`,"d":0,"c":0,"b":0,"a":0,"e":0`)},
			wantError: `unknown member "a"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, content := range test.contents {
				path := putFile(t, content)
				clients, err := readClients(path)
				wantError(t, "readClients of "+content, err, test.wantError)
				if test.wantError == "" {
					if _, ok := clients.authenticate([]credential{{id: "zoe", secret: "hush"}}); !ok {
						t.Errorf("readClients of %s = %v; want zoe and her secret", content, clients)
					}
					continue
				}
				wantError(t, "readClients of "+content, err, path)
				if clients != nil {
					t.Errorf("readClients of %s = %v; want no clients", content, clients)
				}
				for _, secret := range []string{"hush", good[2:10], good[32:40], digestOf("")[:8], "1234567890"} {
					if strings.Contains(err.Error(), secret) {
						t.Errorf("readClients of %s = %v; want no secret or digest in it", content, err)
					}
				}
			}
		})
	}
	t.Run("of two credentials the first one counts", func(t *testing.T) {
		clients := must(readClients(clientsFile(t)))
		one, other := credential{id: "one", secret: secretsOf["one"]}, credential{id: "other", secret: secretsOf["other"]}
		for _, list := range [][]credential{{one, other}, {one}, {{id: "one", secret: "x"}, one}, {{id: "x"}, one}} {
			id, _ := clients.authenticate(list)
			equal(t, "the client", id, "one")
		}
	})
	t.Run("what the server sets cannot be registered", func(t *testing.T) {
		for _, name := range []string{"sub", "client_id", "exp", "iat", "nbf", "jti"} {
			_, err := parseClients([]byte(claims(`"` + name + `":null`)[0]))
			wantError(t, "parseClients", err, `client "zoe": claim "`+name+`" cannot be registered`)
		}
	})
	t.Run("the same error is found each time", func(t *testing.T) {
		content := `{"b":{"secret_sha256":"` + good + `","claims":{"f":1e400,"":1,"sub":2,"aud":""}},
			"a":{"secret_sha256":"` + good + `","d":0,"c":0,"e":0},"c":{}}`
		for range 20 {
			_, err := parseClients([]byte(content))
			wantError(t, "parseClients", err, `client "a": unknown member "c"`)
			_, err = parseClients([]byte(strings.ReplaceAll(content, `"a"`, `"z"`)))
			wantError(t, "parseClients", err, `client "b": claim "" has to have a name`)
		}
	})
	t.Run("a file that is absent is refused", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "absent.json")
		clients, err := readClients(path)
		if wantError(t, "readClients", err, path); clients != nil || !errors.Is(err, os.ErrNotExist) {
			t.Errorf("readClients(%s) = %v, %v; want an error that says that the file is absent", path, clients, err)
		}
	})
}

// form returns the credentials of a client as a body, with more parameters.
func form(id, more string) string {
	return url.Values{"client_id": {id}, "client_secret": {secretsOf[id]}}.Encode() + more
}

func encoded(id, secret string) string { return basic(url.QueryEscape(id), url.QueryEscape(secret)) }

func TestAuthentication(t *testing.T) {
	s := newServerWithKey(t, "-v", "-clients", clientsFile(t))
	app := basic("app", "hush-app")
	type attempt struct{ authorization, body string }
	for _, test := range []struct {
		name      string
		attempts  []attempt
		want      string // sub
		wantError string
	}{
		{name: "Basic may be form-encoded", attempts: []attempt{{encoded("bare", secretsOf["bare"]), ""}}, want: "bare"},
		{name: "Basic may be verbatim", attempts: []attempt{{basic("bare", secretsOf["bare"]), ""}}, want: "bare"},
		{name: "Basic may have a form-encoded id", attempts: []attempt{{encoded("a b:c+%ä", "hush%"), ""}}, want: "a b:c+%ä"},
		{name: "Basic may have colons in the secret", attempts: []attempt{{basic("other", secretsOf["other"]), ""}}, want: "other"},
		{name: "Basic may be in lower case, and have two blanks after it",
			attempts: []attempt{{"basic" + app[5:], ""}, {"BASIC" + app[5:], ""}, {"Basic  " + app[6:], ""}}, want: "app"},
		{name: "a second secret is right too", attempts: []attempt{{basic("app", "hush-old"), ""}}, want: "app"},
		{name: "a form may have the credentials", attempts: []attempt{{"", form("bare", "")}}, want: "bare"},
		{name: "a form may have an odd id", attempts: []attempt{{"", form("a b:c+%ä", "&grant_type=client_credentials")}}, want: "a b:c+%ä"},
		{name: "a JSON object may have the credentials", attempts: []attempt{{"", `{"client_id":"app","client_secret":"hush-app"}`},
			{"", `{"client_id":"app","client_secret":"hush-app","grant_type":"client_credentials","password":"hush"}`}}, want: "app"},
		{name: "Basic may come with the grant", attempts: []attempt{{app, "grant_type=client_credentials&x=1&password=x"}}, want: "app"},
		{name: "Basic may come with its client_id in the body", attempts: []attempt{{app, "client_id=app"}, {app, `{"client_id":"app"}`}},
			want: "app"},
		{name: "a secret that is no form may come by Basic", attempts: []attempt{{basic("one", "hush1"), ""}}, want: "one"},

		{name: "a request without a secret is refused", wantError: "invalid_client",
			attempts: []attempt{{"", ""}, {"", "{}"}, {"", "grant_type=client_credentials"}, {"", "client_id=app"}, {"", "client_secret=hush-app"}}},
		{name: "a wrong secret is refused", wantError: "invalid_client", attempts: []attempt{{basic("app", "hush-no"), ""},
			{encoded("app", secretsOf["bare"]), ""}, {"", "client_id=app&client_secret=hush-no"}, {"",
				`{"client_id":"app","client_secret":"hush-no"}`}}},
		{name: "the digest is no secret", attempts: []attempt{{basic("app", digestOf("hush-app")), ""}}, wantError: "invalid_client"},
		{name: "an empty secret is refused", attempts: []attempt{{basic("app", ""), ""}, {"", "client_id=app&client_secret="}},
			wantError: "invalid_client"},
		{name: "an unknown client is refused", wantError: "invalid_client", attempts: []attempt{{basic("nobody", "hush-app"), ""},
			{basic("nobody", ""), ""}, {basic("", "hush-app"), ""}, {basic("APP", "hush-app"), ""}}},
		{name: "a form is decoded once", attempts: []attempt{{"", "client_id=one&client_secret=hush%252531"}}, wantError: "invalid_client"},
		{name: "another scheme is refused", wantError: "invalid_client", attempts: []attempt{{"Bearer hush", ""}, {"Bearer" + app[5:], ""}}},
		{name: "malformed Basic is refused", wantError: "invalid_client",
			attempts: []attempt{{"Basic", ""}, {"Basic hush!", ""}, {"Basic" + app[6:], ""},
				{"Basic " + base64.StdEncoding.EncodeToString([]byte("app")), ""}, {app[6:], ""}}},
		{name: "a wrong secret comes before a wrong grant and a claim", wantError: "invalid_client",
			attempts: []attempt{{basic("app", "hush-no"), "grant_type=password"}, {basic("app", "hush-no"), "sub=admin"}}},
		{name: "a client authenticates once", wantError: "invalid_request",
			attempts: []attempt{{app, form("app", "")}, {app, `{"client_secret":"hush-app"}`},
				{app, "client_id=bare"}, {app, `{"client_id":"bare"}`}, {basic("a%62", "hush"), "client_id=app"}, {"Bearer x", form("app", "")},
				{"Bearer x", "client_id=app"}}},
		{name: "another grant is refused", wantError: "unsupported_grant_type",
			attempts: []attempt{{app, "grant_type=password&username=app&password=x"},
				{app, `{"grant_type":"password"}`}, {"", form("bare", "&grant_type=refresh_token")}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, a := range test.attempts {
				request := a.authorization + " " + a.body
				w := s.do("POST", "/auth", a.body, "Authorization", a.authorization)
				switch test.wantError {
				case "":
					claims := granted(t, w)
					equal(t, "sub of "+request, claims["sub"], any(test.want))
					equal(t, "client_id of "+request, claims["client_id"], any(test.want))
				case "invalid_client": // looks as for an unknown client
					w.checkError(t, request, 401, "invalid_client")
					unknown := s.do("POST", "/auth", "", "Authorization", basic("nobody", "x"))
					equal(t, request, w.body, unknown.body)
				default:
					w.checkError(t, request, 400, test.wantError)
				}
				if strings.Contains(w.body+s.log.String(), "hush") {
					t.Errorf("%s = %s, log %s; want no secret in them", request, w.body, s.log)
				}
			}
		})
	}
}

func TestNarrowing(t *testing.T) {
	s := newServerWithKey(t, "-audience", "api", "-clients", clientsFile(t))
	app := func(scope, aud string) string {
		return `{"aud":` + aud + `,"client_id":"app","iss":"http://issuer.test","level":12345678901234567890,"scope":"` + scope + `","sub":"app"}`
	}
	const words, auds = "read write admin", `["x","y"]`
	all := app(words, auds)
	const bare = `{"aud":"api","client_id":"bare","iss":"http://issuer.test","sub":"bare"}`
	const one = `{"aud":"x","client_id":"one","iss":"http://issuer.test","sub":"one"}`
	for _, test := range []struct {
		name, client string
		bodies       []string
		want         string // claims
		wantError    string
	}{
		{name: "a request for nothing gets all that is registered", client: "app", want: all,
			bodies: []string{"", "{}", "grant_type=client_credentials",
				"scope=&audience=", `{"scope":null}`, `{"audience":null}`, `{"scope":""}`, `{"aud":[]}`}},
		{name: "a client without a registered aud has the server's", client: "bare",
			bodies: []string{"", `{"aud":null}`, `{"resource":[]}`, "audience=api"}, want: bare},
		{name: "an empty scope widens nothing", client: "bare", bodies: []string{`{"scope":""}`}, want: bare},
		{name: "a registered iss replaces the server's", client: "other", bodies: []string{""},
			want: `{"aud":"api","client_id":"other","iss":"https://other.test","sub":"other"}`},
		{name: "a word of the registered scope is granted", client: "app", bodies: []string{"scope=write", `{"scope":"write"}`},
			want: app("write", auds)},
		{name: "words are granted in the order of the request", client: "app", bodies: []string{"scope=admin+read"},
			want: app("admin read", auds)},
		{name: "a word is granted once", client: "app", want: app("admin read", auds),
			bodies: []string{"scope=admin+read+admin", "scope=admin+" + strings.TrimSuffix(strings.Repeat("read+", 2000), "+")}},
		{name: "a word that is not registered is refused", client: "app", bodies: []string{"scope=read+root", "scope=rea", "scope=Read"},
			wantError: "invalid_scope"},
		{name: "words are separated by single spaces", client: "app", wantError: "invalid_scope",
			bodies: []string{"scope=read++write", "scope=+read", "scope=read+",
				`{"scope":" "}`, "scope=read%09write", "scope=read%C2%A0write", "scope=read%0A", "scope=read,write"}},
		{name: "a client without a registered scope gets none", client: "bare", bodies: []string{"scope=read", `{"scope":" "}`},
			wantError: "invalid_scope"},
		{name: "a scope is a string", client: "app", bodies: []string{`{"scope":["read"]}`, `{"scope":{}}`, `{"scope":[]}`},
			wantError: "invalid_scope"},
		{name: "a registered audience is granted", client: "app", want: app(words, `"y"`),
			bodies: []string{"audience=y", "aud=y", "resource=y", `{"aud":"y"}`}},
		{name: "a single registered audience may be requested", client: "one", bodies: []string{"", "audience=x"}, want: one},
		{name: "several audiences are granted", client: "app", bodies: []string{"audience=y&audience=x"}, want: app(words, `["y","x"]`)},
		{name: "an array stays an array", client: "app", bodies: []string{`{"aud":["y"]}`}, want: app(words, `["y"]`)},
		{name: "an audience is granted once", client: "app", want: app(words, `["y","x"]`),
			bodies: []string{"audience=y&audience=x&audience=y", `{"aud":["y","y","x"` + strings.Repeat(`,"x"`, 2000) + `]}`}},
		{name: "an audience that is not registered is refused", client: "app", wantError: "invalid_target",
			bodies: []string{"audience=z", "resource=x&resource=z",
				"audience=api", `{"aud":""}`, `{"aud":[""]}`, `{"aud":[null]}`, `{"aud":5}`}},
		{name: "no audience but the server's may be requested when none is registered", client: "bare", bodies: []string{"audience=x"},
			wantError: "invalid_target"},
		{name: "another claim cannot be requested", client: "app", wantError: "invalid_request",
			bodies: []string{"sub=admin", "username=app", `{"admin":true}`,
				`{"level":1}`, `{"level":null}`, `{"jti":null}`, `{"exp":1}`}},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, body := range test.bodies {
				w := s.do("POST", "/auth", body, "Authorization", encoded(test.client, secretsOf[test.client]))
				if test.wantError != "" {
					w.checkError(t, body, 400, test.wantError)
					continue
				}
				claims := granted(t, w)
				delete(claims, "jti")
				delete(claims, "iat")
				delete(claims, "exp")
				equal(t, "claims of "+body, string(encode(claims)), test.want)
			}
		})
	}
	t.Run("a life may be shorter and not longer", func(t *testing.T) {
		for query, want := range map[string]int{"?expires_in=60": 200, "?expires_in=600": 200, "?expires_in=601": 400, "?expired=true": 200,
			"?expired=key": 400} {
			if w := s.do("POST", "/auth"+query, form("app", "")); w.status != want {
				t.Errorf("POST /auth%s = %d %s; want %d", query, w.status, w.body, want)
			}
		}
		claims := granted(t, s.do("POST", "/auth?expires_in=60", form("app", "")))
		iat, _ := claims["iat"].(json.Number).Int64()
		if exp, _ := claims["exp"].(json.Number).Int64(); exp != iat+60 {
			t.Errorf("a token of expires_in=60 lives for %d s", exp-iat)
		}
	})
	t.Run("bad tokens do not exist", func(t *testing.T) {
		for _, f := range append([]fault{{Name: ""}, {Name: "nothing"}}, faults...) {
			w := s.do("POST", "/auth?fault="+f.Name, form("app", ""))
			w.checkError(t, "fault "+f.Name, 400, "invalid_request")
			if strings.Contains(w.body, "future-iat") {
				t.Errorf("fault %s = %s; want no list of names", f.Name, w.body)
			}
		}
		for _, body := range []string{"&fault=none", "&key=new"} { // not even in the query, to which other servers refer
			w := s.do("POST", "/auth", form("app", body))
			w.checkError(t, body, 400, "invalid_request")
			equal(t, body+" is not for this server", strings.Contains(w.body, "is not for a server with -clients"), true)
		}
		for _, path := range []string{"/faults", "/faults/jwks.json"} {
			for _, method := range []string{"GET", "HEAD", "OPTIONS", "POST"} {
				s.do(method, path, "").checkError(t, method+" "+path, 404, "not_found")
			}
		}
	})
}

func TestClientLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServerWithKey(t, "-clients", clientsFile(t))
		logged := func(do func()) string {
			before := len(s.log.String())
			do()
			return s.log.String()[before:]
		}
		var w response
		got := logged(func() { w = s.do("POST", "/auth", form("app", "&scope=read&audience=y&audience=x")) })
		claims := granted(t, w)
		want := fmt.Sprintf(`level=INFO msg="token issued" client=app jti=%v aud="[y x]" scope=read kid=%s exp=%v`, claims["jti"],
			thumbprint(&readyMade()[0].PublicKey), claims["exp"])
		if !strings.HasSuffix(got, want+"\n") || strings.Count(got, "\n") != 1 {
			t.Errorf("log of a token = %s; want %s", got, want)
		}
		for _, test := range []struct {
			name  string
			after time.Duration
			times int
			id    string
			want  string
		}{
			{"the first failure is logged", 0, 1, "hacker", "client=hacker failures=1"},
			{"others within a minute are not", time.Second, 41, "hacker", ""},
			{"they are counted a minute later", 59 * time.Second, 1, "app", "client=app failures=42"},
			{"a long id is cut", time.Minute, 1, strings.Repeat("x", 300), "client=" + strings.Repeat("x", 100) + " failures=1"},
			{"a failure without an id is logged", time.Minute, 1, "", `client="" failures=1`},
			{"an id cannot break a line", time.Minute, 1, "a\nlevel=INFO", `client="a\nlevel=INFO" failures=1`},
		} {
			time.Sleep(test.after)
			got := logged(func() {
				for range test.times {
					s.do("POST", "/auth", "", "Authorization", basic(test.id, "hush"))
				}
			})
			if test.want == "" && got != "" || test.want != "" && !strings.HasSuffix(got,
				`level=WARN msg="client authentication failed" `+test.want+"\n") {
				t.Errorf("%s: log = %q; want %q", test.name, got, test.want)
			}
		}
		if all := s.log.String(); strings.Contains(all, "hush") || strings.Contains(all, "eyJ") {
			t.Errorf("log = %s; want no secret and no token", all)
		}
	})
}

func FuzzClients(f *testing.F) {
	good := digestOf("hush")
	for _, content := range []string{
		"", "null", "{}", `{"a":null}`, `{"a":{"secret_sha256":"` + good + `"}}`,
		`{"a":{"secret_sha256":["` + good + `"],"claims":{"a":"\ud83d"}}}`,
		`{"a":{"secret_sha256":"` + good + `","claims":{"aud":["x"],"iss":"y","z":1}},"b":{"secret_sha256":"` + strings.ToUpper(good) + `"}}`,
		`{"a":{"secret_sha256":"` + good + `"},"a":{"secret_sha256":"` + good + `"}}`,
		`{"a":{"secret_sha256":"` + good + `","claims":{"sub":1}}}`,
	} {
		f.Add([]byte(content))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		clients, err := parseClients(content)
		if (err == nil) != (len(clients) > 0) || err == nil && !json.Valid(content) {
			t.Errorf("parseClients(%q) = %v, %v; want clients or an error", content, clients, err)
		}
		for id, c := range clients {
			if id == "" || len(c.digests) == 0 || !bytes.Contains(bytes.ToLower(content), []byte(hex.EncodeToString(c.digests[0][:]))) {
				t.Errorf("parseClients(%q) has the client %q with digests %x", content, id, c.digests)
			}
			for _, name := range []string{"", "exp", "iat", "nbf", "jti"} {
				if c.claims[name] != nil {
					t.Errorf("parseClients(%q) registers %q for %q", content, name, id)
				}
			}
			for _, name := range []string{"sub", "client_id"} {
				equal(t, name, string(c.claims[name]), string(encode(id)))
			}
			if _, err := json.Marshal(c.claims); err != nil {
				t.Errorf("parseClients(%q) has claims for %q that make no token: %v", content, id, err)
			}
		}
	})
}
