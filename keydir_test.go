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
	"math/big"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// factored returns the key with two prime factors.
func factored(p, q *big.Int) *rsa.PrivateKey {
	one, e := big.NewInt(1), big.NewInt(65537)
	phi := new(big.Int).Mul(new(big.Int).Sub(p, one), new(big.Int).Sub(q, one))
	k := &rsa.PrivateKey{
		PublicKey: rsa.PublicKey{N: new(big.Int).Mul(p, q), E: 65537},
		D:         new(big.Int).ModInverse(e, phi),
		Primes:    []*big.Int{p, q},
	}
	k.Precompute()
	return k
}

func TestKeyDirectory(t *testing.T) {
	t.Run("create makes the directory and never its parent", func(t *testing.T) {
		for _, test := range []struct {
			name     string
			mode     fs.FileMode // of a directory that is there
			prepare  func(path, parent string) error
			wantMode fs.FileMode
			want     string
		}{
			{name: "new", wantMode: 0o700},
			{name: "mode is kept", mode: 0o770, wantMode: 0o770},
			{name: "everybody may write", mode: 0o703, want: "chmod o-w it, or choose another with -keys, such as a directory below"},
			{name: "below one that everybody may write to", wantMode: 0o700,
				prepare: func(_, parent string) error { return os.Chmod(parent, 0o777) }},
			{name: "link", prepare: func(p, parent string) error { return os.Symlink(parent, p) }, wantMode: 0o700},
			{name: "dangling link", prepare: func(p, _ string) error { return os.Symlink("nowhere", p) }, want: "cannot use the keys directory"},
			{name: "file", want: "is not a directory; choose another with -keys",
				prepare: func(p, _ string) error { return os.WriteFile(p, nil, 0o600) }},
			{name: "no parent", prepare: func(_, parent string) error { return os.Remove(parent) }, want: "mount or make its parent"},
		} {
			parent := filepath.Join(t.TempDir(), "parent")
			path := filepath.Join(parent, "keys")
			ok(t, os.Mkdir(parent, 0o700))
			if test.mode != 0 {
				ok(t, os.Mkdir(path, 0o700), os.Chmod(path, test.mode))
			}
			if test.prepare != nil {
				ok(t, test.prepare(path, parent))
			}
			wantError(t, test.name+": create", keyDir(path).create(), test.want)
			if test.want == "" {
				equal(t, test.name+": mode", must(os.Stat(path)).Mode(), fs.ModeDir|test.wantMode)
			}
			equal(t, test.name+": parent exists", exists(parent), test.name != "no parent")
		}
	})
	t.Run("list returns the names of keys and of revoked keys, and ignores other files", func(t *testing.T) {
		dir := keyDir(t.TempDir())
		for _, file := range []string{
			"b.pem", "a.pem", "a.revoked", "c.pem.revoked", "20200101T000000Z.d.pem", ".jwks-server-1.tmp",
			"e", "f.txt", "g.pem.bak", ".gitignore", ".pem", ".revoked", ".pem.revoked", "._h.pem", ".#i.pem", ".other.tmp", "jwks-server-2.tmp",
		} {
			writeFile(t, dir, file, "")
		}
		equal(t, "list", must(dir.list()), listing{
			stored:    []string{"20200101T000000Z.d", "a", "b"},
			revoked:   []string{"a", "c"},
			temporary: []string{".jwks-server-1.tmp"},
		})
	})
	t.Run("remove deletes obsolete files, and what a crash left an hour ago", func(t *testing.T) {
		dir := keyDir(t.TempDir())
		const day, month = "20260101T120000Z", "20251203T120000Z" // before epoch
		tests := []struct {
			file     string
			age      time.Duration
			wantGone bool
		}{
			{file: "20260101T120001Z.a.pem"},
			{file: day + ".b.pem", wantGone: true},
			{file: day + ".c.revoked"},
			{file: month + ".d.revoked", wantGone: true},
			{file: month + ".e.pem.revoked", wantGone: true},
			{file: month + ".pem"}, {file: "f.pem"}, {file: "g.revoked"}, {file: month + ".h"},
			{file: "." + month + ".i.pem"}, {file: "." + month + ".j.revoked"},
			{file: ".jwks-server-1.tmp", age: time.Hour + time.Second, wantGone: true},
			{file: ".jwks-server-2.tmp", age: time.Hour},
			{file: ".other-3.tmp", age: 48 * time.Hour},
		}
		for _, test := range tests {
			ok(t, os.Chtimes(writeFile(t, dir, test.file, ""), time.Time{}, epoch.Add(-test.age)))
		}
		ok(t, os.MkdirAll(dir.path(day+".k.pem/x"), 0o700)) // cannot be deleted
		dir.remove(must(dir.list()), epoch)
		for _, test := range tests {
			equal(t, test.file+" is gone", !exists(dir.path(test.file)), test.wantGone)
		}
	})
	t.Run("a file is obsolete only with the other files of its kid", func(t *testing.T) {
		const recent, day, misnamed = "20260101T120001Z.a", "20260101T120000Z.a", "2026.a"
		const lastMonth, month = "20251203T120001Z.a", "20251203T120000Z.a"
		for _, test := range []struct {
			name                    string
			stored, revoked         []string
			wantStored, wantRevoked []string
		}{
			{name: "less than a day", stored: []string{recent}},
			{name: "a day", stored: []string{day}, wantStored: []string{day}},
			{name: "two files, a day", stored: []string{month, day}, wantStored: []string{month, day}},
			{name: "a day, beside a file that expired later", stored: []string{day, recent}},
			{name: "a day, beside a later revocation", stored: []string{day}, revoked: []string{recent}},
			{name: "a day, beside a file of another kid", stored: []string{day, "20260102T120000Z.b"}, wantStored: []string{day}},
			{name: "revoked, less than 30 days", revoked: []string{lastMonth}},
			{name: "revoked, 30 days", revoked: []string{month}, wantRevoked: []string{month}},
			{name: "revoked, 30 days, beside a key file", stored: []string{day}, revoked: []string{month}, wantStored: []string{day}},
			{name: "revoked, 30 days, beside a misnamed file", stored: []string{misnamed}, revoked: []string{month}},
			{name: "misnamed", stored: []string{misnamed, "key", "20260101T120000Z"}, revoked: []string{misnamed, "key", "20200101T000000Z"}},
		} {
			stored, revoked := listing{stored: test.stored, revoked: test.revoked}.obsolete(epoch)
			equal(t, test.name+": key files", stored, test.wantStored)
			equal(t, test.name+": .revoked files", revoked, test.wantRevoked)
		}
	})
	t.Run("a missing directory is an error that says what to do", func(t *testing.T) {
		dir := keyDir(filepath.Join(t.TempDir(), "gone"))
		_, err := dir.list()
		wantError(t, "list", err, "cannot read the keys directory: open "+string(dir)+": ")
		wantError(t, "list", err, "; make it readable, or mount it again")
		wantError(t, "write", dir.write(newKey(readyMade()[0], epoch)), string(dir)+" has to be mounted and writable, with room in it")
		wantError(t, "sync", dir.sync(), "cannot sync the keys directory")
	})
	t.Run("a file system that cannot sync directories is no error", func(t *testing.T) {
		dirs := []keyDir{keyDir(t.TempDir())}
		if runtime.GOOS == "linux" {
			dirs = append(dirs, "/proc/self") // answers EINVAL
		}
		for _, dir := range dirs {
			wantError(t, "sync "+string(dir), dir.sync(), "")
		}
	})
	t.Run("the empty directory stores nothing", func(t *testing.T) {
		t.Chdir(t.TempDir())
		var dir keyDir
		files, err := dir.list()
		ok(t, dir.create(), err, dir.write(newKey(readyMade()[0], epoch)), dir.sync())
		equal(t, "list", files, listing{})
		equal(t, "files in the working directory", len(must(os.ReadDir("."))), 0)
	})
}

func TestKeyFile(t *testing.T) {
	some, other := readyMade()[0], readyMade()[1]
	k := newKey(some, epoch)
	t.Run("a key file is PKCS 8 that only its owner may read", func(t *testing.T) {
		dir := keyDir(t.TempDir())
		ok(t, dir.write(k))
		files := must(os.ReadDir(string(dir)))
		equal(t, "files", []string{files[0].Name()}, []string{"20260102T120000Z." + k.kid + ".pem"})
		equal(t, "mode", must(files[0].Info()).Mode(), fs.FileMode(0o600))
		equal(t, "content", string(must(os.ReadFile(dir.path(files[0].Name())))), pkcs8(some))
		got, err := dir.load(k.name())
		ok(t, err)
		equal(t, "load, kid and expires", got.name(), k.name())
		equal(t, "load, the same key", got.private.Equal(some), true)
	})
	t.Run("a key file is never written in place, so that a crash leaves a whole one or none", func(t *testing.T) {
		dir := keyDir(t.TempDir())
		path := writeFile(t, dir, k.name()+".pem", "half")
		ok(t, os.Link(path, dir.path("same")), dir.write(k))
		equal(t, "the file that was there", string(must(os.ReadFile(dir.path("same")))), "half")
		equal(t, "the file that is there", string(must(os.ReadFile(path))), pkcs8(some))
	})
	t.Run("a failed write leaves nothing", func(t *testing.T) {
		dir := keyDir(t.TempDir())
		ok(t, os.Mkdir(dir.path(k.name()+".pem"), 0o700))
		wantError(t, "write", dir.write(k), "cannot store a key")
		equal(t, "files", len(must(os.ReadDir(string(dir)))), 1)
	})
	t.Run("an unusable file is an error that says what is wrong", func(t *testing.T) {
		whole := pkcs8(some)
		mersenne := func(n uint) *big.Int { return new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), n), big.NewInt(1)) }
		large := factored(mersenne(2203), mersenne(2281)) // which are primes
		weak := must(rsa.GenerateKey(rand.Reader, 1024))
		name := func(private *rsa.PrivateKey) string { return newKey(private, epoch).name() }
		pkcs1 := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(some)})
		for _, test := range []struct {
			name     string
			file     string // k.name() if empty
			content  string
			prepare  func(path string) error // instead of content
			want     string
			wantGone bool
		}{
			{name: "whole", content: whole},
			{name: "blank lines at the end", content: whole + "\n \n"},
			{name: "empty", want: "is damaged"},
			{name: "truncated", content: whole[:900], want: "is damaged"},
			{name: "damaged base64", content: strings.Replace(whole, "A", "!", 1), want: "is damaged"},
			{name: "damaged key", content: strings.Replace(whole, "M", "N", 1), want: "is damaged"},
			{name: "text before", content: "key:\n" + whole, want: "one PEM block, PRIVATE KEY, and nothing else"},
			{name: "text after", content: whole + "x", want: "nothing else"},
			{name: "two blocks", content: whole + pkcs8(other), want: "nothing else"},
			{name: "PKCS #1", content: string(pkcs1), want: "one PEM block, PRIVATE KEY"},
			{name: "64 KiB", content: whole + strings.Repeat(" ", maxKeyFile-len(whole))},
			{name: "larger", content: whole + strings.Repeat(" ", maxKeyFile-len(whole)+1), want: "is not a regular file of a few KiB"},
			{name: "elliptic", content: pkcs8(must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))), want: "does not hold an RSA key"},
			{name: "weak", file: name(weak), content: pkcs8(weak), want: "does not hold an RSA key of 2048 to 4096 bits"},
			{name: "large", file: name(large), content: pkcs8(large), want: "does not hold an RSA key of 2048 to 4096 bits"},
			{name: "another key", content: pkcs8(other),
				want: "is misnamed: it has to be YYYYMMDDThhmmssZ." + thumbprint(&other.PublicKey) + ".pem"},
			{name: "no expiry", file: "key", content: whole, want: "is misnamed"},
			{name: "no kid", file: "20260102T120000Z", content: whole, want: "is misnamed"},
			{name: "not a time", file: "20260132T120000Z." + k.kid, content: whole, want: "is misnamed"},
			{name: "more in the name", file: k.name() + ".2", content: whole, want: "is misnamed"},
			{name: "directory", prepare: func(p string) error { return os.Mkdir(p, 0o700) }, want: "is not a regular file"},
			{name: "device", prepare: func(p string) error { return os.Symlink(os.DevNull, p) }, want: "is not a regular file"},
			{name: "link", prepare: func(p string) error {
				return errors.Join(os.WriteFile(p+"2", []byte(whole), 0o600), os.Symlink(p+"2", p))
			}},
			{name: "link to itself", prepare: func(p string) error { return os.Symlink(p, p) }, want: "cannot be read"},
			{name: "dangling link", prepare: func(p string) error { return os.Symlink("nowhere", p) }, want: "cannot be read", wantGone: true},
			{name: "gone", prepare: func(string) error { return nil }, want: "cannot be read", wantGone: true},
		} {
			dir, file := keyDir(t.TempDir()), test.file
			if file == "" {
				file = k.name()
			}
			if test.prepare == nil {
				writeFile(t, dir, file+".pem", test.content)
			} else {
				ok(t, test.prepare(dir.path(file+".pem")))
			}
			got, err := dir.load(file)
			wantError(t, test.name+": load", err, test.want)
			equal(t, test.name+": load says fs.ErrNotExist", errors.Is(err, fs.ErrNotExist), test.wantGone)
			equal(t, test.name+": load returns a key", got.private != nil, test.want == "")
		}
	})
	t.Run("a file is exposed if other users may read it", func(t *testing.T) {
		dir := keyDir(t.TempDir())
		path := writeFile(t, dir, "k.pem", "")
		for mode, want := range map[fs.FileMode]bool{0o600: false, 0o400: false, 0o620: false, 0o640: true, 0o604: true} {
			ok(t, os.Chmod(path, mode))
			equal(t, fmt.Sprintf("exposed(mode %v)", mode), dir.exposed("k"), want)
		}
		equal(t, "exposed(gone)", dir.exposed("gone"), false)
	})
}

func TestCompare(t *testing.T) {
	dead, a, b := keyAt("dead", epoch), keyAt("a", epoch.Add(time.Second)), keyAt("b", epoch.Add(time.Hour))
	longer, again := keyAt("a", b.expires), keyAt("dead", b.expires)
	names := func(keys ...key) []string { return namesOf(keys) }
	revoked := map[string]bool{"a": true, "": true}
	for _, test := range []struct {
		name         string
		keys         []key
		stored       []string
		revokedByKid map[string]bool
		want         comparison
	}{
		{name: "nothing"},
		{name: "nothing has changed", keys: []key{a, b}, stored: names(a, b), want: comparison{kept: []key{a, b}}},
		{name: "a missing file costs no key", keys: []key{a, b}, stored: names(b), want: comparison{kept: []key{a, b}, missing: []key{a}}},
		{name: "an empty directory costs no key", keys: []key{a, b}, want: comparison{kept: []key{a, b}, missing: []key{a, b}}},
		{name: "an expired key is dropped and not stored again", keys: []key{dead, a}, stored: names(a),
			want: comparison{kept: []key{a}, expired: []key{dead}}},
		{name: "a revoked key is dropped, even if its file is there", keys: []key{a, b}, stored: names(a, b), revokedByKid: revoked,
			want: comparison{kept: []key{b}, revoked: []key{a}}},
		{name: "a revoked key is not stored again", keys: []key{a}, revokedByKid: revoked, want: comparison{revoked: []key{a}}},
		{name: "no file of a revoked kid is loaded", stored: names(a, b, longer), revokedByKid: revoked,
			want: comparison{unknown: names(b)}},
		{name: "a new file is loaded", keys: []key{a}, stored: names(a, b), want: comparison{kept: []key{a}, unknown: names(b)}},
		{name: "an expired file is not loaded", stored: names(dead, a), want: comparison{unknown: names(a)}},
		{name: "a misnamed file is loaded, so that its error is logged", stored: []string{"key", "20200101T000000Z", "2026.a"},
			revokedByKid: revoked, want: comparison{unknown: []string{"key", "20200101T000000Z", "2026.a"}}},
		{name: "a key in memory keeps its expiry", keys: []key{a}, stored: names(longer),
			want: comparison{kept: []key{a}, missing: []key{a}, duplicates: names(longer)}},
		{name: "a new key has its first stored expiry", stored: names(a, longer), want: comparison{unknown: names(a), duplicates: names(longer)}},
		{name: "an expired key has no second life", stored: names(dead, again), want: comparison{duplicates: names(again)}},
	} {
		equal(t, test.name+": compare", compare(test.keys, test.stored, test.revokedByKid, epoch), test.want)
	}
}

func TestUnusableKeyFiles(t *testing.T) {
	t.Run("an unusable file does not hide another key, and a missing one is no error", func(t *testing.T) {
		dir, k := keyDir(t.TempDir()), newKey(readyMade()[0], epoch)
		writeFile(t, dir, "x.pem", "")
		ok(t, dir.write(k))
		found, invalid := dir.loadAll(comparison{unknown: []string{"x", "20260102T120000Z.gone", k.name()}, duplicates: []string{"y"}})
		equal(t, "found", namesOf(found), []string{k.name()})
		equal(t, "errors", len(invalid), 2)
		wantError(t, "duplicate", invalid[0], "key file "+dir.path("y.pem")+" holds the key of another file, and a key has one expiry")
		wantError(t, "empty file", invalid[1], "key file "+dir.path("x.pem")+" is damaged")
	})
	t.Run("an error names the first three unusable files and counts the rest", func(t *testing.T) {
		for n, want := range []string{
			"",
			"a; repair it or move it elsewhere",
			"a; b; repair it or move it elsewhere",
			"a; b; c; repair it or move it elsewhere",
			"a; b; c; and 1 more; repair it or move it elsewhere",
			"a; b; c; and 2 more; repair it or move it elsewhere",
		} {
			var invalid []error
			for i := range n {
				invalid = append(invalid, errors.New(string(rune('a'+i))))
			}
			wantError(t, fmt.Sprintf("invalidFilesError(%d errors)", n), invalidFilesError(invalid), want)
		}
	})
}

func FuzzKeyFile(f *testing.F) {
	k := newKey(readyMade()[0], epoch)
	file := pkcs8(k.private)
	f.Add(k.name(), file)
	f.Add("20260101T000000Z."+k.kid, file)
	f.Add("20260101T000000.5Z."+k.kid, file+file)
	f.Add("", file[:len(file)/2])
	f.Fuzz(func(t *testing.T, name, content string) {
		k, err := parseKey(name, []byte(content))
		if err != nil != (k.private == nil) {
			t.Fatalf("parseKey(%q) = key %s and %v; want one of them", name, k.kid, err)
		}
		if err == nil && (k.name() != name || k.private.N.BitLen() < minBits || k.kid != thumbprint(&k.private.PublicKey)) {
			t.Errorf("parseKey(%q) = %s of %d bits; want the key of this name", name, k.name(), k.private.N.BitLen())
		}
	})
}
