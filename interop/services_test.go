package interop

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

var slow = flag.Bool("slow", false, "give slow services the -check-wait that they need, which takes half an hour")

// A service is a recipe of README.md: a small HTTP service, or a configured program, that
// jwks-server -check asks.
//
// Its command is started in its directory with these variables:
//
//	ISSUER, JWKS_URL  of the server, http or https
//	AUDIENCE          the aud to expect
//	PORT              where to listen, on 127.0.0.1
//	STATE             an empty directory for its files
//
// It is ready once the port accepts connections, and answers GET of path: 200 to a good token, and
// to others what the library makes of them. It is ended by SIGTERM to its process group.
type service struct {
	name     string           // the heading of its recipe
	dir      string           // of its files
	files    []string         // shown on the page; the first one is the recipe
	prepare  func(*testing.T) // builds what the command needs
	command  []string
	path     string        // of the URL that needs a token; / by default
	wait     time.Duration // the -check-wait that it needs; 10 s by default
	slow     bool          // waits for new keys for so long that only -slow tries them
	slowOnly bool          // takes so long to build or start that only -slow runs it
	tls      bool          // the server speaks HTTPS
	restart  bool          // a token ends it, so it is started again and again, as systemd does
	flags    []string      // of the server, besides -audience
	packages []string      // whose versions the page names; see versionLine
	strict   string        // the service that refuses what this one accepts and must not
	open     string        // why there is no strict one
	keeps    string        // how long it keeps the JWK Set, by its documentation, where a run cannot tell
}

// services are all recipes that run, in the order of the page.
var services = slices.Concat(nodeServices, programServices, pythonServices, rubyServices, perlServices, goServices)

func TestServices(t *testing.T) {
	t.Parallel()
	for _, s := range services {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			if s.slowOnly && !*slow {
				t.Skip("only make interop-slow runs it")
			}
			got := s.check(t)
			if s.slow && !*slow {
				got = got.onlyTokens().with(readResults(t, s).withoutTokens())
			}
			wantFile(t, s.resultsFile(), got.format())
		})
	}
}

// check starts a server and the service, and returns what -check says of the service.
func (s service) check(t *testing.T) results {
	t.Helper()
	serverFlags := append([]string{"-audience", audience}, s.flags...)
	var issuer server
	var certificate string
	var checkFlags []string
	if s.tls {
		issuer, certificate = startTLS(t, serverFlags...)
		checkFlags = []string{"-tls-cert", certificate, "-tls-key", filepath.Join(filepath.Dir(certificate), "key.pem")}
	} else {
		issuer = start(t, serverFlags...)
	}
	wait := 10 * time.Second
	switch {
	case s.slow && !*slow && s.restart:
		wait = 10 * time.Second // until it is started again
	case s.slow && !*slow:
		wait = time.Second
	case s.wait > 0:
		wait = s.wait
	}
	url := s.start(t, issuer, certificate)
	_, address, _ := strings.Cut(issuer.issuer, "://")
	check := exec.CommandContext(t.Context(), binary, append(checkFlags, "-addr", address, "-check", url, "-check-wait", wait.String())...)
	check.Stderr = t.Output()
	output, err := check.Output()
	fmt.Fprintf(t.Output(), "%s", output)
	if code := check.ProcessState.ExitCode(); code != 0 && code != 1 || !strings.Contains(string(output), "\n1..") {
		t.Fatalf("-check ended with %v before its plan; want it to end with 0 or 1", err)
	}
	return results{versions: s.versionLine(t), rows: parseTAP(string(output))}
}

// start starts the service and returns its URL once it listens.
func (s service) start(t *testing.T, issuer server, certificate string) (url string) {
	t.Helper()
	if s.prepare != nil {
		s.prepare(t)
	}
	state, err := os.MkdirTemp("", "service")
	if err == nil {
		err = os.Chmod(state, 0o755) // Apache is another user
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(state) })
	var trust []string
	if certificate != "" {
		copied := filepath.Join(state, "certificate.pem")
		if err := os.WriteFile(copied, []byte(readFile(t, certificate)), 0o644); err != nil {
			t.Fatal(err)
		}
		trust = []string{"NODE_EXTRA_CA_CERTS=" + copied, "SSL_CERT_FILE=" + copied, "REQUESTS_CA_BUNDLE=" + copied}
	}
	port := freePort(t)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	cmd := exec.CommandContext(ctx, s.command[0], s.command[1:]...)
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "ISSUER="+issuer.issuer, "JWKS_URL="+issuer.jwks, "AUDIENCE="+audience, "PORT="+port, "STATE="+state)
	cmd.Env = append(cmd.Env, trust...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	log := &strings.Builder{}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		cancel()
		<-ended
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // what did not heed the signal
		if t.Failed() {
			t.Logf("the service wrote:\n%s", log)
		}
	})
	for range 600 {
		connection, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			connection.Close()
			return "http://127.0.0.1:" + port + cmp.Or(s.path, "/")
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("%s ended with %v; want that it listens on port %s", cmd, err, port)
		case <-time.After(100 * time.Millisecond):
		}
	}
	t.Fatalf("%s does not listen on port %s within a minute", cmd, port)
	return ""
}

// freePort returns a port below those that the system gives to clients, because -check opens
// many connections.
func freePort(t *testing.T) string {
	t.Helper()
	for range 100 {
		port := fmt.Sprint(20000 + rand.IntN(12000))
		if listener, err := net.Listen("tcp", "127.0.0.1:"+port); err == nil {
			listener.Close()
			return port
		}
	}
	t.Fatal("there is no free port")
	return ""
}
