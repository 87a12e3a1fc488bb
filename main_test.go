package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// hang is how long a test waits for what should come in no time at all.
const hang = 20 * time.Second

func TestMain(m *testing.M) {
	flag.Set("test.parallel", "8") // most of the tests that are parallel wait
	m.Run()
	if dir, err := builds(); err == nil {
		os.RemoveAll(dir)
	}
}

// builds is the directory of the binaries, which any user may execute.
var builds = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "jwks-server")
	return dir, errors.Join(err, os.Chmod(dir, 0o755))
})

func build(name string, args ...string) (string, error) {
	dir, err := builds()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, name)
	if output, err := exec.Command("go", append(append([]string{"build", "-o", path}, args...), ".")...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w: %s", err, output)
	}
	return path, nil
}

var binary = sync.OnceValues(func() (string, error) { return build("jwks-server.exe") })

// fastBinary is a server whose clock is two seconds fast.
var fastBinary = sync.OnceValues(func() (string, error) {
	dir, err := builds()
	if err != nil {
		return "", err
	}
	path, err := filepath.Abs("keystore.go")
	if err != nil {
		return "", err
	}
	source, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	const now = "func clock() time.Time { return time.Now()"
	if !bytes.Contains(source, []byte(now)) {
		return "", errors.New("keystore.go does not have: " + now)
	}
	source = bytes.Replace(source, []byte(now), []byte(now+".Add(2*time.Second)"), 1)
	overlay, _ := json.Marshal(map[string]any{"Replace": map[string]string{path: filepath.Join(dir, "fast.go")}})
	err = errors.Join(os.WriteFile(filepath.Join(dir, "fast.go"), source, 0o600), os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o600))
	if err != nil {
		return "", err
	}
	return build("fast.exe", "-overlay", filepath.Join(dir, "overlay.json"))
})

// A lockedBuffer is a log that is read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// A running is a server that runs, in this process or as a child.
type running struct {
	base string // its URL
	log  lockedBuffer
	cmd  *exec.Cmd     // of a child
	stop func()        // asks it to end
	gone atomic.Bool   // about to be killed
	done chan struct{} // closed once it has ended
	err  error         // what it ended with, then
}

// serveHere calls run, on a port of its own unless args say otherwise.
func serveHere(t *testing.T, args ...string) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s := &running{stop: cancel, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		s.err = run(ctx, append([]string{"-addr", "127.0.0.1:0"}, args...), &s.log)
	}()
	t.Cleanup(func() { cancel(); <-s.done })
	s.listens(t)
	return s
}

// startServer starts the real binary, on a port of its own unless args say otherwise.
func startServer(t testing.TB, args ...string) *running {
	t.Helper()
	s := launch(t, nil, args...)
	s.listens(t)
	return s
}

// launch does not wait until the server listens.
func launch(t testing.TB, attr *syscall.SysProcAttr, args ...string) *running {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, append([]string{"-addr", "127.0.0.1:0"}, args...)...)
	cmd.SysProcAttr = attr
	return startChild(t, cmd)
}

func startChild(t testing.TB, cmd *exec.Cmd) *running {
	t.Helper()
	s := &running{cmd: cmd, done: make(chan struct{})}
	s.cmd.Stderr = &s.log
	s.stop = func() { s.cmd.Process.Signal(os.Interrupt) }
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(s.done)
		s.err = s.cmd.Wait()
	}()
	t.Cleanup(s.kill)
	return s
}

// kill ends a child at once, as kill -9 does.
func (s *running) kill() {
	s.gone.Store(true)
	s.cmd.Process.Kill()
	<-s.done
}

// ended waits until the server has ended, and returns what it ended with.
func (s *running) ended(t *testing.T) error {
	t.Helper()
	select {
	case <-s.done:
		return s.err
	case <-time.After(hang):
		t.Fatalf("still runs; log:\n%s", &s.log)
		return nil
	}
}

var setLine = regexp.MustCompile(`JWK Set: (\S+)/\.well-known/jwks\.json`)

// listens waits until the server has said where it listens.
func (s *running) listens(t testing.TB) {
	t.Helper()
	for begin := time.Now(); ; time.Sleep(2 * time.Millisecond) {
		if found := setLine.FindStringSubmatch(s.log.String()); found != nil {
			s.base = found[1]
			return
		}
		select {
		case <-s.done:
			t.Fatalf("the start failed: %v; log:\n%s", s.err, &s.log)
		default:
		}
		if time.Since(begin) > 2*hang {
			t.Fatalf("the start hangs; log:\n%s", &s.log)
		}
	}
}

func (s *running) addr() string { return s.base[strings.LastIndex(s.base, "/")+1:] }

// says waits until the log has text.
func (s *running) says(t *testing.T, text string) {
	t.Helper()
	eventually(t, "the log says "+text, func() bool { return strings.Contains(s.log.String(), text) })
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for begin := time.Now(); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Since(begin) > hang {
			t.Fatalf("never: %s", what)
		}
	}
}

var browser = &http.Client{
	Timeout:       hang,
	Transport:     &http.Transport{MaxIdleConnsPerHost: 100},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// ask sends a request, its body labelled as curl -d would.
func (s *running) ask(method, target, body string) (*http.Response, string, error) {
	r, err := http.NewRequest(method, s.base+target, strings.NewReader(body))
	if err != nil {
		return nil, "", err
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	response, err := browser.Do(r)
	if err != nil {
		return nil, "", err
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	return response, string(content), err
}

// errStatus is an answer that is not 200; other errors are the connection's.
var errStatus = errors.New("refused")

func (s *running) token() (string, error) {
	response, body, err := s.ask("POST", "/auth", "")
	if err != nil {
		return "", err
	}
	var answer struct{ Token string }
	if err := json.Unmarshal([]byte(body), &answer); err != nil || response.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%w: POST /auth: %d %s", errStatus, response.StatusCode, body)
	}
	return answer.Token, nil
}

func (s *running) set(t *testing.T) (keySet, error) {
	t.Helper()
	response, body, err := s.ask("GET", "/.well-known/jwks.json", "")
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%w: JWK Set: %d %s", errStatus, response.StatusCode, body)
	}
	return parseSet(t, []byte(body)), nil
}

// mustToken and mustSet are for a server that has no excuse.
func (s *running) mustToken(t *testing.T) string {
	t.Helper()
	token, err := s.token()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func (s *running) mustSet(t *testing.T) keySet {
	t.Helper()
	set, err := s.set(t)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// alive verifies tokens that servers issued, by their signatures alone, for their
// clocks may differ. It returns those that have not expired.
func (set keySet) alive(t *testing.T, tokens []string, servers string) []string {
	t.Helper()
	var left, failed []string
	for _, token := range tokens {
		_, err := set.verify(token)
		expired := time.Now().Unix() >= timesOf(t, token).Exp
		switch {
		case err == nil, errors.Is(err, jwt.ErrTokenUsedBeforeIssued) && !expired:
			left = append(left, token)
		case !expired:
			failed = append(failed, fmt.Sprintf("kid %s, %+v: %v", kidOf(t, token), timesOf(t, token), err))
		}
	}
	if failed != nil {
		t.Errorf("%s: %d of %d live tokens are refused: %s", servers, len(failed), len(failed)+len(left), failed[0])
	}
	return left
}

// timesOf returns when a token was issued and expires.
func timesOf(t *testing.T, token string) (times struct{ Iat, Exp int64 }) {
	t.Helper()
	part, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
	if err := errors.Join(err, json.Unmarshal(part, &times)); err != nil {
		t.Fatal(err)
	}
	return times
}

// wholeFiles returns the names of the key files in dir, in their order, each of which
// has to be whole; those that expire meanwhile may go.
func wholeFiles(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".pem") {
			continue
		}
		content, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err == nil {
			_, err = parseKey(e.Name(), content)
		}
		if err != nil {
			t.Errorf("key file %s: %v", e.Name(), err)
		}
		names = append(names, e.Name())
	}
	return names
}

func leftovers(t *testing.T, dir string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, unfinished))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// oneKey are flags that make a single key, for tests that are about something else.
var oneKey = []string{"-keys", "", "-key-ttl", "1000h", "-publish-ahead", "1s"}

func TestStopAnswersRequestsInFlight(t *testing.T) {
	t.Parallel()
	s := serveHere(t, oneKey...)
	conn := dial(t, s)
	fmt.Fprint(conn, "POST /auth HTTP/1.1\r\nHost: x\r\nContent-Length: 13\r\nExpect: 100-continue\r\n\r\n")
	answers := bufio.NewReader(conn)
	if line, _ := answers.ReadString('\n'); !strings.Contains(line, "100 Continue") {
		t.Fatalf("the server does not wait for the body: %q", line)
	}
	answers.ReadString('\n')
	fmt.Fprint(conn, `{"sub":`)
	s.stop()
	s.says(t, "stopping")
	eventually(t, "a new connection is refused", func() bool {
		another, err := net.Dial("tcp", s.addr())
		if err == nil {
			another.Close()
		}
		return err != nil
	})
	fmt.Fprint(conn, `"abc"}`)
	response, err := http.ReadResponse(answers, nil)
	if err != nil {
		t.Fatalf("a request in flight was cut off: %v", err)
	}
	if body, err := io.ReadAll(response.Body); err != nil || response.StatusCode != http.StatusOK {
		t.Errorf("a request in flight: %d %s %v", response.StatusCode, body, err)
	}
	if err := s.ended(t); err != nil {
		t.Errorf("run = %v; want nil", err)
	}
}

func dial(t *testing.T, s *running) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", s.addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(2 * hang))
	return conn
}

func TestFlagsThatWouldHurtAreRefused(t *testing.T) {
	for _, test := range []struct{ args, want string }{
		{"-token-ttl 999ms", "-token-ttl 999ms is too short: a token has to live for 1s at least"},
		{"-token-ttl -1s", "-token-ttl -1s is too short"},
		{"-key-ttl 19m59s", "-key-ttl 19m59s is too short: a key has to live for twice a token's -token-ttl 10m0s"},
		{"-key-ttl -1h", "-key-ttl -1h0m0s is too short"},
		{"-token-ttl 31m", "-key-ttl 1h0m0s is too short"},
		{"-token-ttl 2000000h -key-ttl 2000000h", "is too short"},
		{"-publish-ahead 999ms", "-publish-ahead 999ms is too short: a key has to be known for 1s at least before it signs"},
		{"-publish-ahead 75h0m1s", "-publish-ahead 75h0m1s is too long: a key signs for 45m0s, and 100 of them are the most"},
		{"-key-bits 1024", "-key-bits 1024 is not supported: use 2048, 3072 or 4096"},
		{"-key-bits 2049", "-key-bits 2049 is not supported"},
		{"-clients=", "for flag -clients: it has to name a file"},
		{"-tls-cert= -tls-key=", "for flag -tls-cert: it has to name a file"},
		{"-tls-cert a.pem -tls-key=", "for flag -tls-key: it has to name a file"},
		{"-tls-cert a.pem", "-tls-cert and -tls-key need each other"},
		{"-tls-key a.pem", "-tls-cert and -tls-key need each other"},
		{"-issuer https://a.test?q", `-issuer "https://a.test?q" is not an issuer: it has to be an http or https URL without user, query, fragment and slash at its end`},
		{"-issuer https://a.test?", "is not an issuer"},
		{"-issuer https://a.test#f", "is not an issuer"},
		{"-issuer https://a.test#", "is not an issuer"},
		{"-issuer https://user@a.test", "is not an issuer"},
		{"-issuer https://a.test/", "is not an issuer"},
		{"-issuer https://a.test/x/", "is not an issuer"},
		{"-issuer ftp://a.test", "is not an issuer"},
		{"-issuer a.test", "is not an issuer"},
		{"-issuer https:a.test", "is not an issuer"},
		{"-issuer https://", "is not an issuer"},
		{"-issuer https://a.test/%zz", "is not an issuer"},
		{"-nonsense", "not defined: -nonsense"},
		{"-key-ttl soon", `invalid value "soon" for flag -key-ttl`},
		{"-key-bits many", `invalid value "many" for flag -key-bits`},
		{"-v stray", `"stray" is not a flag`},
	} {
		var log lockedBuffer
		dir := filepath.Join(t.TempDir(), "keys")
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // a server that starts nonetheless stops at once
		err := run(ctx, append([]string{"-addr", "127.0.0.1:0", "-keys", dir}, strings.Fields(test.args)...), &log)
		if usage := (usageError{}); !errors.As(err, &usage) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("run %s: %v; want a usage error with %q", test.args, err, test.want)
		}
		if _, err := os.Stat(dir); err == nil || log.String() != "" {
			t.Errorf("run %s: it did something: keys directory %v, log %q", test.args, err, &log)
		}
	}
}

func TestFlagsAtTheirBoundsAreAccepted(t *testing.T) {
	for _, args := range []string{
		"-token-ttl 1s",
		"-token-ttl 1s -key-ttl 2s -publish-ahead 1s",
		"-token-ttl 10m -key-ttl 20m",
		"-publish-ahead 75h",
		"-key-bits 3072",
		"-key-bits 4096",
		"-tls-cert a.pem -tls-key b.pem",
		"-issuer http://a.test",
		"-issuer https://a.test:8443/tenant/a",
		"-issuer http://[::1]:80",
	} {
		testConfig(t, strings.Fields(args)...)
	}
}

// Those of the limits that a client can meet in a test's time are tested as it meets them.
func TestTheServerHasTheLimitsOfTheDesign(t *testing.T) {
	s := newHTTPServer(nil, nil)
	got := []any{s.ReadHeaderTimeout, s.ReadTimeout, s.WriteTimeout, s.IdleTimeout, s.MaxHeaderBytes}
	want := []any{5 * time.Second, 10 * time.Second, 15 * time.Second, 60 * time.Second, 16 << 10}
	if !slices.Equal(got, want) {
		t.Errorf("limits = %v; want %v", got, want)
	}
}

func TestHelpListsEveryFlag(t *testing.T) {
	t.Parallel()
	code, _, output := runBinary(t, "-h")
	if code != 0 {
		t.Errorf("-h: exit code %d; want 0", code)
	}
	for _, name := range []string{"addr", "keys", "key-ttl", "key-bits", "token-ttl", "publish-ahead", "issuer", "audience", "clients", "tls-cert", "tls-key", "v"} {
		if !strings.Contains(output, "\n  -"+name+"\t") && !strings.Contains(output, "\n  -"+name+" ") {
			t.Errorf("-h does not list -%s:\n%s", name, output)
		}
	}
}

// runBinary runs the real binary until it ends. It returns the exit code, the lines
// that are not the log's, and all of its output.
func runBinary(t *testing.T, args ...string) (code int, lines []string, output string) {
	t.Helper()
	s := launch(t, nil, args...)
	s.ended(t)
	return s.outcome()
}

func (s *running) outcome() (code int, lines []string, output string) {
	output = "\n" + s.log.String()
	for line := range strings.Lines(output[1:]) {
		if !regexp.MustCompile(`^\d{4}/\d\d/\d\d `).MatchString(line) {
			lines = append(lines, line)
		}
	}
	return s.cmd.ProcessState.ExitCode(), lines, output
}

func TestAFailedStartSaysWhyInOneLine(t *testing.T) {
	t.Parallel()
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("[]"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		args []string
		code int
		want []string
	}{
		{"busy port", []string{"-addr", busy.Addr().String()}, 1, []string{"cannot listen on " + busy.Addr().String(), "in use", "-addr"}},
		{"no such address", []string{"-addr", "127.0.0.1:99999"}, 1, []string{"cannot listen on 127.0.0.1:99999", "-addr"}},
		{"keys directory is a file", []string{"-keys", file}, 1, []string{file, "-keys"}},
		{"no clients file", []string{"-clients", file + "x"}, 1, []string{file + "x"}},
		{"damaged clients file", []string{"-clients", file}, 1, []string{file, "JSON object"}},
		{"no certificate", []string{"-tls-cert", file + "x", "-tls-key", file}, 1, []string{file + "x"}},
		{"unknown flag", []string{"-nonsense"}, 2, []string{"-nonsense", "-h lists the flags"}},
		{"bad value", []string{"-key-ttl", "1s"}, 2, []string{"-key-ttl 1s is too short", "-h lists the flags"}},
	} {
		code, lines, output := runBinary(t, append(slices.Clone(oneKey), test.args...)...)
		if code != test.code || len(lines) != 1 {
			t.Errorf("%s: exit code %d, %d lines beside the log; want %d, 1:%s", test.name, code, len(lines), test.code, output)
		}
		for _, want := range test.want {
			if !slices.ContainsFunc(lines, func(line string) bool {
				return strings.HasPrefix(line, "jwks-server: ") && strings.Contains(line, want)
			}) {
				t.Errorf("%s: the line does not say %q:%s", test.name, want, output)
			}
		}
	}
}

func TestASignalStopsTheServer(t *testing.T) {
	t.Parallel()
	for _, signal := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
		s, begin := startServer(t, oneKey...), time.Now()
		s.cmd.Process.Signal(signal)
		if err := s.ended(t); err != nil {
			t.Errorf("%s: %v; want exit code 0", signal, err)
		}
		if time.Since(begin) >= drain {
			t.Errorf("%s: the server waits for requests, and there are none", signal)
		}
		if _, lines, output := s.outcome(); len(lines) > 0 {
			t.Errorf("%s: more than the log on stderr:%s", signal, output)
		}
	}
}

func TestASignalDuringTheStartIsNoError(t *testing.T) {
	for range 10 { // which of those that wait for it has it first is chance
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if code := exitCode(run(ctx, append([]string{"-addr", "127.0.0.1:0"}, oneKey...), io.Discard)); code != 0 {
			t.Errorf("exit code %d; want 0", code)
		}
	}
}

func TestASecondSignalEndsTheServerAtOnce(t *testing.T) {
	t.Parallel()
	s := startServer(t, oneKey...)
	conn := dial(t, s)
	fmt.Fprint(conn, "POST /auth HTTP/1.1\r\nHost: x\r\nContent-Length: 13\r\nExpect: 100-continue\r\n\r\n")
	conn.Read(make([]byte, 1)) // the request is in flight
	s.cmd.Process.Signal(syscall.SIGTERM)
	s.says(t, "stopping")
	ended := func() bool { // the moment from which a signal counts as the second is not seen
		s.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-s.done:
			return true
		default:
			return false
		}
	}
	eventually(t, "a second signal ends the server", ended)
	if s.cmd.ProcessState.ExitCode() != -1 {
		t.Errorf("the second signal: %v; want an end by signal, with the request in flight", s.err)
	}
}

func TestStartLogTellsWhereAndWhichKeys(t *testing.T) {
	t.Chdir(t.TempDir())
	s := serveHere(t, "-keys", "mine", "-key-ttl", "1000h", "-publish-ahead", "1s")
	dir, err := filepath.Abs("mine")
	if err != nil {
		t.Fatal(err)
	}
	s.says(t, "keys are in "+dir)
	s.says(t, "listening on "+s.addr())
	s.says(t, "JWK Set: http://"+s.addr()+"/.well-known/jwks.json")
	for kid := range s.mustSet(t) {
		s.says(t, "made: key "+kid+" signs from ")
	}
	s.stop()
	s.ended(t)
	again := serveHere(t, "-keys", "mine", "-key-ttl", "1000h", "-publish-ahead", "1s")
	for kid := range again.mustSet(t) {
		again.says(t, "found: key "+kid+" signs from ")
	}
}

func TestLogHasAKeysLifeAndNoSecret(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := serveHere(t, "-keys", dir, "-key-ttl", "2s", "-token-ttl", "1s", "-publish-ahead", "1s", "-v")
	var tokens, secrets []string
	of := map[string]bool{} // kids
	eventually(t, "the log tells a key's life", func() bool {
		for _, target := range []string{"/auth", "/auth?expired=true", "/auth?expired=key"} {
			_, body, err := s.ask("POST", target, `{"sub":"hidden-subject"}`)
			var answer struct{ Token string }
			if err := errors.Join(err, json.Unmarshal([]byte(body), &answer)); err != nil {
				t.Fatal(err)
			}
			tokens = append(tokens, answer.Token)
			if kid := kidOf(t, answer.Token); target == "/auth?expired=key" {
				secrets = append(secrets, kid) // of no key that the log should tell of
			} else {
				of[kid] = true
			}
		}
		for _, name := range wholeFiles(t, dir) {
			content, _ := os.ReadFile(filepath.Join(dir, name))
			if k, err := parseKey(name, content); err == nil {
				secrets = append(secrets, k.private.D.String(), k.private.D.Text(16), k.private.Primes[0].String(), k.private.Primes[0].Text(16))
			}
			if _, lines, ok := bytes.Cut(content, []byte("\n")); ok {
				secrets = append(secrets, string(lines[:64]))
			}
		}
		log := s.log.String()
		for kid := range of {
			if strings.Contains(log, "made: key "+kid) && strings.Contains(log, "takes over: key "+kid) && strings.Contains(log, "expired: key "+kid) {
				return true
			}
		}
		return false
	})
	s.stop()
	s.ended(t)
	log := s.log.String()
	for _, token := range tokens {
		parts := strings.Split(token, ".")
		secrets = append(secrets, parts[1], parts[2][:20])
	}
	for _, secret := range append(secrets, "PRIVATE", "hidden-subject", "?expired") {
		if strings.Contains(log, secret) {
			t.Fatalf("the log has a secret, %q:\n%s", secret, log)
		}
	}
}

func TestDefaultIssuerIsTheURLListenedOn(t *testing.T) {
	t.Parallel()
	clients := filepath.Join(t.TempDir(), "clients.json")
	entry := `{"a": {"secret_sha256": "` + strings.Repeat("ab", 32) + `"}}`
	if err := os.WriteFile(clients, []byte(entry), 0o600); err != nil {
		t.Fatal(err)
	}
	tls := httptest.NewUnstartedServer(nil)
	tls.StartTLS()
	defer tls.Close()
	certificate := tls.TLS.Certificates[0]
	der, err := x509.MarshalPKCS8PrivateKey(certificate.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, key := filepath.Join(t.TempDir(), "cert.pem"), filepath.Join(t.TempDir(), "key.pem")
	err = errors.Join(
		os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Certificate[0]}), 0o600),
		os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, args, issuer string // issuer without its port
		warns              bool
	}{
		{"loopback", "", "http://127.0.0.1", false},
		{"wildcard", "-addr :0", "http://localhost", true},
		{"wildcard with clients", "-addr 0.0.0.0:0 -clients " + clients, "http://localhost", false},
		{"TLS", "-tls-cert " + cert + " -tls-key " + key, "https://127.0.0.1", false},
		{"given", "-issuer https://issuer.test/a", "https://issuer.test/a", false},
	} {
		s := serveHere(t, append(slices.Clone(oneKey), strings.Fields(test.args)...)...)
		s.says(t, "tokens: ")
		want := test.issuer
		if test.name != "given" {
			_, port, _ := net.SplitHostPort(s.addr())
			want += ":" + port
		}
		s.says(t, "issuer "+want+"\n")
		get := browser
		if test.name == "TLS" {
			get = tls.Client()
		}
		response, err := get.Get(strings.Replace(s.base, "localhost", "127.0.0.1", 1) + "/.well-known/openid-configuration")
		if err != nil {
			t.Fatal(err)
		}
		var metadata struct{ Issuer string }
		if err := json.NewDecoder(response.Body).Decode(&metadata); err != nil || metadata.Issuer != want {
			t.Errorf("%s: issuer = %q, %v; want %q", test.name, metadata.Issuer, err, want)
		}
		response.Body.Close()
		s.stop()
		s.ended(t)
		if warns := strings.Contains(s.log.String(), "warning"); warns != test.warns {
			t.Errorf("%s: warns = %t; want %t:\n%s", test.name, warns, test.warns, &s.log)
		}
	}
}

func TestKill9AtAnyMomentLosesNoToken(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	flags := []string{"-keys", dir, "-key-ttl", "3s", "-token-ttl", "1s", "-publish-ahead", "1s"}
	var tokens []string
	verified := 0
	for range 100 {
		s := startServer(t, flags...)
		tokens = s.mustSet(t).alive(t, tokens, "after a kill")
		verified += len(tokens)
		wholeFiles(t, dir)
		killed := make(chan struct{})
		taken := make(chan []string)
		go func() {
			var tokens []string
			for {
				token, err := s.token()
				select {
				case <-killed:
					taken <- tokens
					return
				default:
				}
				if err != nil {
					t.Errorf("before the kill: %v", err)
					<-killed
				} else {
					tokens = append(tokens, token)
				}
				time.Sleep(2 * time.Millisecond)
			}
		}()
		if random.IntN(32) > 0 {
			time.Sleep(time.Duration(random.IntN(100)) * time.Millisecond)
		} else {
			writing(t, dir, 1500*time.Millisecond)
		}
		close(killed)
		s.kill()
		tokens = append(tokens, <-taken...)
		if random.IntN(3) == 0 { // and while the next one starts and makes keys
			early := launch(t, nil, flags...)
			writing(t, dir, time.Duration(random.IntN(250))*time.Millisecond)
			time.Sleep(time.Duration(random.IntN(6)) * time.Millisecond)
			early.kill()
		}
	}
	t.Logf("%d verifications of tokens that a kill outlived, %d writes cut short", verified, len(leftovers(t, dir)))
	if verified < 100 {
		t.Errorf("only %d tokens outlived a kill", verified)
	}
}

// writing waits until a key file is being written in dir, for some time at most.
func writing(t *testing.T, dir string, most time.Duration) {
	t.Helper()
	before := len(leftovers(t, dir))
	for begin := time.Now(); time.Since(begin) < most && len(leftovers(t, dir)) <= before; {
		time.Sleep(200 * time.Microsecond)
	}
}

// verifyAcross takes tokens from each server and verifies them with the JWK Set of
// another, at once and until they expire, until the time given. With one clock, all
// have to sign with the same key.
func verifyAcross(t *testing.T, until time.Time, servers []*atomic.Pointer[running], oneClock bool) {
	var group sync.WaitGroup
	var count atomic.Int64
	for i := range servers {
		group.Go(func() {
			var tokens []string
			for n := 0; time.Now().Before(until); n++ {
				time.Sleep(25 * time.Millisecond)
				j := (i + 1 + n%(len(servers)-1)) % len(servers)
				from, other := servers[i].Load(), servers[j].Load()
				token, err1 := from.token()
				same, err2 := other.token()
				again, err3 := from.token()
				set, err4 := other.set(t)
				if err := errors.Join(err1, err2, err3, err4); err != nil {
					if errors.Is(err, errStatus) || !from.gone.Load() && !other.gone.Load() {
						t.Errorf("replicas %d and %d: %v", i, j, err)
					}
					continue
				}
				if kid := kidOf(t, token); oneClock && kid == kidOf(t, again) && kid != kidOf(t, same) {
					t.Errorf("replica %d signs with %s, replica %d with %s", i, kid, j, kidOf(t, same))
				}
				tokens = append(tokens, token, again)
				tokens = set.alive(t, tokens, fmt.Sprintf("the set of replica %d, tokens of %d", j, i))
				count.Add(int64(len(tokens)))
			}
		})
	}
	group.Wait()
	t.Logf("%d verifications", count.Load())
	if count.Load() < 100 {
		t.Errorf("only %d verifications", count.Load())
	}
}

func TestReplicasActAsOneWhileOneIsKilledAgainAndAgain(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	flags := []string{"-keys", dir, "-key-ttl", "4s", "-token-ttl", "2s", "-publish-ahead", "6s"}
	var servers []*atomic.Pointer[running]
	for range 3 {
		replica := &atomic.Pointer[running]{}
		replica.Store(startServer(t, flags...))
		servers = append(servers, replica)
		time.Sleep(20 * time.Millisecond) // they look at the directory soon after one another
	}
	time.Sleep(2 * time.Second)
	made := func() (n int) {
		for _, replica := range servers {
			n += strings.Count(replica.Load().log.String(), "made: ")
		}
		return n
	}
	before, gone := made(), 0
	begin := time.Now()
	done := make(chan struct{})
	go func() {
		defer close(done)
		verifyAcross(t, begin.Add(10*time.Second), servers, true)
	}()
	for running := true; running; {
		select {
		case <-done:
			running = false
		case <-time.After(1100 * time.Millisecond):
			old := servers[2].Load()
			old.kill()
			gone += strings.Count(old.log.String(), "made: ")
			servers[2].Store(startServer(t, flags...))
		}
	}
	// One server makes a key a second with these flags, and its directory holds fourteen
	// at most. Two may make one at once, but not each time.
	seconds := int(time.Since(begin).Seconds())
	t.Logf("%d keys made in %d s, %d key files", made()+gone-before, seconds, len(wholeFiles(t, dir)))
	if n := made() + gone - before; n > seconds*3/2 {
		t.Errorf("three replicas made %d keys in %d s; want one for all a second", n, seconds)
	}
	if n := len(wholeFiles(t, dir)); n < 12 || n > 18 {
		t.Errorf("%d key files; want 12 to 14, and a few more at most", n)
	}
}

func TestReplicasThatStartTogetherMakeEachKeyOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var servers []*running
	for range 4 { // a key of this size takes long to make, and each time another time
		servers = append(servers, launch(t, nil, "-keys", dir, "-key-ttl", "1000h", "-publish-ahead", "1s", "-key-bits", "3072"))
	}
	for _, s := range servers {
		s.listens(t)
	}
	if n := len(wholeFiles(t, dir)); n > 2 { // two may be written at the same moment
		t.Errorf("four replicas made %d keys; want one", n)
	}
	eventually(t, "all sign with the same key", func() bool {
		var kids []string
		for _, s := range servers {
			kids = append(kids, kidOf(t, s.mustToken(t)))
		}
		return len(slices.Compact(kids)) == 1
	})
}

func TestReplicasWithClocksTwoSecondsApartVerifyEachOther(t *testing.T) {
	t.Parallel()
	path, err := fastBinary()
	if err != nil {
		t.Fatal(err)
	}
	flags := []string{"-addr", "127.0.0.1:0", "-keys", t.TempDir(), "-key-ttl", "8s", "-token-ttl", "4s", "-publish-ahead", "6s"}
	fast, exact := startChild(t, exec.Command(path, flags...)), startServer(t, flags...) // at once, over an empty directory
	fast.listens(t)
	time.Sleep(2 * time.Second)
	servers := []*atomic.Pointer[running]{{}, {}}
	servers[0].Store(fast)
	servers[1].Store(exact)
	verifyAcross(t, time.Now().Add(12*time.Second), servers, false)
	if ahead := timesOf(t, fast.mustToken(t)).Iat - timesOf(t, exact.mustToken(t)).Iat; ahead < 1 || ahead > 3 {
		t.Errorf("the fast clock is %d s fast; want 2", ahead)
	}
}

func TestAnEmptiedDirectoryIsFilledAgain(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "keys")
	s := startServer(t, "-keys", dir)
	token, before := s.mustToken(t), wholeFiles(t, dir)
	empty(t, dir)
	eventually(t, "the key files are back", func() bool { return slices.Equal(wholeFiles(t, dir), before) })
	s.mustSet(t).alive(t, []string{token, s.mustToken(t)}, "emptied directory")
	if n := len(s.mustSet(t)); n != len(before) {
		t.Errorf("the set has %d keys; want %d", n, len(before))
	}
	s.says(t, "stored again")
}

// empty puts an empty directory in the place of dir, as a disk does that is mounted anew.
func empty(t *testing.T, dir string) {
	t.Helper()
	if err := errors.Join(os.Rename(dir, dir+".away"), os.Mkdir(dir, 0o700)); err != nil {
		t.Fatal(err)
	}
}

func TestRemovingAFileRevokesItsKey(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, replica := startServer(t, "-keys", dir), startServer(t, "-keys", dir)
	revoked := map[string]bool{}
	for i, removal := range []struct {
		which string
		left  int // keys, when the queue is full again; a few more if both make one at once
	}{{"last", 3}, {"last", 3}, {"first", 2}, {"last", 2}} {
		which, left := removal.which, removal.left
		names := wholeFiles(t, dir)
		name := names[0]
		if which == "last" {
			name = names[len(names)-1]
		}
		kid := strings.Split(name, ".")[1]
		if which == "first" && kidOf(t, s.mustToken(t)) != kid {
			t.Fatalf("the first key does not sign")
		}
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		revoked[kid] = true
		eventually(t, fmt.Sprintf("removal %d: the %s key is revoked, and the queue is full", i, which), func() bool {
			a, b := s.mustSet(t), replica.mustSet(t)
			return a[kid] == nil && b[kid] == nil && len(a) >= left && len(b) >= left
		})
		if which == "first" && kidOf(t, s.mustToken(t)) != strings.Split(names[1], ".")[1] {
			t.Errorf("after the revocation the next key does not sign")
		}
		for _, s := range []*running{s, replica} {
			for kid := range s.mustSet(t) {
				if revoked[kid] {
					t.Errorf("the key %s is back after its revocation; log:\n%s", kid, &s.log)
				}
			}
		}
	}
}

func TestLeftoversOfACrashAreSweptOnceDead(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name string, age time.Duration) {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		then := time.Now().Add(-age)
		if err := os.Chtimes(path, then, then); err != nil {
			t.Fatal(err)
		}
	}
	write(".jwks-server-1.tmp", 61*time.Minute)
	write(".jwks-server-2.tmp", 59*time.Minute)
	foreign := []string{".gitignore", ".other-1.tmp", "jwks-server-1.tmp", "README", "key.pem.bak"}
	for _, name := range foreign {
		write(name, 1000*time.Hour)
	}
	s := startServer(t, "-keys", dir, "-key-ttl", "1000h", "-publish-ahead", "1s")
	time.Sleep(1500 * time.Millisecond) // a look or two
	s.mustToken(t)
	for _, name := range append(foreign, ".jwks-server-2.tmp") {
		if _, err := os.Lstat(filepath.Join(dir, name)); err != nil {
			t.Errorf("%s: %v; want it left alone", name, err)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, ".jwks-server-1.tmp")); err == nil {
		t.Error("a temporary file more than an hour old was not swept")
	}
}

func TestHostileClientsHurtNobodyElse(t *testing.T) {
	t.Parallel()
	s := startServer(t, oneKey...)
	t.Run("meanwhile", func(t *testing.T) {
		t.Run("others are answered", func(t *testing.T) {
			t.Parallel()
			for range 100 {
				s.mustSet(t).alive(t, []string{s.mustToken(t)}, "others")
				time.Sleep(100 * time.Millisecond)
			}
		})
		t.Run("slow headers", func(t *testing.T) {
			t.Parallel()
			conn := dial(t, s)
			fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: x\r\nX-A: ")
			trickle(conn)
			if _, err := io.ReadAll(conn); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("a connection with a header that never ends stays open")
			}
		})
		t.Run("slow body", func(t *testing.T) {
			t.Parallel()
			conn := dial(t, s)
			fmt.Fprint(conn, "POST /auth HTTP/1.1\r\nHost: x\r\nContent-Length: 10000\r\n\r\n")
			trickle(conn)
			answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatalf("a body that never ends: %v", err)
			}
			if body, _ := io.ReadAll(answer.Body); answer.StatusCode != http.StatusBadRequest || !strings.Contains(string(body), "has to come whole") {
				t.Errorf("a body that never ends: %d %s", answer.StatusCode, body)
			}
		})
		t.Run("large header", func(t *testing.T) {
			t.Parallel()
			conn := dial(t, s)
			go fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: x\r\nX-A: %s\r\n\r\n", strings.Repeat("a", 64<<10))
			if answer, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || answer.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
				t.Errorf("a header of 64 KiB: %v %v; want 431", answer, err)
			}
		})
		t.Run("endless body", func(t *testing.T) {
			t.Parallel()
			conn := dial(t, s)
			var sent atomic.Int64
			go func() {
				fmt.Fprint(conn, "POST /auth HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
				for err := error(nil); err == nil && sent.Load() < 256<<20; sent.Add(64 << 10) {
					_, err = fmt.Fprintf(conn, "10000\r\n%s\r\n", strings.Repeat("a", 64<<10))
				}
			}()
			if answer, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || answer.StatusCode != http.StatusRequestEntityTooLarge {
				t.Errorf("an endless body: %v %v; want 413", answer, err)
			}
			if n := sent.Load(); n >= 256<<20 {
				t.Errorf("the server took %d bytes of an endless body", n)
			}
		})
		t.Run("garbage", func(t *testing.T) {
			t.Parallel()
			random := rand.NewChaCha8([32]byte{1})
			for n := range 50 {
				garbage := make([]byte, 10+n*40)
				random.Read(garbage)
				conn := dial(t, s)
				conn.Write(garbage)
				conn.(*net.TCPConn).CloseWrite()
				if answer, _ := io.ReadAll(conn); len(answer) > 0 && !strings.HasPrefix(string(answer), "HTTP/1.1 4") {
					t.Errorf("garbage is answered by %q", answer)
				}
			}
		})
		t.Run("pipelined requests", func(t *testing.T) {
			t.Parallel()
			conn := dial(t, s)
			const requests = 100
			var all strings.Builder
			for i := range requests {
				sub := fmt.Sprintf("sub=user-%03d", i)
				fmt.Fprintf(&all, "POST /auth HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(sub), sub)
				all.WriteString("GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n")
			}
			go io.WriteString(conn, all.String())
			set, answers := s.mustSet(t), bufio.NewReader(conn)
			for i := range 2 * requests {
				answer, err := http.ReadResponse(answers, nil)
				if err != nil {
					t.Fatalf("answer %d: %v", i, err)
				}
				body, err := io.ReadAll(answer.Body)
				if err != nil {
					t.Fatalf("answer %d: %v", i, err)
				}
				if i%2 == 1 {
					if answer.StatusCode != http.StatusNotFound {
						t.Errorf("answer %d: %d %s; want 404", i, answer.StatusCode, body)
					}
					continue
				}
				var tokens struct{ Token string }
				json.Unmarshal(body, &tokens)
				if claims, err := set.verify(tokens.Token); err != nil || claims["sub"] != fmt.Sprintf("user-%03d", i/2) {
					t.Errorf("answer %d: %d %s %v", i, answer.StatusCode, body, err)
				}
			}
		})
		t.Run("path tricks", func(t *testing.T) {
			t.Parallel()
			for _, target := range []string{
				"/auth", "//auth", "/auth/", "/./auth", "/%61uth", "/.well-known/../auth", "/.well-known/%2e%2e/auth", "/auth?method=POST",
				"/auth?expired=true", "/auth%00", "/auth%2f", `/\auth`, "/?auth", "/?expired=key", "/;/auth", "/auth;x", "/AUTH", "///", "/.", "/..",
				"/.well-known/jwks.json/", "/.well-known/", "http://x/auth", "http://x//auth", "*", "/%", "/keys/", "/../keys", "/debug/pprof/",
			} {
				for _, method := range []string{"GET", "HEAD", "OPTIONS", "DELETE", "TRACE", "get", "CONNECT"} {
					conn := dial(t, s)
					fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: x\r\nX-HTTP-Method-Override: POST\r\nConnection: close\r\n\r\n", method, target)
					content, err := io.ReadAll(conn)
					answer := string(content)
					if err != nil || !regexp.MustCompile(`^HTTP/1\.1 [234]`).MatchString(answer) || strings.Contains(answer, "token\":\"") || strings.Contains(answer, "eyJ") {
						t.Errorf("%s %s is answered by %q %v", method, target, answer, err)
					}
					if method == "GET" && strings.HasPrefix(target, "/?") && !strings.HasSuffix(answer, "JWKS Server Running!") {
						t.Errorf("%s %s is answered by %q", method, target, answer)
					}
					conn.Close()
				}
			}
		})
	})
	select {
	case <-s.done:
		t.Errorf("the server ended: %v; log:\n%s", s.err, &s.log)
	default:
	}
	if strings.Contains(s.log.String(), "panic") {
		t.Errorf("a panic:\n%s", &s.log)
	}
}

// trickle sends a byte now and then until the connection ends.
func trickle(conn net.Conn) {
	go func() {
		for err := error(nil); err == nil; time.Sleep(300 * time.Millisecond) {
			_, err = conn.Write([]byte("a"))
		}
	}()
}

func TestTheSetIsReadableDuringAFloodOfTokenRequests(t *testing.T) {
	t.Parallel()
	s := startServer(t, oneKey...)
	var flood sync.WaitGroup
	end := make(chan struct{})
	var tokens atomic.Int64
	for range 60 {
		flood.Go(func() {
			for {
				select {
				case <-end:
					return
				default:
				}
				if _, err := s.token(); err == nil {
					tokens.Add(1)
				} else if !errors.Is(err, errStatus) || !strings.Contains(err.Error(), "temporarily_unavailable") {
					t.Errorf("in the flood: %v", err)
				}
			}
		})
	}
	eventually(t, "the flood comes", func() bool { return tokens.Load() > 200 })
	for range 200 {
		if len(s.mustSet(t)) == 0 {
			t.Error("the set is empty")
		}
	}
	close(end)
	flood.Wait()
}

func TestClientsThatWentAwayLeaveTheSigningQueue(t *testing.T) {
	t.Parallel()
	s := startServer(t, append(slices.Clone(oneKey), "-key-bits", "3072", "-v")...)
	const requests = 1000
	var conns []net.Conn
	for range requests {
		conns = append(conns, dial(t, s))
	}
	eventually(t, "all are accepted", func() bool { return len(s.mustSet(t)) == 1 })
	for _, conn := range conns {
		io.WriteString(conn, "POST /auth HTTP/1.1\r\nHost: x\r\n\r\n")
	}
	for _, conn := range conns {
		conn.(*net.TCPConn).SetLinger(0)
		conn.Close()
	}
	token := s.mustToken(t)
	s.mustSet(t).alive(t, []string{token}, "after the flood")
	answered := func() int { return strings.Count(s.log.String(), `"/auth" `) }
	eventually(t, "the queue is empty", func() bool {
		before := answered()
		time.Sleep(300 * time.Millisecond)
		return answered() == before
	})
	if signed := strings.Count(s.log.String(), `"/auth" 200`); signed > requests/2 {
		t.Errorf("%d of %d tokens were signed for clients that went away", signed, requests)
	}
}
