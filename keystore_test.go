package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// standard is the policy of the flags by default.
var standard = rotation{keyTTL: time.Hour, tokenTTL: 10 * time.Minute, publishAhead: 2 * time.Hour}

// keyAt returns a key without its private half, which pure functions do not need.
func keyAt(kid string, expires time.Time) key {
	return key{kid: kid, expires: expires.Add(time.Second - 1).Truncate(time.Second)}
}

// expiring returns keys a, b, c and so on that expire so long after epoch.
func expiring(ttls ...time.Duration) (keys []key) {
	for i, ttl := range ttls {
		keys = append(keys, keyAt(string(rune('a'+i)), epoch.Add(ttl)))
	}
	return keys
}

func TestRotation(t *testing.T) {
	t.Run("a key stops signing in time, and is made in time", func(t *testing.T) {
		for _, test := range []struct {
			name                            string
			policy                          rotation
			wantOverlap, wantAge, wantAhead time.Duration
		}{
			{name: "by default", policy: standard, wantOverlap: 15 * time.Minute, wantAge: 5 * time.Minute, wantAhead: 125 * time.Minute},
			{name: "shortest", policy: rotation{tokenTTL: time.Second, publishAhead: time.Second}, wantOverlap: 1500 * time.Millisecond, wantAge: time.Second, wantAhead: 4 * time.Second},
			{name: "a cache keeps little", policy: rotation{publishAhead: 48 * time.Second}, wantAge: 2 * time.Second, wantAhead: 51 * time.Second},
			{name: "a cache keeps more than three ticks", policy: rotation{publishAhead: 96 * time.Second}, wantAge: 4 * time.Second, wantAhead: 100 * time.Second},
			{name: "a cache keeps five minutes at most", policy: rotation{publishAhead: 24 * time.Hour}, wantAge: 5 * time.Minute, wantAhead: 24*time.Hour + 5*time.Minute},
		} {
			equal(t, test.name+": overlap", test.policy.overlap(), test.wantOverlap)
			equal(t, test.name+": maxAge", test.policy.maxAge(), test.wantAge)
			equal(t, test.name+": ahead", test.policy.queueLength(), test.wantAhead)
		}
	})
	const life, horizon = 45 * time.Minute, 3*time.Hour + 5*time.Minute // of signing; of signsUntil
	t.Run("the first key that outlives its tokens signs", func(t *testing.T) {
		keys := expiring(time.Hour, time.Hour+life)
		for _, test := range []struct {
			name string
			keys []key
			at   time.Duration
			want string
		}{
			{name: "no key"},
			{name: "first", keys: keys, want: "a"},
			{name: "a nanosecond before it stops", keys: keys, at: life - 1, want: "a"},
			{name: "when it stops", keys: keys, at: life, want: "a"},
			{name: "a nanosecond after", keys: keys, at: life + 1, want: "b"},
			{name: "when the last one stops", keys: keys, at: 2 * life, want: "b"},
			{name: "none is left", keys: keys, at: 2*life + 1},
			{name: "at the horizon", keys: expiring(horizon + 15*time.Minute), want: "a"},
			{name: "beyond the horizon", keys: expiring(horizon + 15*time.Minute), at: -1},
			{name: "a far key has no turn before the queue's", keys: expiring(time.Hour, 9*time.Hour), at: life, want: "a"},
			{name: "a far key has no turn after it either", keys: expiring(time.Hour, 9*time.Hour), at: life + 1},
		} {
			k, ok := standard.signer(test.keys, epoch.Add(test.at))
			equal(t, test.name+": signer", k.kid, test.want)
			equal(t, test.name+": there is a signer", ok, test.want != "")
		}
	})
	t.Run("a key is made when the queue falls short, and takes over at its end", func(t *testing.T) {
		full := 140 * time.Minute // the expiry of a key with which the queue reaches ahead
		for _, test := range []struct {
			name    string
			keys    []key
			at      time.Duration
			ahead   time.Duration
			want    time.Duration // the expiry of the next key
			wantDue bool
		}{
			{name: "no key", ahead: standard.queueLength(), want: time.Hour, wantDue: true},
			{name: "no key, and one is needed now", want: time.Hour, wantDue: true},
			{name: "full", keys: expiring(full), ahead: standard.queueLength(), want: full + life},
			{name: "full in spite of its order", keys: expiring(time.Hour, full), ahead: standard.queueLength(), want: full + life},
			{name: "a nanosecond short", keys: expiring(full), at: 1, ahead: standard.queueLength(), want: full + life, wantDue: true},
			{name: "ends now", keys: expiring(full), at: full - 15*time.Minute, want: full + life},
			{name: "has ended", keys: expiring(full), at: full - 15*time.Minute + 1, want: full - 15*time.Minute + 1 + time.Hour, wantDue: true},
			{name: "the horizon counts", keys: expiring(horizon + 15*time.Minute), ahead: standard.queueLength(), want: horizon + time.Hour},
			{name: "what is beyond it does not", keys: expiring(time.Hour, horizon+16*time.Minute), ahead: standard.queueLength(), want: time.Hour + life, wantDue: true},
		} {
			now := epoch.Add(test.at)
			equal(t, test.name+": next key expires after", standard.nextExpiry(test.keys, now).Sub(epoch), test.want)
			equal(t, test.name+": it is due", standard.due(test.keys, now, test.ahead), test.wantDue)
		}
		equal(t, "end of a far key alone", standard.end(expiring(9*time.Hour), epoch), time.Time{})
	})
	t.Run("a key is published until it expires", func(t *testing.T) {
		keys := expiring(time.Hour, 9*time.Hour)
		for at, want := range map[time.Duration]int{time.Hour - 1: 2, time.Hour: 1, 9*time.Hour - 1: 1, 9 * time.Hour: 0} {
			equal(t, fmt.Sprintf("keys published after %s", at), len(unexpired(keys, epoch.Add(at))), want)
		}
	})
	testYear(t)
}

// A signing is the state of a server when a key signs.
type signing struct {
	at, made time.Time
	key      key
	oldest   time.Time // the age of the oldest set that a cache for publishAhead may hold
}

// rotate returns a year of a server under a policy: each takeover, and times between. It
// sees that a key is due a tick late. Now and then it is down for a while, if down is set.
func rotate(r rotation, down time.Duration) (signings []signing, keysMade int) {
	random := rand.New(rand.NewPCG(1, 2))
	var keys []key
	made := map[string]time.Time{}
	type period struct{ from, to time.Time }
	up := []period{{from: epoch}}
	for now, last := epoch, epoch.AddDate(1, 0, 0); now.Before(last) && len(made) < 20_000; {
		keys = unexpired(keys, now)
		for r.due(keys, now, r.queueLength()) {
			k := keyAt(fmt.Sprint(len(made)), r.nextExpiry(keys, now))
			keys, made[k.kid] = append(keys, k), now
		}
		k, _ := r.signer(keys, now)
		up[len(up)-1].to = now
		oldest := now.Add(-r.publishAhead)
		for up[0].to.Before(oldest) {
			up = up[1:]
		}
		if oldest.Before(up[0].from) {
			oldest = up[0].from
		}
		signings = append(signings, signing{at: now, key: k, made: made[k.kid], oldest: oldest})
		if down > 0 && random.IntN(30) == 0 {
			now = now.Add(rand.N(down))
			up = append(up, period{from: now})
			continue
		}
		next := now.Add(1 + time.Duration(random.Int64N(int64(r.keyTTL))))
		for _, t := range []time.Time{r.signsUntil(k).Add(1), r.end(keys, now).Add(tick - r.queueLength())} {
			if t.Before(next) {
				next = t
			}
		}
		now = next
	}
	return signings, len(made)
}

// testYear is the part of TestRotation that watches policies at work.
func testYear(t *testing.T) {
	for name, r := range map[string]rotation{
		"default": standard, "quick": {keyTTL: 4 * time.Second, tokenTTL: 2 * time.Second, publishAhead: time.Second},
		"uneven":       {keyTTL: 7*time.Hour + 1, tokenTTL: 11*time.Minute + time.Millisecond, publishAhead: 13 * time.Hour},
		"short tokens": {keyTTL: time.Hour, tokenTTL: time.Second, publishAhead: time.Minute},
		"long tokens":  {keyTTL: 48 * time.Hour, tokenTTL: 24 * time.Hour, publishAhead: 10 * time.Second},
	} {
		known := func(t *testing.T, signings []signing) {
			for _, s := range signings {
				if s.made.After(s.oldest) {
					t.Fatalf("at %s key %s signs, made at %s; want one that is in a set of %s", s.at, s.key.kid, s.made, s.oldest)
				}
			}
		}
		signings, made := rotate(r, 0)
		t.Run("a token never outlives its key/"+name, func(t *testing.T) {
			for _, s := range signings {
				if s.key.expires.Before(s.at.Add(r.tokenTTL + r.tokenTTL/2)) {
					t.Fatalf("at %s key %s signs, which expires at %s; want it to outlive a token and clock skew", s.at, s.key.kid, s.key.expires)
				}
			}
		})
		t.Run("a key is published for publish-ahead before it signs/"+name, func(t *testing.T) { known(t, signings) })
		t.Run("after downtime a key signs that caches know/"+name, func(t *testing.T) {
			signings, _ := rotate(r, 2*r.queueLength())
			known(t, signings)
		})
		t.Run("one key is made for each time of signing/"+name, func(t *testing.T) {
			span := signings[len(signings)-1].at.Sub(epoch) + r.queueLength()
			if want := int(span / (r.keyTTL - r.overlap())); made < want*99/100 || made > want+1 {
				t.Errorf("%d keys in %s; want %d", made, span, want)
			}
		})
	}
}

// A model is what a server holds, and the files of its directory.
type model struct {
	rotation
	keys  []key
	files map[string]key
	made  int
}

// look does what a tick does.
func (m *model) look(now time.Time) {
	obsolete, _ := listing{stored: slices.Sorted(maps.Keys(m.files))}.obsolete(now)
	for _, name := range obsolete {
		delete(m.files, name)
	}
	c := compare(m.keys, slices.Sorted(maps.Keys(m.files)), nil, now)
	for _, k := range c.missing {
		m.files[k.name()] = k
	}
	m.keys = c.kept
	for _, name := range c.unknown {
		m.keys = append(m.keys, m.files[name])
	}
	slices.SortFunc(m.keys, func(a, b key) int { return strings.Compare(a.name(), b.name()) })
	for m.due(m.keys, now, m.queueLength()) {
		m.made++
		k := keyAt(fmt.Sprint("k", m.made), m.nextExpiry(m.keys, now))
		m.files[k.name()] = k
		m.keys = append(m.keys, k)
		slices.SortFunc(m.keys, func(a, b key) int { return strings.Compare(a.name(), b.name()) })
	}
}

// An ordeal is a time under a wrong clock or other flags.
type ordeal struct {
	name     string
	lasts    time.Duration
	clock    time.Duration // by how much it is wrong
	restart  bool          // before it and after it
	policy   rotation      // in place of the standard one, if set
	wantLost bool          // tokens are refused once the clock is right
}

const year = 365 * 24 * time.Hour

var ordeals = []ordeal{
	{name: "peace", lasts: 5 * time.Hour},
	{name: "restart", lasts: time.Minute, restart: true},
	{name: "an hour ahead", lasts: 5 * time.Minute, clock: time.Hour},
	{name: "an hour ahead for long", lasts: 5 * time.Hour, clock: time.Hour},
	{name: "an hour ahead at a start", lasts: 5 * time.Minute, clock: time.Hour, restart: true},
	{name: "a day ahead", lasts: 5 * time.Minute, clock: 24 * time.Hour},
	{name: "a day ahead for long", lasts: 30 * time.Hour, clock: 24 * time.Hour},
	{name: "a day ahead at a start", lasts: 5 * time.Minute, clock: 24 * time.Hour, restart: true},
	{name: "40 years ahead for longer than a token lives", lasts: 10 * time.Minute, clock: 40 * year},
	{name: "an hour behind", lasts: 5 * time.Minute, clock: -time.Hour},
	{name: "an hour behind for long", lasts: 5 * time.Hour, clock: -time.Hour},
	{name: "a day behind", lasts: 5 * time.Minute, clock: -24 * time.Hour},
	{name: "40 years behind", lasts: 5 * time.Minute, clock: -40 * year},
	{name: "40 years behind for long, at a start", lasts: 30 * time.Hour, clock: -40 * year, restart: true},
	{name: "a year of -key-ttl", lasts: 5 * time.Minute, restart: true, policy: rotation{keyTTL: year, tokenTTL: 10 * time.Minute, publishAhead: 2 * time.Hour}},
	{name: "a year of -key-ttl for long", lasts: 12 * time.Hour, restart: true, policy: rotation{keyTTL: year, tokenTTL: 10 * time.Minute, publishAhead: 2 * time.Hour}},
	{name: "10 s of -key-ttl", lasts: 5 * time.Minute, restart: true, policy: rotation{keyTTL: 10 * time.Second, tokenTTL: 2 * time.Second, publishAhead: 20 * time.Second}},
	{name: "13 h of -publish-ahead", lasts: 5 * time.Hour, restart: true, policy: rotation{keyTTL: time.Hour, tokenTTL: 10 * time.Minute, publishAhead: 13 * time.Hour}},
	{name: "a year of -key-ttl a day ahead", lasts: 5 * time.Minute, restart: true, clock: 24 * time.Hour, policy: rotation{keyTTL: year, tokenTTL: 10 * time.Minute, publishAhead: 2 * time.Hour}},
	// What cannot be saved: more than a day ahead, a server deletes the files of live keys.
	{name: "25 hours ahead", lasts: 5 * time.Minute, clock: 25 * time.Hour, wantLost: true},
	{name: "25 hours ahead at a start", lasts: 5 * time.Minute, clock: 25 * time.Hour, restart: true, wantLost: true},
	{name: "40 years ahead", lasts: 5 * time.Minute, clock: 40 * year, wantLost: true},
}

// endure lets a server live through ordeals, each after some hours of peace. It takes a
// token a minute while the clock is right, and returns during which ordeals, or after
// them, the JWK Set had no key for a live token.
func endure(t *testing.T, ordeals []ordeal) (lost map[string]bool) {
	t.Helper()
	lost = map[string]bool{}
	m := &model{rotation: standard, files: map[string]key{}}
	alive := map[time.Time]string{} // the kids of tokens by their expiry
	now := epoch
	live := func(o ordeal) {
		for end := now.Add(o.lasts); now.Before(end); now = now.Add(time.Minute) {
			m.look(now.Add(o.clock))
			if o.clock != 0 {
				continue
			}
			k, ok := m.signer(m.keys, now)
			if !ok {
				t.Fatalf("%s: no key signs at %s", o.name, now)
			}
			alive[now.Add(m.tokenTTL)] = k.kid
			set := unexpired(m.keys, now)
			maps.DeleteFunc(alive, func(expires time.Time, kid string) bool {
				if !now.Before(expires) {
					return true
				}
				if !slices.ContainsFunc(set, func(k key) bool { return k.kid == kid }) {
					lost[o.name] = true
				}
				return false
			})
		}
	}
	restart := func(policy rotation) { m.rotation, m.keys = policy, nil }
	for _, o := range ordeals {
		live(ordeal{name: "before " + o.name, lasts: 4 * time.Hour})
		if o.policy == (rotation{}) {
			o.policy = standard
		}
		if o.restart {
			restart(o.policy)
		}
		live(o)
		if o.restart {
			restart(standard)
		}
		live(ordeal{name: o.name, lasts: 20 * time.Minute})
	}
	live(ordeal{name: "the end", lasts: 4 * time.Hour})
	return lost
}

func TestHorizon(t *testing.T) {
	t.Run("a wrong clock or other flags cost no token", func(t *testing.T) {
		for _, o := range ordeals {
			if lost := endure(t, []ordeal{o}); lost[o.name] != o.wantLost || len(lost) > 1 {
				t.Errorf("%s: tokens are lost: %v; want %t", o.name, lost, o.wantLost)
			}
		}
	})
	t.Run("a month of them costs no token", func(t *testing.T) {
		harmless := slices.DeleteFunc(slices.Clone(ordeals), func(o ordeal) bool { return o.wantLost })
		for seed := range uint64(2) {
			random := rand.New(rand.NewPCG(seed, 0))
			var month []ordeal
			for total := time.Duration(0); total < 30*24*time.Hour; {
				o := harmless[random.IntN(len(harmless))]
				month, total = append(month, o), total+o.lasts+4*time.Hour
			}
			if lost := endure(t, month); len(lost) > 0 {
				t.Errorf("seed %d: tokens are lost by %v; want none", seed, slices.Collect(maps.Keys(lost)))
			}
		}
	})
	t.Run("a far key takes its place when the horizon reaches it", func(t *testing.T) {
		far := keyAt("far", epoch.Add(24*time.Hour+17*time.Minute))
		m := &model{rotation: standard, files: map[string]key{far.name(): far}}
		var signs time.Duration
		for now := epoch; now.Before(far.expires); now = now.Add(time.Minute) {
			m.look(now)
			k, ok := m.signer(m.keys, now)
			if !ok || !slices.Contains(unexpired(m.keys, now), far) {
				t.Fatalf("at %s a key signs: %t; want one, and the far key published", now, ok)
			}
			if k.kid == "far" {
				signs += time.Minute
			}
		}
		if signs < 15*time.Minute || signs > time.Hour {
			t.Errorf("the far key signs for %s; want its part of a queue", signs)
		}
	})
	bubble(t, "far keys are published, and the log names each once", func(t *testing.T) {
		dir := keyDir(t.TempDir())
		farthest, far := putKey(t, dir, 0, 40*year), putKey(t, dir, 1, 6*time.Hour)
		s := newTestServer(t, "-keys", string(dir))
		s.store.bits = 1024
		keepRunning(t, s)
		signers := map[string]bool{}
		for range 6 * 12 {
			time.Sleep(5*time.Minute - 1)
			if set := s.set(t); set[farthest.kid] == nil || set[far.kid] == nil {
				t.Fatalf("set of %s = %q; want both far keys in it", clock(), set.kids())
			}
			signers[kidOf(t, s.token(t, "", ""))] = true
		}
		if signers[farthest.kid] || !signers[far.kid] || len(signers) < 7 {
			t.Errorf("keys that signed = %v; want %s and those made before it, never %s", signers, far.kid, farthest.kid)
		}
		for _, k := range []key{farthest, far} {
			wantInLog(t, s.log, 1, "was made with other flags or a wrong clock. If its tokens are not in use, revoke it: rename its file to end in .revoked\" kid="+k.kid)
			wantInLog(t, s.log, 1, " file="+dir.path(k.name()+".pem"))
		}
	})
}

func TestLimiter(t *testing.T) {
	bubble(t, "no more have a turn than there are turns", func(t *testing.T) {
		l := must(newLimiter(3))
		var now, most atomic.Int64
		var wg sync.WaitGroup
		for range 60 {
			wg.Go(func() {
				defer must(l.acquire(t.Context()))()
				most.Store(max(most.Load(), now.Add(1)))
				time.Sleep(time.Millisecond)
				now.Add(-1)
			})
		}
		begin := time.Now()
		wg.Wait()
		equal(t, "most at once", most.Load(), 3)
		equal(t, "time for all", time.Since(begin), 20*time.Millisecond)
	})
	bubble(t, "first come, first served", func(t *testing.T) {
		l := must(newLimiter(1))
		release := takeAll(t, l)
		var served, want []int
		var wg sync.WaitGroup
		for i := range 20 {
			want = append(want, i)
			wg.Go(func() {
				defer must(l.acquire(t.Context()))()
				served = append(served, i)
			})
			synctest.Wait()
		}
		release()
		wg.Wait()
		equal(t, "served", served, want)
	})
	bubble(t, "who waits waits until its context ends, and costs no turn", func(t *testing.T) {
		l := must(newLimiter(1))
		release := takeAll(t, l)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		begin := time.Now()
		_, err := l.acquire(ctx)
		equal(t, "acquire, at a deadline", err, context.DeadlineExceeded)
		equal(t, "it waited", time.Since(begin), time.Minute)
		ctx, cancel = context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		_, err = l.acquire(ctx)
		equal(t, "acquire, canceled", err, context.Canceled)
		release()
		takeAll(t, l)()
	})
	bubble(t, "a request beyond a full queue waits as long as the others, in vain", func(t *testing.T) {
		l := must(newLimiter(2))
		release := takeAll(t, l)
		var granted atomic.Int64
		var wg sync.WaitGroup
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		enter := func() {
			if release, err := l.acquire(ctx); err == nil {
				granted.Add(1)
				release()
			}
		}
		for range 2 * maxWaiting {
			wg.Go(enter)
		}
		synctest.Wait()
		for range 10 {
			wg.Go(enter)
		}
		time.Sleep(time.Second)
		equal(t, "turns while all are taken", granted.Load(), int64(0))
		release()
		synctest.Wait()
		equal(t, "turns of those in the queue", granted.Load(), int64(2*maxWaiting))
		began := time.Now()
		wg.Wait()
		equal(t, "the others waited on for", time.Since(began), time.Second)
		equal(t, "turns", granted.Load(), int64(2*maxWaiting))
		must(l.acquire(t.Context()))() // there is room again
	})
	t.Run("a free turn is given when time is up, but not to who went away", func(t *testing.T) {
		l := must(newLimiter(1))
		late, cancel := context.WithTimeout(t.Context(), -1)
		defer cancel()
		gone, leave := context.WithCancel(t.Context())
		leave()
		for range 100 {
			must(l.acquire(late))()
			if _, err := l.acquire(gone); err != context.Canceled {
				t.Fatalf("acquire, gone = %v; want %v", err, context.Canceled)
			}
		}
	})
	bubble(t, "a throttle tells once a minute how often", func(t *testing.T) {
		var th throttle
		var told []int
		for range 181 {
			if n := th.add(); n > 0 {
				told = append(told, n)
			}
			time.Sleep(time.Second)
		}
		equal(t, "numbers told", told, []int{1, 60, 60, 60})
	})
}

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

func TestLogOfTrouble(t *testing.T) {
	count := func(t *testing.T, s *testServer, want int, text string) {
		t.Helper()
		synctest.Wait()
		wantInLog(t, s.log, want, text)
	}
	move := func(t *testing.T, from, to keyDir) {
		t.Helper()
		ok(t, os.Rename(string(from), string(to)))
	}
	bubble(t, "a trouble is logged once a minute with how long the keys in hand sign, and its end once", func(t *testing.T) {
		s := newTestServer(t, "-publish-ahead", "1s") // one key, which signs for 45 minutes
		dir := s.store.dir
		keepRunning(t, s)
		move(t, dir, dir+".away")
		time.Sleep(44*time.Minute + 30*time.Second)
		count(t, s, 45, `msg="cannot maintain the keys" error="cannot read the keys directory: `)
		count(t, s, 45, `outlook="the keys in memory sign until 2000-01-01T00:45:00Z"`)
		time.Sleep(time.Minute)
		count(t, s, 1, `outlook="no key can sign"`)
		move(t, dir+".away", dir)
		time.Sleep(5 * time.Minute)
		count(t, s, 1, `msg="recovered: cannot maintain the keys" outlook="the keys in memory sign until `)
		count(t, s, 46, "level=ERROR")
	})
	bubble(t, "a directory that comes and goes does not fill the log", func(t *testing.T) {
		s := newTestServer(t)
		dir := s.store.dir
		keepRunning(t, s)
		time.Sleep(time.Millisecond)
		for range 100 {
			move(t, dir, dir+".away")
			time.Sleep(3 * time.Second)
			move(t, dir+".away", dir)
			time.Sleep(3 * time.Second)
		}
		count(t, s, 10, "level=ERROR")
		count(t, s, 10, "recovered")
	})
	bubble(t, "a faulty file and a missing directory are both told, and so is that they are over", func(t *testing.T) {
		s := newTestServer(t)
		dir := s.store.dir
		keepRunning(t, s)
		path := writeFile(t, dir, "key.pem", "")
		time.Sleep(5 * time.Second)
		count(t, s, 1, `msg="cannot use a key file" error="key file `+path+` is damaged`)
		count(t, s, 0, "cannot maintain")
		move(t, dir, dir+".away")
		time.Sleep(time.Minute)
		count(t, s, 2, "cannot use a key file")
		count(t, s, 1, "cannot maintain the keys")
		move(t, dir+".away", dir)
		ok(t, os.Remove(path))
		time.Sleep(time.Second)
		count(t, s, 1, "recovered: cannot use a key file")
		count(t, s, 1, "recovered: cannot maintain the keys")
	})
	bubble(t, "a directory that does not answer is told of, and a stop does not wait for it", func(t *testing.T) {
		s := newTestServer(t)
		keepRunning(t, s)
		synctest.Wait()
		release := takeAll(t, s.store.making)
		time.Sleep(slowDir + tick)
		count(t, s, 1, `error="not done after 10s: the keys directory `+string(s.store.dir)+` does not answer`)
		release()
		time.Sleep(tick)
		count(t, s, 1, "recovered")
		takeAll(t, s.store.making) // and it hangs while the test ends
	})
	bubble(t, "a server that cannot write says so only while it wants to", func(t *testing.T) {
		dir := keyDir(t.TempDir())
		putKey(t, dir, 0, time.Hour)
		s := newTestServer(t, "-keys", string(unwritable(t, dir)), "-publish-ahead", "1s")
		keepRunning(t, s)
		time.Sleep(44 * time.Minute)
		count(t, s, 0, "level=ERROR")
		time.Sleep(time.Minute)
		count(t, s, 1, `error="cannot store a key`)
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

var update = flag.Bool("update", false, "write interop/key-life.svg anew")

// lives returns when each key is made, takes over, stops signing and expires, for the
// keys made within a time from the start.
func lives(r rotation, within time.Duration) (lives [][4]time.Duration) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var keys []key
	for now := start; now.Sub(start) < within; now = now.Add(tick) {
		for r.due(keys, now, r.queueLength()) {
			takeover := max(r.end(keys, now).Sub(start), now.Sub(start))
			k := key{expires: r.nextExpiry(keys, now)}
			keys = append(keys, k)
			lives = append(lives, [4]time.Duration{now.Sub(start), takeover, r.signsUntil(k).Sub(start), k.expires.Sub(start)})
		}
	}
	return lives
}

// draw returns the lives of keys as an SVG that reads well on white and on dark.
func draw(lives [][4]time.Duration, span time.Duration) string {
	const left, top, row, hour = 56, 34, 28, 132
	x := func(d time.Duration) float64 { return left + hour*min(d, span).Hours() }
	var b strings.Builder
	height := top + row*len(lives) + 36
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %d" role="img" aria-label="Keys are queued end to end: each is published two hours before it signs, signs for 45 minutes, and stays published for 15 more.">
<style>
text { font: 13px system-ui, sans-serif; fill: #1f2328 } line { stroke: #8b949e; stroke-dasharray: 2 4 }
.ahead { fill: #9ec5fe } .signs { fill: #0a58ca } .after { fill: #adb5bd }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .ahead { fill: #1f4b8f } .signs { fill: #6ea8fe } .after { fill: #6c757d } }
</style>
`, x(span)+20, height)
	for d := time.Duration(0); d <= span; d += 30 * time.Minute {
		fmt.Fprintf(&b, "<text x=\"%.1f\" y=\"18\" text-anchor=\"middle\">%d:%02d</text><line x1=\"%.1f\" y1=\"26\" x2=\"%.1f\" y2=\"%d\"/>\n",
			x(d), int(d.Hours()), int(d.Minutes())%60, x(d), x(d), top+row*len(lives))
	}
	bar := func(class string, y int, from, to time.Duration) {
		if x(to) > x(from) {
			fmt.Fprintf(&b, "<rect class=\"%s\" x=\"%.1f\" y=\"%d\" width=\"%.1f\" height=\"16\"/>\n", class, x(from), y, x(to)-x(from))
		}
	}
	for i, l := range lives {
		y := top + row*i
		fmt.Fprintf(&b, "<text x=\"4\" y=\"%d\">key %d</text>\n", y+13, i+1)
		bar("ahead", y, l[0], l[1])
		bar("signs", y, l[1], l[2])
		bar("after", y, l[2], l[3])
	}
	for i, legend := range []struct{ class, text string }{
		{"ahead", "published, does not sign yet"}, {"signs", "signs"}, {"after", "published for its last tokens"},
	} {
		fmt.Fprintf(&b, "<rect class=\"%s\" x=\"%d\" y=\"%d\" width=\"16\" height=\"16\"/><text x=\"%d\" y=\"%d\">%s</text>\n",
			legend.class, left+[]int{0, 225, 315}[i], height-24, left+24+[]int{0, 225, 315}[i], height-11, legend.text)
	}
	return b.String() + "</svg>\n"
}

func TestTheDiagramShowsTheDefaults(t *testing.T) {
	c := flags(t)
	const file = "interop/key-life.svg"
	want := draw(lives(c.rotation, 2*time.Hour), 4*time.Hour)
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != want {
		t.Errorf("%s (%v) does not show the lives that the rotation gives keys; write it with go test -run Diagram -update .", file, err)
	}
}
