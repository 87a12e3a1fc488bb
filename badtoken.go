package main

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf16"

	"github.com/golang-jwt/jwt/v5"
)

const anotherAudience = "https://another-audience.invalid"

// A badToken is a draft with a fault. Its signature covers the very text that is sent.
type badToken struct {
	*draft
	untrusted untrustedKey // set only for faults that need it

	headerText, payloadText func(text []byte) []byte    // rewrite the JSON before it is encoded
	encoding                *base64.Encoding            // of header and payload
	assemble                func(parts []string) string // makes the token of its three parts once they are signed
}

func newBadToken(d *draft, untrusted untrustedKey) *badToken {
	unchanged := func(text []byte) []byte { return text }
	return &badToken{
		draft: d, untrusted: untrusted,
		headerText: unchanged, payloadText: unchanged, encoding: base64.RawURLEncoding,
		assemble: func(parts []string) string { return strings.Join(parts, ".") },
	}
}

func (b *badToken) sign() (string, error) {
	header := b.encoding.EncodeToString(b.headerText(encode(b.header)))
	payload := b.encoding.EncodeToString(b.payloadText(encode(b.claims)))
	token, err := b.signParts(header, payload)
	if err != nil {
		return "", err
	}
	return b.assemble(strings.Split(token, ".")), nil
}

// url returns the URL of a path of this server.
func (b *badToken) url(path string) string { return strings.TrimSuffix(b.issuer, "/") + path }

// The functions below change a bad token, or return functions that do.

func setHeader(name string, value any) func(*badToken) {
	return func(b *badToken) { b.header[name] = value }
}

func setClaim(name string, value any) func(*badToken) {
	return func(b *badToken) { b.claims[name] = value }
}

// setExp sets exp to a value with which the token does not expire in the future.
func (b *badToken) setExp(value any) { b.claims["exp"], b.expires = value, 0 }

// signWith sets the signing key or secret, and alg.
func (b *badToken) signWith(method jwt.SigningMethod, signer any) {
	b.method, b.signer, b.header["alg"] = method, signer, method.Alg()
}

// signUntrusted makes the untrusted key sign.
func (b *badToken) signUntrusted() { b.signer = b.untrusted.private }

// hs256 returns a function that signs with HS256 and a secret that anyone can know.
func hs256(secret func(signing key) []byte) func(*badToken) {
	return func(b *badToken) { b.signWith(jwt.SigningMethodHS256, secret(b.key)) }
}

func noSecret(key) []byte { return []byte{} }

// spkiDER returns the public half of a key as X.509 SubjectPublicKeyInfo.
func spkiDER(k key) []byte {
	der, _ := x509.MarshalPKIXPublicKey(&k.private.PublicKey) // cannot fail for RSA
	return der
}

// spkiPEM returns the form in which public keys are usually stored.
func spkiPEM(k key) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spkiDER(k)})
}

func pkcs1PEM(k key) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "RSA PUBLIC KEY", Bytes: x509.MarshalPKCS1PublicKey(&k.private.PublicKey)})
}

// randomKid returns a kid that no key has, and that looks like those of other keys.
func randomKid() string {
	b := make([]byte, sha256.Size)
	rand.Read(b)
	return encodePart(b)
}

// assembled returns a function that sets assemble.
func assembled(assemble func(parts []string) string) func(*badToken) {
	return func(b *badToken) { b.assemble = assemble }
}

// flipBit flips a bit in the middle of the signature. Changing the last character might
// change only padding bits.
func flipBit(parts []string) string {
	signature, _ := base64.RawURLEncoding.DecodeString(parts[2])
	signature[len(signature)/2] ^= 1
	return parts[0] + "." + parts[1] + "." + encodePart(signature)
}

func insertExclamationMark(parts []string) string {
	middle := len(parts[2]) / 2
	return parts[0] + "." + parts[1] + "." + parts[2][:middle] + "!" + parts[2][middle:]
}

// flattenedJSON returns the flattened JWS JSON Serialization (RFC 7515 section 7.2.2).
func flattenedJSON(parts []string) string {
	return string(encode(map[string]string{"protected": parts[0], "payload": parts[1], "signature": parts[2]}))
}

// changeSubject changes sub after the token is signed.
func (b *badToken) changeSubject() {
	b.assemble = func(parts []string) string {
		b.claims["sub"] = b.otherSubject()
		return parts[0] + "." + encodePart(encode(b.claims)) + "." + parts[2]
	}
}

// otherSubject returns a sub that differs from that of the token.
func (b *badToken) otherSubject() string {
	var sub any = "nobody"
	if b.claims["sub"] != nil {
		json.Unmarshal(encode(b.claims["sub"]), &sub)
	}
	return fmt.Sprintf("not-%v", sub)
}

// changeTypCase changes the case of typ after the token is signed. Media types are
// case-insensitive, so that only the signature is wrong.
func (b *badToken) changeTypCase() {
	b.assemble = func(parts []string) string {
		typ := fmt.Sprint(b.header["typ"])
		b.header["typ"] = strings.ToLower(typ)
		if b.header["typ"] == typ {
			b.header["typ"] = strings.ToUpper(typ)
		}
		return encodePart(encode(b.header)) + "." + parts[1] + "." + parts[2]
	}
}

// changeType makes typ that of a security event token, or of a logout token if all tokens of the
// server are security event tokens.
func (b *badToken) changeType() {
	const securityEvent, logout = "secevent+jwt", "logout+jwt" // RFC 8417, OpenID Connect Back-Channel Logout 1.0
	if typ := b.header["typ"].(string); strings.EqualFold(typ, securityEvent) {
		b.header["typ"] = logout
	} else {
		b.header["typ"] = securityEvent
	}
}

// rewrite makes f rewrite the JSON of header and payload.
func (b *badToken) rewrite(f func(text []byte) []byte) { b.headerText, b.payloadText = f, f }

// replacePayload returns a function that replaces the payload by a text without exp.
func replacePayload(text string) func(*badToken) {
	return func(b *badToken) {
		b.payloadText, b.expires = func([]byte) []byte { return []byte(text) }, 0
	}
}

// keepPadding encodes header and payload in base64 with padding, and makes sure that both need it.
func (b *badToken) keepPadding() {
	b.encoding = base64.URLEncoding
	b.rewrite(func(text []byte) []byte {
		if len(text)%3 == 0 {
			text = append(text, ' ')
		}
		return text
	})
}

func indent(text []byte) []byte {
	var indented bytes.Buffer
	json.Indent(&indented, text, "", "  ")
	return append(indented.Bytes(), '\n')
}

// escapeNames writes each character of the member names of an object as an escape.
func escapeNames(object []byte) []byte {
	var members map[string]json.RawMessage
	json.Unmarshal(object, &members)
	var list []string
	for name, value := range members {
		var escaped strings.Builder
		for _, unit := range utf16.Encode([]rune(name)) {
			fmt.Fprintf(&escaped, `\u%04x`, unit)
		}
		list = append(list, `"`+escaped.String()+`":`+string(value))
	}
	slices.Sort(list)
	return []byte("{" + strings.Join(list, ",") + "}")
}

// duplicateAlg adds a second alg, none, to the header.
func (b *badToken) duplicateAlg() {
	b.headerText = func(text []byte) []byte { return append(bytes.TrimSuffix(text, []byte("}")), `,"alg":"none"}`...) }
}

// duplicateSubject puts another sub before that of the token.
func (b *badToken) duplicateSubject() {
	first := append([]byte(`{"sub":`), encode(b.otherSubject())...)
	b.payloadText = func(text []byte) []byte { return append(append(first, ','), text[1:]...) }
}

// listAudience makes aud an array: another audience, then what it was.
func (b *badToken) listAudience() {
	b.claims["aud"] = append([]json.RawMessage{encode(anotherAudience)}, b.audiences()...)
}

// extendAudience makes aud a string: the first audience that it has, with a suffix.
func (b *badToken) extendAudience() {
	aud := anotherAudience
	if list := b.audiences(); len(list) > 0 {
		if first, err := parseString(list[0]); err == nil {
			aud = first + ".another-audience.invalid"
		}
	}
	b.claims["aud"] = aud
}

// audiences returns the elements of aud, or aud if it is no array.
func (b *badToken) audiences() (list []json.RawMessage) {
	aud := encode(b.claims["aud"])
	if json.Unmarshal(aud, &list) != nil {
		return []json.RawMessage{aud}
	}
	return list
}

// extendIssuer adds a suffix to iss, or to the server's issuer if iss is not a string.
func (b *badToken) extendIssuer() {
	iss, err := parseString(encode(b.claims["iss"]))
	if err != nil {
		iss = b.issuer
	}
	b.claims["iss"] = iss + ".another-issuer.invalid"
}

// subtractHalf makes exp and iat, if they are numbers, half a second earlier.
func (b *badToken) subtractHalf() {
	for _, name := range []string{"exp", "iat"} {
		if n, err := strconv.ParseFloat(string(encode(b.claims[name])), 64); err == nil {
			b.claims[name] = json.Number(strconv.FormatFloat(math.Floor(n)-0.5, 'f', -1, 64))
		}
	}
	b.expires--
}

// An untrustedKey is a key that no verifier trusts. It is in memory only, and is published
// only where jku and x5u of bad tokens point.
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
	chain := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate})
	return untrustedKey{
		key:         k,
		certificate: base64.StdEncoding.EncodeToString(certificate),
		set:         jwkSet([]key{k}),
		chain:       newText([]string{"application/pem-certificate-chain"}, chain),
	}, nil
}
