package main

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// Reasons to refuse a token, besides the errors of golang-jwt.
var (
	errParts     = errors.New("the token has not three parts")
	errBase64    = errors.New("a part is not base64url")
	errObject    = errors.New("a part is not a JSON object")
	errDuplicate = errors.New("a part has duplicate members")
	errAlg       = errors.New("alg is not RS256")
	errType      = errors.New("typ is not that of the server")
	errCrit      = errors.New("crit is not understood")
	errNoKid     = errors.New("kid is missing")
	errKidType   = errors.New("kid is not a string")
	errNoExp     = errors.New("exp is missing")
	errExpType   = errors.New("exp is not a number")
	errNoIat     = errors.New("iat is missing")
	errNoIss     = errors.New("iss is missing")
	errNoAud     = errors.New("aud is missing")
	errNoSub     = errors.New("sub is missing")
)

// A verifier checks all that the catalogue asks for, except for one hole. A
// hole has the name of a fault, which it lets in, or is trustsUntrusted.
type verifier struct {
	*testServer        // that it trusts
	hole        string // none if empty
}

const trustsUntrusted = "trusts-untrusted" // trusts the untrusted key, under whatever kid

// verify returns all reasons to refuse a token. A part that cannot be read is one reason.
func (v verifier) verify(t testing.TB, token string) (refusals []error) {
	if v.hole == "no-parts" && strings.Trim(token, ".") == "" {
		return nil
	}
	parts, unsigned := v.split(token)
	if len(parts) != 3 {
		return []error{errParts}
	}
	signature, err := v.decode(parts[2])
	if err != nil {
		return []error{err}
	}
	header, err := v.object(parts[0], "duplicate-alg")
	if err != nil {
		return []error{err}
	}
	if !unsigned {
		refusals = v.checkSignature(t, header, parts[0]+"."+parts[1], signature)
	}
	refusals = append(refusals, v.checkHeader(header)...)
	text, err := v.decode(parts[1])
	switch {
	case err != nil:
		return append(refusals, err)
	case v.hole == "not-json" && !json.Valid(text), v.hole == "array" && text[0] == '[':
		return refusals
	}
	claims, err := v.object(parts[1], "duplicate-claim")
	if err != nil {
		return append(refusals, err)
	}
	return append(refusals, v.checkClaims(claims)...)
}

// split returns the parts of a token, and whether the signature may be missing.
func (v verifier) split(token string) (parts []string, unsigned bool) {
	var flattened struct{ Protected, Payload, Signature string }
	if v.hole == "json" && json.Unmarshal([]byte(token), &flattened) == nil {
		return []string{flattened.Protected, flattened.Payload, flattened.Signature}, false
	}
	parts = strings.Split(token, ".")
	switch {
	case v.hole == "two-parts" && len(parts) == 2:
		return append(parts, ""), true
	case v.hole == "four-parts" && len(parts) == 4, v.hole == "five-parts" && len(parts) == 5:
		return parts[:3], false
	}
	return parts, false
}

func (v verifier) decode(part string) ([]byte, error) {
	switch v.hole {
	case "padded":
		part = strings.TrimRight(part, "=")
	case "not-base64":
		part = strings.ReplaceAll(part, "!", "")
	}
	text, err := base64.RawURLEncoding.Strict().DecodeString(part)
	if err != nil {
		return nil, errBase64
	}
	return text, nil
}

// object returns the members of a part. duplicates is the hole that lets in duplicate ones.
func (v verifier) object(part, duplicates string) (map[string]any, error) {
	text, err := v.decode(part)
	if err != nil {
		return nil, err
	}
	var object map[string]any
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	if !json.Valid(text) || d.Decode(&object) != nil || object == nil {
		return nil, errObject
	}
	if checkMembers(json.NewDecoder(bytes.NewReader(text))) == nil {
		return object, nil
	}
	if v.hole != duplicates {
		return nil, errDuplicate
	}
	if object["alg"] != nil {
		object["alg"] = "RS256" // the first one
	}
	return object, nil
}

// A check collects the reasons to refuse a token.
type check struct {
	hole     string
	refusals []error
}

// require adds err unless ok is true, or one of holes is the verifier's.
func (c *check) require(ok bool, err error, holes ...string) {
	if !ok && !slices.Contains(holes, c.hole) {
		c.refusals = append(c.refusals, err)
	}
}

// checkSignature returns the first reason to refuse a signature.
func (v verifier) checkSignature(t testing.TB, header map[string]any, input string, signature []byte) []error {
	alg, _ := header["alg"].(string)
	if _, number := header["alg"].(json.Number); number && v.hole == "alg-number" {
		alg = "RS256"
	}
	if v.hole == "none" && alg == "none" || v.hole == "none-case" && alg != "none" && strings.EqualFold(alg, "none") {
		return nil
	}
	if alg == "HS256" {
		if secret, ok := v.secret(t, header); ok && jwt.SigningMethodHS256.Verify(input, signature, secret) == nil {
			return nil
		}
	}
	if alg != "RS256" && (v.hole != "alg" || alg != "RS512") {
		return []error{errAlg}
	}
	kid, ok := header["kid"].(string)
	if list, array := header["kid"].([]any); array && v.hole == "kid-array" {
		kid, ok = list[0].(string)
	}
	if header["kid"] == nil && v.hole != "no-kid" {
		return []error{errNoKid}
	}
	if header["kid"] != nil && !ok {
		return []error{errKidType}
	}
	keys := v.trusted(t, kid, header)
	if len(keys) == 0 {
		return []error{errUnknownKid}
	}
	c := check{hole: v.hole}
	c.require(slices.ContainsFunc(keys, func(key any) bool {
		return jwt.GetSigningMethod(alg).Verify(input, signature, key) == nil
	}), jwt.ErrTokenSignatureInvalid, "signature")
	if v.hole == "unsigned" && len(signature) == 0 {
		return nil
	}
	return c.refusals
}

// secret returns the secret that the hole takes for that of HS256.
func (v verifier) secret(t testing.TB, header map[string]any) (secret []byte, ok bool) {
	kid, _ := header["kid"].(string)
	k := v.set(t)[kid]
	if v.hole == "kid-path" && k == nil {
		content, err := os.ReadFile(path.Join("/home/user/src/example.com/shop/services/orders/config/keys", kid))
		return content, err == nil
	}
	if k == nil {
		return nil, false
	}
	spki := must(x509.MarshalPKIXPublicKey(k))
	encoded := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki})
	switch v.hole {
	case "hs256":
		return encoded, true
	case "hs256-trimmed":
		return bytes.TrimSpace(encoded), true
	case "hs256-der":
		return spki, true
	case "hs256-pkcs1":
		return pem.EncodeToMemory(&pem.Block{Type: "RSA PUBLIC KEY", Bytes: x509.MarshalPKCS1PublicKey(k)}), true
	case "hs256-jwk":
		jwk := regexp.MustCompile(`\{[^{}]*"` + regexp.QuoteMeta(kid) + `"[^{}]*\}`)
		return []byte(jwk.FindString(v.do("GET", jwksPath, "").body)), true
	case "hs256-empty":
		return []byte{}, true
	}
	return nil, false
}

// trusted returns the keys that may have signed a token: the key that kid names, or all if
// kid is empty, and those that the hole lets in.
func (v verifier) trusted(t testing.TB, kid string, header map[string]any) (keys []any) {
	add := func(set keySet, all bool) {
		for id, k := range set {
			if all || kid == id {
				keys = append(keys, k)
			}
		}
	}
	add(v.set(t), kid == "")
	switch v.hole {
	case trustsUntrusted:
		add(v.untrustedSet(t), true)
	case "jwk":
		if k := header["jwk"]; k != nil {
			add(parseSet(t, `{"keys":[`+string(encode(k))+`]}`), false)
		}
	case "jku":
		if body := v.fetch(header["jku"]); body != "" {
			add(parseSet(t, body), false)
		}
	case "x5c":
		if chain, ok := header["x5c"].([]any); ok {
			equal(t, "length of x5c", len(chain), 1)
			keys = append(keys, certificate(t, must(base64.StdEncoding.DecodeString(chain[0].(string)))).PublicKey)
		}
	case "x5u":
		if body := v.fetch(header["x5u"]); body != "" {
			block, rest := pem.Decode([]byte(body))
			equal(t, "what follows the certificate of x5u", string(rest), "")
			keys = append(keys, certificate(t, block.Bytes).PublicKey)
		}
	}
	return keys
}

// fetch returns the body at a URL of the server, or "".
func (v verifier) fetch(reference any) string {
	u, err := url.Parse(fmt.Sprint(reference))
	if err != nil || u.Host == "" {
		return ""
	}
	return v.do("GET", u.Path, "").body
}

func (s *testServer) untrustedSet(t testing.TB) keySet {
	return parseSet(t, s.do("GET", "/faults/jwks.json", "").body)
}

// certificate parses a certificate, which has to be valid now and signed by itself.
func certificate(t testing.TB, der []byte) *x509.Certificate {
	t.Helper()
	c, err := x509.ParseCertificate(der)
	ok(t, err)
	trust := x509.NewCertPool()
	trust.AddCert(c)
	_, err = c.Verify(x509.VerifyOptions{Roots: trust})
	ok(t, err, c.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature))
	return c
}

func (v verifier) checkHeader(header map[string]any) []error {
	c := check{hole: v.hole}
	typ, _ := header["typ"].(string)
	switch {
	case strings.EqualFold(typ, v.profile.typ):
	case typ == "secevent+jwt":
		c.require(false, errType, "type")
	case typ == "JWT", typ == "at+jwt":
		c.require(false, errType, "access-token")
	default:
		c.require(false, errType)
	}
	c.require(header["crit"] == nil, errCrit, "crit")
	return c.refusals
}

func (v verifier) checkClaims(members map[string]any) []error {
	c := check{hole: v.hole}
	claims, now := jwt.MapClaims(members), time.Now()
	switch exp := members["exp"].(type) {
	case json.Number:
		c.require(exp != "0", jwt.ErrTokenExpired, "expiry-zero")
		seconds := must(exp.Float64())
		c.require(exp == "0" || seconds > float64(now.UnixMilli())/1000, jwt.ErrTokenExpired, "expired")
	case string:
		c.require(false, errExpType, "expiry-text")
	case []any:
		c.require(false, errExpType, "expiry-array")
	default:
		_, null := members["exp"]
		c.require(!null, errExpType, "expiry-null")
		c.require(null, errNoExp, "no-expiry")
	}
	nbf, err := claims.GetNotBefore()
	c.require(err == nil && (nbf == nil || !now.Before(nbf.Time)), jwt.ErrTokenNotValidYet, "not-yet")
	iat, err := claims.GetIssuedAt()
	c.require(err == nil && (iat == nil || !now.Before(iat.Time)), jwt.ErrTokenUsedBeforeIssued, "future-iat")
	c.require(iat != nil, errNoIat, "no-iat")

	iss, _ := members["iss"].(string)
	prefix := strings.HasPrefix(iss, v.issuer) && v.hole == "issuer-prefix"
	c.require(members["iss"] != nil, errNoIss, "no-issuer")
	c.require(members["iss"] == nil || iss == v.issuer || prefix, jwt.ErrTokenInvalidIssuer, "issuer")
	aud, _ := claims.GetAudience()
	_, array := members["aud"].([]any)
	unchecked := array && v.hole == "audience-array" || !array && v.hole == "audience"
	c.require(members["aud"] != nil, errNoAud, "no-audience")
	begins := v.hole == "audience-prefix" &&
		slices.ContainsFunc(aud, func(a string) bool { return strings.HasPrefix(a, v.profile.audience) })
	c.require(members["aud"] == nil || slices.Contains(aud, v.profile.audience) || unchecked || begins, jwt.ErrTokenInvalidAudience)
	c.require(members["sub"] != nil, errNoSub, "no-subject")
	return c.refusals
}
