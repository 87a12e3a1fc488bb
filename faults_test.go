package main

import (
	"context"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"math/bits"
	"net/http/httptest"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// What a verifier may say beside the errors of golang-jwt.
var (
	errAlg        = errors.New("alg is not RS256")
	errType       = errors.New("typ is not JWT")
	errCrit       = errors.New("crit is not understood")
	errMissingKid = errors.New("kid is missing")
	errMissingExp = errors.New("exp is missing")
	errMissingIss = errors.New("iss is missing")
	errMissingAud = errors.New("aud is missing")
	errMissingSub = errors.New("sub is missing")
)

// A verifier checks all that the RFCs in the catalogue ask for, but for one hole. A hole
// has the name of the fault that it lets in, but for two that let in several.
type verifier struct {
	*testServer        // that it trusts
	hole        string // none if empty
}

// verify returns all the reasons to refuse a token.
func (v verifier) verify(t testing.TB, token string) (refusals []error) {
	header, members := parts(t, token)
	claims := jwt.MapClaims(members)
	check := func(ok bool, hole string, err error) {
		if !ok && v.hole != hole {
			refusals = append(refusals, err)
		}
	}
	alg, _ := header["alg"].(string)
	allowed := map[string]string{"": "RS256", "alg": "RS512", "hs256": "HS256", "none": "none"}
	if keys := v.trusted(t, header); alg != "RS256" && alg != allowed[v.hole] {
		refusals = append(refusals, errAlg)
	} else if header["kid"] == nil && v.hole != "no-kid" {
		refusals = append(refusals, errMissingKid)
	} else if len(keys) == 0 {
		refusals = append(refusals, errUnknownKid)
	} else {
		i := strings.LastIndex(token, ".")
		signature, err := base64.RawURLEncoding.Strict().DecodeString(token[i+1:])
		good := err == nil && slices.ContainsFunc(keys, func(key any) bool {
			return jwt.GetSigningMethod(alg).Verify(token[:i], signature, key) == nil
		})
		check(good || v.hole == "unsigned" && len(signature) == 0, signatureHole, jwt.ErrTokenSignatureInvalid)
	}
	check(header["typ"] == "JWT", "type", errType)
	check(header["crit"] == nil, "crit", errCrit)

	now := time.Now()
	switch exp, err := claims.GetExpirationTime(); {
	case err != nil:
		check(false, "expiry-text", err)
	case exp == nil:
		check(false, "no-expiry", errMissingExp)
	default:
		check(now.Before(exp.Time), "expired", jwt.ErrTokenExpired)
	}
	nbf, err := claims.GetNotBefore()
	check(err == nil && (nbf == nil || !now.Before(nbf.Time)), "not-yet", jwt.ErrTokenNotValidYet)
	iat, err := claims.GetIssuedAt()
	check(err == nil && iat != nil && !now.Before(iat.Time), "future-iat", jwt.ErrTokenUsedBeforeIssued)
	iss, _ := claims.GetIssuer()
	check(claims["iss"] != nil, "no-issuer", errMissingIss)
	check(claims["iss"] == nil || iss == v.issuer, "issuer", jwt.ErrTokenInvalidIssuer)
	aud, _ := claims.GetAudience()
	check(claims["aud"] != nil, "no-audience", errMissingAud)
	check(claims["aud"] == nil || slices.Contains(aud, v.profile.audience), "audience", jwt.ErrTokenInvalidAudience)
	check(claims["sub"] != nil, "no-subject", errMissingSub)
	return refusals
}

// trusted returns the keys that may have signed a token: the one that kid names, and those
// that the hole lets in.
func (v verifier) trusted(t testing.TB, header map[string]any) (keys []any) {
	set := v.set(t)
	kid, hasKid := header["kid"].(string)
	add := func(set keySet, whatever bool) {
		for id, k := range set {
			if whatever || kid == id {
				keys = append(keys, k)
			}
		}
	}
	add(set, !hasKid)
	switch v.hole {
	case otherKeyHole:
		add(v.otherSet(t), true)
	case "jwk":
		if k := header["jwk"]; k != nil {
			add(parseSet(t, `{"keys":[`+string(encode(k))+`]}`), true)
		}
	case "jku":
		if jku, err := url.Parse(fmt.Sprint(header["jku"])); err == nil && jku.Host != "" {
			add(parseSet(t, v.do("GET", jku.Path, "").body), false)
		}
	case "x5c":
		if header["x5c"] != nil {
			keys = append(keys, certificate(t, header).PublicKey)
		}
	case "hs256":
		if k := set[kid]; k != nil {
			der, _ := x509.MarshalPKIXPublicKey(k)
			keys = append(keys, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
		}
	case "none":
		if header["alg"] == "none" {
			keys = append(keys, jwt.UnsafeAllowNoneSignatureType)
		}
	}
	return keys
}

func (s *testServer) otherSet(t testing.TB) keySet {
	return parseSet(t, s.do("GET", "/faults/jwks.json", "").body)
}

// certificate returns that of a header, which has to be valid now and signed by itself.
func certificate(t testing.TB, header map[string]any) *x509.Certificate {
	t.Helper()
	chain, _ := header["x5c"].([]any)
	der, err := base64.StdEncoding.DecodeString(chain[0].(string))
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	trust := x509.NewCertPool()
	trust.AddCert(c)
	if _, err := c.Verify(x509.VerifyOptions{Roots: trust}); err != nil || len(chain) != 1 {
		t.Errorf("x5c = %v: %v; want one certificate that is valid now", chain, err)
	}
	if err := c.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature); err != nil {
		t.Errorf("certificate of x5c: %v; want one signed by itself", err)
	}
	return c
}

// madeOnce spares most tests the making of a key. It is called in bubbles only, which all
// begin at the same time, because of its certificate.
var madeOnce = sync.OnceValues(func() (untrustedKey, error) { return newUntrustedKey(minBits) })

// A wantedFault is a row of the table in the design.
type wantedFault struct {
	name, refuse, see string
	header, claims    map[string]any // what differs from a good token; nil if it is missing
	want              error          // of a verifier that has no hole
	holes             []string       // each of which lets it in
}

const (
	signatureHole = "signature" // takes any signature
	otherKeyHole  = "other-key" // trusts the key of /faults/jwks.json
	aliceClaims   = `{"sub":"alice","roles":["admin"]}`
)

// wantedFaults returns the table in the design, for tokens of now. Its other is the key
// that signs bad tokens.
func wantedFaults(other untrustedKey, issuer, sub string) []wantedFault {
	type m = map[string]any
	in := func(seconds int64) json.Number { return json.Number(strconv.FormatInt(time.Now().Unix()+seconds, 10)) }
	n, e := parameters(&other.private.PublicKey)
	jwk := m{"kty": "RSA", "use": "sig", "alg": "RS256", "kid": other.kid, "n": n, "e": e}
	invalid := jwt.ErrTokenSignatureInvalid
	return []wantedFault{
		{"signature", "must", "RFC 7515 section 5.2", nil, nil, invalid, []string{signatureHole}},
		{"payload", "must", "RFC 7515 section 5.2", nil, m{"sub": "not-" + sub}, invalid, []string{signatureHole}},
		{"unsigned", "must", "RFC 7515 section 5.2", nil, nil, invalid, []string{signatureHole, "unsigned"}},
		{"none", "must", "RFC 8725 section 3.1", m{"alg": "none"}, nil, errAlg, []string{"none"}},
		{"wrong-key", "must", "RFC 7515 section 5.2", nil, nil, invalid, []string{signatureHole, otherKeyHole}},
		{"unknown-key", "must", "RFC 7515 section 4.1.4", m{"kid": other.kid}, nil, errUnknownKid, []string{otherKeyHole}},
		{"hs256", "must", "RFC 8725 section 2.1", m{"alg": "HS256"}, nil, errAlg, []string{"hs256"}},
		{"jwk", "must", "RFC 8725 section 3.10", m{"jwk": jwk}, nil, invalid, []string{signatureHole, "jwk", otherKeyHole}},
		{"jku", "must", "RFC 8725 section 3.10", m{"kid": other.kid, "jku": issuer + "/faults/jwks.json"}, nil, errUnknownKid, []string{"jku", otherKeyHole}},
		{"x5c", "must", "RFC 7515 section 4.1.6", m{"x5c": []any{other.certificate}}, nil, invalid, []string{signatureHole, "x5c", otherKeyHole}},
		{"crit", "must", "RFC 7515 section 4.1.11", m{"crit": []any{undefined}, undefined: true}, nil, errCrit, []string{"crit"}},
		{"expired", "must", "RFC 7519 section 4.1.4", nil, m{"exp": in(-3600), "iat": in(-4200)}, jwt.ErrTokenExpired, []string{"expired"}},
		{"not-yet", "must", "RFC 7519 section 4.1.5", nil, m{"nbf": in(3600)}, jwt.ErrTokenNotValidYet, []string{"not-yet"}},
		{"issuer", "must", "RFC 8725 section 3.8", nil, m{"iss": "https://another-issuer.invalid"}, jwt.ErrTokenInvalidIssuer, []string{"issuer"}},
		{"audience", "must", "RFC 7519 section 4.1.3", nil, m{"aud": "https://another-audience.invalid"}, jwt.ErrTokenInvalidAudience, []string{"audience"}},
		{"alg", "should", "RFC 8725 section 3.1", m{"alg": "RS512"}, nil, errAlg, []string{"alg"}},
		{"type", "should", "RFC 8725 section 3.11", m{"typ": "secevent+jwt"}, nil, errType, []string{"type"}},
		{"no-expiry", "should", "RFC 9068 section 2.2", nil, m{"exp": nil}, errMissingExp, []string{"no-expiry"}},
		{"expiry-text", "should", "RFC 7519 section 4.1.4", nil, m{"exp": in(600).String()}, jwt.ErrInvalidType, []string{"expiry-text"}},
		{"no-issuer", "should", "RFC 9068 section 2.2", nil, m{"iss": nil}, errMissingIss, []string{"no-issuer"}},
		{"no-audience", "should", "RFC 9068 section 2.2", nil, m{"aud": nil}, errMissingAud, []string{"no-audience"}},
		{"no-kid", "may", "RFC 7515 section 4.1.4", m{"kid": nil}, nil, errMissingKid, []string{"no-kid"}},
		{"no-subject", "may", "RFC 9068 section 2.2", nil, m{"sub": nil}, errMissingSub, []string{"no-subject"}},
		{"future-iat", "may", "RFC 7519 section 4.1.6", nil, m{"iat": in(3600)}, jwt.ErrTokenUsedBeforeIssued, []string{"future-iat"}},
	}
}

// overlay returns what a good token has, with what differs.
func overlay(good, differs map[string]any) map[string]any {
	want := maps.Clone(good)
	maps.Copy(want, differs)
	maps.DeleteFunc(want, func(_ string, v any) bool { return v == nil })
	return want
}

// TestFaults shows for each row of the catalogue that the token has its fault and no other.
func TestFaults(t *testing.T) {
	for i, f := range faults {
		t.Run(f.Name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				for _, issuer := range []string{"http://issuer.test", "https://a.test/tenant"} {
					for body, sub := range map[string]string{"": "user123", aliceClaims: "alice"} {
						s := newServerWithKey(t, "-audience", "api", "-issuer", issuer)
						s.tester.generate = madeOnce
						other, _ := madeOnce()
						checkFault(t, s, body, wantedFaults(other, issuer, sub)[i])
					}
				}
			})
		})
	}
}

func checkFault(t *testing.T, s *testServer, body string, row wantedFault) {
	t.Helper()
	good := s.token(t, "", body)
	wantHeader, wantClaims := parts(t, good)
	w := s.do("POST", "/auth?fault="+row.name, body)
	response := w.json(t)
	token, _ := response["token"].(string)
	header, claims := parts(t, token)

	if claims["jti"] == wantClaims["jti"] || claims["jti"] == "" {
		t.Errorf("jti = %v, as in another token", claims["jti"])
	}
	delete(claims, "jti")
	delete(wantClaims, "jti")
	if want := overlay(wantHeader, row.header); !reflect.DeepEqual(header, want) {
		t.Errorf("header = %v; want %v", header, want)
	}
	if want := overlay(wantClaims, row.claims); !reflect.DeepEqual(claims, want) {
		t.Errorf("claims = %v; want %v", claims, want)
	}
	want := map[string]any{"token": token, "access_token": token, "token_type": "Bearer", "expires_in": json.Number("600"), "fault": row.name}
	if row.name == "expired" {
		delete(want, "expires_in")
	}
	if !maps.Equal(response, want) || w.header.Get("Cache-Control") != "no-store" {
		t.Errorf("response = %v, %v; want %v", response, w.header, want)
	}

	holes := []string{"", otherKeyHole}
	for _, f := range faults {
		holes = append(holes, f.Name)
	}
	for _, hole := range holes {
		v := verifier{s, hole}
		if got := v.verify(t, good); got != nil {
			t.Errorf("a verifier with the hole %q refuses a good token: %v", hole, got)
		}
		got := v.verify(t, token)
		if slices.Contains(row.holes, hole) {
			if got != nil {
				t.Errorf("a verifier with the hole %s says %v; want it to accept the token", hole, got)
			}
		} else if len(got) != 1 || !errors.Is(got[0], row.want) {
			t.Errorf("a verifier with the hole %q says %v; want %v alone", hole, got, row.want)
		}
	}
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
	live, other := s.set(t), s.otherSet(t)
	otherKid := other.kids()[0]
	t.Run("it is the table of the design", func(t *testing.T) {
		var got []map[string]string
		if err := json.Unmarshal([]byte(s.do("GET", "/faults", "").body), &got); err != nil {
			t.Fatal(err)
		}
		want := wantedFaults(untrustedKey{key: key{private: readyMade()[1]}}, "", "")
		if len(got) != len(want) || len(got) != len(faults) {
			t.Fatalf("GET /faults has %d faults; want %d", len(got), len(want))
		}
		for i, f := range got {
			row := map[string]string{"fault": want[i].name, "refuse": want[i].refuse, "see": want[i].see, "why": f["why"]}
			if !maps.Equal(f, row) || len(f["why"]) < 10 {
				t.Errorf("fault %d = %v; want %v and why", i, f, row)
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
	t.Run("a claim that is left out cannot be missing", func(t *testing.T) {
		for fault, body := range map[string]string{"no-expiry": `{"exp":null}`, "no-issuer": `{"iss":null}`, "no-audience": `{"aud":null}`, "no-subject": `{"sub":null}`} {
			s.do("POST", "/auth?fault="+fault, body).checkError(t, fault+" "+body, 400, "invalid_request")
		}
		open := newServerWithKey(t)
		open.do("POST", "/auth?fault=no-audience", "").checkError(t, "no-audience without -audience", 400, "invalid_request")
		if _, claims := parts(t, open.token(t, "?fault=no-audience", "aud=x")); claims["aud"] != nil {
			t.Errorf("claims = %v; want no aud", claims)
		}
		if _, claims := parts(t, open.token(t, "?fault=audience", "")); claims["aud"] == nil {
			t.Errorf("claims of fault audience without -audience = %v; want an aud", claims)
		}
	})
	t.Run("a fault replaces what the body asks for", func(t *testing.T) {
		body := `{"iss":"x","sub":7,"aud":["x"],"nbf":1,"iat":1}`
		for _, row := range wantedFaults(untrustedKey{key: key{private: readyMade()[1]}}, "", "7") {
			_, claims := parts(t, s.token(t, "?fault="+row.name, body))
			for name, value := range map[string]string{"iss": `"x"`, "sub": "7", "aud": `["x"]`, "nbf": "1", "iat": "1"} {
				if _, differs := row.claims[name]; (string(encode(claims[name])) != value) != differs && row.name != "expired" {
					t.Errorf("fault %s: %s = %v, asked for as %s", row.name, name, claims[name], value)
				}
			}
		}
	})
	t.Run("no bad token may ask to outlive its key", func(t *testing.T) {
		body := `{"exp":` + strconv.FormatInt(time.Now().Unix()+1000, 10) + `}`
		for _, f := range faults {
			s.do("POST", "/auth?fault="+f.Name, body).checkError(t, f.Name, 400, "invalid_request")
		}
	})
	t.Run("one bit of a signature is flipped", func(t *testing.T) {
		token := s.token(t, "?fault=signature", "")
		i := strings.LastIndex(token, ".")
		got, _ := base64.RawURLEncoding.DecodeString(token[i+1:])
		want, _ := jwt.SigningMethodRS256.Sign(token[:i], readyMade()[0])
		flipped := 0
		for i := range want {
			flipped += bits.OnesCount8(got[i] ^ want[i])
		}
		if flipped != 1 || len(got) != len(want) || got[0] != want[0] || got[len(got)-1] != want[len(want)-1] {
			t.Errorf("%d of the bits of the signature are flipped; want one in the middle", flipped)
		}
	})
	t.Run("a payload that is changed back is good", func(t *testing.T) {
		encoded := strings.Split(s.token(t, "?fault=payload", aliceClaims), ".")
		payload, _ := base64.RawURLEncoding.DecodeString(encoded[1])
		encoded[1] = base64.RawURLEncoding.EncodeToString([]byte(strings.Replace(string(payload), "not-alice", "alice", 1)))
		if _, err := live.verify(strings.Join(encoded, ".")); err != nil {
			t.Errorf("verify(payload changed back) = %v", err)
		}
	})
	t.Run("the other key and its certificate are made once", func(t *testing.T) {
		for _, query := range []string{"?fault=unknown-key", "?fault=jku", "?expired=key", "?fault=unknown-key"} {
			if kid := kidOf(t, s.token(t, query, "")); kid != otherKid {
				t.Errorf("kid of %s = %s; want %s", query, kid, otherKid)
			}
		}
		for range 2 {
			header, _ := parts(t, s.token(t, "?fault=x5c", ""))
			if k := certificate(t, header).PublicKey.(*rsa.PublicKey); !k.Equal(other[otherKid]) {
				t.Errorf("the certificate holds the key %s; want %s", thumbprint(k), otherKid)
			}
		}
	})
	t.Run("the other key is in no JWK Set but its own, and has no file", func(t *testing.T) {
		if files := keyFiles(t, s.store.dir); len(other) != 1 || s.set(t)[otherKid] != nil || len(files) != 1 || !files[otherKid].IsZero() {
			t.Errorf("JWK Set = %v, files = %v; want no %s", s.set(t).kids(), files, otherKid)
		}
	})
	t.Run("nothing links to the key set of jku", func(t *testing.T) {
		for _, path := range []string{"/", discoveryPath, oauthPath, "/faults", "/nothing"} {
			if body := s.do("GET", path, "").body; strings.Contains(body, "/faults/jwks") {
				t.Errorf("GET %s = %s; want no link to /faults/jwks.json", path, body)
			}
		}
	})
}

func FuzzFaults(f *testing.F) {
	for i, body := range []string{"", aliceClaims, `{"sub":null}`, `{"sub":{"a":[1]},"exp":1.5,"aud":[]}`, `{"iss":null,"exp":-1e300}`, "sub=a&aud=b&aud=c", `{"crit":1,"":""}`, "[", `{"sub":"\ud83d"}`} {
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
		if response := w.json(t); response["fault"] != name || strings.Count(response["token"].(string), ".") != 2 {
			t.Errorf("fault %s of %q = %s; want a token", name, body, w.body)
		}
	})
}
