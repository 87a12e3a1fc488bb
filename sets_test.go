package main

import (
	"context"
	"crypto/ecdh"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

const setsPath = "/faults/sets"

// setFault gives the JWK Set a fault; "" makes it good again.
func (to target) setFault(t testing.TB, name string) {
	t.Helper()
	query := ""
	if name != "" {
		query = "?fault=" + name
	}
	w := to.do("POST", setsPath+query, "")
	want := map[string]any{}
	if name != "" {
		want["fault"] = name
	}
	if w.status != 200 || !maps.Equal(w.json(t), want) {
		t.Fatalf("POST %s%s = %d %s; want 200 %v", setsPath, query, w.status, w.body, want)
	}
}

// A jwkSetBody is a JWK Set as it was served.
type jwkSetBody struct {
	members map[string]any
	keys    []map[string]any
}

func parseSetBody(t testing.TB, body string) (set jwkSetBody) {
	t.Helper()
	set.members = parseJSON(t, body)
	for _, k := range set.members["keys"].([]any) {
		set.keys = append(set.keys, k.(map[string]any))
	}
	delete(set.members, "keys")
	return set
}

// addedKeys are the first members of the keys that the odd sets have beside the good ones.
var addedKeys = map[string][]map[string]any{
	"unknown-kty":    {{"kty": "AKP"}},
	"unknown-alg":    {{"kty": "RSA", "alg": "XS256"}},
	"unknown-curve":  {{"kty": "EC", "crv": "P-257"}},
	"other-kinds":    {{"kty": "EC", "crv": "P-256", "alg": "ES256"}, {"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA"}},
	"encryption-key": {{"kty": "RSA", "use": "enc", "alg": "RSA-OAEP-256"}},
}

func TestOddJWKSets(t *testing.T) {
	s := newTestServer(t)
	good := s.do("GET", jwksPath, "")
	tag := good.header.Get("ETag")
	for _, f := range setFaults {
		if f.Accept != "new" {
			continue
		}
		t.Run(f.Name, func(t *testing.T) {
			s.setFault(t, f.Name)
			w := s.do("GET", jwksPath, "", "If-None-Match", tag) // even media-type is another document
			mediaType := "application/json"
			if f.Name == "media-type" || f.Name == "odd" {
				mediaType = "application/jwk-set+json"
			}
			header := maps.Clone(good.header)
			header.Set("Content-Type", mediaType)
			header.Set("Content-Length", fmt.Sprint(len(w.body)))
			header.Set("ETag", w.header.Get("ETag"))
			checkHeader(t, f.Name, w.header, header)
			equal(t, "status", w.status, 200)
			checkOddSet(t, f.Name, parseSetBody(t, w.body), parseSetBody(t, good.body))
			equal(t, "status for a client that has it", s.do("GET", jwksPath, "", "If-None-Match", w.header.Get("ETag")).status, 304)
		})
	}
	t.Run("the set is good again", func(t *testing.T) {
		s.setFault(t, "")
		w := s.do("GET", jwksPath, "")
		equal(t, "the set", w.body, good.body)
		checkHeader(t, "the good set", w.header, good.header)
	})
}

// TestKeysThatOddSetsAdd shows that nothing but their kind keeps verifiers from using them.
func TestKeysThatOddSetsAdd(t *testing.T) {
	decode := func(k map[string]any, member string) []byte {
		text, _ := k[member].(string)
		return must(base64.RawURLEncoding.Strict().DecodeString(text))
	}
	ec := ecKey("kid")
	_, err := ecdh.P256().NewPublicKey(slices.Concat([]byte{4}, decode(ec, "x"), decode(ec, "y")))
	wantError(t, "the point of the EC key", err, "")
	equal(t, "bytes of the Ed25519 key", len(decode(edKey, "x")), ed25519.PublicKeySize)
	equal(t, "bytes of the ML-DSA-44 key", len(decode(unknownKty, "pub")), 1312) // FIPS 204 table 2
	equal(t, "alg of the key on an unknown curve", unknownCurve["alg"], nil)     // no alg has this curve
}

// checkOddSet checks that an odd set has all good keys and its oddity, and nothing else.
func checkOddSet(t *testing.T, name string, got, good jwkSetBody) {
	t.Helper()
	has := func(oddity string) bool { return name == oddity || name == "odd" }
	if has("reversed") {
		slices.Reverse(good.keys)
	}
	for _, k := range good.keys {
		if has("no-alg") {
			delete(k, "alg")
			delete(k, "use")
		}
		if has("extra-members") {
			k["x-unknown"], k["x5t"] = "a", "AAAAAAAAAAAAAAAAAAAAAAAAAAA"
		}
	}
	equal(t, "the set has an unknown member", len(got.members) > 0, has("extra-members"))
	added := addedKeys[name]
	if name == "odd" {
		for _, f := range setFaults {
			added = append(added, addedKeys[f.Name]...)
		}
	}
	n := len(added)
	for _, want := range added {
		if !slices.ContainsFunc(got.keys[:n], func(k map[string]any) bool { return isPart(want, k) }) {
			t.Errorf("the first %d keys are %v; want one with %v", n, got.keys[:n], want)
		}
	}
	rest := slices.Clone(got.keys[n:])
	if has("same-kid") {
		equal(t, "keys after the added ones", len(rest), 2*len(good.keys))
		for i, k := range good.keys {
			equal(t, "the key before a good key is an EC key of its kid", isPart(map[string]any{"kty": "EC", "kid": k["kid"]}, rest[i]), true)
			rest = slices.Delete(rest, i, i+1)
		}
	}
	equal(t, "the good keys", string(encode(rest)), string(encode(good.keys)))
	kids := map[any]int{}
	for _, k := range got.keys {
		kids[k["kid"]]++
		for _, private := range []string{"d", "p", "q", "dp", "dq", "qi", "k", "priv"} {
			equal(t, "the set has the private member "+private, k[private] != nil, false)
		}
	}
	for kid, count := range kids {
		equal(t, fmt.Sprintf("kid %v is there twice", kid), count > 1, has("same-kid") && len(fmt.Sprint(kid)) == 43)
	}
}

// isPart reports whether an object has all members of part.
func isPart(part, object map[string]any) bool {
	for name, value := range part {
		if object[name] != value {
			return false
		}
	}
	return true
}

func TestBrokenJWKSets(t *testing.T) {
	const json = "application/json"
	for _, test := range []struct {
		fault      string
		wantStatus int
		wantType   string
		wantBody   string // "" if it is checked elsewhere
	}{
		{fault: "error", wantStatus: 500, wantType: json},
		{fault: "unavailable", wantStatus: 503, wantType: json},
		{fault: "not-found", wantStatus: 404, wantType: json},
		{fault: "html", wantStatus: 200, wantType: "text/html; charset=utf-8"},
		{fault: "empty", wantStatus: 200, wantType: json, wantBody: `{"keys":[]}`},
		{fault: "no-keys", wantStatus: 200, wantType: json, wantBody: `{}`},
		{fault: "cut", wantStatus: 200, wantType: json},
		{fault: "redirect", wantStatus: 302},
	} {
		t.Run(test.fault, func(t *testing.T) {
			s := newServerWithKey(t)
			good, kid := s.do("GET", jwksPath, ""), s.set(t).kids()[0]
			s.setFault(t, test.fault)
			w := s.do("GET", jwksPath, "", "If-None-Match", good.header.Get("ETag"))
			equal(t, "status", w.status, test.wantStatus)
			equal(t, "Content-Type", w.header.Get("Content-Type"), test.wantType)
			equal(t, "Cache-Control", w.header.Get("Cache-Control"), "no-store")
			equal(t, "ETag", w.header.Get("ETag"), "")
			switch test.fault {
			case "cut":
				equal(t, "body", w.body, good.body[:len(good.body)/2])
			case "redirect":
				equal(t, "Location", w.header.Get("Location"), jwksPath)
				equal(t, "body", w.body, "")
			default:
				equal(t, "the body has a good key", strings.Contains(w.body, kid), false)
			}
			if test.wantBody != "" {
				equal(t, "body", w.body, test.wantBody)
			}
			s.token(t, "", "") // the other requests are answered as ever
			s.setFault(t, "")
			equal(t, "the set afterwards", s.do("GET", jwksPath, "").body, good.body)
		})
	}
	t.Run("slow is the good set after 20 seconds", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := newServerWithKey(t)
			good, began := s.do("GET", jwksPath, ""), time.Now()
			s.setFault(t, "slow")
			w := s.do("GET", jwksPath, "")
			equal(t, "time", time.Since(began), 20*time.Second)
			equal(t, "body", w.body, good.body)
			equal(t, "Cache-Control", w.header.Get("Cache-Control"), "no-store")
		})
	})
	t.Run("slow ends when its client goes away", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := newServerWithKey(t)
			s.setFault(t, "slow")
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			began := time.Now()
			s.send(httptest.NewRequestWithContext(ctx, "GET", jwksPath, nil))
			equal(t, "time", time.Since(began), time.Second)
		})
	})
	for scheme, args := range map[string][]string{"http": {"-v"}, "https": tlsFlags(t)} {
		t.Run("they are sent whole over "+scheme+", whatever the write timeout", func(t *testing.T) {
			t.Parallel()
			p := startProcess(t, withKey(t, args...)...)
			p.client.Timeout = 3 * hang
			good := p.do("GET", jwksPath, "")
			p.setFault(t, "huge")
			w := p.do("GET", jwksPath, "")
			equal(t, "the error of reading huge", w.err, nil)
			equal(t, "huge has 16 MiB", len(w.body) > 16<<20, true)
			equal(t, "keys of huge", len(parseSetBody(t, w.body).keys), 1)
			p.setFault(t, "slow")
			w = p.do("GET", jwksPath, "") // 20 s are more than the write timeout, 15 s
			equal(t, "the error of reading slow", w.err, nil)
			equal(t, "body of slow", w.body, good.body)
		})
	}
}

func TestSetFaultRequests(t *testing.T) {
	t.Run("the catalogue lists every fault", func(t *testing.T) {
		s := newServerWithKey(t)
		var rows []map[string]string
		ok(t, json.Unmarshal([]byte(s.do("GET", setsPath, "").body), &rows))
		var names []string
		for _, row := range rows {
			names = append(names, row["fault"])
			equal(t, row["fault"]+": members", slices.Sorted(maps.Keys(row)), []string{"accept", "fault", "see", "why"})
			equal(t, row["fault"]+": accept is new or known", row["accept"] == "new" || row["accept"] == "known", true)
			equal(t, row["fault"]+": why and see are there", row["why"] != "" && row["see"] != "", true)
		}
		equal(t, "names", names, []string{"unknown-kty", "unknown-alg", "unknown-curve", "other-kinds", "encryption-key", "extra-members",
			"same-kid", "no-alg", "reversed", "media-type", "odd", "error", "unavailable", "not-found", "html", "empty",
			"no-keys", "cut", "slow", "huge", "redirect"})
	})
	t.Run("an unknown fault is refused, and the names are listed", func(t *testing.T) {
		s := newServerWithKey(t)
		for _, query := range []string{"?fault=", "?fault=x", "?fault", "?fault=empty&fault=html", "?%zz"} {
			s.do("POST", setsPath+query, "").checkError(t, query, 400, "invalid_request")
		}
		equal(t, "names", strings.Contains(s.do("POST", setsPath+"?fault=x", "").body, "unknown-kty, unknown-alg"), true)
		equal(t, "keys of the set", len(s.set(t)), 1)
	})
	t.Run("no web page may change the JWK Set", func(t *testing.T) {
		s := newTestServer(t, "-issuer", "https://a.test/tenant")
		before := s.do("GET", jwksPath, "").body
		for _, path := range []string{setsPath, "/tenant" + setsPath} {
			for _, query := range []string{"", "?fault=empty"} {
				s.do("POST", path+query, "", "Origin", "https://a.test").checkError(t, path+query, 403, "access_denied")
			}
		}
		s.do("POST", "/auth?key=new", "", "Origin", "null").checkError(t, "key=new", 403, "access_denied")
		equal(t, "the JWK Set", s.do("GET", jwksPath, "").body, before)
	})
	t.Run("a fault is to be seen under the path of the issuer too", func(t *testing.T) {
		s := newServerWithKey(t, "-issuer", "https://a.test/tenant")
		equal(t, "status", s.do("POST", "/tenant"+setsPath+"?fault=error", "").status, 200)
		equal(t, "status", s.do("GET", "/tenant"+jwksPath, "").status, 500)
		equal(t, "status", s.do("GET", jwksPath, "").status, 500)
	})
	t.Run("with clients there is nothing for tests", func(t *testing.T) {
		s := newServerWithKey(t, "-clients", clientsFile(t), "-issuer", "https://a.test/tenant")
		for _, prefix := range []string{"", "/tenant"} {
			for _, path := range []string{"/faults", setsPath, "/faults/reads", "/faults/jwks.json", "/faults/x5u.pem"} {
				for _, method := range []string{"GET", "HEAD", "POST", "OPTIONS"} {
					equal(t, method+" "+prefix+path, s.do(method, prefix+path, "").status, 404)
				}
			}
			for _, query := range []string{"?fault=none", "?key=new", "?key=x", "?expired=key"} {
				s.do("POST", prefix+"/auth"+query, "").checkError(t, query, 400, "invalid_request")
			}
		}
	})
}

func TestKeysMadeOnDemand(t *testing.T) {
	made := func(t *testing.T, s *testServer) (token, kid string) {
		t.Helper()
		token = s.token(t, "?key=new", "")
		return token, kidOf(t, token)
	}
	t.Run("a token of a new key is good, and its key is published from then on", func(t *testing.T) {
		s := newServerWithKey(t)
		before := s.set(t)
		token, kid := made(t, s)
		_, err := s.set(t).verify(token)
		ok(t, err)
		equal(t, "the key was published before", before[kid] != nil, false)
		_, err = s.set(t).verify(s.token(t, "", ""))
		ok(t, err)
	})
	t.Run("the set has the soonest-expiring key first", func(t *testing.T) {
		dir := keyDir(t.TempDir())
		putKey(t, dir, 0, 30*time.Minute)
		putKey(t, dir, 1, 90*time.Minute)
		s := newTestServer(t, "-keys", string(dir), "-publish-ahead", "1s")
		_, kid := made(t, s) // which expires in an hour
		var kids []any
		for _, k := range parseSetBody(t, s.do("GET", jwksPath, "").body).keys {
			kids = append(kids, k["kid"])
		}
		i := slices.Index(kids, any(kid))
		equal(t, "the place of the new key among the three", i, 1)
	})
	t.Run("the set has the text of each good key, which is the secret of hs256-jwk", func(t *testing.T) {
		s := newServerWithKey(t)
		_, kid := made(t, s)
		set := s.do("GET", jwksPath, "").body
		for _, k := range append(s.store.published(clock()), must(s.tester.madeKey(kid))) {
			equal(t, "the set has the text of "+k.kid, strings.Contains(set, string(encode(k.jwk()))), true)
		}
	})
	t.Run("a new key signs nothing else, and is never stored", func(t *testing.T) {
		s := newServerWithKey(t)
		files := must(os.ReadDir(string(s.store.dir)))
		_, kid := made(t, s)
		for range 10 {
			equal(t, "the new key signs another token", kidOf(t, s.token(t, "", "")) == kid, false)
		}
		equal(t, "files", len(must(os.ReadDir(string(s.store.dir)))), len(files))
	})
	t.Run("key=KID signs another token, also when the key is no longer published", func(t *testing.T) {
		s := newServerWithKey(t)
		first, kid := made(t, s)
		equal(t, "kid", kidOf(t, s.token(t, "?key="+kid, "")), kid)
		published := s.set(t)
		s.setFault(t, "")
		equal(t, "the key is published", s.set(t)[kid] != nil, false)
		second := s.token(t, "?key="+kid, `{"sub":"alice"}`)
		_, err := published.verify(second)
		ok(t, err)
		equal(t, "it is another token", first != second, true)
	})
	t.Run("any other kid is refused", func(t *testing.T) {
		s := newServerWithKey(t)
		for _, key := range []string{"", "x", "NEW", kidOf(t, s.token(t, "", ""))} {
			s.do("POST", "/auth?key="+key, "").checkError(t, key, 400, "invalid_request")
		}
	})
	t.Run("key excludes the other parameters", func(t *testing.T) {
		s := newServerWithKey(t)
		for _, query := range []string{"key=new&fault=none", "key=new&expired=true", "key=new&expires_in=5", "key=new&key=new"} {
			s.do("POST", "/auth?"+query, "").checkError(t, query, 400, "invalid_request")
		}
		equal(t, "keys", len(s.set(t)), 1)
	})
	t.Run("the newest eight are published", func(t *testing.T) {
		s := newServerWithKey(t)
		var kids []string
		for range maxMadeKeys + 2 {
			_, kid := made(t, s)
			kids = append(kids, kid)
		}
		set := s.set(t)
		equal(t, "keys in the set", len(set), 1+maxMadeKeys)
		for i, kid := range kids {
			equal(t, fmt.Sprintf("key %d is published", i), set[kid] != nil, i >= 2)
		}
		s.do("POST", "/auth?key="+kids[1], "").checkError(t, "the ninth newest", 400, "invalid_request")
		s.token(t, "?key="+kids[2], "")
	})
	t.Run("a key of before the set was good again is not published again", func(t *testing.T) {
		s := newServerWithKey(t)
		_, old := made(t, s)
		s.setFault(t, "")
		_, first := made(t, s)
		_, second := made(t, s)
		equal(t, "the old key is published", s.set(t)[old] != nil, false)
		equal(t, "the new keys are published", s.set(t)[first] != nil && s.set(t)[second] != nil, true)
	})
	t.Run("a fault of the set keeps the new keys, and a new key keeps the fault", func(t *testing.T) {
		dir := keyDir(t.TempDir())
		soonest := putKey(t, dir, 0, 30*time.Minute)
		s := newTestServer(t, "-keys", string(dir), "-publish-ahead", "1s")
		_, first := made(t, s)
		s.setFault(t, "reversed")
		_, second := made(t, s)
		var kids []any
		for _, k := range parseSetBody(t, s.do("GET", jwksPath, "").body).keys {
			kids = append(kids, k["kid"])
		}
		equal(t, "keys", len(kids), 3)
		equal(t, "both are published", slices.Contains(kids, any(first)) && slices.Contains(kids, any(second)), true)
		equal(t, "the soonest-expiring one is last", kids[2] == any(soonest.kid), true)
	})
	t.Run("a new key expires, and no token outlives it", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := newServerWithKey(t)
			_, kid := made(t, s)
			k := s.tester.made[0]
			sleepUntil(k.expires.Add(-10 * time.Minute))
			_, err := s.set(t).verify(s.token(t, "?key="+kid, ""))
			ok(t, err)
			time.Sleep(time.Second)
			s.do("POST", "/auth?key="+kid, "").checkError(t, "a token that would outlive its key", 400, "invalid_request")
			s.token(t, "?key="+kid, fmt.Sprintf(`{"exp":%d}`, k.expires.Unix()))
			sleepUntil(k.expires.Add(-1))
			equal(t, "the key is published", s.set(t)[kid] != nil, true)
			time.Sleep(time.Nanosecond)
			equal(t, "the expired key is published", s.set(t)[kid] != nil, false)
			s.do("POST", "/auth?key="+kid, "").checkError(t, "an expired key", 400, "invalid_request")
		})
	})
	bubble(t, "a request waits two seconds for the turn in which its key is made", func(t *testing.T) {
		s := newServerWithKey(t)
		defer takeAll(t, s.store.turns)()
		begin := time.Now()
		s.do("POST", "/auth?key=new", "").checkError(t, "key=new", 503, "temporarily_unavailable")
		equal(t, "waited", time.Since(begin), maxWait)
	})
	bubble(t, "a set with a fault has a key to sign with, even if all keys have expired", func(t *testing.T) {
		s := newServerWithKey(t)
		s.setFault(t, "reversed")
		time.Sleep(time.Hour)
		equal(t, "keys", len(s.set(t)), 1)
	})
	t.Run("a request that was canceled while its key was made publishes nothing", func(t *testing.T) {
		s := newServerWithKey(t)
		o, err := s.tester.parseOptions(canceledUnnoticed{t.Context()}, url.Values{"key": {"new"}}, time.Minute)
		ok(t, err)
		_, err = o.sign(&draft{})
		equal(t, "error", err, context.Canceled)
		equal(t, "keys", len(s.set(t)), 1)
	})
	t.Run("a request that is refused publishes nothing, and costs no other key", func(t *testing.T) {
		s := newServerWithKey(t)
		_, kid := made(t, s)
		for i := range maxMadeKeys {
			body := []string{"{", "grant_type=x", `{"exp":null}`, "fault=none"}[i%4]
			equal(t, "status of "+body, s.do("POST", "/auth?key=new", body).status, 400)
		}
		equal(t, "keys", len(s.set(t)), 2)
		s.token(t, "?key="+kid, "")
	})
}

// canceledUnnoticed is a context that has been canceled since somebody last waited for it.
type canceledUnnoticed struct{ context.Context }

func (canceledUnnoticed) Done() <-chan struct{} { return nil }
func (canceledUnnoticed) Err() error            { return context.Canceled }

func TestReads(t *testing.T) {
	s := newServerWithKey(t)
	reads := func() string { return strings.TrimSpace(s.do("GET", "/faults/reads", "").body) }
	equal(t, "reads at the start", reads(), `{"jku":0,"jwks":0,"x5u":0}`)
	tag := s.do("GET", jwksPath, "").header.Get("ETag")
	equal(t, "status", s.do("GET", jwksPath, "", "If-None-Match", tag).status, 304)
	s.do("HEAD", jwksPath, "")
	s.do("OPTIONS", jwksPath, "")
	s.do("POST", jwksPath, "")
	equal(t, "reads after two GETs and others", reads(), `{"jku":0,"jwks":2,"x5u":0}`)
	s.setFault(t, "error")
	s.do("GET", jwksPath, "")
	equal(t, "reads after a failed one", reads(), `{"jku":0,"jwks":3,"x5u":0}`)
	s.do("GET", "/faults/jwks.json", "")
	s.do("HEAD", "/faults/jwks.json", "")
	equal(t, "reads after one of jku", reads(), `{"jku":1,"jwks":3,"x5u":0}`)
	s.do("GET", "/faults/x5u.pem", "")
	s.do("HEAD", "/faults/x5u.pem", "")
	equal(t, "reads after one of x5u", reads(), `{"jku":1,"jwks":3,"x5u":1}`)
	equal(t, "Cache-Control", s.do("GET", "/faults/reads", "").header.Get("Cache-Control"), "no-store")
}
