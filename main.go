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
	"math"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	drain   = 10 * time.Second // how long a stopping server waits for the requests in flight
	slowDir = 10 * time.Second // the log tells of a directory that takes longer than this
)

func main() {
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // as under nohup
		signals = append(signals, syscall.SIGHUP)
	}
	signal.Ignore(syscall.SIGPIPE) // the reader of the log may go away
	ctx, stop := signal.NotifyContext(context.Background(), signals...)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(exitStatus(run(ctx, os.Args[1:], os.Stdout, os.Stderr), os.Stderr))
}

// exitStatus prints err unless it is a clean stop, and returns the exit status.
func exitStatus(err error, stderr io.Writer) int {
	if err == nil || errors.Is(err, flag.ErrHelp) || errors.Is(err, context.Canceled) { // by a signal
		return 0
	}
	fmt.Fprintf(stderr, "jwks-server: %s\n", oneLine(err))
	if errors.As(err, new(usageError)) {
		return 2
	}
	return 1
}

// run serves until ctx ends, and then until the requests in flight are answered. It
// prints the base URL on stdout when it serves, and logs to stderr. With -healthcheck it
// asks a server that runs, and does nothing else.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	c, err := parseFlags(args, stderr)
	if err != nil {
		return err
	}
	if c.healthcheck {
		return c.checkHealth()
	}
	clients, secure, err := c.readFiles()
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", c.addr)
	if err != nil {
		return fmt.Errorf("cannot %w; choose another address with -addr", err)
	}
	defer listener.Close()
	logger := slog.New(slog.NewTextHandler(stderr, nil))
	if c.logJSON {
		logger = slog.New(slog.NewJSONHandler(stderr, nil))
	}
	var keys *keystore
	if err := await(ctx, func() (err error) {
		keys, err = openKeystore(ctx, keyDir(c.keys), c.rotation, c.bits, logger)
		return err
	}); err != nil {
		return err
	}
	addr := listener.Addr().(*net.TCPAddr)
	base := baseURL(c.addr, addr, secure != nil)
	s := &server{
		issuer: cmp.Or(c.issuer, base), audience: c.audience,
		keys: keys, clients: clients, verbose: c.verbose, log: logger,
	}
	if clients == nil && addr.IP.IsLoopback() {
		name, _, _ := net.SplitHostPort(c.addr)
		s.hosts = []string{"localhost", name}
	}
	server := newHTTPServer(s.routes(), logger)
	if secure != nil {
		listener = tls.NewListener(listener, secure)
	}
	announce(logger, c, s.issuer, base, addr.IP.IsLoopback())
	fmt.Fprintln(stdout, base)

	go maintain(ctx, keys)
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
func (c config) readFiles() (clients map[string]client, secure *tls.Config, err error) {
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
	logger.Info("serving", "issuer", issuer, "jwks", base+"/.well-known/jwks.json", "tokens", base+"/auth", "keys", c.keys)
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

// maintain keeps the queue of keys full and follows the directory until ctx ends.
func maintain(ctx context.Context, s *keystore) {
	signs, warned := "", map[string]bool{} // a kid, and names
	var disk, files trouble
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		growing, cancel := context.WithTimeout(ctx, slowDir)
		err := s.grow(growing, s.ahead())
		cancel()
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("not done after %s: the keys directory %s does not answer, or many keys have to be made", slowDir, s.dir)
		}
		now := clock()
		keys, faults := s.state()
		if k, ok := s.signer(keys, now); ok && k.kid != signs {
			s.log.Info("now signing", s.describe(k)...)
			signs = k.kid
		}
		for _, k := range keys {
			if s.far(k, now) && !warned[k.name()] {
				warned[k.name()] = true
				s.log.Warn("key expires too late to sign yet, because it was made with other flags or under a wrong clock; "+
					"rename its file to end in .revoked if none of its tokens is in use", s.describe(k)...)
			}
		}
		outlook := "no key can sign"
		if end := s.end(keys, now); end.After(now) {
			outlook = "the keys in hand sign until " + end.Format(time.RFC3339)
		}
		disk.report(s.log, "cannot maintain the keys", err, outlook)
		files.report(s.log, "cannot use a key file", faults, outlook)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// A trouble that lasts is logged once a minute, and then that it is over.
type trouble struct {
	lasts bool
	told  time.Time // when the log last told of it
}

func (t *trouble) report(log *slog.Logger, message string, err error, outlook string) {
	switch {
	case err != nil && time.Since(t.told) >= logInterval:
		log.Error(message, "error", oneLine(err), "outlook", outlook)
		t.lasts, t.told = true, time.Now()
	case err == nil && t.lasts:
		log.Info("recovered: "+message, "outlook", outlook)
		t.lasts = false
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
		ConnState:         bound(),
	}
}

// bound returns what closes a new connection if there are too many. It leaves a hundred of
// the files that the process may open, because connections must not keep keys from being stored.
func bound() func(net.Conn, http.ConnState) {
	limits, _ := os.ReadFile("/proc/self/limits") // elsewhere there is no bound
	_, line, _ := strings.Cut(string(limits), "Max open files")
	files := int64(math.MaxInt64)
	fmt.Sscan(line, &files)
	var open atomic.Int64
	return func(c net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			if open.Add(1) > max(files-100, 1) {
				c.Close()
			}
		case http.StateClosed:
			open.Add(-1)
		}
	}
}

// A serverLog takes the lines that an http.Server writes about connections. It passes on
// one line a minute about TLS handshakes, because anybody may fail them.
type serverLog struct {
	log        *slog.Logger
	handshakes throttle
}

func (l *serverLog) Write(line []byte) (int, error) {
	text := strings.TrimSpace(string(line))
	if !strings.Contains(text, "TLS handshake error") {
		l.log.Error("connection failed", "error", text)
	} else if n := l.handshakes.add(); n > 0 {
		l.log.Warn("TLS handshake failed", "error", text, "failures", n)
	}
	return len(line), nil
}

// A config is what the flags say.
type config struct {
	rotation
	addr, keys                    string
	bits                          int
	issuer, audience              string
	clients, tlsCert, tlsKey      string // files
	logJSON, verbose, healthcheck bool
}

// A usageError is a fault in the flags.
type usageError struct{ error }

func (e usageError) Error() string { return e.error.Error() + "; -h lists the flags" }

func parseFlags(args []string, stderr io.Writer) (config, error) {
	var c config
	flags := flag.NewFlagSet("jwks-server", flag.ContinueOnError)
	flags.StringVar(&c.addr, "addr", "127.0.0.1:8080", "`host:port` to listen on; port 0 picks a free one")
	flags.StringVar(&c.keys, "keys", "keys", "`directory` of the private keys, to share with replicas; an empty name keeps keys in memory only")
	flags.DurationVar(&c.keyTTL, "key-ttl", time.Hour, "how long a key lives from when it may sign; shorter rotates faster")
	flags.IntVar(&c.bits, "key-bits", 2048, "size of new RSA keys: 2048, 3072 or 4096 `bits`; larger ones sign 3 to 7 times slower")
	flags.DurationVar(&c.tokenTTL, "token-ttl", 10*time.Minute, "how long a token lives; half of it is left for clocks that differ")
	flags.DurationVar(&c.publishAhead, "publish-ahead", 2*time.Hour, "how long a key is published before it signs: longer than any verifier caches the JWK Set")
	flags.StringVar(&c.issuer, "issuer", "", "`URL` in iss, where others reach this server; by default that of the address listened on")
	flags.StringVar(&c.audience, "audience", "", "`name` in aud, for verifiers that ask for one; by default there is no aud")
	flags.Func("clients", "JSON `file` of the clients that may have tokens; by default anybody may", file(&c.clients))
	flags.Func("tls-cert", "PEM `file` of the certificate and its chain, to serve HTTPS", file(&c.tlsCert))
	flags.Func("tls-key", "PEM `file` of the private key of the certificate", file(&c.tlsKey))
	flags.BoolVar(&c.logJSON, "log-json", false, "log JSON in place of text")
	flags.BoolVar(&c.verbose, "v", false, "log each request: method, path, status, duration")
	flags.BoolVar(&c.healthcheck, "healthcheck", false, "ask the server at -addr for its JWK Set, exit with status 0 or 1, and serve nothing")
	flags.SetOutput(io.Discard)
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprintln(stderr, "usage: jwks-server [flags]\n\nDurations are written as 90s, 10m or 1h30m.")
		flags.SetOutput(stderr)
		flags.PrintDefaults()
		return c, err
	case err != nil:
		return c, usageError{err}
	case flags.NArg() > 0:
		return c, usageError{fmt.Errorf("%q is not a flag", flags.Arg(0))}
	}
	if err := c.check(); err != nil {
		return c, usageError{err}
	}
	return c, nil
}

// file sets a flag to the name of a file. An empty name is an error, because a variable
// that is not set must not leave the token endpoint open.
func file(name *string) func(string) error {
	return func(value string) error {
		*name = value
		if value == "" {
			return errors.New("it has to name a file")
		}
		return nil
	}
}

const (
	longest = 10 * 365 * 24 * time.Hour
	maxSet  = 50_000 // bytes of a JWK Set: Nimbus, and so Spring, reads 51,200
	jwkSize = 130    // bytes of a JWK without its n, rounded up
)

// check refuses what would hurt a verifier.
func (c config) check() error {
	signs := c.keyTTL - c.overlap()
	switch {
	case c.addr == "":
		return errors.New("-addr has to be host:port, because an empty one would listen on all addresses")
	case c.tokenTTL < time.Second:
		return fmt.Errorf("-token-ttl %s is too short: a token has to live for 1s at least", c.tokenTTL)
	case c.keyTTL/2 < c.tokenTTL:
		return fmt.Errorf("-key-ttl %s is too short: a key has to live for twice a token's -token-ttl %s at least", c.keyTTL, c.tokenTTL)
	case max(c.keyTTL, c.publishAhead) > longest:
		return fmt.Errorf("-key-ttl %s or -publish-ahead %s is too long: use %s, ten years, at most", c.keyTTL, c.publishAhead, longest)
	case c.publishAhead < time.Second:
		return fmt.Errorf("-publish-ahead %s is too short: a key has to be known for 1s at least before it signs", c.publishAhead)
	case c.bits != 2048 && c.bits != 3072 && c.bits != 4096:
		return fmt.Errorf("-key-bits %d is not supported: use 2048, 3072 or 4096", c.bits)
	case signs < generation[c.bits]:
		return fmt.Errorf("-key-ttl %s is too short for -key-bits %d: a key would sign for %s, and making one takes up to %s", c.keyTTL, c.bits, signs, generation[c.bits])
	case (c.tlsCert == "") != (c.tlsKey == ""):
		return errors.New("-tls-cert and -tls-key need each other: give both or neither")
	}
	keys := int64((c.ahead()+c.keyTTL)/signs) + 1
	if size := keys * int64(jwkSize+(c.bits+5)/6); size > maxSet {
		return fmt.Errorf("-publish-ahead %s is too long: it publishes %d keys of %d bits at once, in %d bytes, and some verifiers read %d at most; make -key-ttl longer", c.publishAhead, keys, c.bits, size, maxSet)
	}
	u, err := url.Parse(cmp.Or(c.issuer, "http://localhost"))
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil ||
		strings.ContainsAny(c.issuer, "?#") || strings.HasSuffix(c.issuer, "/") {
		return fmt.Errorf("-issuer %q is not an issuer: it has to be an http or https URL without user, query, fragment and slash at its end", c.issuer)
	}
	return nil
}

// generation is how long it may take to make a key of so many bits.
var generation = map[int]time.Duration{2048: 0, 3072: 2 * time.Second, 4096: 5 * time.Second}

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

var schemes = map[bool]string{false: "http", true: "https"}

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
