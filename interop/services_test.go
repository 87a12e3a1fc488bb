package interop

import (
	"bufio"
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
//	READ_EVERY        the seconds between two reads of the JWK Set; not always set
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
	heeds    bool          // its interval between two reads can be set by READ_EVERY
	frequent bool          // READ_EVERY makes it read the JWK Set every second
	slowOnly bool          // takes so long to build or start that only -slow runs it
	tls      bool          // the server speaks HTTPS
	restart  bool          // a token ends it, so it is started again and again, as systemd does
	flags    []string      // of the server, besides -audience
	packages []string      // whose versions the page names; see versionLine
	strict   string        // the service that refuses what this one accepts and must not
	open     string        // why there is no strict one
	keeps    string        // how long it keeps the JWK Set, by its documentation, where a run cannot tell
	setsOf   string        // the service whose rows of JWK Sets count for this one, which reads the set too rarely
}

// services are all recipes that run, in the order of the page.
var services = slices.Concat(nodeServices, programServices, pythonServices, rubyServices, perlServices, goServices)

// setsFrom returns the name of the service whose rows of JWK Sets count for this one, if it is another.
func (s service) setsFrom() string {
	if s.heeds {
		return frequentName(s.name)
	}
	return s.setsOf
}

// frequentServices are those recipes that read the JWK Set rarely by default, with a read every second.
func frequentServices() (frequent []service) {
	for _, s := range services {
		if s.heeds {
			s.heeds, s.frequent = false, true
			s.name = frequentName(s.name)
			s.command = append([]string{"env", "READ_EVERY=1"}, s.command...)
			s.flags = append([]string{"-publish-ahead", "48s"}, s.flags...) // makes max-age 2 s
			s.slow, s.slowOnly, s.wait = false, true, 25*time.Second        // longer than the response of the set slow takes
			frequent = append(frequent, s)
		}
	}
	return frequent
}

func frequentName(name string) string { return name + ", read every second" }

func TestServices(t *testing.T) {
	t.Parallel()
	for _, s := range slices.Concat(services, frequentServices()) {
		if s.slowOnly && !*slow {
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			var got results
			switch {
			case s.frequent:
				got = s.check(t, s.wait, "").frequent()
			case !s.slow:
				got = s.check(t, s.checkWait(), "")
			case s.setsFrom() != "":
				got = s.check(t, s.quickWait(), "")
				waited := readResults(t, s)
				if *slow {
					waited = s.check(t, s.wait, "new-key")
				}
				got = got.replace(waited.row("new-key"))
			case *slow:
				got = s.check(t, s.checkWait(), "")
			default:
				got = s.check(t, s.quickWait(), "").onlyTokens().with(readResults(t, s).withoutTokens())
			}
			wantFile(t, s.resultsFile(), got.format())
		})
	}
}

// quickWait is the -check-wait that lets the rows of keys fail.
func (s service) quickWait() time.Duration {
	if s.restart {
		return 10 * time.Second // until it is started again
	}
	return time.Second
}

// check starts a server and the service, and returns what -check says of the service; only up to the
// row last, unless that is empty.
func (s service) check(t *testing.T, wait time.Duration, last string) results {
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
	url := s.start(t, issuer, certificate)
	_, address, _ := strings.Cut(issuer.issuer, "://")
	check := exec.CommandContext(t.Context(), binary, append(checkFlags, "-addr", address, "-check", url, "-check-wait", wait.String())...)
	check.Stderr = t.Output()
	stdout, err := check.StdoutPipe()
	if err == nil {
		err = check.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	var output strings.Builder
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		fmt.Fprintln(&output, lines.Text())
		fmt.Fprintln(t.Output(), lines.Text())
		if last != "" && strings.Contains(lines.Text(), " - "+last+": ") {
			check.Process.Signal(os.Interrupt)
		}
	}
	err = check.Wait()
	rows := parseTAP(output.String())
	if last == "" && !strings.Contains(output.String(), "\n1..") || last != "" && (len(rows) == 0 || rows[len(rows)-1].name != last) {
		t.Fatalf("-check ended with %v before its last row", err)
	}
	return results{versions: s.versionLine(t), rows: rows}
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
