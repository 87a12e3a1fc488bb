// Jwks-server makes RSA keys that live an hour, publishes their public halves as a
// JWK Set (RFC 7517) at /.well-known/jwks.json and issues RS256 JSON Web Tokens
// (RFC 7519) at /auth.
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
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// drain is how long a stopping server waits for the requests in flight.
const drain = 10 * time.Second

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(exitCode(run(ctx, os.Args[1:], os.Stderr)))
}

// exitCode prints why the server could not do its work, on one line, and returns
// what the process ends with.
func exitCode(err error) int {
	var usage usageError
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp), errors.Is(err, context.Canceled): // by a signal
		return 0
	case errors.As(err, &usage):
		fmt.Fprintf(os.Stderr, "jwks-server: %s; -h lists the flags\n", oneLine(err))
		return 2
	default:
		fmt.Fprintf(os.Stderr, "jwks-server: %s\n", oneLine(err))
		return 1
	}
}

// run serves until ctx ends, and then until the requests in flight are answered.
func run(ctx context.Context, args []string, stderr io.Writer) error {
	cfg, err := parseFlags(args, stderr)
	if err != nil {
		return err
	}
	log := log.New(stderr, "", log.LstdFlags|log.LUTC)
	var clients map[string]client
	if cfg.clients != "" {
		if clients, err = readClients(cfg.clients); err != nil {
			return err
		}
	}
	var secure *tls.Config
	if cfg.tlsCert != "" {
		certificate, err := tls.LoadX509KeyPair(cfg.tlsCert, cfg.tlsKey)
		if err != nil {
			return fmt.Errorf("cannot use -tls-cert %s with -tls-key %s: %w", cfg.tlsCert, cfg.tlsKey, err)
		}
		secure = &tls.Config{Certificates: []tls.Certificate{certificate}}
	}
	if cfg.dir == "" {
		log.Print("keys are in memory only: a restart loses them, and tokens with them")
	} else if dir, err := filepath.Abs(cfg.dir); err == nil {
		log.Printf("keys are in %s", dir)
	}
	keys, err := openKeystore(ctx, cfg, log)
	if err != nil {
		return err
	}
	pipe, err := keys.pollBetweenTurns()
	if err != nil {
		return err
	}
	defer pipe.Close()
	listener, err := net.Listen("tcp", cfg.addr)
	if err != nil {
		return fmt.Errorf("cannot listen on %s: %w; choose another address with -addr", cfg.addr, err)
	}
	base := baseURL(listener.Addr(), secure != nil)
	cfg.issuer = cmp.Or(cfg.issuer, base)
	server := newHTTPServer(newHandler(cfg, keys, clients, log), log)
	server.TLSConfig = secure
	log.Printf("listening on %s, issuer %s", listener.Addr(), cfg.issuer)
	log.Printf("JWK Set: %s/.well-known/jwks.json", base)
	log.Printf("tokens: curl -X POST %s/auth", base)
	if clients == nil && !listener.Addr().(*net.TCPAddr).IP.IsLoopback() {
		log.Printf("warning: whoever reaches %s can have tokens; ask for secrets with -clients or listen on 127.0.0.1 with -addr", listener.Addr())
	}

	kept, served := make(chan struct{}), make(chan error, 1)
	go func() {
		defer close(kept)
		keys.keep(ctx)
	}()
	go func() {
		if secure != nil {
			served <- server.ServeTLS(listener, "", "")
		} else {
			served <- server.Serve(listener)
		}
	}()
	select {
	case err := <-served:
		return fmt.Errorf("cannot serve: %w", err)
	case <-ctx.Done():
	}
	log.Printf("stopping: requests in flight have %s; another signal ends them at once", drain)
	draining, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
	defer cancel()
	if err := server.Shutdown(draining); err != nil {
		log.Printf("stopped with requests still in flight: %v", err)
	}
	select {
	case <-kept:
	case <-draining.Done():
	}
	return nil
}

// newHTTPServer bounds what a client may take of the server.
func newHTTPServer(h http.Handler, log *log.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      15 * time.Second,
		IdleTimeout:       60 * time.Second,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          log,
	}
}

// A config is what the flags say.
type config struct {
	addr, dir                      string
	bits                           int
	keyTTL, tokenTTL, publishAhead time.Duration
	issuer, audience               string
	clients, tlsCert, tlsKey       string // files
	verbose                        bool
}

// A usageError is a fault in the flags.
type usageError struct{ error }

func parseFlags(args []string, stderr io.Writer) (config, error) {
	var c config
	flags := flag.NewFlagSet("jwks-server", flag.ContinueOnError)
	flags.StringVar(&c.addr, "addr", "127.0.0.1:8080", "`host:port` to listen on; port 0 picks a free one")
	flags.StringVar(&c.dir, "keys", "keys", "`directory` of the private keys, to share with replicas; an empty name keeps keys in memory only")
	flags.DurationVar(&c.keyTTL, "key-ttl", time.Hour, "how long a key lives from when it may sign; shorter rotates faster")
	flags.IntVar(&c.bits, "key-bits", 2048, "size of new RSA keys: 2048, 3072 or 4096 `bits`; larger ones sign 3 to 7 times slower")
	flags.DurationVar(&c.tokenTTL, "token-ttl", 10*time.Minute, "how long a token lives; half of it is left for clocks that differ")
	flags.DurationVar(&c.publishAhead, "publish-ahead", 2*time.Hour, "how long a key is published before it signs: longer than any verifier caches the JWK Set")
	flags.StringVar(&c.issuer, "issuer", "", "`URL` in iss, where others reach this server; by default that of the address listened on")
	flags.StringVar(&c.audience, "audience", "", "`name` in aud, for verifiers that ask for one; by default there is no aud")
	flags.Func("clients", "JSON `file` of the clients that may have tokens; by default anybody may", file(&c.clients))
	flags.Func("tls-cert", "PEM `file` of the certificate and its chain, to serve HTTPS", file(&c.tlsCert))
	flags.Func("tls-key", "PEM `file` of the private key of the certificate", file(&c.tlsKey))
	flags.BoolVar(&c.verbose, "v", false, "log each request: method, path, status, duration")
	flags.SetOutput(io.Discard)
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprintln(stderr, "usage: jwks-server [flags]\n\nDurations are written as 90s, 10m or 1h30m.")
		flags.VisitAll(func(f *flag.Flag) {
			value, usage := flag.UnquoteUsage(f)
			if f.DefValue != "" && f.DefValue != "false" {
				usage += " (default " + f.DefValue + ")"
			}
			fmt.Fprintf(stderr, "  -%-23s %s\n", f.Name+" "+value, usage)
		})
		return c, err
	case err != nil:
		return c, usageError{err}
	}
	if flags.NArg() > 0 {
		return c, usageError{fmt.Errorf("%q is not a flag", flags.Arg(0))}
	}
	if err := c.check(); err != nil {
		return c, usageError{err}
	}
	return c, nil
}

// file sets a flag to the name of a file. The name is not empty: a variable that is not
// set must not leave the token endpoint open.
func file(name *string) func(string) error {
	return func(value string) error {
		*name = value
		if value == "" {
			return errors.New("it has to name a file")
		}
		return nil
	}
}

// check refuses what would hurt a verifier.
func (c config) check() error {
	signs := c.keyTTL - c.overlap()
	switch {
	case c.tokenTTL < time.Second:
		return fmt.Errorf("-token-ttl %s is too short: a token has to live for 1s at least", c.tokenTTL)
	case c.keyTTL/2 < c.tokenTTL:
		return fmt.Errorf("-key-ttl %s is too short: a key has to live for twice a token's -token-ttl %s at least", c.keyTTL, c.tokenTTL)
	case c.publishAhead < time.Second:
		return fmt.Errorf("-publish-ahead %s is too short: a key has to be known for 1s at least before it signs", c.publishAhead)
	case c.publishAhead/100 > signs:
		return fmt.Errorf("-publish-ahead %s is too long: a key signs for %s, and 100 of them are the most to be published", c.publishAhead, signs)
	case c.bits != 2048 && c.bits != 3072 && c.bits != 4096:
		return fmt.Errorf("-key-bits %d is not supported: use 2048, 3072 or 4096", c.bits)
	case (c.tlsCert == "") != (c.tlsKey == ""):
		return errors.New("-tls-cert and -tls-key need each other: give both or neither")
	}
	if c.issuer == "" {
		return nil
	}
	u, err := url.Parse(c.issuer)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil ||
		strings.ContainsAny(c.issuer, "?#") || strings.HasSuffix(c.issuer, "/") {
		return fmt.Errorf("-issuer %q is not an issuer: it has to be an http or https URL without user, query, fragment and slash at its end", c.issuer)
	}
	return nil
}

// baseURL is where a client on this machine reaches addr.
func baseURL(addr net.Addr, secure bool) string {
	host, port, _ := net.SplitHostPort(addr.String())
	if net.ParseIP(host).IsUnspecified() {
		host = "localhost"
	}
	if secure {
		return "https://" + net.JoinHostPort(host, port)
	}
	return "http://" + net.JoinHostPort(host, port)
}

// oneLine is err in one line, however many errors it joins.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }
