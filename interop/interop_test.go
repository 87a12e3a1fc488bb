// Package interop drives the server as users do: with the libraries that verify its
// tokens or obtain them. It is a module of its own, so that the server's has none of
// these dependencies.
package interop

import (
	"bufio"
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
)

var binary string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "interop")
	if err != nil {
		panic(err)
	}
	binary = filepath.Join(dir, "jwks-server")
	build := exec.Command("go", "build", "-o", binary, ".")
	build.Dir, build.Stderr = "..", os.Stderr
	if err := build.Run(); err != nil {
		panic(err)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// A server is a process of the server under test.
type server struct {
	issuer, jwks, auth string
	client             *http.Client // trusts its certificate
}

// start starts the server, on a free port unless flags have -addr. When the test ends it is told to stop, and has
// to exit with status 0.
func start(t *testing.T, flags ...string) server {
	t.Helper()
	s, _ := launch(t, flags...)
	return s
}

// launch is start for tests that stop the server themselves.
func launch(t *testing.T, flags ...string) (s server, stop func()) {
	t.Helper()
	flags = append(flags, "-keys", t.TempDir())
	if !slices.Contains(flags, "-addr") {
		flags = append(flags, "-addr", "127.0.0.1:0")
	}
	cmd := exec.Command(binary, flags...)
	cmd.Stderr = t.Output()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceFunc(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("the server ended with %v; want exit status 0", err)
		}
	})
	t.Cleanup(stop)
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatalf("the server printed %q, %v; want its URL", line, err)
	}
	url := strings.TrimSpace(line)
	return server{issuer: url, jwks: url + "/.well-known/jwks.json", auth: url + "/auth", client: http.DefaultClient}, stop
}

// startTLS is start with HTTPS. It also returns the file of the certificate to trust.
func startTLS(t *testing.T, flags ...string) (s server, certificate string) {
	t.Helper()
	local := httptest.NewUnstartedServer(nil) // has a certificate for 127.0.0.1
	local.EnableHTTP2 = true
	local.StartTLS()
	t.Cleanup(local.Close)
	key, err := x509.MarshalPKCS8PrivateKey(local.TLS.Certificates[0].PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, block := range map[string]*pem.Block{
		"cert.pem": {Type: "CERTIFICATE", Bytes: local.Certificate().Raw},
		"key.pem":  {Type: "PRIVATE KEY", Bytes: key},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	certificate = filepath.Join(dir, "cert.pem")
	s = start(t, append([]string{"-tls-cert", certificate, "-tls-key", filepath.Join(dir, "key.pem")}, flags...)...)
	s.client = local.Client()
	return s, certificate
}

// token returns a token fresh from the server.
func (s server) token(t *testing.T, query string) string {
	t.Helper()
	response, err := s.client.Post(s.auth+query, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var body struct {
		Token string `json:"access_token"`
	}
	if err := json.NewDecoder(response.Body).Decode(&body); err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("POST /auth%s = %s, %v; want 200 and JSON", query, response.Status, err)
	}
	return body.Token
}

// A fault is a row of the catalogue of bad tokens.
type fault struct {
	Name   string `json:"fault"`
	Refuse string // must, should or may a verifier refuse it?
}

func (s server) faults(t *testing.T) (faults []fault) {
	t.Helper()
	getJSON(t, s.issuer+"/faults", &faults)
	return faults
}

func getJSON(t *testing.T, url string, v any) {
	t.Helper()
	response, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if err := json.NewDecoder(response.Body).Decode(v); err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("GET %s = %s, %v; want 200 and JSON", url, response.Status, err)
	}
}

// runProgram gives a program JSON on stdin and reads JSON from its stdout.
func runProgram(t *testing.T, cmd *exec.Cmd, in, out any) {
	t.Helper()
	text, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewReader(text), &stderr
	stdout, err := cmd.Output()
	if err == nil {
		err = json.Unmarshal(stdout, out)
	}
	if err != nil {
		t.Fatalf("%s: %v; make interop installs what it needs\n%s", cmd, err, &stderr)
	}
}
