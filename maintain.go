package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const slowDir = 10 * time.Second // a slower pass over the keys directory is logged

// maintain keeps the key queue full and picks up changes in the directory until ctx is
// canceled.
func (s *keystore) maintain(ctx context.Context) {
	var (
		signing          string              // kid
		warned           = map[string]bool{} // kids of keys beyond the horizon
		directory, files problem
	)
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		err := s.pass(ctx)
		if ctx.Err() != nil {
			return
		}
		now := clock()
		keys, invalid := s.state()
		signing = s.noteSigner(keys, now, signing)
		s.warnBeyondHorizon(keys, now, warned)
		outlook := s.outlook(keys, now)
		directory.report(s.log, "cannot maintain the keys", err, outlook)
		files.report(s.log, "cannot use a key file", invalid, outlook)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// pass is one round of maintain.
func (s *keystore) pass(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, slowDir)
	defer cancel()
	err := s.grow(ctx, s.queueLength())
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("not done after %s: the keys directory %s does not answer, or many keys have to be made", slowDir, s.dir)
	}
	return err
}

// noteSigner logs which key signs if its kid is not before. It returns its kid.
func (s *keystore) noteSigner(keys []key, now time.Time, before string) (kid string) {
	k, ok := s.signer(keys, now)
	if !ok {
		return before
	}
	if k.kid != before {
		s.log.Info("now signing", s.logFields(k)...)
	}
	return k.kid
}

// warnBeyondHorizon logs each key beyond the horizon that is not in warned, and adds it.
func (s *keystore) warnBeyondHorizon(keys []key, now time.Time, warned map[string]bool) {
	for _, k := range keys {
		if s.beyondHorizon(k, now) && !warned[k.kid] {
			warned[k.kid] = true
			s.log.Warn("key expires too far ahead to sign; it was made with other flags or a wrong clock. "+
				"If its tokens are not in use, revoke it: rename its file to end in .revoked",
				append(s.logFields(k), "file", s.dir.path(k.name()+".pem"))...)
		}
	}
}

// outlook says until when the keys in memory sign.
func (s *keystore) outlook(keys []key, now time.Time) string {
	if end := s.end(keys, now); end.After(now) {
		return "the keys in memory sign until " + end.Format(time.RFC3339)
	}
	return "no key can sign"
}
