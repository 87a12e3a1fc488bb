package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// runHere runs the server in this process until ctx ends.
func runHere(ctx context.Context, args ...string) (code int, stdout, stderr string) {
	var out, log lockedBuffer
	code = exitStatus(run(ctx, withDefaults(args, "-addr", "127.0.0.1:0"), &out, &log), &log, logsJSON(args))
	return code, out.String(), log.String()
}

func TestAFailedStartPrintsOneLine(t *testing.T) {
	t.Parallel()
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	port, dir, file := busy.Addr().String(), t.TempDir(), putFile(t, "[]")
	keys, open, mixed := dir+"/keys", dir+"/open", keyDir(t.TempDir())
	putKey(t, mixed, 0, time.Hour)
	damaged := mixed.path("20991231T235959Z.x.pem")
	ok(t, os.Mkdir(open, 0o700), os.Chmod(open, 0o702), os.WriteFile(damaged, nil, 0o600))
	for _, test := range []struct{ name, args, want string }{
		{"busy port", "-addr " + port, "cannot listen on " + port + ": listen tcp " + port + ": bind: address already in use; choose another address with -addr"},
		{"no such port", "-addr 127.0.0.1:99999", "cannot listen on 127.0.0.1:99999: address 99999: invalid port; choose another address with -addr"},
		{"no parent", "-keys " + keys + "/x", "cannot make the keys directory: mkdir " + keys + "/x: no such file or directory; mount or make its parent, or choose another directory with -keys"},
		{"keys is a file", "-keys " + file, "cannot use the keys directory: " + file + " is not a directory; choose another with -keys"},
		{"keys is open to everybody", "-keys " + open, "cannot use the keys directory: everybody may write to " + open + ", so anybody's keys would sign; chmod o-w it, or choose another with -keys, such as a directory below it"},
		{"a damaged key beside a good one", "-keys " + string(mixed), "key file " + damaged + " is damaged: it has to be one PEM block, PRIVATE KEY, and nothing else; repair it or move it elsewhere"},
		{"no clients file", "-clients " + dir + "/x", "cannot read the clients file: open " + dir + "/x: no such file or directory"},
		{"damaged clients file", "-clients " + file, "cannot use the clients file " + file + ": it has to be one JSON object: it is not an object"},
		{"no certificate", "-tls-cert " + dir + "/x -tls-key " + file, "cannot use -tls-cert " + dir + "/x with -tls-key " + file + ": open " + dir + "/x: no such file or directory"},
	} {
		t.Run(test.name, func(t *testing.T) {
			ctx, end := context.WithTimeout(t.Context(), hang)
			defer end() // and one that starts exits with 0
			code, stdout, stderr := runHere(ctx, withDefaults(strings.Fields(test.args), "-keys", keys, "-publish-ahead", "1s")...)
			if want := "jwks-server: " + test.want + "\n"; code != 1 || stdout != "" || stderr != want {
				t.Errorf("run(%s) = %d %q %q; want 1 and %q", test.args, code, stdout, stderr, want)
			}
			if _, err := os.Stat(keys); err == nil {
				t.Errorf("run(%s) left a keys directory", test.args)
			}
		})
	}
}

func TestAFailedStartWithLogJSONPrintsOneLineOfJSON(t *testing.T) {
	for _, test := range []struct {
		args []string
		code int
		want string
	}{
		{args: []string{"-addr", "127.0.0.1:99999", "-log-json"}, code: 1, want: "cannot listen on 127.0.0.1:99999: address 99999: invalid port"},
		{args: []string{"-nonsense", "-log-json"}, code: 2, want: "flag provided but not defined: -nonsense; -h lists the flags"},
		{args: []string{"-log-json", "-token-ttl", "0s"}, code: 2, want: "-token-ttl 0s is too short"},
	} {
		keys := filepath.Join(t.TempDir(), "keys")
		code, stdout, stderr := runHere(t.Context(), append(test.args, "-keys", keys)...)
		equal(t, "exit status", code, test.code)
		equal(t, "stdout", stdout, "")
		equal(t, "lines on stderr", strings.Count(stderr, "\n"), 1)
		event := parseJSON(t, stderr)
		equal(t, "level", event["level"], any("ERROR"))
		if text, _ := event["error"].(string); !strings.Contains(text, test.want) {
			t.Errorf("error = %q; want %q", text, test.want)
		}
	}
}

func TestExitStatus(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, args string
		want       int
	}{
		{"help is no failure", "-h", 0},
		{"a start that fails exits with 1", "-addr 127.0.0.1:99999", 1},
		{"a bad flag exits with 2", "-nonsense", 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := launch(t, serverCommand(t, strings.Fields(test.args)...))
			if got := p.exitCode(t); got != test.want {
				t.Errorf("jwks-server %s exits with %d; want %d", test.args, got, test.want)
			}
		})
	}
}

func TestBaseURL(t *testing.T) {
	for _, test := range []struct {
		name, listened, addr string
		secure               bool
		want                 string
	}{
		{"an address", "127.0.0.1:0", "127.0.0.1:8080", false, "http://127.0.0.1:8080"},
		{"a name is kept", "a.test:0", "127.0.0.1:8080", false, "http://a.test:8080"},
		{"all addresses", ":0", "[::]:8080", false, "http://localhost:8080"},
		{"all IPv4 addresses", "0.0.0.0:0", "0.0.0.0:8080", false, "http://localhost:8080"},
		{"TLS", "127.0.0.1:0", "127.0.0.1:8443", true, "https://127.0.0.1:8443"},
		{"IPv6", "[0:0::1]:0", "[::1]:8080", false, "http://[::1]:8080"},
		{"the zone of an IPv6 address is left out", "[fe80::1%eth0]:0", "[fe80::1%eth0]:8080", false, "http://[fe80::1]:8080"},
	} {
		t.Run(test.name, func(t *testing.T) {
			addr := net.TCPAddrFromAddrPort(netip.MustParseAddrPort(test.addr))
			if got := baseURL(test.listened, addr, test.secure); got != test.want {
				t.Errorf("baseURL(%q, %s, %t) = %q; want %q", test.listened, addr, test.secure, got, test.want)
			}
		})
	}
}

const (
	openWarning   = "anyone who can reach this address can get any token"
	secretWarning = "secrets and tokens cross the network unencrypted"
)

func TestWhoMayReachTheServer(t *testing.T) {
	t.Parallel()
	clients := "-clients " + putFile(t, `{"a": {"secret_sha256": "`+strings.Repeat("ab", 32)+`"}}`)
	secure := strings.Join(tlsFlags(t), " ")
	for _, test := range []struct {
		name, args, wantBase, wantWarning string // a URL without its port
		wantStatus                        int    // of a POST to /auth by a web page
	}{
		{"loopback", "", "http://127.0.0.1", "", 403},
		{"a name", "-addr localhost:0", "http://localhost", "", 403},
		{"loopback with TLS", secure, "https://127.0.0.1", "", 403},
		{"loopback with clients", clients, "http://127.0.0.1", "", 401},
		{"all addresses", "-addr :0", "http://localhost", openWarning, 403},
		{"all addresses with TLS", "-addr :0 " + secure, "https://localhost", openWarning, 403},
		{"all addresses with clients", "-addr 0.0.0.0:0 " + clients, "http://localhost", secretWarning, 401},
		{"all addresses with clients and TLS", "-addr :0 " + clients + " " + secure, "https://localhost", "", 401},
		{"an issuer", "-issuer https://issuer.test/a", "http://127.0.0.1", "", 403},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := startProcess(t, withKey(t, strings.Fields(test.args)...)...)
			base, err := url.Parse(p.base)
			if err != nil || base.Scheme+"://"+base.Hostname() != test.wantBase {
				t.Errorf("base URL = %s; want %s and a port", p.base, test.wantBase)
			}
			issuer := p.base
			if test.name == "an issuer" {
				issuer = "https://issuer.test/a"
				if w := p.do("POST", "/a/auth", "", "Host", "issuer.test"); w.status != 200 {
					t.Errorf("POST /a/auth with the Host of the issuer = %d %s; want 200", w.status, w.body)
				}
			}
			if got := p.do("GET", discoveryPath, "").json(t)["issuer"]; got != issuer {
				t.Errorf("issuer = %v; want %s", got, issuer)
			}
			if w := p.do("POST", "/auth", "", "Origin", "http://evil.test", "Host", "evil.test"); w.status != test.wantStatus {
				t.Errorf("POST /auth by a page of evil.test = %d %s; want %d", w.status, w.body, test.wantStatus)
			}
			for _, warning := range []string{openWarning, secretWarning} {
				if got := strings.Contains(p.stderr.String(), warning); got != (warning == test.wantWarning) {
					t.Errorf("the log warns that %s: %t\n%s", warning, got, &p.stderr)
				}
			}
		})
	}
}

func TestTheServerHasTheLimitsOfTheDesign(t *testing.T) {
	s := newHTTPServer(nil, nil)
	got := []any{s.ReadHeaderTimeout, s.ReadTimeout, s.WriteTimeout, s.IdleTimeout, s.MaxHeaderBytes}
	want := []any{5 * time.Second, 10 * time.Second, 15 * time.Second, 620 * time.Second, 16 << 10}
	if !slices.Equal(got, want) {
		t.Errorf("limits = %v; want %v", got, want)
	}
}

func TestOutput(t *testing.T) {
	t.Parallel()
	t.Run("a shell reads the base URL from stdout", func(t *testing.T) {
		t.Parallel()
		server := serverCommand(t, withKey(t)...)
		const script = `read -r URL < <(exec "$@"); server=$!; echo "$URL"; read -r; kill $server`
		cmd := exec.Command("bash", append([]string{"-c", script, "bash"}, server.Args...)...)
		stdin, err := cmd.StdinPipe()
		ok(t, err)
		p := launch(t, cmd)
		t.Cleanup(func() { stdin.Close(); p.exitCode(t) })
		p.serving(t).set(t)
	})
	t.Run("the log is text on stderr", func(t *testing.T) {
		t.Parallel()
		p := startProcess(t, withKey(t)...)
		p.cmd.Process.Signal(os.Interrupt)
		if p.exitCode(t); p.stdout.String() != p.base+"\n" {
			t.Errorf("stdout = %q; want the base URL alone", &p.stdout)
		}
		if log := p.stderr.String(); !regexp.MustCompile(`^(time=\S+ level=[A-Z]+ msg=.*\n)+$`).MatchString(log) {
			t.Errorf("stderr = %q; want lines of slog text", log)
		}
	})
	t.Run("the log is JSON with -log-json", func(t *testing.T) {
		t.Parallel()
		flags := withKey(t, "-log-json", "-v", "-publish-ahead", "45m")
		p := startProcess(t, flags...)
		token := p.token(t, "?expires_in=60", `{"sub":"hidden-subject"}`)
		kid, dir := kidOf(t, token), flags[1]
		p.logs(t, "now signing")
		p.cmd.Process.Signal(os.Interrupt)
		p.exitCode(t)
		events := map[string]map[string]any{}
		for line := range strings.Lines(p.stderr.String()) {
			event := parseJSON(t, line)
			events[event["msg"].(string)] = event
		}
		for name, want := range map[string]map[string]string{ // the empty value is any
			"serving":     {"issuer": "the URL of each request", "jwks": p.base + jwksPath, "tokens": p.base + "/auth"},
			"key found":   {"kid": kid, "signs_from": "", "signs_until": "", "expires": ""},
			"key made":    {"kid": "", "signs_from": "", "signs_until": "", "expires": ""},
			"now signing": {"kid": kid},
			"request":     {"method": "POST", "path": "/auth", "status": "200", "duration": "", "from": ""},
		} {
			for field, value := range want {
				if got, ok := events[name][field]; !ok || value != "" && fmt.Sprint(got) != value {
					t.Errorf("log %q: %s = %v; want %q", name, field, got, value)
				}
			}
		}
		secrets := []string{"hidden-subject", token[len(token)-20:], "expires_in"}
		for _, name := range wholeKeys(t, dir) {
			content, _ := os.ReadFile(keyDir(dir).path(name + ".pem"))
			secrets = append(secrets, strings.Split(string(content), "\n")[1])
		}
		for _, secret := range secrets {
			if strings.Contains(p.stderr.String(), secret) {
				t.Errorf("the log has a secret, %s:\n%s", secret, &p.stderr)
			}
		}
	})
	for _, parent := range []string{"exec", "trap '' PIPE; exec"} {
		t.Run("the readers of stdout and stderr may go away: "+parent, func(t *testing.T) {
			t.Parallel()
			out, stdout, err1 := os.Pipe()
			log, stderr, err2 := os.Pipe()
			ok(t, err1, err2, out.Close()) // before there is anything to read
			defer stdout.Close()
			defer stderr.Close()
			cmd := exec.Command("sh", append([]string{"-c", parent + ` "$@"`, "sh"}, serverCommand(t, withKey(t, "-v")...).Args...)...)
			cmd.Stdout, cmd.Stderr = stdout, stderr
			p := launch(t, cmd)
			for lines := bufio.NewReader(log); p.base == ""; {
				line, err := lines.ReadString('\n')
				ok(t, err)
				if found := regexp.MustCompile(`tokens=(\S+)/auth`).FindStringSubmatch(line); found != nil {
					p.base = found[1]
				}
			}
			log.Close()
			for range 5 {
				p.set(t)
			}
		})
	}
}

// A half is a request in flight: the server waits for the second half of its body.
type half struct {
	conn    net.Conn
	answers *bufio.Reader
}

func (p *process) halfRequest(t testing.TB) half {
	t.Helper()
	h := half{conn: p.dial(t)}
	h.answers = bufio.NewReader(h.conn)
	fmt.Fprint(h.conn, "POST /auth HTTP/1.1\r\nHost: localhost\r\nContent-Length: 13\r\nExpect: 100-continue\r\n\r\n")
	if line, _ := h.answers.ReadString('\n'); !strings.Contains(line, "100 Continue") {
		t.Fatalf("the server does not wait for the body: %q", line)
	}
	h.answers.ReadString('\n')
	fmt.Fprint(h.conn, `{"sub":`)
	return h
}

func (h half) wantAnswer(t testing.TB) {
	t.Helper()
	fmt.Fprint(h.conn, `"abc"}`)
	wantStatus(t, h.answers, http.StatusOK, "token")
}

func TestSignals(t *testing.T) {
	t.Parallel()
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		t.Run(signal.String()+" answers requests in flight and exits with 0", func(t *testing.T) {
			t.Parallel()
			p := startProcess(t, withKey(t)...)
			request := p.halfRequest(t)
			p.cmd.Process.Signal(signal)
			p.logs(t, "shutting down")
			eventually(t, "a new connection is refused", func() bool { return p.do("GET", "/", "", "Connection", "close").err != nil })
			request.wantAnswer(t)
			if code := p.exitCode(t); code != 0 {
				t.Errorf("exit code %d; want 0", code)
			}
		})
	}
	t.Run("SIGHUP is ignored under nohup", func(t *testing.T) {
		t.Parallel()
		cmd := exec.Command("sh", append([]string{"-c", `trap '' HUP; exec "$@"`, "sh"}, serverCommand(t, withKey(t)...).Args...)...)
		p := launch(t, cmd).serving(t)
		request := p.halfRequest(t)
		p.cmd.Process.Signal(syscall.SIGHUP)
		for range 20 {
			p.do("GET", discoveryPath, "", "Connection", "close").json(t)
		}
		p.cmd.Process.Signal(syscall.SIGTERM) // the first signal
		request.wantAnswer(t)
		if code := p.exitCode(t); code != 0 {
			t.Errorf("exit code %d; want 0", code)
		}
	})
	t.Run("a second signal ends the server at once", func(t *testing.T) {
		t.Parallel()
		p := startProcess(t, withKey(t)...)
		p.halfRequest(t)
		p.cmd.Process.Signal(syscall.SIGTERM)
		p.logs(t, "shutting down")
		eventually(t, "a second signal ends the server", func() bool { // from when on a signal is the second cannot be seen
			p.cmd.Process.Signal(syscall.SIGTERM)
			return p.ended()
		})
		if code := p.exitCode(t); code != -1 {
			t.Errorf("exit code %d; want an end by the signal, with a request in flight", code)
		}
	})
	t.Run("a signal during the start is no failure", func(t *testing.T) {
		t.Parallel()
		dir := filepath.Join(t.TempDir(), "keys")
		p := launch(t, serverCommand(t, "-keys", dir, "-key-bits", "4096"))
		eventually(t, "the directory is there, and keys are being made", func() bool { _, err := os.Stat(dir); return err == nil })
		p.cmd.Process.Signal(syscall.SIGTERM)
		if code := p.exitCode(t); code != 0 || p.stdout.String() != "" || strings.Contains(p.stderr.String(), "jwks-server:") {
			t.Errorf("a start that a signal stops = %d %q %q; want 0 and nothing but the log", code, &p.stdout, &p.stderr)
		}
	})
}

func TestTLS(t *testing.T) {
	t.Parallel()
	t.Run("HTTP/2 is spoken", func(t *testing.T) {
		t.Parallel()
		w, err := startProcess(t, withKey(t, tlsFlags(t)...)...).target(httptest.NewRequest("GET", jwksPath, nil))
		if ok(t, err); w.ProtoMajor != 2 || w.StatusCode != http.StatusOK {
			t.Errorf("GET %s = %s %s; want 200 by HTTP/2", jwksPath, w.Proto, w.Status)
		}
		w.Body.Close()
	})
}

func TestHealthcheck(t *testing.T) {
	t.Parallel()
	secure := tlsFlags(t) // for a name that no address has
	listening := func(args ...string) string {
		_, port, _ := net.SplitHostPort(startProcess(t, withKey(t, args...)...).addr())
		return port
	}
	plain, encrypted := listening("-addr", ":0"), listening(append(secure, "-addr", ":0")...)
	noKey := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }))
	defer noKey.Close()
	silent := must(net.Listen("tcp", "127.0.0.1:0"))
	defer silent.Close()
	for _, test := range []struct {
		name string
		args []string
		want string // empty if the server is healthy
	}{
		{name: "an address", args: []string{"-addr", "127.0.0.1:" + plain}},
		{name: "all addresses", args: []string{"-addr", ":" + plain}},
		{name: "all IPv4 addresses", args: []string{"-addr", "0.0.0.0:" + plain}},
		{name: "a name", args: []string{"-addr", "localhost:" + plain}},
		{name: "any certificate", args: append([]string{"-addr", ":" + encrypted}, secure...)},
		{name: "TLS if the server should have it", args: append([]string{"-addr", ":" + plain}, secure...), want: "HTTP response to HTTPS client"},
		{name: "a named port where nobody listens", args: []string{"-addr", "127.0.0.1:gopher"}, want: "dial tcp 127.0.0.1:70: connect: connection refused"},
		{name: "a server without a key", args: []string{"-addr", noKey.Listener.Addr().String()}, want: "503 Service Unavailable"},
		{name: "a server that does not answer for three seconds", args: []string{"-addr", silent.Addr().String()}, want: "Timeout"},
	} {
		t.Run(test.name, func(t *testing.T) {
			keys := filepath.Join(t.TempDir(), "keys")
			code, stdout, stderr := runHere(t.Context(), append([]string{"-healthcheck", "-keys", keys}, test.args...)...)
			equal(t, "stdout", stdout, "")
			if test.want == "" {
				equal(t, "exit status", code, 0)
				equal(t, "stderr", stderr, "")
			} else {
				equal(t, "exit status", code, 1)
				equal(t, "lines on stderr", strings.Count(stderr, "\n"), 1)
				wantError(t, "stderr", errors.New(stderr), test.want)
			}
			if _, err := os.Stat(keys); err == nil {
				t.Error("there is a keys directory")
			}
		})
	}
}

func TestASignalEndsHealthcheck(t *testing.T) {
	t.Parallel()
	silent := must(net.Listen("tcp", "127.0.0.1:0"))
	defer silent.Close()
	p := launch(t, serverCommand(t, "-healthcheck", "-addr", silent.Addr().String()))
	conn := must(silent.Accept()) // the health check waits for an answer
	defer conn.Close()
	p.cmd.Process.Signal(syscall.SIGTERM)
	equal(t, "exit status", p.exitCode(t), 1)
	equal(t, "stderr", p.stderr.String(), "jwks-server: interrupted before the server answered\n")
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	code, _, _ := runHere(canceled, "-healthcheck", "-addr", silent.Addr().String())
	equal(t, "exit status after an early signal", code, 1)
	silent.(*net.TCPListener).SetDeadline(time.Now().Add(100 * time.Millisecond)) // a connection would be here already
	_, err := silent.Accept()
	wantError(t, "a connection after an early signal", err, "i/o timeout")
}

func TestTheServerAnswersAtAllAddressesOfLocalhost(t *testing.T) {
	t.Parallel()
	p := startProcess(t, withKey(t, "-addr", "localhost:0")...)
	_, port, _ := net.SplitHostPort(p.addr())
	for _, address := range []string{"127.0.0.1", "::1"} {
		if !hasAddress(address) {
			continue
		}
		w, err := http.Get("http://" + net.JoinHostPort(address, port) + jwksPath)
		ok(t, err)
		w.Body.Close()
		equal(t, "status at "+address, w.StatusCode, http.StatusOK)
	}
	p.cmd.Process.Signal(syscall.SIGTERM)
	equal(t, "exit status", p.exitCode(t), 0)
	equal(t, "stdout", p.stdout.String(), p.base+"\n")
}

// layout is the order of the source files. Each can be read without those before it.
var layout = []string{
	"main.go",
	"check.go",
	"checksets.go",
	"checkrows.go",
	"verdict.go",
	"checkclient.go",
	"tap.go",
	"routes.go",
	"handlers.go",
	"sets.go",
	"setfaults.go",
	"faults.go",
	"badtoken.go",
	"flags.go",
	"request.go",
	"clients.go",
	"token.go",
	"httperror.go",
	"maintain.go",
	"keystore.go",
	"keydir.go",
	"keyring.go",
	"rotation.go",
	"limiter.go",
	"key.go",
	"json.go",
	"connections.go",
	"rlimit_unix.go",
	"rlimit_other.go",
	"log.go",
}

func TestEachFileCanBeReadWithoutThoseAboveIt(t *testing.T) {
	sources, err := filepath.Glob("*.go")
	ok(t, err)
	sources = slices.DeleteFunc(sources, func(name string) bool { return strings.HasSuffix(name, "_test.go") })
	equal(t, "the source files", slices.Sorted(slices.Values(layout)), sources)
	positions := token.NewFileSet()
	var files []*ast.File
	for _, name := range sources {
		file, err := parser.ParseFile(positions, name, nil, 0)
		ok(t, err)
		files = append(files, file)
	}
	info := types.Info{Uses: map[*ast.Ident]types.Object{}}
	check := types.Config{Error: func(error) {}} // other packages do not matter
	check.Check("main", positions, files, &info)
	seen := 0
	for use, object := range info.Uses {
		defined := slices.Index(layout, positions.Position(object.Pos()).Filename)
		used := slices.Index(layout, positions.Position(use.Pos()).Filename)
		if defined < 0 || defined == used {
			continue
		}
		seen++
		if defined < used {
			t.Errorf("%s uses %s, which is defined in %s, above it", positions.Position(use.Pos()), use.Name, layout[defined])
		}
	}
	if seen < 100 {
		t.Errorf("only %d uses across files were seen", seen)
	}
}
