package main

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestAProblemIsLoggedOnceAMinuteWithItsCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p problem
		var logged []int
		for range 181 {
			if n := p.add(); n > 0 {
				logged = append(logged, n)
			}
			time.Sleep(time.Second)
		}
		equal(t, "counts", logged, []int{1, 60, 60, 60})
	})
}

// submatches returns the text of the first group of pattern in each of its matches.
func submatches(log, pattern string) (found []string) {
	for _, match := range regexp.MustCompile(pattern).FindAllStringSubmatch(log, -1) {
		found = append(found, match[1])
	}
	return found
}

func TestTheErrorLogHasOneLineAMinuteAndKind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lockedBuffer
		errorLog := newHTTPServer(nil, newLogger(&log, false, slog.LevelInfo)).ErrorLog
		for range 180 {
			errorLog.Print("http: TLS handshake error from 127.0.0.1:1: EOF")
			errorLog.Print("http2: server connection error from 127.0.0.1:1: PROTOCOL_ERROR")
			errorLog.Print("http2: received GOAWAY, starting graceful shutdown")
			errorLog.Print("http: Accept error: too many open files; retrying in 5ms")
			errorLog.Print("http: panic serving 127.0.0.1:1: ouch\ngoroutine 1 [running]:")
			errorLog.Print("http2: panic serving 127.0.0.1:1: ouch\ngoroutine 1 [running]:")
			errorLog.Print("timeout waiting for SETTINGS frames from 127.0.0.1:1")
			time.Sleep(time.Second)
		}
		for _, test := range []struct {
			kind string
			want []string
		}{
			{kind: `level=WARN msg="TLS handshake failed" error="http: TLS`, want: []string{"1", "60", "60"}},
			{kind: `level=WARN msg="HTTP/2 connection failed" error="http2:`, want: []string{"1", "120", "120"}},
			{kind: `level=ERROR msg="cannot accept connections" error="http: Accept`, want: []string{"1", "60", "60"}},
			{kind: `level=ERROR msg="handler panicked" error="http: panic`, want: []string{"1", "60", "60"}},
			{kind: `level=ERROR msg="handler panicked" error="http2: panic`, want: []string{"1", "60", "60"}},
			{kind: `level=WARN msg="HTTP server error" error="timeout`, want: []string{"1", "60", "60"}},
		} {
			equal(t, "counts of "+test.kind, submatches(log.String(), test.kind+`.* count=(\d+)\n`), test.want)
		}
		equal(t, "lines", strings.Count(log.String(), "\n"), 18)
	})
}

func TestAPanicOfAHandlerIsLoggedAsAPanic(t *testing.T) {
	var log lockedBuffer
	server := newHTTPServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("ouch") }), newLogger(&log, false, slog.LevelInfo))
	listener := must(net.Listen("tcp", "127.0.0.1:0"))
	go server.Serve(listener)
	defer server.Close()
	if _, err := http.Get("http://" + listener.Addr().String()); err == nil {
		t.Error("the request is answered")
	}
	panics := submatches(log.String(), `level=ERROR msg="handler panicked" error="http: panic serving \S+ (ouch).*\n`)
	equal(t, "panics", panics, []string{"ouch"})
}

func TestAFloodOfConnectionErrorsLogsOneLineAKind(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name  string
		flood func(*testing.T, *process)
		want  string
	}{
		{name: "TLS handshakes", flood: garbageHandshakes, want: "TLS handshake failed"},
		{name: "HTTP/2 prefaces", flood: bogusPrefaces, want: "HTTP/2 connection failed"},
		{name: "GOAWAY frames", flood: goAwayFrames, want: "HTTP/2 connection failed"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p := startProcess(t, withKey(t, tlsFlags(t)...)...)
			test.flood(t, p)
			p.set(t)
			p.logs(t, test.want)
			p.stop(t, syscall.SIGTERM) // so that the log is complete
			equal(t, "problems", submatches(p.stderr.String(), `level=(?:WARN|ERROR) msg="([^"]*)"`), []string{test.want})
		})
	}
}

func garbageHandshakes(t *testing.T, p *process) {
	for range 50 {
		conn := p.dial(t)
		fmt.Fprint(conn, "\x16\x03\x01\x00\x05garbage")
		io.Copy(io.Discard, conn)
	}
}

// dialHTTP2 returns a TLS connection that has agreed on HTTP/2.
func dialHTTP2(t *testing.T, p *process) *tls.Conn {
	t.Helper()
	conn := tls.Client(p.dial(t), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	ok(t, conn.Handshake())
	equal(t, "protocol", conn.ConnectionState().NegotiatedProtocol, "h2")
	return conn
}

func bogusPrefaces(t *testing.T, p *process) {
	for range 50 {
		conn := dialHTTP2(t, p)
		fmt.Fprint(conn, "a bogus preface that is long enough to be read")
		io.Copy(io.Discard, conn)
	}
}

// frame returns an HTTP/2 frame (RFC 9113 section 4.1).
func frame(kind, flags, stream byte, payload string) string {
	n := len(payload)
	return string([]byte{byte(n >> 16), byte(n >> 8), byte(n), kind, flags, 0, 0, 0, stream}) + payload
}

const http2Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// goAwayFrames opens a stream and sends GOAWAY frames with PROTOCOL_ERROR until the server
// has read them all.
func goAwayFrames(t *testing.T, p *process) {
	const data, headers, settings, goAway, endStream, endHeaders = 0, 1, 4, 7, 1, 4
	conn := dialHTTP2(t, p)
	post := "\x83\x87\x04\x05/auth\x01\x09localhost" // HPACK of :method, :scheme, :path, :authority
	_, err := io.WriteString(conn, http2Preface+frame(settings, 0, 0, "")+frame(headers, endHeaders, 1, post))
	ok(t, err)
	_, err = io.WriteString(conn, strings.Repeat(frame(goAway, 0, 0, "\x00\x00\x00\x00\x00\x00\x00\x01"), 10_000))
	ok(t, err)
	io.WriteString(conn, frame(data, endStream, 1, "sub=abc"))
	response, _ := io.ReadAll(conn) // ends because the server has read a GOAWAY frame
	if !bytes.Contains(response, []byte(`"access_token"`)) {
		t.Errorf("response = %q; want a token", response)
	}
}

func TestALogWriterNeverWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, out := io.Pipe()
		w := newLogWriter(out, false)
		defer close(w.wake)
		line := func(i int) string { return fmt.Sprintf("line %4d %s\n", i, strings.Repeat("x", 1<<10)) }
		io.WriteString(w, line(0))
		synctest.Wait() // it is being written
		const lines = 1000
		for i := 1; i < lines; i++ {
			io.WriteString(w, line(i))
		}
		io.WriteString(w, "a line that would fit, but out of order\n")
		go func() {
			synctest.Wait()
			w.flush()
			io.WriteString(w, line(lines))
			w.flush()
			out.Close()
		}()
		log := string(must(io.ReadAll(in)))
		kept := maxUnwritten / len(line(0))
		for i := range kept + 1 {
			equal(t, "line", strings.Index(log, line(i)), i*len(line(0)))
		}
		rest := log[(kept+1)*len(line(0)):]
		dropped := submatches(rest, `^time=\S+ level=WARN msg="log lines dropped" count=(\d+)\n`)
		equal(t, "lines dropped", dropped, []string{strconv.Itoa(lines - kept)})
		if !strings.HasSuffix(rest, "\n"+line(lines)) || strings.Count(rest, "\n") != 2 {
			t.Errorf("the log goes on with %q; want the line after the dropped ones", rest)
		}
	})
}

func TestTheLineAboutDroppedLinesIsJSONInALogOfJSON(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, out := io.Pipe()
		w := newLogWriter(out, true)
		defer close(w.wake)
		io.WriteString(w, "{}\n")
		synctest.Wait() // it is being written
		w.Write(make([]byte, maxUnwritten))
		io.WriteString(w, "1\n2\n")
		go func() { w.flush(); out.Close() }()
		_, event, _ := strings.Cut(string(must(io.ReadAll(in))), "\x00{")
		equal(t, "event", parseJSON(t, "{"+event)["msg"], any("log lines dropped"))
	})
}

func TestFlushDoesNotWaitForAReaderThatStalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, out := io.Pipe()
		w := newLogWriter(out, false)
		defer close(w.wake)
		io.WriteString(w, "line\n")
		start := time.Now()
		w.flush()
		equal(t, "time of flush", time.Since(start), flushTimeout)
		in.Close()
	})
}

// TestAStalledReaderOfTheLogCostsLogLinesOnly runs a server whose standard error is a pipe
// that nobody reads.
func TestAStalledReaderOfTheLogCostsLogLinesOnly(t *testing.T) {
	t.Parallel()
	clients := putFile(t, fmt.Sprintf(`{"app": {"secret_sha256": "%x"}}`, sha256.Sum256([]byte("secret"))))
	log, stderr, err := os.Pipe()
	ok(t, err)
	defer log.Close()
	cmd := serverCommand(t, "-keys", t.TempDir(), "-key-ttl", "3s", "-token-ttl", "1s", "-publish-ahead", "1s", "-clients", clients, "-v")
	cmd.Stderr = stderr
	p := launch(t, cmd).serving(t)
	stderr.Close()
	kids := map[string]bool{}
	for i := 0; i < 3000 || len(kids) < 3; i++ {
		w := p.do("POST", "/auth", "client_id=app&client_secret=secret")
		if w.status != http.StatusOK {
			t.Fatalf("token request %d = %d %s %v; want 200", i, w.status, w.body, w.err)
		}
		if i%100 == 0 {
			kids[kidOf(t, w.token(t))] = true
			p.set(t).alive(t, "the server", w.token(t))
		}
	}
	p.stop(t, syscall.SIGTERM)
}

func TestAReaderOfTheLogThatGoesOnLearnsWhatItMissed(t *testing.T) {
	t.Parallel()
	log, stderr, err := os.Pipe()
	ok(t, err)
	defer log.Close()
	cmd := serverCommand(t, withKey(t, "-v", "-log-json")...)
	cmd.Stderr = stderr
	p := launch(t, cmd).serving(t)
	stderr.Close()
	requests := 0
	for ; requests < 6000; requests++ { // of about 150 bytes each, beyond the pipe's 64 KiB and the server's 256 KiB
		p.set(t)
	}
	lines := make(chan string)
	go func() {
		defer close(lines)
		content, _ := io.ReadAll(log)
		for line := range strings.Lines(string(content)) {
			lines <- line
		}
	}()
	p.cmd.Process.Signal(syscall.SIGTERM)
	logged, dropped := 0, int64(0)
	want := requests + 1 // a line for each request, and one about the shutdown
	for line := range lines {
		event := parseJSON(t, line)
		switch event["msg"] {
		case "request", "shutting down; a second signal aborts in-flight requests":
			logged++
		case "log lines dropped":
			n, _ := event["count"].(json.Number).Int64()
			dropped += n
		}
	}
	if dropped == 0 || logged+int(dropped) != want {
		t.Errorf("%d lines are logged and %d dropped of %d", logged, dropped, want)
	}
}
