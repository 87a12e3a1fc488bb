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
	"sync"
	"time"
)

const (
	startWait = 5 * time.Second  // how long a start waits for keys, because who reads the set first should know them all
	maxWait   = 2 * time.Second  // how long a request waits for a turn, or for a key
	slowDir   = 10 * time.Second // the log tells of a directory that takes longer than this
)

// A keystore holds the signing keys of one issuer in memory. It shares them with its
// replicas, and with itself after a restart, by a directory.
//
// Locks are taken in the order making, turns, mu.
type keystore struct {
	rotation
	bits int
	dir  keyDir
	log  *slog.Logger

	making   *limiter        // of one turn: it guards the fields below, and changes of keys
	spare    *rsa.PrivateKey // generated and not yet used
	revoked  map[string]bool // kids: a revocation is permanent
	missing  []key           // keys in hand whose files were not listed
	restored map[string]bool // names of keys that were stored again
	events   []event         // to be logged once making is released, because writing the log may block

	turns *limiter // for RSA operations: one a core, because more would slow each other down

	mu       sync.Mutex // guards what follows; never held while a key is made or signs
	keys     []key      // in order of expiry
	invalid  []error    // one for each unusable key file
	set      *document  // the JWK Set; nil if there is no key to publish
	rendered time.Time  // the set is right from then on
	until    time.Time  // and before then
}

// An event is a line for the log.
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
		rotation: policy, bits: bits, dir: dir, log: log,
		making: making, revoked: map[string]bool{}, restored: map[string]bool{}, turns: turns,
	}, cmp.Or(err1, err2)
}

// start is openKeystore for a keystore that nothing else uses yet. It logs nothing about
// keys before it has one, because a start that fails prints one line.
func (s *keystore) start(ctx context.Context) error {
	slow := time.AfterFunc(startWait, func() {
		s.log.Warn("the start waits for its first key: the keys directory does not answer, or making a key takes long", "directory", s.dir)
	})
	defer slow.Stop()
	if err := s.dir.create(); err != nil {
		return err
	}
	if err := s.refresh(); err != nil {
		return err
	}
	if err := invalidFilesError(s.invalid); err != nil {
		return err
	}
	if err := s.fill(ctx, 0); err != nil && !s.canSign() {
		return err
	}
	slow.Stop()
	ctx, cancel := context.WithTimeout(ctx, startWait)
	defer cancel()
	s.grow(ctx, s.ahead()) // after an error maintain retries, and logs it
	return nil
}

// errNoKey means that there is no key and that none could be made.
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

// current returns the JWK Set of now; nil if there is no key to publish.
func (s *keystore) current(now time.Time) *document {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Before(s.rendered) || !now.Before(s.until) {
		s.render(now)
	}
	return s.set
}

// published returns the keys of the JWK Set at a time, the soonest-expiring first. They are
// the same for as long as jwks returns the same document.
func (s *keystore) published(now time.Time) []key {
	s.mu.Lock()
	defer s.mu.Unlock()
	return unexpired(s.keys, now)
}

// A turn is the right to do one RSA operation, with the key that signs and the time at
// which it does. It has to be released.
type turn struct {
	key     key
	now     time.Time
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

// signing returns the key that signs.
func (s *keystore) signing(now time.Time) (k key, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.signer(s.keys, now)
}

func (s *keystore) canSign() bool {
	_, ok := s.signing(clock())
	return ok
}

// state returns the keys in hand, and what is wrong with files in the directory.
func (s *keystore) state() (keys []key, faults error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.keys, invalidFilesError(s.invalid)
}

// grow follows the directory and adds keys until the queue reaches ahead from now. The
// error says what stands in the way; the keys in hand stay good. When ctx ends it no
// longer waits for the directory, which may hang.
func (s *keystore) grow(ctx context.Context, ahead time.Duration) error {
	release, err := s.making.acquire(ctx)
	if err != nil {
		return err
	}
	_, err = await(ctx, func() (struct{}, error) {
		err := s.fill(ctx, ahead)
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

// await returns the result of f, or the error of ctx if that is done first: f may hang.
func await[T any](ctx context.Context, f func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		value, err := f()
		done <- result{value, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}

// fill is grow for a caller that holds making.
func (s *keystore) fill(ctx context.Context, ahead time.Duration) error {
	for {
		if err := s.refresh(); err != nil {
			return err
		}
		expires, due := s.next(s.keys, clock(), ahead)
		switch {
		case !due:
			return s.restore()
		case s.spare == nil: // refresh again afterwards: a replica may have made its own
			private, err := s.generate(ctx)
			if err != nil {
				return err
			}
			s.spare = private
		default:
			k := newKey(s.spare, expires)
			if err := s.store(k); err != nil {
				return err
			}
			s.replace(append(slices.Clone(s.keys), k))
			s.note(slog.LevelInfo, "key made", s.describe(k)...)
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

// refresh makes the store hold what the directory holds, besides what it holds already.
// The caller holds making.
func (s *keystore) refresh() error {
	files, err := s.dir.list()
	if err != nil {
		return err
	}
	now := clock() // not before, because list may hang
	s.dir.remove(files, now)
	for _, name := range files.revoked {
		_, kid, _ := parseName(name)
		s.revoked[kid] = true
	}
	c := compare(s.keys, files.stored, s.revoked, now)
	if len(c.kept) < len(s.keys) {
		s.replace(c.kept)
	}
	for _, k := range c.expired {
		s.note(slog.LevelInfo, "key expired", "kid", k.kid)
	}
	for _, k := range c.revoked {
		s.note(slog.LevelWarn, "key revoked", s.describe(k)...)
	}
	s.missing = c.missing
	return s.load(c)
}

// load adds the keys of files that the store does not know. The caller holds making.
func (s *keystore) load(c comparison) error {
	found, invalid := s.dir.loadAll(c)
	s.mu.Lock()
	s.invalid = invalid
	s.mu.Unlock()
	if len(found) == 0 {
		return nil
	}
	if err := s.dir.sync(); err != nil { // their writer may have crashed before it synced
		return err
	}
	s.replace(append(slices.Clone(s.keys), found...))
	for _, k := range found {
		s.note(slog.LevelInfo, "key found", s.describe(k)...)
		if s.dir.exposed(k.name()) {
			s.note(slog.LevelWarn, "other users may read a private key: chmod 600 its file", "file", s.dir.path(k.name()+".pem"))
		}
	}
	return nil
}

// restore stores the keys whose files are missing. It comes after new keys, and tries each,
// because a part of a distributed file system may be down. The caller holds making.
func (s *keystore) restore() (failed error) {
	if s.dir == "" {
		return nil
	}
	for _, k := range s.missing {
		if err := s.store(k); err != nil {
			failed = err
			continue
		}
		if !s.restored[k.name()] {
			s.note(slog.LevelWarn, "key stored again, because its file was missing; to revoke a key, rename its file to end in .revoked", "kid", k.kid)
		}
		s.restored[k.name()] = true
	}
	return failed
}

// store makes k durable. The spare key is used up by its file, even if that cannot be synced,
// because no key ever has another expiry. It is used up, too, if its name cannot be stored,
// because the name of another key may. The caller holds making.
func (s *keystore) store(k key) error {
	err := s.dir.write(k)
	if k.private == s.spare && (err == nil || errors.As(err, new(*os.LinkError))) {
		s.spare = nil
	}
	return cmp.Or(err, s.dir.sync())
}

// replace makes keys the store's. The caller holds making.
func (s *keystore) replace(keys []key) {
	slices.SortFunc(keys, func(a, b key) int { return cmp.Compare(a.name(), b.name()) })
	now := clock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys = keys
	s.render(now)
}

// render makes the JWK Set of now. The caller holds mu.
func (s *keystore) render(now time.Time) {
	s.set, s.rendered, s.until = nil, now, time.Time{}
	if keys := unexpired(s.keys, now); len(keys) > 0 {
		s.set, s.until = jwkSet(keys), keys[0].expires
	}
}

// describe returns the fields of a log line about k.
func (s *keystore) describe(k key) []any {
	return []any{
		"kid", k.kid, "signs_from", k.expires.Add(-s.keyTTL).Format(time.RFC3339),
		"signs_until", s.signsUntil(k).Format(time.RFC3339), "expires", k.expires.Format(time.RFC3339),
	}
}

// clock reads the wall clock alone, because the monotonic one stops while a laptop sleeps
// and would stretch an hour.
func clock() time.Time { return time.Now().Round(0).UTC() }

// maintain keeps the queue of keys full and follows the directory until ctx ends.
func (s *keystore) maintain(ctx context.Context) {
	signs, warned := "", map[string]bool{} // a kid, and names
	var disk, files trouble
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		growing, cancel := context.WithTimeout(ctx, slowDir)
		err := s.grow(growing, s.ahead())
		cancel()
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("not done after %s: the keys directory %s does not answer, or many keys have to be made", slowDir, s.dir)
		}
		now := clock()
		keys, faults := s.state()
		if k, ok := s.signer(keys, now); ok && k.kid != signs {
			s.log.Info("now signing", s.describe(k)...)
			signs = k.kid
		}
		for _, k := range keys {
			if s.far(k, now) && !warned[k.name()] {
				warned[k.name()] = true
				s.log.Warn("key expires too late to sign yet, because it was made with other flags or under a wrong clock; "+
					"rename its file to end in .revoked if none of its tokens is in use", append(s.describe(k), "file", s.dir.path(k.name()+".pem"))...)
			}
		}
		outlook := "no key can sign"
		if end := s.end(keys, now); end.After(now) {
			outlook = "the keys in hand sign until " + end.Format(time.RFC3339)
		}
		disk.report(s.log, "cannot maintain the keys", err, outlook)
		files.report(s.log, "cannot use a key file", faults, outlook)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}
