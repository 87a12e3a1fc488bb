// Jwks-server makes RSA keys that live an hour, publishes their public halves as a
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
	"strconv"
	"strings"
	"syscall"
	"time"
)

const drain = 10 * time.Second // how long a stopping server waits for the requests in flight

func main() {
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // as under nohup
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

// exitStatus returns the exit status for the error of run. It writes the error to stderr,
// in one line of text or JSON, unless the end is a clean one.
func exitStatus(err error, stderr io.Writer, asJSON bool) int {
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp), errors.Is(err, context.Canceled): // canceled by a signal
		return 0
	case asJSON:
		newLogger(stderr, true).Error("jwks-server failed", "error", oneLine(err))
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
		return c.checkHealth()
	}
	if c.service != "" {
		return runCheck(ctx, c, stdout, stderr, serve)
	}
	return serve(ctx, c, stderr, func(base string) { fmt.Fprintln(stdout, base) })
}

// serve serves until ctx is canceled, then drains in-flight requests. It calls ready with
// the base URL once it serves, and logs to stderr.
func serve(ctx context.Context, c config, stderr io.Writer, ready func(base string)) error {
	clients, secure, err := c.readFiles()
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", c.addr)
	if err != nil {
		return fmt.Errorf("cannot %w; choose another address with -addr", err)
	}
	defer listener.Close()
	logger := newLogger(stderr, c.logJSON)
	keys, err := await(ctx, func() (*keystore, error) {
		return openKeystore(ctx, keyDir(c.keys), c.rotation, c.bits, logger)
	})
	if err != nil {
		return err
	}
	addr := listener.Addr().(*net.TCPAddr)
	base := baseURL(c.addr, addr, secure != nil)
	s := newServer(c, base, keys, clients, logger)
	server := newHTTPServer(s.routes(), logger)
	if secure != nil {
		listener = tls.NewListener(listener, secure)
	}
	announce(logger, c, s.issuer, base, addr.IP.IsLoopback())
	ready(base)

	go keys.maintain(ctx)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err := <-served:
		return fmt.Errorf("cannot serve: %w", err)
	case <-ctx.Done():
	}
	logger.Info("stopping: another signal ends the requests in flight", "requests_have", drain)
	draining, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
	defer cancel()
	if err := server.Shutdown(draining); err != nil {
		logger.Warn("stopped with requests in flight", "error", err)
	}
	return nil
}

// readFiles reads the files that flags name; nil for those that are not given.
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

// announce logs what a person wants to know first, and warns of what is dangerous.
func announce(logger *slog.Logger, c config, issuer, base string, loopback bool) {
	logger.Info("serving", "issuer", cmp.Or(issuer, "the URL of each request"), "jwks", base+"/.well-known/jwks.json", "tokens", base+"/auth", "keys", c.keys)
	if c.keys == "" {
		logger.Warn("keys are in memory only: a restart loses them, and the tokens that they signed")
	}
	switch {
	case loopback:
	case c.clients == "":
		logger.Warn("whoever reaches this address can have any token: ask for secrets with -clients, or listen on 127.0.0.1", "addr", c.addr)
	case c.tlsCert == "":
		logger.Warn("secrets and tokens cross the network unencrypted: use -tls-cert and -tls-key, or a proxy with TLS in front", "addr", c.addr)
	}
}

// newHTTPServer returns a server with timeouts and size limits. An idle connection stays
// longer than any load balancer keeps its side, so that the server never closes one that
// is in use.
func newHTTPServer(h http.Handler, logger *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      15 * time.Second,
		IdleTimeout:       620 * time.Second,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          log.New(&serverLog{log: logger}, "", 0),
		ConnState:         newConnectionLimit(maxConnections(), logger).track,
	}
}

// baseURL returns where a client on this machine reaches the server: a name if one was
// listened on, localhost for all addresses, the address without its zone otherwise.
func baseURL(listened string, addr *net.TCPAddr, secure bool) string {
	host, _, _ := net.SplitHostPort(listened)
	if addr.IP.IsUnspecified() {
		host = "localhost"
	} else if net.ParseIP(host) != nil || host == "" || strings.Contains(host, "%") {
		host = addr.IP.String()
	}
	return schemes[secure] + "://" + net.JoinHostPort(host, strconv.Itoa(addr.Port))
}

// checkHealth asks the server that listens on -addr for its JWK Set. It trusts any
// certificate, because it asks itself, and uses no proxy.
func (c config) checkHealth() error {
	client := &http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	url := schemes[c.tlsCert != ""] + "://" + c.addr + "/.well-known/jwks.json" // Dial asks 127.0.0.1 for :8080
	response, err := client.Get(url)
	if err != nil {
		return fmt.Errorf("the server does not answer: %w", err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("the server is not healthy: GET %s answers %s", url, response.Status)
	}
	return nil
}
