package main

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

const (
	minBits, maxBits = 2048, 4096           // of an RSA key (RFC 7518 section 3.3)
	maxKeyFile       = 64 << 10             // bytes
	temporary        = ".jwks-server-*.tmp" // the name of a key file while it is written
	retention        = 24 * time.Hour       // files are deleted this long after their expiry
)

// A keyDir is a directory of key files. Servers that use the same one share its keys.
// The empty keyDir stores nothing.
//
// The file NAME.pem holds a key. NAME.revoked or NAME.pem.revoked says that the key is
// revoked, whether or not NAME.pem is still there.
type keyDir string

func (d keyDir) path(file string) string { return filepath.Join(string(d), file) }

// create makes the directory. It never makes the parent: a mount that is missing is an
// error, because new keys in its place would be those of a second issuer.
func (d keyDir) create() error {
	if d == "" {
		return nil
	}
	if err := os.Mkdir(string(d), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("cannot make the keys directory: %w; mount or make its parent, or choose another directory with -keys", err)
	}
	info, err := os.Stat(string(d))
	if err == nil && !info.IsDir() {
		err = fmt.Errorf("%s is not a directory", d)
	}
	if err != nil {
		return fmt.Errorf("cannot use the keys directory: %w; choose another with -keys", err)
	}
	if runtime.GOOS != "windows" && info.Mode().Perm()&0o002 != 0 {
		return fmt.Errorf("cannot use the keys directory: everybody may write to %s, so anybody's keys would sign; "+
			"chmod o-w it, or choose another with -keys, such as a directory below it", d)
	}
	return nil
}

// list returns the names of the keys that are stored and of those that are revoked,
// each in order and without endings. It deletes files that expired a day ago, and what
// a crash left an hour ago. Deleting may fail, because such files are never read.
func (d keyDir) list(now time.Time) (stored, revoked []string, err error) {
	if d == "" {
		return nil, nil, nil
	}
	entries, err := os.ReadDir(string(d))
	if err != nil {
		return nil, nil, fmt.Errorf("cannot read the keys directory: %w; make it readable, or mount it again", err)
	}
	for _, e := range entries {
		name, tombstone := strings.CutSuffix(e.Name(), ".revoked")
		name, pem := strings.CutSuffix(name, ".pem")
		switch expires, ok := expiry(name); {
		case strings.HasPrefix(name, "."):
			if ours, _ := filepath.Match(temporary, name); ours {
				if info, err := e.Info(); err == nil && now.Sub(info.ModTime()) > time.Hour {
					os.Remove(d.path(name))
				}
			}
		case !pem && !tombstone:
		case ok && now.Sub(expires) >= retention:
			os.Remove(d.path(e.Name()))
		case tombstone:
			revoked = append(revoked, name)
		default:
			stored = append(stored, name)
		}
	}
	return stored, revoked, nil
}

// load returns the key of a file. The error is fs.ErrNotExist if the file has gone since
// it was listed. Any other error is the end of a sentence that begins with the file.
func (d keyDir) load(name string) (key, error) {
	path := d.path(name + ".pem")
	info, err := os.Stat(path)
	if err == nil && (!info.Mode().IsRegular() || info.Size() > maxKeyFile) {
		return key{}, errors.New("is not a regular file of a few KiB")
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return key{}, fmt.Errorf("cannot be read: %w", err)
	}
	return parseKey(name, content)
}

// version returns what changes when somebody repairs the file of a key.
func (d keyDir) version(name string) string {
	info, err := os.Stat(d.path(name + ".pem"))
	if err != nil {
		return err.Error()
	}
	return fmt.Sprint(info.Size(), info.Mode(), info.ModTime())
}

// parseKey makes a key of a file's name and content. The content is one PEM block of
// PKCS #8. The kid in the name has to be the thumbprint of the key.
func parseKey(name string, content []byte) (key, error) {
	block, rest := pem.Decode(content)
	if block == nil || block.Type != "PRIVATE KEY" || len(bytes.TrimSpace(rest)) > 0 || !bytes.HasPrefix(content, []byte("-----BEGIN")) {
		return key{}, errors.New("is damaged: it has to be one PEM block, PRIVATE KEY, and nothing else")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return key{}, fmt.Errorf("is damaged: %w", err)
	}
	private, ok := parsed.(*rsa.PrivateKey)
	if !ok || private.N.BitLen() < minBits || private.N.BitLen() > maxBits {
		return key{}, fmt.Errorf("does not hold an RSA key of %d to %d bits", minBits, maxBits)
	}
	digest := sha256.Sum256(nil)
	if _, err := rsa.SignPKCS1v15(rand.Reader, private, crypto.SHA256, digest[:]); err != nil {
		return key{}, fmt.Errorf("holds a key that cannot sign: %w", err)
	}
	expires, ok := expiry(name)
	k := newKey(private, expires)
	if !ok || name != k.name() {
		return key{}, fmt.Errorf("is misnamed: it has to be YYYYMMDDThhmmssZ.%s.pem, with the time at which the key expires", k.kid)
	}
	return k, nil
}

// write stores a key in a file that only the owner may read: it writes, syncs and
// renames a temporary file. The key is durable once sync has returned.
func (d keyDir) write(k key) error {
	if d == "" {
		return nil
	}
	der, err := x509.MarshalPKCS8PrivateKey(k.private)
	if err != nil {
		return err
	}
	file, err := os.CreateTemp(string(d), temporary) // mode 0600
	if err == nil {
		defer os.Remove(file.Name()) // fails once the file is renamed
		err = pem.Encode(file, &pem.Block{Type: "PRIVATE KEY", Bytes: der})
		err = cmp.Or(err, file.Sync(), file.Close())
	}
	if err == nil {
		err = os.Rename(file.Name(), d.path(k.name()+".pem"))
	}
	if err != nil {
		return fmt.Errorf("cannot store a key: %w; %s has to be mounted and writable, with room in it", err, d)
	}
	return nil
}

// sync makes the files in the directory durable. It takes file systems that have no such
// thing, and Windows, as they are.
func (d keyDir) sync() error {
	if d == "" || runtime.GOOS == "windows" {
		return nil
	}
	dir, err := os.Open(string(d))
	if err == nil {
		err = cmp.Or(dir.Sync(), dir.Close())
	}
	if err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, errors.ErrUnsupported) {
		return fmt.Errorf("cannot sync the keys directory: %w; check its disk", err)
	}
	return nil
}

// exposed reports whether users other than the owner may read the file of a key.
func (d keyDir) exposed(name string) bool {
	info, err := os.Stat(d.path(name + ".pem"))
	return err == nil && runtime.GOOS != "windows" && info.Mode().Perm()&0o044 != 0
}

// A comparison is what has to be done to the keys in hand and the files in the directory.
type comparison struct {
	kept, expired, revoked []key
	missing                []key    // those kept whose file is not there
	unknown                []string // names of files to load
	double                 []string // names of files that give a key a second expiry
}

// compare compares the keys in hand with the names of those that are stored and of those
// that are revoked. It keeps a key whose file is missing, because a disk may be lost, a
// mount point empty, a listing partial. A key keeps the first expiry that was seen of it,
// so another file with the same kid is double, even once the first has expired.
func compare(keys []key, stored []string, revoked map[string]bool, now time.Time) (c comparison) {
	files, held := map[string]bool{}, map[string]bool{}
	names := map[string]string{} // the first of each kid
	for _, name := range stored {
		files[name] = true
	}
	for _, k := range keys {
		held[k.name()], names[k.kid] = true, k.name()
		switch {
		case revoked[k.name()]:
			c.revoked = append(c.revoked, k)
		case k.expired(now):
			c.expired = append(c.expired, k)
		default:
			c.kept = append(c.kept, k)
			if !files[k.name()] {
				c.missing = append(c.missing, k)
			}
		}
	}
	for _, name := range stored {
		expires, ok := expiry(name)
		_, kid, _ := strings.Cut(name, ".")
		first := cmp.Or(names[kid], name)
		if ok {
			names[kid] = first
		}
		switch {
		case held[name] || revoked[name] || ok && !now.Before(expires):
		case ok && name != first:
			c.double = append(c.double, name)
		default:
			c.unknown = append(c.unknown, name)
		}
	}
	return c
}

// A faultyFile is a key file that cannot be used. It is not read again until its version
// changes.
type faultyFile struct {
	name, version string
	err           error
}

// loadAll returns the keys of unknown files, and the files that cannot be used. It skips
// those that have gone since they were listed. Faulty are those that could not be used before.
func (d keyDir) loadAll(c comparison, faulty []faultyFile) (found []key, bad []faultyFile) {
	for _, name := range c.double {
		bad = append(bad, faultyFile{name: name, err: errors.New("holds the key of another file")})
	}
	for _, name := range c.unknown {
		version := d.version(name)
		if i := slices.IndexFunc(faulty, func(f faultyFile) bool { return f.name == name && f.version == version }); i >= 0 {
			bad = append(bad, faulty[i])
			continue
		}
		k, err := d.load(name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case errors.As(err, new(*fs.PathError)): // and chown repairs it, which changes no version
			bad = append(bad, faultyFile{name: name, err: err})
		case err != nil:
			bad = append(bad, faultyFile{name: name, version: version, err: err})
		default:
			found = append(found, k)
		}
	}
	return found, bad
}

// describe returns an error that names the first few faulty files; nil if there are none.
func (d keyDir) describe(faulty []faultyFile) error {
	if len(faulty) == 0 {
		return nil
	}
	const most = 3
	var lines []string
	for _, f := range faulty {
		lines = append(lines, fmt.Sprintf("key file %s %v", d.path(f.name+".pem"), f.err))
	}
	if more := len(lines) - most; more > 0 {
		lines = append(lines[:most], fmt.Sprintf("and %d more", more))
	}
	return errors.New(strings.Join(lines, "; ") + "; repair it or move it elsewhere")
}
