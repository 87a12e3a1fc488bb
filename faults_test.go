package main

import (
	"bytes"
	"context"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/bits"
	"net/http/httptest"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// madeOnce generates the untrusted key of most tests. It is called in bubbles only, which
// all begin at the same time, because the certificate of the key has a lifetime.
var madeOnce = sync.OnceValues(func() (untrustedKey, error) { return newUntrustedKey(minBits) })

// A faultRow is a row of the table in the design.
type faultRow struct {
	name, refuse, see string

	header, claims map[string]any                  // what differs from a good token; nil if it is missing
	undo           func(token, good string) string // makes a token in a form that cannot be read readable; may be nil

	want  error    // of a verifier without a hole; nil if it accepts the token
	holes []string // each of which lets the token in
}

const aliceClaims = `{"sub":"alice","roles":["admin"]}`

// aRandomKid stands for a kid that is new in every token.
const aRandomKid = "a random kid"

// faultRows returns the table in the design, for tokens of now. typ and sub are those of a good token.
func faultRows(untrusted untrustedKey, issuer, typ, sub string) []faultRow {
	type m = map[string]any
	in := func(seconds int64) json.Number { return json.Number(strconv.FormatInt(time.Now().Unix()+seconds, 10)) }
	half := func(seconds int64) json.Number { return in(seconds-1) + ".5" }
	n, e := parameters(&untrusted.private.PublicKey)
	jwk := m{"kty": "RSA", "use": "sig", "alg": "RS256", "kid": thumbprint(&readyMade()[0].PublicKey), "n": n, "e": e}
	other := map[string]string{"JWT": "at+jwt", "at+jwt": "JWT"}[typ]
	otherCase := map[string]string{"JWT": "jwt", "at+jwt": "AT+JWT"}[typ]
	base := strings.TrimSuffix(issuer, "/")
	const another = "https://another-audience.invalid"
	const path = "../../../../../../../../../../../../../../../../dev/null"
	invalid, trusts := jwt.ErrTokenSignatureInvalid, trustsUntrusted
	return []faultRow{
		{name: "signature", refuse: "must", see: "RFC 7515 section 5.2", want: invalid, holes: []string{"signature"}},
		{name: "payload", refuse: "must", see: "RFC 7515 section 5.2",
			claims: m{"sub": "not-" + sub}, want: invalid, holes: []string{"signature"}},
		{name: "header", refuse: "must", see: "RFC 7515 section 5.2",
			header: m{"typ": otherCase}, want: invalid, holes: []string{"signature"}},
		{name: "unsigned", refuse: "must", see: "RFC 7515 section 5.2", want: invalid, holes: []string{"signature", "unsigned"}},
		{name: "none", refuse: "must", see: "RFC 8725 section 3.1", header: m{"alg": "none"}, want: errAlg, holes: []string{"none"}},
		{name: "none-case", refuse: "must", see: "RFC 8725 section 3.1", header: m{"alg": "nOnE"}, want: errAlg, holes: []string{"none-case"}},
		{name: "wrong-key", refuse: "must", see: "RFC 7515 section 5.2", want: invalid, holes: []string{"signature", trusts}},
		{name: "unknown-key", refuse: "must", see: "RFC 7515 section 4.1.4",
			header: m{"kid": aRandomKid}, want: errUnknownKid, holes: []string{trusts}},
		{name: "hs256", refuse: "must", see: "RFC 8725 section 2.1", header: m{"alg": "HS256"}, want: errAlg, holes: []string{"hs256"}},
		{name: "hs256-trimmed", refuse: "must", see: "RFC 8725 section 2.1",
			header: m{"alg": "HS256"}, want: errAlg, holes: []string{"hs256-trimmed"}},
		{name: "hs256-der", refuse: "must", see: "RFC 8725 section 2.1", header: m{"alg": "HS256"}, want: errAlg, holes: []string{"hs256-der"}},
		{name: "hs256-pkcs1", refuse: "must", see: "RFC 8725 section 2.1",
			header: m{"alg": "HS256"}, want: errAlg, holes: []string{"hs256-pkcs1"}},
		{name: "hs256-jwk", refuse: "must", see: "RFC 8725 section 2.1", header: m{"alg": "HS256"}, want: errAlg, holes: []string{"hs256-jwk"}},
		{name: "hs256-empty", refuse: "must", see: "RFC 8725 section 3.5",
			header: m{"alg": "HS256"}, want: errAlg, holes: []string{"hs256-empty"}},
		{name: "kid-path", refuse: "must", see: "RFC 8725 section 3.10",
			header: m{"alg": "HS256", "kid": path}, want: errAlg, holes: []string{"kid-path"}},
		{name: "jwk", refuse: "must", see: "RFC 8725 section 3.10",
			header: m{"jwk": jwk}, want: invalid, holes: []string{"signature", "jwk", trusts}},
		{name: "jku", refuse: "must", see: "RFC 8725 section 3.10",
			header: m{"kid": untrusted.kid, "jku": base + "/faults/jwks.json"}, want: errUnknownKid, holes: []string{"jku", trusts}},
		{name: "x5c", refuse: "must", see: "RFC 7515 section 4.1.6",
			header: m{"x5c": []any{untrusted.certificate}}, want: invalid, holes: []string{"signature", "x5c", trusts}},
		{name: "x5u", refuse: "must", see: "RFC 7515 section 4.1.5",
			header: m{"x5u": base + "/faults/x5u.pem"}, want: invalid, holes: []string{"signature", "x5u", trusts}},
		{name: "crit", refuse: "must", see: "RFC 7515 section 4.1.11",
			header: m{"crit": []any{undefined}, undefined: true}, want: errCrit, holes: []string{"crit"}},
		{name: "alg", refuse: "must", see: "RFC 8725 section 3.1", header: m{"alg": "RS512"}, want: errAlg, holes: []string{"alg"}},

		{name: "two-parts", refuse: "must", see: "RFC 7515 section 7.1", want: errParts, holes: []string{"two-parts"},
			undo: func(token, good string) string { return token + "." + strings.Split(good, ".")[2] }},
		{name: "four-parts", refuse: "must", see: "RFC 7515 section 7.1", want: errParts, holes: []string{"four-parts"},
			undo: func(token, good string) string { return strings.TrimSuffix(token, ".e30") }},
		{name: "five-parts", refuse: "must", see: "RFC 7515 section 7.1", want: errParts, holes: []string{"five-parts"},
			undo: func(token, good string) string { return strings.TrimSuffix(token, ".e30.e30") }},
		{name: "no-parts", refuse: "must", see: "RFC 7515 section 7.1", want: errObject, holes: []string{"no-parts"},
			undo: func(token, good string) string { return strings.TrimPrefix(token+good, "..") }},
		{name: "not-base64", refuse: "must", see: "RFC 7515 section 5.2", want: errBase64, holes: []string{"not-base64"},
			undo: func(token, good string) string { return strings.Replace(token, "!", "", 1) }},
		{name: "padded", refuse: "should", see: "RFC 7515 section 2", want: errBase64, holes: []string{"padded"},
			undo: func(token, good string) string { return strings.ReplaceAll(token, "=", "") }},
		{name: "json", refuse: "must", see: "RFC 7519 section 1", want: errParts, holes: []string{"json"},
			undo: func(token, good string) string {
				var flattened map[string]string
				json.Unmarshal([]byte(token), &flattened)
				return flattened["protected"] + "." + flattened["payload"] + "." + flattened["signature"]
			}},
		{name: "not-json", refuse: "must", see: "RFC 7519 section 7.2", want: errObject, holes: []string{"not-json"}, undo: takePayload},
		{name: "array", refuse: "must", see: "RFC 7519 section 7.2", want: errObject, holes: []string{"array"}, undo: takePayload},
		{name: "alg-number", refuse: "must", see: "RFC 7515 section 4.1.1",
			header: m{"alg": json.Number("256")}, want: errAlg, holes: []string{"alg-number"}},
		{name: "kid-array", refuse: "should", see: "RFC 7515 section 4.1.4",
			header: m{"kid": []any{thumbprint(&readyMade()[0].PublicKey)}}, want: errKidType, holes: []string{"kid-array"}},
		{name: "duplicate-alg", refuse: "must", see: "RFC 7515 section 4",
			header: m{"alg": "none"}, want: errDuplicate, holes: []string{"duplicate-alg"}},

		{name: "expired", refuse: "must", see: "RFC 7519 section 4.1.4",
			claims: m{"exp": in(-3600), "iat": in(-4200)}, want: jwt.ErrTokenExpired, holes: []string{"expired"}},
		{name: "expiry-zero", refuse: "must", see: "RFC 7519 section 4.1.4",
			claims: m{"exp": json.Number("0")}, want: jwt.ErrTokenExpired, holes: []string{"expiry-zero"}},
		{name: "not-yet", refuse: "must", see: "RFC 7519 section 4.1.5",
			claims: m{"nbf": in(3600)}, want: jwt.ErrTokenNotValidYet, holes: []string{"not-yet"}},
		{name: "issuer", refuse: "must", see: "RFC 8725 section 3.8",
			claims: m{"iss": "https://another-issuer.invalid"}, want: jwt.ErrTokenInvalidIssuer, holes: []string{"issuer"}},
		{name: "issuer-prefix", refuse: "must", see: "RFC 8725 section 3.8",
			claims: m{"iss": issuer + ".another-issuer.invalid"}, want: jwt.ErrTokenInvalidIssuer, holes: []string{"issuer", "issuer-prefix"}},
		{name: "audience", refuse: "must", see: "RFC 8725 section 3.9",
			claims: m{"aud": another}, want: jwt.ErrTokenInvalidAudience, holes: []string{"audience"}},
		{name: "audience-array", refuse: "must", see: "RFC 8725 section 3.9",
			claims: m{"aud": []any{another}}, want: jwt.ErrTokenInvalidAudience, holes: []string{"audience-array"}},
		{name: "audience-prefix", refuse: "must", see: "RFC 8725 section 3.9",
			claims: m{"aud": "api.another-audience.invalid"}, want: jwt.ErrTokenInvalidAudience, holes: []string{"audience", "audience-prefix"}},
		{name: "no-audience", refuse: "must", see: "RFC 8725 section 3.9", claims: m{"aud": nil}, want: errNoAud, holes: []string{"no-audience"}},
		{name: "type", refuse: "should", see: "RFC 8725 section 3.11",
			header: m{"typ": "secevent+jwt"}, want: errType, holes: []string{"type"}},
		{name: "no-expiry", refuse: "should", see: "RFC 9068 section 2.2", claims: m{"exp": nil}, want: errNoExp, holes: []string{"no-expiry"}},
		{name: "expiry-null", refuse: "should", see: "RFC 7519 section 4.1.4",
			claims: m{"exp": null{}}, want: errExpType, holes: []string{"expiry-null"}},
		{name: "expiry-text", refuse: "should", see: "RFC 7519 section 4.1.4",
			claims: m{"exp": in(600).String()}, want: errExpType, holes: []string{"expiry-text"}},
		{name: "expiry-array", refuse: "should", see: "RFC 7519 section 4.1.4",
			claims: m{"exp": []any{in(600)}}, want: errExpType, holes: []string{"expiry-array"}},
		{name: "no-issuer", refuse: "should", see: "RFC 9068 section 2.2", claims: m{"iss": nil}, want: errNoIss, holes: []string{"no-issuer"}},

		{name: "duplicate-claim", refuse: "may", see: "RFC 7519 section 4", want: errDuplicate, holes: []string{"duplicate-claim"}},
		{name: "no-kid", refuse: "may", see: "RFC 7515 section 4.1.4", header: m{"kid": nil}, want: errNoKid, holes: []string{"no-kid"}},
		{name: "no-subject", refuse: "may", see: "RFC 9068 section 2.2", claims: m{"sub": nil}, want: errNoSub, holes: []string{"no-subject"}},
		{name: "no-iat", refuse: "may", see: "RFC 9068 section 2.2", claims: m{"iat": nil}, want: errNoIat, holes: []string{"no-iat"}},
		{name: "future-iat", refuse: "may", see: "RFC 7519 section 4.1.6",
			claims: m{"iat": in(3600)}, want: jwt.ErrTokenUsedBeforeIssued, holes: []string{"future-iat"}},
		{name: "access-token", refuse: "may", see: "RFC 9068 section 4", header: m{"typ": other}, want: errType, holes: []string{"access-token"}},

		{name: "audience-list", refuse: "never", see: "RFC 7519 section 4.1.3", claims: m{"aud": []any{another, "api"}}},
		{name: "fraction", refuse: "never", see: "RFC 7519 section 2", claims: m{"exp": half(600), "iat": half(0)}},
		{name: "unknown-header", refuse: "never", see: "RFC 7515 section 4", header: m{undefined: true}},
		{name: "unknown-claim", refuse: "never", see: "RFC 7519 section 4", claims: m{undefined: true}},
		{name: "whitespace", refuse: "never", see: "RFC 8259 section 2"},
		{name: "escaped", refuse: "never", see: "RFC 8259 section 7"},
	}
}

// takePayload returns a token with the payload of a good one.
func takePayload(token, good string) string {
	encoded := strings.Split(token, ".")
	return encoded[0] + "." + strings.Split(good, ".")[1] + "." + encoded[2]
}

// null stands for the null of JSON, where nil stands for what is missing.
type null struct{}

// overlay returns the members of a good part, with those that differ.
func overlay(good, differ map[string]any) map[string]any {
	want := maps.Clone(good)
	maps.Copy(want, differ)
	maps.DeleteFunc(want, func(_ string, v any) bool { return v == nil })
	for name, v := range want {
		if v == (any)(null{}) {
			want[name] = nil
		}
	}
	return want
}

// TestEachFaultIsTheOnlyOneOfItsToken shows, for each row of the catalogue, that everything
// else is as in a good token, that a strict verifier refuses the token for one reason, and
// that a verifier with the one hole accepts it.
func TestEachFaultIsTheOnlyOneOfItsToken(t *testing.T) {
	for i, f := range faults {
		bubble(t, f.Name, func(t *testing.T) {
			untrusted := must(madeOnce())
			for _, test := range []struct{ issuer, typ, body, sub string }{
				{issuer: "http://issuer.test", typ: "JWT", sub: "user123"},
				{issuer: "https://a.test/tenant", typ: "at+jwt", body: aliceClaims, sub: "alice"},
				{issuer: "https://a.test/", typ: "JWT", body: "sub=al", sub: "al"},
				{issuer: "http://issuer.test", typ: "JWT", body: "sub=ali", sub: "ali"},
			} {
				s := newServerWithKey(t, "-audience", "api", "-issuer", test.issuer, "-typ", test.typ)
				s.tester.generate = madeOnce
				row := faultRows(untrusted, test.issuer, test.typ, test.sub)[i]
				row.checkToken(t, s, test.body)
				row.checkVerifiers(t, s, test.body)
			}
		})
	}
}

// checkToken checks the response to a request for the fault, and what differs from a good token.
func (row faultRow) checkToken(t *testing.T, s *testServer, body string) {
	t.Helper()
	good := s.token(t, "", body)
	wantHeader, wantClaims := parts(t, good)
	w := s.do("POST", "/auth?fault="+row.name, body)
	token := w.token(t)
	readable := token
	if row.undo != nil {
		readable = row.undo(token, good)
	}
	header, claims := parts(t, readable)
	payload := strings.Split(readable, ".")[1]
	hasClaims := row.undo == nil || payload != strings.Split(good, ".")[1]
	if hasClaims {
		if claims["jti"] == wantClaims["jti"] || claims["jti"] == "" {
			t.Errorf("jti = %v, as in another token", claims["jti"])
		}
		delete(claims, "jti")
		delete(wantClaims, "jti")
	}
	if kid, _ := header["kid"].(string); row.header["kid"] == aRandomKid {
		again := kidOf(t, s.token(t, "?fault="+row.name, body))
		if !regexp.MustCompile("^[A-Za-z0-9_-]{43}$").MatchString(kid) || again == kid || s.set(t)[kid] != nil || s.untrustedSet(t)[kid] != nil {
			t.Errorf("kid = %s, then %s; want a new one in each token, like that of a key", kid, again)
		}
		header["kid"] = aRandomKid
	}
	equal(t, "header", header, overlay(wantHeader, row.header))
	equal(t, "claims", claims, overlay(wantClaims, row.claims))

	want := map[string]any{"token": token, "access_token": token, "token_type": "Bearer", "fault": row.name}
	if exp, ok := claims["exp"].(json.Number); ok && hasClaims {
		seconds, _ := exp.Float64()
		if left := int64(seconds) - time.Now().Unix(); left > 0 {
			want["expires_in"] = json.Number(strconv.FormatInt(left, 10))
		}
	}
	equal(t, "response", w.json(t), want)
	equal(t, "Cache-Control", w.header.Get("Cache-Control"), "no-store")
}

// holes returns the holes of all verifiers, and "" for the strict one.
func holes() []string {
	list := []string{"", trustsUntrusted}
	for _, f := range faults {
		list = append(list, f.Name)
	}
	return list
}

func TestEachVerifierAcceptsAGoodToken(t *testing.T) {
	for _, typ := range []string{"JWT", "at+jwt"} {
		s := newServerWithKey(t, "-audience", "api", "-typ", typ)
		good := s.token(t, "", aliceClaims)
		for _, hole := range holes() {
			equal(t, "the reasons of a verifier with the hole "+hole, verifier{testServer: s, hole: hole}.verify(t, good), nil)
		}
	}
}

// checkVerifiers asks verifiers with each hole for the token.
func (row faultRow) checkVerifiers(t *testing.T, s *testServer, body string) {
	t.Helper()
	token := s.token(t, "?fault="+row.name, body)
	if (row.want == nil) != (row.refuse == "never") || len(row.holes) == 0 != (row.refuse == "never") {
		t.Errorf("%s has %d holes; want one at least, unless it may never be refused", row.name, len(row.holes))
	}
	for _, hole := range row.holes {
		if !slices.Contains(holes(), hole) {
			t.Errorf("there is no hole %s", hole)
		}
	}
	for _, hole := range holes() {
		got := verifier{testServer: s, hole: hole}.verify(t, token)
		if row.want == nil || slices.Contains(row.holes, hole) {
			if got != nil {
				t.Errorf("a verifier with the hole %q says %v; want it to accept the token", hole, got)
			}
		} else if len(got) != 1 || !errors.Is(got[0], row.want) {
			t.Errorf("a verifier with the hole %q says %v; want %v alone", hole, got, row.want)
		}
	}
}

// TestForms shows that faults of form are in the text of a token, where a reader of JSON does not see them.
func TestForms(t *testing.T) {
	s := newServerWithKey(t, "-audience", "api")
	text := func(token string, part int) string {
		return string(must(base64.URLEncoding.DecodeString(strings.Split(token, ".")[part])))
	}
	read := func(name, body string) (header, payload string) {
		token := s.token(t, "?fault="+name, body)
		pad := func(part string) string { return part + strings.Repeat("=", -len(part)&3) }
		encoded := strings.Split(token, ".")
		padded := pad(encoded[0]) + "." + pad(encoded[1])
		return text(padded, 0), text(padded, 1)
	}
	match := func(t *testing.T, what, text, pattern string) {
		t.Helper()
		if !regexp.MustCompile(pattern).MatchString(text) {
			t.Errorf("%s = %q; want %s", what, text, pattern)
		}
	}
	t.Run("white space is around names and values, and ends the text", func(t *testing.T) {
		header, payload := read("whitespace", "")
		match(t, "header", header, `^\{\n  "alg": "RS256",\n  "kid": "[^"]+",\n  "typ": "JWT"\n\}\n$`)
		match(t, "payload", payload, `^\{\n  "aud": "api",\n(  "[a-z]+": .+\n)+\}\n$`)
	})
	t.Run("names are escaped, those of a request, too", func(t *testing.T) {
		header, payload := read("escaped", `{"é😀\"":1}`)
		match(t, "header", header, `^\{"\\u0061\\u006c\\u0067":"RS256",`)
		match(t, "payload", payload, `"\\u00e9\\ud83d\\ude00\\u0022":1`)
		match(t, "payload", payload, `^\{("(\\u[0-9a-f]{4})+":[^:]+(:[^:]+)?,?)+\}$`)
	})
	t.Run("alg is RS256, then none", func(t *testing.T) {
		header, _ := read("duplicate-alg", "")
		match(t, "header", header, `^\{"alg":"RS256",.*,"alg":"none"\}$`)
	})
	t.Run("the first sub is another", func(t *testing.T) {
		_, payload := read("duplicate-claim", "sub=alice")
		match(t, "payload", payload, `^\{"sub":"not-alice",.*,"sub":"alice"\}$`)
	})
	t.Run("header and payload have padding, the signature has none", func(t *testing.T) {
		for _, body := range []string{"sub=a", "sub=aa", "sub=aaa"} {
			match(t, "token", s.token(t, "?fault=padded", body), `^[^=.]+==?\.[^=.]+==?\.[^=.]+$`)
		}
	})
	t.Run("payloads are no objects", func(t *testing.T) {
		for name, want := range map[string]string{"array": "[]", "not-json": "no JSON"} {
			_, payload := read(name, "")
			equal(t, "payload of "+name, payload, want)
		}
	})
	t.Run("the number of parts", func(t *testing.T) {
		for name, want := range map[string]string{
			"two-parts": `^[^.]+\.[^.]+$`, "four-parts": `^[^.]+\.[^.]+\.[^.]+\.e30$`, "five-parts": `^[^.]+\.[^.]+\.[^.]+\.e30\.e30$`,
			"no-parts": `^\.\.$`, "none": `^[^.]+\.[^.]+\.$`, "none-case": `^[^.]+\.[^.]+\.$`, "unsigned": `^[^.]+\.[^.]+\.$`,
			"json": `^\{"payload":"[^".]+","protected":"[^".]+","signature":"[^".]+"\}$`,
		} {
			match(t, name, s.token(t, "?fault="+name, ""), want)
		}
	})
	t.Run("a signature with an exclamation mark is whole without it", func(t *testing.T) {
		token := s.token(t, "?fault=not-base64", "")
		match(t, "signature", token, `\.[A-Za-z0-9_-]{100,}![A-Za-z0-9_-]{100,}$`)
		_, err := s.set(t).verify(strings.Replace(token, "!", "", 1))
		ok(t, err)
	})
	t.Run("one bit of a signature is flipped", func(t *testing.T) {
		token := s.token(t, "?fault=signature", "")
		i := strings.LastIndex(token, ".")
		got := must(base64.RawURLEncoding.DecodeString(token[i+1:]))
		want := must(jwt.SigningMethodRS256.Sign(token[:i], readyMade()[0]))
		flipped := 0
		for i := range want {
			flipped += bits.OnesCount8(got[i] ^ want[i])
		}
		if flipped != 1 || len(got) != len(want) || got[0] != want[0] || got[len(got)-1] != want[len(want)-1] {
			t.Errorf("%d of the bits of the signature are flipped; want one in the middle", flipped)
		}
	})
	t.Run("a payload and a header that are changed back are good", func(t *testing.T) {
		for name, change := range map[string][2]string{"payload": {"not-alice", "alice"}, "header": {`"jwt"`, `"JWT"`}} {
			encoded := strings.Split(s.token(t, "?fault="+name, aliceClaims), ".")
			for i := range 2 {
				text := must(base64.RawURLEncoding.DecodeString(encoded[i]))
				encoded[i] = encodePart(bytes.Replace(text, []byte(change[0]), []byte(change[1]), 1))
			}
			_, err := s.set(t).verify(strings.Join(encoded, "."))
			ok(t, err)
		}
	})
}

// slowKey lets a server generate its untrusted key in so much time.
func slowKey(s *testServer, d time.Duration) {
	s.tester.generate = func() (untrustedKey, error) {
		time.Sleep(d)
		return madeOnce()
	}
}

func TestUntrustedKey(t *testing.T) {
	test := func(rule string, generation time.Duration, test func(*testing.T, *testServer)) {
		bubble(t, rule, func(t *testing.T) {
			s := newServerWithKey(t)
			slowKey(s, generation)
			test(t, s)
		})
	}
	test("requests that need no untrusted key do not wait for it", 5*time.Second, func(t *testing.T, s *testServer) {
		for range 2 * cap(s.store.turns.turns) {
			go s.do("POST", "/auth?fault=wrong-key", "")
			go s.do("GET", "/faults/jwks.json", "")
		}
		synctest.Wait()
		began := time.Now()
		for _, query := range []string{"", "?expired", "?fault=none", "?fault=signature", "?fault=expired"} {
			s.token(t, query, "")
		}
		equal(t, "the wait", time.Since(began), 0)
		time.Sleep(time.Minute)
	})
	test("requests that need it wait for it", 5*time.Second, func(t *testing.T, s *testServer) {
		var served []string
		for _, path := range []string{"/auth?fault=wrong-key", "/auth?expired=key", "/auth?fault=wrong-key"} {
			began := time.Now()
			w := s.do("POST", path, "")
			served = append(served, fmt.Sprint(path, " ", w.status, " ", time.Since(began)))
		}
		equal(t, "the answers", served, []string{"/auth?fault=wrong-key 200 5s", "/auth?expired=key 200 0s", "/auth?fault=wrong-key 200 0s"})
	})
	test("the set of jku needs no turn", 5*time.Second, func(t *testing.T, s *testServer) {
		takeAll(t, s.store.turns)
		equal(t, "GET /faults/jwks.json", s.do("GET", "/faults/jwks.json", "").status, 200)
	})
	test("they wait for ten seconds, and the generation goes on", 11*time.Second, func(t *testing.T, s *testServer) {
		began := time.Now()
		s.do("POST", "/auth?fault=wrong-key", "").checkError(t, "the first fault", 503, "temporarily_unavailable")
		equal(t, "the wait", time.Since(began), 10*time.Second)
		s.token(t, "?fault=wrong-key", "")
		equal(t, "the wait for the second", time.Since(began), 11*time.Second)
	})
	test("a client that went away stops waiting", 5*time.Second, func(t *testing.T, s *testServer) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		s.send(httptest.NewRequestWithContext(ctx, "POST", "/auth?fault=wrong-key", nil))
		equal(t, "the wait", time.Since(began), time.Second)
		time.Sleep(time.Minute)
	})
}

func TestCatalogue(t *testing.T) {
	s := newServerWithKey(t, "-audience", "api")
	untrusted := must(s.tester.untrusted(t.Context()))
	rows := faultRows(untrusted, "", "JWT", "")
	t.Run("it is the table of the design", func(t *testing.T) {
		var got []map[string]string
		ok(t, json.Unmarshal([]byte(s.do("GET", "/faults", "").body), &got))
		equal(t, "length", len(got), len(rows))
		for i, f := range got {
			row := rows[i]
			equal(t, "row", f, map[string]string{"fault": row.name, "refuse": row.refuse, "see": row.see, "why": f["why"]})
			if len(strings.Fields(f["why"])) < 6 {
				t.Errorf("why of %s = %q; want a sentence", row.name, f["why"])
			}
		}
	})
	t.Run("an unknown fault is refused with all names", func(t *testing.T) {
		for _, name := range []string{"", "x", "None", "none%20"} {
			w := s.do("POST", "/auth?fault="+name, "")
			w.checkError(t, name, 400, "invalid_request")
			for _, f := range faults {
				if !strings.Contains(w.body, f.Name) {
					t.Errorf("fault %s = %s; want %s in it", name, w.body, f.Name)
				}
			}
		}
	})
	t.Run("a claim that a fault leaves out, lists or duplicates has to be there", func(t *testing.T) {
		open := newServerWithKey(t)
		for _, test := range []struct {
			server      *testServer
			fault, body string
			want        string
		}{
			{server: s, fault: "no-issuer", body: `{"iss":null}`, want: "the fault no-issuer needs a token with iss: request one in the body"},
			{server: s, fault: "no-subject", body: `{"sub":null}`, want: "the fault no-subject needs a token with sub: request one in the body"},
			{server: s, fault: "no-iat", body: `{"iat":null}`, want: "the fault no-iat needs a token with iat: request one in the body"},
			{server: s, fault: "duplicate-claim", body: `{"sub":null}`,
				want: "the fault duplicate-claim needs a token with sub: request one in the body"},
			{server: s, fault: "no-audience", body: `{"aud":null}`,
				want: "the fault no-audience needs a token with aud: request one in the body, or start the server with -audience"},
			{server: open, fault: "audience-list",
				want: "the fault audience-list needs a token with aud: request one in the body, or start the server with -audience"},
		} {
			w := test.server.do("POST", "/auth?fault="+test.fault, test.body)
			w.checkError(t, test.fault, 400, "invalid_request")
			equal(t, test.fault, w.json(t)["error_description"], any(test.want))
		}
		for fault, want := range map[string]any{
			"no-audience": nil, "audience": anotherAudience,
			"audience-array": []any{anotherAudience}, "audience-list": []any{anotherAudience, "x", "y"},
		} {
			_, claims := parts(t, open.token(t, "?fault="+fault, "aud=x&aud=y"))
			equal(t, "aud of "+fault, claims["aud"], want)
		}
		for _, fault := range []string{"audience", "audience-array", "issuer"} {
			open.token(t, "?fault="+fault, `{"iss":null}`)
		}
	})
	t.Run("a fault replaces what the body requests, and nothing else", func(t *testing.T) {
		body := `{"iss":"x","sub":7,"aud":["x"],"nbf":1,"iat":1}`
		for _, row := range faultRows(untrusted, "", "JWT", "7") {
			if row.undo != nil {
				continue // its claims are those of a good token, as other tests show
			}
			_, claims := parts(t, s.token(t, "?fault="+row.name, body))
			for name, value := range map[string]string{"iss": `"x"`, "sub": "7", "aud": `["x"]`, "nbf": "1", "iat": "1"} {
				_, differs := row.claims[name]
				if row.name == "expired" { // the requested iat stays
					differs = false
				}
				equal(t, row.name+" changes "+name, string(encode(claims[name])) != value, differs)
			}
		}
	})
	t.Run("another issuer begins with the requested one", func(t *testing.T) {
		for body, want := range map[string]string{
			`{"iss":"https://b.test/"}`: "https://b.test/.another-issuer.invalid",
			`{"iss":null}`:              "http://issuer.test.another-issuer.invalid",
		} {
			_, claims := parts(t, s.token(t, "?fault=issuer-prefix", body))
			equal(t, "iss of "+body, claims["iss"], any(want))
		}
	})
	t.Run("another audience begins with the first requested one", func(t *testing.T) {
		for body, want := range map[string]string{
			`{"aud":"x"}`:       "x.another-audience.invalid",
			`{"aud":["y","x"]}`: "y.another-audience.invalid",
			`{"aud":[]}`:        anotherAudience,
			`{"aud":[7]}`:       anotherAudience,
		} {
			_, claims := parts(t, s.token(t, "?fault=audience-prefix", body))
			equal(t, "aud of "+body, claims["aud"], any(want))
		}
	})
	t.Run("a fraction is that of the requested exp and iat", func(t *testing.T) {
		_, claims := parts(t, s.token(t, "?fault=fraction", `{"exp":1000.5,"iat":"x"}`))
		equal(t, "exp and iat", []any{claims["exp"], claims["iat"]}, []any{json.Number("999.5"), "x"})
	})
	t.Run("no bad token may be requested to outlive its key", func(t *testing.T) {
		body := `{"exp":` + strconv.FormatInt(time.Now().Unix()+1000, 10) + `}`
		for _, f := range faults {
			s.do("POST", "/auth?fault="+f.Name, body).checkError(t, f.Name, 400, "invalid_request")
		}
	})
	t.Run("jku and x5u are of the issuer of the request", func(t *testing.T) {
		anywhere := newTestServer(t, "-issuer", "", "-keys", "", "-publish-ahead", "1s")
		for fault, want := range map[string]string{"jku": "http://name.test:80/faults/jwks.json", "x5u": "http://name.test:80/faults/x5u.pem"} {
			header, _ := parts(t, anywhere.do("POST", "/auth?fault="+fault, "", "Host", "name.test:80").token(t))
			equal(t, fault, header[fault], any(want))
		}
	})
	t.Run("the type is that of another kind of JWT, whatever -typ is", func(t *testing.T) {
		for typ, want := range map[string]string{
			"JWT": "secevent+jwt", "logout+jwt": "secevent+jwt", "secevent+jwt": "logout+jwt", "SECEVENT+JWT": "logout+jwt",
		} {
			header, _ := parts(t, newServerWithKey(t, "-typ", typ).token(t, "?fault=type", ""))
			equal(t, "typ of the fault, with -typ "+typ, header["typ"], any(want))
		}
	})
	t.Run("the fault access-token is JWT if all other tokens are access tokens, in any case of letters", func(t *testing.T) {
		header, _ := parts(t, newServerWithKey(t, "-typ", "AT+JWT").token(t, "?fault=access-token", ""))
		equal(t, "typ", header["typ"], any("JWT"))
	})
	t.Run("the untrusted key has the size of the others, and its certificate is valid for years", func(t *testing.T) {
		k := must(newTester(3072).generate())
		equal(t, "bits", k.private.N.BitLen(), 3072)
		cert := certificate(t, must(base64.StdEncoding.DecodeString(k.certificate)))
		years := time.Until(cert.NotAfter) / (365 * 24 * time.Hour)
		equal(t, "the certificate is valid for five years or more", years >= 5, true)
	})
	t.Run("the untrusted key and its certificate are generated once", func(t *testing.T) {
		for _, query := range []string{"?fault=jku", "?expired=key", "?fault=jku"} {
			equal(t, "kid of "+query, kidOf(t, s.token(t, query, "")), untrusted.kid)
		}
		for range 2 {
			header, _ := parts(t, s.token(t, "?fault=x5c", ""))
			der := must(base64.StdEncoding.DecodeString(header["x5c"].([]any)[0].(string)))
			equal(t, "key of the certificate", thumbprint(certificate(t, der).PublicKey.(*rsa.PublicKey)), untrusted.kid)
		}
	})
	t.Run("the certificate of x5u is a PEM certificate chain", func(t *testing.T) {
		w := s.do("GET", "/faults/x5u.pem", "")
		equal(t, "Content-Type", w.header.Get("Content-Type"), "application/pem-certificate-chain")
	})
	t.Run("the untrusted key is in no JWK Set but its own, and has no file", func(t *testing.T) {
		equal(t, "kids of /faults/jwks.json", s.untrustedSet(t).kids(), []string{untrusted.kid})
		if files := keyFiles(t, s.store.dir); s.set(t)[untrusted.kid] != nil || len(files) != 1 || !files[untrusted.kid].IsZero() {
			t.Errorf("JWK Set = %v, files = %v; want no %s", s.set(t).kids(), files, untrusted.kid)
		}
	})
	t.Run("nothing links to where jku and x5u point", func(t *testing.T) {
		for _, path := range []string{"/", discoveryPath, oauthPath, "/faults", "/nothing"} {
			if body := s.do("GET", path, "").body; strings.Contains(body, "/faults/jwks") || strings.Contains(body, "/faults/x5u") {
				t.Errorf("GET %s = %s; want no link", path, body)
			}
		}
	})
}

func FuzzFaults(f *testing.F) {
	for i, body := range []string{
		"", aliceClaims, `{"sub":null}`, `{"sub":{"a":[1]},"exp":1.5,"aud":[]}`, `{"iss":null,"exp":-1e300}`,
		"sub=a&aud=b&aud=c", `{"crit":1,"":""}`, "[", `{"sub":"\ud83d"}`,
	} {
		f.Add(body, uint(i))
		f.Add(body, uint(i+len(faults)/2))
	}
	s := newServerWithKey(f)
	f.Fuzz(func(t *testing.T, body string, i uint) {
		name := faults[i%uint(len(faults))].Name
		w := s.do("POST", "/auth?fault="+name, body)
		if w.status != 200 {
			if w.status/100 != 4 {
				t.Errorf("fault %s of %q = %d %s; want 200 or 4xx", name, body, w.status, w.body)
			}
			return
		}
		if response := w.json(t); response["fault"] != name || response["token"] == "" {
			t.Errorf("fault %s of %q = %s; want a token", name, body, w.body)
		}
	})
}
