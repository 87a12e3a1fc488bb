package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
)

const maxWaiting = 1000 // requests for each turn: about as many as a core signs for in maxWait

// A limiter gives turns to those who wait for them.
type limiter struct {
	turns   chan pipe
	waiting atomic.Int64
}

// A pipe leads through the network poller.
type pipe struct{ in, out *os.File }

// errBusy means that too many wait for a turn already.
var errBusy = errors.New("too many requests are waiting")

func newLimiter(turns int) (*limiter, error) {
	l := &limiter{turns: make(chan pipe, turns)}
	for range turns {
		out, in, err := os.Pipe()
		if err != nil {
			return nil, fmt.Errorf("cannot make a pipe: %w; allow the process more open files", err)
		}
		l.turns <- pipe{in: in, out: out}
	}
	return l, nil
}

// acquire waits for a turn. The caller has to release it. A turn that is free is given
// even if the time of ctx is up, but not if ctx is canceled. The error is that of ctx,
// or errBusy.
func (l *limiter) acquire(ctx context.Context) (release func(), err error) {
	if ctx.Err() == context.Canceled {
		return nil, context.Canceled
	}
	var p pipe
	select {
	case p = <-l.turns:
	default:
		if l.waiting.Add(1) > int64(cap(l.turns)*maxWaiting) {
			l.waiting.Add(-1)
			return nil, errBusy
		}
		defer l.waiting.Add(-1)
		select {
		case p = <-l.turns:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return func() {
		p.poll()
		l.turns <- p
	}, nil
}

// poll lets the Go scheduler look at the network. It does that only where nothing is
// runnable, or every 10 ms, and while many wait for turns something always is: the next
// one to have a turn. So requests that need no turn would wait for many of them.
func (p pipe) poll() {
	go p.in.Write([]byte{0})
	p.out.Read([]byte{0})
}
