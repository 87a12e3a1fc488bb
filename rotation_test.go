package main

import (
	"flag"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
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
			name                              string
			policy                            rotation
			wantOverlap, wantMaxAge, wantLong time.Duration
		}{
			{name: "by default", policy: standard, wantOverlap: 15 * time.Minute, wantMaxAge: 5 * time.Minute, wantLong: 125 * time.Minute},
			{name: "shortest", policy: rotation{tokenTTL: time.Second, publishAhead: time.Second},
				wantOverlap: 1500 * time.Millisecond, wantMaxAge: time.Second, wantLong: 4 * time.Second},
			{name: "max-age is a part of publish-ahead", policy: rotation{publishAhead: 48 * time.Second},
				wantMaxAge: 2 * time.Second, wantLong: 51 * time.Second},
			{name: "max-age is more than three ticks", policy: rotation{publishAhead: 96 * time.Second},
				wantMaxAge: 4 * time.Second, wantLong: 100 * time.Second},
			{name: "max-age is five minutes at most", policy: rotation{publishAhead: 24 * time.Hour},
				wantMaxAge: 5 * time.Minute, wantLong: 24*time.Hour + 5*time.Minute},
		} {
			equal(t, test.name+": overlap", test.policy.overlap(), test.wantOverlap)
			equal(t, test.name+": maxAge", test.policy.maxAge(), test.wantMaxAge)
			equal(t, test.name+": queueLength", test.policy.queueLength(), test.wantLong)
		}
	})
	const signing, horizon = 45 * time.Minute, 3*time.Hour + 5*time.Minute // of a key; of signsUntil
	t.Run("the first key that outlives its tokens signs", func(t *testing.T) {
		queue, distant := expiring(time.Hour, time.Hour+signing), expiring(time.Hour, 9*time.Hour)
		for _, test := range []struct {
			name string
			keys []key
			at   time.Duration
			want string
		}{
			{name: "no key"},
			{name: "a nanosecond before it stops", keys: queue, at: signing - 1, want: "a"},
			{name: "when it stops", keys: queue, at: signing, want: "a"},
			{name: "a nanosecond after", keys: queue, at: signing + 1, want: "b"},
			{name: "when the last one stops", keys: queue, at: 2 * signing, want: "b"},
			{name: "none is left", keys: queue, at: 2*signing + 1},
			{name: "at the horizon", keys: expiring(horizon + 15*time.Minute), want: "a"},
			{name: "beyond the horizon", keys: expiring(horizon + 15*time.Minute), at: -1},
			{name: "a distant key has no turn before the queue", keys: distant, at: signing, want: "a"},
			{name: "a distant key has no turn after the queue", keys: distant, at: signing + 1},
		} {
			k, ok := standard.signer(test.keys, epoch.Add(test.at))
			equal(t, test.name+": signer", k.kid, test.want)
			equal(t, test.name+": there is a signer", ok, test.want != "")
		}
	})
	t.Run("a key is made when the queue falls short, and takes over at its end", func(t *testing.T) {
		long := standard.queueLength()
		const full = 140 * time.Minute // the expiry of a key with which the queue is long enough
		for _, test := range []struct {
			name    string
			keys    []key
			at      time.Duration
			target  time.Duration
			want    time.Duration // the expiry of the next key
			wantDue bool
		}{
			{name: "no key", target: long, want: time.Hour, wantDue: true},
			{name: "no key, and one is needed now", want: time.Hour, wantDue: true},
			{name: "full", keys: expiring(time.Hour, full), target: long, want: full + signing},
			{name: "a nanosecond short", keys: expiring(full), at: 1, target: long, want: full + signing, wantDue: true},
			{name: "ends now", keys: expiring(full), at: full - 15*time.Minute, want: full + signing},
			{name: "has ended", keys: expiring(full), at: full - 15*time.Minute + 1, want: full - 15*time.Minute + 1 + time.Hour, wantDue: true},
			{name: "a key at the horizon counts", keys: expiring(horizon + 15*time.Minute), target: long, want: horizon + time.Hour},
			{name: "a key beyond it does not", keys: expiring(time.Hour, horizon+16*time.Minute), target: long,
				want: time.Hour + signing, wantDue: true},
		} {
			now := epoch.Add(test.at)
			equal(t, test.name+": next key expires after", standard.nextExpiry(test.keys, now).Sub(epoch), test.want)
			equal(t, test.name+": it is due", standard.due(test.keys, now, test.target), test.wantDue)
		}
	})
	t.Run("a key is published until it expires", func(t *testing.T) {
		keys := expiring(time.Hour, 9*time.Hour)
		for at, want := range map[time.Duration][]key{time.Hour - 1: keys, time.Hour: keys[1:], 9*time.Hour - 1: keys[1:], 9 * time.Hour: {}} {
			equal(t, fmt.Sprintf("keys published after %s", at), unexpired(keys, epoch.Add(at)), want)
		}
	})
}

// A signing is the key that signs at some time.
type signing struct {
	at, made time.Time
	key      key
	oldest   time.Time // when the oldest set was served that a cache for publishAhead may hold
}

// rotate returns the signings in a year of a server: at each takeover, and at times between.
// It notices a tick late that a key is due. If down is set, it is down now and then.
func rotate(r rotation, down time.Duration) (signings []signing, keysMade int) {
	random := rand.New(rand.NewPCG(1, 2))
	var keys []key
	made := map[string]time.Time{}
	type period struct{ from, to time.Time }
	up := []period{{from: epoch}}
	for now, last := epoch, epoch.AddDate(1, 0, 0); now.Before(last) && len(made) < 20_000; {
		for keys = unexpired(keys, now); r.due(keys, now, r.queueLength()); {
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

func TestYearOfRotation(t *testing.T) {
	for name, r := range map[string]rotation{
		"default":      standard,
		"quick":        {keyTTL: 4 * time.Second, tokenTTL: 2 * time.Second, publishAhead: time.Second},
		"uneven":       {keyTTL: 7*time.Hour + 1, tokenTTL: 11*time.Minute + time.Millisecond, publishAhead: 13 * time.Hour},
		"short tokens": {keyTTL: time.Hour, tokenTTL: time.Second, publishAhead: time.Minute},
		"long tokens":  {keyTTL: 48 * time.Hour, tokenTTL: 24 * time.Hour, publishAhead: 10 * time.Second},
	} {
		signings, made := rotate(r, 0)
		withDowntime, _ := rotate(r, 2*r.queueLength())
		t.Run("a token never outlives its key/"+name, func(t *testing.T) {
			for _, s := range signings {
				if s.key.expires.Before(s.at.Add(r.tokenTTL + r.tokenTTL/2)) {
					t.Fatalf("at %s key %s signs, which expires at %s; want it to outlive a token and clock skew", s.at, s.key.kid, s.key.expires)
				}
			}
		})
		t.Run("a key is published for publish-ahead before it signs, also after downtime/"+name, func(t *testing.T) {
			for _, s := range slices.Concat(signings, withDowntime) {
				if s.made.After(s.oldest) {
					t.Fatalf("at %s key %s signs, made at %s; want one that is in a set of %s", s.at, s.key.kid, s.made, s.oldest)
				}
			}
		})
		t.Run("one key is made for each time of signing/"+name, func(t *testing.T) {
			span := signings[len(signings)-1].at.Sub(epoch) + r.queueLength()
			if want := int(span / (r.keyTTL - r.overlap())); made < want*99/100 || made > want+1 {
				t.Errorf("%d keys in %s; want %d", made, span, want)
			}
		})
	}
}

// A model is what a server has in memory, and the files of its directory.
type model struct {
	rotation
	keys  []key
	files map[string]key
	made  int
}

// add adds a key to memory.
func (m *model) add(k key) {
	m.keys = append(m.keys, k)
	slices.SortFunc(m.keys, func(a, b key) int { return strings.Compare(a.name(), b.name()) })
}

// pass does what a server does in a second.
func (m *model) pass(now time.Time) {
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
		m.add(m.files[name])
	}
	for m.due(m.keys, now, m.queueLength()) {
		m.made++
		k := keyAt(fmt.Sprint("k", m.made), m.nextExpiry(m.keys, now))
		m.files[k.name()] = k
		m.add(k)
	}
}

// An ordeal is a time with a wrong clock or other flags.
type ordeal struct {
	name     string
	lasts    time.Duration
	clock    time.Duration // by how much it is wrong
	restart  bool          // before it and after it
	policy   rotation      // replaces the standard one, if set
	wantLost bool          // tokens are refused once the clock is right
}

const year = 365 * 24 * time.Hour

var yearly = rotation{keyTTL: year, tokenTTL: 10 * time.Minute, publishAhead: 2 * time.Hour}

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
	{name: "a year of -key-ttl", lasts: 5 * time.Minute, restart: true, policy: yearly},
	{name: "a year of -key-ttl for long", lasts: 12 * time.Hour, restart: true, policy: yearly},
	{name: "a year of -key-ttl a day ahead", lasts: 5 * time.Minute, restart: true, clock: 24 * time.Hour, policy: yearly},
	{name: "10 s of -key-ttl", lasts: 5 * time.Minute, restart: true,
		policy: rotation{keyTTL: 10 * time.Second, tokenTTL: 2 * time.Second, publishAhead: 20 * time.Second}},
	{name: "13 h of -publish-ahead", lasts: 5 * time.Hour, restart: true,
		policy: rotation{keyTTL: time.Hour, tokenTTL: 10 * time.Minute, publishAhead: 13 * time.Hour}},
	// More than a day ahead, a server deletes the files of live keys.
	{name: "25 hours ahead", lasts: 5 * time.Minute, clock: 25 * time.Hour, wantLost: true},
	{name: "25 hours ahead at a start", lasts: 5 * time.Minute, clock: 25 * time.Hour, restart: true, wantLost: true},
	{name: "40 years ahead", lasts: 5 * time.Minute, clock: 40 * year, wantLost: true},
}

// endure lets a server live through ordeals, each after some hours of peace. It takes a
// token a minute while the clock is right. It returns the names of the ordeals during or
// after which the JWK Set had no key for a live token.
func endure(t *testing.T, ordeals ...ordeal) (lost map[string]bool) {
	t.Helper()
	lost = map[string]bool{}
	m := &model{rotation: standard, files: map[string]key{}}
	alive := map[time.Time]string{} // the kids of tokens by their expiry
	now := epoch
	live := func(o ordeal) {
		for end := now.Add(o.lasts); now.Before(end); now = now.Add(time.Minute) {
			m.pass(now.Add(o.clock))
			if o.clock != 0 {
				continue
			}
			k, ok := m.signer(m.keys, now)
			if !ok {
				t.Fatalf("%s: no key signs at %s", o.name, now)
			}
			alive[now.Add(m.tokenTTL)] = k.kid
			published := map[string]bool{}
			for _, k := range unexpired(m.keys, now) {
				published[k.kid] = true
			}
			for expires, kid := range alive {
				if !now.Before(expires) {
					delete(alive, expires)
				} else if !published[kid] {
					lost[o.name] = true
				}
			}
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
			want := map[string]bool{}
			if o.wantLost {
				want[o.name] = true
			}
			equal(t, o.name+": lost tokens", endure(t, o), want)
		}
	})
	t.Run("neither do several of them", func(t *testing.T) {
		harmless := slices.DeleteFunc(slices.Clone(ordeals), func(o ordeal) bool { return o.wantLost })
		rand.New(rand.NewPCG(1, 2)).Shuffle(len(harmless), func(i, j int) { harmless[i], harmless[j] = harmless[j], harmless[i] })
		equal(t, "lost tokens", endure(t, harmless...), map[string]bool{})
	})
	t.Run("a distant key takes its place when the horizon reaches it", func(t *testing.T) {
		distant := keyAt("distant", epoch.Add(24*time.Hour+17*time.Minute))
		m := &model{rotation: standard, files: map[string]key{distant.name(): distant}}
		var signs time.Duration
		for now := epoch; now.Before(distant.expires); now = now.Add(time.Minute) {
			m.pass(now)
			k, ok := m.signer(m.keys, now)
			if !ok || !slices.Contains(unexpired(m.keys, now), distant) {
				t.Fatalf("at %s a key signs: %t; want one, and the distant key published", now, ok)
			}
			if k == distant {
				signs += time.Minute
			}
		}
		if signs < 15*time.Minute || signs > time.Hour {
			t.Errorf("the distant key signs for %s; want its part of a queue", signs)
		}
	})
}

// A phase is a time with some flags.
type phase struct {
	lasts time.Duration
	rotation
}

// published returns for how long each key is published before it signs, at least, while a
// server lives through phases. It does not look at the first 30 hours.
func published(t *testing.T, phases []phase) time.Duration {
	t.Helper()
	m := &model{files: map[string]key{}}
	made := map[string]time.Time{}
	now, shortest := epoch, time.Duration(math.MaxInt64)
	for _, p := range phases {
		m.rotation = p.rotation
		for end := now.Add(p.lasts); now.Before(end); now = now.Add(3 * time.Minute) { // the slack is 5
			m.pass(now)
			for _, k := range m.keys {
				if _, known := made[k.kid]; !known {
					made[k.kid] = now
				}
			}
			k, ok := m.signer(m.keys, now)
			if !ok {
				t.Fatalf("no key signs at %s", now)
			}
			if now.Sub(epoch) > 30*time.Hour {
				shortest = min(shortest, now.Sub(made[k.kid]))
			}
		}
	}
	return shortest
}

func TestChangedLifetimes(t *testing.T) {
	t.Parallel()
	const m, h = time.Minute, time.Hour
	policy := func(keyTTL, tokenTTL, publishAhead time.Duration) rotation {
		return rotation{keyTTL: keyTTL, tokenTTL: tokenTTL, publishAhead: publishAhead}
	}
	for _, test := range []struct {
		name     string
		before   rotation
		between  phase
		after    rotation
		tooEarly bool // a key signs before it has been published for publish-ahead
	}{
		{name: "longer keys", before: standard, after: policy(24*h, 10*m, 2*h)},
		{name: "shorter tokens", before: policy(4*h, h, 2*h), after: policy(4*h, 10*m, 2*h)},
		{name: "a longer publish-ahead", before: standard, after: policy(h, 10*m, 13*h)},
		{name: "a shorter publish-ahead", before: policy(h, 10*m, 13*h), after: standard},
		{name: "shorter keys at once", before: policy(24*h, 10*m, 2*h), after: standard, tooEarly: true},
		{name: "shorter keys, with the old key-ttl added to publish-ahead until the old keys have expired",
			before: policy(24*h, 10*m, 2*h), between: phase{lasts: 50 * h, rotation: policy(h, 10*m, 26*h)}, after: standard},
		{name: "longer tokens at once", before: policy(4*h, 10*m, 2*h), after: policy(4*h, h, 2*h), tooEarly: true},
		{name: "longer tokens, one publish-ahead after twice the difference was added to it",
			before: policy(4*h, 10*m, 2*h), between: phase{lasts: 2 * h, rotation: policy(4*h, 10*m, 2*h+2*50*m)}, after: policy(4*h, h, 2*h)},
	} {
		tooEarly := false
		for offset := time.Duration(0); offset < 24*h; offset += 311 * m { // at any moment in a key's life
			first := phase{lasts: 48*h + offset, rotation: test.before}
			shortest := published(t, []phase{first, test.between, {lasts: 30 * h, rotation: test.after}})
			tooEarly = tooEarly || shortest < 2*h
		}
		equal(t, test.name+": a key signs too early", tooEarly, test.tooEarly)
	}
}

var update = flag.Bool("update", false, "rewrite the drawings of the pages")

// lives returns when each key is made, takes over, stops signing and expires.
func lives(r rotation, within time.Duration) (lives [][4]time.Duration) {
	var keys []key
	for now := epoch; now.Sub(epoch) < within; now = now.Add(tick) {
		for r.due(keys, now, r.queueLength()) {
			k := keyAt("", r.nextExpiry(keys, now))
			keys = append(keys, k)
			life := [4]time.Duration{}
			for i, at := range []time.Time{now, k.expires.Add(-r.keyTTL), r.signsUntil(k), k.expires} {
				life[i] = at.Sub(epoch)
			}
			lives = append(lives, life)
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
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %d" role="img" `+
		`aria-label="Keys are queued end to end: each is published two hours before it signs, `+
		`signs for 45 minutes, and stays published for 15 more.">
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

// wantDrawing checks that a file has a drawing, or writes it with -update.
func wantDrawing(t *testing.T, file, want string) {
	t.Helper()
	if *update {
		ok(t, os.WriteFile(file, []byte(want), 0o644))
	}
	if string(must(os.ReadFile(file))) != want {
		t.Errorf("%s does not show what the program does; write it with go test -run Diagram -update .", file)
	}
}

func TestDiagramShowsTheDefaults(t *testing.T) {
	wantDrawing(t, "interop/key-life.svg", draw(lives(flags(t).rotation, 2*time.Hour), 4*time.Hour))
}
