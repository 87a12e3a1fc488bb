package main

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestLimiter(t *testing.T) {
	bubble(t, "there are never more holders than turns", func(t *testing.T) {
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
	bubble(t, "a waiter waits until its context is done, and costs no turn", func(t *testing.T) {
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
		for range 2 * maxWaiting { // as many again, none of which may keep a place in the queue
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
		release = takeAll(t, l)
		time.AfterFunc(time.Second, release)
		ctx, cancel = context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		enter()
		equal(t, "turns, once there is room again", granted.Load(), int64(2*maxWaiting+1))
	})
	t.Run("a free turn is granted after a deadline, but not after a cancellation", func(t *testing.T) {
		l := must(newLimiter(1))
		late, cancel := context.WithTimeout(t.Context(), -1)
		defer cancel()
		canceled, stop := context.WithCancel(t.Context())
		stop()
		for range 100 {
			must(l.acquire(late))()
			if _, err := l.acquire(canceled); err != context.Canceled {
				t.Fatalf("acquire, canceled = %v; want %v", err, context.Canceled)
			}
		}
	})
}
