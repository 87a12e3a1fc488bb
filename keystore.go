package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"math/big"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

const (
	minBits     = 2048                 // of an RSA key (RFC 7518 section 3.3)
	stamp       = "20060102T150405Z"   // a key file's expiry in its name, UTC
	tempPattern = ".jwks-server-*.tmp" // a key file while it is being written
	maxKeyFile  = 64 << 10             // bytes; a key of 8192 bits takes 7 KiB
	tick        = time.Second          // how often the loop looks
	patience    = 2 * time.Second      // how long a request waits for its turn, or for a key
	repeat      = time.Minute          // how often the log repeats a trouble that lasts
)

// A key is one RSA signing key. Its kid is derived from it, so that a kid can
// never come to mean another key.
type key struct {
	kid     string
	private *rsa.PrivateKey
	expires time.Time // UTC, whole seconds: from then on the key is neither served nor signs
}

// newKey rounds expires up to a whole second.
func newKey(private *rsa.PrivateKey, expires time.Time) key {
	if whole := expires.Truncate(time.Second); whole.Before(expires) {
		expires = whole.Add(time.Second)
	}
	return key{thumbprint(&private.PublicKey), private, expires.UTC()}
}

func (k key) expired(now time.Time) bool { return !now.Before(k.expires) }

// file is the name of the key's file, so that a listing of them is the timeline.
func (k key) file() string { return k.expires.Format(stamp) + "." + k.kid + ".pem" }

// jwk is the public half of a key (RFC 7517 section 4, RFC 7518 section 6.3.1).
// It has no other member: verifiers drop a whole set for one they dislike.
type jwk struct {
	Kty string `json:"kty"`
	Use string `json:"use"`
	Alg string `json:"alg"`
	Kid string `json:"kid"`
	N   string `json:"n"`
	E   string `json:"e"`
}

func (k key) jwk() jwk {
	n, e := parameters(&k.private.PublicKey)
	return jwk{"RSA", "sig", "RS256", k.kid, n, e}
}

// parameters are the members n and e: Base64urlUInt, without a leading zero
// octet (RFC 7518 section 2).
func parameters(public *rsa.PublicKey) (n, e string) {
	b64 := base64.RawURLEncoding.EncodeToString
	return b64(public.N.Bytes()), b64(big.NewInt(int64(public.E)).Bytes())
}

// thumbprint is the SHA-256 JWK thumbprint of the key (RFC 7638 section 3).
func thumbprint(public *rsa.PublicKey) string {
	n, e := parameters(public)
	sum := sha256.Sum256([]byte(`{"e":"` + e + `","kty":"RSA","n":"` + n + `"}`))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// A keystore holds the signing keys, queued end to end: each takes over when the
// one before it stops signing, an overlap before its expiry. The directory, when
// there is one, is what it and its replicas share.
//
// Locks are taken in the order making, turns, mu.
type keystore struct {
	config
	log *log.Logger

	// making holds a token while somebody reads the directory or makes a key.
	// It guards the fields below it, and keys may change only under it.
	making      chan struct{}
	files       map[string]bool // key files that were there at the last look
	spare       *rsa.PrivateKey // generated, but not in use yet
	unpublished *key            // signs the tokens of ?expired=key

	// turns holds a token for each RSA operation under way. There are as many as
	// cores: more at once would only make each of them, and every reader, slower.
	turns chan struct{}

	mu    sync.Mutex // guards what follows; never held while a key is made or used
	keys  []key      // by expiry, then kid
	set   *document  // the JWK Set of keys, nil when none is alive
	until time.Time  // when set stops being true
}

// openKeystore reads the keys in the directory and makes those that are missing.
// A file that it cannot use is an error; a disk that it cannot write to is one
// only when there is no key to sign with.
func openKeystore(ctx context.Context, cfg config, log *log.Logger) (*keystore, error) {
	s := &keystore{
		config: cfg,
		log:    log,
		making: make(chan struct{}, 1),
		turns:  make(chan struct{}, runtime.GOMAXPROCS(0)),
	}
	if s.dir != "" {
		if err := os.MkdirAll(s.dir, 0o700); err != nil {
			return nil, fmt.Errorf("cannot make the keys directory: %w; choose another with -keys", err)
		}
		s.sweep()
	}
	if faults, err := s.reread(); faults != nil || err != nil {
		return nil, errors.Join(faults, err)
	}
	if err := s.grow(ctx, s.publishAhead); err != nil {
		if _, ok := s.signing(clock()); !ok {
			return nil, err
		}
		s.log.Print(oneLine(err))
	}
	return s, nil
}

// keep tops up the queue and follows the directory until ctx ends.
func (s *keystore) keep(ctx context.Context) {
	var said time.Time // of a trouble that lasts
	last, _ := s.signing(clock())
	for ticker := time.NewTicker(tick); ; {
		select {
		case <-ctx.Done():
			ticker.Stop()
			return
		case <-ticker.C:
		}
		err := s.grow(ctx, s.publishAhead)
		if k, ok := s.signing(clock()); ok && k.kid != last.kid {
			s.log.Printf("key %s signs from now until %s", k.kid, rfc3339(s.stops(k)))
			last = k
		}
		switch {
		case ctx.Err() != nil:
		case err == nil && !said.IsZero():
			s.log.Print("the keys directory is well again")
			said = time.Time{}
		case err != nil && time.Since(said) >= repeat:
			s.log.Print(oneLine(err))
			said = time.Now()
		}
	}
}

// grow follows the directory and adds keys until the queue's last one stops
// signing no sooner than ahead from now. Whatever it returns, the keys in hand
// are as good as before; the error says what stands in the way of more, or which
// files it left alone.
func (s *keystore) grow(ctx context.Context, ahead time.Duration) error {
	if err := acquire(ctx, s.making); err != nil {
		return err
	}
	defer release(s.making)
	for {
		faults, err := s.reread()
		now := clock()
		faults = errors.Join(faults, s.bury(now))
		if err == nil {
			err = s.restore()
		}
		if err != nil {
			return errors.Join(faults, err)
		}
		takeover := now
		if n := len(s.keys); n > 0 {
			takeover = s.stops(s.keys[n-1])
			if !takeover.Before(now.Add(ahead)) {
				return faults
			}
			if takeover.Before(now) {
				takeover = now
			}
		}
		if s.spare == nil || s.holds(thumbprint(&s.spare.PublicKey)) {
			if s.spare, err = s.generate(ctx); err != nil {
				return errors.Join(faults, err)
			}
			continue // it took a while: a replica may have been faster
		}
		k := newKey(s.spare, takeover.Add(s.keyTTL))
		if err := s.write(k); err != nil {
			return errors.Join(faults, err)
		}
		s.replace(append(slices.Clone(s.keys), k))
		s.log.Printf("made %s", s.describe(k))
	}
}

// generate makes a private key, which takes a turn. The caller holds making.
func (s *keystore) generate(ctx context.Context) (*rsa.PrivateKey, error) {
	if err := acquire(ctx, s.turns); err != nil {
		return nil, err
	}
	defer release(s.turns)
	return rsa.GenerateKey(rand.Reader, s.bits)
}

// errNoKey is why a request is turned away that found no key and could not make one.
var errNoKey = errors.New("no key")

// jwks returns the JWK Set of the keys that have not expired. It is never empty:
// when there is no such key one is made, or the error wraps errNoKey.
func (s *keystore) jwks(ctx context.Context) (*document, error) {
	var err error
	for {
		now := clock()
		s.mu.Lock()
		if !now.Before(s.until) {
			s.render(now)
		}
		set := s.set
		s.mu.Unlock()
		if set != nil {
			return set, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errNoKey, err)
		}
		waiting, cancel := context.WithTimeout(ctx, patience)
		err = s.grow(waiting, 0)
		cancel()
	}
}

// sign returns the claims in a JWT signed by the key whose turn it is, or by a
// key that is not in the JWK Set. The clock is read, and claims called, when
// everything that has to be waited for has been; patience and ctx bound that
// waiting. The error is that of claims, or of the context, or wraps errNoKey.
func (s *keystore) sign(ctx context.Context, unpublished bool, claims func(now time.Time) (jwt.MapClaims, error)) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	choose := s.signing
	if unpublished {
		k, err := s.unpublishedKey(ctx)
		if err != nil {
			return "", err
		}
		choose = func(time.Time) (key, bool) { return k, true }
	}
	var err error
	for {
		if err := acquire(ctx, s.turns); err != nil {
			return "", err
		}
		now := clock()
		if k, ok := choose(now); ok {
			defer release(s.turns)
			c, err := claims(now)
			if err != nil {
				return "", err
			}
			token := jwt.NewWithClaims(jwt.SigningMethodRS256, c)
			token.Header["kid"] = k.kid
			return token.SignedString(k.private)
		}
		release(s.turns)
		if err != nil {
			return "", fmt.Errorf("%w: %w", errNoKey, err)
		}
		err = s.grow(ctx, 0)
	}
}

// signing returns the key that signs at now: the earliest-expiring one that lives
// for an overlap yet, so that the token it signs never outlives it.
func (s *keystore) signing(now time.Time) (key, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.keys {
		if !s.stops(k).Before(now) {
			return k, true
		}
	}
	return key{}, false
}

// stops is the last moment at which k signs.
func (s *keystore) stops(k key) time.Time { return k.expires.Add(-s.overlap()) }

// describe says when k, which is held, signs. The caller holds making.
func (s *keystore) describe(k key) string {
	from := clock()
	for _, before := range s.keys {
		if before.kid == k.kid {
			break
		}
		if stops := s.stops(before); stops.After(from) {
			from = stops
		}
	}
	signs := "signs no more"
	if stops := s.stops(k); stops.After(from) {
		signs = "signs from " + rfc3339(from) + " until " + rfc3339(stops)
	}
	return fmt.Sprintf("key %s: %s, expires %s", k.kid, signs, rfc3339(k.expires))
}

// unpublishedKey returns a key that no JWK Set ever has, made on first use.
func (s *keystore) unpublishedKey(ctx context.Context) (key, error) {
	if err := acquire(ctx, s.making); err != nil {
		return key{}, err
	}
	defer release(s.making)
	if s.unpublished == nil {
		private, err := s.generate(ctx)
		if err != nil {
			return key{}, err
		}
		k := newKey(private, clock())
		s.unpublished = &k
	}
	return *s.unpublished, nil
}

// replace makes keys the store's own. The caller holds making.
func (s *keystore) replace(keys []key) {
	slices.SortFunc(keys, func(a, b key) int {
		return cmp.Or(a.expires.Compare(b.expires), cmp.Compare(a.kid, b.kid))
	})
	now := clock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys = keys
	s.render(now)
}

// render makes the JWK Set (RFC 7517 section 5) of the keys alive at now. The
// caller holds mu.
func (s *keystore) render(now time.Time) {
	alive := s.keys
	for len(alive) > 0 && alive[0].expired(now) {
		alive = alive[1:]
	}
	if len(alive) == 0 {
		s.set, s.until = nil, time.Time{}
		return
	}
	var set struct {
		Keys []jwk `json:"keys"`
	}
	for _, k := range alive {
		set.Keys = append(set.Keys, k.jwk())
	}
	s.set, s.until = newDocument(set, s.maxAge()), alive[0].expires
}

// reread makes the store hold the keys that the directory holds. A file that is
// gone is a key that is gone; but when the directory cannot be read, or every
// file has vanished at once, it is the disk that is gone and the keys stay.
// Files never change, so only names not seen before are parsed. Those it cannot
// use are the faults; err means that it could not look. The caller holds making.
func (s *keystore) reread() (faults, err error) {
	if s.dir == "" {
		return nil, nil
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("cannot read the keys directory: %w; bring it back", err)
	}
	listed := make(map[string]bool)
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".pem") {
			listed[e.Name()] = true
		}
	}

	now := clock()
	stays := func(k key) bool { return s.files[k.file()] && listed[k.file()] }
	goes := func(k key) bool { return s.files[k.file()] && !listed[k.file()] && !k.expired(now) }
	keys := slices.Clone(s.keys)
	switch {
	case !slices.ContainsFunc(keys, goes):
	case slices.ContainsFunc(keys, stays):
		keys = slices.DeleteFunc(keys, func(k key) bool {
			if goes(k) {
				s.log.Printf("key %s is revoked: its file is gone from %s", k.kid, s.dir)
			}
			return goes(k)
		})
	default:
		s.log.Printf("every key file is gone from %s: taking the disk for lost and keeping the keys in hand; "+
			"to revoke them all, stop every server of this directory, delete the files and start again", s.dir)
	}

	var found []key
	for _, e := range entries {
		name := e.Name()
		if !listed[name] || slices.ContainsFunc(keys, func(k key) bool { return k.file() == name }) {
			continue
		}
		path := filepath.Join(s.dir, name)
		k, err := readKey(path)
		if i := slices.IndexFunc(keys, func(held key) bool { return held.kid == k.kid }); err == nil && i >= 0 {
			err = fmt.Errorf("holds the same key as %s", keys[i].file())
		}
		if err == nil {
			keys, found = append(keys, k), append(found, k)
		} else if _, gone := os.Lstat(path); gone == nil { // else a replica has deleted it just now
			faults = errors.Join(faults, fmt.Errorf("key file %s %w; mend it or move it elsewhere", path, err))
		}
	}
	if len(found) > 0 { // whoever wrote it may not have come to syncing the directory
		if err := syncDir(s.dir); err != nil {
			return faults, err
		}
	}
	if len(found) > 0 || len(keys) != len(s.keys) {
		s.replace(keys)
	}
	for _, k := range found {
		s.log.Printf("found %s", s.describe(k))
	}
	s.files = listed
	return faults, nil
}

// bury lets go of the keys that have expired and deletes their files. The caller
// holds making.
func (s *keystore) bury(now time.Time) (faults error) {
	keys := slices.DeleteFunc(slices.Clone(s.keys), func(k key) bool {
		if !k.expired(now) {
			return false
		}
		if s.dir != "" {
			if err := os.Remove(filepath.Join(s.dir, k.file())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				faults = errors.Join(faults, fmt.Errorf("cannot delete the file of an expired key: %w", err))
				return false
			}
		}
		s.log.Printf("key %s has expired", k.kid)
		return true
	})
	if len(keys) != len(s.keys) {
		s.replace(keys)
	}
	return faults
}

// restore writes the files of keys in hand that are not in the directory: it was
// lost and has come back empty. The caller holds making.
func (s *keystore) restore() error {
	for _, k := range s.keys {
		if s.dir != "" && !s.files[k.file()] {
			if err := s.write(k); err != nil {
				return err
			}
			s.log.Printf("key %s is in %s again", k.kid, s.dir)
		}
	}
	return nil
}

func (s *keystore) holds(kid string) bool {
	return slices.ContainsFunc(s.keys, func(k key) bool { return k.kid == kid })
}

// write makes k durable: a temporary file in the same directory is written,
// synced and renamed, and the directory synced. The caller holds making.
func (s *keystore) write(k key) error {
	if s.dir == "" {
		return nil
	}
	der, err := x509.MarshalPKCS8PrivateKey(k.private)
	if err != nil {
		return err
	}
	file, err := os.CreateTemp(s.dir, tempPattern) // mode 0600
	if err == nil {
		defer os.Remove(file.Name()) // in vain once it has been renamed
		err = pem.Encode(file, &pem.Block{Type: "PRIVATE KEY", Bytes: der})
		err = cmp.Or(err, file.Sync())
		err = cmp.Or(err, file.Close())
	}
	if err == nil {
		err = os.Rename(file.Name(), filepath.Join(s.dir, k.file()))
	}
	if err == nil {
		err = syncDir(s.dir)
	}
	if err != nil {
		return fmt.Errorf("cannot store a key: %w; make room in %s, or make it writable", err, s.dir)
	}
	s.files[k.file()] = true
	return nil
}

// sweep deletes what writes left behind that a crash cut short.
func (s *keystore) sweep() {
	stray, _ := fs.Glob(os.DirFS(s.dir), tempPattern)
	for _, name := range stray {
		path := filepath.Join(s.dir, name)
		if info, err := os.Lstat(path); err == nil && time.Since(info.ModTime()) > time.Hour {
			os.Remove(path)
		}
	}
}

// readKey reads a key file. Its error says what is wrong with it, as the rest of
// a sentence that begins with the file.
func readKey(path string) (key, error) {
	info, err := os.Stat(path)
	if err != nil {
		return key{}, fmt.Errorf("cannot be read: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxKeyFile {
		return key{}, errors.New("is no key: not a regular file of a few KiB")
	}
	pem, err := os.ReadFile(path)
	if err != nil {
		return key{}, fmt.Errorf("cannot be read: %w", err)
	}
	return parseKey(filepath.Base(path), pem)
}

// parseKey makes a key of a key file's name and content: PKCS #8 PEM and nothing
// else. The kid in the name has to be the thumbprint of the key inside.
func parseKey(name string, content []byte) (key, error) {
	block, rest := pem.Decode(content)
	if block == nil || block.Type != "PRIVATE KEY" || len(bytes.TrimSpace(rest)) > 0 {
		return key{}, errors.New("is damaged: it has to hold one PKCS #8 PEM block, PRIVATE KEY, and nothing else")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return key{}, fmt.Errorf("is damaged: %w", err)
	}
	private, ok := parsed.(*rsa.PrivateKey)
	if !ok {
		return key{}, errors.New("holds no RSA key")
	}
	if bits := private.N.BitLen(); bits < minBits {
		return key{}, fmt.Errorf("holds an RSA key of %d bits: %d is the least", bits, minBits)
	}
	when, _, _ := strings.Cut(name, ".")
	expires, err := time.Parse(stamp, when)
	k := newKey(private, expires)
	if err != nil {
		return key{}, fmt.Errorf("is misnamed: it has to be its expiry as %s.%s.pem", stamp, k.kid)
	}
	if name != k.file() {
		return key{}, fmt.Errorf("is misnamed: its key would be in %s", k.file())
	}
	return k, nil
}

// syncDir makes renames in dir durable. Windows neither offers nor needs it.
func syncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// clock reads the wall clock alone: the monotonic one stops while a laptop
// sleeps, and must not stretch an hour.
func clock() time.Time { return time.Now().Round(0).UTC() }

// acquire waits until semaphore has room or ctx ends, then with its error.
func acquire(ctx context.Context, semaphore chan struct{}) error {
	select {
	case semaphore <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func release(semaphore chan struct{}) { <-semaphore }

func rfc3339(t time.Time) string { return t.Format(time.RFC3339) }
