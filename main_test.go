package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
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

// runHere runs the server in this process until ctx is canceled.
func runHere(ctx context.Context, args ...string) (code int, stdout, stderr string) {
	var out, log lockedBuffer
	code = exitStatus(run(ctx, withDefaults(args, "-addr", "127.0.0.1:0"), &out, &log), &log, logsJSON(args))
	return code, out.String(), log.String()
}

func TestAFailedStartPrintsOneLineAndMakesNoDirectory(t *testing.T) {
	t.Parallel()
	busy := must(net.Listen("tcp", "127.0.0.1:0"))
	defer busy.Close()
	addr, dir, file := busy.Addr().String(), t.TempDir(), putFile(t, "[]")
	keys, missing, open, mixed := dir+"/keys", dir+"/missing", dir+"/open", keyDir(t.TempDir())
	putKey(t, mixed, 0, time.Hour)
	damaged := mixed.path("20991231T235959Z.x.pem")
	ok(t, os.Mkdir(open, 0o700), os.Chmod(open, 0o702), os.WriteFile(damaged, nil, 0o600))
	for _, test := range []struct {
		name string
		args []string
		want string
	}{
		{
			name: "a busy port",
			args: []string{"-addr", addr},
			want: "cannot listen on " + addr + ": listen tcp " + addr + ": bind: address already in use; choose another address with -addr",
		},
		{
			name: "an invalid port",
			args: []string{"-addr", "127.0.0.1:99999"},
			want: "cannot listen on 127.0.0.1:99999: address 99999: invalid port; choose another address with -addr",
		},
		{
			name: "an address without a port",
			args: []string{"-addr", "127.0.0.1"},
			want: "cannot listen on 127.0.0.1: address 127.0.0.1: missing port in address; choose another address with -addr",
		},
		{
			name: "a keys directory without a parent",
			args: []string{"-keys", missing + "/x"},
			want: "cannot make the keys directory: mkdir " + missing + "/x: no such file or directory; " +
				"mount or make its parent, or choose another directory with -keys",
		},
		{
			name: "a file as the keys directory",
			args: []string{"-keys", file},
			want: "cannot use the keys directory: " + file + " is not a directory; choose another with -keys",
		},
		{
			name: "a keys directory that anyone may write to",
			args: []string{"-keys", open},
			want: "cannot use the keys directory: everybody may write to " + open + ", so anybody's keys would sign; " +
				"chmod o-w it, or choose another with -keys, such as a directory below it",
		},
		{
			name: "a damaged key file beside a valid one",
			args: []string{"-keys", string(mixed)},
			want: "key file " + damaged + " is damaged: it has to be one PEM block, PRIVATE KEY, and nothing else; repair it or move it elsewhere",
		},
		{
			name: "a missing clients file",
			args: []string{"-clients", missing},
			want: "cannot read the clients file: open " + missing + ": no such file or directory",
		},
		{
			name: "an invalid clients file",
			args: []string{"-clients", file},
			want: "cannot use the clients file " + file + ": it has to be one JSON object: it is not an object",
		},
		{
			name: "a missing certificate",
			args: []string{"-tls-cert", missing, "-tls-key", file},
			want: "cannot use -tls-cert " + missing + " with -tls-key " + file + ": open " + missing + ": no such file or directory",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), hang)
			defer cancel() // a server that starts nevertheless exits with 0
			code, stdout, stderr := runHere(ctx, withDefaults(test.args, "-keys", keys, "-publish-ahead", "1s")...)
			equal(t, "exit status", code, 1)
			equal(t, "stdout", stdout, "")
			equal(t, "stderr", stderr, "jwks-server: "+test.want+"\n")
			wantMissing(t, keys)
		})
	}
}

// wantMissing checks that there is no file or directory at path.
func wantMissing(t testing.TB, path string) {
	t.Helper()
	if _, err := os.Stat(path); err == nil {
		t.Errorf("there is %s", path)
	}
}

func TestAFailedStartWithLogJSONPrintsOneLineOfJSON(t *testing.T) {
	for _, test := range []struct {
		args     []string
		wantCode int
		want     string
	}{
		{args: []string{"-addr", "127.0.0.1:99999", "-log-json"}, wantCode: 1, want: "address 99999: invalid port"},
		{args: []string{"-nonsense", "-log-json"}, wantCode: 2, want: "flag provided but not defined: -nonsense; -h lists the flags"},
		{args: []string{"-log-json", "-token-ttl", "0s"}, wantCode: 2, want: "-token-ttl 0s is too short"},
	} {
		code, stdout, stderr := runHere(t.Context(), withDefaults(test.args, "-keys", t.TempDir())...)
		equal(t, "exit status", code, test.wantCode)
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
		name string
		args []string
		want int
	}{
		{name: "0 after a help text", args: []string{"-h"}, want: 0},
		{name: "1 after a failed start", args: []string{"-addr", "127.0.0.1:99999"}, want: 1},
		{name: "2 after an invalid flag", args: []string{"-nonsense"}, want: 2},
	} {
		equal(t, test.name, launch(t, serverCommand(t, test.args...)).exitCode(t), test.want)
	}
}

func TestBaseURL(t *testing.T) {
	for _, test := range []struct {
		name, listened, addr string
		secure               bool
		want                 string
	}{
		{name: "an address", listened: "127.0.0.1:0", addr: "127.0.0.1:8080", want: "http://127.0.0.1:8080"},
		{name: "a name is kept", listened: "a.test:0", addr: "127.0.0.1:8080", want: "http://a.test:8080"},
		{name: "all addresses", listened: ":0", addr: "[::]:8080", want: "http://localhost:8080"},
		{name: "all IPv4 addresses", listened: "0.0.0.0:0", addr: "0.0.0.0:8080", want: "http://localhost:8080"},
		{name: "TLS", listened: "127.0.0.1:0", addr: "127.0.0.1:8443", secure: true, want: "https://127.0.0.1:8443"},
		{name: "IPv6", listened: "[0:0::1]:0", addr: "[::1]:8080", want: "http://[::1]:8080"},
		{name: "IPv6 without its zone", listened: "[fe80::1%eth0]:0", addr: "[fe80::1%eth0]:8080", want: "http://[fe80::1]:8080"},
	} {
		addr := net.TCPAddrFromAddrPort(netip.MustParseAddrPort(test.addr))
		equal(t, test.name, baseURL(test.listened, addr, test.secure), test.want)
	}
}

const (
	openWarning   = "anyone who can reach this address can get any token"
	secretWarning = "secrets and tokens cross the network unencrypted"
)

func TestTheLogWarnsAboutInsecureAddresses(t *testing.T) {
	t.Parallel()
	clients := []string{"-clients", putFile(t, `{"a": {"secret_sha256": "`+strings.Repeat("ab", 32)+`"}}`)}
	everywhere, secure, issuer := []string{"-addr", ":0"}, tlsFlags(t), []string{"-issuer", "https://issuer.test/a"}
	for _, test := range []struct {
		name       string
		args       []string
		wantBase   string // without its port
		wantIssuer string // the base URL if empty
		want       []string
		wantStatus int // of a POST to /auth by a web page
	}{
		{name: "loopback", wantBase: "http://127.0.0.1", wantStatus: 403},
		{name: "a name", args: []string{"-addr", "localhost:0"}, wantBase: "http://localhost", wantStatus: 403},
		{name: "loopback with TLS", args: secure, wantBase: "https://127.0.0.1", wantStatus: 403},
		{name: "loopback with clients", args: clients, wantBase: "http://127.0.0.1", wantStatus: 401},
		{name: "all addresses", args: everywhere, wantBase: "http://localhost", want: []string{openWarning}, wantStatus: 403},
		{
			name: "all addresses with TLS", args: slices.Concat(everywhere, secure),
			wantBase: "https://localhost", want: []string{openWarning}, wantStatus: 403,
		},
		{
			name: "all IPv4 addresses with clients", args: slices.Concat([]string{"-addr", "0.0.0.0:0"}, clients),
			wantBase: "http://localhost", want: []string{secretWarning}, wantStatus: 401,
		},
		{
			name: "all addresses with clients and TLS", args: slices.Concat(everywhere, clients, secure),
			wantBase: "https://localhost", wantStatus: 401,
		},
		{name: "an issuer", args: issuer, wantBase: "http://127.0.0.1", wantIssuer: "https://issuer.test/a", wantStatus: 403},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := startProcess(t, withKey(t, test.args...)...)
			base := must(url.Parse(p.base))
			equal(t, "base URL", base.Scheme+"://"+base.Hostname(), test.wantBase)
			equal(t, "issuer", p.do("GET", discoveryPath, "").json(t)["issuer"], any(cmp.Or(test.wantIssuer, p.base)))
			equal(t, "status of POST /auth by a web page", p.do("POST", "/auth", "", "Origin", "http://evil.test").status, test.wantStatus)
			p.logs(t, "msg=serving")
			p.stop(t, syscall.SIGTERM) // so that the log is complete
			var warnings []string
			for _, warning := range []string{openWarning, secretWarning} {
				if strings.Contains(p.stderr.String(), warning) {
					warnings = append(warnings, warning)
				}
			}
			equal(t, "warnings", warnings, test.want)
		})
	}
}

// stop sends a signal to the server, and checks that it exits with status 0.
func (p *process) stop(t testing.TB, signal os.Signal) {
	t.Helper()
	p.cmd.Process.Signal(signal)
	equal(t, "exit status", p.exitCode(t), 0)
}

func TestTheHTTPServerHasTimeoutsAndSizeLimits(t *testing.T) {
	s := newHTTPServer(nil, nil)
	equal(t, "ReadHeaderTimeout", s.ReadHeaderTimeout, 5*time.Second)
	equal(t, "ReadTimeout", s.ReadTimeout, 10*time.Second)
	equal(t, "WriteTimeout", s.WriteTimeout, 15*time.Second)
	equal(t, "IdleTimeout", s.IdleTimeout, 620*time.Second)
	equal(t, "MaxHeaderBytes", s.MaxHeaderBytes, 16<<10)
}

func TestAShellReadsTheBaseURLFromStdout(t *testing.T) {
	t.Parallel()
	server := serverCommand(t, withKey(t)...)
	const script = `read -r URL < <(exec "$@"); server=$!; echo "$URL"; read -r; kill $server`
	cmd := exec.Command("bash", append([]string{"-c", script, "bash"}, server.Args...)...)
	stdin := must(cmd.StdinPipe())
	p := launch(t, cmd)
	t.Cleanup(func() { stdin.Close(); p.exitCode(t) })
	p.serving(t).set(t)
}

func TestTheLogIsTextOnStderr(t *testing.T) {
	t.Parallel()
	p := startProcess(t, withKey(t)...)
	p.stop(t, os.Interrupt)
	equal(t, "stdout", p.stdout.String(), p.base+"\n")
	if log := p.stderr.String(); !regexp.MustCompile(`^(time=\S+ level=[A-Z]+ msg=.*\n)+$`).MatchString(log) {
		t.Errorf("stderr = %q; want lines of slog text", log)
	}
}

func TestTheLogIsJSONWithLogJSONAndContainsNoSecrets(t *testing.T) {
	t.Parallel()
	flags := withKey(t, "-log-json", "-v", "-publish-ahead", "45m")
	p := startProcess(t, flags...)
	token := p.token(t, "?expires_in=60", `{"sub":"hidden-subject"}`)
	kid, dir := kidOf(t, token), flags[1]
	p.logs(t, "now signing")
	p.stop(t, os.Interrupt)
	events := map[string]map[string]any{}
	for line := range strings.Lines(p.stderr.String()) {
		event := parseJSON(t, line)
		events[event["msg"].(string)] = event
	}
	const anything = "anything"
	for name, want := range map[string]map[string]string{
		"serving":     {"issuer": "the URL of each request", "jwks": p.base + jwksPath, "tokens": p.base + "/auth"},
		"key found":   {"kid": kid, "signs_from": anything, "signs_until": anything, "expires": anything},
		"key made":    {"kid": anything, "signs_from": anything, "signs_until": anything, "expires": anything},
		"now signing": {"kid": kid},
		"request":     {"method": "POST", "path": "/auth", "status": "200", "duration": anything, "from": anything},
	} {
		for field, value := range want {
			if got, ok := events[name][field]; !ok || value != anything && fmt.Sprint(got) != value {
				t.Errorf("log %q: %s = %v; want %s", name, field, got, value)
			}
		}
	}
	secrets := []string{"hidden-subject", token[len(token)-20:], "expires_in"}
	for _, name := range wholeKeys(t, dir) {
		content := must(os.ReadFile(keyDir(dir).path(name + ".pem")))
		secrets = append(secrets, strings.Split(string(content), "\n")[1])
	}
	for _, secret := range secrets {
		if strings.Contains(p.stderr.String(), secret) {
			t.Errorf("the log contains a secret, %s:\n%s", secret, &p.stderr)
		}
	}
}

func TestTheReadersOfStdoutAndStderrMayGoAway(t *testing.T) {
	t.Parallel()
	for _, script := range []string{`exec "$@"`, `trap '' PIPE; exec "$@"`} {
		t.Run(script, func(t *testing.T) {
			t.Parallel()
			out, stdout, err1 := os.Pipe()
			log, stderr, err2 := os.Pipe()
			ok(t, err1, err2, out.Close()) // before there is anything to read
			defer stdout.Close()
			defer stderr.Close()
			cmd := exec.Command("sh", append([]string{"-c", script, "sh"}, serverCommand(t, withKey(t, "-v")...).Args...)...)
			cmd.Stdout, cmd.Stderr = stdout, stderr
			p := launch(t, cmd)
			for lines := bufio.NewReader(log); p.base == ""; {
				line := must(lines.ReadString('\n'))
				if found := submatches(line, `tokens=(\S+)/auth`); found != nil {
					p.base = found[0]
				}
			}
			log.Close()
			for range 5 {
				p.set(t)
			}
		})
	}
}

// A halfRequest is an in-flight request: the server waits for the second half of its body.
type halfRequest struct {
	conn      net.Conn
	responses *bufio.Reader
}

func (p *process) sendHalf(t testing.TB) halfRequest {
	t.Helper()
	h := halfRequest{conn: p.dial(t)}
	h.responses = bufio.NewReader(h.conn)
	fmt.Fprint(h.conn, "POST /auth HTTP/1.1\r\nHost: localhost\r\nContent-Length: 13\r\nExpect: 100-continue\r\n\r\n")
	if line, _ := h.responses.ReadString('\n'); !strings.Contains(line, "100 Continue") {
		t.Fatalf("the server does not wait for the body: %q", line)
	}
	h.responses.ReadString('\n')
	fmt.Fprint(h.conn, `{"sub":`)
	return h
}

// finish sends the other half, and checks that the response is a token.
func (h halfRequest) finish(t testing.TB) {
	t.Helper()
	fmt.Fprint(h.conn, `"abc"}`)
	wantStatus(t, h.responses, http.StatusOK, "token")
}

func TestASignalDrainsInFlightRequestsAndExitsWith0(t *testing.T) {
	t.Parallel()
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		t.Run(signal.String(), func(t *testing.T) {
			t.Parallel()
			p := startProcess(t, withKey(t)...)
			request := p.sendHalf(t)
			p.cmd.Process.Signal(signal)
			p.logs(t, "shutting down")
			eventually(t, "a new connection is refused", func() bool { return p.do("GET", "/", "", "Connection", "close").err != nil })
			request.finish(t)
			equal(t, "exit status", p.exitCode(t), 0)
		})
	}
}

func TestSIGHUPIsIgnoredUnderNohup(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("sh", append([]string{"-c", `trap '' HUP; exec "$@"`, "sh"}, serverCommand(t, withKey(t)...).Args...)...)
	p := launch(t, cmd).serving(t)
	request := p.sendHalf(t)
	p.cmd.Process.Signal(syscall.SIGHUP)
	for range 20 {
		p.do("GET", discoveryPath, "", "Connection", "close").json(t)
	}
	p.cmd.Process.Signal(syscall.SIGTERM) // a second signal if SIGHUP was one
	request.finish(t)
	equal(t, "exit status", p.exitCode(t), 0)
}

func TestASecondSignalAbortsInFlightRequests(t *testing.T) {
	t.Parallel()
	p := startProcess(t, withKey(t)...)
	p.sendHalf(t)
	p.cmd.Process.Signal(syscall.SIGTERM)
	p.logs(t, "shutting down")
	eventually(t, "the server ends", func() bool { // the moment from which a signal is the second one cannot be seen
		p.cmd.Process.Signal(syscall.SIGTERM)
		return p.ended()
	})
	equal(t, "exit status after death by a signal", p.exitCode(t), -1)
}

func TestASignalDuringTheStartExitsWith0(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "keys")
	p := launch(t, serverCommand(t, "-keys", dir, "-key-bits", "4096"))
	eventually(t, "the directory is there, and keys are being made", func() bool { _, err := os.Stat(dir); return err == nil })
	p.stop(t, syscall.SIGTERM)
	equal(t, "stdout", p.stdout.String(), "")
	equal(t, "errors", submatches(p.stderr.String(), `jwks-server: (.*)`), nil)
}

func TestTheServerSpeaksHTTP2(t *testing.T) {
	t.Parallel()
	w, err := startProcess(t, withKey(t, tlsFlags(t)...)...).target(httptest.NewRequest("GET", jwksPath, nil))
	ok(t, err)
	w.Body.Close()
	equal(t, "protocol", w.Proto, "HTTP/2.0")
	equal(t, "status", w.StatusCode, http.StatusOK)
}

func TestHealthcheck(t *testing.T) {
	t.Parallel()
	secure := tlsFlags(t) // for a name that no address has
	listening := func(args ...string) string {
		_, port, _ := net.SplitHostPort(startProcess(t, withKey(t, args...)...).addr())
		return port
	}
	plain, encrypted := listening("-addr", ":0"), listening(append(secure, "-addr", ":0")...)
	noKey := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
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
		{name: "a server without TLS", args: append([]string{"-addr", ":" + plain}, secure...), want: "HTTP response to HTTPS client"},
		{name: "a named port", args: []string{"-addr", "127.0.0.1:gopher"}, want: "dial tcp 127.0.0.1:70: connect: connection refused"},
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
			wantMissing(t, keys)
		})
	}
}

func TestAHealthcheckIsNotCountedAsARead(t *testing.T) {
	t.Parallel()
	p := startProcess(t, withKey(t)...)
	code, _, _ := runHere(t.Context(), "-healthcheck", "-addr", p.addr())
	equal(t, "exit status", code, 0)
	equal(t, "reads", p.do("GET", "/faults/reads", "").json(t)["jwks"], any(json.Number("0")))
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
	p.stop(t, syscall.SIGTERM)
	equal(t, "stdout", p.stdout.String(), p.base+"\n")
}

// layout is the order of the source files. Each can be read without those before it.
var layout = []string{
	"main.go",
	"check.go",
	"checkkeys.go",
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
