package main

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
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
