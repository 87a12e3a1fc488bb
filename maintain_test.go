package main

import (
	"os"
	"testing"
	"testing/synctest"
	"time"
)

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
