package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

const oauthPath = "/.well-known/oauth-authorization-server"

// documentPaths are those of the documents that any web page may read.
var documentPaths = []string{jwksPath, discoveryPath, oauthPath, "/faults", "/faults/jwks.json"}

// checkError checks a response against the rules for all errors.
func (w response) checkError(t testing.TB, request string, status int, code string) {
	t.Helper()
	if w.status != status {
		t.Errorf("%s = %d %s; want %d %s", request, w.status, w.body, status, code)
		return
	}
	members := w.json(t)
	description, _ := members["error_description"].(string)
	if members["error"] != code || len(members) != 2 {
		t.Errorf("%s = %s; want the error %s and its description", request, w.body, code)
	}
	if !regexp.MustCompile(`^[\x20-\x21\x23-\x5B\x5D-\x7E]+$`).MatchString(description) {
		t.Errorf("%s: error_description = %q; want the characters of RFC 6749 section 5.2", request, description)
	}
	want := http.Header{
		"Content-Type": {"application/json"}, "X-Content-Type-Options": {"nosniff"},
		"Cache-Control": {"no-store"}, "Pragma": {"no-cache"},
	}
	switch status {
	case http.StatusServiceUnavailable:
		want.Set("Retry-After", "1")
	case http.StatusUnauthorized:
		want.Set("WWW-Authenticate", `Basic realm="jwks-server", charset="UTF-8"`)
	case http.StatusMethodNotAllowed:
		want.Set("Allow", w.header.Get("Allow")) // which TestRoutes checks
	case http.StatusRequestEntityTooLarge:
		want.Set("Connection", "close")
	}
	if origin, ok := w.header["Access-Control-Allow-Origin"]; ok { // which TestCORS checks
		want["Access-Control-Allow-Origin"] = origin
	}
	checkHeader(t, request, w.header, want)
}

func checkHeader(t testing.TB, request string, got, want http.Header) {
	t.Helper()
	if !maps.EqualFunc(got, want, slices.Equal) {
		t.Errorf("%s: header = %v; want %v", request, got, want)
	}
}

func TestRoutes(t *testing.T) {
	s := newServerWithKey(t)
	readable := append([]string{"/"}, documentPaths...)
	for _, test := range []struct {
		name, methods string
		paths         []string
		wantStatus    int
		wantAllow     string
	}{
		{"what may be read answers GET and HEAD", "GET HEAD", append(readable, setsPath), 200, ""},
		{"OPTIONS of the faults of the set is answered 204 with Allow", "OPTIONS", []string{setsPath}, 204, "GET, HEAD, POST, OPTIONS"},
		{"another method of the faults of the set is 405 with Allow", "PUT PATCH DELETE TRACE get", []string{setsPath}, 405, "GET, HEAD, POST, OPTIONS"},
		{"auth answers POST", "POST", []string{"/auth"}, 200, ""},
		{"OPTIONS is answered 204 with Allow", "OPTIONS", readable, 204, "GET, HEAD, OPTIONS"},
		{"OPTIONS of auth is answered 204 with Allow", "OPTIONS", []string{"/auth"}, 204, "POST, OPTIONS"},
		{"another method is 405 with Allow", "POST PUT PATCH DELETE TRACE get", readable, 405, "GET, HEAD, OPTIONS"},
		{"another method of auth is 405 with Allow", "GET HEAD PUT PATCH DELETE post", []string{"/auth"}, 405, "POST, OPTIONS"},
		{"another path is 404", "GET HEAD POST DELETE OPTIONS", []string{"/foo", "/auth/", "/auth/x", "/Auth", "/.well-known",
			"/.well-known/", jwksPath + "/", discoveryPath + "/x", "/jwks.json", "/faults/", "/tenant/auth"}, 404, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, path := range test.paths {
				for method := range strings.FieldsSeq(test.methods) {
					w := s.do(method, path, "")
					switch test.wantStatus {
					case http.StatusNotFound:
						w.checkError(t, method+" "+path, 404, "not_found")
					case http.StatusMethodNotAllowed:
						w.checkError(t, method+" "+path, 405, "method_not_allowed")
					}
					if got := w.header.Get("Allow"); w.status != test.wantStatus || got != test.wantAllow {
						t.Errorf("%s %s = %d, Allow %q; want %d, %q", method, path, w.status, got, test.wantStatus, test.wantAllow)
					}
					if got := w.header.Get("X-Content-Type-Options"); got != "nosniff" {
						t.Errorf("%s %s: X-Content-Type-Options = %q; want nosniff", method, path, got)
					}
				}
			}
		})
	}
	t.Run("the root says that the server runs", func(t *testing.T) {
		w := s.do("GET", "/", "")
		if w.body != "JWKS Server Running!" || w.header.Get("Content-Type") != "text/plain" {
			t.Errorf("GET / = %q, %v; want exactly JWKS Server Running!, text/plain", w.body, w.header)
		}
	})
	t.Run("an unclean path is redirected", func(t *testing.T) {
		for path, want := range map[string]string{"//auth": "/auth", "/./auth": "/auth", "/x/../auth": "/auth", "//.well-known//jwks.json": jwksPath} {
			w := s.do("POST", path, "")
			if got := w.header.Get("Location"); w.status/100 != 3 || got != want || strings.Contains(w.body, "token") {
				t.Errorf("POST %s = %d to %s, %s; want a redirection to %s", path, w.status, got, w.body, want)
			}
		}
	})
	t.Run("HEAD is answered as GET is", func(t *testing.T) {
		for _, path := range append(readable, "/foo") {
			for _, tag := range []string{`"x"`, "*"} {
				want, got := s.do("GET", path, "", "If-None-Match", tag), s.do("HEAD", path, "", "If-None-Match", tag)
				if checkHeader(t, "HEAD "+path, got.header, want.header); got.status != want.status {
					t.Errorf("HEAD %s = %d; want %d", path, got.status, want.status)
				}
			}
		}
	})
}

func TestIssuerPath(t *testing.T) {
	t.Run("the routes answer under the path of the issuer too", func(t *testing.T) {
		s := newServerWithKey(t, "-issuer", "https://a.test/tenant/a")
		for _, path := range []string{"/tenant/a/", "/tenant/a" + jwksPath, "/tenant/a" + discoveryPath, "/tenant/a/faults",
			"/tenant/a/faults/jwks.json", oauthPath + "/tenant/a", "/tenant/a" + oauthPath, "/", jwksPath, discoveryPath, oauthPath, "/faults"} {
			if w := s.do("GET", path, ""); w.status != 200 {
				t.Errorf("GET %s = %d; want 200", path, w.status)
			}
		}
		for _, path := range []string{"/tenant/a/auth", "/auth"} {
			if w := s.do("POST", path, ""); w.status != 200 {
				t.Errorf("POST %s = %d; want 200", path, w.status)
			}
		}
		s.do("GET", "/tenant"+jwksPath, "").checkError(t, "another tenant", 404, "not_found")
	})
	for _, test := range []struct{ name, path, wantPath string }{
		{"a brace is no wildcard", "/a%7Bb%7D", "/a%7Bb%7D/auth"},
		{"a raw brace is no wildcard", "/{a}/{$}/{b...}", "/%7Ba%7D/%7B$%7D/%7Bb...%7D/auth"},
		{"a blank is no method", "/GET a", "/GET%20a/auth"},
		{"a slash may be escaped", "/a%2Fb", "/a%2Fb/auth"},
		{"letters may be of any alphabet", "/é", "/%C3%A9/auth"},
		{"it may be that of a route", "/auth", "/auth/auth"},
		{"it may be that of the catalogue", "/faults", "/faults/auth"},
		{"it may be that of the metadata", oauthPath, oauthPath + "/auth"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newServerWithKey(t, "-issuer", "https://a.test"+test.path)
			if w := s.do("POST", test.wantPath, ""); w.status != 200 {
				t.Errorf("POST %s = %d %s; want 200", test.wantPath, w.status, w.body)
			}
			if _, claims := parts(t, s.token(t, "", "")); claims["iss"] != "https://a.test"+test.path {
				t.Errorf("iss = %v; want %s", claims["iss"], "https://a.test"+test.path)
			}
		})
	}
}

func TestIssuerByRequest(t *testing.T) {
	ask := func(t *testing.T, s *testServer, host string, secure bool) (iss, discovered, jwksURI, jku any) {
		t.Helper()
		send := func(method, path string) response {
			r := httptest.NewRequest(method, path, nil)
			r.Host = host
			r.Header.Set("X-Forwarded-Host", "forwarded.test")
			r.Header.Set("X-Forwarded-Proto", "https")
			r.Header.Set("Forwarded", "host=forwarded.test;proto=https")
			if secure {
				r.TLS = &tls.ConnectionState{}
			}
			return s.send(r)
		}
		_, claims := parts(t, send("POST", "/auth").token(t))
		header, _ := parts(t, send("POST", "/auth?fault=jku").token(t))
		metadata := send("GET", discoveryPath).json(t)
		equal(t, "the issuer in both documents", send("GET", oauthPath).json(t)["issuer"], metadata["issuer"])
		return claims["iss"], metadata["issuer"], metadata["jwks_uri"], header["jku"]
	}
	byRequest := newServerWithKey(t)
	byRequest.issuer, byRequest.base = "", "http://localhost:8080"
	fixed := newServerWithKey(t, "-issuer", "https://fixed.test")
	slash := newServerWithKey(t, "-issuer", "https://tenant.test/")
	for _, test := range []struct {
		name       string
		s          *testServer
		host       string
		secure     bool
		wantIssuer string
		wantBase   string // of URLs; the issuer if empty
	}{
		{name: "it is the URL by which the request reached the server", s: byRequest, host: "localhost:49153", wantIssuer: "http://localhost:49153"},
		{name: "it may be the name of a container", s: byRequest, host: "jwks", wantIssuer: "http://jwks"},
		{name: "it may be an address", s: byRequest, host: "[::1]:8080", wantIssuer: "http://[::1]:8080"},
		{name: "it is https with TLS", s: byRequest, host: "localhost:8443", secure: true, wantIssuer: "https://localhost:8443"},
		{name: "it is the base URL if there is no Host, as in HTTP/1.0", s: byRequest, wantIssuer: "http://localhost:8080"},
		{name: "-issuer fixes it", s: fixed, host: "localhost:8080", wantIssuer: "https://fixed.test"},
		{name: "it may end in a slash, which URLs do not double", s: slash, host: "localhost", wantIssuer: "https://tenant.test/", wantBase: "https://tenant.test"},
	} {
		t.Run(test.name, func(t *testing.T) {
			iss, discovered, jwksURI, jku := ask(t, test.s, test.host, test.secure)
			base := cmp.Or(test.wantBase, test.wantIssuer)
			equal(t, "iss", iss, any(test.wantIssuer))
			equal(t, "issuer of the metadata", discovered, any(test.wantIssuer))
			equal(t, "jwks_uri", jwksURI, any(base+jwksPath))
			equal(t, "jku", jku, any(base+"/faults/jwks.json"))
		})
	}
	t.Run("with clients it is the base URL, whatever the request says", func(t *testing.T) {
		c := flags(t)
		c.issuer = ""
		s := newServer(c, "http://localhost:8080", byRequest.store, registry{}, byRequest.server.log)
		r := httptest.NewRequest("GET", discoveryPath, nil)
		r.Host = "evil.test"
		equal(t, "issuer", handlerTarget(s.routes()).send(r).json(t)["issuer"], any("http://localhost:8080"))
	})
}

func TestCORS(t *testing.T) {
	s := newServerWithKey(t)
	fields := []string{"Origin", "https://app.test", "Access-Control-Request-Method", "GET", "Access-Control-Request-Headers", "x-a, x-b"}
	t.Run("any page may read a document", func(t *testing.T) {
		for _, path := range documentPaths {
			for _, method := range []string{"GET", "HEAD", "POST"} { // 405 too, so that the page sees why
				w := s.do(method, path, "", fields...)
				if got := w.header.Get("Access-Control-Allow-Origin"); got != "*" || w.header.Get("Access-Control-Allow-Methods") != "" {
					t.Errorf("%s %s: Access-Control-Allow-Origin = %q, %v; want * and nothing else", method, path, got, w.header)
				}
			}
		}
	})
	t.Run("a preflight of a document allows the headers asked for, for a day", func(t *testing.T) {
		for _, path := range documentPaths {
			checkHeader(t, "OPTIONS "+path, s.do("OPTIONS", path, "", fields...).header, http.Header{
				"Access-Control-Allow-Origin": {"*"}, "Access-Control-Allow-Methods": {"GET, HEAD"},
				"Access-Control-Allow-Headers": {"x-a, x-b"}, "Access-Control-Max-Age": {"86400"},
				"Allow": {"GET, HEAD, OPTIONS"}, "X-Content-Type-Options": {"nosniff"},
			})
			if got := s.do("OPTIONS", path, "", fields[:4]...).header; got["Access-Control-Allow-Headers"] != nil {
				t.Errorf("OPTIONS %s = %v; want no headers allowed that are not asked for", path, got)
			}
		}
	})
	t.Run("no page may take a token", func(t *testing.T) {
		for _, method := range []string{"POST", "OPTIONS", "GET"} {
			for _, query := range []string{"", "?expired=x", "?fault=none"} {
				for name := range s.do(method, "/auth"+query, "", fields...).header {
					if strings.HasPrefix(name, "Access-Control-") {
						t.Errorf("%s /auth%s has the header %s; want no CORS", method, query, name)
					}
				}
			}
		}
	})
}

func TestDocuments(t *testing.T) {
	s := newServerWithKey(t, "-publish-ahead", "48s")
	header := func(w response) http.Header {
		return http.Header{
			"Content-Type": {"application/json"}, "Content-Length": {strconv.Itoa(len(w.body))}, "X-Content-Type-Options": {"nosniff"},
			"Cache-Control": {"public, max-age=2"}, "Etag": {w.header.Get("ETag")}, "Access-Control-Allow-Origin": {"*"},
		}
	}
	t.Run("they may be cached for a part of publish-ahead", func(t *testing.T) {
		for _, path := range documentPaths {
			w := s.do("GET", path, "")
			checkHeader(t, "GET "+path, w.header, header(w))
			if tag := w.header.Get("ETag"); !regexp.MustCompile(`^"[!#-~]{16,}"$`).MatchString(tag) {
				t.Errorf("GET %s: ETag = %s; want a strong one", path, tag)
			}
			if !json.Valid([]byte(w.body)) {
				t.Errorf("GET %s = %s; want JSON", path, w.body)
			}
		}
	})
	full := s.do("GET", jwksPath, "")
	tag := full.header.Get("ETag")
	for _, test := range []struct {
		name       string
		fields     []string // with a line for each header
		wantStatus int
	}{
		{"who has the document is answered 304", []string{tag, "W/" + tag, `"x", ` + tag, `W/"x",W/` + tag + `,"y"`, "\"x\"\t,\t" + tag + "\t", "*", "\"x\"\n" + tag}, 304},
		{"who has another is answered in full", []string{`"x"`, `"x", W/"y"`, "", strings.Trim(tag, `"`), tag[:len(tag)-2] + `"`, "w/" + tag}, 200},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, field := range test.fields {
				r := httptest.NewRequest("GET", jwksPath, nil)
				r.Header["If-None-Match"] = strings.Split(field, "\n")
				got, want, wantBody := s.send(r), header(full), full.body
				if test.wantStatus == 304 {
					want.Del("Content-Type")
					want.Del("Content-Length")
					wantBody = ""
				}
				if got.status != test.wantStatus || got.body != wantBody {
					t.Errorf("If-None-Match %q = %d %s; want %d", field, got.status, got.body, test.wantStatus)
				}
				checkHeader(t, field, got.header, want)
			}
		})
	}
	t.Run("the set is rendered when it changes, and not per request", func(t *testing.T) {
		before, _ := s.store.jwks(t.Context())
		s.do("GET", jwksPath, "")
		if after, _ := s.store.jwks(t.Context()); after != before {
			t.Error("one set was rendered twice")
		}
	})
	t.Run("the ETag changes with the set and with nothing else", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := newServerWithKey(t)
			tag := func(s *testServer) string { return s.do("GET", jwksPath, "").header.Get("ETag") }
			first := tag(s)
			time.Sleep(10 * time.Minute)
			replica := newTestServer(t, "-keys", string(s.store.dir), "-publish-ahead", "1s")
			if got := []string{tag(s), tag(replica)}; got[0] != first || got[1] != first {
				t.Errorf("ETags of one set = %v; want %s", got, first)
			}
			time.Sleep(50 * time.Minute) // the key has expired, so another is made
			if got := tag(s); got == first {
				t.Errorf("ETag of another set = %s, as of the first", got)
			}
		})
	})
}

func TestMetadata(t *testing.T) {
	for _, test := range []struct {
		name                    string
		args                    []string
		wantGrants, wantMethods string
	}{
		{"an open server takes clients that have no secret", nil,
			`["client_credentials","password"]`, `["client_secret_basic","client_secret_post","none"]`},
		{"with clients the only grant is client_credentials", []string{"-clients", clientsFile(t)},
			`["client_credentials"]`, `["client_secret_basic","client_secret_post"]`},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newServerWithKey(t, append(test.args, "-issuer", "https://a.test/a/b")...)
			want := `{"grant_types_supported":` + test.wantGrants + `,"id_token_signing_alg_values_supported":["RS256"],` +
				`"issuer":"https://a.test/a/b","jwks_uri":"https://a.test/a/b/.well-known/jwks.json",` +
				`"response_types_supported":["id_token"],"subject_types_supported":["public"],` +
				`"token_endpoint":"https://a.test/a/b/auth","token_endpoint_auth_methods_supported":` + test.wantMethods + "}\n"
			for _, path := range []string{discoveryPath, oauthPath, "/a/b" + discoveryPath, oauthPath + "/a/b"} {
				if w := s.do("GET", path, ""); w.body != want {
					t.Errorf("GET %s = %s; want %s", path, w.body, want)
				}
			}
		})
	}
}

// send is do for a request that do would not make.
func (to target) send(r *http.Request) response {
	w, _ := to(r)
	body, err := io.ReadAll(w.Body)
	return response{status: w.StatusCode, header: w.Header, body: string(body), err: err}
}

// post sends a query and a body that no well-behaved client would send.
func (to target) post(query, body string) response {
	r := httptest.NewRequest("POST", "/auth", strings.NewReader(body))
	r.URL.RawQuery = query
	return to.send(r)
}

func TestWebPages(t *testing.T) {
	open, closed := newServerWithKey(t), newServerWithKey(t, "-clients", clientsFile(t))
	origins := []string{"https://evil.test", "http://localhost:8080", "null", ""}
	t.Run("an open server refuses every POST from a web page", func(t *testing.T) {
		for _, origin := range origins {
			for _, host := range []string{"localhost", "evil.test", "127.0.0.1"} {
				w := open.do("POST", "/auth", "", "Origin", origin, "Host", host)
				w.checkError(t, "Origin "+origin, 403, "access_denied")
			}
		}
	})
	t.Run("a request of a program needs no special Host", func(t *testing.T) {
		for _, host := range []string{"localhost", "localhost.", "host.docker.internal:8080", "192.0.2.7:80", "[::1]:8080", "evil.test", ""} {
			if w := open.do("POST", "/auth", "", "Host", host); w.status != 200 {
				t.Errorf("POST /auth with the Host %s = %d %s; want 200", host, w.status, w.body)
			}
		}
	})
	t.Run("with clients a page needs a secret, as everyone does", func(t *testing.T) {
		for _, origin := range origins {
			closed.do("POST", "/auth", "", "Origin", origin).checkError(t, "Origin "+origin, 401, "invalid_client")
		}
	})
	t.Run("a page may read documents", func(t *testing.T) {
		if w := open.do("GET", jwksPath, "", "Origin", "https://app.test", "Host", "evil.test"); w.status != 200 {
			t.Errorf("GET %s = %d; want 200", jwksPath, w.status)
		}
	})
}

func TestErrors(t *testing.T) {
	s := newServerWithKey(t)
	t.Run("what they quote has the characters that RFC 6749 allows", func(t *testing.T) {
		for _, query := range []string{"%\"\\", "a=%é", "a=%\u007f\u0080", "fault=\"\\é"} {
			s.post(query, "").checkError(t, query, 400, "invalid_request")
		}
		for _, body := range []string{`sub=%"\`, "sub=%\x00\x01", "sub=%é", "sub=%\u2028", "sub=%\x7f", `{"a":"\x"}`, `{\`, `{"a":é}`, "{\x00", "{\x7f", "{\"a\":\u2028}"} {
			s.post("", body).checkError(t, body, 400, "invalid_request")
		}
	})
	written := func(err error) response {
		w := httptest.NewRecorder()
		s.route("GET", func(http.ResponseWriter, *http.Request) error { return err }).ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
		return response{status: w.Code, header: w.Header(), body: w.Body.String()}
	}
	t.Run("a quotation mark becomes an apostrophe", func(t *testing.T) {
		if w := written(badRequest("not %q", "a")); !strings.Contains(w.body, `"not 'a'"`) {
			t.Errorf("error = %s; want not 'a'", w.body)
		}
	})
	t.Run("any other character is replaced", func(t *testing.T) {
		for r := range rune(0x180) {
			written(badRequest("%c and %s", r, []byte{byte(r)})).checkError(t, fmt.Sprintf("%q", r), 400, "invalid_request")
		}
	})
	t.Run("an internal cause goes to the log alone", func(t *testing.T) {
		w := written(errors.New("hush, the\ncause"))
		w.checkError(t, "a failure", 500, "server_error")
		if strings.Contains(w.body, "hush") || !strings.Contains(s.log.String(), `level=ERROR msg="cannot answer" error="hush, the; cause"`) {
			t.Errorf("a failure = %s, log %s; want the cause in the log alone", w.body, s.log)
		}
	})
	t.Run("a request that waited in vain for a key is not told to ask again in a second", func(t *testing.T) {
		for _, err := range []error{
			fmt.Errorf("%w: %w", errNoKey, context.DeadlineExceeded), fmt.Errorf("%w: %w", errNoKey, context.Canceled),
			fmt.Errorf("%w: %w", errNoKey, errors.New("hush")),
		} {
			w := written(err)
			w.checkError(t, err.Error(), 503, "temporarily_unavailable")
			if !strings.Contains(w.body, "has no key") || strings.Contains(w.body, "busy") || strings.Contains(w.body, "hush") {
				t.Errorf("%v = %s; want to read that there is no key", err, w.body)
			}
		}
	})
	t.Run("without a key there is 503 and never an empty set", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := newServerWithKey(t)
			dir := string(s.store.dir)
			if err := errors.Join(os.RemoveAll(dir), os.WriteFile(dir, nil, 0o600)); err != nil {
				t.Fatal(err)
			}
			for _, test := range []struct {
				wait, request string
				want          int
			}{
				{"45m", "POST /auth", 200}, // the keys in hand keep working
				{"1s", "POST /auth", 503},
				{"0s", "POST /auth?expired=true", 503},
				{"0s", "POST /auth?fault=none", 503},
				{"14m58s", "GET " + jwksPath, 200},
				{"1s", "GET " + jwksPath, 503},
				{"0s", "HEAD " + jwksPath, 503},
				{"0s", "POST /auth", 503},
			} {
				wait, _ := time.ParseDuration(test.wait)
				time.Sleep(wait)
				method, path, _ := strings.Cut(test.request, " ")
				w := s.do(method, path, "")
				if w.status != test.want {
					t.Errorf("%s = %d %s; want %d", test.request, w.status, w.body, test.want)
				}
				if test.want == 503 {
					w.checkError(t, test.request, 503, "temporarily_unavailable")
					if strings.Contains(w.body, "dir") {
						t.Errorf("%s = %s; want no internal cause", test.request, w.body)
					}
				}
			}
		})
	})
}

// A slowReader is a client that does not read its response.
type slowReader struct{ *httptest.ResponseRecorder }

func (r *slowReader) Write(p []byte) (int, error) {
	time.Sleep(15 * time.Second)
	return 0, os.ErrDeadlineExceeded
}

func TestTurns(t *testing.T) {
	takeAll := func(s *testServer) (release func()) {
		for range cap(s.store.turns.turns) {
			release, _ = s.store.turns.acquire(context.Background())
		}
		return release
	}
	bubble := func(name string, test func(*testing.T, *testServer)) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test(t, newServerWithKey(t)) })
		})
	}
	ask := func(t *testing.T, s *testServer, ctx context.Context, path string, wantWait time.Duration) response {
		t.Helper()
		began := time.Now()
		w := s.send(httptest.NewRequestWithContext(ctx, "POST", path, nil))
		if wait := time.Since(began); wait != wantWait {
			t.Errorf("POST %s waited for %s; want %s", path, wait, wantWait)
		}
		return w
	}
	const busy = "temporarily_unavailable"
	bubble("a request waits for its turn for two seconds", func(t *testing.T, s *testServer) {
		takeAll(s)
		for _, path := range []string{"/auth", "/auth?expired=key", "/auth?fault=none"} {
			ask(t, s, t.Context(), path, 2*time.Second).checkError(t, path, 503, busy)
		}
	})
	bubble("when too many wait, the next one is refused after the same two seconds", func(t *testing.T, s *testServer) {
		release := takeAll(s)
		for range cap(s.store.turns.turns) * maxWaiting {
			go s.do("POST", "/auth", "")
		}
		synctest.Wait()
		time.AfterFunc(time.Second, release)
		ask(t, s, t.Context(), "/auth", 2*time.Second).checkError(t, "one more", 503, busy)
	})
	bubble("a turn is over before the answer is written", func(t *testing.T, s *testServer) {
		takeAll(s)()
		for _, path := range []string{"/auth", "/auth?fault=jwk", "/auth?fault=x", "/faults/jwks.json"} {
			method := "POST"
			if path == "/faults/jwks.json" {
				method = "GET"
			}
			s.do(method, path, "") // the untrusted key has been generated afterwards
			for range cap(s.store.turns.turns) + 1 {
				reader := &slowReader{ResponseRecorder: httptest.NewRecorder()}
				go s.routes().ServeHTTP(reader, httptest.NewRequestWithContext(t.Context(), method, path, nil))
			}
			synctest.Wait()
			if w := ask(t, s, t.Context(), "/auth", 0); w.status != 200 {
				t.Errorf("POST /auth beside slow readers of %s = %d %s; want 200", path, w.status, w.body)
			}
		}
		time.Sleep(time.Hour)
	})
	bubble("a client that went away stops waiting", func(t *testing.T, s *testServer) {
		takeAll(s)
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		ask(t, s, ctx, "/auth", 300*time.Millisecond).checkError(t, "a client that went away", 503, busy)
	})
	bubble("nothing is signed for a client that went away", func(t *testing.T, s *testServer) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		ask(t, s, ctx, "/auth", 0).checkError(t, "a client that went away", 503, busy)
	})
	bubble("the clock is read once the turn has come", func(t *testing.T, s *testServer) {
		time.AfterFunc(1700*time.Millisecond, takeAll(s))
		w := ask(t, s, t.Context(), "/auth", 1700*time.Millisecond)
		_, claims := parts(t, w.json(t)["token"].(string))
		if want := json.Number(strconv.FormatInt(time.Now().Unix(), 10)); claims["iat"] != want {
			t.Errorf("iat = %v; want %s, when the turn came", claims["iat"], want)
		}
	})
	bubble("documents need no turn", func(t *testing.T, s *testServer) {
		takeAll(s)
		began := time.Now()
		for _, path := range []string{"/", jwksPath, discoveryPath, "/faults"} {
			if w := s.do("GET", path, ""); w.status != 200 || time.Since(began) != 0 {
				t.Errorf("GET %s = %d after %s; want 200 at once", path, w.status, time.Since(began))
			}
		}
	})
	bubble("no turn is lost, whatever goes wrong", func(t *testing.T, s *testServer) {
		for range cap(s.store.turns.turns) + 1 {
			for path, body := range map[string]string{"/auth": "{", "/auth?fault=no-audience": "", "/auth?expired=true": `{"exp":1e300}`,
				"/auth?fault=x": "", "/auth?expired=x": "", "/auth?x=1": strings.Repeat("x", maxBody+1), "/auth?x=2": "client_secret=a&client_secret=b", "/auth?x=3": "grant_type=x", "/auth?x=4": nested(33)} {
				if w := s.do("POST", path, body); w.status/100 != 4 {
					t.Errorf("POST %s = %d %s; want an error of the client", path, w.status, w.body)
				}
			}
			s.do("GET", "/faults/jwks.json", "")
			s.do("POST", "/auth?fault=none", "")
		}
		if w := ask(t, s, t.Context(), "/auth", 0); w.status != 200 {
			t.Errorf("POST /auth = %d %s; want 200", w.status, w.body)
		}
	})
}

func TestRequestLog(t *testing.T) {
	s := newServerWithKey(t, "-v")
	for _, test := range []struct {
		name, method, path, body string
		want                     string
	}{
		{"a document is logged without its query", "GET", jwksPath + "?x=hush", "", "method=GET path=/.well-known/jwks.json status=200 "},
		{"a token is logged without its query and body", "POST", "/auth?expired=true&x=hush", "username=hush&password=hush", "method=POST path=/auth status=200 "},
		{"an error is logged", "PUT", "/auth?%zz", "", "method=PUT path=/auth status=405 "},
		{"a path cannot break a line", "GET", "/a%0Ab%22?c", "", `method=GET path="/a\nb\"" status=404 `},
		{"a redirection is logged", "GET", "//auth", "", "method=GET path=//auth status=30"},
	} {
		t.Run(test.name, func(t *testing.T) {
			before := len(s.log.String())
			s.do(test.method, test.path, test.body, "Authorization", basic("hush", "hush"))
			got := s.log.String()[before:]
			if !strings.Contains(got, "level=INFO msg=request "+test.want) || strings.Contains(got, "hush") || strings.Count(got, "\n") != 1 {
				t.Errorf("log = %q; want one line with %s and no hush", got, test.want)
			}
		})
	}
	t.Run("without -v no request is logged", func(t *testing.T) {
		s := newServerWithKey(t)
		before := s.log.String()
		s.token(t, "", "")
		s.do("GET", "/foo", "")
		if s.log.String() != before {
			t.Errorf("log = %s; want %s", s.log, before)
		}
	})
}

func TestSlowReadersKeepNobodyFromTokens(t *testing.T) {
	t.Parallel()
	p := startProcess(t, withKey(t, tlsFlags(t)...)...)
	var blocked sync.WaitGroup
	for range 8 {
		blocked.Go(func() { pipelineWithoutReading(t, p) })
	}
	conn := openStreamsWithoutWindow(t, p)
	blocked.Wait()
	for i := range 100 {
		if w := p.do("POST", "/auth", ""); w.status != 200 {
			t.Fatalf("token request %d of 100 = %d %s %v; want 200", i+1, w.status, w.body, w.err)
		}
	}
	must(conn.Write(h2Frame(6, 0, 0, make([]byte, 8)))) // the connection is still open: PING
}

// dialTLS connects to a server by one application protocol.
func dialTLS(t testing.TB, p *process, protocol string) net.Conn {
	t.Helper()
	config := browser.Transport.(*http.Transport).TLSClientConfig.Clone()
	config.NextProtos = []string{protocol}
	tcp := p.dial(t)
	tcp.(*net.TCPConn).SetReadBuffer(2048)
	conn := tls.Client(tcp, config)
	ok(t, conn.Handshake())
	return conn
}

// pipelineWithoutReading sends token requests until the server takes no more of them,
// because it cannot write its responses.
func pipelineWithoutReading(t testing.TB, p *process) {
	body := `{"pad":"` + strings.Repeat("x", 16<<10-10) + `"}`
	conn := dialTLS(t, p, "http/1.1")
	var err error
	for err == nil {
		conn.SetWriteDeadline(time.Now().Add(time.Second))
		_, err = fmt.Fprintf(conn, "POST /auth HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("pipelined requests end with %v; want a server that no longer reads", err)
	}
}

// openStreamsWithoutWindow sends token requests on one HTTP/2 connection, whose window is
// zero, so that the server cannot send their responses.
func openStreamsWithoutWindow(t testing.TB, p *process) net.Conn {
	conn := dialTLS(t, p, "h2")
	go io.Copy(io.Discard, conn)
	field := func(name, value string) string { // a literal, not indexed (RFC 7541 section 6.2.2)
		return "\x00" + string(rune(len(name))) + name + string(rune(len(value))) + value
	}
	body := `{"pad":"` + strings.Repeat("x", 12000) + `"}`
	fields := field(":method", "POST") + field(":scheme", "https") + field(":path", "/auth") + field(":authority", "localhost") +
		field("content-length", strconv.Itoa(len(body)))
	must(io.WriteString(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
	must(conn.Write(h2Frame(4, 0, 0, []byte{0, 4, 0, 0, 0, 0}))) // SETTINGS_INITIAL_WINDOW_SIZE = 0
	for stream := byte(1); stream < 9; stream += 2 {
		must(conn.Write(h2Frame(1, 4, stream, []byte(fields)))) // HEADERS with END_HEADERS
		must(conn.Write(h2Frame(0, 1, stream, []byte(body))))   // DATA with END_STREAM
	}
	return conn
}

// h2Frame returns a frame of HTTP/2 (RFC 9113 section 4.1).
func h2Frame(kind, flags, stream byte, payload []byte) []byte {
	n := len(payload)
	return append([]byte{byte(n >> 16), byte(n >> 8), byte(n), kind, flags, 0, 0, 0, byte(stream)}, payload...)
}

func TestABodyThatIsTooLargeClosesItsConnection(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{nil, {"-v"}} {
		conn := startProcess(t, withKey(t, args...)...).dial(t)
		fmt.Fprintf(conn, "POST /auth HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s", maxBody+1, strings.Repeat("x", maxBody+1))
		wantStatus(t, bufio.NewReader(conn), http.StatusRequestEntityTooLarge, "too large")
		if _, err := io.ReadAll(conn); err != nil {
			t.Errorf("with flags %q the connection stays open after 413: %v", args, err)
		}
	}
}
