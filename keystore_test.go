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
)

// signer returns the key with which a server signs now.
func signer(t *testing.T, s *testServer) key {
	t.Helper()
	turn, err := s.store.turn(t.Context())
	ok(t, err)
	turn.release()
	return turn.key
}

// pass lets servers do what maintain does in a second.
func pass(t *testing.T, servers ...*testServer) {
	t.Helper()
	for _, s := range servers {
		ok(t, s.store.pass(t.Context()))
	}
}

func sleepUntil(at time.Time) { time.Sleep(time.Until(at)) }

// inMemoryToo runs a bubble with a keys directory and without one.
func inMemoryToo(t *testing.T, rule string, f func(t *testing.T, dir string)) {
	for name, dir := range map[string]string{"in a directory": t.TempDir(), "in memory": ""} {
		bubble(t, rule+"/"+name, func(t *testing.T) { f(t, dir) })
	}
}

func TestStore(t *testing.T) {
	inMemoryToo(t, "three keys are made at first and then one each 45 minutes, and each event is logged once", func(t *testing.T, dir string) {
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
			equal(t, fmt.Sprintf("after %s: keys made, published", test.after), []int{made, len(s.set(t))}, []int{test.wantMade, test.wantAlive})
		}
		wantInLog(t, s.log, 1, `msg="now signing" kid=`+first.kid+
			" signs_from=2000-01-01T00:00:00Z signs_until=2000-01-01T00:45:00Z expires=2000-01-01T01:00:00Z\n")
		for event, want := range map[string]int{`msg="key made"`: 6, `msg="now signing"`: 3, `msg="key expired"`: 2, "\n": 11} {
			wantInLog(t, s.log, want, event)
		}
	})
	inMemoryToo(t, "requests that find no key make one together", func(t *testing.T, dir string) {
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
	t.Run("the clock is the wall clock, which goes on while a laptop sleeps", func(t *testing.T) {
		now := clock()
		equal(t, "clock", now, now.Round(0)) // which has no monotonic clock reading
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
}

func TestTokensVerifyForThreeDaysOfRotation(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t)
		s.store.bits = 1024
		start, random := time.Now(), rand.New(rand.NewPCG(1, 2))
		const step = 15 * time.Second // as good as each second, because keys are made ahead of time
		var sets []keySet             // one for each step
		tokens := map[string]int{}    // by kid
		use := func() {
			token := s.token(t, "", "")
			tokens[kidOf(t, token)]++
			claims, err := sets[max(0, len(sets)-1-int(s.store.publishAhead/step))].verify(token)
			wantError(t, "verify with a set that is publish-ahead old", err, "")
			life := time.Until(time.Unix(int64(claims["exp"].(float64)), 0))
			for _, age := range []time.Duration{0, life / 2, life - 1} {
				time.AfterFunc(age, func() {
					_, err := s.set(t).verify(token)
					wantError(t, fmt.Sprintf("verify at an age of %s", age), err, "")
				})
			}
		}
		for next := start; time.Since(start) < 72*time.Hour; {
			round := time.Now().Add(step)
			pass(t, s)
			sets = append(sets, s.set(t))
			if !time.Now().Before(next) {
				next = next.Add(time.Duration(random.Int64N(int64(8 * time.Minute))))
				use()
			}
			if takeover := s.store.signsUntil(signer(t, s)).Add(1); takeover.Before(round) {
				sleepUntil(takeover)
				use()
			}
			sleepUntil(round)
		}
		equal(t, "keys that signed in three days", len(tokens), 96)
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
				equal(t, "set of a replica", s.set(t), other.set(t))
			}
		}
		equal(t, "keys made in 210 minutes", len(keyFiles(t, keyDir(dir))), 8) // 3, and one each 45 from the tenth on
	})
	bubble(t, "a key that another replica made meanwhile is not made again", func(t *testing.T) {
		a := newTestServer(t)
		b := newTestServer(t, "-keys", string(a.store.dir))
		time.Sleep(10*time.Minute + time.Second) // a key is due
		release := takeAll(t, a.store.turns)     // so that making it takes a while
		var wg sync.WaitGroup
		wg.Go(func() { pass(t, a) })
		synctest.Wait()
		pass(t, b)
		release()
		wg.Wait()
		equal(t, "keys made", len(keyFiles(t, a.store.dir)), 4)
		equal(t, "keys of the slow replica", namesOf(a.store.keys), namesOf(b.store.keys))
		wantInLog(t, a.log, 1, `msg="key found" kid=`+b.store.keys[3].kid)
		equal(t, "its own key is kept to be used later", a.store.spare != nil, true)
	})
	bubble(t, "two keys made at once are both published, and the lesser kid signs", func(t *testing.T) {
		dir := keyDir(t.TempDir())
		putKey(t, dir, 0, time.Hour)
		lesser := putKey(t, dir, 1, time.Hour)
		s := newTestServer(t, "-keys", string(dir), "-publish-ahead", "1s")
		equal(t, "signer", signer(t, s).kid, lesser.kid)
		equal(t, "keys published", len(s.set(t)), 2)
	})
	bubble(t, "a listing that is as old as a cache hurts nobody", func(t *testing.T) {
		a := newTestServer(t)
		b := newTestServer(t, "-keys", string(a.store.dir))
		for i := range 6 * 360 {
			pass(t, a)
			if i%30 == 29 {
				pass(t, b) // what was there 5 minutes ago at worst
			}
			if one, two := signer(t, a), signer(t, b); one.kid != two.kid {
				t.Fatalf("after %d s they sign with %s and %s; want one key", 10*i, one.kid, two.kid)
			}
			time.Sleep(10 * time.Second)
		}
	})
}

func TestAReaderOfACopyOfTheKeys(t *testing.T) {
	for _, test := range []struct {
		name        string
		flags       []string
		copiedEvery time.Duration
		wantErrors  bool
	}{
		{name: "10 minutes less of publish-ahead", flags: []string{"-publish-ahead", "1h50m"}, copiedEvery: 5 * time.Minute},
		{name: "a copy that falls behind", flags: []string{"-publish-ahead", "1h50m"}, copiedEvery: time.Hour, wantErrors: true},
		{name: "flags of the writer", copiedEvery: 5 * time.Minute, wantErrors: true},
	} {
		bubble(t, test.name, func(t *testing.T) {
			writer := newTestServer(t)
			dir := keyDir(t.TempDir())
			copyKeys := func() {
				for _, name := range must(writer.store.dir.list()).stored {
					writeFile(t, dir, name+".pem", string(must(os.ReadFile(writer.store.dir.path(name+".pem")))))
				}
			}
			copyKeys()
			reader := newTestServer(t, append(test.flags, "-keys", string(unwritable(t, dir)))...)
			keepRunning(t, writer)
			keepRunning(t, reader)
			for range 5 * time.Hour / test.copiedEvery {
				time.Sleep(test.copiedEvery)
				equal(t, "signer", signer(t, reader).kid, signer(t, writer).kid)
				copyKeys()
			}
			synctest.Wait()
			equal(t, "the reader logs errors", strings.Contains(reader.log.String(), "level=ERROR"), test.wantErrors)
			wantInLog(t, reader.log, 0, "expires too far ahead")
		})
	}
}

// TestReturningServers is about servers that have not seen their directory for longer than
// the keys in memory sign.
func TestReturningServers(t *testing.T) {
	const away = 40 * time.Minute
	server := func(t *testing.T, dir string) *testServer {
		return newTestServer(t, "-keys", dir, "-key-ttl", "10m", "-token-ttl", "1m", "-publish-ahead", "10m")
	}
	signAsOne := func(t *testing.T, a, b *testServer) {
		t.Helper()
		token := b.token(t, "", "")
		_, err := a.set(t).verify(token)
		wantError(t, "verify a token of the returning server", err, "")
		equal(t, "its signer", kidOf(t, token), signer(t, a).kid)
	}
	bubble(t, "a server that was paused signs with the key of the others", func(t *testing.T) {
		a := server(t, t.TempDir())
		b := server(t, string(a.store.dir)) // whose loop does not run
		keepRunning(t, a)
		time.Sleep(away)
		before := keyFiles(t, a.store.dir)
		signAsOne(t, a, b)
		equal(t, "key files", keyFiles(t, a.store.dir), before)
	})
	bubble(t, "a server that was cut off issues no token and then signs with the key of the others", func(t *testing.T) {
		dir, mount := t.TempDir(), filepath.Join(t.TempDir(), "mount")
		ok(t, os.Symlink(dir, mount))
		a, b := server(t, dir), server(t, mount)
		keepRunning(t, a)
		keepRunning(t, b)
		ok(t, os.Remove(mount))
		time.Sleep(away)
		equal(t, "POST /auth while cut off", b.do("POST", "/auth", "").status, http.StatusServiceUnavailable)
		ok(t, os.Symlink(dir, mount))
		before := keyFiles(t, keyDir(dir))
		signAsOne(t, a, b)
		equal(t, "key files", keyFiles(t, keyDir(dir)), before)
	})
	bubble(t, "a server that starts after a downtime signs with the key of the others", func(t *testing.T) {
		a := server(t, t.TempDir())
		keepRunning(t, a)
		time.Sleep(away)
		before := keyFiles(t, a.store.dir)
		signAsOne(t, a, server(t, string(a.store.dir)))
		equal(t, "key files", keyFiles(t, a.store.dir), before)
	})
	bubble(t, "the first of all servers to return makes the one key that has to be made", func(t *testing.T) {
		a := server(t, t.TempDir())
		b := server(t, string(a.store.dir))
		time.Sleep(away)
		before := len(keyFiles(t, a.store.dir))
		b.token(t, "", "")
		time.Sleep(tick)
		signAsOne(t, b, a)
		equal(t, "keys made", len(keyFiles(t, a.store.dir))-before, 1)
	})
}

func TestRevocation(t *testing.T) {
	for _, test := range []struct {
		name   string
		revoke func(pem, name string) error
	}{
		{name: "renamed to NAME.revoked", revoke: func(pem, name string) error { return os.Rename(pem, name+".revoked") }},
		{name: "renamed to NAME.pem.revoked", revoke: func(pem, name string) error { return os.Rename(pem, pem+".revoked") }},
		{name: "beside NAME.pem, by its kid", revoke: func(pem, name string) error {
			return os.WriteFile(filepath.Join(filepath.Dir(pem), kidOfName(filepath.Base(name))+".revoked"), nil, 0o600)
		}},
		{name: "beside NAME.pem, empty", revoke: func(pem, name string) error { return os.WriteFile(name+".revoked", nil, 0o600) }},
	} {
		bubble(t, "a revoked key is neither published nor signs/"+test.name, func(t *testing.T) {
			a := newTestServer(t)
			dir, first, second := a.store.dir, a.store.keys[0], a.store.keys[1]
			b := newTestServer(t, "-keys", string(dir))
			check := func(when string, servers ...*testServer) {
				t.Helper()
				pass(t, servers...)
				for _, s := range servers {
					equal(t, when+": signer", signer(t, s).kid, second.kid)
					equal(t, when+": the key is published", s.set(t)[first.kid] != nil, false)
				}
			}
			name := dir.path(first.name())
			ok(t, test.revoke(name+".pem", name))
			beside := exists(name + ".pem")
			check("at the next pass", a, b)
			equal(t, "the .pem file is there", exists(name+".pem"), beside) // nobody stores it again
			wantInLog(t, a.log, 1, `msg="key revoked" kid=`+first.kid)
			c := newTestServer(t, "-keys", string(dir))
			check("after a restart", c)
			ok(t, dir.write(first)) // as a server does that has not seen the revocation
			check("when its file is there again", a, b, c, newTestServer(t, "-keys", string(dir)))
			ok(t, os.RemoveAll(name+".revoked"), os.RemoveAll(name+".pem.revoked"))
			check("when the .revoked file is gone", a, b, c)
		})
	}
	bubble(t, "a key is revoked within two seconds, also while another one waits for its turn to be generated", func(t *testing.T) {
		s := newTestServer(t)
		revoked, name := s.store.keys[0], s.store.dir.path(s.store.keys[0].name())
		keepRunning(t, s)
		time.Sleep(10 * time.Minute)
		release := takeAll(t, s.store.turns)
		time.Sleep(2 * tick) // a key is due
		ok(t, os.Rename(name+".pem", name+".revoked"))
		time.Sleep(2 * tick)
		equal(t, "the revoked key is published", s.set(t)[revoked.kid] != nil, false)
		release()
		synctest.Wait()
		wantInLog(t, s.log, 1, `msg="key revoked"`)
		wantInLog(t, s.log, 4, `msg="key made"`)
	})
	bubble(t, "a kid is revoked and has one expiry, whatever its other files say, also after a restart", func(t *testing.T) {
		dir := keyDir(t.TempDir())
		revoked, other := putKey(t, dir, 0, time.Hour), putKey(t, dir, 1, 2*time.Hour)
		s := newTestServer(t, "-keys", string(dir)).store
		for _, k := range []key{revoked, other} { // files by which they would live for 40 days
			ok(t, os.Link(dir.path(k.name()+".pem"), dir.path(newKey(k.private, clock().Add(40*24*time.Hour)).name()+".pem")))
		}
		ok(t, os.WriteFile(dir.path(revoked.name()+".revoked"), nil, 0o600))
		for _, untilExpiry := range []time.Duration{time.Hour, 1, 0, -24 * time.Hour, -30 * 24 * time.Hour} {
			sleepUntil(other.expires.Add(-untilExpiry))
			restarted := must(newKeystore(dir, standard, minBits, s.log))
			ok(t, s.grow(t.Context(), 0), restarted.refresh()) // because start refuses duplicates
			for name, s := range map[string]*keystore{"the server": s, "a restarted server": restarted} {
				kids := map[string]bool{}
				for _, k := range s.published(clock()) {
					kids[k.kid] = true
				}
				what := fmt.Sprintf("%s before the expiry: %s publishes ", untilExpiry, name)
				equal(t, what+"the revoked key", kids[revoked.kid], false)
				equal(t, what+"the other key", kids[other.kid], untilExpiry > 0)
			}
		}
	})
	bubble(t, "when all keys are revoked a new one signs", func(t *testing.T) {
		s := newTestServer(t)
		before := s.set(t)
		for _, k := range s.store.keys {
			ok(t, os.Rename(s.store.dir.path(k.name()+".pem"), s.store.dir.path(k.name()+".revoked")))
		}
		pass(t, s)
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

func TestLostDirectory(t *testing.T) {
	bubble(t, "keys in memory outlive their directory, and no key is used before it is stored", func(t *testing.T) {
		s := newTestServer(t)
		start, known, dir := time.Now(), s.set(t), string(s.store.dir)
		ok(t, os.Rename(dir, dir+".away"), os.WriteFile(dir, nil, 0o600))
		for _, test := range []struct {
			after              time.Duration
			wantKeys, wantAuth int
		}{
			{after: time.Second, wantKeys: 3, wantAuth: http.StatusOK},
			{after: 135 * time.Minute, wantKeys: 1, wantAuth: http.StatusOK},
			{after: 135*time.Minute + 1, wantKeys: 1, wantAuth: http.StatusServiceUnavailable},
			{after: 150*time.Minute - 1, wantKeys: 1, wantAuth: http.StatusServiceUnavailable},
			{after: 150 * time.Minute, wantAuth: http.StatusServiceUnavailable},
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
			auth := s.do("POST", "/auth", "").status
			equal(t, fmt.Sprintf("after %s: keys of before, POST /auth", test.after), []int{len(set), auth}, []int{test.wantKeys, test.wantAuth})
		}
		ok(t, os.Remove(dir), os.Rename(dir+".away", dir))
		s.token(t, "", "")
	})
	bubble(t, "a key whose file is missing is kept and stored again", func(t *testing.T) {
		s := newTestServer(t)
		s.store.spare = readyMade()[0]
		set := must(s.store.jwks(t.Context()))
		files := must(os.ReadDir(string(s.store.dir)))
		for lost := range 4 { // a partial listing; at last an empty mount point
			for _, f := range files[:lost] {
				ok(t, os.Remove(s.store.dir.path(f.Name())))
			}
			pass(t, s)
			equal(t, fmt.Sprintf("%d lost: files", lost), wholeKeys(t, string(s.store.dir)), namesOf(s.store.keys))
			equal(t, fmt.Sprintf("%d lost: the set has changed", lost), must(s.store.jwks(t.Context())) != set, false)
		}
		wantInLog(t, s.log, 3, "key stored again") // once for each key
		equal(t, "the spare key is still there", s.store.spare == readyMade()[0], true)
	})
	bubble(t, "a missing key that cannot be stored keeps no other from being stored, and is an error", func(t *testing.T) {
		s := newTestServer(t)
		names := namesOf(s.store.keys)
		for _, name := range names {
			ok(t, os.Remove(s.store.dir.path(name+".pem")))
		}
		s.store.missing = s.store.keys
		ok(t, os.Mkdir(s.store.dir.path(names[0]+".pem"), 0o700)) // in the way of the first
		wantError(t, "restore", s.store.restore(), "cannot store a key")
		equal(t, "stored", must(s.store.dir.list()).stored, names)
		ok(t, os.Remove(s.store.dir.path(names[0]+".pem")))
		s.store.dir = unwritable(t, s.store.dir)
		wantError(t, "grow", s.store.grow(t.Context(), 0), "cannot store a key")
	})
	bubble(t, "a key that cannot be stored is kept to be stored later, and only once", func(t *testing.T) {
		s := newTestServer(t, "-publish-ahead", "1s")
		dir := s.store.dir
		time.Sleep(time.Hour)
		for range 3 {
			s.store.dir = unwritable(t, dir)
			wantError(t, "grow", s.store.grow(t.Context(), 0), "cannot store a key")
		}
		spare := s.store.spare
		s.store.dir = dir
		pass(t, s)
		equal(t, "the spare key signs", signer(t, s).private == spare, true)
		equal(t, "a key is spare", s.store.spare != nil, false)
	})
	bubble(t, "a key whose name cannot be stored is given up, because another name may", func(t *testing.T) {
		s := newTestServer(t, "-publish-ahead", "1s")
		time.Sleep(time.Hour)
		s.store.spare = readyMade()[0]
		k := newKey(s.store.spare, clock().Add(time.Hour))
		ok(t, os.Mkdir(s.store.dir.path(k.name()+".pem"), 0o700))
		wantError(t, "store", s.store.store(k), "cannot store a key")
		equal(t, "a key is spare", s.store.spare != nil, false)
	})
}

func TestHangingDirectory(t *testing.T) {
	// withoutKey returns a server whose only key has expired while its directory hangs.
	withoutKey := func(t *testing.T) (s *testServer, release func()) {
		s = newTestServer(t, "-publish-ahead", "1s")
		release = takeAll(t, s.store.making) // as a hanging pass does
		begin := time.Now()
		s.token(t, "", "")
		s.set(t)
		equal(t, "waited with a key in memory", time.Since(begin), 0)
		time.Sleep(time.Hour)
		return s, release
	}
	bubble(t, "a request waits for a key for two seconds, and is told that there is none", func(t *testing.T) {
		s, release := withoutKey(t)
		defer release()
		for what, f := range map[string]func() error{
			"turn": func() error { _, err := s.store.turn(t.Context()); return err },
			"jwks": func() error { _, err := s.store.jwks(t.Context()); return err },
		} {
			begin := time.Now()
			err := f()
			wantError(t, what, err, "no key: context deadline exceeded")
			equal(t, what+": the error is errNoKey", errors.Is(err, errNoKey), true)
			equal(t, what+": waited", time.Since(begin), maxWait)
		}
		takeAll(t, s.store.turns)() // none was lost
	})
	bubble(t, "a request is told that there is no key, and not that all turns are taken", func(t *testing.T) {
		s, release := withoutKey(t)
		defer release()
		var err error
		var wg sync.WaitGroup
		wg.Go(func() { _, err = s.store.turn(t.Context()) })
		synctest.Wait()
		defer takeAll(t, s.store.turns)()
		wg.Wait()
		equal(t, "the error is errNoKey", errors.Is(err, errNoKey), true)
	})
	bubble(t, "a request whose time was spent on making a key gets its answer if a turn is free", func(t *testing.T) {
		s, release := withoutKey(t)
		defer release()
		k := newKey(readyMade()[0], clock().Add(time.Hour))
		time.AfterFunc(maxWait-1, func() { s.store.replace([]key{k}, clock()) })
		equal(t, "signer", signer(t, s).kid, k.kid)
	})
	t.Run("no stop waits for the directory", func(t *testing.T) {
		s := newServerWithKey(t)
		ctx, stop := context.WithCancel(t.Context())
		stopped := make(chan error)
		s.store.mu.Lock() // holds up a pass as such a directory does
		go func() { stopped <- s.store.grow(ctx, 0) }()
		for len(s.store.making.turns) > 0 {
			runtime.Gosched()
		}
		stop()
		equal(t, "grow", <-stopped, context.Canceled)
		s.store.mu.Unlock()
		takeAll(t, s.store.making)() // the pass ends by itself
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
		s.set(t)
		read.Close()
	})
}

func TestStart(t *testing.T) {
	open := func(t *testing.T, dir keyDir) (*keystore, *lockedBuffer, error) {
		logged := &lockedBuffer{}
		s, err := openKeystore(t.Context(), dir, standard, minBits, slog.New(slog.NewTextHandler(logged, nil)))
		return s, logged, err
	}
	t.Run("an unusable key file stops the start, and nothing is made or logged", func(t *testing.T) {
		dir := keyDir(t.TempDir())
		putKey(t, dir, 0, time.Hour)
		path := writeFile(t, dir, "20991231T235959Z.x.pem", "x")
		_, logged, err := open(t, dir)
		wantError(t, "open", err, "key file "+path+" is damaged: ")
		equal(t, "files", len(must(os.ReadDir(string(dir)))), 2)
		equal(t, "log", logged.String(), "")
	})
	t.Run("an unwritable directory stops the start only if no key can sign", func(t *testing.T) {
		dir := keyDir(t.TempDir())
		for _, prepare := range []func(){func() {}, func() { putKey(t, dir, 1, time.Minute) }} {
			prepare()
			_, logged, err := open(t, unwritable(t, dir))
			wantError(t, "open", err, "cannot store a key")
			equal(t, "log", logged.String(), "")
		}
		k := putKey(t, dir, 0, time.Hour)
		s, _, err := open(t, unwritable(t, dir))
		ok(t, err)
		equal(t, "last key", s.keys[len(s.keys)-1].name(), k.name())
	})
	bubble(t, "a start waits for its first key as long as that takes, and the log says so, but not for the others", func(t *testing.T) {
		logged := &lockedBuffer{}
		s := must(newKeystore(keyDir(t.TempDir()), standard, minBits, slog.New(slog.NewTextHandler(logged, nil))))
		release := takeAll(t, s.turns) // so that making a key takes long
		started := make(chan error, 1)
		go func() { started <- s.start(t.Context()) }()
		time.Sleep(startWait - 1)
		wantInLog(t, logged, 0, "\n")
		time.Sleep(time.Hour)
		wantInLog(t, logged, 1, "still waiting for the first key")
		wantInLog(t, logged, 1, "\n")
		release()
		ok(t, <-started)
		ok(t, os.Remove(s.dir.path(s.keys[2].name()+".pem")))
		begin := time.Now()
		s = must(newKeystore(s.dir, standard, minBits, s.log))
		release = takeAll(t, s.turns)
		ok(t, s.start(t.Context()))
		equal(t, "waited for the others", time.Since(begin), startWait)
		release()
		wantInLog(t, logged, 1, "still waiting")
	})
	t.Run("the log says which keys were found, and which of them others may read", func(t *testing.T) {
		dir := keyDir(t.TempDir())
		a, b := putKey(t, dir, 0, time.Hour), putKey(t, dir, 1, 2*time.Hour)
		ok(t, os.Chmod(dir.path(b.name()+".pem"), 0o640))
		_, logged, err := open(t, dir)
		ok(t, err)
		for _, want := range []string{
			`msg="key found" kid=` + a.kid, `msg="key found" kid=` + b.kid, `chmod 600 its file" file=` + dir.path(b.name()+".pem"), "chmod",
		} {
			wantInLog(t, logged, 1, want)
		}
	})
}
