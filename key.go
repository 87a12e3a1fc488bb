package main

import (
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"math/big"
	"strings"
	"time"
)

const timeFormat = "20060102T150405Z" // of the expiry in a file name

// A key is one RSA signing key.
type key struct {
	kid     string // thumbprint of the key, so that a kid never names a different key
	private *rsa.PrivateKey
	expires time.Time // UTC, in whole seconds; from then on the key neither signs nor is published
}

// newKey returns a key that expires at expires, rounded up to a whole second.
func newKey(private *rsa.PrivateKey, expires time.Time) key {
	return key{
		kid:     thumbprint(&private.PublicKey),
		private: private,
		expires: expires.Add(time.Second - 1).Truncate(time.Second).UTC(),
	}
}

func (k key) expired(now time.Time) bool { return !now.Before(k.expires) }

// name is the name of the key's file without its extension. Names sort by expiry.
func (k key) name() string { return k.expires.Format(timeFormat) + "." + k.kid }

// parseName returns the expiry and the kid in the name of a key.
func parseName(name string) (expires time.Time, kid string, ok bool) {
	text, kid, _ := strings.Cut(name, ".")
	expires, err := time.Parse(timeFormat, text)
	return expires, kid, err == nil && kid != ""
}

// parameters returns the members n and e of a JWK (RFC 7518 section 6.3.1).
func parameters(public *rsa.PublicKey) (n, e string) {
	b64 := base64.RawURLEncoding.EncodeToString
	return b64(public.N.Bytes()), b64(big.NewInt(int64(public.E)).Bytes())
}

// thumbprint returns the SHA-256 JWK thumbprint of a public key (RFC 7638 section 3).
func thumbprint(public *rsa.PublicKey) string {
	n, e := parameters(public)
	sum := sha256.Sum256([]byte(`{"e":"` + e + `","kty":"RSA","n":"` + n + `"}`))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// A jwk is the public half of a key (RFC 7517 section 4). It has no other members, because
// some verifiers reject a whole set over one member they do not expect.
type jwk struct {
	Kty string `json:"kty"`
	Use string `json:"use"`
	Alg string `json:"alg"`
	Kid string `json:"kid"`
	N   string `json:"n"`
	E   string `json:"e"`
}

// jwkSet returns the JWK Set of keys (RFC 7517 section 5).
func jwkSet(keys []key) *document {
	set := struct {
		Keys []jwk `json:"keys"`
	}{Keys: []jwk{}}
	for _, k := range keys {
		set.Keys = append(set.Keys, k.jwk())
	}
	return newDocument(set)
}

func (k key) jwk() jwk {
	n, e := parameters(&k.private.PublicKey)
	return jwk{Kty: "RSA", Use: "sig", Alg: "RS256", Kid: k.kid, N: n, E: e}
}
