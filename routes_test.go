package main

import (
	"net/http"
	"strings"
	"testing"
)

// documentPaths are those of the documents that any web page may read.
var documentPaths = []string{jwksPath, discoveryPath, oauthPath, "/faults", "/faults/jwks.json"}

func TestRoutes(t *testing.T) {
	s := newServerWithKey(t)
	readable := append([]string{"/"}, documentPaths...)
	const readOnly = "GET, HEAD, OPTIONS"
	post, sets := []string{"/auth"}, []string{setsPath}
	for _, test := range []struct {
		name       string
		methods    []string
		paths      []string
		wantStatus int
		wantAllow  string
		wantError  string
	}{
		{name: "a document answers GET and HEAD", methods: []string{"GET", "HEAD"}, paths: readable, wantStatus: 200},
		{name: "auth answers POST", methods: []string{"POST"}, paths: post, wantStatus: 200},
		{name: "the faults of the set answer GET, HEAD and POST", methods: []string{"GET", "HEAD", "POST"}, paths: sets, wantStatus: 200},
		{name: "OPTIONS is answered 204 with Allow", methods: []string{"OPTIONS"}, paths: readable, wantStatus: 204, wantAllow: readOnly},
		{name: "OPTIONS of auth is answered 204 with Allow", methods: []string{"OPTIONS"}, paths: post,
			wantStatus: 204, wantAllow: "POST, OPTIONS"},
		{name: "OPTIONS of the faults of the set is answered 204 with Allow", methods: []string{"OPTIONS"}, paths: sets,
			wantStatus: 204, wantAllow: "GET, HEAD, POST, OPTIONS"},
		{name: "another method is 405 with Allow", methods: []string{"POST", "PUT", "PATCH", "DELETE", "TRACE", "get"}, paths: readable,
			wantStatus: 405, wantAllow: readOnly, wantError: "method_not_allowed"},
		{name: "another method of auth is 405 with Allow", methods: []string{"GET", "HEAD", "PUT", "PATCH", "DELETE", "post"}, paths: post,
			wantStatus: 405, wantAllow: "POST, OPTIONS", wantError: "method_not_allowed"},
		{name: "another method of the faults of the set is 405 with Allow", paths: sets,
			methods:    []string{"PUT", "PATCH", "DELETE", "TRACE", "get"},
			wantStatus: 405, wantAllow: "GET, HEAD, POST, OPTIONS", wantError: "method_not_allowed"},
		{name: "another path is 404", methods: []string{"GET", "HEAD", "POST", "DELETE", "OPTIONS"}, wantStatus: 404, wantError: "not_found",
			paths: []string{"/foo", "/auth/", "/auth/x", "/Auth", "/.well-known", "/.well-known/", jwksPath + "/", discoveryPath + "/x",
				"/jwks.json", "/faults/", "/tenant/auth"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, path := range test.paths {
				for _, method := range test.methods {
					request := method + " " + path
					w := s.do(method, path, "")
					if test.wantError != "" {
						w.checkError(t, request, test.wantStatus, test.wantError)
					}
					equal(t, request+": status", w.status, test.wantStatus)
					equal(t, request+": Allow", w.header.Get("Allow"), test.wantAllow)
					equal(t, request+": X-Content-Type-Options", w.header.Get("X-Content-Type-Options"), "nosniff")
				}
			}
		})
	}
	t.Run("the root says that the server runs", func(t *testing.T) {
		w := s.do("GET", "/", "")
		equal(t, "body", w.body, "JWKS Server Running!")
		equal(t, "Content-Type", w.header.Get("Content-Type"), "text/plain")
	})
	t.Run("an unclean path is redirected", func(t *testing.T) {
		for path, want := range map[string]string{
			"//auth": "/auth", "/./auth": "/auth", "/x/../auth": "/auth", "//.well-known//jwks.json": jwksPath,
		} {
			w := s.do("POST", path, "")
			equal(t, path+": status", w.status, 307)
			equal(t, path+": Location", w.header.Get("Location"), want)
			equal(t, path+": the body has a token", strings.Contains(w.body, "token"), false)
		}
	})
	t.Run("HEAD is answered as GET is", func(t *testing.T) {
		for _, path := range append(readable, "/foo") {
			for _, tag := range []string{`"x"`, "*"} {
				want, got := s.do("GET", path, "", "If-None-Match", tag), s.do("HEAD", path, "", "If-None-Match", tag)
				checkHeader(t, "HEAD "+path, got.header, want.header)
				equal(t, "HEAD "+path+": status", got.status, want.status)
			}
		}
	})
}

func TestIssuerPath(t *testing.T) {
	t.Run("the routes answer under the path of the issuer too", func(t *testing.T) {
		s := newServerWithKey(t, "-issuer", "https://a.test/tenant/a")
		for _, path := range []string{"/tenant/a/", "/tenant/a" + jwksPath, "/tenant/a" + discoveryPath, "/tenant/a/faults",
			"/tenant/a/faults/jwks.json", oauthPath + "/tenant/a", "/tenant/a" + oauthPath, "/", jwksPath, discoveryPath, oauthPath, "/faults"} {
			equal(t, "GET "+path, s.do("GET", path, "").status, 200)
		}
		for _, path := range []string{"/tenant/a/auth", "/auth"} {
			equal(t, "POST "+path, s.do("POST", path, "").status, 200)
		}
		s.do("GET", "/tenant"+jwksPath, "").checkError(t, "another tenant", 404, "not_found")
	})
	for _, test := range []struct{ name, path, wantPath string }{
		{name: "a brace is not a wildcard", path: "/a%7Bb%7D", wantPath: "/a%7Bb%7D/auth"},
		{name: "an unescaped brace is not a wildcard", path: "/{a}/{$}/{b...}", wantPath: "/%7Ba%7D/%7B$%7D/%7Bb...%7D/auth"},
		{name: "a word before a blank is not a method", path: "/GET a", wantPath: "/GET%20a/auth"},
		{name: "a slash may be escaped", path: "/a%2Fb", wantPath: "/a%2Fb/auth"},
		{name: "letters may be of any alphabet", path: "/é", wantPath: "/%C3%A9/auth"},
		{name: "it may be the path of a route", path: "/auth", wantPath: "/auth/auth"},
		{name: "it may be the path of the catalogue", path: "/faults", wantPath: "/faults/auth"},
		{name: "it may be the path of the metadata", path: oauthPath, wantPath: oauthPath + "/auth"},
		{name: "it may end in a slash", path: "/a/", wantPath: "/a/auth"},
		{name: "it may be a slash", path: "/", wantPath: "/auth"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newServerWithKey(t, "-issuer", "https://a.test"+test.path)
			equal(t, "POST "+test.wantPath, s.do("POST", test.wantPath, "").status, 200)
			_, claims := parts(t, s.token(t, "", ""))
			equal(t, "iss", claims["iss"], any("https://a.test"+test.path))
		})
	}
}

func TestCORS(t *testing.T) {
	s := newServerWithKey(t)
	fields := []string{"Origin", "https://app.test", "Access-Control-Request-Method", "GET", "Access-Control-Request-Headers", "x-a, x-b"}
	documents := map[string]string{ // and what they allow
		"/faults/x5u.pem": "GET, HEAD, OPTIONS", setsPath: "GET, HEAD, POST, OPTIONS",
	}
	for _, path := range documentPaths {
		documents[path] = "GET, HEAD, OPTIONS"
	}
	t.Run("any page may read a document", func(t *testing.T) {
		for path := range documents {
			for _, method := range []string{"GET", "HEAD", "POST"} { // 405 too, so that the page sees why
				w := s.do(method, path, "", fields...)
				equal(t, method+" "+path+": Access-Control-Allow-Origin", w.header.Get("Access-Control-Allow-Origin"), "*")
				equal(t, method+" "+path+": Access-Control-Allow-Methods", w.header.Get("Access-Control-Allow-Methods"), "")
			}
		}
	})
	t.Run("any page may read the documents of a server with clients", func(t *testing.T) {
		closed := newServerWithKey(t, "-clients", clientsFile(t))
		for _, path := range []string{jwksPath, discoveryPath, oauthPath} {
			w := closed.do("GET", path, "", fields...)
			equal(t, path+": Access-Control-Allow-Origin", w.header.Get("Access-Control-Allow-Origin"), "*")
		}
	})
	t.Run("a preflight of a document allows the headers asked for, for a day", func(t *testing.T) {
		for path, allow := range documents {
			checkHeader(t, "OPTIONS "+path, s.do("OPTIONS", path, "", fields...).header, http.Header{
				"Access-Control-Allow-Origin": {"*"}, "Access-Control-Allow-Methods": {"GET, HEAD"},
				"Access-Control-Allow-Headers": {"x-a, x-b"}, "Access-Control-Max-Age": {"86400"},
				"Allow": {allow}, "X-Content-Type-Options": {"nosniff"},
			})
			without := s.do("OPTIONS", path, "", fields[:4]...)
			equal(t, "headers allowed that were not requested", without.header.Get("Access-Control-Allow-Headers"), "")
		}
	})
	t.Run("no page may take a token, or read anything else that is no document", func(t *testing.T) {
		for _, method := range []string{"POST", "OPTIONS", "GET"} {
			for _, path := range []string{"/auth", "/auth?expired=x", "/auth?fault=none", "/", "/faults/reads"} {
				for name := range s.do(method, path, "", fields...).header {
					if strings.HasPrefix(name, "Access-Control-") {
						t.Errorf("%s %s has the header %s; want no CORS", method, path, name)
					}
				}
			}
		}
	})
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
			equal(t, "POST /auth with the Host "+host, open.do("POST", "/auth", "", "Host", host).status, 200)
		}
	})
	t.Run("with clients a page needs a secret, as everyone does", func(t *testing.T) {
		for _, origin := range origins {
			closed.do("POST", "/auth", "", "Origin", origin).checkError(t, "Origin "+origin, 401, "invalid_client")
		}
	})
	t.Run("a page may read documents", func(t *testing.T) {
		equal(t, "status", open.do("GET", jwksPath, "", "Origin", "https://app.test", "Host", "evil.test").status, 200)
	})
}

func TestRequestLog(t *testing.T) {
	s := newServerWithKey(t, "-v")
	for _, test := range []struct {
		name, method, path, body string
		want                     string
	}{
		{"a document is logged without its query", "GET", jwksPath + "?x=hush", "", "method=GET path=/.well-known/jwks.json status=200 "},
		{"a token is logged without its query and body", "POST", "/auth?expired=true&x=hush", "username=hush&password=hush",
			"method=POST path=/auth status=200 "},
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
