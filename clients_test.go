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
var secretsOf = map[string]string{"app": "hush-app", "bare": "hush+b%61re: \"\\ä&=", "other": "hush:other:", "a b:c+%ä": "hush%", "one": "hush1"}

// clientsFile registers clients.
func clientsFile(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "clients.json")
	content := fmt.Sprintf(`{
		"app": {"secret_sha256": [%q, %q], "claims": {"scope": "read  write admin", "aud": ["x", "y"], "level": 12345678901234567890}},
		"bare": {"secret_sha256": %q},
		"other": {"secret_sha256": %q, "claims": {"iss": "https://other.test"}},
		"a b:c+%%ä": {"secret_sha256": %q, "claims": {}},
		"one": {"secret_sha256": %q, "claims": {"aud": "x"}}
	}`, digestOf("hush-old"), digestOf("hush-app"), digestOf(secretsOf["bare"]), strings.ToUpper(digestOf(secretsOf["other"])), digestOf("hush%"), digestOf("hush1"))
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestClientsFile(t *testing.T) {
	good := digestOf("hush")
	zoe := func(members string) string { return `{"zoe":{"secret_sha256":"` + good + `"` + members + `}}` }
	digest := func(raw string) string { return `{"zoe":{"secret_sha256":` + raw + `}}` }
	two := func(second string) string { return strings.TrimSuffix(zoe(""), "}") + "," + second }
	for _, test := range []struct {
		name     string
		contents []string
		want     string // in each error; nothing if the file is good
	}{
		{"a client needs a digest only", []string{zoe(""), "\n\t" + zoe("") + "\r\n", digest(`"` + strings.ToUpper(good) + `"`)}, ""},
		{"a client may have several digests", []string{digest(`["` + digestOf("new") + `","` + good + `"]`), digest(`["` + good + `"]`)}, ""},
		{"a client may have any claims", []string{zoe(`,"claims":{}`), zoe(`,"claims":{"iss":"x","aud":["a"],"scope":"b","x":null,"y":{"z":[]}}`)}, ""},
		{"it is one JSON object", []string{"", " \n", "null", "[" + zoe("") + "]", `"` + good + `"`, "zoe: " + good, "\xef\xbb\xbf" + zoe(""),
			zoe("") + zoe(""), zoe("") + "}", strings.TrimSuffix(zoe(""), "}"), two("}")}, "it has to be one JSON object"},
		{"it is UTF-8", []string{strings.Replace(zoe(""), "zoe", "zo\xe9", 1)}, "it has to be UTF-8"},
		{"half a character is refused", []string{zoe(`,"claims":{"x":"\ud83d"}`)}, "half a character"},
		{"no client is refused", []string{"{}"}, "there is no client"},
		{"a client is an object", []string{`{"zoe":null}`, `{"zoe":"` + good + `"}`, `{"zoe":[]}`}, `client "zoe": it has to be an object with secret_sha256`},
		{"a client has a digest", []string{`{"zoe":{}}`, digest("null"), digest("1234567890"), digest("[]"), digest("{}"), `{"zoe":{"SECRET_SHA256":"` + good + `"}}`}, `client "zoe": secret_sha256 has to be the SHA-256 digest`},
		{"a digest has 64 hex digits", []string{digest(`"hush"`), digest(`""`), digest(`"` + good[2:] + `"`), digest(`"` + good + `00"`), digest(`"` + good[1:] + `g"`),
			digest(`["` + good + `","hush"]`), digest(`["` + good + `",null]`)}, `client "zoe": secret_sha256 has to be the SHA-256 digest`},
		{"the secret is not empty", []string{digest(`"` + digestOf("") + `"`), digest(`["` + good + `","` + digestOf("") + `"]`)}, "not empty"},
		{"an id is not empty", []string{strings.Replace(zoe(""), "zoe", "", 1)}, `client "": its id must not be empty`},
		{"an unknown member is refused", []string{zoe(`,"claim":{}`)}, `client "zoe": unknown member "claim"`},
		{"claims are an object", []string{zoe(`,"claims":[]`), zoe(`,"claims":null`), zoe(`,"claims":"hush"`)}, `client "zoe": claims has to be an object`},
		{"a client is there once", []string{two(zoe("")[1:])}, "duplicate member zoe"},
		{"a digest is there once", []string{zoe(`,"secret_sha256":"` + good + `"`)}, "duplicate member secret_sha256"},
		{"a claim is there once", []string{zoe(`,"claims":{"scope":"r","scope":"w"}`), zoe(`,"claims":{"a":[1,{"b":{"scope":1,"c":2,"scope":1}}]}`)}, "duplicate member scope"},
		{"what the server sets cannot be registered", []string{zoe(`,"claims":{"sub":"x"}`), zoe(`,"claims":{"exp":1}`), zoe(`,"claims":{"iat":1}`),
			zoe(`,"claims":{"nbf":1}`), zoe(`,"claims":{"jti":null}`)}, "cannot be registered, because the server sets it"},
		{"iss is a string", []string{zoe(`,"claims":{"iss":5}`), zoe(`,"claims":{"iss":null}`)}, `client "zoe": iss has to be a string`},
		{"aud is strings", []string{zoe(`,"claims":{"aud":[5]}`), zoe(`,"claims":{"aud":null}`), zoe(`,"claims":{"aud":["a",null]}`)}, `client "zoe": aud has to be a string or an array`},
		{"scope is a string", []string{zoe(`,"claims":{"scope":["a"]}`), zoe(`,"claims":{"scope":null}`)}, `client "zoe": scope has to be a string`},
		{"a fault of the second client counts", []string{two(`"yan":{}}`)}, `client "yan": secret_sha256`},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, content := range test.contents {
				path := filepath.Join(t.TempDir(), "clients.json")
				if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
				clients, err := readClients(path)
				if test.want == "" {
					if _, ok := clients.authenticate([]credential{{id: "zoe", secret: "hush"}}); err != nil || !ok {
						t.Errorf("readClients(%s) = %v, %v; want zoe and her secret", content, clients, err)
					}
					continue
				}
				if err == nil || clients != nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), path) {
					t.Fatalf("readClients(%s) = %v, %v; want no clients, and an error with %s and the path", content, clients, err, test.want)
				}
				for _, secret := range []string{"hush", good[2:10], good[32:40], digestOf("")[:8], "1234567890"} {
					if strings.Contains(err.Error(), secret) {
						t.Errorf("readClients(%s) = %v; want no secret or digest in it", content, err)
					}
				}
			}
		})
	}
	t.Run("a file that is absent is refused", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "absent.json")
		if clients, err := readClients(path); clients != nil || !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), path) {
			t.Errorf("readClients(%s) = %v, %v; want an error that names it", path, clients, err)
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
	for _, test := range []struct{ name, authorization, body, want string }{ // sub, or an error
		{"Basic may be form-encoded", encoded("bare", secretsOf["bare"]), "", "bare"},
		{"Basic may be as it is", basic("bare", secretsOf["bare"]), "", "bare"},
		{"Basic may have a form-encoded id", encoded("a b:c+%ä", "hush%"), "", "a b:c+%ä"},
		{"Basic may have a secret that is no form", basic("one", "hush1"), "", "one"},
		{"Basic may have colons in the secret", basic("other", secretsOf["other"]), "", "other"},
		{"Basic may be in lower case", "basic" + encoded("app", "hush-app")[5:], "", "app"},
		{"Basic may have two blanks after it", "Basic  " + encoded("app", "hush-app")[6:], "", "app"},
		{"a second secret is right too", basic("app", "hush-old"), "", "app"},
		{"a form may have the credentials", "", form("bare", ""), "bare"},
		{"a form may have an odd id", "", form("a b:c+%ä", "&grant_type=client_credentials"), "a b:c+%ä"},
		{"an object may have the credentials", "", `{"client_id":"app","client_secret":"hush-app"}`, "app"},
		{"Basic may come with the grant", encoded("app", "hush-app"), "grant_type=client_credentials&x=1&password=x", "app"},
		{"Basic may come with its client_id in the form", encoded("app", "hush-app"), "client_id=app", "app"},
		{"nothing is no credentials", "", "", "invalid_client"},
		{"a grant is no credentials", "", "grant_type=client_credentials", "invalid_client"},
		{"a wrong secret is refused", basic("app", "hush-no"), "", "invalid_client"},
		{"the secret of another is refused", encoded("app", secretsOf["bare"]), "", "invalid_client"},
		{"the digest is no secret", basic("app", digestOf("hush-app")), "", "invalid_client"},
		{"an unknown client is refused", basic("nobody", "hush-app"), "", "invalid_client"},
		{"an unknown client without a secret is refused", basic("nobody", ""), "", "invalid_client"},
		{"an empty secret is refused", basic("app", ""), "", "invalid_client"},
		{"an empty secret in a form is refused", "", "client_id=app&client_secret=", "invalid_client"},
		{"a client_id is not enough", "", "client_id=app", "invalid_client"},
		{"an empty id is refused", basic("", "hush-app"), "", "invalid_client"},
		{"a secret is not enough", "", "client_secret=hush-app", "invalid_client"},
		{"a wrong secret in a form is refused", "", "client_id=app&client_secret=hush-no", "invalid_client"},
		{"a wrong secret in an object is refused", "", `{"client_id":"app","client_secret":"hush-no"}`, "invalid_client"},
		{"a secret that is decoded twice is refused", "", "client_id=one&client_secret=hush%252531", "invalid_client"},
		{"another scheme is refused", "Bearer hush", "", "invalid_client"},
		{"Basic without credentials is refused", "Basic", "", "invalid_client"},
		{"Basic that is not Base64 is refused", "Basic hush!", "", "invalid_client"},
		{"Basic without a colon is refused", "Basic " + base64.StdEncoding.EncodeToString([]byte("app")), "", "invalid_client"},
		{"the case of an id counts", basic("APP", "hush-app"), "", "invalid_client"},
		{"a wrong secret comes before a wrong grant", basic("app", "hush-no"), "grant_type=password", "invalid_client"},
		{"a wrong secret comes before a claim", basic("app", "hush-no"), "sub=admin", "invalid_client"},
		{"both at once are refused", basic("app", "hush-app"), form("app", ""), "invalid_request"},
		{"both at once in an object are refused", basic("app", "hush-app"), `{"client_secret":"hush-app"}`, "invalid_request"},
		{"two clients are refused", basic("app", "hush-app"), "client_id=bare", "invalid_request"},
		{"another scheme and a form are refused", "Bearer x", form("app", ""), "invalid_request"},
		{"another grant is refused", basic("app", "hush-app"), "grant_type=password&username=app&password=x", "unsupported_grant_type"},
		{"another grant in a form is refused", "", form("bare", "&grant_type=refresh_token"), "unsupported_grant_type"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := s.do("POST", "/auth", test.body, "Authorization", test.authorization)
			switch test.want {
			case "invalid_client": // looks as for an unknown client
				w.checkError(t, test.name, 401, test.want)
				if unknown := s.do("POST", "/auth", "", "Authorization", basic("nobody", "x")); unknown.body != w.body {
					t.Errorf("%s = %s; want %s, as for an unknown client", test.name, w.body, unknown.body)
				}
			case "invalid_request", "unsupported_grant_type":
				w.checkError(t, test.name, 400, test.want)
			default:
				if got := granted(t, w)["sub"]; got != test.want {
					t.Errorf("sub = %v; want %s", got, test.want)
				}
			}
			if strings.Contains(w.body+s.log.String(), "hush") {
				t.Errorf("%s = %s, log %s; want no secret in them", test.name, w.body, s.log)
			}
		})
	}
}

func TestNarrowing(t *testing.T) {
	s := newServerWithKey(t, "-audience", "api", "-clients", clientsFile(t))
	const all = `{"aud":["x","y"],"iss":"http://issuer.test","level":12345678901234567890,"scope":"read  write admin","sub":"app"}`
	app := func(scope, aud string) string {
		return strings.NewReplacer("read  write admin", scope, `["x","y"]`, aud).Replace(all)
	}
	bare := func(aud string) string { return `{"aud":` + aud + `,"iss":"http://issuer.test","sub":"bare"}` }
	for _, test := range []struct{ name, client, asked, want string }{ // claims, or an error
		{"who asks for nothing gets all that is registered", "app", "", all},
		{"who asks for nothing in an object gets all that is registered", "app", "{}", all},
		{"the server's audience counts when none is registered", "bare", "", bare(`"api"`)},
		{"a registered iss replaces the server's", "other", "", `{"aud":"api","iss":"https://other.test","sub":"other"}`},
		{"a scope is granted as asked for", "app", "scope=write", app("write", `["x","y"]`)},
		{"the order of a scope is kept", "app", "scope=admin+read", app("admin read", `["x","y"]`)},
		{"the blanks of a scope are one", "app", `{"scope":"  admin   read "}`, app("admin read", `["x","y"]`)},
		{"an unknown word of a scope is refused", "app", "scope=read+root", "invalid_scope"},
		{"a part of a word is unknown", "app", "scope=rea", "invalid_scope"},
		{"the case of a word counts", "app", "scope=Read", "invalid_scope"},
		{"a scope of who has none is refused", "bare", "scope=read", "invalid_scope"},
		{"a scope that is no string is refused", "app", `{"scope":["read"]}`, "invalid_scope"},
		{"an empty scope widens nothing", "bare", `{"scope":""}`, bare(`"api"`)},
		{"an empty scope asks for nothing", "app", `{"scope":" "}`, all},
		{"a scope of null asks for nothing", "app", `{"scope":null}`, all},
		{"audience is one of those registered", "app", "audience=y", app("read  write admin", `"y"`)},
		{"aud is one of those registered", "app", "aud=x", app("read  write admin", `"x"`)},
		{"resource is one of those registered", "app", "resource=x", app("read  write admin", `"x"`)},
		{"several audiences may be asked for", "app", "audience=y&audience=x", app("read  write admin", `["y","x"]`)},
		{"several audiences may be asked for in an object", "app", `{"aud":["y"]}`, app("read  write admin", `["y"]`)},
		{"another audience is refused", "app", "audience=z", "invalid_target"},
		{"another audience among good ones is refused", "app", "resource=x&resource=z", "invalid_target"},
		{"the server's audience is another when one is registered", "app", "audience=api", "invalid_target"},
		{"a single registered audience may be asked for", "one", "audience=x", `{"aud":"x","iss":"http://issuer.test","sub":"one"}`},
		{"the server's audience may be asked for when none is registered", "bare", "audience=api", bare(`"api"`)},
		{"another than the server's audience is refused", "bare", "audience=x", "invalid_target"},
		{"an empty list of audiences is refused", "app", `{"aud":[]}`, "invalid_target"},
		{"an empty audience is refused", "app", `{"aud":""}`, "invalid_target"},
		{"an audience of null asks for nothing", "app", `{"audience":null}`, all},
		{"an audience of null keeps the server's", "bare", `{"aud":null}`, bare(`"api"`)},
		{"an audience that is no string is refused", "app", `{"aud":[null]}`, "invalid_target"},
		{"sub cannot be asked for", "app", "sub=admin", "invalid_request"},
		{"its own sub cannot be asked for", "app", "username=app", "invalid_request"},
		{"another claim cannot be asked for", "app", `{"admin":true}`, "invalid_request"},
		{"a registered claim cannot be asked for", "app", `{"level":1}`, "invalid_request"},
		{"another claim cannot be left out", "app", `{"level":null}`, "invalid_request"},
		{"jti cannot be left out", "app", `{"jti":null}`, "invalid_request"},
		{"exp cannot be asked for", "app", `{"exp":1}`, "invalid_request"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := s.do("POST", "/auth", test.asked, "Authorization", encoded(test.client, secretsOf[test.client]))
			if strings.HasPrefix(test.want, "invalid") {
				w.checkError(t, test.asked, 400, test.want)
				return
			}
			claims := granted(t, w)
			delete(claims, "jti")
			delete(claims, "iat")
			delete(claims, "exp")
			if got := string(encode(claims)); got != test.want {
				t.Errorf("claims of %s = %s; want %s", test.asked, got, test.want)
			}
		})
	}
	t.Run("a life may be shorter and not longer", func(t *testing.T) {
		for query, want := range map[string]int{"?expires_in=60": 200, "?expires_in=600": 200, "?expires_in=601": 400, "?expired=true": 200, "?expired=key": 400} {
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
		want := fmt.Sprintf(`level=INFO msg="token issued" client=app jti=%v aud="[y x]" scope=read kid=%s exp=%v`, claims["jti"], thumbprint(&readyMade()[0].PublicKey), claims["exp"])
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
			{"an id cannot break a line", time.Minute, 1, "a\nlevel=INFO", `client="a\nlevel=INFO" failures=1`},
		} {
			time.Sleep(test.after)
			got := logged(func() {
				for range test.times {
					s.do("POST", "/auth", "", "Authorization", basic(test.id, "hush"))
				}
			})
			if test.want == "" && got != "" || test.want != "" && !strings.HasSuffix(got, `level=WARN msg="client authentication failed" `+test.want+"\n") {
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
		"", "null", "{}", `{"a":null}`, `{"a":{"secret_sha256":"` + good + `"}}`, `{"a":{"secret_sha256":["` + good + `"],"claims":{"a":"\ud83d"}}}`,
		`{"a":{"secret_sha256":"` + good + `","claims":{"aud":["x"],"iss":"y","z":1}},"b":{"secret_sha256":"` + strings.ToUpper(good) + `"}}`,
		`{"a":{"secret_sha256":"` + good + `"},"a":{"secret_sha256":"` + good + `"}}`, `{"a":{"secret_sha256":"` + good + `","claims":{"sub":1}}}`,
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
			for _, name := range []string{"exp", "iat", "nbf", "jti"} {
				if c.claims[name] != nil || string(c.claims["sub"]) != string(encode(id)) {
					t.Errorf("parseClients(%q) registers %s for %q, whose sub is %s", content, name, id, c.claims["sub"])
				}
			}
			if _, err := json.Marshal(c.claims); err != nil {
				t.Errorf("parseClients(%q) has claims for %q that make no token: %v", content, id, err)
			}
		}
	})
}
