package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"time"
)

const (
	startWait = 5 * time.Second // how long a start waits for a full queue, so that its first JWK Set is complete
	maxWait   = 2 * time.Second // how long a request waits for a turn, or for a key
)

// A keystore holds the signing keys of one issuer in memory. The directory shares them with
// replicas and preserves them across restarts.
//
// Locks are taken in the order making, turns, keyring.
type keystore struct {
	keyring
	bits int
	dir  keyDir
	log  *slog.Logger

	// making has one turn. It guards the following fields, and changes of keyring.keys.
	making   *limiter
	spare    *rsa.PrivateKey // a generated key that no file has been written of
	revoked  map[string]bool // by kid; a revocation is permanent
	missing  []key           // keys in memory without a file
	restored map[string]bool // by kid: a file of the key was missing and has been stored again
	events   []event         // to log once making is released, because the log may block

	// turns limits RSA operations to one for each core, because more would slow each other down.
	turns *limiter
}

// An event is a line of the log.
type event struct {
	level   slog.Level
	message string
	fields  []any
}

// openKeystore returns a keystore with the keys in the directory and those that have to be
// made. It waits for its first key as long as ctx allows, and for the others for startWait.
//
// An unusable key file is an error. A directory that cannot be written is an error only if
// no key can sign.
func openKeystore(ctx context.Context, dir keyDir, policy rotation, bits int, log *slog.Logger) (*keystore, error) {
	s, err := newKeystore(dir, policy, bits, log)
	if err != nil {
		return nil, err
	}
	if err := s.start(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

func newKeystore(dir keyDir, policy rotation, bits int, log *slog.Logger) (*keystore, error) {
	making, err1 := newLimiter(1)
	turns, err2 := newLimiter(runtime.GOMAXPROCS(0))
	return &keystore{
		keyring: keyring{rotation: policy}, bits: bits, dir: dir, log: log,
		making: making, revoked: map[string]bool{}, restored: map[string]bool{}, turns: turns,
	}, cmp.Or(err1, err2)
}

// start loads and makes the keys of a new keystore, as openKeystore says. It logs events only once
// there is a key to sign with, because a start that fails prints one line.
func (s *keystore) start(ctx context.Context) error {
	slow := time.AfterFunc(startWait, func() {
		s.log.Warn("still waiting for the first key: making a key is slow, or the keys directory does not answer", "directory", s.dir)
	})
	defer slow.Stop()
	if err := s.dir.create(); err != nil {
		return err
	}
	if err := s.refresh(); err != nil {
		return err
	}
	if _, err := s.state(); err != nil {
		return err
	}
	if err := s.fill(ctx, 0); err != nil && !s.canSign() {
		return err
	}
	slow.Stop()
	ctx, cancel := context.WithTimeout(ctx, startWait)
	defer cancel()
	s.grow(ctx, s.queueLength()) // maintain retries, and logs the error
	return nil
}

// errNoKey means that there is no key, and that none could be made.
var errNoKey = errors.New("no key")

// jwks returns the JWK Set (RFC 7517 section 5), which is never empty: it makes a key if
// there is none. The error wraps errNoKey.
func (s *keystore) jwks(ctx context.Context) (*document, error) {
	if set := s.current(clock()); set != nil {
		return set, nil
	}
	ctx, cancel := context.WithTimeout(ctx, maxWait)
	defer cancel()
	err := s.grow(ctx, 0)
	if set := s.current(clock()); set != nil {
		return set, nil
	}
	return nil, fmt.Errorf("%w: %w", errNoKey, err)
}

// A turn is the right to do one RSA operation. It must be released.
type turn struct {
	key     key       // that signs
	now     time.Time // at which it signs
	release func()
}

// turn waits for a turn, and makes a key if none can sign. The error wraps errNoKey if none
// can be made, and is otherwise that of acquire.
func (s *keystore) turn(ctx context.Context) (turn, error) {
	ctx, cancel := context.WithTimeout(ctx, maxWait)
	defer cancel()
	t, err := s.turnWithKey(ctx)
	if !errors.Is(err, errNoKey) {
		return t, err
	}
	if err := s.grow(ctx, 0); err != nil && !s.canSign() {
		return turn{}, fmt.Errorf("%w: %w", errNoKey, err)
	}
	return s.turnWithKey(ctx)
}

// turnWithKey waits for a turn. Then it reads the clock, after all waiting. The error is
// errNoKey, or that of acquire.
func (s *keystore) turnWithKey(ctx context.Context) (turn, error) {
	release, err := s.turns.acquire(ctx)
	if err != nil {
		return turn{}, err
	}
	now := clock()
	k, ok := s.signing(now)
	if !ok {
		release()
		return turn{}, errNoKey
	}
	return turn{key: k, now: now, release: release}, nil
}

func (s *keystore) canSign() bool {
	_, ok := s.signing(clock())
	return ok
}

// grow picks up changes in the directory, and makes keys until they can sign until target
// from now. After an error the keys in memory stay in use. If ctx is done first, grow returns
// but the work goes on: file systems may hang.
func (s *keystore) grow(ctx context.Context, target time.Duration) error {
	release, err := s.making.acquire(ctx)
	if err != nil {
		return err
	}
	_, err = await(ctx, func() (struct{}, error) {
		err := s.fill(ctx, target)
		events := s.events
		s.events = nil
		release()
		for _, e := range events {
			s.log.Log(ctx, e.level, e.message, e.fields...)
		}
		return struct{}{}, err
	})
	return err
}

// fill is grow for a caller that holds making.
func (s *keystore) fill(ctx context.Context, target time.Duration) error {
	for {
		if err := s.refresh(); err != nil {
			return err
		}
		now := clock()
		if !s.due(s.keys, now, target) {
			return s.restore()
		}
		if s.spare == nil {
			if err := s.generateSpare(ctx); err != nil {
				return err
			}
			continue // a replica may have made its own meanwhile
		}
		k := newKey(s.spare, s.nextExpiry(s.keys, now))
		if err := s.store(k); err != nil {
			return err
		}
		s.replace(append(slices.Clone(s.keys), k), clock())
		s.note(slog.LevelInfo, "key made", s.logFields(k)...)
	}
}

// generateSpare generates the spare key. Meanwhile it picks up changes in the directory:
// waiting for a turn and generating may take seconds, and a revocation must not wait for
// them. The caller holds making.
func (s *keystore) generateSpare(ctx context.Context) (err error) {
	var private *rsa.PrivateKey
	done := make(chan struct{})
	go func() {
		private, err = s.generate(ctx)
		close(done)
	}()
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		select {
		case <-done:
			s.spare = private
			return err
		case <-ticker.C:
			s.refresh() // fill reports its error
		}
	}
}

// generate waits for a turn and generates a private key, which is neither stored nor
// published. The error is that of acquire.
func (s *keystore) generate(ctx context.Context) (*rsa.PrivateKey, error) {
	release, err := s.turns.acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	return rsa.GenerateKey(rand.Reader, s.bits)
}

// note adds an event. The caller holds making.
func (s *keystore) note(level slog.Level, message string, fields ...any) {
	s.events = append(s.events, event{level: level, message: message, fields: fields})
}

// refresh adds keys that appeared in the directory, and drops revoked and expired ones. The
// caller holds making.
func (s *keystore) refresh() error {
	files, err := s.dir.list()
	if err != nil {
		return err
	}
	now := clock() // after list, which may hang
	s.dir.remove(files, now)
	for _, name := range files.revoked {
		_, kid, _ := parseName(name)
		s.revoked[cmp.Or(kid, name)] = true // name is the kid in KID.revoked
	}
	c := compare(s.keys, files.stored, s.revoked, now)
	if len(c.kept) < len(s.keys) {
		s.replace(c.kept, now)
	}
	for _, k := range c.expired {
		s.note(slog.LevelInfo, "key expired", "kid", k.kid)
	}
	for _, k := range c.revoked {
		s.note(slog.LevelWarn, "key revoked", s.logFields(k)...)
	}
	s.missing = c.missing
	return s.load(c)
}

// load adds the keys of unknown files. The caller holds making.
func (s *keystore) load(c comparison) error {
	found, invalid := s.dir.loadAll(c)
	s.setInvalid(invalidFilesError(invalid))
	if len(found) == 0 {
		return nil
	}
	if err := s.dir.sync(); err != nil { // the server that wrote them may have crashed before it did so
		return err
	}
	s.replace(append(slices.Clone(s.keys), found...), clock())
	for _, k := range found {
		s.note(slog.LevelInfo, "key found", s.logFields(k)...)
		if s.dir.exposed(k.name()) {
			s.note(slog.LevelWarn, "other users may read a private key: chmod 600 its file", "file", s.dir.path(k.name()+".pem"))
		}
	}
	return nil
}

// restore stores the keys whose files are missing. It runs after new keys are stored, and goes
// on after an error, because part of a distributed file system may be down. The caller holds
// making.
func (s *keystore) restore() (failed error) {
	if s.dir == "" {
		return nil
	}
	for _, k := range s.missing {
		if err := s.store(k); err != nil {
			failed = err
			continue
		}
		if !s.restored[k.kid] {
			s.restored[k.kid] = true
			s.note(slog.LevelWarn,
				"key stored again, because its file was missing; to revoke a key, rename its file to end in .revoked", "kid", k.kid)
		}
	}
	return failed
}

// store makes k durable. The caller holds making.
//
// It gives up the spare key once a file of it exists, because a key must never get a second
// expiry. It also gives it up if the rename fails: on a distributed volume the brick that
// this name hashes to may be down, and another name may work.
func (s *keystore) store(k key) error {
	err := s.dir.write(k)
	if k.private == s.spare && (err == nil || errors.As(err, new(*os.LinkError))) {
		s.spare = nil
	}
	if err != nil {
		return err
	}
	return s.dir.sync()
}

// clock reads the wall clock only. The monotonic clock stops while a laptop sleeps.
func clock() time.Time { return time.Now().Round(0).UTC() }
