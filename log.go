package main

import (
	"log/slog"
	"strings"
	"sync"
	"time"
)

// oneLine returns the text of err in one line, however many errors it joins.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// logInterval is how often the log repeats what lasts.
const logInterval = time.Minute

// A throttle counts events of which the log tells once a minute.
type throttle struct {
	mu    sync.Mutex
	count int
	told  time.Time
}

// add counts an event. It returns how many there were since the last time that it
// returned a number; 0 if that is less than a minute ago.
func (t *throttle) add() (n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.count++
	if time.Since(t.told) < logInterval {
		return 0
	}
	n, t.count, t.told = t.count, 0, time.Now()
	return n
}

// A trouble that lasts is logged once a minute, and then that it is over.
type trouble struct {
	lasts bool
	told  time.Time // when the log last told of it
}

func (t *trouble) report(log *slog.Logger, message string, err error, outlook string) {
	switch {
	case err != nil && time.Since(t.told) >= logInterval:
		log.Error(message, "error", oneLine(err), "outlook", outlook)
		t.lasts, t.told = true, time.Now()
	case err == nil && t.lasts:
		log.Info("recovered: "+message, "outlook", outlook)
		t.lasts = false
	}
}

// A serverLog takes the lines that an http.Server writes about connections. It passes on
// one line a minute about TLS handshakes, because anybody may fail them.
type serverLog struct {
	log        *slog.Logger
	handshakes throttle
}

func (l *serverLog) Write(line []byte) (int, error) {
	text := strings.TrimSpace(string(line))
	if !strings.Contains(text, "TLS handshake error") {
		l.log.Error("connection failed", "error", text)
	} else if n := l.handshakes.add(); n > 0 {
		l.log.Warn("TLS handshake failed", "error", text, "failures", n)
	}
	return len(line), nil
}
