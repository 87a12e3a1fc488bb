package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// signer returns the key with which a store signs now.
func signer(t *testing.T, s *testServer) key {
	t.Helper()
	turn, err := s.store.turn(t.Context())
	ok(t, err)
	turn.release()
	return turn.key
}

// look lets stores do what a tick does.
func look(t *testing.T, stores ...*testServer) {
	t.Helper()
	for _, s := range stores {
		ok(t, s.store.grow(t.Context(), s.store.queueLength()))
	}
}

func sleepUntil(at time.Time) { time.Sleep(time.Until(at)) }

func TestStore(t *testing.T) {
	for _, dir := range []string{t.TempDir(), ""} {
		bubble(t, fmt.Sprintf("three keys are made at first and then one each 45 minutes, and each event is logged once/directory %t", dir != ""), func(t *testing.T) {
			s := newTestServer(t, "-keys", dir)
			s.store.bits = 1024
			keepRunning(t, s)
			start, first := time.Now(), s.store.keys[0]
			for _, test := range []struct {
				after               time.Duration
				wantMade, wantAlive int
			}{
				{after: 0, wantMade: 3, wantAlive: 3},
				{after: 10 * time.Minute, wantMade: 3, wantAlive: 3},
				{after: 10*time.Minute + time.Second, wantMade: 4, wantAlive: 4},
				{after: 55*time.Minute + time.Second, wantMade: 5, wantAlive: 5},
				{after: time.Hour, wantMade: 5, wantAlive: 4},
				{after: 105 * time.Minute, wantMade: 6, wantAlive: 4},
			} {
				sleepUntil(start.Add(test.after))
				synctest.Wait()
				made := strings.Count(s.log.String(), `msg="key made" kid=`)
				equal(t, fmt.Sprintf("after %s: keys made, alive", test.after), []int{made, len(s.set(t))}, []int{test.wantMade, test.wantAlive})
			}
			wantInLog(t, s.log, 1, `msg="now signing" kid=`+first.kid+" signs_from=2000-01-01T00:00:00Z signs_until=2000-01-01T00:45:00Z expires=2000-01-01T01:00:00Z\n")
			for event, want := range map[string]int{`msg="key made"`: 6, `msg="now signing"`: 3, `msg="key expired"`: 2, "\n": 11} {
				wantInLog(t, s.log, want, event)
			}
		})
	}
	bubble(t, "the clock is read once all waiting is over", func(t *testing.T) {
		s := newTestServer(t)
		first, second := s.store.keys[0], s.store.keys[1]
		release := takeAll(t, s.store.turns)
		sleepUntil(s.store.signsUntil(first))
		var got turn
		var wg sync.WaitGroup
		wg.Go(func() { got, _ = s.store.turn(t.Context()) })
		time.Sleep(maxWait - 1)
		release()
		wg.Wait()
		equal(t, "signer", got.key.kid, second.kid)
		equal(t, "now", got.now, clock())
	})
	bubble(t, "an expired key is not served from its expiry on", func(t *testing.T) {
		time.Sleep(time.Millisecond) // a start is seldom on a second
		s := newTestServer(t)
		first := s.store.keys[0]
		equal(t, "the first key expires", first.expires, clock().Add(time.Hour+time.Second-time.Millisecond))
		before := s.set(t)
		sleepUntil(first.expires.Add(-1))
		equal(t, "set a nanosecond before", s.set(t).kids(), before.kids())
		time.Sleep(1)
		delete(before, first.kid)
		equal(t, "set at its expiry", s.set(t).kids(), before.kids())
	})
	bubble(t, "the set is made again only when it changes", func(t *testing.T) {
		s := newTestServer(t)
		sets := map[*document]bool{}
		for range 59 {
			time.Sleep(10 * time.Second)
			look(t, s)
			sets[must(s.store.jwks(t.Context()))] = true
		}
		equal(t, "sets of the same keys", len(sets), 1)
		now := clock()
		for _, test := range []struct {
			at   time.Duration
			want int
		}{{want: 3}, {at: time.Hour, want: 2}, {want: 3}, {at: 24 * time.Hour}, {at: -time.Hour, want: 3}, {at: 40 * year}, {want: 3}} {
			keys := 0
			if set := s.store.current(now.Add(test.at)); set != nil {
				keys = len(parseSet(t, string(set.body)))
			}
			equal(t, fmt.Sprintf("keys in the set of a clock %s ahead", test.at), keys, test.want)
			equal(t, fmt.Sprintf("keys published by a clock %s ahead", test.at), len(s.store.published(now.Add(test.at))), test.want)
		}
	})
	bubble(t, "a key is generated in a turn, which is released, and is not published", func(t *testing.T) {
		s := newTestServer(t)
		release := takeAll(t, s.store.turns)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := s.store.generate(ctx)
		equal(t, "generate without a turn", err, context.DeadlineExceeded)
		release()
		private := must(s.store.generate(t.Context()))
		equal(t, "bits", private.N.BitLen(), minBits)
		equal(t, "the key is published", s.set(t)[thumbprint(&private.PublicKey)] != nil, false)
		takeAll(t, s.store.turns)()
	})
	for _, dir := range []string{t.TempDir(), ""} {
		bubble(t, fmt.Sprintf("requests that find no key make one together/directory %t", dir != ""), func(t *testing.T) {
			s := newTestServer(t, "-keys", dir)
			time.Sleep(25 * time.Hour)
			var wg sync.WaitGroup
			for range 50 {
				wg.Go(func() {
					token := s.token(t, "", "")
					_, err := s.set(t).verify(token)
					wantError(t, "verify", err, "")
				})
				wg.Go(func() { s.set(t) })
			}
			wg.Wait()
			equal(t, "keys made", len(s.set(t)), 1)
		})
	}
	for _, test := range []struct {
		away      time.Duration
		wantKept  int // keys of before
		wantKnown bool
	}{
		{away: 0, wantKept: 3, wantKnown: true},
		{away: 50 * time.Minute, wantKept: 3, wantKnown: true},
		{away: 134*time.Minute + 59*time.Second, wantKept: 1, wantKnown: true}, // the last key still signs
		{away: 140 * time.Minute, wantKept: 1},
		{away: 24 * time.Hour},
	} {
		for _, restart := range []bool{false, true} {
			bubble(t, fmt.Sprintf("keys that verifiers know sign first after a sleep or a restart/%s restart %t", test.away, restart), func(t *testing.T) {
				dir := t.TempDir()
				s := newTestServer(t, "-keys", dir)
				before, old := s.set(t), s.token(t, "", "")
				time.Sleep(test.away)
				if restart {
					s = newTestServer(t, "-keys", dir)
				}
				token := s.token(t, "", "")
				set := s.set(t)
				kept := 0
				for kid := range before {
					if set[kid] != nil {
						kept++
					}
				}
				equal(t, "keys of before that are served", kept, test.wantKept)
				equal(t, "a key of before signs", before[kidOf(t, token)] != nil, test.wantKnown)
				if test.away == 0 {
					_, err := set.verify(old)
					wantError(t, "verify a token of before", err, "")
				}
				time.Sleep(10*time.Minute - 1)
				_, err := s.set(t).verify(token)
				wantError(t, "verify a new token in its last nanosecond", err, "")
			})
		}
	}
	bubble(t, "two keys made at once are both published, and the lesser kid signs", func(t *testing.T) {
		dir := keyDir(t.TempDir())
		putKey(t, dir, 0, time.Hour)
		lesser := putKey(t, dir, 1, time.Hour)
		s := newTestServer(t, "-keys", string(dir), "-publish-ahead", "1s")
		equal(t, "signer", signer(t, s).kid, lesser.kid)
		equal(t, "keys published", len(s.set(t)), 2)
	})
}

func TestTokensVerifyForThreeDaysOfRotation(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t)
		s.store.bits = 1024
		start, random := time.Now(), rand.New(rand.NewPCG(1, 2))
		const step = 15 * time.Second // the loop looks each second, and what it does in time a later look does, too
		var (
			mu      sync.Mutex // tokens are checked by goroutines
			etag    string
			set     keySet
			history []keySet // one a step
			kids    = map[string]bool{}
			tokens  int
		)
		fetch := func() {
			mu.Lock()
			defer mu.Unlock()
			if w := s.do("GET", jwksPath, "", "If-None-Match", etag); w.status != http.StatusNotModified {
				etag, set = w.header.Get("ETag"), parseSet(t, w.body)
				expires := keyFiles(t, s.store.dir)
				for kid := range set {
					kids[kid] = true
					if !time.Now().Before(expires[kid]) {
						t.Errorf("at %s the set has a key that expired at %s", time.Now(), expires[kid])
					}
				}
			}
			history = append(history, set)
		}
		check := func(token, when string) jwt.MapClaims {
			mu.Lock()
			defer mu.Unlock()
			claims, err := s.set(t).verify(token)
			wantError(t, when+", with the set of then: verify", err, "")
			_, err = history[max(0, len(history)-1-int(s.store.publishAhead/step))].verify(token)
			wantError(t, when+", with a set fetched publish-ahead before: verify", err, "")
			return claims
		}
		use := func(token string) {
			claims := check(token, "at issue")
			expires := time.Unix(int64(claims["exp"].(float64)), 0)
			go func() {
				time.Sleep(time.Until(expires) / 2)
				check(token, "in mid-life")
				sleepUntil(expires.Add(-1))
				check(token, "in its last nanosecond")
			}()
			tokens++
		}
		for next := start; time.Since(start) < 72*time.Hour; {
			round := time.Now().Add(step)
			look(t, s)
			fetch()
			if !time.Now().Before(next) {
				next = next.Add(time.Duration(random.Int64N(int64(8 * time.Minute))))
				use(s.token(t, "", ""))
			}
			if takeover := s.store.signsUntil(signer(t, s)).Add(1); takeover.Before(round) {
				sleepUntil(takeover)
				use(s.token(t, "", ""))
			}
			sleepUntil(round)
		}
		if len(kids) < 96 || tokens < 1000 {
			t.Errorf("%d keys and %d tokens in three days; want 96 and 1000 at least", len(kids), tokens)
		}
		time.Sleep(10 * time.Minute)
	})
}

func TestReplicas(t *testing.T) {
	bubble(t, "replicas sign with one key, verify each other and make each key once", func(t *testing.T) {
		dir := t.TempDir()
		var replicas []*testServer
		for range 3 {
			s := newTestServer(t, "-keys", dir)
			keepRunning(t, s)
			replicas = append(replicas, s)
			time.Sleep(333 * time.Millisecond)
		}
		for range 30 {
			time.Sleep(7*time.Minute + 77*time.Millisecond)
			for i, s := range replicas {
				other := replicas[(i+1)%3]
				token := s.token(t, "", "")
				_, err := other.set(t).verify(token)
				wantError(t, "verify a token of a replica by the set of another", err, "")
				equal(t, "signer of a replica", kidOf(t, token), signer(t, other).kid)
				equal(t, "set of a replica", s.set(t).kids(), other.set(t).kids())
			}
		}
		equal(t, "keys made in 210 minutes", len(keyFiles(t, keyDir(dir))), 8) // 3, and one each 45 from the tenth on
	})
	bubble(t, "a key that another replica made meanwhile is not made again", func(t *testing.T) {
		dir := t.TempDir()
		a := newTestServer(t, "-keys", dir)
		b := newTestServer(t, "-keys", dir)
		time.Sleep(10*time.Minute + time.Second) // a key is due
		release := takeAll(t, a.store.turns)     // so that making it takes a while
		var wg sync.WaitGroup
		wg.Go(func() { look(t, a) })
		synctest.Wait()
		look(t, b)
		release()
		wg.Wait()
		equal(t, "keys made", len(keyFiles(t, keyDir(dir))), 4)
		equal(t, "keys of the slow replica", namesOf(a.store.keys), namesOf(b.store.keys))
		wantInLog(t, a.log, 1, `msg="key found" kid=`+b.store.keys[3].kid)
		equal(t, "its own is kept to be used later", a.store.spare != nil, true)
	})
	bubble(t, "a listing that is as old as a cache hurts nobody", func(t *testing.T) {
		dir := t.TempDir()
		a := newTestServer(t, "-keys", dir)
		b := newTestServer(t, "-keys", dir)
		for i := range 6 * 360 {
			look(t, a)
			if i%30 == 29 {
				look(t, b) // what was there 5 minutes ago at worst
			}
			if one, two := signer(t, a), signer(t, b); one.kid != two.kid {
				t.Fatalf("after %d s they sign with %s and %s; want one key", 10*i, one.kid, two.kid)
			}
			time.Sleep(10 * time.Second)
		}
	})
}

func TestRevocation(t *testing.T) {
	for _, test := range []struct {
		name   string
		revoke func(pem, name string) error
	}{
		{name: "renamed to NAME.revoked", revoke: func(pem, name string) error { return os.Rename(pem, name+".revoked") }},
		{name: "renamed to NAME.pem.revoked", revoke: func(pem, name string) error { return os.Rename(pem, pem+".revoked") }},
		{name: "beside NAME.pem, empty", revoke: func(pem, name string) error { return os.WriteFile(name+".revoked", nil, 0o600) }},
	} {
		bubble(t, "a revoked key is neither published nor signs/"+test.name, func(t *testing.T) {
			dir := keyDir(t.TempDir())
			a := newTestServer(t, "-keys", string(dir))
			b := newTestServer(t, "-keys", string(dir))
			first, second := a.store.keys[0], a.store.keys[1]
			check := func(when string, servers ...*testServer) {
				t.Helper()
				for _, s := range servers {
					equal(t, when+": signer", signer(t, s).kid, second.kid)
					equal(t, when+": the key is published", s.set(t)[first.kid] != nil, false)
				}
			}
			name := dir.path(first.name())
			ok(t, test.revoke(name+".pem", name))
			beside := exists(name + ".pem")
			look(t, a, b)
			check("at the next look", a, b)
			equal(t, "the .pem file is there", exists(name+".pem"), beside) // nobody stores it again
			wantInLog(t, a.log, 1, `msg="key revoked" kid=`+first.kid)
			c := newTestServer(t, "-keys", string(dir))
			check("after a restart", c)
			ok(t, dir.write(first)) // as a server does that has not looked
			look(t, a, b, c)
			check("when its file is there again", a, b, c, newTestServer(t, "-keys", string(dir)))
			ok(t, os.RemoveAll(name+".revoked"), os.RemoveAll(name+".pem.revoked"))
			look(t, a, b, c)
			check("when the .revoked file is gone", a, b, c)
		})
	}
	bubble(t, "a kid is revoked and has one expiry, whatever other files of it say, also after a restart", func(t *testing.T) {
		dir := keyDir(t.TempDir())
		revoked, once := putKey(t, dir, 0, time.Hour), putKey(t, dir, 1, 2*time.Hour)
		s := newTestServer(t, "-keys", string(dir))
		for _, k := range []key{revoked, once} { // files by which they would live for 40 days
			ok(t, os.Link(dir.path(k.name()+".pem"), dir.path(newKey(k.private, clock().Add(40*24*time.Hour)).name()+".pem")))
		}
		ok(t, os.WriteFile(dir.path(revoked.name()+".revoked"), nil, 0o600))
		for _, test := range []struct {
			after    time.Duration
			wantOnce bool
		}{{after: time.Second, wantOnce: true}, {after: 2*time.Hour - 1, wantOnce: true}, {after: 2 * time.Hour}, {after: 26 * time.Hour}, {after: 32 * 24 * time.Hour}} {
			sleepUntil(once.expires.Add(test.after - 2*time.Hour))
			s.store.grow(t.Context(), 0)
			restarted := must(newKeystore(dir, standard, minBits, s.store.log))
			ok(t, restarted.refresh()) // openKeystore refuses duplicates
			for name, s := range map[string]*keystore{"the server": s.store, "a restarted one": restarted} {
				kids := map[string]bool{}
				for _, k := range s.published(clock()) {
					kids[k.kid] = true
				}
				what := fmt.Sprintf("after %s %s publishes ", test.after, name)
				equal(t, what+"the revoked key", kids[revoked.kid], false)
				equal(t, what+"the other key", kids[once.kid], test.wantOnce)
			}
		}
	})
	bubble(t, "when all keys are revoked a new one signs", func(t *testing.T) {
		s := newTestServer(t)
		before := s.set(t)
		for _, k := range s.store.keys {
			ok(t, os.Rename(s.store.dir.path(k.name()+".pem"), s.store.dir.path(k.name()+".revoked")))
		}
		look(t, s)
		equal(t, "a revoked key signs", before[signer(t, s).kid] != nil, false)
		equal(t, "keys published", len(s.set(t)), 3)
	})
}

// unwritable returns a directory by a path that is too long for the name of a temporary
// file, because root may write to any directory.
func unwritable(t *testing.T, dir keyDir) keyDir {
	t.Helper()
	for {
		longer := dir + "/."
		if _, err := os.ReadDir(string(longer)); err != nil {
			return dir
		}
		dir = longer
	}
}

func TestTrouble(t *testing.T) {
	bubble(t, "keys in hand outlive their directory, and no key is used before it is stored", func(t *testing.T) {
		s := newTestServer(t)
		start, known, dir := time.Now(), s.set(t), string(s.store.dir)
		ok(t, os.Rename(dir, dir+".away"), os.WriteFile(dir, nil, 0o600))
		for _, test := range []struct {
			after               time.Duration
			wantKeys, wantSigns int
		}{
			{after: time.Second, wantKeys: 3, wantSigns: http.StatusOK},
			{after: 135 * time.Minute, wantKeys: 1, wantSigns: http.StatusOK},
			{after: 135*time.Minute + 1, wantKeys: 1, wantSigns: http.StatusServiceUnavailable},
			{after: 150*time.Minute - 1, wantKeys: 1, wantSigns: http.StatusServiceUnavailable},
			{after: 150 * time.Minute, wantKeys: 0, wantSigns: http.StatusServiceUnavailable},
		} {
			sleepUntil(start.Add(test.after))
			wantError(t, "grow", s.store.grow(t.Context(), s.store.queueLength()), "cannot read the keys directory")
			var set keySet
			if w := s.do("GET", jwksPath, ""); w.status == http.StatusOK {
				set = parseSet(t, w.body)
			}
			for kid := range set {
				equal(t, "a key of before is published", known[kid] != nil, true)
			}
			w := s.do("POST", "/auth", "")
			equal(t, fmt.Sprintf("after %s: keys of before, POST /auth", test.after), []int{len(set), w.status}, []int{test.wantKeys, test.wantSigns})
		}
		ok(t, os.Remove(dir), os.Rename(dir+".away", dir))
		s.token(t, "", "") // when the directory is back
	})
	bubble(t, "a key whose file is missing is kept and stored again", func(t *testing.T) {
		s := newTestServer(t)
		set := must(s.store.jwks(t.Context()))
		files := must(os.ReadDir(string(s.store.dir)))
		for lost := range 4 { // a partial listing; at last an empty mount point
			for _, f := range files[:lost] {
				ok(t, os.Remove(s.store.dir.path(f.Name())))
			}
			look(t, s)
			found, faulty := s.store.dir.loadAll(comparison{unknown: namesOf(s.store.keys)})
			equal(t, fmt.Sprintf("%d lost: files", lost), namesOf(found), namesOf(s.store.keys))
			equal(t, fmt.Sprintf("%d lost: faulty files", lost), len(faulty), 0)
			equal(t, fmt.Sprintf("%d lost: the set has changed", lost), must(s.store.jwks(t.Context())) != set, false)
		}
		wantInLog(t, s.log, 3, "key stored again") // once a key
	})
	bubble(t, "storing a key again does not use up the spare one", func(t *testing.T) {
		s := newTestServer(t)
		s.store.spare = readyMade()[0]
		ok(t, os.Remove(s.store.dir.path(s.store.keys[1].name()+".pem")))
		look(t, s)
		equal(t, "the spare key is there yet", s.store.spare == readyMade()[0], true)
	})
	bubble(t, "a key that cannot be stored is kept to be stored later, and only once", func(t *testing.T) {
		s := newTestServer(t, "-publish-ahead", "1s")
		dir := s.store.dir
		time.Sleep(time.Hour)
		for range 3 {
			s.store.dir = unwritable(t, dir)
			wantError(t, "grow", s.store.grow(t.Context(), s.store.queueLength()), "cannot store a key")
		}
		spare := s.store.spare
		s.store.dir = dir
		look(t, s)
		equal(t, "the spare key signs", signer(t, s).private == spare, true)
		equal(t, "a key is spare", s.store.spare != nil, false)
	})
	bubble(t, "no request waits for a directory that hangs", func(t *testing.T) {
		s := newTestServer(t, "-publish-ahead", "1s")
		release := takeAll(t, s.store.making) // as a hung look does
		defer release()
		begin := time.Now()
		s.token(t, "", "")
		s.set(t)
		equal(t, "waited with a key in hand", time.Since(begin), 0*time.Second)
		time.Sleep(time.Hour)
		for what, f := range map[string]func() error{
			"turn": func() error { _, err := s.store.turn(t.Context()); return err },
			"jwks": func() error { _, err := s.store.jwks(t.Context()); return err },
		} {
			begin := time.Now()
			wantError(t, what, f(), errNoKey.Error()+": "+context.DeadlineExceeded.Error())
			equal(t, what+" without a key waited", time.Since(begin), maxWait)
		}
		takeAll(t, s.store.turns)() // none was lost
	})
	bubble(t, "a request is told that there is no key, and not that all turns are taken", func(t *testing.T) {
		s := newTestServer(t, "-publish-ahead", "1s")
		time.Sleep(time.Hour)
		defer takeAll(t, s.store.making)() // as a hung look does
		var err error
		var wg sync.WaitGroup
		wg.Go(func() { _, err = s.store.turn(t.Context()) })
		synctest.Wait()
		release := takeAll(t, s.store.turns)
		wg.Wait()
		release()
		equal(t, "the error is errNoKey", errors.Is(err, errNoKey), true)
	})
	bubble(t, "a request whose time was spent on making a key gets its answer if a turn is free", func(t *testing.T) {
		s := newTestServer(t, "-publish-ahead", "1s")
		time.Sleep(time.Hour)
		release := takeAll(t, s.store.making) // as a slow look does
		k := newKey(readyMade()[0], clock().Add(time.Hour))
		time.AfterFunc(maxWait-1, func() { s.store.replace([]key{k}, clock()) })
		got, err := s.store.turn(t.Context())
		ok(t, err)
		got.release()
		equal(t, "signer", got.key.kid, k.kid)
		release()
	})
	bubble(t, "nobody waits for the log", func(t *testing.T) {
		s := newTestServer(t)
		read, write := io.Pipe() // which nobody reads
		s.store.log = slog.New(slog.NewTextHandler(write, nil))
		time.Sleep(3 * time.Hour) // all keys expire
		go s.store.grow(t.Context(), 0)
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		release, err := s.store.making.acquire(ctx)
		ok(t, err)
		release()
		takeAll(t, s.store.turns)()
		equal(t, "the keystore is locked", !s.store.mu.TryLock(), false)
		s.store.mu.Unlock()
		read.Close()
	})
	t.Run("no stop waits for a directory that hangs", func(t *testing.T) {
		s := newServerWithKey(t)
		ctx, stop := context.WithCancel(t.Context())
		stopped := make(chan error)
		s.store.mu.Lock() // holds up a look as such a directory does
		go func() { stopped <- s.store.grow(ctx, s.store.queueLength()) }()
		for len(s.store.making.turns) > 0 {
			runtime.Gosched()
		}
		stop()
		equal(t, "grow", <-stopped, context.Canceled)
		s.store.mu.Unlock()
		takeAll(t, s.store.making)() // the look ends by itself
	})
}

func TestOpen(t *testing.T) {
	open := func(t *testing.T, dir keyDir) (*keystore, error, *lockedBuffer) {
		logged := &lockedBuffer{}
		s, err := openKeystore(t.Context(), dir, standard, minBits, slog.New(slog.NewTextHandler(logged, nil)))
		return s, err, logged
	}
	t.Run("a faulty file stops the start, and nothing is made or logged", func(t *testing.T) {
		dir := keyDir(t.TempDir())
		putKey(t, dir, 0, time.Hour)
		faulty := writeFile(t, dir, "20991231T235959Z.x.pem", "x")
		_, err, logged := open(t, dir)
		wantError(t, "open", err, "key file "+faulty+" is damaged: it has to be one PEM block, PRIVATE KEY, and nothing else; repair it or move it elsewhere")
		equal(t, "files", len(must(os.ReadDir(string(dir)))), 2)
		equal(t, "log", logged.String(), "")
	})
	t.Run("an unwritable directory stops the start only if no key can sign", func(t *testing.T) {
		dir := keyDir(t.TempDir())
		_, err, logged := open(t, unwritable(t, dir))
		wantError(t, "open without a key", err, "cannot store a key")
		equal(t, "log", logged.String(), "")
		putKey(t, dir, 1, time.Minute)
		_, err, logged = open(t, unwritable(t, dir))
		wantError(t, "open with a key that signs no more", err, "cannot store a key")
		equal(t, "log", logged.String(), "")
		k := putKey(t, dir, 0, time.Hour)
		s, err, _ := open(t, unwritable(t, dir))
		ok(t, err)
		equal(t, "last key", namesOf(s.keys[len(s.keys)-1:]), namesOf([]key{k}))
	})
	bubble(t, "a start waits for its first key as long as that takes, and the log says so, but not for the others", func(t *testing.T) {
		logged := &lockedBuffer{}
		s := must(newKeystore(keyDir(t.TempDir()), standard, minBits, slog.New(slog.NewTextHandler(logged, nil))))
		release := takeAll(t, s.turns) // making a key takes long
		started := make(chan error, 1)
		go func() { started <- s.start(t.Context()) }()
		time.Sleep(startWait - 1)
		wantInLog(t, logged, 0, "\n")
		time.Sleep(time.Hour)
		wantInLog(t, logged, 1, "still waiting for the first key")
		wantInLog(t, logged, 1, "\n")
		release()
		ok(t, <-started)
		begin := time.Now()
		s = must(newKeystore(s.dir, standard, minBits, slog.New(slog.NewTextHandler(logged, nil))))
		ok(t, os.Remove(s.dir.path(must(s.dir.list()).stored[2]+".pem")))
		release = takeAll(t, s.turns)
		ok(t, s.start(t.Context()))
		equal(t, "it waited for the others", time.Since(begin), startWait)
		release()
		wantInLog(t, logged, 1, "still waiting")
	})
	t.Run("a file that is gone when it is opened stops nothing", func(t *testing.T) {
		dir := keyDir(t.TempDir())
		k := putKey(t, dir, 0, time.Hour)
		ok(t, os.Symlink("nowhere", dir.path("20991231T235959Z.x.pem")))
		s, err, _ := open(t, dir)
		ok(t, err)
		equal(t, "the key whose file is there", s.keys[0].kid, k.kid)
	})
	t.Run("the log tells which keys were found, and which of them others may read", func(t *testing.T) {
		dir := keyDir(t.TempDir())
		a, b := putKey(t, dir, 0, time.Hour), putKey(t, dir, 1, 2*time.Hour)
		ok(t, os.Chmod(dir.path(b.name()+".pem"), 0o640))
		_, _, logged := open(t, dir)
		for want, n := range map[string]int{
			`msg="key found" kid=` + a.kid: 1, `msg="key found" kid=` + b.kid: 1, `chmod 600 its file" file=` + dir.path(b.name()+".pem"): 1, "chmod": 1,
		} {
			wantInLog(t, logged, n, want)
		}
	})
}

// TestAServerThatComesBack is of servers that have not followed their directory for longer
// than the keys in hand sign.
func TestAServerThatComesBack(t *testing.T) {
	const away = 40 * time.Minute
	policy := []string{"-key-ttl", "10m", "-token-ttl", "1m", "-publish-ahead", "10m"}
	server := func(t *testing.T, dir string) *testServer {
		return newTestServer(t, append([]string{"-keys", dir}, policy...)...)
	}
	// signsAsOne reports whether a token of b is good at a at once, and of the key that a signs with.
	signsAsOne := func(t *testing.T, a, b *testServer) {
		t.Helper()
		token := b.token(t, "", "")
		if _, err := a.set(t).verify(token); err != nil {
			t.Errorf("token of the server that came back, at the other: %v; want it to verify", err)
		}
		if got, want := kidOf(t, token), kidOf(t, a.token(t, "", "")); got != want {
			t.Errorf("the server that came back signs with %s; want %s, with which the other signs", got, want)
		}
	}
	// makes fails the test if f does not make so many key files.
	makes := func(t *testing.T, dir string, want int, f func()) {
		t.Helper()
		before := keyFiles(t, keyDir(dir))
		f()
		made := 0
		for kid := range keyFiles(t, keyDir(dir)) {
			if _, ok := before[kid]; !ok {
				made++
			}
		}
		if made != want {
			t.Errorf("%d keys were made; want %d", made, want)
		}
	}
	rules := map[string]func(*testing.T){
		"a server that was paused signs with the key of the others": func(t *testing.T) {
			dir := t.TempDir()
			a, b := server(t, dir), server(t, dir) // b has no loop
			keepRunning(t, a)
			time.Sleep(away)
			makes(t, dir, 0, func() { signsAsOne(t, a, b) })
		},
		"a server that was cut off issues no token and then signs with the key of the others": func(t *testing.T) {
			dir, mount := t.TempDir(), filepath.Join(t.TempDir(), "mount")
			if err := os.Symlink(dir, mount); err != nil {
				t.Fatal(err)
			}
			a, b := server(t, dir), server(t, mount)
			keepRunning(t, a)
			keepRunning(t, b)
			if err := os.Remove(mount); err != nil {
				t.Fatal(err)
			}
			time.Sleep(away)
			if w := b.do("POST", "/auth", ""); w.status != http.StatusServiceUnavailable {
				t.Errorf("POST /auth while cut off = %d; want 503", w.status)
			}
			if err := os.Symlink(dir, mount); err != nil {
				t.Fatal(err)
			}
			makes(t, dir, 0, func() { signsAsOne(t, a, b) })
		},
		"a server that starts after a downtime signs with the key of the others": func(t *testing.T) {
			dir := t.TempDir()
			a := server(t, dir)
			keepRunning(t, a)
			time.Sleep(away)
			makes(t, dir, 0, func() { signsAsOne(t, a, server(t, dir)) })
		},
		"the first of all servers to come back makes the one key that has to be made": func(t *testing.T) {
			dir := t.TempDir()
			a, b := server(t, dir), server(t, dir)
			time.Sleep(away)
			makes(t, dir, 1, func() {
				b.token(t, "", "")
				time.Sleep(tick)
				if w := a.do("POST", "/auth", ""); w.status != http.StatusOK {
					t.Errorf("POST /auth = %d; want 200", w.status)
				}
				signsAsOne(t, a, b)
			})
		},
	}
	for rule, f := range rules {
		t.Run(rule, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, f)
		})
	}
}
