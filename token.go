package main

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"math"
	"strconv"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// A tokenProfile is what all tokens of a server have in common.
type tokenProfile struct {
	issuer   string
	audience string        // may be empty
	lifetime time.Duration // at most; whole seconds
}

// A draft is a token that is not signed yet.
type draft struct {
	issuer  string // the server's, whatever iss says
	header  map[string]any
	claims  map[string]any
	method  jwt.SigningMethod
	signer  any       // the key or secret of method
	key     key       // the key that kid names
	now     time.Time // at which the token is issued
	expires int64     // exp, in seconds since 1970
}

// draft returns a token that expires lifetime from the time of t. The requested claims
// replace the server's own, and null leaves one out. The error is for the client: exp may
// not be later than the server's, because no token outlives its key.
func (p tokenProfile) draft(t turn, lifetime time.Duration, requested map[string]json.RawMessage) (*draft, error) {
	issued := t.now.Unix()
	expires := issued + int64(lifetime/time.Second)
	if lifetime < 0 { // an expired token was issued a token's lifetime before exp
		issued = expires - int64(p.lifetime/time.Second)
	}
	claims := map[string]any{"iss": p.issuer, "sub": "user123", "iat": issued, "exp": expires, "jti": rand.Text()}
	if p.audience != "" {
		claims["aud"] = p.audience
	}
	for name, raw := range requested {
		claims[name] = raw
		if string(raw) == "null" {
			delete(claims, name)
		}
	}
	if raw, ok := requested["exp"]; ok {
		exp, err := strconv.ParseFloat(string(raw), 64)
		if err != nil || exp > float64(expires) {
			return nil, badRequest("exp has to be a number of seconds since 1970, %d at most: no token lives longer than -token-ttl", expires)
		}
		expires = int64(math.Floor(max(exp, 0)))
	}
	return &draft{
		issuer: p.issuer,
		header: map[string]any{"typ": "JWT", "kid": t.key.kid}, claims: claims,
		method: jwt.SigningMethodRS256, signer: t.key.private,
		key: t.key, now: t.now, expires: expires,
	}, nil
}

// sign returns the JWS Compact Serialization of the token (RFC 7515 section 7.1).
func (d *draft) sign() (string, error) {
	d.header["alg"] = d.method.Alg()
	input := encodePart(d.header) + "." + encodePart(d.claims)
	signature, err := d.method.Sign(input, d.signer)
	if err != nil {
		return "", err
	}
	return input + "." + base64.RawURLEncoding.EncodeToString(signature), nil
}

// encodePart returns a JSON object as the header or the payload of a token.
func encodePart(object map[string]any) string {
	return base64.RawURLEncoding.EncodeToString(encode(object))
}

// scope returns the scope of the token if it has one that is a string.
func (d *draft) scope() string {
	raw, _ := d.claims["scope"].(json.RawMessage)
	value, _ := parseString(raw)
	return value
}
