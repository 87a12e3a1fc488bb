package main

import (
	"bytes"
	"context"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// A fault is a deliberate defect of a token. Everything else is as in a good token. A token
// that a verifier must never refuse is a good one, made in an unusual way.
type fault struct {
	Name   string `json:"fault"`
	Refuse string `json:"refuse"` // whether a verifier must, should, may or must never refuse the token
	Why    string `json:"why"`
	See    string `json:"see"`

	expired bool            // exp was an hour ago
	key     bool            // it needs the untrusted key
	claim   string          // a claim that the token has to have; may be empty
	without bool            // the claim is left out
	apply   func(*badToken) // changes anything else; may be nil
}

// undefined is the extension of the example in RFC 7515 appendix E.
const undefined = "http://example.invalid/UNDEFINED"

// faults is the catalogue.
var faults = []fault{
	{Name: "signature", Refuse: "must", See: "RFC 7515 section 5.2", apply: assembled(flipBit),
		Why: "one bit of the signature is flipped: a verifier that accepts the token does not check signatures"},
	{Name: "payload", Refuse: "must", See: "RFC 7515 section 5.2", apply: (*badToken).changeSubject,
		Why: "sub was changed after the token was signed: a verifier that accepts the token lets anyone change its claims"},
	{Name: "header", Refuse: "must", See: "RFC 7515 section 5.2", apply: (*badToken).changeTypCase,
		Why: "typ was put into another case, as jwt for JWT, after the token was signed: a verifier that accepts the token lets anyone change headers"},
	{Name: "unsigned", Refuse: "must", See: "RFC 7515 section 5.2",
		Why:   "the signature is empty, and alg is still RS256: a verifier that accepts the token does not require a signature",
		apply: assembled(func(parts []string) string { return parts[0] + "." + parts[1] + "." })},
	{Name: "none", Refuse: "must", See: "RFC 8725 section 3.1",
		Why:   "alg is none, and the signature is empty: a verifier that accepts the token lets anyone make tokens without a key",
		apply: func(b *badToken) { b.signWith(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType) }},
	{Name: "none-case", Refuse: "must", See: "RFC 8725 section 3.1",
		Why: "alg is nOnE, and the signature is empty: a verifier that refuses only none in lower case lets anyone make tokens without a key",
		apply: func(b *badToken) {
			b.signWith(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType)
			b.header["alg"] = "nOnE"
		}},
	{Name: "wrong-key", Refuse: "must", See: "RFC 7515 section 5.2", key: true, apply: (*badToken).signUntrusted,
		Why: "kid names a key of the JWK Set, but an untrusted key signed the token: a verifier that accepts the token does not check signatures"},
	{Name: "unknown-key", Refuse: "must", See: "RFC 7515 section 4.1.4", key: true,
		Why: "an untrusted key signed the token, and kid names no key of the JWK Set; it is another kid in each token",
		apply: func(b *badToken) {
			b.signUntrusted()
			b.header["kid"] = randomKid()
		}},
	{Name: "hs256", Refuse: "must", See: "RFC 8725 section 2.1", apply: hs256(spkiPEM),
		Why: "alg is HS256, and the secret is the public key as PEM: a verifier that believes alg accepts tokens from anyone"},
	{Name: "hs256-trimmed", Refuse: "must", See: "RFC 8725 section 2.1",
		Why:   "alg is HS256, and the secret is the public key as PEM without its last newline, as it is in many environment variables",
		apply: hs256(func(k key) []byte { return bytes.TrimSuffix(spkiPEM(k), []byte("\n")) })},
	{Name: "hs256-der", Refuse: "must", See: "RFC 8725 section 2.1", apply: hs256(spkiDER),
		Why: "alg is HS256, and the secret is the public key as DER"},
	{Name: "hs256-pkcs1", Refuse: "must", See: "RFC 8725 section 2.1", apply: hs256(pkcs1PEM),
		Why: "alg is HS256, and the secret is the public key as PKCS #1 PEM"},
	{Name: "hs256-jwk", Refuse: "must", See: "RFC 8725 section 2.1", apply: hs256(func(k key) []byte { return encode(k.jwk()) }),
		Why: "alg is HS256, and the secret is the public key as JSON, as it is in the JWK Set"},
	{Name: "hs256-empty", Refuse: "must", See: "RFC 8725 section 3.5", apply: hs256(noSecret),
		Why: "alg is HS256, and the secret is empty: a verifier whose secret is not set accepts tokens from anyone"},
	{Name: "kid-path", Refuse: "must", See: "RFC 8725 section 3.10",
		Why: "alg is HS256, and kid is the path of an empty file: a verifier that reads its secret from that file accepts tokens from anyone",
		apply: func(b *badToken) {
			hs256(noSecret)(b)
			b.header["kid"] = strings.Repeat("../", 16) + "dev/null"
		}},
	{Name: "jwk", Refuse: "must", See: "RFC 8725 section 3.10", key: true,
		Why: "an untrusted key signed the token, and the header contains it as jwk: a verifier that trusts it accepts tokens from anyone",
		apply: func(b *badToken) {
			b.signUntrusted()
			k := b.untrusted.jwk()
			k.Kid = b.key.kid // because some verifiers look for the kid of the token in it
			b.header["jwk"] = k
		}},
	{Name: "jku", Refuse: "must", See: "RFC 8725 section 3.10", key: true,
		Why: "an untrusted key signed the token, and jku is the URL of its JWK Set: a verifier that fetches it accepts tokens from anyone",
		apply: func(b *badToken) {
			b.signUntrusted()
			b.header["kid"], b.header["jku"] = b.untrusted.kid, b.url("/faults/jwks.json")
		}},
	{Name: "x5c", Refuse: "must", See: "RFC 7515 section 4.1.6", key: true,
		Why: "an untrusted key signed the token, and x5c is its self-signed certificate: a verifier that trusts it accepts tokens from anyone",
		apply: func(b *badToken) {
			b.signUntrusted()
			b.header["x5c"] = []string{b.untrusted.certificate}
		}},
	{Name: "x5u", Refuse: "must", See: "RFC 7515 section 4.1.5", key: true,
		Why: "an untrusted key signed the token, and x5u is the URL of its certificate: a verifier that fetches it accepts tokens from anyone",
		apply: func(b *badToken) {
			b.signUntrusted()
			b.header["x5u"] = b.url("/faults/x5u.pem")
		}},
	{Name: "crit", Refuse: "must", See: "RFC 7515 section 4.1.11",
		Why:   "crit names an extension that no verifier knows, and the header contains it: a verifier has to refuse an extension that it does not know",
		apply: func(b *badToken) { b.header["crit"], b.header[undefined] = []string{undefined}, true }},
	{Name: "alg", Refuse: "must", See: "RFC 8725 section 3.1",
		Why:   "alg is RS512, and the key in the JWK Set is for RS256: a verifier that accepts the token lets tokens choose their algorithm",
		apply: func(b *badToken) { b.signWith(jwt.SigningMethodRS512, b.signer) }},

	{Name: "two-parts", Refuse: "must", See: "RFC 7515 section 7.1",
		Why:   "the token is a header and a payload, without a signature and the dot before it",
		apply: assembled(func(parts []string) string { return parts[0] + "." + parts[1] })},
	{Name: "four-parts", Refuse: "must", See: "RFC 7515 section 7.1",
		Why:   "the token is a good one, followed by a fourth part",
		apply: assembled(func(parts []string) string { return strings.Join(parts, ".") + ".e30" })},
	{Name: "five-parts", Refuse: "must", See: "RFC 7515 section 7.1",
		Why:   "the token is a good one, followed by two more parts, so that it has as many as an encrypted token",
		apply: assembled(func(parts []string) string { return strings.Join(parts, ".") + ".e30.e30" })},
	{Name: "no-parts", Refuse: "must", See: "RFC 7515 section 7.1",
		Why: "the token is two dots: its header, payload and signature are empty",
		apply: func(b *badToken) {
			b.assemble, b.expires = func([]string) string { return ".." }, 0
		}},
	{Name: "not-base64", Refuse: "must", See: "RFC 7515 section 5.2", apply: assembled(insertExclamationMark),
		Why: "an exclamation mark is in the middle of the signature: with a decoder that skips it, one token can be written in many ways"},
	{Name: "padded", Refuse: "should", See: "RFC 7515 section 2", apply: (*badToken).keepPadding,
		Why: "header and payload end with the padding of base64 (=), which JWS does not allow, and the signature is right for that text"},
	{Name: "json", Refuse: "must", See: "RFC 7519 section 1", apply: assembled(flattenedJSON),
		Why: "the token is in the JWS JSON Serialization, and a JWT has to be in the JWS Compact Serialization"},
	{Name: "not-json", Refuse: "must", See: "RFC 7519 section 7.2", apply: replacePayload("no JSON"),
		Why: "the payload is not JSON, and the signature is right: a verifier that accepts the token does not read its claims"},
	{Name: "array", Refuse: "must", See: "RFC 7519 section 7.2", apply: replacePayload("[]"),
		Why: "the payload is an array instead of an object, so it has no claims that a verifier could check"},
	{Name: "alg-number", Refuse: "must", See: "RFC 7515 section 4.1.1", apply: setHeader("alg", 256),
		Why: "alg is a number instead of a string, and the signature is one of RS256"},
	{Name: "kid-array", Refuse: "should", See: "RFC 7515 section 4.1.4",
		Why:   "kid is an array that contains the right kid, and has to be a string",
		apply: func(b *badToken) { b.header["kid"] = []any{b.header["kid"]} }},
	{Name: "duplicate-alg", Refuse: "must", See: "RFC 7515 section 4", apply: (*badToken).duplicateAlg,
		Why: "the header has alg twice, RS256 and then none: two readers of the token see different algorithms"},

	{Name: "expired", Refuse: "must", See: "RFC 7519 section 4.1.4", expired: true,
		Why: "exp was an hour ago: a verifier that accepts the token accepts it until its key is gone"},
	{Name: "expiry-zero", Refuse: "must", See: "RFC 7519 section 4.1.4", apply: func(b *badToken) { b.setExp(0) },
		Why: "exp is 0, which is in 1970: a verifier that treats it as no expiry accepts the token until its key is gone"},
	{Name: "not-yet", Refuse: "must", See: "RFC 7519 section 4.1.5",
		Why:   "nbf is an hour from now: the token must not be accepted before then",
		apply: func(b *badToken) { b.claims["nbf"] = b.now.Add(time.Hour).Unix() }},
	{Name: "issuer", Refuse: "must", See: "RFC 8725 section 3.8", apply: setClaim("iss", "https://another-issuer.invalid"),
		Why: "iss is another issuer: a verifier that trusts several issuers would let one of them issue tokens in the name of another"},
	{Name: "issuer-prefix", Refuse: "must", See: "RFC 8725 section 3.8", apply: (*badToken).extendIssuer,
		Why: "iss is another issuer that begins with the right one: a verifier has to compare the whole of iss"},
	{Name: "audience", Refuse: "must", See: "RFC 8725 section 3.9", apply: setClaim("aud", anotherAudience),
		Why: "aud is another audience: a verifier that accepts the token accepts tokens that their owners gave to other services"},
	{Name: "audience-array", Refuse: "must", See: "RFC 8725 section 3.9", apply: setClaim("aud", []string{anotherAudience}),
		Why: "aud is an array of one other audience: a verifier that compares only strings accepts tokens for other services"},
	{Name: "audience-prefix", Refuse: "must", See: "RFC 8725 section 3.9", claim: "aud", apply: (*badToken).extendAudience,
		Why: "aud is another audience that begins with the right one: a verifier that searches for it in aud accepts tokens for other services"},
	{Name: "no-audience", Refuse: "must", See: "RFC 8725 section 3.9", claim: "aud", without: true,
		Why: "aud is missing: a verifier that accepts the token accepts tokens for other services"},
	{Name: "type", Refuse: "should", See: "RFC 8725 section 3.11", apply: (*badToken).changeType,
		Why: "typ is that of another kind of JWT, such as a security event, which does not give access to anything"},
	{Name: "no-expiry", Refuse: "should", See: "RFC 9068 section 2.2", claim: "exp", without: true,
		Why:   "exp is missing: a verifier that does not require it accepts the token until its key is gone",
		apply: func(b *badToken) { b.expires = 0 }},
	{Name: "expiry-null", Refuse: "should", See: "RFC 7519 section 4.1.4", apply: func(b *badToken) { b.setExp(nil) },
		Why: "exp is null: a verifier that ignores it accepts the token until its key is gone"},
	{Name: "expiry-text", Refuse: "should", See: "RFC 7519 section 4.1.4",
		Why:   "exp is a string: a verifier that ignores it accepts the token until its key is gone",
		apply: func(b *badToken) { b.setExp(strconv.FormatInt(b.expires, 10)) }},
	{Name: "expiry-array", Refuse: "should", See: "RFC 7519 section 4.1.4",
		Why:   "exp is an array with a number: a verifier that ignores it accepts the token until its key is gone, and some verifiers crash on it",
		apply: func(b *badToken) { b.setExp([]any{b.claims["exp"]}) }},
	{Name: "no-issuer", Refuse: "should", See: "RFC 9068 section 2.2", claim: "iss", without: true,
		Why: "iss is missing: a verifier that does not require it does not know who issued the tokens that it accepts"},

	{Name: "duplicate-claim", Refuse: "may", See: "RFC 7519 section 4", claim: "sub", apply: (*badToken).duplicateSubject,
		Why: "the payload has sub twice, first another and then the right one: two readers of the token may see different users"},
	{Name: "no-kid", Refuse: "may", See: "RFC 7515 section 4.1.4", apply: func(b *badToken) { delete(b.header, "kid") },
		Why: "kid is missing: a verifier may try all keys of the JWK Set, or refuse the token"},
	{Name: "no-subject", Refuse: "may", See: "RFC 9068 section 2.2", claim: "sub", without: true,
		Why: "sub is missing, which is a required claim of access tokens"},
	{Name: "no-iat", Refuse: "may", See: "RFC 9068 section 2.2", claim: "iat", without: true,
		Why: "iat is missing, which is a required claim of access tokens"},
	{Name: "future-iat", Refuse: "may", See: "RFC 7519 section 4.1.6",
		Why:   "iat is an hour from now: the token was issued in the future, or one of the clocks is wrong",
		apply: func(b *badToken) { b.claims["iat"] = b.now.Add(time.Hour).Unix() }},
	{Name: "access-token", Refuse: "may", See: "RFC 9068 section 4",
		Why: "typ is at+jwt, or JWT if all other tokens have at+jwt: a verifier may require the type that it knows",
		apply: func(b *badToken) {
			if typ := b.header["typ"].(string); strings.EqualFold(typ, accessTokenType) {
				b.header["typ"] = "JWT"
			} else {
				b.header["typ"] = accessTokenType
			}
		}},

	{Name: "audience-list", Refuse: "never", See: "RFC 7519 section 4.1.3", claim: "aud", apply: (*badToken).listAudience,
		Why: "aud is an array of another audience and the right one, and it is enough that the right one is among them"},
	{Name: "fraction", Refuse: "never", See: "RFC 7519 section 2", apply: (*badToken).subtractHalf,
		Why: "exp and iat have a fraction of a second, which a NumericDate may have"},
	{Name: "unknown-header", Refuse: "never", See: "RFC 7515 section 4", apply: setHeader(undefined, true),
		Why: "the header has a parameter that no verifier knows, and verifiers have to ignore such parameters"},
	{Name: "unknown-claim", Refuse: "never", See: "RFC 7519 section 4", apply: setClaim(undefined, true),
		Why: "the payload has a claim that no verifier knows, and verifiers have to ignore such claims"},
	{Name: "whitespace", Refuse: "never", See: "RFC 8259 section 2", apply: func(b *badToken) { b.rewrite(indent) },
		Why: "the JSON of header and payload has line breaks and spaces, which JSON allows"},
	{Name: "escaped", Refuse: "never", See: "RFC 8259 section 7", apply: func(b *badToken) { b.rewrite(escapeNames) },
		Why: "the names of header parameters and claims are written with Unicode escapes, which JSON parsers decode to the same names"},
}

// expiredKey is the fault of expired=key.
var expiredKey = fault{expired: true, key: true, apply: func(b *badToken) {
	b.signUntrusted()
	b.header["kid"] = b.untrusted.kid
}}

// expiryHint names the faults that make the tokens that a request with exp cannot get.
const expiryHint = "; the faults no-expiry, expiry-null and expiry-text leave it out, or make it null or a string"

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
// It needs no turn, because generating a large key takes seconds, in which other requests need the turn.
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
	var f fault
	switch value := query.Get(name); {
	case name == "expired" && value == "key":
		f = expiredKey
	case name == "fault":
		if f, err = findFault(value); err != nil {
			return tokenOptions{}, err
		}
	default:
		return parseOptions(query, longest)
	}
	var untrusted untrustedKey
	if f.key {
		if untrusted, err = t.untrusted(ctx); err != nil {
			return tokenOptions{}, err
		}
	}
	o := tokenOptions{lifetime: longest, sign: func(d *draft) (string, error) { return f.sign(d, untrusted) }}
	if f.expired {
		o.lifetime = -expiredAgo
	}
	return o, nil
}

// sign returns the token of a draft, with the fault. It returns an error for the client if
// the token does not have the claim that the fault changes.
func (f fault) sign(d *draft, untrusted untrustedKey) (string, error) {
	if _, ok := d.claims[f.claim]; f.claim != "" && !ok {
		flag := ""
		if f.claim == "aud" {
			flag = ", or start the server with -audience"
		}
		return "", badRequest("the fault %s needs a token with %s: request one in the body%s", f.Name, f.claim, flag)
	}
	if f.without {
		delete(d.claims, f.claim)
	}
	b := newBadToken(d, untrusted)
	if f.apply != nil {
		f.apply(b)
	}
	return b.sign()
}
