package main

import (
	"context"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

func TestMaintenanceLog(t *testing.T) {
	count := func(t *testing.T, s *testServer, want int, text string) {
		t.Helper()
		synctest.Wait()
		wantInLog(t, s.log, want, text)
	}
	move := func(t *testing.T, from, to keyDir) {
		t.Helper()
		ok(t, os.Rename(string(from), string(to)))
	}
	bubble(t, "an error is logged once a minute with how long the keys in memory sign, and its end once", func(t *testing.T) {
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
	bubble(t, "an unusable file and a missing directory are both logged, and so is their end", func(t *testing.T) {
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
	bubble(t, "a directory that does not answer is logged, and a stop does not wait for it", func(t *testing.T) {
		s := newTestServer(t)
		keepRunning(t, s)
		synctest.Wait()
		release := takeAll(t, s.store.making)
		time.Sleep(slowDir + tick)
		count(t, s, 1, `error="not done after 10s: the keys directory `+string(s.store.dir)+` does not answer`)
		release()
		time.Sleep(tick)
		count(t, s, 1, "recovered")
		takeAll(t, s.store.making) // it hangs while the test ends
	})
	bubble(t, "a stop is not logged as an error", func(t *testing.T) {
		s := newTestServer(t)
		ctx, stop := context.WithCancel(t.Context())
		stop()
		s.store.maintain(ctx)
		wantInLog(t, s.log, 0, "level=ERROR")
	})
	bubble(t, "an unwritable directory is logged only when a key has to be stored", func(t *testing.T) {
		dir := keyDir(t.TempDir())
		putKey(t, dir, 0, time.Hour)
		s := newTestServer(t, "-keys", string(unwritable(t, dir)), "-publish-ahead", "1s")
		keepRunning(t, s)
		time.Sleep(44 * time.Minute)
		count(t, s, 0, "level=ERROR")
		time.Sleep(time.Minute)
		count(t, s, 1, `error="cannot store a key`)
	})
	bubble(t, "keys beyond the horizon are published, and the log names the file of each once", func(t *testing.T) {
		dir := keyDir(t.TempDir())
		farthest, far := putKey(t, dir, 0, 40*year), putKey(t, dir, 1, 6*time.Hour)
		s := newTestServer(t, "-keys", string(dir))
		s.store.bits = 1024
		keepRunning(t, s)
		signers := map[string]bool{}
		for range 6 * 12 {
			time.Sleep(5*time.Minute - 1)
			if set := s.set(t); set[farthest.kid] == nil || set[far.kid] == nil {
				t.Fatalf("set of %s = %q; want both keys in it", clock(), set.kids())
			}
			signers[kidOf(t, s.token(t, "", ""))] = true
		}
		equal(t, "the farthest key signs", signers[farthest.kid], false)
		equal(t, "the other one signs when the horizon reaches it", signers[far.kid], true)
		for _, k := range []key{farthest, far} {
			count(t, s, 1, "revoke it: rename its file to end in .revoked\" kid="+k.kid)
			count(t, s, 1, " file="+dir.path(k.name()+".pem"))
		}
	})
}
