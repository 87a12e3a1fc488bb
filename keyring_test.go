package main

import (
	"fmt"
	"testing"
	"time"
)

func TestKeyring(t *testing.T) {
	bubble(t, "the set is rendered again only when it changes, and never has an expired key", func(t *testing.T) {
		s := newTestServer(t)
		sets := map[*document]bool{}
		for range 59 {
			time.Sleep(10 * time.Second)
			pass(t, s)
			sets[must(s.store.jwks(t.Context()))] = true
		}
		equal(t, "sets of the same keys", len(sets), 1)
		first := s.store.keys[0].expires
		for _, test := range []struct {
			after time.Duration // since the first expiry; the clock goes forward and back
			want  int
		}{
			{after: -1, want: 3}, {after: 0, want: 2}, {after: -1, want: 3},
			{after: 24 * time.Hour}, {after: -3 * time.Hour, want: 3}, {after: 40 * year},
		} {
			now := first.Add(test.after)
			what := fmt.Sprintf("%s after the first expiry: keys ", test.after)
			keys := 0
			if set := s.store.current(now); set != nil {
				keys = len(parseSet(t, string(set.body)))
			}
			equal(t, what+"in the set", keys, test.want)
			equal(t, what+"published", len(s.store.published(now)), test.want)
		}
	})
	t.Run("keys that expire at the same time are in the order of their kids on every server", func(t *testing.T) {
		a, b := newKey(readyMade()[0], epoch), newKey(readyMade()[1], epoch) // which has the lesser kid
		for _, keys := range [][]key{{a, b}, {b, a}} {
			r := keyring{rotation: standard}
			r.replace(keys, epoch)
			equal(t, "keys", namesOf(r.keys), namesOf([]key{b, a}))
		}
	})
}
