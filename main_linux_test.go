package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

const nobody = 65534

// humble returns a keys directory, and what makes a child's process one that file
// modes bind: root's are bound to nothing.
func humble(t *testing.T) (dir string, attr *syscall.SysProcAttr) {
	t.Helper()
	parent := t.TempDir()
	dir = filepath.Join(parent, "keys")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if os.Getuid() != 0 {
		return dir, nil
	}
	for _, path := range []string{parent, filepath.Dir(parent)} {
		if err := os.Chmod(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	own(t, dir)
	return dir, &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
}

// own gives what is in dir to the user of the child.
func own(t *testing.T, dir string) {
	t.Helper()
	if os.Getuid() != 0 {
		return
	}
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, nobody, nobody))
	})
	if err != nil {
		t.Fatal(err)
	}
}

// limitFiles sets how large a file the child may write, which is what a full disk
// comes to; a negative size lifts the limit.
func limitFiles(t *testing.T, s *running, size int64) {
	t.Helper()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil { // the child has inherited it
		t.Fatal(err)
	}
	if size >= 0 {
		limit.Cur = uint64(size)
	}
	_, _, errno := syscall.RawSyscall6(syscall.SYS_PRLIMIT64, uintptr(s.cmd.Process.Pid), syscall.RLIMIT_FSIZE,
		uintptr(unsafe.Pointer(&limit)), 0, 0, 0)
	if errno != 0 {
		t.Fatal(errno)
	}
}

func TestKeysInHandOutliveTroubleWithTheDirectory(t *testing.T) {
	for _, trouble := range []struct {
		name, says string
		begin, end func(t *testing.T, s *running, dir string)
		away       string // where the files are meanwhile: dir with this at its end
	}{
		{
			name: "full disk", says: "cannot store a key",
			begin: func(t *testing.T, s *running, dir string) { limitFiles(t, s, 0) },
			end:   func(t *testing.T, s *running, dir string) { limitFiles(t, s, -1) },
		}, {
			name: "almost full disk", says: "cannot store a key", // half of a key goes in
			begin: func(t *testing.T, s *running, dir string) { limitFiles(t, s, 800) },
			end:   func(t *testing.T, s *running, dir string) { limitFiles(t, s, -1) },
		}, {
			name: "directory that cannot be written", says: "cannot store a key",
			begin: func(t *testing.T, s *running, dir string) { os.Chmod(dir, 0o500) },
			end:   func(t *testing.T, s *running, dir string) { os.Chmod(dir, 0o700) },
		}, {
			name: "directory that cannot be read", says: "cannot read the keys directory",
			begin: func(t *testing.T, s *running, dir string) { os.Chmod(dir, 0) },
			end:   func(t *testing.T, s *running, dir string) { os.Chmod(dir, 0o700) },
		}, {
			name: "directory that is gone", says: "cannot read the keys directory",
			begin: func(t *testing.T, s *running, dir string) { os.Rename(dir, dir+".away") },
			end:   func(t *testing.T, s *running, dir string) { os.Rename(dir+".away", dir) },
			away:  ".away",
		},
	} {
		t.Run(trouble.name, func(t *testing.T) {
			t.Parallel()
			dir, attr := humble(t)
			if strings.HasSuffix(trouble.name, "full disk") { // which needs no modes, but limits need one user
				dir, attr = t.TempDir(), nil
			}
			s := launch(t, attr, "-keys", dir, "-key-ttl", "4s", "-token-ttl", "2s", "-publish-ahead", "1s")
			s.listens(t)
			tokens := []string{s.mustToken(t)}
			trouble.begin(t, s, dir)
			files := func() []string {
				if os.Getuid() != 0 && trouble.name == "directory that cannot be read" {
					return nil
				}
				return wholeFiles(t, dir+trouble.away)
			}
			before := files()

			// The keys in hand sign, and after that nothing does.
			for {
				response, body, err := s.ask("POST", "/auth", "")
				if err != nil {
					t.Fatal(err)
				}
				if response.StatusCode == http.StatusServiceUnavailable {
					if h := response.Header; h.Get("Retry-After") != "1" || h.Get("Cache-Control") != "no-store" || !strings.Contains(body, `"temporarily_unavailable"`) {
						t.Errorf("nothing can sign: %v %s", h, body)
					}
					break
				}
				if response.StatusCode != http.StatusOK {
					t.Fatalf("POST /auth: %d %s", response.StatusCode, body)
				}
				_, token, _ := strings.Cut(body, `"token":"`)
				token, _, _ = strings.Cut(token, `"`)
				tokens = s.mustSet(t).alive(t, append(tokens, token), "in trouble")
				time.Sleep(30 * time.Millisecond)
			}
			if len(tokens) < 10 {
				t.Errorf("%d tokens alive when the last key in hand ceased to sign", len(tokens))
			}

			// No file is lost before its time, and none is half there.
			now, after := time.Now().UTC().Format(stamp), files()
			for _, name := range before {
				if name[:len(now)] > now && !slices.Contains(after, name) && after != nil {
					t.Errorf("the key file %s is gone", name)
				}
			}

			// The tokens verify to their end, and then there is nothing to serve.
			for len(tokens) > 0 {
				tokens = s.mustSet(t).alive(t, tokens, "in trouble")
				time.Sleep(30 * time.Millisecond)
			}
			eventually(t, "the set is empty", func() bool {
				response, _, err := s.ask("GET", "/.well-known/jwks.json", "")
				if err != nil {
					t.Fatal(err)
				}
				return response.StatusCode == http.StatusServiceUnavailable && response.Header.Get("Cache-Control") == "no-store" &&
					response.Header.Get("Retry-After") == "1"
			})
			if n := strings.Count(s.log.String(), trouble.says); n != 1 {
				t.Errorf("the log says %d times that it %s; want once:\n%s", n, trouble.says, &s.log)
			}

			trouble.end(t, s, dir)
			eventually(t, "tokens are issued again", func() bool {
				token, err := s.token()
				if err != nil && !errors.Is(err, errStatus) {
					t.Fatal(err)
				}
				return err == nil && len(s.mustSet(t).alive(t, []string{token}, "afterwards")) == 1
			})
			s.says(t, "all is well with the keys again")
			wholeFiles(t, dir)
			if left := leftovers(t, dir); len(left) > 0 {
				t.Errorf("temporary files are left: %q", left)
			}
		})
	}
}

func TestAStartWithKeysInHandSaysOnceThatItCannotStoreMore(t *testing.T) {
	t.Parallel()
	dir, attr := humble(t)
	s := launch(t, attr, "-keys", dir, "-publish-ahead", "1s")
	s.listens(t)
	s.kill()
	if err := os.Chmod(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	s = launch(t, attr, "-keys", dir) // wants more keys published
	s.listens(t)
	time.Sleep(3500 * time.Millisecond)
	s.mustSet(t).alive(t, []string{s.mustToken(t)}, "unwritable directory")
	if n := strings.Count(s.log.String(), "cannot store a key"); n != 1 {
		t.Errorf("the log says %d times in a minute that it cannot store a key; want once:\n%s", n, &s.log)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s.says(t, "made: ")
	s.says(t, "all is well with the keys again")
}

func TestAnEmptiedDirectoryWithLittleRoomLosesNoKey(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "keys")
	startServer(t, "-keys", dir, "-publish-ahead", "1s").kill()
	s := startServer(t, "-keys", dir, "-key-bits", "3072") // the files of which are larger
	before := wholeFiles(t, dir)
	limitFiles(t, s, 2000)
	empty(t, dir)
	eventually(t, "the smallest key is stored again", func() bool { return len(wholeFiles(t, dir)) == 1 })
	s.says(t, "cannot store a key")
	time.Sleep(2500 * time.Millisecond) // a look or two
	if n := len(s.mustSet(t)); n != len(before) {
		t.Errorf("the set has %d keys while there is no room for their files; want %d", n, len(before))
	}
	limitFiles(t, s, -1)
	eventually(t, "the key files are back", func() bool { return slices.Equal(wholeFiles(t, dir), before) })
	s.says(t, "all is well with the keys again")
}

func TestAServerThatSleptWakesWithFreshKeys(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := startServer(t, "-keys", dir, "-key-ttl", "2s", "-token-ttl", "1s", "-publish-ahead", "1s")
	made := strings.Count(s.log.String(), "made: ")
	eventually(t, "the loop makes a key", func() bool { return strings.Count(s.log.String(), "made: ") > made })
	seen := pause(t, s, func() map[string]bool {
		kids := map[string]bool{}
		for kid, expires := range keyFiles(t, dir) {
			kids[kid] = true
			time.Sleep(time.Until(expires))
		}
		return kids
	})
	set := s.mustSet(t)
	token := s.mustToken(t)
	s.mustSet(t).alive(t, []string{token}, "awake")
	for kid := range set {
		if seen[kid] {
			t.Errorf("the key %s is served after its expiry; log:\n%s", kid, &s.log)
		}
	}
	if seen[kidOf(t, token)] {
		t.Errorf("the key %s signs after its expiry; log:\n%s", kidOf(t, token), &s.log)
	}
}

// pause calls f while the server does nothing.
func pause[T any](t *testing.T, s *running, f func() T) T {
	t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer s.cmd.Process.Signal(syscall.SIGCONT)
	time.Sleep(100 * time.Millisecond)
	return f()
}

// foreignKeys are keys for files that the server did not write.
var foreignKeys = sync.OnceValue(func() (keys struct {
	some, other, weak *rsa.PrivateKey
	elliptic          *ecdsa.PrivateKey
}) {
	keys.some = orPanic(rsa.GenerateKey(rand.Reader, 2048))
	keys.other = orPanic(rsa.GenerateKey(rand.Reader, 2048))
	keys.weak = orPanic(rsa.GenerateKey(rand.Reader, 1024))
	keys.elliptic = orPanic(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	return keys
})

func orPanic[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func pkcs8(private any) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: orPanic(x509.MarshalPKCS8PrivateKey(private))})
}

// faultyFiles are key files that a server has to leave alone. Each is made in a
// directory, and at the path given or, if path is changed, there.
var faultyFiles = []struct {
	name, want string
	make       func(path *string) error
}{
	{"damaged", "is damaged", func(path *string) error {
		return os.WriteFile(*path, []byte(strings.Replace(string(pkcs8(foreignKeys().some)), "A", "B", 3)), 0o600)
	}},
	{"truncated", "is damaged", func(path *string) error {
		return os.WriteFile(*path, pkcs8(foreignKeys().some)[:900], 0o600)
	}},
	{"empty", "is damaged", func(path *string) error { return os.WriteFile(*path, nil, 0o600) }},
	{"huge", "is not a regular file of a few KiB", func(path *string) error {
		return os.WriteFile(*path, append(pkcs8(foreignKeys().some), make([]byte, 64<<10)...), 0o600)
	}},
	{"two blocks", "one PEM block", func(path *string) error {
		return os.WriteFile(*path, append(pkcs8(foreignKeys().some), pkcs8(foreignKeys().other)...), 0o600)
	}},
	{"PKCS #1", "one PEM block, PRIVATE KEY", func(path *string) error {
		block := &pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(foreignKeys().some)}
		return os.WriteFile(*path, pem.EncodeToMemory(block), 0o600)
	}},
	{"misnamed", "is misnamed", func(path *string) error {
		*path = filepath.Join(filepath.Dir(*path), "key.pem")
		return os.WriteFile(*path, pkcs8(foreignKeys().some), 0o600)
	}},
	{"another key than its name says", "is misnamed", func(path *string) error { return os.WriteFile(*path, pkcs8(foreignKeys().other), 0o600) }},
	{"weak", "does not hold an RSA key of 2048 bits or more", func(path *string) error {
		*path = filepath.Join(filepath.Dir(*path), newKey(foreignKeys().weak, time.Now().Add(time.Hour)).file())
		return os.WriteFile(*path, pkcs8(foreignKeys().weak), 0o600)
	}},
	{"elliptic", "does not hold an RSA key", func(path *string) error { return os.WriteFile(*path, pkcs8(foreignKeys().elliptic), 0o600) }},
	{"directory", "is not a regular file", func(path *string) error { return os.Mkdir(*path, 0o700) }},
	{"pipe", "is not a regular file", func(path *string) error { return syscall.Mkfifo(*path, 0o600) }},
	{"dangling link", "cannot be read", func(path *string) error { return os.Symlink("/nonexistent/key.pem", *path) }},
	{"link to itself", "cannot be read", func(path *string) error { return os.Symlink(filepath.Base(*path), *path) }},
	{"unreadable", "cannot be read", func(path *string) error { return os.WriteFile(*path, pkcs8(foreignKeys().some), 0) }},
}

const advice = "; mend it or move it elsewhere"

func TestAFaultyKeyFileStopsTheStart(t *testing.T) {
	t.Parallel()
	for i, fault := range faultyFiles {
		dir, attr := humble(t)
		path := filepath.Join(dir, newKey(foreignKeys().some, time.Now().Add(time.Hour)).file())
		if err := fault.make(&path); err != nil {
			t.Fatal(err)
		}
		own(t, dir)
		before := orPanic(os.Lstat(path))
		s := launch(t, attr, "-keys", dir)
		s.ended(t)
		code, lines, output := s.outcome()
		if code != 1 || len(lines) != 1 || !strings.HasPrefix(lines[0], "jwks-server: key file "+path+" "+fault.want) &&
			!(strings.HasPrefix(lines[0], "jwks-server: key file "+path+" ") && strings.Contains(lines[0], fault.want)) || !strings.HasSuffix(lines[0], advice+"\n") {
			t.Errorf("%d, %s: exit code %d; want 1, and a line that names %s, says that it %s%s:%s", i, fault.name, code, path, fault.want, advice, output)
		}
		if after, err := os.Lstat(path); err != nil || after.Size() != before.Size() || after.Mode() != before.Mode() {
			t.Errorf("%s: the file is not what it was: %v, %v", fault.name, after, err)
		}
		if names := orPanic(os.ReadDir(dir)); len(names) != 1 {
			t.Errorf("%s: %d files; want the one that was there", fault.name, len(names))
		}
	}
}

func TestAFaultyKeyFileIsLeftAloneByARunningServer(t *testing.T) {
	t.Parallel()
	dir, attr := humble(t)
	s := launch(t, attr, "-keys", dir, "-key-ttl", "4s", "-token-ttl", "1s", "-publish-ahead", "2s")
	s.listens(t)
	paths := pause(t, s, func() (paths []string) {
		for i, fault := range faultyFiles {
			path := filepath.Join(dir, newKey(foreignKeys().some, time.Now().Add(time.Duration(i+1)*time.Hour)).file())
			if err := fault.make(&path); err != nil {
				t.Error(err)
			}
			paths = append(paths, path)
		}
		own(t, dir)
		return paths
	})
	var tokens, kids []string
	for begin := time.Now(); time.Since(begin) < 5*time.Second; time.Sleep(50 * time.Millisecond) {
		token := s.mustToken(t)
		tokens = s.mustSet(t).alive(t, append(tokens, token), "among faulty files")
		if kid := kidOf(t, token); !slices.Contains(kids, kid) {
			kids = append(kids, kid)
		}
	}
	if len(kids) < 2 {
		t.Errorf("the keys do not rotate among faulty files")
	}
	log := s.log.String()
	for i, fault := range faultyFiles {
		if n := strings.Count(log, "key file "+paths[i]+" "); n != 1 {
			t.Errorf("%s: the log names the file %d times; want once:\n%s", fault.name, n, log)
		}
		if _, err := os.Lstat(paths[i]); err != nil {
			t.Errorf("%s: the file is gone: %v", fault.name, err)
		}
	}
	for _, path := range paths {
		os.RemoveAll(path)
	}
	s.says(t, "all is well with the keys again")
}

func TestAFileSystemThatCannotSyncADirectoryWillDo(t *testing.T) {
	if err := syncDir("/proc/self"); err != nil { // is of such a one
		t.Errorf("syncDir = %v; want no error", err)
	}
	if err := syncDir("/proc/nobody"); err == nil {
		t.Error("syncDir of a directory that is not there = nil; want an error")
	}
}

func TestAKeyFileMayBeALink(t *testing.T) {
	t.Parallel()
	dir, elsewhere := t.TempDir(), filepath.Join(t.TempDir(), "key")
	k := newKey(foreignKeys().some, time.Now().Add(2*time.Hour))
	if err := errors.Join(os.WriteFile(elsewhere, pkcs8(foreignKeys().some), 0o600), os.Symlink(elsewhere, filepath.Join(dir, k.file()))); err != nil {
		t.Fatal(err)
	}
	s := startServer(t, "-keys", dir)
	if s.mustSet(t)[k.kid] == nil {
		t.Errorf("the key behind the link is not served")
	}
	if kid := kidOf(t, s.mustToken(t)); kid != k.kid {
		t.Errorf("%s signs; want the key behind the link, %s", kid, k.kid)
	}
}

func TestThousandsOfIdleConnectionsHurtNobodyElse(t *testing.T) {
	t.Parallel()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil { // Go has raised it
		t.Fatal(err)
	}
	s := startServer(t, oneKey...)
	n := int(min(2000, limit.Cur/4))
	for i := range n {
		conn := dial(t, s)
		if i%2 == 0 {
			fmt.Fprint(conn, "POST /auth HTTP/1.1\r\nHost: x\r\nContent-Length: 16384\r\n\r\nsub=")
		}
	}
	for range 50 {
		s.mustSet(t).alive(t, []string{s.mustToken(t)}, "idle connections")
	}
	eventually(t, "the idle connections are closed", func() bool {
		open := orPanic(os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.cmd.Process.Pid)))
		return len(open) < n/10
	})
	status := string(orPanic(os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))))
	_, peak, _ := strings.Cut(status, "VmHWM:")
	var kib int
	if fmt.Sscan(peak, &kib); kib == 0 || kib > 256<<10 {
		t.Errorf("the server took %d KiB of memory at its peak; want 256 MiB at most", kib)
	}
	if _, err := net.Dial("tcp", s.addr()); err != nil {
		t.Error(err)
	}
}

func TestAReplicaThatCannotWriteLivesOnTheOthersKeys(t *testing.T) {
	t.Parallel()
	flags := []string{"-keys", t.TempDir(), "-key-ttl", "4s", "-token-ttl", "2s", "-publish-ahead", "3s"}
	servers := []*atomic.Pointer[running]{{}, {}}
	for i := range servers {
		servers[i].Store(startServer(t, flags...))
	}
	limitFiles(t, servers[0].Load(), 0)
	time.Sleep(2 * time.Second)
	verifyAcross(t, time.Now().Add(8*time.Second), servers, true) // longer than the keys it has seen made
}
