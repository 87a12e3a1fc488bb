// Jwks-server makes and rotates RSA keys, publishes their public halves as a
// JWK Set (RFC 7517) at /.well-known/jwks.json and issues RS256 JSON Web Tokens
// (RFC 7519) at /auth: good ones, and bad ones of every kind that a verifier must refuse.
package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	shutdownTimeout = 10 * time.Second // how long shutdown waits for in-flight requests
	writeTimeout    = 15 * time.Second // for a response, and for progress of a write in HTTP/2
)

func main() {
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // as it is under nohup
		signals = append(signals, syscall.SIGHUP)
	}
	signal.Ignore(syscall.SIGPIPE) // the reader of the log may go away
	ctx, stop := signal.NotifyContext(context.Background(), signals...)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	args := os.Args[1:]
	stderr := newLogWriter(os.Stderr, logsJSON(args))
	status := exitStatus(run(ctx, args, os.Stdout, stderr), stderr, logsJSON(args))
	stderr.flush()
	os.Exit(status)
}

// exitStatus returns the exit status for the error of run. It writes the error to stderr
// as one line of text or JSON, unless it is that of a help text or a signal.
func exitStatus(err error, stderr io.Writer, asJSON bool) int {
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp), errors.Is(err, context.Canceled):
		return 0
	case asJSON:
		newLogger(stderr, true, slog.LevelError).Error("jwks-server failed", "error", oneLine(err))
	default:
		fmt.Fprintf(stderr, "jwks-server: %s\n", oneLine(err))
	}
	if errors.As(err, new(usageError)) {
		return 2
	}
	return 1
}

// run serves, and prints the base URL on stdout once it does. With -healthcheck it only
// checks a running server, and with -check it only checks a service.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	c, err := parseFlags(args, stderr)
	if err != nil {
		return err
	}
	if c.healthcheck {
		return c.checkHealth(ctx)
	}
	if c.service != "" {
		return runCheck(ctx, c, stdout, stderr, serve)
	}
	return serve(ctx, c, stderr, func(base string) { fmt.Fprintln(stdout, base) })
}

// serve serves until ctx is canceled, then drains in-flight requests. It calls ready with
// the base URL once it serves, and logs to stderr; during a check only warnings and errors.
// It listens before it opens the keys, so that a start on a busy port leaves nothing behind.
func serve(ctx context.Context, c config, stderr io.Writer, ready func(base string)) error {
	clients, secure, err := c.readFiles()
	if err != nil {
		return err
	}
	listeners, err := listen(ctx, net.ListenConfig{}, c.addr)
	if err != nil {
		return fmt.Errorf("cannot listen on %s: %w; choose another address with -addr", c.addr, err)
	}
	defer closeAll(listeners)
	lowest := slog.LevelInfo
	if c.service != "" {
		lowest = slog.LevelWarn // because a terminal shows the log between the rows of the check
	}
	logger := newLogger(stderr, c.logJSON, lowest)
	store, err := await(ctx, func() (*keystore, error) {
		return openKeystore(ctx, keyDir(c.keys), c.rotation, c.bits, logger)
	})
	if err != nil {
		return err
	}
	base := baseURL(c.addr, listeners[0].Addr().(*net.TCPAddr), secure != nil)
	s := newServer(c, base, store, clients, logger)
	server := newHTTPServer(s.routes(), logger)
	c.announce(logger, s.issuer, base, listeners)
	go store.maintain(ctx)
	served := make(chan error, len(listeners))
	for _, listener := range listeners {
		if secure != nil {
			listener = tls.NewListener(listener, secure)
		}
		go func() { served <- server.Serve(listener) }()
	}
	await(ctx, func() (struct{}, error) { // the reader of stdout may stall
		ready(base)
		return struct{}{}, nil
	})
	select {
	case err := <-served:
		return fmt.Errorf("cannot serve: %w", err)
	case <-ctx.Done():
		shutDown(ctx, server, logger)
		return nil
	}
}

// shutDown drains in-flight requests, although ctx is canceled.
func shutDown(ctx context.Context, server *http.Server, logger *slog.Logger) {
	logger.Info("shutting down; a second signal aborts in-flight requests", "timeout", shutdownTimeout)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil {
		logger.Warn("aborted in-flight requests", "error", err)
	}
}

// readFiles loads the clients file and the TLS certificate. Each result is nil if its flag
// is not set.
func (c config) readFiles() (clients registry, secure *tls.Config, err error) {
	if c.clients != "" {
		if clients, err = readClients(c.clients); err != nil {
			return nil, nil, err
		}
	}
	if c.tlsCert != "" {
		certificate, err := tls.LoadX509KeyPair(c.tlsCert, c.tlsKey)
		if err != nil {
			return nil, nil, fmt.Errorf("cannot use -tls-cert %s with -tls-key %s: %w", c.tlsCert, c.tlsKey, err)
		}
		secure = &tls.Config{Certificates: []tls.Certificate{certificate}, NextProtos: []string{"h2", "http/1.1"}}
	}
	return clients, secure, nil
}

// announce logs the URLs of the server, and warns about insecure configurations.
func (c config) announce(logger *slog.Logger, issuer, base string, listeners []net.Listener) {
	logger.Info("serving", "issuer", cmp.Or(issuer, "the URL of each request"),
		"jwks", base+"/.well-known/jwks.json", "tokens", base+"/auth", "keys", c.keys)
	if c.keys == "" && c.service == "" {
		logger.Warn("keys are in memory only: a restart loses them, and invalidates the tokens that they signed")
	}
	remote := func(l net.Listener) bool { return !l.Addr().(*net.TCPAddr).IP.IsLoopback() }
	switch {
	case !slices.ContainsFunc(listeners, remote):
	case c.clients == "":
		logger.Warn("anyone who can reach this address can get any token: "+
			"require client secrets with -clients, or listen on localhost", "addr", c.addr)
	case c.tlsCert == "":
		logger.Warn("secrets and tokens cross the network unencrypted: use -tls-cert and -tls-key, or a proxy with TLS in front", "addr", c.addr)
	}
}

// newHTTPServer returns a server with timeouts and size limits. The idle timeout exceeds
// that of common load balancers, so that the server never closes a connection that a load
// balancer is about to reuse.
//
// In HTTP/2, WriteTimeout ends a response, but not a write to a connection that the client
// does not read. Such connections would stay in use, and could reach the connection limit.
func newHTTPServer(h http.Handler, logger *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       620 * time.Second,
		MaxHeaderBytes:    16 << 10,
		HTTP2:             &http.HTTP2Config{WriteByteTimeout: writeTimeout},
		ErrorLog:          log.New(&serverLog{log: logger}, "", 0),
		ConnState:         newConnectionLimit(maxConnections(), logger).track,
	}
}

// baseURL returns the URL for clients on this machine. Its host is the name given in
// -addr, localhost if the server listens on all addresses, and otherwise the IP address
// without a zone.
func baseURL(listened string, addr *net.TCPAddr, secure bool) string {
	host, _, _ := net.SplitHostPort(listened)
	if addr.IP.IsUnspecified() {
		host = "localhost"
	} else if net.ParseIP(host) != nil || host == "" || strings.Contains(host, "%") {
		host = addr.IP.String()
	}
	return schemes[secure] + "://" + net.JoinHostPort(host, strconv.Itoa(addr.Port))
}

// checkHealth returns an error unless the server at -addr responds with its JWK Set. It
// accepts any certificate, because it talks to itself, and ignores proxies.
//
// It sends HEAD, because GET would be counted as a read of the JWK Set, and -check would take it
// for one by the service.
func (c config) checkHealth(ctx context.Context) error {
	client := &http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, c.addr) // it knows named ports, and :8080 is this machine
		},
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodHead, schemes[c.tlsCert != ""]+"://localhost/.well-known/jwks.json", nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	switch {
	case ctx.Err() != nil:
		return errors.New("interrupted before the server answered")
	case err != nil:
		return fmt.Errorf("the server at %s does not answer: %w", c.addr, errors.Unwrap(err)) // without the URL
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("the server at %s is not healthy: %s answers %s", c.addr, request.URL.Path, response.Status)
	}
	return nil
}
