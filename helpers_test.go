package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

const (
	jwksPath      = "/.well-known/jwks.json"
	discoveryPath = "/.well-known/openid-configuration"
	formType      = "application/x-www-form-urlencoded"
)

// epoch is when tests of pure functions begin.
var epoch = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

// ok ends the test if any of errs is an error.
func ok(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// must returns v. It panics on an error, which would be a mistake in the test.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// equal checks that got and want are the same value.
func equal[T any](t testing.TB, what string, got, want T) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s = %v; want %v", what, got, want)
	}
}

// wantError checks that err is nil if want is empty, and contains want otherwise.
func wantError(t testing.TB, what string, err error, want string) {
	t.Helper()
	if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
		t.Errorf("%s = %v; want error %q", what, err, want)
	}
}

// writeFile writes a file of a directory and returns its path.
func writeFile(t testing.TB, dir keyDir, file, content string) string {
	t.Helper()
	ok(t, os.WriteFile(dir.path(file), []byte(content), 0o600))
	return dir.path(file)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// pkcs8 returns the content of the file of a key.
func pkcs8(private any) string {
	der := must(x509.MarshalPKCS8PrivateKey(private))
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// bubble runs a subtest whose time is that of testing/synctest.
func bubble(t *testing.T, rule string, f func(*testing.T)) {
	t.Run(rule, func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, f)
	})
}

// wantInLog checks how often a text is in a log.
func wantInLog(t testing.TB, log *lockedBuffer, want int, text string) {
	t.Helper()
	if n := strings.Count(log.String(), text); n != want {
		t.Errorf("the log has %d of %q; want %d:\n%s", n, text, want, log)
	}
}

// takeAll takes all turns of a limiter until they are released.
func takeAll(t *testing.T, l *limiter) (release func()) {
	t.Helper()
	var releases []func()
	for range cap(l.turns) {
		releases = append(releases, must(l.acquire(t.Context())))
	}
	return func() {
		for _, release := range releases {
			release()
		}
	}
}

// A target answers requests. It is a handler in this process, or a server in another.
type target func(*http.Request) (*http.Response, error)

// handlerTarget returns the target of a handler.
func handlerTarget(h http.Handler) target {
	return func(r *http.Request) (*http.Response, error) {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w.Result(), nil
	}
}

// A response is a response to a request, with its whole body.
type response struct {
	status int
	header http.Header
	body   string
	err    error // of the connection
}

// do sends a request with header fields in pairs of name and value. A body is labelled as
// a form, as curl -d does, unless the fields say otherwise.
func (to target) do(method, path, body string, fields ...string) response {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	if body != "" {
		r.Header.Set("Content-Type", formType)
	}
	for i := 0; i+1 < len(fields); i += 2 {
		if fields[i] == "Host" {
			r.Host = fields[i+1]
		} else {
			r.Header.Set(fields[i], fields[i+1])
		}
	}
	w, err := to(r)
	if err != nil {
		return response{err: err}
	}
	defer w.Body.Close()
	content, err := io.ReadAll(w.Body)
	return response{status: w.StatusCode, header: w.Header, body: string(content), err: err}
}

// token returns a token of POST /auth with a query and a body, either of which may be empty.
func (to target) token(t testing.TB, query, body string) string {
	t.Helper()
	w := to.do("POST", "/auth"+query, body)
	token := w.token(t)
	if w.status != http.StatusOK || token == "" {
		t.Fatalf("POST /auth%s %s = %d %s; want 200 and a token", query, body, w.status, w.body)
	}
	return token
}

// set returns the JWK Set as a verifier reads it.
func (to target) set(t testing.TB) keySet {
	t.Helper()
	w := to.do("GET", jwksPath, "")
	if w.status != http.StatusOK {
		t.Fatalf("GET %s = %d %s %v; want 200", jwksPath, w.status, w.body, w.err)
	}
	return parseSet(t, w.body)
}

// json returns the members of the JSON object in the body. Numbers keep their digits.
func (w response) json(t testing.TB) map[string]any {
	t.Helper()
	if w.err != nil {
		t.Fatal(w.err)
	}
	return parseJSON(t, w.body)
}

// token returns the token in the body.
func (w response) token(t testing.TB) string {
	t.Helper()
	token, _ := w.json(t)["token"].(string)
	return token
}

func parseJSON(t testing.TB, text string) (object map[string]any) {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	if err := d.Decode(&object); err != nil {
		t.Fatalf("%q is not a JSON object: %v", text, err)
	}
	return object
}

// parts returns the header and the claims of a token.
func parts(t testing.TB, token string) (header, claims map[string]any) {
	t.Helper()
	encoded := strings.Split(token, ".")
	if len(encoded) != 3 {
		t.Fatalf("token %s has %d parts; want 3", token, len(encoded))
	}
	for i, part := range map[int]*map[string]any{0: &header, 1: &claims} {
		text, err := base64.RawURLEncoding.Strict().DecodeString(encoded[i])
		if err != nil {
			t.Fatal(err)
		}
		*part = parseJSON(t, string(text))
	}
	return header, claims
}

func kidOf(t testing.TB, token string) string {
	t.Helper()
	header, _ := parts(t, token)
	kid, _ := header["kid"].(string)
	return kid
}

// A keySet holds the keys of a verifier, made from the n and e in a JWK Set.
type keySet map[string]*rsa.PublicKey

func parseSet(t testing.TB, body string) keySet {
	t.Helper()
	var served struct {
		Keys []map[string]string `json:"keys"`
	}
	if err := json.Unmarshal([]byte(body), &served); err != nil {
		t.Fatalf("JWK Set %s: %v", body, err)
	}
	set := keySet{}
	for _, k := range served.Keys {
		if set[k["kid"]] != nil {
			t.Errorf("kid %s is served twice", k["kid"])
		}
		n, err1 := base64.RawURLEncoding.Strict().DecodeString(k["n"])
		e, err2 := base64.RawURLEncoding.Strict().DecodeString(k["e"])
		if err := errors.Join(err1, err2); err != nil {
			t.Fatalf("JWK %v: %v", k, err)
		}
		set[k["kid"]] = &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: int(new(big.Int).SetBytes(e).Int64())}
	}
	return set
}

var errUnknownKid = errors.New("unknown kid")

// verify is a correct verifier without leeway.
func (set keySet) verify(token string) (jwt.MapClaims, error) {
	claims := jwt.MapClaims{}
	_, err := jwt.NewParser(jwt.WithValidMethods([]string{"RS256"}), jwt.WithExpirationRequired(), jwt.WithIssuedAt()).
		ParseWithClaims(token, claims, func(token *jwt.Token) (any, error) {
			kid, _ := token.Header["kid"].(string)
			if k := set[kid]; k != nil {
				return k, nil
			}
			return nil, errUnknownKid
		})
	return claims, err
}

// A testServer is a server in this process. Its loop does not run.
type testServer struct {
	target
	*server
	log *lockedBuffer // of the server
}

// newTestServer returns a server with these flags. Its keys are in a directory of the test's
// own, and its issuer is http://issuer.test, unless the flags say otherwise.
func newTestServer(t testing.TB, args ...string) *testServer {
	t.Helper()
	c := flags(t, args...)
	clients, _, err := c.readFiles()
	if err != nil {
		t.Fatal(err)
	}
	logged := &lockedBuffer{}
	logger := slog.New(slog.NewTextHandler(io.MultiWriter(logged, t.Output()), nil))
	keys, err := openKeystore(t.Context(), keyDir(c.keys), c.rotation, c.bits, logger)
	if err != nil {
		t.Fatal(err)
	}
	s := newServer(c, "", keys, clients, logger)
	return &testServer{target: handlerTarget(s.routes()), server: s, log: logged}
}

// flags returns the configuration of the flags, with a keys directory and an issuer for
// tests unless the flags name others.
func flags(t testing.TB, args ...string) config {
	t.Helper()
	c, err := parseFlags(withDefaults(args, "-keys", t.TempDir(), "-issuer", "http://issuer.test"), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// withDefaults returns args, and those of the defaults, pairs of a flag and its value, whose flag
// is not among args.
func withDefaults(args []string, defaults ...string) []string {
	var missing []string
	for pair := range slices.Chunk(defaults, 2) {
		if !slices.Contains(args, pair[0]) {
			missing = append(missing, pair...)
		}
	}
	return append(missing, args...)
}

// newServerWithKey is newTestServer with a key that is ready made, so that it makes none.
func newServerWithKey(t testing.TB, args ...string) *testServer {
	t.Helper()
	dir := t.TempDir()
	putKey(t, keyDir(dir), 0, time.Hour)
	return newTestServer(t, withDefaults(args, "-keys", dir, "-publish-ahead", "1s")...)
}

// readyMade are two keys for all tests, because making one takes a while. The first has
// the greater kid, so that no order of kids looks like an order of expiries.
var readyMade = sync.OnceValue(func() (keys [2]*rsa.PrivateKey) {
	for i := range keys {
		var err error
		if keys[i], err = rsa.GenerateKey(rand.Reader, minBits); err != nil {
			panic(err)
		}
	}
	if thumbprint(&keys[0].PublicKey) < thumbprint(&keys[1].PublicKey) {
		keys[0], keys[1] = keys[1], keys[0]
	}
	return keys
})

// putKey stores a key that is ready made and returns it.
func putKey(t testing.TB, dir keyDir, i int, ttl time.Duration) key {
	t.Helper()
	k := newKey(readyMade()[i], clock().Add(ttl))
	if err := dir.write(k); err != nil {
		t.Fatal(err)
	}
	return k
}

// keepRunning runs the loop of a server until the test is over.
func keepRunning(t testing.TB, s *testServer) {
	ctx, stop := context.WithCancel(t.Context())
	stopped := make(chan struct{})
	go func() { s.store.maintain(ctx); close(stopped) }()
	t.Cleanup(func() { stop(); <-stopped })
}

// keyFiles returns the expiry of each key in the directory, by kid.
func keyFiles(t testing.TB, dir keyDir) map[string]time.Time {
	t.Helper()
	files, err := dir.list()
	ok(t, err)
	expiries := map[string]time.Time{}
	for _, name := range files.stored {
		expires, kid, named := parseName(name)
		if !named {
			t.Fatalf("key file %s is misnamed", name)
		}
		expiries[kid] = expires
	}
	return expiries
}

// kids returns the kids of a JWK Set in order.
func (set keySet) kids() (kids []string) {
	for kid := range set {
		kids = append(kids, kid)
	}
	return slices.Sorted(slices.Values(kids))
}

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

// hang is how long a test waits for something that should happen at once.
const hang = 20 * time.Second

func TestMain(m *testing.M) {
	if child := children[os.Getenv("JWKS_BENCH")]; child != nil {
		child()
		return
	}
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

// build builds the server, with the race detector if the tests have it, and returns its path.
func build(name string, args ...string) (string, error) {
	dir, err := builds()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, name)
	if info, ok := debug.ReadBuildInfo(); ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		args = append(args, "-race")
	}
	if output, err := exec.Command("go", append(append([]string{"build", "-o", path}, args...), ".")...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w: %s", err, output)
	}
	return path, nil
}

var binary = sync.OnceValues(func() (string, error) { return build("jwks-server.exe") })

// fastBinary is a server whose clock is two seconds fast.
var fastBinary = sync.OnceValues(func() (string, error) {
	const now = "func clock() time.Time { return time.Now()"
	dir, err1 := builds()
	path, err2 := filepath.Abs("keystore.go")
	source, err3 := os.ReadFile(path)
	if err := errors.Join(err1, err2, err3); err != nil || !bytes.Contains(source, []byte(now)) {
		return "", fmt.Errorf("keystore.go has to have %q: %w", now, err)
	}
	fast, overlay := filepath.Join(dir, "fast.go"), filepath.Join(dir, "overlay.json")
	source = bytes.Replace(source, []byte(now), []byte(now+".Add(2*time.Second)"), 1)
	err := errors.Join(os.WriteFile(fast, source, 0o600),
		os.WriteFile(overlay, encode(map[string]any{"Replace": map[string]string{path: fast}}), 0o600))
	if err != nil {
		return "", err
	}
	return build("fast.exe", "-overlay", overlay)
})

// A process is the real server in a process of its own.
type process struct {
	target
	client         http.Client // a copy of browser
	base           string      // its URL
	stdout, stderr lockedBuffer
	cmd            *exec.Cmd
	killed         atomic.Bool
	done           chan struct{} // closed once it has ended
}

// startProcess starts a server on a port of its own, and waits until it serves.
func startProcess(t testing.TB, args ...string) *process {
	t.Helper()
	return launch(t, serverCommand(t, args...)).serving(t)
}

func serverCommand(t testing.TB, args ...string) *exec.Cmd {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	return exec.Command(path, withDefaults(args, "-addr", "127.0.0.1:0")...)
}

// launch starts the command of a server, and does not wait until it serves. It kills the server
// when the test is over.
func launch(t testing.TB, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{client: *browser, cmd: cmd, done: make(chan struct{})}
	p.target = func(r *http.Request) (*http.Response, error) {
		base, err := url.Parse(p.base)
		if err != nil {
			return nil, err
		}
		r.URL.Scheme, r.URL.Host, r.RequestURI = base.Scheme, base.Host, ""
		if r.Host == "example.com" { // which httptest sets
			r.Host = ""
		}
		return p.client.Do(r)
	}
	if cmd.Stdout == nil {
		cmd.Stdout = &p.stdout
	}
	if cmd.Stderr == nil {
		cmd.Stderr = &p.stderr
	}
	cmd.WaitDelay = time.Second // a child of the child may outlive it
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { cmd.Wait(); close(p.done) }()
	t.Cleanup(p.kill)
	return p
}

// serving waits until the server has printed its URL.
func (p *process) serving(t testing.TB) *process {
	t.Helper()
	eventually(t, "the server prints its URL", func() (found bool) {
		p.base, _, found = strings.Cut(p.stdout.String(), "\n")
		if !found && p.ended() {
			t.Fatalf("the start failed: %v: %s", p.cmd.ProcessState, &p.stderr)
		}
		return found
	})
	return p
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// exitCode waits until the server has ended. It is -1 after a signal that was not caught.
func (p *process) exitCode(t testing.TB) int {
	t.Helper()
	eventually(t, "the server ends", p.ended)
	return p.cmd.ProcessState.ExitCode()
}

// kill ends the server at once, as kill -9 does.
func (p *process) kill() {
	p.killed.Store(true)
	p.cmd.Process.Kill()
	<-p.done
}

// logs waits until the log has text.
func (p *process) logs(t testing.TB, text string) {
	t.Helper()
	eventually(t, "the log says "+text, func() bool { return strings.Contains(p.stderr.String(), text) })
}

func (p *process) addr() string { return p.base[strings.LastIndex(p.base, "/")+1:] }

// memory is a figure of /proc/PID/status in MiB.
func (p *process) memory(t testing.TB, name string) float64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	_, rest, _ := strings.Cut(string(status), name)
	var kib float64
	_, scanErr := fmt.Sscan(rest, &kib)
	ok(t, err, scanErr)
	return kib / 1024
}

func (p *process) dial(t testing.TB) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", p.addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(2 * hang))
	return conn
}

func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for begin := time.Now(); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Since(begin) > hang {
			t.Fatalf("never: %s", what)
		}
	}
}

// testTLS has the certificate for servers with TLS. The browser trusts it.
var testTLS = sync.OnceValue(func() *httptest.Server {
	s := httptest.NewTLSServer(nil)
	s.Close()
	return s
})

var browser = func() *http.Client {
	roots := x509.NewCertPool()
	roots.AddCert(testTLS().Certificate())
	return &http.Client{
		Timeout: hang,
		Transport: &http.Transport{
			MaxIdleConnsPerHost: 100, ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "example.com"},
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}()

// tlsFlags are flags for HTTPS.
func tlsFlags(t testing.TB) []string {
	t.Helper()
	certificate := testTLS().TLS.Certificates[0]
	der, err := x509.MarshalPKCS8PrivateKey(certificate.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return []string{
		"-tls-cert", putFile(t, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Certificate[0]}))),
		"-tls-key", putFile(t, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))),
	}
}

func putFile(t testing.TB, content string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// withKey are flags for tests that are about something else: a directory with a key that is
// ready made, so that the server makes none.
func withKey(t testing.TB, args ...string) []string {
	t.Helper()
	dir := t.TempDir()
	putKey(t, keyDir(dir), 0, time.Hour)
	return withDefaults(args, "-keys", dir, "-publish-ahead", "1s")
}

// wholeKeys returns the names of the keys in dir that have not expired, in order. The file of
// each has to be whole.
func wholeKeys(t testing.TB, dir string) (names []string) {
	t.Helper()
	files, err := keyDir(dir).list()
	ok(t, err)
	for _, name := range files.stored {
		if k, err := keyDir(dir).load(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		} else if !k.expired(clock()) {
			names = append(names, name)
		}
	}
	return names
}

func kidOfName(name string) string {
	_, kid, _ := strings.Cut(name, ".")
	return kid
}

// halfWritten returns the files that a crash would leave in dir, or has left.
func halfWritten(dir string) []string {
	found, _ := filepath.Glob(filepath.Join(dir, temporary))
	return found
}

// alive returns those of tokens that have not expired. The set of a server has to verify each,
// by its signature alone, because the clocks of servers may differ.
func (set keySet) alive(t testing.TB, server string, tokens ...string) (alive []string) {
	t.Helper()
	for _, token := range tokens {
		_, claims := parts(t, token)
		_, err := set.verify(token)
		exp, _ := claims["exp"].(json.Number).Int64()
		switch {
		case time.Now().Unix() >= exp:
		case err == nil, errors.Is(err, jwt.ErrTokenUsedBeforeIssued):
			alive = append(alive, token)
		default:
			t.Errorf("%s refuses a live token, kid %s, claims %v: %v", server, kidOf(t, token), claims, err)
		}
	}
	return alive
}
