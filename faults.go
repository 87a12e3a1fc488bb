package main

import (
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
	"strconv"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// A fault is what is wrong with a token. Everything else is as in a good one.
type fault struct {
	Name   string `json:"fault"`
	Refuse string `json:"refuse"` // must, should or may a verifier refuse it?
	Why    string `json:"why"`
	See    string `json:"see"`

	expired bool         // exp was an hour ago
	without string       // the claim that is left out
	apply   func(*draft) // what else is done to the token; may be nil
}

// faults is the catalogue.
var faults = []fault{
	{Name: "signature", Refuse: "must", Why: "one bit of the signature is flipped", See: "RFC 7515 section 5.2",
		apply: func(d *draft) { d.tamper = flipBit }},
	{Name: "payload", Refuse: "must", Why: "sub was changed after signing", See: "RFC 7515 section 5.2",
		apply: func(d *draft) { d.tamper = d.changeSubject }},
	{Name: "unsigned", Refuse: "must", Why: "the signature is empty, and alg still says RS256", See: "RFC 7515 section 5.2",
		apply: func(d *draft) { d.tamper = func(parts []string) { parts[2] = "" } }},
	{Name: "none", Refuse: "must", Why: "alg is none, and the signature is empty", See: "RFC 8725 section 3.1",
		apply: func(d *draft) { d.method, d.signer = jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType }},
	{Name: "wrong-key", Refuse: "must", Why: "kid names a key of the JWK Set, and another key signed", See: "RFC 7515 section 5.2",
		apply: func(d *draft) { d.signer = d.other.private }},
	{Name: "unknown-key", Refuse: "must", Why: "the key that signed, and that kid names, is not in the JWK Set", See: "RFC 7515 section 4.1.4",
		apply: func(d *draft) { d.signer, d.header["kid"] = d.other.private, d.other.kid }},
	{Name: "hs256", Refuse: "must", Why: "alg is HS256, and the secret is the public key in PEM", See: "RFC 8725 section 2.1",
		apply: func(d *draft) { d.method, d.signer = jwt.SigningMethodHS256, publicPEM(d.live) }},
	{Name: "jwk", Refuse: "must", Why: "another key signed, and the header brings it as jwk", See: "RFC 8725 section 3.10",
		apply: func(d *draft) { d.signer, d.header["jwk"] = d.other.private, d.other.jwk() }},
	{Name: "jku", Refuse: "must", Why: "another key signed, and the header says by jku where to fetch it", See: "RFC 8725 section 3.10",
		apply: func(d *draft) {
			d.signer, d.header["kid"] = d.other.private, d.other.kid
			d.header["jku"] = d.issuer + "/faults/jwks.json"
		}},
	{Name: "x5c", Refuse: "must", Why: "another key signed, and the header brings its self-signed certificate as x5c", See: "RFC 7515 section 4.1.6",
		apply: func(d *draft) { d.signer, d.header["x5c"] = d.other.private, []string{d.other.certificate} }},
	{Name: "crit", Refuse: "must", Why: "crit names an extension that no verifier knows", See: "RFC 7515 section 4.1.11",
		apply: func(d *draft) { d.header["crit"], d.header[undefined] = []string{undefined}, true }},
	{Name: "expired", Refuse: "must", Why: "exp was an hour ago", See: "RFC 7519 section 4.1.4", expired: true},
	{Name: "not-yet", Refuse: "must", Why: "nbf is in an hour", See: "RFC 7519 section 4.1.5",
		apply: func(d *draft) { d.claims["nbf"] = d.now.Add(time.Hour).Unix() }},
	{Name: "issuer", Refuse: "must", Why: "iss is another issuer", See: "RFC 8725 section 3.8",
		apply: func(d *draft) { d.claims["iss"] = "https://another-issuer.invalid" }},
	{Name: "audience", Refuse: "must", Why: "aud is another audience", See: "RFC 7519 section 4.1.3",
		apply: func(d *draft) { d.claims["aud"] = "https://another-audience.invalid" }},
	{Name: "alg", Refuse: "should", Why: "alg is RS512, and the JWK says RS256", See: "RFC 8725 section 3.1",
		apply: func(d *draft) { d.method = jwt.SigningMethodRS512 }},
	{Name: "type", Refuse: "should", Why: "typ is that of another kind of JWT, a security event", See: "RFC 8725 section 3.11",
		apply: func(d *draft) { d.header["typ"] = "secevent+jwt" }},
	{Name: "no-expiry", Refuse: "should", Why: "exp is missing, so the token is good for as long as its key is published", See: "RFC 9068 section 2.2", without: "exp"},
	{Name: "expiry-text", Refuse: "should", Why: "exp is a string; who ignores it takes the token for as long as its key is published", See: "RFC 7519 section 4.1.4",
		apply: func(d *draft) { d.claims["exp"] = strconv.FormatInt(d.expires, 10) }},
	{Name: "no-issuer", Refuse: "should", Why: "iss is missing", See: "RFC 9068 section 2.2", without: "iss"},
	{Name: "no-audience", Refuse: "should", Why: "aud is missing", See: "RFC 9068 section 2.2", without: "aud"},
	{Name: "no-kid", Refuse: "may", Why: "kid is missing", See: "RFC 7515 section 4.1.4",
		apply: func(d *draft) { delete(d.header, "kid") }},
	{Name: "no-subject", Refuse: "may", Why: "sub is missing", See: "RFC 9068 section 2.2", without: "sub"},
	{Name: "future-iat", Refuse: "may", Why: "iat is in an hour", See: "RFC 7519 section 4.1.6",
		apply: func(d *draft) { d.claims["iat"] = d.now.Add(time.Hour).Unix() }},
}

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

// flipBit flips a bit in the middle of the signature. The last character would not do,
// because its low bits are spare.
func flipBit(parts []string) {
	signature, _ := base64.RawURLEncoding.DecodeString(parts[2])
	signature[len(signature)/2] ^= 1
	parts[2] = base64.RawURLEncoding.EncodeToString(signature)
}

func (d *draft) changeSubject(parts []string) {
	var sub any = "nobody"
	if d.claims["sub"] != nil {
		json.Unmarshal(encode(d.claims["sub"]), &sub)
	}
	d.claims["sub"] = fmt.Sprintf("not-%v", sub)
	parts[1] = base64.RawURLEncoding.EncodeToString(encode(d.claims))
}

// publicPEM returns the public half of a key as people have it in a file (SPKI).
func publicPEM(k key) []byte {
	der, _ := x509.MarshalPKIXPublicKey(&k.private.PublicKey)
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

// An otherKey signs tokens that no verifier may accept. It lives in memory, and only the
// JWK Set that jku points at has it.
type otherKey struct {
	key
	certificate string // self-signed, DER in base64 (RFC 7515 section 4.1.6)
	set         *document
}

func newOtherKey(bits int) (otherKey, error) {
	private, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		return otherKey{}, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "nobody should trust this"},
		NotBefore: now.Add(-24 * time.Hour), NotAfter: now.AddDate(10, 0, 0),
	}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		return otherKey{}, err
	}
	k := newKey(private, template.NotAfter)
	return otherKey{key: k, certificate: base64.StdEncoding.EncodeToString(certificate), set: jwkSet([]key{k})}, nil
}

// otherJWKS answers with the JWK Set that jku points at. It takes a turn, because the key
// may have to be made.
func (s *server) otherJWKS(w http.ResponseWriter, r *http.Request) error {
	turn, err := s.keys.turn(r.Context())
	if err != nil {
		return err
	}
	defer turn.release()
	other, err := s.other()
	if err != nil {
		return err
	}
	return s.serve(w, r, other.set)
}
