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
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

const oauthPath = "/.well-known/oauth-authorization-server"

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
		{name: "it is the URL by which the request reached the server", s: byRequest, host: "localhost:49153",
			wantIssuer: "http://localhost:49153"},
		{name: "it may be the name of a container", s: byRequest, host: "jwks", wantIssuer: "http://jwks"},
		{name: "it may be an address", s: byRequest, host: "[::1]:8080", wantIssuer: "http://[::1]:8080"},
		{name: "it is https with TLS", s: byRequest, host: "localhost:8443", secure: true, wantIssuer: "https://localhost:8443"},
		{name: "it is the base URL if there is no Host, as in HTTP/1.0", s: byRequest, wantIssuer: "http://localhost:8080"},
		{name: "it is the base URL if the Host is none", s: byRequest, host: "a/b?c#d", wantIssuer: "http://localhost:8080"},
		{name: "it is the base URL if the Host is not UTF-8", s: byRequest, host: "J\xfcrgen", wantIssuer: "http://localhost:8080"},
		{name: "-issuer fixes it", s: fixed, host: "localhost:8080", wantIssuer: "https://fixed.test"},
		{name: "it may end in a slash, which URLs do not double", s: slash, host: "localhost",
			wantIssuer: "https://tenant.test/", wantBase: "https://tenant.test"},
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
		tags       [][]string // values of If-None-Match
		wantStatus int
	}{
		{name: "a client that has the document is answered 304", wantStatus: 304, tags: [][]string{{tag}, {"W/" + tag}, {`"x", ` + tag},
			{`W/"x",W/` + tag + `,"y"`}, {"\"x\"\t,\t" + tag + "\t"}, {"*"}, {`"x"`, tag}}},
		{name: "a client that has another is answered in full", wantStatus: 200, tags: [][]string{{`"x"`}, {`"x", W/"y"`}, {""},
			{strings.Trim(tag, `"`)}, {tag[:len(tag)-2] + `"`}, {"w/" + tag}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, tags := range test.tags {
				r := httptest.NewRequest("GET", jwksPath, nil)
				r.Header["If-None-Match"] = tags
				got, want, wantBody := s.send(r), header(full), full.body
				if test.wantStatus == 304 {
					want.Del("Content-Type")
					want.Del("Content-Length")
					wantBody = ""
				}
				equal(t, fmt.Sprintf("If-None-Match %q: status", tags), got.status, test.wantStatus)
				equal(t, fmt.Sprintf("If-None-Match %q: body", tags), got.body, wantBody)
				checkHeader(t, strings.Join(tags, " and "), got.header, want)
			}
		})
	}
	t.Run("the set is rendered when it changes, and not per request", func(t *testing.T) {
		before, _ := s.store.jwks(t.Context())
		s.do("GET", jwksPath, "")
		after, _ := s.store.jwks(t.Context())
		equal(t, "one set was rendered twice", after != before, false)
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
		{name: "an open server takes clients that have no secret",
			wantGrants: `["client_credentials","password"]`, wantMethods: `["client_secret_basic","client_secret_post","none"]`},
		{name: "with clients the only grant is client_credentials", args: []string{"-clients", clientsFile(t)},
			wantGrants: `["client_credentials"]`, wantMethods: `["client_secret_basic","client_secret_post"]`},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newServerWithKey(t, append(test.args, "-issuer", "https://a.test/a/b")...)
			want := `{"grant_types_supported":` + test.wantGrants + `,"id_token_signing_alg_values_supported":["RS256"],` +
				`"issuer":"https://a.test/a/b","jwks_uri":"https://a.test/a/b/.well-known/jwks.json",` +
				`"response_types_supported":["id_token"],"subject_types_supported":["public"],` +
				`"token_endpoint":"https://a.test/a/b/auth","token_endpoint_auth_methods_supported":` + test.wantMethods + "}\n"
			for _, path := range []string{discoveryPath, oauthPath, "/a/b" + discoveryPath, oauthPath + "/a/b"} {
				equal(t, "GET "+path, s.do("GET", path, "").body, want)
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
		for _, path := range []string{"/auth", "/auth?expired=key", "/auth?fault=none", "/auth?key=new"} {
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
	bubble("a turn covers the signature, and the body is not parsed before it", func(t *testing.T, s *testServer) {
		free := -1
		options := tokenOptions{lifetime: time.Minute, sign: func(d *draft) (string, error) {
			free = len(s.store.turns.turns)
			return d.sign()
		}}
		must(s.issue(httptest.NewRequest("POST", "/auth", nil), options, nil))
		equal(t, "free turns during the signature", free, cap(s.store.turns.turns)-1)
		equal(t, "free turns afterwards", len(s.store.turns.turns), cap(s.store.turns.turns))
		takeAll(s)
		s.do("POST", "/auth", "{").checkError(t, "an invalid body without a turn", 503, busy)
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
				"/auth?fault=x": "", "/auth?expired=x": "", "/auth?x=1": strings.Repeat("x", maxBody+1),
				"/auth?x=2": "client_secret=a&client_secret=b", "/auth?x=3": "grant_type=x", "/auth?x=4": `{"a":"\ud83d"}`} {
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
