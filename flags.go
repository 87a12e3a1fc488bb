package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/url"
	"path"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// A config is the values of the flags.
type config struct {
	rotation
	addr, keys                    string
	bits                          int
	issuer, audience, typ         string
	claims                        map[string]json.RawMessage // of every token
	clients, tlsCert, tlsKey      string                     // files
	logJSON, verbose, healthcheck bool
	service                       string // URL to check
	checkWait                     time.Duration
}

// A usageError is an invalid flag. It exits with status 2.
type usageError struct{ error }

func (e usageError) Error() string { return e.error.Error() + "; -h lists the flags" }

// define adds the flags to a set. Parsing the set fills c.
func (c *config) define(flags *flag.FlagSet) {
	flags.StringVar(&c.addr, "addr", "localhost:8080",
		"`host:port` to listen on: a host name stands for all its addresses, port 0 for a free port")
	flags.StringVar(&c.keys, "keys", "keys", "`directory` of the private keys, shared by replicas; an empty name keeps keys in memory only")
	flags.DurationVar(&c.keyTTL, "key-ttl", time.Hour, "lifetime of a key, counted from when it may sign; a shorter one rotates keys faster")
	flags.IntVar(&c.bits, "key-bits", 2048, "size of new RSA keys: 2048, 3072 or 4096 `bits`; larger keys sign 3 to 7 times slower")
	flags.DurationVar(&c.tokenTTL, "token-ttl", 10*time.Minute,
		"lifetime of a token; keys outlive their tokens by another half, for clock skew")
	flags.DurationVar(&c.publishAhead, "publish-ahead", 2*time.Hour,
		"how long a key is published before it signs: choose more than the time for which verifiers cache the JWK Set")
	flags.StringVar(&c.issuer, "issuer", "",
		"`URL` in iss, at which others reach this server (default: the URL of each request, or with -clients the listen address)")
	flags.StringVar(&c.audience, "audience", "", "`name` in aud, for verifiers that require one (default: no aud)")
	flags.StringVar(&c.typ, "typ", "JWT", "`typ` of tokens: at+jwt makes access tokens of RFC 9068, with the claim client_id")
	flags.Func("claims",
		"JSON `object` of claims in every token, such as {\"roles\":[\"admin\"]}; the claims of a request replace them, and null omits one",
		func(value string) (err error) { c.claims, err = parseClaims(value); return err })
	flags.Func("clients", "JSON `file` of the clients that may get tokens (default: anyone may)", fileFlag(&c.clients))
	flags.Func("tls-cert", "PEM `file` of the certificate and its chain, to serve HTTPS", fileFlag(&c.tlsCert))
	flags.Func("tls-key", "PEM `file` of the private key of the certificate", fileFlag(&c.tlsKey))
	flags.BoolVar(&c.logJSON, "log-json", false, "log JSON instead of text")
	flags.BoolVar(&c.verbose, "v", false, "log each request: client address, method, path, status, duration")
	flags.BoolVar(&c.healthcheck, "healthcheck", false, "read the JWK Set of the server at -addr, exit with status 0 or 1, and serve nothing")
	flags.Func("check", "test the service at `URL` with good and bad tokens and JWK Sets, and print the results as TAP; "+
		"uses the server at -addr, and starts one if none runs there", serviceFlag(&c.service))
	flags.DurationVar(&c.checkWait, "check-wait", 10*time.Second, "how long -check waits for the service to read the JWK Set or to recover")
}

// parseFlags returns the configuration in args. It prints the flags to stderr if args ask
// for help.
//
// The error is flag.ErrHelp or a usageError.
func parseFlags(args []string, stderr io.Writer) (config, error) {
	var c config
	flags := flag.NewFlagSet("jwks-server", flag.ContinueOnError)
	c.define(flags)
	var defaults strings.Builder
	flags.SetOutput(&defaults)
	flags.PrintDefaults()
	flags.SetOutput(io.Discard)
	flags.VisitAll(func(f *flag.Flag) { f.Value = &onceValue{Value: f.Value} })
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprintf(stderr, "usage: jwks-server [flags]\n\nDurations are written as 90s, 10m or 1h30m.\n%s", &defaults)
		return c, err
	case err != nil:
		return c, usageError{err}
	case flags.NArg() > 0:
		return c, usageError{fmt.Errorf("%q is not a flag", flags.Arg(0))}
	}
	if err := c.validate(); err != nil {
		return c, usageError{err}
	}
	return c, nil
}

// A onceValue is the value of a flag that may be given once: of two values, one would
// silently have no effect.
type onceValue struct {
	flag.Value
	given bool
}

func (v *onceValue) Set(text string) error {
	if v.given {
		return errors.New("the flag is given twice")
	}
	v.given = true
	return v.Value.Set(text)
}

// IsBoolFlag reports whether the flag needs no value.
func (v *onceValue) IsBoolFlag() bool {
	b, ok := v.Value.(interface{ IsBoolFlag() bool })
	return ok && b.IsBoolFlag()
}

// logsJSON reports whether -log-json is among args, even if other flags are invalid.
func logsJSON(args []string) bool {
	for _, arg := range args {
		name, value, ok := strings.Cut(strings.TrimPrefix(arg, "-"), "=")
		if strings.HasPrefix(arg, "-") && strings.TrimPrefix(name, "-") == "log-json" {
			on, err := strconv.ParseBool(value)
			return on || !ok || err != nil
		}
	}
	return false
}

// fileFlag returns a flag setter for a file name. It rejects the empty string, because
// -clients "$UNSET" must not leave the token endpoint open.
func fileFlag(name *string) func(string) error {
	return func(value string) error {
		*name = value
		if value == "" {
			return errors.New("a file name is required")
		}
		return nil
	}
}

// typFormat matches a media type without its application/ (RFC 6838 section 4.2). It begins with
// a letter, because the fault header changes the case of typ.
var typFormat = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9!#$&^_.+-]{0,126}$`)

// parseClaims parses the value of -claims.
func parseClaims(value string) (map[string]json.RawMessage, error) {
	claims, err := parseObject([]byte(value))
	if err == nil {
		err = checkMembers(json.NewDecoder(strings.NewReader(value)))
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("it has to be one JSON object: %w", err)
	case claims["exp"] != nil:
		return nil, errors.New("exp cannot be the same in all tokens: set their lifetime with -token-ttl")
	}
	return claims, nil
}

// serviceFlag returns a flag setter for the URL of a service. It rejects the empty string,
// because -check "$UNSET" must not start a server instead.
func serviceFlag(service *string) func(string) error {
	return func(value string) error {
		*service = value
		u, err := url.Parse(value)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil {
			return errors.New("use the http or https URL, without a user, of a resource that needs a token")
		}
		return nil
	}
}

// validate returns an error if the flags are invalid or would break verifiers.
func (c config) validate() error {
	switch {
	case c.addr == "":
		return errors.New("-addr is empty, which would listen on all addresses: use host:port, or :port for all addresses")
	case (c.tlsCert == "") != (c.tlsKey == ""):
		return errors.New("-tls-cert and -tls-key need each other: give both or neither")
	case c.claims != nil && c.clients != "":
		return errors.New("-claims has no effect with -clients: register the claims of each client in the clients file")
	case !typFormat.MatchString(c.typ):
		return fmt.Errorf("-typ %q is not a typ: use JWT, or a media type without application/, such as at+jwt", c.typ)
	case !utf8.ValidString(c.issuer) || !utf8.ValidString(c.audience):
		return errors.New("-issuer and -audience have to be UTF-8, because they are in tokens")
	case c.service != "" && c.healthcheck:
		return errors.New("-check and -healthcheck exclude each other: give one of them")
	case c.service != "" && c.clients != "":
		return errors.New("-check needs bad tokens, which a server with -clients does not issue: leave out -clients")
	case c.checkWait <= 0:
		return fmt.Errorf("-check-wait %s is too short: use a positive duration", c.checkWait)
	}
	if err := c.validateLifetimes(); err != nil {
		return err
	}
	return cmp.Or(c.validateSet(), validateIssuer(c.issuer))
}

// longest is the maximum of lifetimes: ten years.
const longest = 10 * 365 * 24 * time.Hour

// generationTime is how long it may take to generate a key of so many bits.
var generationTime = map[int]time.Duration{2048: 0, 3072: 2 * time.Second, 4096: 5 * time.Second}

func (c config) validateLifetimes() error {
	_, supported := generationTime[c.bits]
	switch {
	case c.tokenTTL < time.Second:
		return fmt.Errorf("-token-ttl %s is too short: use 1s or more", c.tokenTTL)
	case c.keyTTL/2 < c.tokenTTL:
		return fmt.Errorf("-key-ttl %s is too short: use at least twice the -token-ttl, which is %s", c.keyTTL, c.tokenTTL)
	case c.keyTTL > longest:
		return fmt.Errorf("-key-ttl %s is too long: use %s, ten years, or less", c.keyTTL, longest)
	case c.publishAhead < time.Second:
		return fmt.Errorf("-publish-ahead %s is too short: use 1s or more", c.publishAhead)
	case c.publishAhead > longest:
		return fmt.Errorf("-publish-ahead %s is too long: use %s, ten years, or less", c.publishAhead, longest)
	case !supported:
		return fmt.Errorf("-key-bits %d is not supported: use 2048, 3072 or 4096", c.bits)
	}
	if signing, generation := c.keyTTL-c.overlap(), generationTime[c.bits]; signing < generation {
		return fmt.Errorf("-key-ttl %s is too short for -key-bits %d: a key would sign for %s, and generating one takes up to %s",
			c.keyTTL, c.bits, signing, generation)
	}
	return nil
}

const (
	maxSet  = 50_000 // bytes of a JWK Set: Nimbus, and therefore Spring, reads 51,200
	jwkSize = 130    // bytes of a JWK without its n, rounded up
)

// validateSet returns an error if the JWK Set would be too large. The lifetimes must be valid.
func (c config) validateSet() error {
	keys := int64((c.queueLength()+c.keyTTL)/(c.keyTTL-c.overlap())) + 1
	if size := keys * int64(jwkSize+(c.bits+5)/6); size > maxSet {
		return fmt.Errorf("-publish-ahead %s is too long: the JWK Set would have %d keys of %d bits in %d bytes, "+
			"and some verifiers read only %d; raise -key-ttl, or lower -publish-ahead", c.publishAhead, keys, c.bits, size, maxSet)
	}
	return nil
}

// changeable matches characters of a path that clients write in another way: a backslash, and
// escapes of characters that need none (RFC 3986 section 6.2.2.2).
var changeable = regexp.MustCompile(`(?i)\\|%(2[de]|3[0-9]|[46][1-9a-f]|[57][0-9a]|5f|7e)`)

// validateIssuer returns an error if issuer is neither empty nor the URL of an issuer (OpenID
// Connect Discovery 1.0 section 3), or if its path is one that clients would normalize.
func validateIssuer(issuer string) error {
	u, err := url.Parse(cmp.Or(issuer, "http://localhost"))
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || strings.ContainsAny(issuer, "?#") {
		return fmt.Errorf("-issuer %q is not an issuer: use an http or https URL without user, query and fragment", issuer)
	}
	base := strings.TrimSuffix(u.EscapedPath(), "/")
	if base == "/" || base != "" && path.Clean(base) != base || changeable.MatchString(issuer) {
		return fmt.Errorf("-issuer %q has a path that clients would change: "+
			"leave out ., .., empty segments, backslashes, and escapes of letters, digits and -._~", issuer)
	}
	return nil
}
