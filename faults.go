package main

import (
	"cmp"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math"
	"math/big"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

const (
	past    = time.Hour               // how long ago an expired token expired, because leeways reach five minutes
	maxPast = 10 * 365 * 24 * 60 * 60 // seconds ago at most
)

// A tokenResponse is that of RFC 6749 section 5.1, with a token for people.
type tokenResponse struct {
	Token       string `json:"token"`
	AccessToken string `json:"access_token"`
	TokenType   string `json:"token_type"`
	ExpiresIn   int64  `json:"expires_in,omitempty"` // 1*DIGIT: clients refuse anything else
	Scope       string `json:"scope,omitempty"`
	Fault       string `json:"fault,omitempty"`
}

// An order is what the query of POST /auth asks for.
type order struct {
	lifetime time.Duration // from now to exp; negative if the token has expired
	otherKey bool          // sign with a key that is not in the JWK Set
	fault    fault         // may be empty
}

// parseOrder reads a query. At most one of its parameters asks for a kind of token.
func (s *server) parseOrder(query string) (order, error) {
	values, err := url.ParseQuery(query)
	if err != nil {
		return order{}, badRequest("the query cannot be read: %v", err)
	}
	o := order{lifetime: s.keys.tokenTTL.Truncate(time.Second)}
	var given []string
	for _, name := range []string{"expired", "expires_in", "fault"} {
		given = append(given, values[name]...)
	}
	if len(given) == 0 {
		return o, nil
	}
	if len(given) > 1 {
		return order{}, badRequest("give one of expired, expires_in and fault, once")
	}
	switch value := given[0]; {
	case values.Has("expires_in"):
		longest := int64(o.lifetime / time.Second)
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil || n > longest || n < -maxPast {
			return order{}, badRequest("expires_in has to be a number of seconds from -%d to %d", maxPast, longest)
		}
		o.lifetime = time.Duration(n) * time.Second
	case values.Has("fault"):
		if s.clients != nil {
			return order{}, badRequest("fault is not for a server with -clients, which issues good tokens only")
		}
		if o.fault, err = findFault(value); err != nil {
			return order{}, err
		}
		if o.fault.expired {
			o.lifetime = -past
		}
	default:
		o.otherKey = value == "key"
		expired, err := strconv.ParseBool(cmp.Or(value, "true"))
		if err != nil && !o.otherKey {
			return order{}, badRequest("expired has to be true, false or key")
		}
		if expired || o.otherKey {
			o.lifetime = -past
		}
	}
	return o, nil
}

// claims returns the claims of a token issued at now, with their exp. Those asked for
// replace the server's own, and null leaves one out. Only exp is never later than the
// server's, because no token outlives its key.
func (s *server) claims(now time.Time, lifetime time.Duration, asked map[string]json.RawMessage) (claims jwt.MapClaims, expires int64, err error) {
	issued := now.Unix()
	expires = issued + int64(lifetime/time.Second)
	if lifetime < 0 { // a token's life before exp
		issued = expires - int64(s.keys.tokenTTL/time.Second)
	}
	claims = jwt.MapClaims{"iss": s.issuer, "sub": "user123", "iat": issued, "exp": expires, "jti": rand.Text()}
	if s.audience != "" {
		claims["aud"] = s.audience
	}
	for name, raw := range asked {
		claims[name] = raw
		if string(raw) == "null" {
			delete(claims, name)
		}
	}
	if raw, ok := asked["exp"]; ok {
		exp, err := strconv.ParseFloat(string(raw), 64)
		if err != nil || exp > float64(expires) {
			return nil, 0, badRequest("exp has to be a number of seconds since 1970, %d at most: no token lives longer than -token-ttl", expires)
		}
		expires = int64(math.Floor(max(exp, 0)))
	}
	return claims, expires, nil
}

// scope returns the scope of a token if it has one that is a string.
func scope(claims jwt.MapClaims) string {
	raw, _ := claims["scope"].(json.RawMessage)
	value, _ := text(raw)
	return value
}

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

// A draft is a token that is not signed yet.
type draft struct {
	header map[string]any
	claims jwt.MapClaims
	method jwt.SigningMethod
	signer any                  // the key or secret of method
	tamper func(parts []string) // changes the three parts of the signed token; may be nil

	issuer  string
	now     time.Time
	expires int64
	live    key      // the key that signs good tokens
	other   otherKey // of which no verifier may trust the signature
}

// sign returns the token of a turn, with the fault that was ordered.
func (s *server) sign(t turn, claims jwt.MapClaims, expires int64, o order) (string, error) {
	d := draft{
		header: map[string]any{"typ": "JWT", "kid": t.key.kid}, claims: claims,
		method: jwt.SigningMethodRS256, signer: t.key.private,
		issuer: s.issuer, now: t.now, expires: expires, live: t.key,
	}
	if f := o.fault; f.Name != "" || o.otherKey {
		var err error
		if d.other, err = s.other(); err != nil {
			return "", err
		}
		if o.otherKey {
			d.signer, d.header["kid"] = d.other.private, d.other.kid
		}
		if _, ok := claims[f.without]; f.without != "" && !ok {
			return "", badRequest("the token has no %s to leave out: ask for it in the body; for aud, -audience will do as well", f.without)
		}
		delete(claims, f.without)
		if f.apply != nil {
			f.apply(&d)
		}
	}
	d.header["alg"] = d.method.Alg()
	b64 := base64.RawURLEncoding.EncodeToString
	parts := []string{b64(encode(d.header)), b64(encode(d.claims)), ""}
	signature, err := d.method.Sign(parts[0]+"."+parts[1], d.signer)
	if err != nil {
		return "", err
	}
	parts[2] = b64(signature)
	if d.tamper != nil {
		d.tamper(parts)
	}
	return strings.Join(parts, "."), nil
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
