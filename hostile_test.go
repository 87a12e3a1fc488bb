package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestHostileClientsHurtNobodyElse(t *testing.T) {
	t.Parallel()
	p := startProcess(t, withKey(t)...)
	t.Run("meanwhile", func(t *testing.T) {
		t.Run("others get responses", func(t *testing.T) {
			t.Parallel()
			for range 100 {
				p.set(t).alive(t, "the server", p.token(t, "", ""))
				time.Sleep(100 * time.Millisecond)
			}
		})
		for _, test := range []struct {
			name, head, more string
			every            time.Duration
			wantStatus       int // 0 if the connection is closed without a response
			want             string
		}{
			{name: "slow headers", head: "GET / HTTP/1.1\r\nHost: localhost\r\nX-A: ", more: "a", every: 300 * time.Millisecond},
			{
				name: "slow body", head: "POST /auth HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10000\r\n\r\n",
				more: "a", every: 300 * time.Millisecond, wantStatus: 400, want: "has to come whole",
			},
			{
				name: "endless header", head: "GET / HTTP/1.1\r\nHost: localhost\r\nX-A: ",
				more: strings.Repeat("a", 4<<10), wantStatus: 431,
			},
			{
				name: "endless body", head: "POST /auth HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n",
				more: "10000\r\n" + strings.Repeat("a", 64<<10) + "\r\n", wantStatus: 413, want: "too large",
			},
		} {
			t.Run(test.name, func(t *testing.T) {
				t.Parallel()
				conn := p.dial(t)
				var sent atomic.Int64
				const most = 256 << 20
				go func() {
					_, err := io.WriteString(conn, test.head)
					for ; err == nil && sent.Load() < most; sent.Add(int64(len(test.more))) {
						time.Sleep(test.every)
						_, err = io.WriteString(conn, test.more)
					}
				}()
				if test.wantStatus > 0 {
					wantStatus(t, bufio.NewReader(conn), test.wantStatus, test.want)
				} else if _, err := io.ReadAll(conn); errors.Is(err, os.ErrDeadlineExceeded) {
					t.Error("the connection stays open")
				}
				if sent.Load() >= most {
					t.Errorf("the server took %d bytes", most)
				}
			})
		}
		t.Run("a flood of token requests", func(t *testing.T) {
			t.Parallel()
			var flood sync.WaitGroup
			for range 60 {
				flood.Go(func() {
					for range 25 {
						w := p.do("POST", "/auth", "")
						busy := w.status == http.StatusServiceUnavailable && w.header.Get("Retry-After") == "1"
						if w.status != http.StatusOK && !busy {
							t.Errorf("POST /auth in the flood = %d %s %v; want 200, or 503 with Retry-After", w.status, w.body, w.err)
						}
					}
				})
			}
			flood.Wait()
		})
		t.Run("garbage", func(t *testing.T) {
			t.Parallel()
			random := rand.NewChaCha8([32]byte{1})
			for n := range 50 {
				garbage := make([]byte, 10+n*40)
				random.Read(garbage)
				conn := p.dial(t)
				conn.Write(garbage)
				conn.(*net.TCPConn).CloseWrite()
				if response, _ := io.ReadAll(conn); len(response) > 0 && !bytes.HasPrefix(response, []byte("HTTP/1.1 4")) {
					t.Errorf("response to garbage = %q; want none, or a status of 4xx", response)
				}
			}
		})
		t.Run("pipelined requests", func(t *testing.T) {
			t.Parallel()
			conn, set := p.dial(t), p.set(t)
			const requests = 100
			var all strings.Builder
			for i := range requests {
				sub := fmt.Sprintf("sub=user-%03d", i)
				fmt.Fprintf(&all, "POST /auth HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s", len(sub), sub)
				all.WriteString("GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n")
			}
			go io.WriteString(conn, all.String())
			responses := bufio.NewReader(conn)
			for i := range requests {
				body := wantStatus(t, responses, http.StatusOK, "token")
				claims, err := set.verify(parseJSON(t, body)["token"].(string))
				ok(t, err)
				equal(t, "sub", claims["sub"], any(fmt.Sprintf("user-%03d", i)))
				wantStatus(t, responses, http.StatusNotFound, "not_found")
			}
		})
		t.Run("path tricks", func(t *testing.T) {
			t.Parallel()
			for _, path := range []string{
				"/auth", "//auth", "/auth/", "/./auth", "/%61uth", "/.well-known/../auth", "/.well-known/%2e%2e/auth", "/auth?method=POST",
				"/auth?expired=true", "/auth%00", "/auth%2f", `/\auth`, "/?auth", "/?expired=key", "/;/auth", "/auth;x", "/AUTH", "///", "/.", "/..",
				"/.well-known/jwks.json/", "/.well-known/", "http://x/auth", "http://x//auth", "*", "/%", "/keys/", "/../keys", "/debug/pprof/",
			} {
				for _, method := range []string{"GET", "HEAD", "OPTIONS", "DELETE", "TRACE", "get", "CONNECT"} {
					conn := p.dial(t)
					fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: localhost\r\nX-HTTP-Method-Override: POST\r\nConnection: close\r\n\r\n", method, path)
					response, err := io.ReadAll(conn)
					ok(t, err)
					if !regexp.MustCompile(`^HTTP/1\.1 [234]`).Match(response) || bytes.Contains(response, []byte("eyJ")) {
						t.Errorf("%s %s = %q; want a response without a token", method, path, response)
					}
					conn.Close()
				}
			}
		})
	})
	if p.ended() || strings.Contains(p.stderr.String(), "panic") {
		t.Errorf("the server ended or panicked:\n%s", &p.stderr)
	}
}

// wantStatus reads a response, checks its status and that its body contains text, and
// returns the body.
func wantStatus(t testing.TB, responses *bufio.Reader, status int, text string) (body string) {
	t.Helper()
	w, err := http.ReadResponse(responses, nil)
	ok(t, err)
	content, err := io.ReadAll(w.Body)
	ok(t, err)
	if w.StatusCode != status || !strings.Contains(string(content), text) {
		t.Errorf("response = %d %s; want %d with %q", w.StatusCode, content, status, text)
	}
	return string(content)
}

func TestClientsThatGoAwayLeaveTheQueue(t *testing.T) {
	t.Parallel()
	p := startProcess(t, withKey(t, "-v")...)
	const requests = 800
	var conns []net.Conn
	for range requests {
		conns = append(conns, p.dial(t))
	}
	p.set(t) // the server accepts connections in order, so it has accepted them all
	for _, conn := range conns {
		io.WriteString(conn, "POST /auth HTTP/1.1\r\nHost: localhost\r\n\r\n")
	}
	for _, conn := range conns {
		conn.(*net.TCPConn).SetLinger(0)
		conn.Close()
	}
	p.set(t).alive(t, "the server after the flood", p.token(t, "", ""))
	eventually(t, "the queue is empty", func() bool {
		before := strings.Count(p.stderr.String(), "path=/auth")
		time.Sleep(200 * time.Millisecond)
		return strings.Count(p.stderr.String(), "path=/auth") == before
	})
	if n := strings.Count(p.stderr.String(), "path=/auth status=200"); n > requests/2 {
		t.Errorf("%d of %d tokens were signed for clients that had gone", n, requests)
	}
}

func TestAnHTTP2ConnectionThatIsNotReadIsClosed(t *testing.T) {
	testTLS() // outside of the bubble
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe() // without a buffer, so that a write waits for a reader
		listener := &pipeListener{connections: make(chan net.Conn), closed: make(chan struct{})}
		secure := &tls.Config{Certificates: testTLS().TLS.Certificates, NextProtos: []string{"h2"}}
		server := newHTTPServer(newServerWithKey(t).routes(), newLogger(t.Output(), false, slog.LevelInfo))
		go server.Serve(tls.NewListener(listener, secure))
		defer server.Close()
		listener.connections <- near
		client := tls.Client(far, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}, MaxVersion: tls.VersionTLS12})
		ok(t, client.Handshake())
		const headers, settings, ping, endStream, endHeaders = 1, 4, 6, 1, 4
		get := "\x82\x87\x84\x01\x09localhost" // HPACK of :method, :scheme, :path, :authority
		start := time.Now()
		_, err := io.WriteString(client, http2Preface+frame(settings, 0, 0, "")+frame(headers, endStream|endHeaders, 1, get))
		for err == nil && time.Since(start) < time.Hour {
			time.Sleep(time.Second)
			_, err = io.WriteString(client, frame(ping, 0, 0, "12345678"))
		}
		equal(t, "error of a write", err, io.ErrClosedPipe)
		equal(t, "it is closed within twice the write timeout", time.Since(start) <= 2*writeTimeout, true)
	})
}
