package main

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// newLogger returns a logger that writes JSON or text to w, from the lowest level on.
func newLogger(w io.Writer, asJSON bool, lowest slog.Level) *slog.Logger {
	options := &slog.HandlerOptions{Level: lowest}
	if asJSON {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

// oneLine returns the text of err in one line, however many errors it joins.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

const (
	maxUnwritten = 256 << 10              // bytes of log lines in memory
	flushTimeout = 500 * time.Millisecond // how long an exit waits for the reader of the log
)

// A logWriter writes log lines to another writer without ever waiting for it: the reader
// of a pipe or a terminal may stall, and must not stall the server.
//
// Lines beyond maxUnwritten are dropped. Their number is logged once the log can be written again.
type logWriter struct {
	out     io.Writer
	asJSON  bool
	wake    chan struct{} // has an element if there may be something to write
	writing chan struct{} // has an element while somebody writes to out

	mu        sync.Mutex // guards the following fields
	unwritten []byte     // lines
	written   []byte     // the previous value of unwritten, whose memory is reused; only the writing goroutine uses it
	dropped   int        // lines since the last line in unwritten
}

// newLogWriter returns a writer to out. asJSON is the format of its own line about dropped lines.
func newLogWriter(out io.Writer, asJSON bool) *logWriter {
	w := &logWriter{out: out, asJSON: asJSON, wake: make(chan struct{}, 1), writing: make(chan struct{}, 1)}
	go func() {
		for range w.wake {
			w.writeAll()
		}
	}()
	return w
}

// Write takes whole lines. It never fails, because nothing could be done about an error.
func (w *logWriter) Write(lines []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.dropped > 0 || len(w.unwritten)+len(lines) > maxUnwritten {
		w.dropped += bytes.Count(lines, []byte("\n"))
	} else {
		w.unwritten = append(w.unwritten, lines...)
	}
	select {
	case w.wake <- struct{}{}:
	default:
	}
	return len(lines), nil
}

// writeAll writes until nothing is left. It waits for out.
func (w *logWriter) writeAll() {
	w.writing <- struct{}{}
	defer func() { <-w.writing }()
	for lines := w.take(); len(lines) > 0; lines = w.take() {
		w.out.Write(lines)
	}
}

// take returns the unwritten lines, and a line with the number of those dropped after
// them. The caller must be the one that writes, and may use the result until the next call.
func (w *logWriter) take() []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	lines := w.unwritten
	if w.dropped > 0 {
		var line bytes.Buffer
		newLogger(&line, w.asJSON, slog.LevelWarn).Warn("log lines dropped", "count", w.dropped)
		lines = append(lines, line.Bytes()...)
	}
	w.unwritten, w.written, w.dropped = w.written[:0], lines, 0
	return lines
}

// flush writes the rest. It returns after flushTimeout even if something is still unwritten.
func (w *logWriter) flush() {
	done := make(chan struct{})
	go func() { w.writeAll(); close(done) }()
	select {
	case <-done:
	case <-time.After(flushTimeout):
	}
}

// logInterval is the minimum time between log lines about one problem.
const logInterval = time.Minute

// A problem is an error that may occur many times. It is logged at most once per
// logInterval.
type problem struct {
	mu      sync.Mutex
	count   int       // occurrences since the last log line
	logged  time.Time // when the last log line was written
	ongoing bool      // it was logged, and is not resolved
}

// add counts an occurrence. Once per logInterval it returns the count since it last did
// so, which the caller has to log, and otherwise 0.
func (p *problem) add() (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.count++
	if time.Since(p.logged) < logInterval {
		return 0
	}
	n, p.count, p.logged, p.ongoing = p.count, 0, time.Now(), true
	return n
}

// resolve reports whether the problem was ongoing.
func (p *problem) resolve() (was bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	was, p.ongoing = p.ongoing, false
	return was
}

// report logs err, or, if it is nil, that the problem is resolved.
func (p *problem) report(log *slog.Logger, message string, err error, outlook string) {
	switch {
	case err != nil && p.add() > 0:
		log.Error(message, "error", oneLine(err), "outlook", outlook)
	case err == nil && p.resolve():
		log.Info("recovered: "+message, "outlook", outlook)
	}
}

// serverErrors are the kinds of lines that an http.Server logs, by prefix.
var serverErrors = [...]struct {
	prefix  string
	level   slog.Level
	message string
}{
	{prefix: "http: panic serving ", level: slog.LevelError, message: "handler panicked"},
	{prefix: "http2: panic serving ", level: slog.LevelError, message: "handler panicked"},
	{prefix: "http: Accept error: ", level: slog.LevelError, message: "cannot accept connections"},
	{prefix: "http: TLS handshake error ", level: slog.LevelWarn, message: "TLS handshake failed"},
	{prefix: "http2: ", level: slog.LevelWarn, message: "HTTP/2 connection failed"},
	{prefix: "", level: slog.LevelWarn, message: "HTTP server error"},
}

// A serverLog is the ErrorLog of an http.Server. It logs at most one line per logInterval
// and kind of error, because any client can cause them.
type serverLog struct {
	log      *slog.Logger
	problems [len(serverErrors)]problem
}

func (l *serverLog) Write(line []byte) (int, error) {
	text := strings.TrimSpace(string(line))
	for i, kind := range serverErrors {
		if !strings.HasPrefix(text, kind.prefix) {
			continue
		}
		if n := l.problems[i].add(); n > 0 {
			l.log.Log(context.Background(), kind.level, kind.message, "error", text, "count", n)
		}
		break
	}
	return len(line), nil
}
