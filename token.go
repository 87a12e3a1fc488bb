package main

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"maps"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// A tokenProfile is what all tokens of a server have in common.
type tokenProfile struct {
	issuer     string
	audience   string                     // may be empty
	typ        string                     // of the header
	claims     map[string]json.RawMessage // set in every token, null to leave one out; never exp
	lifetime   time.Duration              // at most; whole seconds
	expiryHint string                     // completes the error of an invalid exp; may be empty
}

const accessTokenType = "at+jwt" // RFC 9068 section 2.1

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

// draft returns a token that expires lifetime from the time of t. client is the client id
// that the request names, or "". The requested claims replace the profile's, which replace
// the server's own, and null leaves one out.
//
// It returns an error for the client if exp is not a number or later than the server's own,
// because no token may outlive its key.
func (p tokenProfile) draft(t turn, lifetime time.Duration, client string, requested map[string]json.RawMessage) (*draft, error) {
	issued := t.now.Unix()
	expires := issued + int64(lifetime/time.Second)
	if lifetime < 0 { // an expired token was issued a token's lifetime before exp
		issued = expires - int64(p.lifetime/time.Second)
	}
	if raw, ok := requested["exp"]; ok {
		exp, err := strconv.ParseFloat(string(raw), 64)
		if err != nil || exp > float64(expires) {
			return nil, badRequest("exp has to be a number of seconds since 1970, %d at most: no token lives longer than -token-ttl%s",
				expires, p.expiryHint)
		}
		expires = int64(math.Floor(max(exp, 0)))
	}
	return &draft{
		issuer: p.issuer,
		header: map[string]any{"alg": jwt.SigningMethodRS256.Alg(), "typ": p.typ, "kid": t.key.kid},
		claims: p.merge(issued, expires, client, requested),
		method: jwt.SigningMethodRS256, signer: t.key.private,
		key: t.key, now: t.now, expires: expires,
	}, nil
}

// merge returns the claims of a token.
func (p tokenProfile) merge(issued, expires int64, client string, requested map[string]json.RawMessage) map[string]any {
	claims := map[string]any{"iss": p.issuer, "sub": "user123", "iat": issued, "exp": expires, "jti": rand.Text()}
	if p.audience != "" {
		claims["aud"] = p.audience
	}
	given := map[string]json.RawMessage{}
	maps.Copy(given, p.claims)
	maps.Copy(given, requested)
	for name, raw := range given {
		claims[name] = raw
	}
	if strings.EqualFold(p.typ, accessTokenType) && given["client_id"] == nil { // RFC 9068 section 2.2
		claims["client_id"] = claims["sub"]
		if client != "" {
			claims["client_id"] = client
		}
	}
	maps.DeleteFunc(claims, func(_ string, v any) bool {
		raw, ok := v.(json.RawMessage)
		return ok && string(raw) == "null"
	})
	return claims
}

// sign returns the JWS Compact Serialization of the token (RFC 7515 section 7.1).
func (d *draft) sign() (string, error) {
	return d.signParts(encodePart(encode(d.header)), encodePart(encode(d.claims)))
}

// signParts returns the JWS Compact Serialization of an encoded header and payload.
func (d *draft) signParts(header, payload string) (string, error) {
	input := header + "." + payload
	signature, err := d.method.Sign(input, d.signer)
	if err != nil {
		return "", err
	}
	return input + "." + encodePart(signature), nil
}

// encodePart returns a part of a token: the header, the payload or the signature.
func encodePart(part []byte) string { return base64.RawURLEncoding.EncodeToString(part) }

// scope returns the scope of the token if it has one that is a string.
func (d *draft) scope() string {
	raw, _ := d.claims["scope"].(json.RawMessage)
	value, _ := parseString(raw)
	return value
}
