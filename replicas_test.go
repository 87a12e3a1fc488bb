package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestKill9AtAnyMomentLosesNoToken(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	flags := []string{"-keys", dir, "-key-ttl", "3s", "-token-ttl", "1s", "-publish-ahead", "1s"}
	var tokens []string
	verified := 0
	for range 50 {
		p := startProcess(t, flags...)
		tokens = p.set(t).alive(t, "the server after a kill", tokens...)
		verified += len(tokens)
		wholeKeys(t, dir)
		taken := make(chan []string)
		go func() {
			var tokens []string
			for {
				switch w := p.do("POST", "/auth", ""); {
				case p.killed.Load():
					taken <- tokens
					return
				case w.status != http.StatusOK:
					t.Errorf("POST /auth before the kill = %d %s %v; want 200", w.status, w.body, w.err)
				default:
					tokens = append(tokens, w.token(t))
				}
				time.Sleep(2 * time.Millisecond)
			}
		}()
		if random.IntN(16) > 0 {
			time.Sleep(time.Duration(random.IntN(100)) * time.Millisecond)
		} else {
			awaitWrite(dir, 1500*time.Millisecond)
		}
		p.kill()
		tokens = append(tokens, <-taken...)
		if random.IntN(3) == 0 { // also kill a server while it starts and makes keys
			early := launch(t, serverCommand(t, flags...))
			awaitWrite(dir, time.Duration(random.IntN(250))*time.Millisecond)
			time.Sleep(time.Duration(random.IntN(6)) * time.Millisecond)
			early.kill()
		}
	}
	t.Logf("%d verifications of tokens that outlived a kill, %d interrupted writes", verified, len(halfWritten(dir)))
	if verified < 50 {
		t.Errorf("only %d tokens outlived a kill", verified)
	}
}

// awaitWrite waits until a key file is being written in dir, or until the timeout.
func awaitWrite(dir string, timeout time.Duration) {
	before := len(halfWritten(dir))
	for begin := time.Now(); time.Since(begin) < timeout && len(halfWritten(dir)) <= before; {
		time.Sleep(200 * time.Microsecond)
	}
}

// A replica is a process that may be replaced.
type replica struct{ atomic.Pointer[process] }

func newReplicas(processes ...*process) (replicas []*replica) {
	for _, p := range processes {
		r := &replica{}
		r.Store(p)
		replicas = append(replicas, r)
	}
	return replicas
}

// verifyAcross gets tokens from each replica for d. It verifies them with the JWK Set of
// another replica, at once and until they expire. With one clock, it also checks that all
// replicas sign with the same key.
func verifyAcross(t *testing.T, d time.Duration, oneClock bool, replicas ...*replica) {
	t.Helper()
	var wait sync.WaitGroup
	var verified atomic.Int64
	ask := func(p *process, method, path string) (w response, ok bool) {
		w = p.do(method, path, "")
		if w.status != http.StatusOK && !(w.err != nil && p.killed.Load()) {
			t.Errorf("%s %s at a replica = %d %s %v; want 200", method, path, w.status, w.body, w.err)
		}
		return w, w.status == http.StatusOK
	}
	until := time.Now().Add(d)
	for i := range replicas {
		wait.Go(func() {
			var tokens []string
			for n := 0; time.Now().Before(until); n++ {
				time.Sleep(25 * time.Millisecond)
				j := (i + 1 + n%(len(replicas)-1)) % len(replicas)
				mine, other := replicas[i].Load(), replicas[j].Load()
				first, ok1 := ask(mine, "POST", "/auth")
				others, ok2 := ask(other, "POST", "/auth")
				again, ok3 := ask(mine, "POST", "/auth")
				set, ok4 := ask(other, "GET", jwksPath)
				if !ok1 || !ok2 || !ok3 || !ok4 {
					continue
				}
				tokens = append(tokens, first.token(t), again.token(t))
				kid := kidOf(t, first.token(t))
				if other := kidOf(t, others.token(t)); oneClock && kid == kidOf(t, again.token(t)) && kid != other {
					t.Errorf("replica %d signs with %s, and replica %d with %s", i, kid, j, other)
				}
				tokens = parseSet(t, set.body).alive(t, fmt.Sprintf("replica %d, of tokens of %d,", j, i), tokens...)
				verified.Add(int64(len(tokens)))
			}
		})
	}
	wait.Wait()
	t.Logf("%d verifications", verified.Load())
	if verified.Load() < 100 {
		t.Errorf("only %d verifications", verified.Load())
	}
}

func TestReplicaProcesses(t *testing.T) {
	t.Parallel()
	t.Run("act as one while one is killed again and again", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		flags := []string{"-keys", dir, "-key-ttl", "4s", "-token-ttl", "2s", "-publish-ahead", "2s"}
		replicas := newReplicas(startProcess(t, flags...), startProcess(t, flags...), startProcess(t, flags...))
		begin, names := time.Now(), map[string]bool{}
		done := make(chan struct{})
		go func() {
			defer close(done)
			verifyAcross(t, 9*time.Second, true, replicas...)
		}()
		for running := true; running; {
			for _, name := range wholeKeys(t, dir) {
				names[name] = true
			}
			select {
			case <-done:
				running = false
			case <-time.After(1100 * time.Millisecond):
				replicas[2].Load().kill()
				replicas[2].Store(startProcess(t, flags...))
			}
		}
		// One server makes a key a second with these flags, and begins with seven.
		seconds := int(time.Since(begin).Seconds())
		if n := len(names) - 7; n > seconds*3/2 {
			t.Errorf("three replicas made %d keys in %d s; want one key a second", n, seconds)
		}
	})
	t.Run("that start together make one key", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		var replicas []*process
		for range 4 { // generating a key of this size takes long, and not always equally long
			flags := []string{"-keys", dir, "-key-ttl", "1000h", "-publish-ahead", "1s", "-key-bits", "3072"}
			replicas = append(replicas, launch(t, serverCommand(t, flags...)))
		}
		for _, p := range replicas {
			p.serving(t)
		}
		if n := len(wholeKeys(t, dir)); n > 2 { // two may be stored at the same moment
			t.Errorf("four replicas made %d keys; want 1", n)
		}
		eventually(t, "all sign with the same key", func() bool {
			var kids []string
			for _, p := range replicas {
				kids = append(kids, kidOf(t, p.token(t, "", "")))
			}
			return len(slices.Compact(kids)) == 1
		})
	})
	t.Run("verify each other when their clocks are two seconds apart", func(t *testing.T) {
		t.Parallel()
		path, err := fastBinary()
		ok(t, err)
		flags := []string{"-addr", "127.0.0.1:0", "-keys", t.TempDir(), "-key-ttl", "8s", "-token-ttl", "4s", "-publish-ahead", "6s"}
		fast := launch(t, exec.Command(path, flags...))
		exact := startProcess(t, flags...) // both find an empty directory
		fast.serving(t)
		iat := func(p *process) int64 {
			_, claims := parts(t, p.token(t, "", ""))
			n, _ := claims["iat"].(json.Number).Int64()
			return n
		}
		if ahead := iat(fast) - iat(exact); ahead < 1 || ahead > 3 {
			t.Errorf("the fast clock is %d s fast; want 2", ahead)
		}
		time.Sleep(2 * time.Second) // until each knows the first keys of the other
		verifyAcross(t, 8*time.Second, false, newReplicas(fast, exact)...)
	})
}

func TestTheDirectory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir() + "/keys"
	flags := []string{"-keys", dir}
	a := startProcess(t, flags...)
	b := startProcess(t, flags...)
	t.Run("is filled again after it was emptied", func(t *testing.T) {
		token, before := a.token(t, "", ""), wholeKeys(t, dir)
		ok(t, os.Rename(dir, dir+".away"), os.Mkdir(dir, 0o700)) // as after mounting an empty disk
		eventually(t, "the key files are back", func() bool { return slices.Equal(wholeKeys(t, dir), before) })
		for _, p := range []*process{a, b} {
			p.set(t).alive(t, "a server of an emptied directory", token, p.token(t, "", ""))
		}
		eventually(t, "one logs it", func() bool { return strings.Contains(a.stderr.String()+b.stderr.String(), "key stored again") })
	})
	t.Run("revokes a key whose file is renamed to .revoked", func(t *testing.T) {
		names, token := wholeKeys(t, dir), a.token(t, "", "")
		first, second := kidOfName(names[0]), kidOfName(names[1])
		equal(t, "kid", kidOf(t, token), first)
		ok(t, os.Rename(dir+"/"+names[0]+".pem", dir+"/"+names[0]+".revoked"))
		eventually(t, "no replica publishes the key", func() bool { return a.set(t)[first] == nil && b.set(t)[first] == nil })
		for _, p := range []*process{a, b, startProcess(t, flags...)} {
			if p.set(t)[first] != nil {
				t.Error("a server publishes the revoked key")
			}
			equal(t, "kid after the revocation", kidOf(t, p.token(t, "", "")), second)
		}
		if now := wholeKeys(t, dir); slices.Contains(now, names[0]) {
			t.Error("the file of the revoked key is back")
		}
	})
}

func TestARestartWithFlagsToWatchRotationRotatesAtOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	plain := startProcess(t, "-keys", dir)
	old := plain.token(t, "", "")
	plain.kill()
	p := startProcess(t, "-keys", dir, "-key-ttl", "10s", "-token-ttl", "2s", "-publish-ahead", "20s")
	first := kidOf(t, p.token(t, "", ""))
	if first == kidOf(t, old) {
		t.Error("the key of the plain start still signs")
	}
	eventually(t, "the key rotates", func() bool { return kidOf(t, p.token(t, "", "")) != first })
	if alive := p.set(t).alive(t, "the server that rotates", old); len(alive) != 1 {
		t.Error("the token of the plain start does not verify")
	}
	p.kill()
	equal(t, "kid after a plain restart", kidOf(t, startProcess(t, "-keys", dir).token(t, "", "")), kidOf(t, old))
}
