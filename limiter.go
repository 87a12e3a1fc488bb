package main

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"
)

const maxWaiting = 1000 // requests for each turn: about as many as a core can sign for within maxWait

// A limiter is a semaphore with a bounded queue. A turn is a unit of it.
type limiter struct {
	turns   chan pipe
	waiting atomic.Int64
}

type pipe struct{ in, out *os.File }

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

// acquire waits for a turn until ctx is done. The caller has to release it. The error is that
// of ctx.
//
// A free turn is granted even after ctx's deadline, so that a request whose deadline was
// spent on making a key still gets its answer. It is not granted after ctx is canceled.
//
// If maxWaiting requests already wait for each turn, acquire gets no turn, and still returns only
// when ctx is done. Clients that got an error at once would send their requests again at once,
// and that busy loop would leave no CPU time for turns.
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
			<-ctx.Done()
			return nil, ctx.Err()
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

// poll makes the releasing goroutine wait for the network poller, so that the scheduler looks
// at the network before it runs the next waiter. Otherwise it looks only when nothing is
// runnable, or every 10 ms, and under load a waiter is always runnable: reads of the JWK Set
// would wait for ten signatures instead of one.
func (p pipe) poll() {
	go p.in.Write([]byte{0})
	p.out.Read([]byte{0})
}

// await returns the result of f, or the error of ctx if that is done first: f may hang.
func await[T any](ctx context.Context, f func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		value, err := f()
		done <- result{value, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}
