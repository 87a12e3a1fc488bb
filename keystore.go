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
	"io"
	"io/fs"
	"log"
	"math/big"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

const (
	patience   = 2 * time.Second // how long a request waits for its turn, or for a key
	tick       = time.Second     // how often the loop looks
	early      = 3 * tick        // how long it may take from a key's being due to every replica's having it
	repeat     = time.Minute     // how often the log repeats a trouble that lasts
	minBits    = 2048            // of an RSA key (RFC 7518 section 3.3)
	maxKeyFile = 64 << 10        // bytes
	stamp      = "20060102T150405Z"
	unfinished = ".jwks-server-*.tmp" // a key file while it is being written
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
	expires = expires.Add(time.Second - 1).Truncate(time.Second).UTC()
	return key{thumbprint(&private.PublicKey), private, expires}
}

func (k key) expired(now time.Time) bool { return !now.Before(k.expires) }

// file is the name of the key's file: a listing of them is the queue, in order.
func (k key) file() string { return k.expires.Format(stamp) + "." + k.kid + ".pem" }

// thumbprint is the SHA-256 JWK thumbprint of the key (RFC 7638 section 3).
func thumbprint(public *rsa.PublicKey) string {
	n, e := parameters(public)
	sum := sha256.Sum256([]byte(`{"e":"` + e + `","kty":"RSA","n":"` + n + `"}`))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// parameters are the members n and e of a JWK: Base64urlUInt, without a leading
// zero octet (RFC 7518 section 2).
func parameters(public *rsa.PublicKey) (n, e string) {
	b64 := base64.RawURLEncoding.EncodeToString
	return b64(public.N.Bytes()), b64(big.NewInt(int64(public.E)).Bytes())
}

// A keystore holds the signing keys, queued end to end: each takes over when the
// one before it stops signing, an overlap before its expiry. The directory, if it
// has one, is what it shares with its replicas and with itself after a restart.
//
// Locks are taken in the order making, turns, mu.
type keystore struct {
	config
	log *log.Logger

	// making is full while somebody reads the directory and makes keys. It guards the
	// fields below it, and keys change only under it.
	making chan struct{}
	spare  *rsa.PrivateKey // generated and not in use yet
	lost   bool            // every file had vanished, and not all are stored again

	// turns holds the RSA operations under way: one per core at most, for more would only
	// slow each other down. giveTurn ends one.
	turns    chan struct{}
	giveTurn func()

	mu    sync.Mutex // guards what follows; never held while a key is made or signs
	keys  []key      // in the order of their files
	set   *document  // the JWK Set; nil if no key is alive
	until time.Time  // when set ceases to be true
}

// openKeystore reads the keys in the directory and makes those that are missing.
// A key file that cannot be used is an error; a directory that cannot be written
// is one only if there is no key to sign with.
func openKeystore(ctx context.Context, cfg config, log *log.Logger) (*keystore, error) {
	s := &keystore{
		config: cfg,
		log:    log,
		making: make(chan struct{}, 1),
		turns:  make(chan struct{}, runtime.GOMAXPROCS(0)),
	}
	s.giveTurn = func() { <-s.turns }
	if s.dir != "" {
		if err := os.MkdirAll(s.dir, 0o700); err != nil {
			return nil, fmt.Errorf("cannot make the keys directory: %w; choose another with -keys", err)
		}
	}
	if faults, err := s.reread(); faults != nil || err != nil {
		return nil, cmp.Or(err, faults)
	}
	if err := s.grow(ctx, s.publishAhead+early); err != nil {
		if _, ok := s.signing(clock()); !ok {
			return nil, err
		} // else the loop logs it
	}
	return s, nil
}

// keep fills up the queue and follows the directory until ctx ends.
func (s *keystore) keep(ctx context.Context) {
	var said time.Time // when the log last had the trouble that lasts
	signer, _ := s.signing(clock())
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		err := s.grow(ctx, s.publishAhead+early)
		if k, ok := s.signing(clock()); ok && k.kid != signer.kid {
			s.log.Printf("takes over: %s", s.describe(k))
			signer = k
		}
		if err != nil && ctx.Err() == nil && time.Since(said) >= repeat {
			outlook := "no key can sign"
			if last := s.last(); last.After(clock()) {
				outlook = "the keys in hand sign until " + last.Format(time.RFC3339)
			}
			s.log.Printf("%s; %s", oneLine(err), outlook)
			said = time.Now()
		} else if err == nil && !said.IsZero() {
			s.log.Print("all is well with the keys again")
			said = time.Time{}
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// grow follows the directory and adds keys until the last one in the queue stops
// signing no sooner than ahead from now. The error says what stands in the way of
// that, or which files it had to leave alone; the keys in hand stay good.
func (s *keystore) grow(ctx context.Context, ahead time.Duration) error {
	if err := take(ctx, s.making); err != nil {
		return err
	}
	defer func() { <-s.making }()
	for {
		faults, err := s.reread()
		more := false
		if err == nil {
			more, err = s.add(ctx, ahead)
		}
		if !more {
			return errors.Join(err, faults)
		}
	}
}

// add goes a step towards a queue that stops signing no sooner than ahead from now: it
// generates a key, or adds the one generated before, for in between a replica may have
// added its own. It returns false when there is no more to do, or an error. The caller
// holds making.
func (s *keystore) add(ctx context.Context, ahead time.Duration) (more bool, err error) {
	now, takeover := clock(), s.last()
	if !takeover.Before(now.Add(ahead)) {
		return false, nil
	}
	if takeover.Before(now) {
		takeover = now
	}
	if s.spare == nil {
		s.spare, err = s.generate(ctx)
		return err == nil, err
	}
	k := newKey(s.spare, takeover.Add(s.keyTTL))
	if err := s.write(k); err != nil {
		return false, err
	}
	s.spare = nil // for good: no key ever has another expiry
	if err := syncDir(s.dir); err != nil {
		return false, err
	}
	s.replace(append(slices.Clone(s.keys), k))
	s.log.Printf("made: %s", s.describe(k))
	return true, nil
}

// reread makes the store hold what the directory holds, but for what has expired. A
// file that is gone is a key that is gone; but when every one is gone at once it is
// the disk that is gone: the keys stay, and are stored again. The faults are files that
// the store cannot use and leaves alone; err says why no key can be added now. The
// caller holds making.
func (s *keystore) reread() (faults, err error) {
	names, err := s.list()
	if err != nil {
		return nil, fmt.Errorf("cannot read the keys directory: %w; make it readable, or bring it back", err)
	}
	now := clock()
	stored := func(k key) bool { return s.dir == "" || slices.Contains(names, k.file()) }
	s.lost = s.lost || !slices.ContainsFunc(s.keys, stored)
	var keys []key
	for _, k := range s.keys {
		switch {
		case k.expired(now):
			if fault := s.remove(k); fault != nil {
				faults = errors.Join(faults, fault)
				break
			}
			s.log.Printf("expired: key %s", k.kid)
			continue
		case stored(k):
		case !s.lost:
			s.log.Printf("dropped, since its file is gone from %s: key %s", s.dir, k.kid)
			continue
		default:
			if fault := cmp.Or(s.write(k), syncDir(s.dir)); fault != nil {
				err = fault
				break
			}
			s.log.Printf("stored again, since every file was gone from %s (to revoke all keys, stop all servers first): key %s", s.dir, k.kid)
		}
		keys = append(keys, k)
	}
	s.lost = s.lost && err != nil
	if len(keys) != len(s.keys) {
		s.replace(keys)
	}
	unusable, fault := s.adopt(names)
	return errors.Join(faults, unusable), cmp.Or(err, fault)
}

// adopt adds the keys of those files that it has not seen: files never change. Faults
// and err are as for reread. The caller holds making.
func (s *keystore) adopt(names []string) (faults, err error) {
	keys := slices.Clone(s.keys)
	for _, name := range names {
		if slices.ContainsFunc(s.keys, func(k key) bool { return k.file() == name }) {
			continue
		}
		path := filepath.Join(s.dir, name)
		k, fault := readKey(path)
		if slices.ContainsFunc(keys, func(held key) bool { return held.kid == k.kid }) {
			fault = errors.New("holds the key of another file")
		}
		if fault == nil {
			keys = append(keys, k)
		} else if _, gone := os.Lstat(path); gone == nil { // else it was deleted just now
			faults = errors.Join(faults, fmt.Errorf("key file %s %w; mend it or move it elsewhere", path, fault))
		}
	}
	found := slices.Clone(keys[len(s.keys):])
	if len(found) == 0 {
		return faults, nil
	}
	if err := syncDir(s.dir); err != nil { // its writer may not have come to that
		return faults, err
	}
	s.replace(keys)
	for _, k := range found {
		s.log.Printf("found: %s", s.describe(k))
	}
	return faults, nil
}

// generate makes a private key, which takes a turn. The caller holds making.
func (s *keystore) generate(ctx context.Context) (*rsa.PrivateKey, error) {
	if err := take(ctx, s.turns); err != nil {
		return nil, err
	}
	defer s.giveTurn()
	return rsa.GenerateKey(rand.Reader, s.bits)
}

// replace makes keys the store's. The caller holds making.
func (s *keystore) replace(keys []key) {
	slices.SortFunc(keys, func(a, b key) int { return cmp.Compare(a.file(), b.file()) })
	now := clock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys = keys
	s.render(now)
}

// A jwk is the public half of a key (RFC 7517 section 4). It has no other member:
// verifiers drop a whole set for one that they dislike.
type jwk struct {
	Kty string `json:"kty"`
	Use string `json:"use"`
	Alg string `json:"alg"`
	Kid string `json:"kid"`
	N   string `json:"n"`
	E   string `json:"e"`
}

// render makes the JWK Set (RFC 7517 section 5) of now. The caller holds mu.
func (s *keystore) render(now time.Time) {
	var set struct {
		Keys []jwk `json:"keys"`
	}
	s.set, s.until = nil, time.Time{}
	for _, k := range s.keys {
		if k.expired(now) {
			continue
		}
		if set.Keys == nil {
			s.until = k.expires
		}
		n, e := parameters(&k.private.PublicKey)
		set.Keys = append(set.Keys, jwk{"RSA", "sig", "RS256", k.kid, n, e})
	}
	if set.Keys != nil {
		s.set = newDocument(set, s.maxAge())
	}
}

// maxAge is how long a cache may keep the JWK Set: a small part of the time for
// which a key is published before it signs.
func (c config) maxAge() time.Duration {
	return min(max(c.publishAhead/24, time.Second), 5*time.Minute)
}

// errNoKey means that there was no key and that none could be made.
var errNoKey = errors.New("no key")

// jwks returns the JWK Set of the keys alive. It is never empty: when there is
// none one is made, or the error wraps errNoKey.
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

// sign returns a JWT signed by the key whose time it is; when there is none one is
// made. The clock is read once all that must be waited for has been, and claims
// called with it. The error is that of claims, or says that patience or ctx ended
// first, or wraps errNoKey.
func (s *keystore) sign(ctx context.Context, claims func(now time.Time) (jwt.MapClaims, error)) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var err error
	for {
		if err := take(ctx, s.turns); err != nil {
			return "", err
		}
		now := clock()
		if k, ok := s.signing(now); ok {
			defer s.giveTurn()
			c, err := claims(now)
			if err != nil {
				return "", err
			}
			token := jwt.NewWithClaims(jwt.SigningMethodRS256, c)
			token.Header["kid"] = k.kid
			return token.SignedString(k.private)
		}
		s.giveTurn()
		if err != nil {
			return "", fmt.Errorf("%w: %w", errNoKey, err)
		}
		err = s.grow(ctx, 0)
	}
}

// signing returns the key that signs at now: the earliest-expiring of those that
// live for an overlap yet, so that no token outlives its key.
func (s *keystore) signing(now time.Time) (key, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.keys, func(k key) bool { return !s.stops(k).Before(now) })
	if i < 0 {
		return key{}, false
	}
	return s.keys[i], true
}

// stops is the last moment at which k signs: an overlap before its expiry.
func (s *keystore) stops(k key) time.Time { return k.expires.Add(-s.overlap()) }

// overlap is how long before its expiry a key stops signing: a token's life, so that
// every token can be verified to its last second, and half of one more for verifiers
// whose clocks differ.
func (c config) overlap() time.Duration { return c.tokenTTL + c.tokenTTL/2 }

// last is the last moment at which a key signs; zero if there is no key.
func (s *keystore) last() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.keys) == 0 {
		return time.Time{}
	}
	return s.stops(s.keys[len(s.keys)-1])
}

// describe says for the log when k signs.
func (s *keystore) describe(k key) string {
	return fmt.Sprintf("key %s signs from %s until %s, expires %s", k.kid,
		k.expires.Add(-s.keyTTL).Format(time.RFC3339), s.stops(k).Format(time.RFC3339), k.expires.Format(time.RFC3339))
}

// unpublished returns a keystore whose keys are in memory only and in nobody's JWK Set.
// It takes turns with s.
func (s *keystore) unpublished() *keystore {
	u := &keystore{
		config:   s.config,
		log:      log.New(io.Discard, "", 0),
		making:   make(chan struct{}, 1),
		turns:    s.turns,
		giveTurn: s.giveTurn,
	}
	u.dir = ""
	return u
}

// list returns the names of the key files, in their order, and sweeps away what a
// write left behind that a crash cut short more than an hour ago.
func (s *keystore) list() (names []string, err error) {
	if s.dir == "" {
		return nil, nil
	}
	entries, err := os.ReadDir(s.dir)
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".pem") {
			names = append(names, e.Name())
		} else if ours, _ := filepath.Match(unfinished, e.Name()); ours {
			if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > time.Hour {
				os.Remove(filepath.Join(s.dir, e.Name()))
			}
		}
	}
	return names, err
}

// remove deletes the file of k, if there is one.
func (s *keystore) remove(k key) error {
	if s.dir == "" {
		return nil
	}
	err := os.Remove(filepath.Join(s.dir, k.file()))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot delete the file of an expired key: %w; delete it", err)
	}
	return nil
}

// write makes the file of k: a temporary one in the same directory is written, synced
// and renamed. It is durable once syncDir has returned.
func (s *keystore) write(k key) error {
	if s.dir == "" {
		return nil
	}
	der, err := x509.MarshalPKCS8PrivateKey(k.private)
	if err != nil {
		return err
	}
	file, err := os.CreateTemp(s.dir, unfinished) // mode 0600
	if err == nil {
		defer os.Remove(file.Name()) // in vain once it has been renamed
		err = pem.Encode(file, &pem.Block{Type: "PRIVATE KEY", Bytes: der})
		err = cmp.Or(err, file.Sync(), file.Close())
	}
	if err == nil {
		err = os.Rename(file.Name(), filepath.Join(s.dir, k.file()))
	}
	if err != nil {
		return fmt.Errorf("cannot store a key: %w; make %s writable, with room in it", err, s.dir)
	}
	return nil
}

// readKey returns the key in a file. Its error goes on where a sentence has begun
// with the file.
func readKey(path string) (key, error) {
	info, err := os.Stat(path)
	if err == nil && (!info.Mode().IsRegular() || info.Size() > maxKeyFile) {
		return key{}, errors.New("is not a regular file of a few KiB")
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return key{}, fmt.Errorf("cannot be read: %w", err)
	}
	return parseKey(filepath.Base(path), content)
}

// parseKey makes a key of a key file's name and content, which is PKCS #8 PEM and
// nothing else. The kid in the name has to be the thumbprint of the key inside.
func parseKey(name string, content []byte) (key, error) {
	block, rest := pem.Decode(content)
	if block == nil || block.Type != "PRIVATE KEY" || len(bytes.TrimSpace(rest)) > 0 {
		return key{}, errors.New("is damaged: it has to be one PEM block, PRIVATE KEY, and nothing else")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return key{}, fmt.Errorf("is damaged: %w", err)
	}
	private, ok := parsed.(*rsa.PrivateKey)
	if !ok || private.N.BitLen() < minBits {
		return key{}, fmt.Errorf("does not hold an RSA key of %d bits or more", minBits)
	}
	expiry, _, _ := strings.Cut(name, ".")
	expires, err := time.Parse(stamp, expiry)
	k := newKey(private, expires)
	if err != nil || name != k.file() {
		return key{}, fmt.Errorf("is misnamed: it has to be YYYYMMDDThhmmssZ.%s.pem, with the time at which the key expires", k.kid)
	}
	return k, nil
}

// syncDir makes the renames in dir durable. Windows neither offers nor needs that, and
// some file systems answer that they have no such thing (EINVAL).
func syncDir(dir string) error {
	if dir == "" || runtime.GOOS == "windows" {
		return nil
	}
	d, err := os.Open(dir)
	if err == nil {
		err = cmp.Or(d.Sync(), d.Close())
	}
	if err != nil && !errors.Is(err, syscall.EINVAL) {
		return fmt.Errorf("cannot sync the keys directory: %w; check its disk", err)
	}
	return nil
}

// clock reads the wall clock alone: the monotonic one stops while a laptop sleeps
// and would stretch an hour.
func clock() time.Time { return time.Now().Round(0).UTC() }

// take waits until there is room in turns, and takes it, or until ctx ends.
func take(ctx context.Context, turns chan struct{}) error {
	select {
	case turns <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// pollBetweenTurns makes every turn that is given back go through a pipe, until it is
// closed. The Go scheduler looks at the network only where there is nothing to run, or
// every 10 ms. Were a turn handed on directly, there would always be something to run
// while requests wait for one; so there is not before the network has been looked at,
// and reading the JWK Set waits for a signature at most.
func (s *keystore) pollBetweenTurns() (io.Closer, error) {
	given, give, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	s.giveTurn = func() { give.Write([]byte{0}) }
	go func() {
		for turn := make([]byte, 1); ; <-s.turns {
			if _, err := given.Read(turn); err != nil {
				return
			}
		}
	}()
	return give, nil
}
