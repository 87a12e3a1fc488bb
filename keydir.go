package main

import (
	"bytes"
	"crypto/rsa"
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
	temporary        = ".jwks-server-*.tmp" // pattern of the name of a key file while it is written

	keyRetention        = 24 * time.Hour      // how long a key file is kept after its expiry
	revocationRetention = 30 * 24 * time.Hour // how long a .revoked file is kept after its expiry, at least
)

// A keyDir is a directory of key files. Servers that use the same one share its keys.
// The empty keyDir stores nothing.
//
// The file EXPIRY.KID.pem holds a key. EXPIRY.KID.revoked, EXPIRY.KID.pem.revoked or
// KID.revoked revokes the key with this kid, whatever expiry other files of it name. Other
// files are ignored, and so are those whose names begin with a dot.
type keyDir string

func (d keyDir) path(file string) string { return filepath.Join(string(d), file) }

// create makes the directory. It never makes its parent: if a mount is missing, keys made in
// its place would make a second issuer.
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

// A listing is the content of a keyDir.
type listing struct {
	stored, revoked []string // names of keys, sorted: file names without extensions
	temporary       []string // names of files
}

func (d keyDir) list() (l listing, err error) {
	if d == "" {
		return listing{}, nil
	}
	entries, err := os.ReadDir(string(d))
	if err != nil {
		return listing{}, fmt.Errorf("cannot read the keys directory: %w; make it readable, or mount it again", err)
	}
	for _, entry := range entries {
		file := entry.Name()
		if strings.HasPrefix(file, ".") {
			if ours, _ := filepath.Match(temporary, file); ours {
				l.temporary = append(l.temporary, file)
			}
			continue
		}
		if name, ok := strings.CutSuffix(file, ".revoked"); ok {
			l.revoked = append(l.revoked, strings.TrimSuffix(name, ".pem"))
		} else if name, ok := strings.CutSuffix(file, ".pem"); ok {
			l.stored = append(l.stored, name)
		}
	}
	return l, nil
}

// remove deletes the obsolete files in l, and temporary files older than an hour, which a
// crash left. It ignores errors, because such files are never read.
func (d keyDir) remove(l listing, now time.Time) {
	stored, revoked := l.obsolete(now)
	for _, name := range stored {
		os.Remove(d.path(name + ".pem"))
	}
	for _, name := range revoked {
		os.Remove(d.path(name + ".revoked"))
		os.Remove(d.path(name + ".pem.revoked"))
	}
	for _, file := range l.temporary {
		if info, err := os.Lstat(d.path(file)); err == nil && now.Sub(info.ModTime()) > time.Hour {
			os.Remove(d.path(file))
		}
	}
}

// obsolete returns the names of the .pem files and of the .revoked files to delete.
//
// The .pem files of a kid are kept until all its files have been expired for keyRetention,
// so that a server whose clock is ahead takes no key from the others, and because the
// first file of a kid is what keeps a second one from giving it another expiry. A
// .revoked file is kept as long as a .pem file of its kid.
func (l listing) obsolete(now time.Time) (stored, revoked []string) {
	hasKey, recent := map[string]bool{}, map[string]bool{} // by kid
	for _, name := range l.stored {
		_, kid, _ := parseName(name)
		hasKey[kid] = true
	}
	for _, name := range slices.Concat(l.stored, l.revoked) {
		if expires, kid, ok := parseName(name); ok && now.Sub(expires) < keyRetention {
			recent[kid] = true
		}
	}
	for _, name := range l.stored {
		if _, kid, ok := parseName(name); ok && !recent[kid] {
			stored = append(stored, name)
		}
	}
	for _, name := range l.revoked {
		if expires, kid, ok := parseName(name); ok && !hasKey[kid] && now.Sub(expires) >= revocationRetention {
			revoked = append(revoked, name)
		}
	}
	return stored, revoked
}

// load reads a key file. The error wraps fs.ErrNotExist if the file has disappeared since
// it was listed.
func (d keyDir) load(name string) (key, error) {
	path := d.path(name + ".pem")
	k, err := loadKey(path, name)
	if err != nil {
		return key{}, fmt.Errorf("key file %s %w", path, err)
	}
	return k, nil
}

func loadKey(path, name string) (key, error) {
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

// parseKey parses the content of a key file: one PEM block of PKCS #8. The kid in the name
// must be the thumbprint of the key.
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
	expires, _, ok := parseName(name)
	k := newKey(private, expires)
	if !ok || name != k.name() {
		return key{}, fmt.Errorf("is misnamed: it has to be YYYYMMDDThhmmssZ.%s.pem, with the time at which the key expires", k.kid)
	}
	return k, nil
}

// write stores k in a file that only its owner may read. The file is durable once sync has
// returned. The error wraps an *os.LinkError if the rename failed.
func (d keyDir) write(k key) error {
	if d == "" {
		return nil
	}
	if err := d.writeFile(k); err != nil {
		return fmt.Errorf("cannot store a key: %w; %s has to be mounted and writable, with room in it", err, d)
	}
	return nil
}

// writeFile makes these system calls:
//
//	openat(O_CREAT|O_EXCL, 0600), write, fsync, close, renameat
//
// so that a crash leaves a whole key file or none.
func (d keyDir) writeFile(k key) error {
	der, err := x509.MarshalPKCS8PrivateKey(k.private)
	if err != nil {
		return err
	}
	file, err := os.CreateTemp(string(d), temporary)
	if err != nil {
		return err
	}
	defer os.Remove(file.Name()) // fails after the rename
	defer file.Close()           // fails after the first one
	if err := pem.Encode(file, &pem.Block{Type: "PRIVATE KEY", Bytes: der}); err != nil {
		return err
	}
	if err := file.Sync(); err != nil {
		return err
	}
	if err := file.Close(); err != nil {
		return err
	}
	return os.Rename(file.Name(), d.path(k.name()+".pem"))
}

// sync makes the files in the directory durable. It does nothing on Windows, and ignores
// file systems that cannot sync directories.
func (d keyDir) sync() error {
	if d == "" || runtime.GOOS == "windows" {
		return nil
	}
	dir, err := os.Open(string(d))
	if err != nil {
		return fmt.Errorf("cannot sync the keys directory: %w; check its disk", err)
	}
	defer dir.Close()
	if err := dir.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, errors.ErrUnsupported) {
		return fmt.Errorf("cannot sync the keys directory: %w; check its disk", err)
	}
	return nil
}

// exposed reports whether users other than the owner may read the file of a key.
func (d keyDir) exposed(name string) bool {
	info, err := os.Stat(d.path(name + ".pem"))
	return err == nil && runtime.GOOS != "windows" && info.Mode().Perm()&0o044 != 0
}

// A comparison is the difference between the keys in memory and the files in the directory.
type comparison struct {
	kept, expired, revoked []key
	missing                []key    // kept keys without a file
	unknown                []string // names of files to load
	duplicates             []string // names of files that give a kid a second expiry
}

// compare compares the keys in memory with the names of the stored keys. revoked is by kid.
//
// It keeps a key whose file is missing, because a disk may be lost, a mount point empty, or
// a listing incomplete. A kid has one expiry: that of the key in memory, or else that of
// its first file, even if that file has expired.
func compare(keys []key, stored []string, revoked map[string]bool, now time.Time) (c comparison) {
	inMemory := map[string]bool{}     // by name
	firstByKid := map[string]string{} // the name that gives a kid its expiry
	for _, k := range keys {
		name := k.name()
		inMemory[name], firstByKid[k.kid] = true, name
		switch {
		case revoked[k.kid]:
			c.revoked = append(c.revoked, k)
		case k.expired(now):
			c.expired = append(c.expired, k)
		default:
			c.kept = append(c.kept, k)
			if !slices.Contains(stored, name) {
				c.missing = append(c.missing, k)
			}
		}
	}
	for _, name := range stored {
		expires, kid, ok := parseName(name)
		if ok && firstByKid[kid] == "" {
			firstByKid[kid] = name
		}
		switch {
		case !ok:
			c.unknown = append(c.unknown, name) // misnamed: loading it says so
		case inMemory[name], revoked[kid], !now.Before(expires): // nothing to load
		case name != firstByKid[kid]:
			c.duplicates = append(c.duplicates, name)
		default:
			c.unknown = append(c.unknown, name)
		}
	}
	return c
}

// loadAll loads the unknown files. It skips files that have disappeared. invalid has an
// error for each other file that cannot be used, duplicates included.
func (d keyDir) loadAll(c comparison) (found []key, invalid []error) {
	for _, name := range c.duplicates {
		invalid = append(invalid, fmt.Errorf("key file %s holds the key of another file, and a key has one expiry", d.path(name+".pem")))
	}
	for _, name := range c.unknown {
		k, err := d.load(name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			invalid = append(invalid, err)
		default:
			found = append(found, k)
		}
	}
	return found, invalid
}

// invalidFilesError returns an error with the first few of the errors of loadAll; nil if
// there are none.
func invalidFilesError(invalid []error) error {
	if len(invalid) == 0 {
		return nil
	}
	const most = 3
	var lines []string
	for _, err := range invalid[:min(most, len(invalid))] {
		lines = append(lines, err.Error())
	}
	if more := len(invalid) - most; more > 0 {
		lines = append(lines, fmt.Sprintf("and %d more", more))
	}
	return errors.New(strings.Join(lines, "; ") + "; repair it or move it elsewhere")
}
