package main

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// A fault is what is wrong with a token. Everything else is as in a good one.
type fault struct {
	Name   string `json:"fault"`
	Refuse string `json:"refuse"` // must, should or may a verifier refuse it?
	Why    string `json:"why"`
	See    string `json:"see"`

	expired bool            // exp was an hour ago
	without string          // the claim that is left out
	key     bool            // it needs the untrusted key
	apply   func(*badToken) // what else is done to the token; may be nil
}

// faults is the catalogue.
var faults = []fault{
	{Name: "signature", Refuse: "must", Why: "one bit of the signature is flipped", See: "RFC 7515 section 5.2",
		apply: func(d *badToken) { d.tamper = flipBit }},
	{Name: "payload", Refuse: "must", Why: "sub was changed after signing", See: "RFC 7515 section 5.2",
		apply: func(d *badToken) { d.tamper = d.changeSubject }},
	{Name: "unsigned", Refuse: "must", Why: "the signature is empty, and alg still says RS256", See: "RFC 7515 section 5.2",
		apply: func(d *badToken) { d.tamper = func(parts []string) { parts[2] = "" } }},
	{Name: "none", Refuse: "must", Why: "alg is none, and the signature is empty", See: "RFC 8725 section 3.1",
		apply: func(d *badToken) { d.signWith(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType) }},
	{Name: "wrong-key", Refuse: "must", Why: "kid names a key of the JWK Set, and another key signed", See: "RFC 7515 section 5.2",
		key: true, apply: func(d *badToken) { d.signer = d.untrusted.private }},
	{Name: "unknown-key", Refuse: "must", Why: "the key that signed, and that kid names, is not in the JWK Set", See: "RFC 7515 section 4.1.4",
		key: true, apply: func(d *badToken) { d.signer, d.header["kid"] = d.untrusted.private, d.untrusted.kid }},
	{Name: "hs256", Refuse: "must", Why: "alg is HS256, and the secret is the public key in PEM", See: "RFC 8725 section 2.1",
		apply: func(d *badToken) { d.signWith(jwt.SigningMethodHS256, publicPEM(d.key)) }},
	{Name: "jwk", Refuse: "must", Why: "another key signed, and the header brings it as jwk", See: "RFC 8725 section 3.10",
		key: true, apply: func(d *badToken) { d.signer, d.header["jwk"] = d.untrusted.private, d.untrusted.jwk() }},
	{Name: "jku", Refuse: "must", Why: "another key signed, and the header says by jku where to fetch it", See: "RFC 8725 section 3.10",
		key: true, apply: func(d *badToken) {
			d.signer, d.header["kid"] = d.untrusted.private, d.untrusted.kid
			d.header["jku"] = strings.TrimSuffix(d.issuer, "/") + "/faults/jwks.json"
		}},
	{Name: "x5c", Refuse: "must", Why: "another key signed, and the header brings its self-signed certificate as x5c", See: "RFC 7515 section 4.1.6",
		key: true, apply: func(d *badToken) { d.signer, d.header["x5c"] = d.untrusted.private, []string{d.untrusted.certificate} }},
	{Name: "crit", Refuse: "must", Why: "crit names an extension that no verifier knows", See: "RFC 7515 section 4.1.11",
		apply: func(d *badToken) { d.header["crit"], d.header[undefined] = []string{undefined}, true }},
	{Name: "expired", Refuse: "must", Why: "exp was an hour ago", See: "RFC 7519 section 4.1.4", expired: true},
	{Name: "not-yet", Refuse: "must", Why: "nbf is in an hour", See: "RFC 7519 section 4.1.5",
		apply: func(d *badToken) { d.claims["nbf"] = d.now.Add(time.Hour).Unix() }},
	{Name: "issuer", Refuse: "must", Why: "iss is another issuer", See: "RFC 8725 section 3.8",
		apply: func(d *badToken) { d.claims["iss"] = "https://another-issuer.invalid" }},
	{Name: "audience", Refuse: "must", Why: "aud is another audience", See: "RFC 7519 section 4.1.3",
		apply: func(d *badToken) { d.claims["aud"] = "https://another-audience.invalid" }},
	{Name: "alg", Refuse: "should", Why: "alg is RS512, and the JWK says RS256", See: "RFC 8725 section 3.1",
		apply: func(d *badToken) { d.signWith(jwt.SigningMethodRS512, d.signer) }},
	{Name: "type", Refuse: "should", Why: "typ is that of another kind of JWT, a security event", See: "RFC 8725 section 3.11",
		apply: func(d *badToken) { d.header["typ"] = "secevent+jwt" }},
	{Name: "no-expiry", Refuse: "should", Why: "exp is missing, so the token is good for as long as its key is published", See: "RFC 9068 section 2.2", without: "exp"},
	{Name: "expiry-text", Refuse: "should", Why: "exp is a string; who ignores it takes the token for as long as its key is published", See: "RFC 7519 section 4.1.4",
		apply: func(d *badToken) { d.claims["exp"] = strconv.FormatInt(d.expires, 10) }},
	{Name: "no-issuer", Refuse: "should", Why: "iss is missing", See: "RFC 9068 section 2.2", without: "iss"},
	{Name: "no-audience", Refuse: "should", Why: "aud is missing", See: "RFC 9068 section 2.2", without: "aud"},
	{Name: "no-kid", Refuse: "may", Why: "kid is missing", See: "RFC 7515 section 4.1.4",
		apply: func(d *badToken) { delete(d.header, "kid") }},
	{Name: "no-subject", Refuse: "may", Why: "sub is missing", See: "RFC 9068 section 2.2", without: "sub"},
	{Name: "future-iat", Refuse: "may", Why: "iat is in an hour", See: "RFC 7519 section 4.1.6",
		apply: func(d *badToken) { d.claims["iat"] = d.now.Add(time.Hour).Unix() }},
}

// expiryHint names the faults for what exp of a request cannot be.
const expiryHint = "; the faults no-expiry and expiry-text have no exp and a text"

// undefined is the extension of the example in RFC 7515 appendix E.
const undefined = "http://example.invalid/UNDEFINED"

// findFault returns the fault of a name. Its error lists all names.
func findFault(name string) (fault, error) {
	var names []string
	for _, f := range faults {
		if f.Name == name {
			return f, nil
		}
		names = append(names, f.Name)
	}
	return fault{}, badRequest("fault has to be one of %s", strings.Join(names, ", "))
}

// A tester makes bad tokens.
type tester struct {
	generate  func() (untrustedKey, error)
	once      sync.Once
	generated chan struct{} // closed when the fields below are set
	key       untrustedKey
	err       error
}

func newTester(bits int) *tester {
	return &tester{generate: func() (untrustedKey, error) { return newUntrustedKey(bits) }, generated: make(chan struct{})}
}

const maxGenerationWait = 10 * time.Second // for the untrusted key, less than the write timeout

// untrusted returns the untrusted key, which is generated on first need. It returns an error
// for the client if that takes too long, or if ctx is done; the generation goes on.
//
// It needs no turn, because a large key takes seconds, in which others want tokens.
func (t *tester) untrusted(ctx context.Context) (untrustedKey, error) {
	t.once.Do(func() {
		go func() {
			t.key, t.err = t.generate()
			close(t.generated)
		}()
	})
	ctx, cancel := context.WithTimeout(ctx, maxGenerationWait)
	defer cancel()
	select {
	case <-t.generated:
		return t.key, t.err
	case <-ctx.Done():
		return untrustedKey{}, refuse(http.StatusServiceUnavailable, "temporarily_unavailable",
			"the untrusted key of this fault is still being generated: try again in a second")
	}
}

// parseOptions parses the parameters of the issuer, and fault and expired=key. It waits for
// the untrusted key if the token needs it, so it has to be called before a turn is taken.
func (t *tester) parseOptions(ctx context.Context, query url.Values, longest time.Duration) (tokenOptions, error) {
	name, err := oneOf(query, "expired", "expires_in", "fault")
	if err != nil {
		return tokenOptions{}, err
	}
	value := query.Get(name)
	expiredKey := name == "expired" && value == "key"
	if name != "fault" && !expiredKey {
		return parseOptions(query, longest)
	}
	if expiredKey {
		value = "unknown-key"
	}
	f, err := findFault(value)
	if err != nil {
		return tokenOptions{}, err
	}
	var untrusted untrustedKey
	if f.key {
		if untrusted, err = t.untrusted(ctx); err != nil {
			return tokenOptions{}, err
		}
	}
	o := tokenOptions{lifetime: longest, sign: func(d *draft) (string, error) { return f.sign(d, untrusted) }}
	if f.expired || expiredKey {
		o.lifetime = -expiredAgo
	}
	return o, nil
}

// A badToken is a token on its way to a fault.
type badToken struct {
	*draft
	untrusted untrustedKey
	tamper    func(parts []string) // changes the three parts of the signed token; may be nil
}

func (d *badToken) signWith(method jwt.SigningMethod, signer any) {
	d.method, d.signer, d.header["alg"] = method, signer, method.Alg()
}

// sign returns the token of a draft, with the fault.
func (f fault) sign(d *draft, untrusted untrustedKey) (string, error) {
	if _, ok := d.claims[f.without]; f.without != "" && !ok {
		return "", badRequest("the token has no %s to leave out: ask for it in the body; for aud, -audience will do as well", f.without)
	}
	delete(d.claims, f.without)
	b := &badToken{draft: d, untrusted: untrusted}
	if f.apply != nil {
		f.apply(b)
	}
	token, err := d.sign()
	if err != nil || b.tamper == nil {
		return token, err
	}
	parts := strings.Split(token, ".")
	b.tamper(parts)
	return strings.Join(parts, "."), nil
}

// flipBit flips a bit in the middle of the signature. The last character would not do,
// because its low bits are spare.
func flipBit(parts []string) {
	signature, _ := base64.RawURLEncoding.DecodeString(parts[2])
	signature[len(signature)/2] ^= 1
	parts[2] = base64.RawURLEncoding.EncodeToString(signature)
}

func (d *badToken) changeSubject(parts []string) {
	var sub any = "nobody"
	if d.claims["sub"] != nil {
		json.Unmarshal(encode(d.claims["sub"]), &sub)
	}
	d.claims["sub"] = fmt.Sprintf("not-%v", sub)
	parts[1] = encodePart(encode(d.claims))
}

// publicPEM returns the public half of a key as people have it in a file (SPKI).
func publicPEM(k key) []byte {
	der, _ := x509.MarshalPKIXPublicKey(&k.private.PublicKey)
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

// An untrustedKey is a key that no verifier trusts. It lives in memory, and only the JWK
// Set that jku names has it.
type untrustedKey struct {
	key
	certificate string    // self-signed, DER in base64 (RFC 7515 section 4.1.6)
	set         *document // at which jku points
	chain       *document // at which x5u points: the certificate as PEM (RFC 7515 section 4.1.5)
}

func newUntrustedKey(bits int) (untrustedKey, error) {
	private, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		return untrustedKey{}, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "nobody should trust this"},
		NotBefore: now.Add(-24 * time.Hour), NotAfter: now.AddDate(10, 0, 0),
	}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		return untrustedKey{}, err
	}
	k := newKey(private, template.NotAfter)
	return untrustedKey{
		key:         k,
		certificate: base64.StdEncoding.EncodeToString(certificate),
		set:         jwkSet([]key{k}),
		chain:       newText([]string{"application/pem-certificate-chain"}, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate})),
	}, nil
}
