package main

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

const nobody = 65534

// asNobody returns a keys directory, and the command of a server that does not run as root,
// for whom file modes would mean nothing.
func asNobody(t testing.TB, args ...string) (dir string, command func() *exec.Cmd) {
	t.Helper()
	parent := t.TempDir()
	dir = filepath.Join(parent, "keys")
	ok(t, os.Mkdir(dir, 0o700))
	var attr *syscall.SysProcAttr
	if os.Getuid() == 0 {
		attr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		ok(t, os.Chmod(parent, 0o755), os.Chmod(filepath.Dir(parent), 0o755), os.Chown(dir, nobody, nobody))
	}
	return dir, func() *exec.Cmd {
		cmd := serverCommand(t, append([]string{"-keys", dir}, args...)...)
		cmd.SysProcAttr = attr
		return cmd
	}
}

// limitFiles limits the size of the files that the server writes, as a full disk does. A
// negative size lifts the limit.
func limitFiles(t testing.TB, p *process, size int64) {
	t.Helper()
	var limit syscall.Rlimit
	ok(t, syscall.Getrlimit(syscall.RLIMIT_FSIZE, &limit)) // the server has inherited it
	if size >= 0 {
		limit.Cur = uint64(size)
	}
	pid := uintptr(p.cmd.Process.Pid)
	_, _, errno := syscall.RawSyscall6(syscall.SYS_PRLIMIT64, pid, syscall.RLIMIT_FSIZE, uintptr(unsafe.Pointer(&limit)), 0, 0, 0)
	equal(t, "error of prlimit", errno, 0)
}

func TestProblemsOfTheDirectoryInvalidateNoToken(t *testing.T) {
	t.Parallel()
	const unlimited = -1
	for _, test := range []struct {
		name  string
		room  int64       // maximum size of a file
		mode  os.FileMode // of the directory
		away  bool        // the directory is renamed
		fresh bool        // an empty directory takes its place
		want  string      // in the log
	}{
		{name: "a full disk", room: 0, mode: 0o700, want: "cannot store a key"},
		{name: "a disk with room for half a key", room: 800, mode: 0o700, want: "cannot store a key"},
		{name: "an empty disk without room", room: 0, mode: 0o700, fresh: true, want: "cannot store a key"},
		{name: "a directory that cannot be written", room: unlimited, mode: 0o500, want: "cannot store a key"},
		{name: "a directory that cannot be read", room: unlimited, mode: 0, want: "cannot read the keys directory"},
		{name: "a missing directory", room: unlimited, mode: 0o700, away: true, want: "cannot read the keys directory"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			dir, command := asNobody(t, "-key-ttl", "3s", "-token-ttl", "1s", "-publish-ahead", "1s")
			cmd := command()
			if test.room >= 0 {
				cmd.SysProcAttr = nil // only the same user may set limits
			}
			keys := dir
			if test.fresh { // dir is a link, which one rename can replace
				keys = dir + ".away"
				ok(t, os.Rename(dir, keys), os.Symlink(keys, dir), os.Mkdir(dir+".fresh", 0o700), os.Symlink(dir+".fresh", dir+".link"))
			}
			p := launch(t, cmd).serving(t)
			if test.room >= 0 {
				limitFiles(t, p, test.room)
			}
			if test.fresh {
				ok(t, os.Rename(dir+".link", dir))
			} else if test.away {
				keys = dir + ".away"
				ok(t, os.Rename(dir, keys))
			}
			ok(t, os.Chmod(keys, test.mode))
			files := func() []string {
				if os.Getuid() != 0 && test.mode == 0 {
					return nil
				}
				return wholeKeys(t, keys)
			}
			before := files()
			sign := func() (token string) { // empty if no key can sign
				w := p.do("POST", "/auth", "")
				if w.status == http.StatusOK {
					return w.token(t)
				}
				wantUnavailable(t, w)
				return ""
			}
			var tokens []string
			for token := sign(); token != ""; token = sign() {
				tokens = p.set(t).alive(t, "the server", append(tokens, token)...)
				time.Sleep(30 * time.Millisecond)
			}
			if len(tokens) == 0 {
				t.Error("no token is alive when the last key stops signing")
			}
			after := files()
			for _, name := range before {
				if expires, _, _ := parseName(name); expires.After(time.Now()) && !slices.Contains(after, name) {
					t.Errorf("the key file %s is gone", name)
				}
			}
			for len(tokens) > 0 { // they verify until they expire
				tokens = p.set(t).alive(t, "the server", tokens...)
				time.Sleep(30 * time.Millisecond)
			}
			eventually(t, "there is no key to publish", func() bool {
				w := p.do("GET", jwksPath, "")
				if w.status != http.StatusOK {
					wantUnavailable(t, w)
				}
				return w.status != http.StatusOK
			})
			equal(t, "lines in a minute with "+test.want, strings.Count(p.stderr.String(), test.want), 1)
			if test.room >= 0 {
				limitFiles(t, p, -1)
			}
			ok(t, os.Chmod(keys, 0o700))
			if test.away {
				ok(t, os.Rename(keys, dir))
			}
			eventually(t, "tokens are issued again", func() bool { return sign() != "" })
			p.set(t).alive(t, "the server", p.token(t, "", ""))
			p.logs(t, "recovered: cannot maintain the keys")
			wholeKeys(t, dir)
			equal(t, "temporary files", halfWritten(dir), nil)
		})
	}
}

// wantUnavailable checks that w says that no key can sign.
func wantUnavailable(t testing.TB, w response) {
	t.Helper()
	equal(t, "status", w.status, http.StatusServiceUnavailable)
	equal(t, "Retry-After", w.header.Get("Retry-After"), "1")
	equal(t, "Cache-Control", w.header.Get("Cache-Control"), "no-store")
	equal(t, "error", w.json(t)["error"], any("temporarily_unavailable"))
}

func TestAServerSignsWithTheKeysOfADirectoryThatItCannotWrite(t *testing.T) {
	t.Parallel()
	dir, command := asNobody(t)
	ok(t, os.Chmod(dir, 0o555))
	p := launch(t, command())
	equal(t, "exit status of a start without a key", p.exitCode(t), 1)
	if stderr := p.stderr.String(); !regexp.MustCompile(`^jwks-server: cannot store a key: .*\n$`).MatchString(stderr) {
		t.Errorf("stderr of a start without a key = %q", stderr)
	}
	k := putKey(t, keyDir(dir), 0, time.Hour)
	ok(t, os.Chmod(keyDir(dir).path(k.name()+".pem"), 0o644)) // as in a Kubernetes Secret
	p = launch(t, command()).serving(t)
	equal(t, "kid", kidOf(t, p.token(t, "", "")), k.kid)
	p.logs(t, "cannot store a key")
	ok(t, os.Chmod(dir, 0o755))
	p.logs(t, "recovered: cannot maintain the keys")
	equal(t, "keys in the set once the directory can be written", len(p.set(t)), 3)
}

func TestUnusableKeyFilesAreLeftAlone(t *testing.T) {
	t.Parallel()
	dir, command := asNobody(t, "-key-ttl", "4s", "-token-ttl", "1s", "-publish-ahead", "2s")
	k := newKey(readyMade()[0], clock().Add(time.Hour))
	away := keyDir(t.TempDir())
	ok(t, away.write(k))
	unreadable, empty, pipe, folder := k.name()+".pem", "20990102T000000Z.x.pem", "20990103T000000Z.y.pem", "20990104T000000Z.z.pem"
	ok(t, os.Chmod(away.path(unreadable), 0), os.WriteFile(away.path(empty), nil, 0o644),
		syscall.Mkfifo(away.path(pipe), 0o644), os.Mkdir(away.path(folder), 0o755))
	move := func(t *testing.T, from, to keyDir) {
		t.Helper()
		for _, name := range []string{unreadable, empty, pipe, folder} {
			ok(t, os.Rename(from.path(name), to.path(name)))
		}
	}
	path := keyDir(dir).path
	want := fmt.Sprintf("key file %s cannot be read: open %s: permission denied; "+
		"key file %s is damaged: it has to be one PEM block, PRIVATE KEY, and nothing else; "+
		"key file %s is not a regular file of a few KiB; and 1 more; repair it or move it elsewhere",
		path(unreadable), path(unreadable), path(empty), path(pipe))
	p := launch(t, command()).serving(t)
	t.Run("are left alone by a running server", func(t *testing.T) {
		move(t, away, keyDir(dir))
		p.logs(t, want)
		first := kidOf(t, p.token(t, "", ""))
		eventually(t, "the key rotates", func() bool {
			token := p.token(t, "", "")
			p.set(t).alive(t, "the server", token)
			return kidOf(t, token) != first
		})
		equal(t, "lines in a minute", strings.Count(p.stderr.String(), path(empty)), 1)
		move(t, keyDir(dir), away)
		p.logs(t, "recovered: cannot use a key file")
	})
	t.Run("stop a start", func(t *testing.T) {
		p.kill()
		move(t, away, keyDir(dir))
		p := launch(t, command())
		equal(t, "exit status", p.exitCode(t), 1)
		equal(t, "stderr", p.stderr.String(), "jwks-server: "+want+"\n")
		move(t, keyDir(dir), away)
	})
}

func TestAKeyFileMayBeALink(t *testing.T) {
	dir, elsewhere := t.TempDir(), keyDir(t.TempDir())
	k := putKey(t, elsewhere, 0, time.Hour)
	ok(t, os.Symlink(elsewhere.path(k.name()+".pem"), keyDir(dir).path(k.name()+".pem")))
	equal(t, "kid", kidOf(t, newTestServer(t, "-keys", dir, "-publish-ahead", "1s").token(t, "", "")), k.kid)
}

func TestConnections(t *testing.T) {
	t.Parallel()
	t.Run("by the thousands leave the server responsive", func(t *testing.T) {
		t.Parallel()
		var limit syscall.Rlimit
		ok(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit)) // Go has raised it
		p := startProcess(t, withKey(t)...)
		for i := range int(min(2000, limit.Cur/4)) {
			conn := p.dial(t)
			switch i % 3 {
			case 0:
				fmt.Fprint(conn, "POST /auth HTTP/1.1\r\nHost: localhost\r\nContent-Length: 16384\r\n\r\nsub=")
			case 1:
				fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
			}
		}
		for range 50 {
			p.set(t).alive(t, "the server", p.token(t, "", ""))
		}
		if peak := p.memory(t, "VmHWM:"); peak > 256 {
			t.Errorf("peak memory = %.0f MiB; want 256 or less", peak)
		}
	})
	for _, test := range []struct {
		name, files string
		env         []string
	}{
		{name: "at ulimit -n 150", files: "150"},
		{name: "at ulimit -n 300 with the pipes of 64 turns", files: "300", env: []string{"GOMAXPROCS=64"}},
	} {
		t.Run("at the limit leave room for keys, "+test.name, func(t *testing.T) {
			t.Parallel()
			flags := []string{"-keys", t.TempDir(), "-key-ttl", "2s", "-token-ttl", "1s", "-publish-ahead", "1s"}
			p := launch(t, limitedCommand(t, test.files, test.env, flags...)).serving(t)
			for range 300 {
				p.dial(t)
			}
			made := func() int { return strings.Count(p.stderr.String(), "key made") }
			before := made()
			eventually(t, "keys are made", func() bool { return made() > before+2 })
			if log := p.stderr.String(); strings.Contains(log, "level=ERROR") {
				t.Errorf("connections prevent keys from being stored:\n%s", log)
			}
			p.set(t)
		})
	}
	for _, secure := range []bool{false, true} {
		t.Run("of one client, idle, do not keep others out: "+schemes[secure], func(t *testing.T) {
			t.Parallel()
			flags := withKey(t)
			if secure {
				flags = withKey(t, tlsFlags(t)...)
			}
			p := launch(t, limitedCommand(t, "1024", nil, flags...)).serving(t)
			for range 924 {
				conn := p.dial(t)
				if secure {
					conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
				}
				fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
				wantStatus(t, bufio.NewReader(conn), http.StatusOK, "Running")
			}
			other := &http.Client{Timeout: hang, Transport: &http.Transport{
				DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
			}}
			for i := range 100 {
				w, err := other.Get(p.base + jwksPath)
				if err != nil {
					t.Fatalf("read %d of the JWK Set: %v", i, err)
				}
				w.Body.Close()
				equal(t, "status", w.StatusCode, http.StatusOK)
			}
			p.logs(t, "connection limit reached")
			equal(t, "lines about the limit", strings.Count(p.stderr.String(), "connection limit reached"), 1)
		})
	}
}

// limitedCommand returns the command of a server with a limit on its file descriptors.
func limitedCommand(t testing.TB, files string, env []string, args ...string) *exec.Cmd {
	t.Helper()
	server := serverCommand(t, args...)
	cmd := exec.Command("sh", append([]string{"-c", `ulimit -n "$0"; exec "$@"`, files}, server.Args...)...)
	cmd.Env = append(os.Environ(), env...)
	return cmd
}

func TestAReplicaThatCannotWriteLivesOnTheKeysOfAnother(t *testing.T) {
	t.Parallel()
	flags := []string{"-keys", t.TempDir(), "-key-ttl", "4s", "-token-ttl", "2s", "-publish-ahead", "1s"}
	a, b := startProcess(t, flags...), startProcess(t, flags...)
	limitFiles(t, a, 0)
	verifyAcross(t, 8*time.Second, true, newReplicas(a, b)...) // longer than the keys that a knows sign
}
