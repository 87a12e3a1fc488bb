package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"
)

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
