package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"math/rand/v2"
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
	"sync"
	"sync/atomic"
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

func TestKill9AtAnyMomentLosesNoToken(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	flags := []string{"-keys", dir, "-key-ttl", "3s", "-token-ttl", "1s", "-publish-ahead", "1s"}
	var tokens []string
	verified := 0
	for range 50 {
		p := startProcess(t, flags...)
		tokens = p.set(t).alive(t, "the server after a kill", tokens...)
		verified += len(tokens)
		wholeKeys(t, dir)
		taken := make(chan []string)
		go func() {
			var tokens []string
			for {
				switch w := p.do("POST", "/auth", ""); {
				case p.killed.Load():
					taken <- tokens
					return
				case w.status != http.StatusOK:
					t.Errorf("POST /auth before the kill = %d %s %v; want 200", w.status, w.body, w.err)
				default:
					tokens = append(tokens, w.token(t))
				}
				time.Sleep(2 * time.Millisecond)
			}
		}()
		if random.IntN(16) > 0 {
			time.Sleep(time.Duration(random.IntN(100)) * time.Millisecond)
		} else {
			awaitWrite(dir, 1500*time.Millisecond)
		}
		p.kill()
		tokens = append(tokens, <-taken...)
		if random.IntN(3) == 0 { // and while the next one starts and makes keys
			early := launch(t, serverCommand(t, flags...))
			awaitWrite(dir, time.Duration(random.IntN(250))*time.Millisecond)
			time.Sleep(time.Duration(random.IntN(6)) * time.Millisecond)
			early.kill()
		}
	}
	t.Logf("%d verifications of tokens that a kill outlived, %d writes cut short", verified, len(halfWritten(dir)))
	if verified < 50 {
		t.Errorf("only %d tokens outlived a kill", verified)
	}
}

// awaitWrite waits until a key file is being written in dir, for some time at most.
func awaitWrite(dir string, most time.Duration) {
	before := len(halfWritten(dir))
	for begin := time.Now(); time.Since(begin) < most && len(halfWritten(dir)) <= before; {
		time.Sleep(200 * time.Microsecond)
	}
}

// A replica is a process that may be replaced.
type replica struct{ atomic.Pointer[process] }

func newReplicas(processes ...*process) (replicas []*replica) {
	for _, p := range processes {
		r := &replica{}
		r.Store(p)
		replicas = append(replicas, r)
	}
	return replicas
}

// verifyAcross takes tokens from each replica and verifies them by the JWK Set of another, at
// once and until they expire, for d. With one clock, all have to sign with the same key.
func verifyAcross(t *testing.T, d time.Duration, oneClock bool, replicas ...*replica) {
	t.Helper()
	var wait sync.WaitGroup
	var verified atomic.Int64
	ask := func(p *process, method, path string) (w response, ok bool) {
		w = p.do(method, path, "")
		if w.status != http.StatusOK && !(w.err != nil && p.killed.Load()) {
			t.Errorf("%s %s at a replica = %d %s %v; want 200", method, path, w.status, w.body, w.err)
		}
		return w, w.status == http.StatusOK
	}
	until := time.Now().Add(d)
	for i := range replicas {
		wait.Go(func() {
			var tokens []string
			for n := 0; time.Now().Before(until); n++ {
				time.Sleep(25 * time.Millisecond)
				j := (i + 1 + n%(len(replicas)-1)) % len(replicas)
				mine, other := replicas[i].Load(), replicas[j].Load()
				first, ok1 := ask(mine, "POST", "/auth")
				others, ok2 := ask(other, "POST", "/auth")
				again, ok3 := ask(mine, "POST", "/auth")
				set, ok4 := ask(other, "GET", jwksPath)
				if !ok1 || !ok2 || !ok3 || !ok4 {
					continue
				}
				tokens = append(tokens, first.token(t), again.token(t))
				kid := kidOf(t, first.token(t))
				if other := kidOf(t, others.token(t)); oneClock && kid == kidOf(t, again.token(t)) && kid != other {
					t.Errorf("replica %d signs with %s, replica %d with %s", i, kid, j, other)
				}
				tokens = parseSet(t, set.body).alive(t, fmt.Sprintf("replica %d, of tokens of %d,", j, i), tokens...)
				verified.Add(int64(len(tokens)))
			}
		})
	}
	wait.Wait()
	t.Logf("%d verifications", verified.Load())
	if verified.Load() < 100 {
		t.Errorf("only %d verifications", verified.Load())
	}
}

func TestReplicaProcesses(t *testing.T) {
	t.Parallel()
	t.Run("act as one while one is killed again and again", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		flags := []string{"-keys", dir, "-key-ttl", "4s", "-token-ttl", "2s", "-publish-ahead", "2s"}
		replicas := newReplicas(startProcess(t, flags...), startProcess(t, flags...), startProcess(t, flags...))
		begin, names := time.Now(), map[string]bool{}
		done := make(chan struct{})
		go func() {
			defer close(done)
			verifyAcross(t, 9*time.Second, true, replicas...)
		}()
		for running := true; running; {
			for _, name := range wholeKeys(t, dir) {
				names[name] = true
			}
			select {
			case <-done:
				running = false
			case <-time.After(1100 * time.Millisecond):
				replicas[2].Load().kill()
				replicas[2].Store(startProcess(t, flags...))
			}
		}
		// One server makes a key a second with these flags, and begins with seven.
		seconds := int(time.Since(begin).Seconds())
		if n := len(names) - 7; n > seconds*3/2 {
			t.Errorf("three replicas made %d keys in %d s; want one for all a second", n, seconds)
		}
	})
	t.Run("that start together make one key", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		var replicas []*process
		for range 4 { // a key of this size takes long to make, and each time another time
			replicas = append(replicas, launch(t, serverCommand(t, "-keys", dir, "-key-ttl", "1000h", "-publish-ahead", "1s", "-key-bits", "3072")))
		}
		for _, p := range replicas {
			p.serving(t)
		}
		if n := len(wholeKeys(t, dir)); n > 2 { // two may be written at the same moment
			t.Errorf("four replicas made %d keys; want one", n)
		}
		eventually(t, "all sign with the same key", func() bool {
			var kids []string
			for _, p := range replicas {
				kids = append(kids, kidOf(t, p.token(t, "", "")))
			}
			return len(slices.Compact(kids)) == 1
		})
	})
	t.Run("verify each other when their clocks are two seconds apart", func(t *testing.T) {
		t.Parallel()
		path, err := fastBinary()
		if err != nil {
			t.Fatal(err)
		}
		flags := []string{"-addr", "127.0.0.1:0", "-keys", t.TempDir(), "-key-ttl", "8s", "-token-ttl", "4s", "-publish-ahead", "6s"}
		fast := launch(t, exec.Command(path, flags...))
		exact := startProcess(t, flags...) // at once, over an empty directory
		fast.serving(t)
		iat := func(p *process) int64 {
			_, claims := parts(t, p.token(t, "", ""))
			n, _ := claims["iat"].(json.Number).Int64()
			return n
		}
		if ahead := iat(fast) - iat(exact); ahead < 1 || ahead > 3 {
			t.Errorf("the fast clock is %d s fast; want 2", ahead)
		}
		time.Sleep(2 * time.Second) // each has to see what the other made at first
		verifyAcross(t, 8*time.Second, false, newReplicas(fast, exact)...)
	})
}

func TestTheDirectory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir() + "/keys"
	flags := []string{"-keys", dir}
	a := startProcess(t, flags...)
	b := startProcess(t, flags...)
	t.Run("emptied it is filled again", func(t *testing.T) {
		token, before := a.token(t, "", ""), wholeKeys(t, dir)
		ok(t, os.Rename(dir, dir+".away"), os.Mkdir(dir, 0o700)) // as a disk that is mounted anew
		eventually(t, "the key files are back", func() bool { return slices.Equal(wholeKeys(t, dir), before) })
		for _, p := range []*process{a, b} {
			p.set(t).alive(t, "a server of an emptied directory", token, p.token(t, "", ""))
		}
		eventually(t, "one says so", func() bool { return strings.Contains(a.stderr.String()+b.stderr.String(), "key stored again") })
	})
	t.Run("renaming its file to .revoked revokes a key", func(t *testing.T) {
		names, token := wholeKeys(t, dir), a.token(t, "", "")
		first, second := kidOfName(names[0]), kidOfName(names[1])
		if kid := kidOf(t, token); kid != first {
			t.Fatalf("%s signs; want the first key, %s", kid, first)
		}
		ok(t, os.Rename(dir+"/"+names[0]+".pem", dir+"/"+names[0]+".revoked"))
		eventually(t, "no replica publishes the key", func() bool { return a.set(t)[first] == nil && b.set(t)[first] == nil })
		for _, p := range []*process{a, b, startProcess(t, flags...)} {
			if set := p.set(t); set[first] != nil {
				t.Error("a server publishes a revoked key")
			}
			if kid := kidOf(t, p.token(t, "", "")); kid != second {
				t.Errorf("%s signs after the revocation of %s; want the next key, %s", kid, first, second)
			}
		}
		if now := wholeKeys(t, dir); slices.Contains(now, names[0]) {
			t.Error("the file of a revoked key is back")
		}
	})
}

func TestARestartWithFlagsToWatchRotationRotatesAtOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	plain := startProcess(t, "-keys", dir)
	old := plain.token(t, "", "")
	plain.kill()
	p := startProcess(t, "-keys", dir, "-key-ttl", "10s", "-token-ttl", "2s", "-publish-ahead", "20s")
	first := kidOf(t, p.token(t, "", ""))
	if first == kidOf(t, old) {
		t.Error("the key of the plain start signs still")
	}
	eventually(t, "the key rotates", func() bool { return kidOf(t, p.token(t, "", "")) != first })
	if alive := p.set(t).alive(t, "the server that rotates", old); len(alive) != 1 {
		t.Error("the token of the plain start does not verify")
	}
	p.kill()
	if kid := kidOf(t, startProcess(t, "-keys", dir).token(t, "", "")); kid != kidOf(t, old) {
		t.Errorf("after a plain restart %s signs; want the key of the plain start, %s", kid, kidOf(t, old))
	}
}

func TestHostileClientsHurtNobodyElse(t *testing.T) {
	t.Parallel()
	p := startProcess(t, withKey(t)...)
	t.Run("meanwhile", func(t *testing.T) {
		t.Run("others are answered", func(t *testing.T) {
			t.Parallel()
			for range 100 {
				p.set(t).alive(t, "the server", p.token(t, "", ""))
				time.Sleep(100 * time.Millisecond)
			}
		})
		for _, test := range []struct {
			name, head, more string
			every            time.Duration
			wantStatus       int // 0 if the connection is closed without an answer
			want             string
		}{
			{"slow headers", "GET / HTTP/1.1\r\nHost: localhost\r\nX-A: ", "a", 300 * time.Millisecond, 0, ""},
			{"slow body", "POST /auth HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10000\r\n\r\n", "a", 300 * time.Millisecond, 400, "has to come whole"},
			{"endless header", "GET / HTTP/1.1\r\nHost: localhost\r\nX-A: ", strings.Repeat("a", 4<<10), 0, 431, ""},
			{"endless body", "POST /auth HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n", "10000\r\n" + strings.Repeat("a", 64<<10) + "\r\n", 0, 413, "too large"},
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
						if w := p.do("POST", "/auth", ""); w.status != http.StatusOK && (w.status != http.StatusServiceUnavailable || w.header.Get("Retry-After") != "1") {
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
				if answer, _ := io.ReadAll(conn); len(answer) > 0 && !bytes.HasPrefix(answer, []byte("HTTP/1.1 4")) {
					t.Errorf("garbage is answered by %q", answer)
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
			answers := bufio.NewReader(conn)
			for i := range requests {
				body := wantStatus(t, answers, http.StatusOK, "token")
				claims, err := set.verify(parseJSON(t, body)["token"].(string))
				if want := fmt.Sprintf("user-%03d", i); err != nil || claims["sub"] != want {
					t.Errorf("request %d gets a token of %v, %v; want %s", i, claims["sub"], err, want)
				}
				wantStatus(t, answers, http.StatusNotFound, "not_found")
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
					content, err := io.ReadAll(conn)
					if answer := string(content); err != nil || !regexp.MustCompile(`^HTTP/1\.1 [234]`).MatchString(answer) || strings.Contains(answer, "eyJ") {
						t.Errorf("%s %s is answered by %q %v; want an answer without a token", method, path, answer, err)
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

// wantStatus reads an answer and returns its body.
func wantStatus(t testing.TB, answers *bufio.Reader, status int, text string) (body string) {
	t.Helper()
	answer, err := http.ReadResponse(answers, nil)
	if err != nil {
		t.Fatalf("no answer: %v; want %d", err, status)
	}
	content, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != status || !strings.Contains(string(content), text) {
		t.Errorf("answer = %d %s %v; want %d with %q", answer.StatusCode, content, err, status, text)
	}
	return string(content)
}

func TestClientsThatWentAwayLeaveTheQueue(t *testing.T) {
	t.Parallel()
	p := startProcess(t, withKey(t, "-v")...)
	const requests = 800
	var conns []net.Conn
	for range requests {
		conns = append(conns, p.dial(t))
	}
	p.set(t) // all are accepted, because connections are in their order
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
		t.Errorf("%d of %d tokens were signed for clients that went away", n, requests)
	}
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
