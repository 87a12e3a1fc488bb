package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"
)

const undoLimit = 3 * time.Second // how long the check tries at its end to make the JWK Set good again

// A starter runs a server until ctx is canceled. It calls ready with the server's base URL
// once it serves.
type starter func(ctx context.Context, c config, stderr io.Writer, ready func(base string)) error

// runCheck tests the service at -check with tokens of the server at -addr, and prints what
// the results as TAP. If nothing listens at -addr, it starts a server there for the duration of
// the check. It uses only documented requests of the server, so that users' own tests can do
// all that the check does.
//
// The error says that the service failed, or why it could not be checked.
func runCheck(ctx context.Context, c config, stdout, stderr io.Writer, start starter) error {
	client := newHTTPClient(new(net.Dialer).DialContext)
	base, running, err := findServer(ctx, c, client)
	if err != nil {
		return err
	}
	if !running {
		var stop func()
		if base, stop, err = startServer(ctx, c, stderr, start); err != nil {
			return err
		}
		defer stop()
	}
	return checkService(ctx, c, serverClient{base: base, http: client}, running, stdout)
}

// checkService is runCheck for a server that already serves.
func checkService(ctx context.Context, c config, server serverClient, running bool, stdout io.Writer) (err error) {
	checking, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	k := &serviceCheck{
		ctx: checking, cancel: cancel, server: server, service: serviceClient{url: c.service, http: server.http},
		tap: tap{out: stdout}, wait: c.checkWait, running: running, inVain: map[waitKind]bool{}, answers: map[string]answer{},
	}
	if a := k.service.ask(checking, "", answerLimit); a.gone {
		return fmt.Errorf("cannot reach the service at %s: start it first, or correct the host and port of -check: %w", c.service, a.err)
	}
	defer func() { err = errors.Join(err, undo(ctx, server)) }()
	k.tap.line("TAP version 13")
	if running {
		k.tap.comment("asking %s with tokens of the server that runs at %s; flags of this command for tokens and keys have no effect on it",
			c.service, server.base)
	} else {
		k.tap.comment("asking %s with tokens of a server at %s, which was started for this check", c.service, server.base)
	}
	k.run()
	return k.finish(ctx)
}

// undo makes the JWK Set good again, also after an interrupt.
func undo(ctx context.Context, server serverClient) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoLimit)
	defer cancel()
	var dial *net.OpError
	if err := server.setFault(ctx, ""); err != nil && !(errors.As(err, &dial) && dial.Op == "dial") { // the server has ended
		return fmt.Errorf("cannot make the JWK Set good again, so restart the server at %s: %w", server.base, err)
	}
	return nil
}

// findServer returns the URL of the server at -addr, and whether one is running there.
func findServer(ctx context.Context, c config, client *http.Client) (base string, running bool, err error) {
	base = "http://" + askedAddress(c.addr)
	if c.tlsCert != "" {
		base = "https://" + askedAddress(c.addr)
	}
	server := serverClient{base: base, http: client}
	var dial *net.OpError
	status, body, err := server.send(ctx, "GET", "/faults/sets")
	switch {
	case ctx.Err() != nil:
		return "", false, errInterrupted
	case errors.As(err, &dial) && dial.Op == "dial":
		return base, false, nil
	case status == http.StatusBadRequest && strings.Contains(string(body), "HTTPS"):
		return "", false, fmt.Errorf("the server at %s speaks https: give -tls-cert and -tls-key as well, or choose another -addr", c.addr)
	case err != nil && strings.Contains(err.Error(), "HTTP response to HTTPS client"):
		return "", false, fmt.Errorf("the server at %s speaks http: leave out -tls-cert and -tls-key, or choose another -addr", c.addr)
	case err != nil:
		return "", false, fmt.Errorf("what listens at -addr %s is not a jwks-server: stop it, or choose another -addr: %w", c.addr, err)
	case status == http.StatusOK:
		return base, true, nil
	}
	if _, body, _ := server.send(ctx, "GET", "/"); string(body) == "JWKS Server Running!" {
		return "", false, fmt.Errorf("the jwks-server at %s issues no bad tokens, because it runs with -clients or is an old version: "+
			"choose another -addr, where the check starts a server of its own", c.addr)
	}
	return "", false, fmt.Errorf("what listens at -addr %s is not a jwks-server: stop it, or choose another -addr", c.addr)
}

// askedAddress returns the address at which to ask a server that listens on addr: localhost
// if addr has no host, such as :8080.
func askedAddress(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if ip := net.ParseIP(host); err == nil && (host == "" || ip != nil && ip.IsUnspecified()) {
		return net.JoinHostPort("localhost", port)
	}
	return addr
}

// startServer starts a server and waits until it serves. stop ends it.
func startServer(ctx context.Context, c config, stderr io.Writer, start starter) (base string, stop func(), err error) {
	serving, cancel := context.WithCancel(context.WithoutCancel(ctx))
	ready, ended := make(chan string, 1), make(chan error, 1)
	go func() { ended <- start(serving, c, stderr, func(base string) { ready <- base }) }()
	stop = func() {
		cancel()
		select {
		case <-ended:
		case <-time.After(time.Second): // requests of the service may still be in flight, and no longer matter
		}
	}
	select {
	case base = <-ready:
		return base, stop, nil
	case err = <-ended:
		stop = cancel
	case <-ctx.Done():
		err = errInterrupted
	}
	cancel()
	return "", nil, err
}

var errInterrupted = errors.New("the check was interrupted; the JWK Set is good again")

// row runs a test and prints its result, unless the check has been stopped.
func (c *serviceCheck) row(name, level string, test func() result) result {
	if c.ctx.Err() != nil {
		return result{}
	}
	r := test()
	if c.ctx.Err() != nil {
		return r
	}
	c.tap.row(name, level == "must", r)
	if c.tap.err != nil {
		c.stop(c.tap.err)
	}
	if c.bail != "" {
		c.stop(fmt.Errorf("%s: %s", name, c.bail))
	}
	return r
}

// run prints the rows.
func (c *serviceCheck) run() {
	faults, err := c.server.catalogue(c.ctx, "/faults")
	c.must(err)
	sets, err := c.server.catalogue(c.ctx, "/faults/sets")
	c.must(err)
	c.brokenSets = len(slices.DeleteFunc(slices.Clone(sets), func(s catalogueEntry) bool { return s.Accept != "known" }))
	c.start = c.reads()

	c.row("no-token", "must", c.noToken)
	c.row("challenge", "should", c.challenge)
	c.row("good", "must", c.goodToken)
	c.row("new-key", "should", c.newKeyBefore)
	c.explainNewKey()
	c.row("known-reads", "should", c.knownReads)
	c.row("scheme-case", "should", func() result {
		return verdict(c.judge(c.token("bearer", "")), "never", "the name of a scheme is case-insensitive (RFC 9110 section 11.1)")
	})
	c.row("basic", "must", func() result {
		return verdict(c.judge(c.token("Basic", "")), "must", "the token was sent with the scheme Basic instead of Bearer (RFC 6750 section 2.1)")
	})
	for _, f := range faults {
		c.row(f.Fault, f.Refuse, func() result { return c.badToken(f) })
	}
	c.row("challenge-expired", "should", c.challengeExpired)
	c.row("lookups", "must", c.lookups)
	c.row("good-again", "must", c.goodAgain)

	c.runSets(sets)
	c.row("unknown-keys", "should", c.unknownKeys)
	c.row("new-key-after", "should", c.needsNewKey(c.newKeyAfter))
	c.row("removed-key", "may", c.needsNewKey(c.removedKey))
}

// runSets prints the rows of JWK Sets. The set odd has the oddities of all other odd sets, which
// are tried one by one only if odd is not ok.
func (c *serviceCheck) runSets(sets []catalogueEntry) {
	whole := result{status: "ok"}
	for _, set := range sets {
		if set.Fault == "odd" {
			whole = c.row("sets/odd", "should", c.needsNewKey(func() result { return c.oddSet(set) }))
		}
	}
	for _, set := range sets {
		if set.Accept == "new" && set.Fault != "odd" && whole.status != "ok" {
			c.row("sets/"+set.Fault, "should", func() result { return c.oddSet(set) })
		}
	}
	c.row("sets/no-alg-alg", "must", c.needsNewKey(c.algWithoutAlg))
	for _, set := range sets {
		if set.Accept == "known" {
			c.row("sets/"+set.Fault, "should", c.needsNewKey(func() result { return c.brokenSet(set) }))
		}
	}
}

// needsNewKey returns test, or a row that is skipped if the service reads no new keys.
func (c *serviceCheck) needsNewKey(test func() result) func() result {
	if !c.before.answer.accepted() {
		return func() result {
			return skipped("it needs a service that accepts a new key within %s, see new-key", seconds(c.wait))
		}
	}
	return test
}

// explainNewKey prints why the new key was not accepted, and with which flag the check could try
// the rows that are skipped because of that.
func (c *serviceCheck) explainNewKey() {
	t := c.before
	switch {
	case c.stopped(), t.answer.void != "", t.answer.accepted():
	case t.mixed:
		c.tap.comment("new-key: some tokens of the new key were accepted and others refused: the service may have several workers, each with a " +
			"copy of the JWK Set that it reads on its own; with a longer -check-wait the rows that are skipped below may be tried")
	case t.reads > 0:
		c.tap.comment("new-key: the service read the JWK Set after the new key was published, and still did not accept its tokens")
	case c.readsBefore > 0:
		c.tap.comment("new-key: the service read the JWK Set before the new key was published, and not again in the %s after that: it waits "+
			"between reads; with a longer -check-wait the rows that are skipped below can be tried, and the check takes up to %d times as long as that",
			seconds(c.wait), c.brokenSets+5)
	default:
		c.tap.comment("new-key: the service has not read the JWK Set since the check began: it reads it only when it starts, or at intervals; "+
			"if these follow the Cache-Control of the JWK Set (%s), a server with -publish-ahead 1m shortens them to 2 s",
			cmp.Or(c.server.cacheControl(c.ctx), "none"))
	}
}

// finish prints what follows the rows: the summary, or why the check could not go on. The error
// says how the check ended.
func (c *serviceCheck) finish(ctx context.Context) error {
	switch cause := context.Cause(c.ctx); {
	case ctx.Err() != nil:
		return errInterrupted
	case c.tap.err != nil:
		return c.tap.err
	case cause != nil:
		for _, line := range c.details {
			c.tap.comment("%s", line)
		}
		c.tap.bailOut(cause.Error())
		return errors.New("the check could not go on: its last line says why")
	}
	c.tap.finish(c.measurements())
	if failed := c.tap.failed(); len(failed) > 0 {
		return fmt.Errorf("the service at %s failed: %s", c.service.url, strings.Join(failed, ", "))
	}
	return nil
}

// measurements returns the lines of the summary about times.
func (c *serviceCheck) measurements() (lines []string) {
	if c.dropped != "" {
		lines = append(lines, c.dropped)
	}
	if c.before.answer.accepted() {
		lines = append(lines, fmt.Sprintf("a new key was accepted after %.1f s", c.before.after.Seconds()))
	}
	if c.after.answer.accepted() {
		lines = append(lines, fmt.Sprintf("after tokens of unknown keys, a new key was accepted after %.1f s", c.after.after.Seconds()))
	}
	if c.removed != "" {
		lines = append(lines, c.removed)
	}
	return lines
}
