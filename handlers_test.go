package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"math"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

const (
	jwksPath      = "/.well-known/jwks.json"
	discoveryPath = "/.well-known/openid-configuration"
	formLabel     = "application/x-www-form-urlencoded"
)

// readyMade are two keys for all tests, since making one takes a while. The first
// has the greater kid: no order of kids looks like an order of expiries.
var readyMade = sync.OnceValue(func() (keys [2]*rsa.PrivateKey) {
	for i := range keys {
		var err error
		if keys[i], err = rsa.GenerateKey(rand.Reader, minBits); err != nil {
			panic(err)
		}
	}
	if thumbprint(&keys[0].PublicKey) < thumbprint(&keys[1].PublicKey) {
		keys[0], keys[1] = keys[1], keys[0]
	}
	return keys
})

// start returns a server that finds a key on its start and wants no other.
func start(t testing.TB, args ...string) (http.Handler, *keystore) {
	t.Helper()
	cfg := testConfig(t, append([]string{"-publish-ahead", "1s"}, args...)...)
	putKey(t, cfg, 0, cfg.keyTTL)
	return newTest(t, cfg)
}

// putKey puts a key that is ready made into the directory.
func putKey(t testing.TB, cfg config, i int, ttl time.Duration) {
	t.Helper()
	if err := (&keystore{config: cfg}).write(newKey(readyMade()[i], clock().Add(ttl))); err != nil {
		t.Fatal(err)
	}
}

// object reads a JSON object, and numbers with their digits.
func object(t testing.TB, text []byte) (o map[string]any) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	if err := d.Decode(&o); err != nil {
		t.Fatalf("%q is not a JSON object: %v", text, err)
	}
	return o
}

// granted returns the members of a good response of /auth, and the header and the
// claims of its token.
func granted(t testing.TB, request string, w *httptest.ResponseRecorder) (response, header, claims map[string]any) {
	t.Helper()
	if w.Code != http.StatusOK {
		t.Fatalf("%s = %d %s; want 200", request, w.Code, w.Body)
	}
	response = object(t, w.Body.Bytes())
	parts := strings.Split(response["token"].(string), ".")
	for i, part := range map[*map[string]any]int{&header: 0, &claims: 1} {
		text, err := base64.RawURLEncoding.DecodeString(parts[part])
		if err != nil {
			t.Fatal(err)
		}
		*i = object(t, text)
	}
	return response, header, claims
}

// checkError checks a response against the rules for all errors.
func checkError(t testing.TB, request string, w *httptest.ResponseRecorder, status int, code string) {
	t.Helper()
	if w.Code != status {
		t.Errorf("%s = %d %s; want %d %s", request, w.Code, w.Body, status, code)
		return
	}
	members := object(t, w.Body.Bytes())
	description, _ := members["error_description"].(string)
	if members["error"] != code || len(members) != 2 {
		t.Errorf("%s = %v; want error %s and error_description", request, members, code)
	}
	if !regexp.MustCompile(`^[\x20-\x21\x23-\x5B\x5D-\x7E]+$`).MatchString(description) {
		t.Errorf("%s: error_description = %q; want the characters of RFC 6749 section 5.2", request, description)
	}
	want := http.Header{"Content-Type": {"application/json"}, "Cache-Control": {"no-store"}}
	switch status {
	case http.StatusMethodNotAllowed:
		want["Allow"] = w.Header()["Allow"] // which differs
	case http.StatusServiceUnavailable:
		want["Retry-After"] = []string{"1"}
	case http.StatusUnauthorized:
		want["Www-Authenticate"] = []string{`Basic realm="jwks-server"`}
	}
	checkHeader(t, request, w.Header(), want)
}

func checkHeader(t testing.TB, request string, got, want http.Header) {
	t.Helper()
	if !maps.EqualFunc(got, want, slices.Equal) {
		t.Errorf("%s: header = %v; want %v", request, got, want)
	}
}

func TestEachPathAnswersItsMethodsAndNoOther(t *testing.T) {
	h, _ := start(t)
	w := do(h, "GET", "/", "")
	if w.Code != http.StatusOK || w.Body.String() != "JWKS Server Running!" || w.Header().Get("Content-Type") != "text/plain" {
		t.Errorf("GET / = %d %q %v; want 200 and exactly JWKS Server Running!, text/plain", w.Code, w.Body, w.Header())
	}

	t.Run("HEAD works where GET does, and another method is 405 with Allow", func(t *testing.T) {
		for _, path := range []string{"/", jwksPath, discoveryPath, "/auth"} {
			allow := "GET, HEAD"
			if path == "/auth" {
				allow = "POST"
			}
			for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "get"} {
				w := do(h, method, path, "")
				if slices.Contains(strings.Split(allow, ", "), method) {
					if w.Code != http.StatusOK {
						t.Errorf("%s %s = %d; want 200", method, path, w.Code)
					}
					continue
				}
				checkError(t, method+" "+path, w, http.StatusMethodNotAllowed, "method_not_allowed")
				if got := w.Header().Get("Allow"); got != allow {
					t.Errorf("%s %s: Allow = %q; want %q", method, path, got, allow)
				}
			}
		}
	})
	t.Run("another path is 404", func(t *testing.T) {
		for _, path := range []string{"/foo", "/auth/", "/auth/x", "/Auth", "/.well-known", "/.well-known/", jwksPath + "/", discoveryPath + "/x", "/jwks.json"} {
			for _, method := range []string{"GET", "HEAD", "POST", "DELETE"} {
				checkError(t, method+" "+path, do(h, method, path, ""), http.StatusNotFound, "not_found")
			}
		}
	})
	t.Run("an unclean path is redirected and gives nothing", func(t *testing.T) {
		for path, clean := range map[string]string{"//auth": "/auth", "/./auth": "/auth", "/x/../auth": "/auth", "//.well-known//jwks.json": jwksPath} {
			w := do(h, "POST", path, "")
			if w.Code < 301 || w.Code > 308 || w.Header().Get("Location") != clean || strings.Contains(w.Body.String(), "token") {
				t.Errorf("POST %s = %d %v %s; want a redirection to %s", path, w.Code, w.Header(), w.Body, clean)
			}
		}
	})
}

func TestHEADWorksWhereGETDoes(t *testing.T) {
	h, _ := start(t)
	s := httptest.NewServer(h)
	defer s.Close()
	exchange := func(method, path, tag string) (int, http.Header, string) {
		r, err := http.NewRequest(method, s.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("If-None-Match", tag)
		response, err := s.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		response.Header.Del("Date")
		return response.StatusCode, response.Header, string(body)
	}
	for _, path := range []string{"/", jwksPath, discoveryPath, "/foo"} {
		for _, tag := range []string{`"none"`, "*"} {
			getStatus, getHeader, body := exchange("GET", path, tag)
			headStatus, headHeader, none := exchange("HEAD", path, tag)
			if headStatus != getStatus || none != "" {
				t.Errorf("HEAD %s = %d %q; want %d and no body", path, headStatus, none, getStatus)
			}
			checkHeader(t, "HEAD "+path, headHeader, getHeader)
			if length := getHeader.Get("Content-Length"); getStatus != http.StatusNotModified && length != strconv.Itoa(len(body)) {
				t.Errorf("GET %s: Content-Length = %q; want %d", path, length, len(body))
			}
		}
	}
}

func TestExpiredTakesWhatParseBoolTakesAndKey(t *testing.T) {
	h, _ := start(t)
	valid := func(_ jwt.MapClaims, err error) bool { return err == nil }
	rejected := func(_ jwt.MapClaims, err error) bool { // for that one reason
		return errors.Is(err, jwt.ErrTokenExpired) && !errors.Is(err, jwt.ErrTokenUnverifiable) &&
			!errors.Is(err, jwt.ErrTokenSignatureInvalid) && !errors.Is(err, jwt.ErrTokenUsedBeforeIssued)
	}
	unknown := func(_ jwt.MapClaims, err error) bool { return errors.Is(err, errUnknownKid) }
	for _, test := range []struct {
		name    string
		queries []string
		want    func(jwt.MapClaims, error) bool // nil for 400
	}{
		{"absent means false", []string{"", "?", "?x=true", "?Expired=true", "?x=%3B"}, valid},
		{"it takes what ParseBool takes for true", []string{"=1", "=t", "=T", "=TRUE", "=true", "=True", "=%74rue", "=true&x=y"}, rejected},
		{"it takes what ParseBool takes for false", []string{"=0", "=f", "=F", "=FALSE", "=false", "=False"}, valid},
		{"a bare one means true", []string{"?expired", "="}, rejected},
		{"key means a key that is not in the set", []string{"=key"}, unknown},
		{"anything else is 400", []string{"=yes", "=tRUE", "=KEY", "=2", "=key+", "=%20", "=\"\\"}, nil},
		{"a repeated one is 400", []string{"=true&expired=true", "=key&expired=key", "=&expired=", "=false&expired"}, nil},
		{"an unreadable query is 400", []string{"?%zz", "?a;b", "=true&%zz", "=true;x"}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, query := range test.queries {
				if strings.HasPrefix(query, "=") {
					query = "?expired" + query
				}
				w := do(h, "POST", "/auth"+query, "")
				if test.want == nil {
					checkError(t, "POST /auth"+query, w, http.StatusBadRequest, "invalid_request")
					continue
				}
				response, _, _ := granted(t, "POST /auth"+query, w)
				if claims, err := fetch(t, h).verify(response["token"].(string)); !test.want(claims, err) {
					t.Errorf("verify(token of /auth%s) = %v, %v", query, claims, err)
				}
			}
		})
	}
}

func TestTheKeyOfExpiredKeyIsNeverPublished(t *testing.T) {
	h, keys := start(t)
	var kids []string
	for range 2 {
		response, header, claims := granted(t, "POST /auth?expired=key", do(h, "POST", "/auth?expired=key", `{"n":1}`))
		kids = append(kids, header["kid"].(string))
		exp, _ := claims["exp"].(json.Number).Int64()
		if age := time.Now().Unix() - exp; age < 3600 || age > 3610 || claims["n"] != json.Number("1") {
			t.Errorf("claims of /auth?expired=key = %v; want exp an hour ago, and n", claims)
		}
		for kid, k := range fetch(t, h) {
			if _, err := (keySet{kids[0]: k}).verify(response["token"].(string)); !errors.Is(err, jwt.ErrTokenSignatureInvalid) {
				t.Errorf("verify(token of /auth?expired=key, key %s) = %v; want an invalid signature", kid, err)
			}
		}
	}
	if kids[0] != kids[1] {
		t.Errorf("kids of /auth?expired=key = %v; want one, made on first use", kids)
	}
	for _, want := range []int{1, 2} {
		if set := fetch(t, h); set[kids[0]] != nil || len(set) != want {
			t.Errorf("JWK Set = %v; want %d keys and not %s", set, want, kids[0])
		}
		files, err := filepath.Glob(filepath.Join(keys.dir, "*"))
		if err != nil || len(files) != want || strings.Contains(strings.Join(files, " "), kids[0]) {
			t.Errorf("files = %v, %v; want %d and not one of %s, which lives in memory only", files, err, want, kids[0])
		}
		if err := keys.grow(t.Context(), time.Hour); err != nil { // which makes another
			t.Fatal(err)
		}
	}
}

func TestAJWKHasSixMembersAndTheSoonestExpiringIsFirst(t *testing.T) {
	cfg := testConfig(t)
	putKey(t, cfg, 1, 3*time.Hour)
	putKey(t, cfg, 0, time.Hour)
	h, _ := newTest(t, cfg)
	w := do(h, "GET", jwksPath, "")
	set := object(t, w.Body.Bytes())
	keys, _ := set["keys"].([]any)
	if len(keys) != 2 || len(set) != 1 {
		t.Fatalf("JWK Set = %s; want two keys and nothing else", w.Body)
	}
	for i, k := range keys { // soonest-expiring first
		want := map[string]any{
			"kty": "RSA", "use": "sig", "alg": "RS256", "kid": thumbprint(&readyMade()[i].PublicKey),
			"n": base64.RawURLEncoding.EncodeToString(readyMade()[i].N.Bytes()), "e": "AQAB",
		}
		if got := k.(map[string]any); !maps.Equal(got, want) {
			t.Errorf("keys[%d] = %v; want %v", i, got, want)
		}
	}
	// Read again by a decoder that takes no padding and no other alphabet.
	for kid, k := range parseSet(t, w.Body.Bytes()) {
		if k.N.BitLen() != minBits || k.E != 65537 {
			t.Errorf("key %s has %d bits and e %d", kid, k.N.BitLen(), k.E)
		}
	}
}

// documentHeader is what a document says of itself, where its ETag is tag.
func documentHeader(w *httptest.ResponseRecorder, maxAge int, tag string) http.Header {
	return http.Header{
		"Content-Type":                {"application/json"},
		"Content-Length":              {strconv.Itoa(w.Body.Len())},
		"Cache-Control":               {fmt.Sprintf("public, max-age=%d", maxAge)},
		"Etag":                        {tag},
		"Access-Control-Allow-Origin": {"*"},
	}
}

func TestDocumentsMayBeCachedForAPartOfPublishAhead(t *testing.T) {
	strong := regexp.MustCompile(`^"[!#-~]{16,}"$`)
	for publishAhead, maxAge := range map[string]int{"1s": 1, "20s": 1, "48s": 2, "1h": 150, "2h": 300, "13h": 300} {
		h, _ := start(t, "-key-ttl", "24h", "-publish-ahead", publishAhead)
		for _, path := range []string{jwksPath, discoveryPath} {
			w := do(h, "GET", path, "", "Origin", "https://app.test")
			tag := w.Header().Get("Etag")
			if !strong.MatchString(tag) {
				t.Errorf("GET %s: ETag = %s; want a strong one", path, tag)
			}
			checkHeader(t, "GET "+path+" with -publish-ahead "+publishAhead, w.Header(), documentHeader(w, maxAge, tag))
		}
	}
}

func TestETagChangesWithTheSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig(t, "-publish-ahead", "1s")
		putKey(t, cfg, 0, time.Hour)
		h, keys := newTest(t, cfg)
		seen := map[string]string{}
		var tags []string
		look := func(h http.Handler) {
			w := do(h, "GET", jwksPath, "")
			tag, body := w.Header().Get("ETag"), w.Body.String()
			if before, ok := seen[tag]; ok && before != body {
				t.Errorf("ETag %s is that of %s and of %s", tag, before, body)
			}
			seen[tag] = body
			tags = append(tags, tag)
		}
		follow := func() {
			if err := keys.grow(t.Context(), keys.publishAhead); err != nil {
				t.Fatal(err)
			}
		}
		look(h)
		before, _ := keys.jwks(t.Context())
		time.Sleep(10 * time.Minute)
		follow()
		look(h)
		if after, _ := keys.jwks(t.Context()); after != before {
			t.Error("one set was rendered twice; want it rendered when it changes")
		}
		replica, _ := newTest(t, cfg)
		look(replica)
		if tags[1] != tags[0] || tags[2] != tags[0] {
			t.Errorf("ETags of one set = %v; want one", tags)
		}
		putKey(t, cfg, 1, 2*time.Hour)
		follow()
		look(h)
		time.Sleep(50 * time.Minute) // an expired key leaves without the loop
		look(h)
		if len(seen) != 3 || tags[4] == tags[3] {
			t.Errorf("ETags of three sets = %v; want three", tags[2:])
		}
	})
}

func TestWhoHasTheDocumentIsAnswered304(t *testing.T) {
	h, _ := start(t)
	for _, path := range []string{jwksPath, discoveryPath} {
		full := do(h, "GET", path, "")
		tag := full.Header().Get("ETag")
		for _, test := range []struct {
			name   string
			value  string // with a line for each header
			status int
		}{
			{"the ETag", tag, 304},
			{"the ETag, weak", "W/" + tag, 304},
			{"a list", `"x", ` + tag, 304},
			{"a list without spaces", `W/"x",W/` + tag + `,"y"`, 304},
			{"a list with tabs", "\"x\"\t,\t" + tag + "\t", 304},
			{"anything", "*", 304},
			{"several headers", "\"x\"\n" + tag, 304},
			{"another", `"x"`, 200},
			{"a list of others", `"x", W/"y"`, 200},
			{"nothing", "", 200},
			{"no quotes", strings.Trim(tag, `"`), 200},
			{"a part of the ETag", tag[:len(tag)-2] + `"`, 200},
			{"w is not W", "w/" + tag, 200},
		} {
			t.Run(test.name, func(t *testing.T) {
				for _, method := range []string{"GET", "HEAD"} {
					r := httptest.NewRequest(method, path, nil)
					r.Header["If-None-Match"] = strings.Split(test.value, "\n")
					w := httptest.NewRecorder()
					h.ServeHTTP(w, r)
					request := fmt.Sprintf("%s %s If-None-Match: %q", method, path, test.value)
					want := documentHeader(full, 1, tag)
					if test.status == http.StatusNotModified {
						delete(want, "Content-Type")
						delete(want, "Content-Length")
					}
					checkHeader(t, request, w.Header(), want)
					if w.Code != test.status || (w.Body.Len() == 0) != (w.Code == http.StatusNotModified) {
						t.Errorf("%s = %d %s; want %d", request, w.Code, w.Body, test.status)
					}
				}
			})
		}
	}
}

func TestDiscoveryTellsTheIssuerAndItsEndpoints(t *testing.T) {
	for _, test := range []struct {
		name                string
		flags               []string
		grants, authMethods string
	}{
		{"open", nil, `["client_credentials","password"]`, `["client_secret_basic","client_secret_post","none"]`},
		{"with -clients", []string{"-clients", clientsFile(t)}, `["client_credentials"]`, `["client_secret_basic","client_secret_post"]`},
	} {
		t.Run(test.name, func(t *testing.T) {
			h, _ := start(t, append(test.flags, "-issuer", "https://issuer.test/a/b")...)
			want := `{"grant_types_supported":` + test.grants + `,"id_token_signing_alg_values_supported":["RS256"],` +
				`"issuer":"https://issuer.test/a/b","jwks_uri":"https://issuer.test/a/b/.well-known/jwks.json",` +
				`"response_types_supported":["id_token"],"subject_types_supported":["public"],` +
				`"token_endpoint":"https://issuer.test/a/b/auth","token_endpoint_auth_methods_supported":` + test.authMethods + "}\n"
			if w := do(h, "GET", discoveryPath, ""); w.Body.String() != want {
				t.Errorf("GET %s = %s; want %s", discoveryPath, w.Body, want)
			}
		})
	}
}

func TestATokenHasTheClaimsOfTheDesignAndNoOther(t *testing.T) {
	for _, test := range []struct {
		name, query string
		args        []string
		iat, exp    int64  // from now
		aud         string // other claims are always there
	}{
		{name: "by default it lives for ten minutes", exp: 600},
		{name: "it lives for -token-ttl", args: []string{"-token-ttl", "90s"}, exp: 90},
		{name: "aud when -audience is set", args: []string{"-audience", "api"}, exp: 600, aud: "api"},
		{name: "an expired one keeps its claims coherent", query: "?expired=true", iat: -4200, exp: -3600},
		{name: "an expired one with -token-ttl", query: "?expired", args: []string{"-token-ttl", "90s", "-audience", "api"}, iat: -3690, exp: -3600, aud: "api"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h, _ := start(t, test.args...)
				time.Sleep(time.Second - time.Nanosecond) // iat is floored
				now := time.Now().Unix()
				w := do(h, "POST", "/auth"+test.query, "")
				response, header, claims := granted(t, test.name, w)
				if want := map[string]any{"alg": "RS256", "typ": "JWT", "kid": thumbprint(&readyMade()[0].PublicKey)}; !maps.Equal(header, want) {
					t.Errorf("header = %v; want %v", header, want)
				}
				if jti, ok := claims["jti"].(string); !ok || jti == "" {
					t.Errorf("jti = %v; want a string", claims["jti"])
				}
				want := map[string]any{
					"iss": "http://issuer.test", "sub": "user123", "jti": claims["jti"],
					"iat": json.Number(strconv.FormatInt(now+test.iat, 10)), "exp": json.Number(strconv.FormatInt(now+test.exp, 10)),
				}
				if test.aud != "" {
					want["aud"] = test.aud
				}
				if !maps.Equal(claims, want) {
					t.Errorf("claims = %v; want %v", claims, want)
				}
				want = map[string]any{
					"token": response["token"], "access_token": response["token"],
					"token_type": "Bearer", "expires_in": json.Number(strconv.FormatInt(test.exp, 10)),
				}
				if !maps.Equal(response, want) {
					t.Errorf("response = %v; want %v", response, want)
				}
				checkHeader(t, test.name, w.Header(), http.Header{"Content-Type": {"application/json"}, "Cache-Control": {"no-store"}})
			})
		})
	}
}

// TestEachTokenHasAnIDOfItsOwn estimates the random bits of a jti by the characters seen at its places.
func TestEachTokenHasAnIDOfItsOwn(t *testing.T) {
	h, _ := start(t)
	seen := map[string]bool{}
	var places []map[byte]bool
	for range 200 {
		_, _, claims := granted(t, "POST /auth", do(h, "POST", "/auth", ""))
		jti := claims["jti"].(string)
		if seen[jti] {
			t.Fatalf("jti %s is there twice", jti)
		}
		seen[jti] = true
		for i := range len(jti) {
			if i == len(places) {
				places = append(places, map[byte]bool{})
			}
			places[i][jti[i]] = true
		}
	}
	var bits float64
	for _, place := range places {
		bits += math.Log2(float64(len(place)))
	}
	if bits < 128 {
		t.Errorf("jti has some %.0f random bits; want 128 or more", bits)
	}
}

// checkClaimsOf compares claims with the JSON in want, which leaves out the server's
// own iss, iat, exp and jti.
func checkClaimsOf(t testing.TB, request string, claims map[string]any, want string) {
	t.Helper()
	wanted := object(t, []byte(want))
	iat, _ := claims["iat"].(json.Number)
	exp, _ := claims["exp"].(json.Number)
	issued, _ := iat.Int64()
	expires, _ := exp.Int64()
	jti, _ := claims["jti"].(string)
	for name, own := range map[string]bool{
		"iss": claims["iss"] == "http://issuer.test", "iat": time.Now().Unix()-issued < 60,
		"exp": time.Now().Unix()+600-expires < 60, "jti": len(jti) > 20,
	} {
		if _, replaced := wanted[name]; replaced {
			continue
		}
		if !own {
			t.Errorf("%s of %s = %v; want the server's own", name, request, claims[name])
		}
		delete(claims, name)
	}
	if got, err := json.Marshal(claims); err != nil || string(got) != want {
		t.Errorf("claims of %s = %s, %v; want %s", request, got, err, want)
	}
}

func TestABodyIsClaimsOrAForm(t *testing.T) {
	h, _ := start(t, "-audience", "api")
	for _, test := range []struct {
		name, label, body string
		want              string // claims, without the server's own unless it has them
	}{
		{"it is optional", "", "", `{"aud":"api","sub":"user123"}`},
		{"it is optional, whatever its label", "application/json", " \r\n\t", `{"aud":"api","sub":"user123"}`},
		{"an empty object", formLabel, "{}", `{"aud":"api","sub":"user123"}`},
		{"a JSON object is claims, labelled a form by curl", formLabel, `{"sub":"alice","roles":["admin"]}`, `{"aud":"api","roles":["admin"],"sub":"alice"}`},
		{"a JSON object labelled JSON", "application/json; charset=utf-8", ` {"sub":"alice"}` + "\r\n\t ", `{"aud":"api","sub":"alice"}`},
		{"a JSON object without a label", "", "\r\n\t {\"sub\":\"alice\"}", `{"aud":"api","sub":"alice"}`},
		{"JSON numbers keep their digits", formLabel, `{"a":12345678901234567890,"b":[1.10,{"c":-1e40}]}`,
			`{"a":12345678901234567890,"aud":"api","b":[1.10,{"c":-1e40}],"sub":"user123"}`},
		{"other claims may be anything", formLabel, `{"a":null,"b":true,"":"é\u2028<&>","nonce":{"iss":5}}`,
			`{"":"é\u2028\u003c\u0026\u003e","a":null,"aud":"api","b":true,"nonce":{"iss":5},"sub":"user123"}`},
		{"JSON claims may replace the defaults", formLabel, `{"iss":"https://evil.test","jti":"again","sub":"","aud":["x","y"],"iat":1.5,"nbf":99999999999}`,
			`{"aud":["x","y"],"iat":1.5,"iss":"https://evil.test","jti":"again","nbf":99999999999,"sub":""}`},
		{"no aud at all", formLabel, `{"aud":[]}`, `{"aud":[],"sub":"user123"}`},
		{"OAuth names mean the same in JSON", formLabel,
			`{"grant_type":"password","username":"alice","password":"hush","client_id":"hush","client_secret":"hush","audience":["x"],"scope":"a b"}`,
			`{"aud":["x"],"scope":"a b","sub":"alice"}`},
		{"sub in a form", formLabel, "sub=alice%20b", `{"aud":"api","sub":"alice b"}`},
		{"a line feed after the form", formLabel, "sub=alice\n", `{"aud":"api","sub":"alice"}`},
		{"username sets sub", formLabel + "; charset=UTF-8", "username=alice", `{"aud":"api","sub":"alice"}`},
		{"aud sets aud", "", "aud=x", `{"aud":"x","sub":"user123"}`},
		{"audience sets aud", strings.ToUpper(formLabel), "audience=x", `{"aud":"x","sub":"user123"}`},
		{"aud is repeatable", formLabel, "aud=x&aud=y", `{"aud":["x","y"],"sub":"user123"}`},
		{"audience is repeatable", formLabel, "audience=x&audience=&audience=y", `{"aud":["x","y"],"sub":"user123"}`},
		{"scope sets scope", formLabel, "scope=a+b", `{"aud":"api","scope":"a b","sub":"user123"}`},
		{"a client credentials grant", formLabel, "grant_type=client_credentials&client_id=hush&client_secret=hush", `{"aud":"api","sub":"user123"}`},
		{"a password grant", formLabel, "\r\n grant_type=password&username=alice&password=hush&password=hush", `{"aud":"api","sub":"alice"}`},
		{"everything else is ignored", formLabel, "iss=x&iss=y&exp=1&jti=1&nbf=x&iat=x&x=1&x=2&resource=y&a=[1]&%7B=", `{"aud":"api","sub":"user123"}`},
		{"an empty value is as absent", formLabel, "sub=&username=alice&aud=&audience=x&scope=&grant_type=&sub=&client_id=", `{"aud":"x","sub":"alice"}`},
		{"all values empty", formLabel, "sub&username=&aud&audience&scope", `{"aud":"api","sub":"user123"}`},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := do(h, "POST", "/auth", test.body, "Content-Type", test.label)
			response, _, claims := granted(t, test.body, w)
			if _, err := fetch(t, h).verify(response["token"].(string)); err != nil && !errors.Is(err, jwt.ErrTokenNotValidYet) {
				t.Errorf("verify(token of %s) = %v", test.body, err)
			}
			if scope, ok := claims["scope"]; response["scope"] != scope || ok != (len(response) == 5) {
				t.Errorf("response to %s = %v; want the scope of the token, %v", test.body, response, scope)
			}
			checkClaimsOf(t, test.body, claims, test.want)
		})
	}
}

func TestABodyThatIsNeitherIsRefused(t *testing.T) {
	h, _ := start(t)
	type bodies = []string
	for _, test := range []struct {
		name, label string
		bodies      bodies
		code, says  string
	}{
		{"anything after the object", formLabel, bodies{`{} {}`, `{}x`, `{},`, `{"a":1}}`, `{}null`, "{}\x00", "{}&sub=x"}, "invalid_request", "something after it"},
		{"damaged JSON", "application/json", bodies{`{`, `{"a"}`, `{"a":1,}`, `{'a':1}`, `{"a":"`, `{"a":01}`, `{"a":NaN}`, "{\"\x01\":1}"}, "invalid_request", "has to be one JSON object"},
		{"a claim twice", "application/json", bodies{`{"sub":"a","sub":"a"}`, `{"x":{"y":[{"z":1,"z":1}]}}`}, "invalid_request", "is there twice"},
		{"a byte order mark", formLabel, bodies{"\xef\xbb\xbf{\"sub\":\"alice\"}"}, "invalid_request", "has to be a JSON object"},
		{"two names for sub, in JSON", formLabel, bodies{`{"sub":"a","username":"a"}`, `{"username":"","sub":""}`}, "invalid_request", "username and sub"},
		{"two names for aud, in JSON", formLabel, bodies{`{"audience":"a","aud":["b"]}`}, "invalid_request", "audience and aud"},
		{"two names for sub, in a form", formLabel, bodies{"sub=a&username=a"}, "invalid_request", "username and sub"},
		{"two names for aud, in a form", formLabel, bodies{"aud=a&audience=b", "audience=b&aud=a&aud=b"}, "invalid_request", "audience and aud"},
		{"a repeated sub", formLabel, bodies{"sub=a&sub=b", "sub=a&sub=a"}, "invalid_request", "sub has to be given once"},
		{"a repeated username", formLabel, bodies{"username=a&username=b"}, "invalid_request", "username has to be given once"},
		{"a repeated scope", formLabel, bodies{"scope=a&scope=b"}, "invalid_request", "scope has to be given once"},
		{"a repeated grant_type", formLabel, bodies{"grant_type=password&grant_type=password"}, "invalid_request", "grant_type has to be given once"},
		{"a repeated client_id", formLabel, bodies{"client_id=a&client_id=b"}, "invalid_request", "client_id has to be given once"},
		{"a repeated client_secret", formLabel, bodies{"client_secret=a&client_secret=b"}, "invalid_request", "client_secret has to be given once"},
		{"another grant", formLabel, bodies{"grant_type=refresh_token", "grant_type=Password", "grant_type=authorization_code&code=x", `{"grant_type":"x"}`}, "unsupported_grant_type", "client_credentials or password"},
		{"OAuth names of a wrong type", formLabel, bodies{`{"grant_type":1}`, `{"client_id":null}`, `{"client_secret":[]}`, `{"password":{}}`}, "invalid_request", "has to be a string"},
		{"an unreadable form", formLabel, bodies{"sub=%zz", "sub=a;b", "%"}, "invalid_request", "form in the body cannot be read"},
		{"another first character", formLabel, bodies{`[]`, `"sub"`, `<a/>`, `'sub'`, ` [{"sub":"a"}]`, "\r\n\t<a>"}, "invalid_request", "has to be a JSON object, or a form"},
		{"another label", "application/json", bodies{"null", "sub=a", "[]", "1"}, "invalid_request", "has to be a JSON object, or a form"},
		{"another label of a form", "multipart/form-data; boundary=x", bodies{"--x--", "sub=a"}, "invalid_request", "has to be a JSON object, or a form"},
		{"a label without sense", formLabel + "; =", bodies{"sub=a"}, "invalid_request", "has to be a JSON object, or a form"},

		// Registered claims must have their RFC 7519 types.
		{"a string that is none", formLabel, bodies{`{"NAME":1}`, `{"NAME":null}`, `{"NAME":["a"]}`, `{"NAME":{}}`, `{"NAME":true}`}, "invalid_request", "NAME has to be a string"},
		{"an aud that is no list of strings", formLabel, bodies{`{"aud":1}`, `{"aud":null}`, `{"aud":["a",1]}`, `{"audience":[null]}`, `{"aud":{}}`, `{"aud":[["a"]]}`}, "invalid_request", "aud has to be a string or an array of strings"},
		{"a time that is none", formLabel, bodies{`{"TIME":"1"}`, `{"TIME":null}`, `{"TIME":[1]}`, `{"TIME":{}}`, `{"TIME":true}`, `{"TIME":1e400}`, `{"TIME":-1e400}`}, "invalid_request", "TIME has to be a number"},
		{"a username that is no string", formLabel, bodies{`{"username":1}`}, "invalid_request", "sub has to be a string"},
	} {
		t.Run(test.name, func(t *testing.T) {
			names := []string{""}
			if strings.Contains(test.says, "NAME") {
				names = []string{"iss", "sub", "jti", "scope"}
			} else if strings.Contains(test.says, "TIME") {
				names = []string{"exp", "nbf", "iat"}
			}
			for _, name := range names {
				for _, body := range test.bodies {
					fill := strings.NewReplacer("NAME", name, "TIME", name)
					body = fill.Replace(body)
					w := do(h, "POST", "/auth", body, "Content-Type", test.label)
					checkError(t, body, w, http.StatusBadRequest, test.code)
					if says := fill.Replace(test.says); !strings.Contains(w.Body.String(), says) {
						t.Errorf("%s = %s; want %q in it", body, w.Body, says)
					}
				}
			}
		})
	}
}

func TestABodyHas16KiBAtMost(t *testing.T) {
	h, _ := start(t)
	for _, frame := range [][2]string{{`{"pad":"`, `"}`}, {"pad=", ""}, {"", `{"sub":"alice"}`}} {
		pad := "x"
		if frame[0] == "" {
			pad = " "
		}
		body := frame[0] + strings.Repeat(pad, 16<<10-len(frame[0])-len(frame[1])) + frame[1]
		granted(t, "a body of 16 KiB", do(h, "POST", "/auth", body))
		checkError(t, "a body of 16 KiB and one byte", do(h, "POST", "/auth", pad+body), http.StatusRequestEntityTooLarge, "invalid_request")
	}
	r := httptest.NewRequest("POST", "/auth", io.MultiReader(strings.NewReader(`{"sub":"alice"}`), iotest.ErrReader(errors.New("SECRET cause"))))
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	checkError(t, "an unreadable body", w, http.StatusBadRequest, "invalid_request")
	if strings.Contains(w.Body.String(), "SECRET") {
		t.Errorf("an unreadable body = %s; want no internal cause", w.Body)
	}
}

// TestNoTokenOutlivesItsKey asks for an exp, which may not be later than the server's own.
func TestNoTokenOutlivesItsKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, _ := start(t)
		time.Sleep(400 * time.Millisecond)
		now := time.Now().Unix()
		for _, test := range []struct {
			name, query string
			exp         string // from now
			expiresIn   string // none for 400
		}{
			{"equal", "", "600", "600"},
			{"earlier", "", "60", "60"},
			{"past", "", "-60", "-60"},
			{"a second later", "", "601", ""},
			{"a part of a second later", "", "600.25", ""},
			{"a part of a second", "", "60.75", "60"},
			{"equal to that of an expired token", "?expired", "-3600", "-3600"},
			{"earlier than that of an expired token", "?expired", "-7200", "-7200"},
			{"later than that of an expired token", "?expired", "-3599", ""},
		} {
			whole, part, _ := strings.Cut(test.exp, ".")
			seconds, err := strconv.ParseInt(whole, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			exp := strconv.FormatInt(now+seconds, 10)
			if part != "" {
				exp += "." + part
			}
			w := do(h, "POST", "/auth"+test.query, `{"exp":`+exp+`}`)
			if test.expiresIn == "" {
				checkError(t, test.name, w, http.StatusBadRequest, "invalid_request")
				continue
			}
			if response, _, claims := granted(t, test.name, w); response["expires_in"] != json.Number(test.expiresIn) || claims["exp"] != json.Number(exp) {
				t.Errorf("exp %s = %v, expires_in %v; want %s, %s", test.name, claims["exp"], response["expires_in"], exp, test.expiresIn)
			}
		}
		for _, exp := range []string{"1e300", "9223372036854775807", "9999999999999999999999"} {
			checkError(t, "exp "+exp, do(h, "POST", "/auth", `{"exp":`+exp+`}`), http.StatusBadRequest, "invalid_request")
		}
		if response, _, _ := granted(t, "exp -1e300", do(h, "POST", "/auth", `{"exp":-1e300}`)); response["expires_in"] != json.Number(strconv.FormatInt(-now, 10)) {
			t.Errorf("expires_in of exp -1e300 = %v; want %d", response["expires_in"], -now)
		}
	})
}

// TestErrorsHaveTheCharactersOfRFC6749Only has the server echo what section 5.2 of RFC 6749 forbids.
func TestErrorsHaveTheCharactersOfRFC6749Only(t *testing.T) {
	h, _ := start(t)
	for _, test := range []struct{ target, body string }{
		{"/auth?%\"\\", ""},
		{"/auth?a=%é", ""},
		{"/auth?a=%\u007f\u0080", ""},
		{"/auth", `sub=%"\`},
		{"/auth", "sub=%\x00\x01"},
		{"/auth", "sub=%\xff\xfe"},
		{"/auth", "sub=%é"},
		{"/auth", "sub=%\u2028"},
		{"/auth", `{"a":"\x"}`},
		{"/auth", `{\`},
		{"/auth", `{"a":é}`},
		{"/auth", "{\x00"},
		{"/auth", "{\x7f"},
		{"/auth", "{\"a\":\xff}"},
	} {
		r := httptest.NewRequest("POST", "/auth", strings.NewReader(test.body))
		_, r.URL.RawQuery, _ = strings.Cut(test.target, "?")
		r.Header.Set("Content-Type", formLabel)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		checkError(t, test.target+" "+test.body, w, http.StatusBadRequest, "invalid_request")
	}
	for r := range rune(0x180) { // some of which no parser's error has as they are
		w := httptest.NewRecorder()
		(&server{}).fail(w, badRequest("%c and the byte %s", r, []byte{byte(r)}))
		checkError(t, fmt.Sprintf("fail(%q)", r), w, http.StatusBadRequest, "invalid_request")
	}
}

func TestWithoutAKeyThereIs503AndNeverAnEmptySet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, keys := start(t)
		if err := errors.Join(os.RemoveAll(keys.dir), os.WriteFile(keys.dir, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
		refused := func(method, target string) {
			t.Helper()
			w := do(h, method, target, "")
			checkError(t, method+" "+target, w, http.StatusServiceUnavailable, "temporarily_unavailable")
			for _, cause := range []string{keys.dir, filepath.Base(keys.dir), "directory", "errno"} {
				if strings.Contains(w.Body.String(), cause) {
					t.Errorf("%s %s = %s; want no internal cause (%s)", method, target, w.Body, cause)
				}
			}
		}
		time.Sleep(45*time.Minute - time.Second)
		issue(t, h) // the keys in hand keep working
		time.Sleep(2 * time.Second)
		refused("POST", "/auth")
		refused("POST", "/auth?expired=true")
		fetch(t, h)
		time.Sleep(15 * time.Minute)
		refused("GET", jwksPath) // never an empty set
		refused("HEAD", jwksPath)
		refused("POST", "/auth")
	})
}

func TestARequestWaitsTwoSecondsForItsTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, keys := start(t)
		for range cap(keys.turns) {
			keys.turns <- struct{}{}
		}
		ask := func(ctx context.Context, method, target string, want time.Duration) *httptest.ResponseRecorder {
			t.Helper()
			start, w := time.Now(), httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest(method, target, nil).WithContext(ctx))
			if waited := time.Since(start); waited != want {
				t.Errorf("%s waited for %s; want %s", target, waited, want)
			}
			return w
		}
		for _, target := range []string{"/auth", "/auth?expired=key"} {
			checkError(t, "a turn that does not come", ask(t.Context(), "POST", target, 2*time.Second), http.StatusServiceUnavailable, "temporarily_unavailable")
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(300*time.Millisecond, cancel)
			checkError(t, "a client that went away", ask(ctx, "POST", target, 300*time.Millisecond), http.StatusServiceUnavailable, "temporarily_unavailable")
		}
		start := time.Now()
		if fetch(t, h); time.Since(start) != 0 {
			t.Errorf("the JWK Set waited for %s; want no wait for a turn", time.Since(start))
		}
		time.AfterFunc(1700*time.Millisecond, func() { keys.giveTurn() })
		_, _, claims := granted(t, "a turn that comes", ask(t.Context(), "POST", "/auth", 1700*time.Millisecond))
		if want := json.Number(strconv.FormatInt(time.Now().Unix(), 10)); claims["iat"] != want {
			t.Errorf("iat after a wait = %v; want %v, of the moment of the turn", claims["iat"], want)
		}
		time.Sleep(2 * time.Hour) // no key is alive, and a new one takes a turn
		keys.turns <- struct{}{}
		checkError(t, "a key that is not made", ask(t.Context(), "GET", jwksPath, 2*time.Second), http.StatusServiceUnavailable, "temporarily_unavailable")
	})
}

// TestAClientThatWentAwayStopsWaiting sends a body over a connection: only when it has been read does
// net/http see the client go.
func TestAClientThatWentAwayStopsWaiting(t *testing.T) {
	h, keys := start(t)
	for range cap(keys.turns) {
		keys.turns <- struct{}{}
	}
	waited := make(chan time.Duration, 1)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		h.ServeHTTP(w, r)
		waited <- time.Since(start)
	}))
	defer s.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, "POST", s.URL+"/auth", strings.NewReader(`{"sub":"alice"}`))
	if err != nil {
		t.Fatal(err)
	}
	if response, err := s.Client().Do(r); err == nil {
		response.Body.Close()
		t.Errorf("POST /auth = %s; want no answer for as long as there is no turn", response.Status)
	}
	if got := <-waited; got > time.Second {
		t.Errorf("a request whose client had gone waited for %s; want it to stop at once", got)
	}
}

func TestAnInternalCauseGoesToTheLogAndNotToTheClient(t *testing.T) {
	var logged bytes.Buffer
	w := httptest.NewRecorder()
	(&server{log: log.New(&logged, "", 0)}).fail(w, errors.New("the cause"))
	checkError(t, "a failure", w, http.StatusInternalServerError, "server_error")
	if strings.Contains(w.Body.String(), "cause") || !strings.Contains(logged.String(), "the cause") {
		t.Errorf("a failure = %s, log %q; want the cause in the log alone", w.Body, logged.String())
	}
}

func TestVerboseLogsEachRequestWithoutItsQuery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, keys := start(t, "-v")
		var logged bytes.Buffer
		h := newHandler(keys.config, keys, nil, log.New(&logged, "", 0))
		check := func(want string) {
			t.Helper()
			if logged.String() != want {
				t.Errorf("log = %q; want %q", logged.String(), want)
			}
			logged.Reset()
		}
		tag := do(h, "GET", jwksPath+"?x=hush", "").Header().Get("ETag")
		check("GET \"/.well-known/jwks.json\" 200 0s\n")
		do(h, "HEAD", jwksPath, "", "If-None-Match", tag)
		check("HEAD \"/.well-known/jwks.json\" 304 0s\n")
		do(h, "GET", "/", "")
		check("GET \"/\" 200 0s\n")
		do(h, "POST", "/auth?expired=true", "username=hush&password=hush")
		check("POST \"/auth\" 200 0s\n")
		do(h, "PUT", "/auth?%zz", "")
		check("PUT \"/auth\" 405 0s\n")
		do(h, "GET", "/a%0Ab%22?c", "")
		check("GET \"/a\\nb\\\"\" 404 0s\n")
		for range cap(keys.turns) {
			keys.turns <- struct{}{}
		}
		do(h, "POST", "/auth", "")
		check("POST \"/auth\" 503 2s\n")

		keys.verbose = false
		do(newHandler(keys.config, keys, nil, log.New(&logged, "", 0)), "GET", "/", "")
		check("")
	})
}

func digestOf(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// clientsFile registers clients whose secrets are secretsOf.
func clientsFile(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "clients.json")
	content := fmt.Sprintf(`{
		"app": {"secret_sha256": %q, "claims": {"scope": "read write", "aud": ["x", "y"], "level": 12345678901234567890}},
		"bare": {"secret_sha256": %q},
		"other": {"secret_sha256": %q, "claims": {"iss": "https://other.test"}},
		"a b:c+%%é": {"secret_sha256": %q, "claims": null}
	}`, digestOf(secretsOf["app"]), digestOf(secretsOf["bare"]), strings.ToUpper(digestOf(secretsOf["other"])), digestOf(secretsOf["a b:c+%é"]))
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

var secretsOf = map[string]string{"app": "hush-app", "bare": "hush+b%61re: \"\\é&=", "other": "hush:other:", "a b:c+%é": "hush%"}

func basic(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

func encoded(id, secret string) string { return basic(url.QueryEscape(id), url.QueryEscape(secret)) }

func TestAClientAuthenticatesByBasicOrInTheForm(t *testing.T) {
	var logged bytes.Buffer
	cfg := testConfig(t, "-publish-ahead", "1s", "-v", "-audience", "api", "-clients", clientsFile(t))
	putKey(t, cfg, 0, cfg.keyTTL)
	_, keys := newTest(t, cfg)
	clients, err := readClients(cfg.clients)
	if err != nil {
		t.Fatal(err)
	}
	h := newHandler(cfg, keys, clients, log.New(&logged, "", 0))
	const (
		app   = `{"aud":["x","y"],"level":12345678901234567890,"scope":"read write","sub":"app"}`
		bare  = `{"aud":"api","sub":"bare"}`
		other = `{"aud":"api","iss":"https://other.test","sub":"other"}`
		odd   = `{"aud":"api","sub":"a b:c+%é"}`
	)
	secret := func(id string) string {
		return url.Values{"client_id": {id}, "client_secret": {secretsOf[id]}}.Encode()
	}
	for _, test := range []struct {
		name, authorization string
		body                string
		want                string // claims, or an error
	}{
		{"by Basic", encoded("app", secretsOf["app"]), "", app},
		{"by Basic, both halves form-decoded", encoded("a b:c+%é", secretsOf["a b:c+%é"]), "", odd},
		{"by Basic, a secret with +, %, : and a space", encoded("bare", secretsOf["bare"]), "", bare},
		{"by Basic, a colon in the secret as it is", basic("other", secretsOf["other"]), "", other},
		{"by Basic, in lower case", strings.ToLower(encoded("app", "")[:5]) + encoded("app", secretsOf["app"])[5:], "", app},
		{"in the form", "", secret("app"), app},
		{"in the form, a secret with +, %, : and a space", "", secret("bare"), bare},
		{"in the form, an odd id", "", secret("a b:c+%é"), odd},
		{"in JSON", "", `{"client_id":"app","client_secret":"hush-app"}`, app},
		{"by Basic with the grant", encoded("app", secretsOf["app"]), "grant_type=client_credentials", app},
		{"in the form with the grant", "", secret("bare") + "&grant_type=client_credentials", bare},
		{"by Basic, its client_id repeated in the form", encoded("app", secretsOf["app"]), "client_id=app", app},
		{"a requested scope is ignored", encoded("app", secretsOf["app"]), "scope=admin", app},
		{"a requested scope is ignored where none is granted", encoded("bare", secretsOf["bare"]), `{"scope":"admin"}`, bare},
		{"unknown parameters are ignored", encoded("bare", secretsOf["bare"]), "resource=x&state=y", bare},

		{"none", "", "", "invalid_client"},
		{"a grant alone", "", "grant_type=client_credentials", "invalid_client"},
		{"a wrong secret", encoded("app", "hush-no"), "", "invalid_client"},
		{"the secret of another", encoded("app", secretsOf["bare"]), "", "invalid_client"},
		{"the digest for the secret", encoded("app", digestOf(secretsOf["app"])), "", "invalid_client"},
		{"an unknown client", encoded("nobody", "hush-app"), "", "invalid_client"},
		{"an unknown client and the empty secret", encoded("nobody", ""), "", "invalid_client"},
		{"an empty secret", encoded("app", ""), "", "invalid_client"},
		{"an empty secret in the form", "", "client_id=app&client_secret=", "invalid_client"},
		{"no secret", "", "client_id=app", "invalid_client"},
		{"an empty id", encoded("", "hush-app"), "", "invalid_client"},
		{"no id", "", "client_secret=hush-app", "invalid_client"},
		{"a wrong secret in the form", "", "client_id=app&client_secret=hush-no", "invalid_client"},
		{"a wrong secret in JSON", "", `{"client_id":"app","client_secret":"hush-no"}`, "invalid_client"},
		{"+ is a space where it is not encoded", basic("bare", secretsOf["bare"]), "", "invalid_client"},
		{"a half that cannot be decoded", basic("a+b%3Ac%2B%25%C3%A9", "hush%"), "", "invalid_client"},
		{"another scheme", "Bearer hush", "", "invalid_client"},
		{"Basic without credentials", "Basic", "", "invalid_client"},
		{"Basic that is not Base64", "Basic hush!", "", "invalid_client"},
		{"Basic without a colon", "Basic " + base64.StdEncoding.EncodeToString([]byte("app")), "", "invalid_client"},
		{"the case of an id counts", encoded("APP", secretsOf["app"]), "", "invalid_client"},
		{"a wrong secret before a wrong grant", encoded("app", "hush-no"), "grant_type=password", "invalid_client"},
		{"a wrong secret before claims", encoded("app", "hush-no"), "sub=admin", "invalid_client"},

		{"both at once", encoded("app", secretsOf["app"]), secret("app"), "invalid_request"},
		{"both at once, in JSON", encoded("app", secretsOf["app"]), `{"client_secret":"hush-app"}`, "invalid_request"},
		{"both at once, of two clients", encoded("app", secretsOf["app"]), "client_id=bare", "invalid_request"},
		{"both at once, of another scheme", "Bearer x", secret("app"), "invalid_request"},
		{"sub in the body", encoded("app", secretsOf["app"]), "sub=admin", "invalid_request"},
		{"its own sub in the body", encoded("app", secretsOf["app"]), "username=app", "invalid_request"},
		{"aud in the body", encoded("app", secretsOf["app"]), "audience=x", "invalid_request"},
		{"claims in JSON", encoded("app", secretsOf["app"]), `{"admin":true}`, "invalid_request"},
		{"a null claim in JSON", encoded("app", secretsOf["app"]), `{"admin":null}`, "invalid_request"},
		{"exp in JSON", "", `{"client_id":"app","client_secret":"hush-app","exp":1}`, "invalid_request"},
		{"the only grant is client_credentials", encoded("app", secretsOf["app"]), "grant_type=password", "unsupported_grant_type"},
		{"a whole password grant", encoded("app", secretsOf["app"]), "grant_type=password&username=app&password=x", "unsupported_grant_type"},
		{"the only grant is client_credentials, in the form", "", secret("bare") + "&grant_type=refresh_token", "unsupported_grant_type"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := do(h, "POST", "/auth", test.body, "Authorization", test.authorization)
			texts := fmt.Sprint(w.Header(), w.Body.String())
			switch test.want {
			case "invalid_client":
				checkError(t, test.name, w, http.StatusUnauthorized, test.want)
				if unknown := do(h, "POST", "/auth", "", "Authorization", encoded("nobody", "x")); unknown.Body.String() != w.Body.String() {
					t.Errorf("%s = %s; want %s, as for an unknown client", test.name, w.Body, unknown.Body)
				}
			case "invalid_request", "unsupported_grant_type":
				checkError(t, test.name, w, http.StatusBadRequest, test.want)
			default:
				response, _, claims := granted(t, test.name, w)
				if scope, ok := claims["scope"]; response["scope"] != scope || ok != (len(response) == 5) {
					t.Errorf("response = %v; want the scope granted, %v", response, scope)
				}
				texts += fmt.Sprint(claims)
				checkClaimsOf(t, test.name, claims, test.want)
			}
			if strings.Contains(texts, "hush") {
				t.Errorf("%s = %s; want no secret in it", test.name, texts)
			}
		})
	}
	t.Run("expired still works", func(t *testing.T) {
		for _, query := range []string{"?expired=true", "?expired=key"} {
			response, _, claims := granted(t, query, do(h, "POST", "/auth"+query, secret("app")))
			if n, _ := response["expires_in"].(json.Number).Int64(); n != -3600 || claims["sub"] != "app" || claims["scope"] != "read write" {
				t.Errorf("POST /auth%s = %v, %v; want a token of app that expired an hour ago", query, response, claims)
			}
		}
	})
	if strings.Contains(logged.String(), "hush") || !strings.Contains(logged.String(), `POST "/auth" 401`) {
		t.Errorf("log = %s; want requests and no secret", logged.String())
	}
}

func TestAnyFaultInTheClientsFileStopsTheStart(t *testing.T) {
	good := digestOf("hush")
	entry := func(members string) string { return `{"zoe":{"secret_sha256":"` + good + `"` + members + `}}` }
	for _, test := range []struct {
		name, content string
		says          []string // nothing for a good file
	}{
		{"a client", entry(""), nil},
		{"a client with claims", entry(`,"claims":{"iss":"x","aud":"a","scope":"b","x":null}`), nil},
		{"space around it", "\n\t" + entry("") + "\r\n", nil},
		{"an empty file", "", []string{"JSON object"}},
		{"a blank file", " \n", []string{"JSON object"}},
		{"null", "null", []string{"JSON object"}},
		{"a list", "[" + entry("") + "]", []string{"JSON object"}},
		{"a string", `"` + good + `"`, []string{"JSON object"}},
		{"not JSON", "zoe: " + good, []string{"JSON object"}},
		{"no client", "{}", []string{"no client"}},
		{"something after the object", entry("") + entry(""), []string{"something after"}},
		{"a brace after the object", entry("") + "}", []string{"something after"}},
		{"an object that does not end", `{"zoe":{"secret_sha256":"` + good + `"}`, []string{"EOF"}},
		{"a client that does not end", `{"zoe":{"secret_sha256":"` + good + `"`, []string{"EOF"}},
		{"a name that does not end", `{"zoe`, []string{"EOF"}},
		{"a comma too much", `{"zoe":{"secret_sha256":"` + good + `"},}`, []string{"invalid character"}},
		{"a list that ends as one", `{"zoe":{"secret_sha256":"` + good + `"}]`, []string{"invalid character"}},
		{"a name that is none", `{5:{}}`, []string{"invalid character", "at byte 2"}},
		{"a client that is null", `{"zoe":null}`, []string{`client "zoe"`, "secret_sha256"}},
		{"a client that is a string", `{"zoe":"` + good + `"}`, []string{`client "zoe"`, "secret_sha256"}},
		{"a client without a digest", `{"zoe":{}}`, []string{`client "zoe"`, "64 hex digits"}},
		{"a digest that is null", `{"zoe":{"secret_sha256":null}}`, []string{`client "zoe"`, "64 hex digits"}},
		{"a digest that is a number", `{"zoe":{"secret_sha256":1234567890}}`, []string{`client "zoe"`, "secret_sha256"}},
		{"a digest that is a secret", `{"zoe":{"secret_sha256":"hush"}}`, []string{`client "zoe"`, "64 hex digits"}},
		{"a digest too short", `{"zoe":{"secret_sha256":"` + good[2:] + `"}}`, []string{`client "zoe"`, "64 hex digits"}},
		{"a digest too long", `{"zoe":{"secret_sha256":"` + good + `00"}}`, []string{`client "zoe"`, "64 hex digits"}},
		{"a digest with another letter", `{"zoe":{"secret_sha256":"` + good[1:] + `g"}}`, []string{`client "zoe"`, "64 hex digits"}},
		{"the digest of nothing", `{"zoe":{"secret_sha256":"` + digestOf("") + `"}}`, []string{`client "zoe"`, "not empty"}},
		{"an unknown member", entry(`,"claim":{}`), []string{`client "zoe"`, "claim"}},
		{"claims that are a list", entry(`,"claims":[]`), []string{`client "zoe"`, "claims"}},
		{"claims that are a string", entry(`,"claims":"hush"`), []string{`client "zoe"`, "claims"}},
		{"an empty id", `{"":{"secret_sha256":"` + good + `"}}`, []string{`client ""`, "empty"}},
		{"an id there twice", entry("")[:len(entry(""))-1] + "," + entry("")[1:], []string{"zoe is there twice"}},
		{"a digest there twice", entry(`,"secret_sha256":"` + good + `"`), []string{"secret_sha256 is there twice"}},
		{"a claim there twice", entry(`,"claims":{"scope":"r","scope":"w"}`), []string{"scope is there twice"}},
		{"a member in capitals", `{"zoe":{"SECRET_SHA256":"` + good + `"}}`, []string{`client "zoe"`, "64 hex digits"}},
		{"a secret as a member", `{"zoe":{"secret_sha256":"` + good + `","hush":"x"}}`, []string{`client "zoe"`, "nothing else"}},
		{"sub registered", entry(`,"claims":{"sub":"x"}`), []string{`client "zoe"`, "sub cannot be registered"}},
		{"exp registered", entry(`,"claims":{"exp":1}`), []string{`client "zoe"`, "exp cannot be registered"}},
		{"iat registered", entry(`,"claims":{"iat":1}`), []string{`client "zoe"`, "iat cannot be registered"}},
		{"nbf registered", entry(`,"claims":{"nbf":1}`), []string{`client "zoe"`, "nbf cannot be registered"}},
		{"jti registered, even null", entry(`,"claims":{"jti":null}`), []string{`client "zoe"`, "jti cannot be registered"}},
		{"an iss of a wrong type", entry(`,"claims":{"iss":5}`), []string{`client "zoe"`, "iss has to be a string"}},
		{"an aud of a wrong type", entry(`,"claims":{"aud":[5]}`), []string{`client "zoe"`, "aud has to be"}},
		{"a scope of a wrong type", entry(`,"claims":{"scope":["a"]}`), []string{`client "zoe"`, "scope has to be a string"}},
		{"the second client is at fault", strings.TrimSuffix(entry(""), "}") + `,"yan":{}}`, []string{`client "yan"`, "64 hex digits"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "clients.json")
			if err := os.WriteFile(path, []byte(test.content), 0o600); err != nil {
				t.Fatal(err)
			}
			clients, err := readClients(path)
			if test.says == nil {
				if err != nil || len(clients) != 1 || fmt.Sprintf("%x", clients["zoe"].digest) != good {
					t.Errorf("readClients(%s) = %v, %v; want zoe", test.content, clients, err)
				}
				return
			}
			if err == nil || clients != nil {
				t.Fatalf("readClients(%s) = %v, %v; want no clients, and an error", test.content, clients, err)
			}
			for _, want := range append(test.says, path) {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("readClients(%s) = %v; want %s in it", test.content, err, want)
				}
			}
			for _, secret := range []string{"hush", good[2:10], good[32:40], digestOf("")[:8], "1234567890"} {
				if strings.Contains(err.Error(), secret) {
					t.Errorf("readClients(%s) = %v; want no secret or digest in it", test.content, err)
				}
			}
		})
	}
	path := filepath.Join(t.TempDir(), "absent.json")
	if clients, err := readClients(path); clients != nil || !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), path) {
		t.Errorf("readClients(%s) = %v, %v; want an error that names it", path, clients, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := run(ctx, []string{"-addr", "127.0.0.1:0", "-keys", "", "-clients", path}, io.Discard); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("run(-clients %s) = %v; want an error that names it, and no open endpoint", path, err)
	}
}

func FuzzTokenRequest(f *testing.F) {
	for _, body := range []string{
		"", `{"sub":"alice","roles":["admin"]}`, `{"exp":1,"nbf":2.5,"iat":-1e3,"aud":["a"],"jti":"","iss":"x"}`,
		`{"grant_type":"password","username":"a","password":"b","client_id":"c","client_secret":"d","audience":"e"}`,
		"grant_type=client_credentials&client_id=a&client_secret=b&scope=c+d", "aud=a&audience=b&username=c", "sub=%zz", `[1]`,
	} {
		f.Add(formLabel, []byte(body))
		f.Add("application/json", []byte(body))
	}
	s := server{config: config{tokenTTL: time.Minute, issuer: "http://issuer.test", audience: "api"}}
	f.Fuzz(func(t *testing.T, label string, body []byte) {
		r := httptest.NewRequest("POST", "/auth", bytes.NewReader(body))
		r.Header.Set("Content-Type", label)
		request, err := readTokenRequest(httptest.NewRecorder(), r)
		if err != nil {
			if refusal := (*httpError)(nil); !errors.As(err, &refusal) || refusal.status < 400 || refusal.status > 499 {
				t.Errorf("readTokenRequest(%q, %q) = %v; want a refusal", label, body, err)
			}
			return
		}
		for _, name := range []string{"grant_type", "client_id", "client_secret", "password", "username", "audience"} {
			if v, ok := request.claims[name]; ok {
				t.Errorf("readTokenRequest(%q, %q) has a claim %s, %v", label, body, name, v)
			}
		}
		for name, v := range request.claims {
			ok := true
			switch name {
			case "iss", "sub", "jti", "scope":
				_, ok = v.(string)
			case "exp", "nbf", "iat":
				_, ok = v.(json.Number)
			case "aud":
				list, many := v.([]any)
				_, one := v.(string)
				ok = one || many && !slices.ContainsFunc(list, func(v any) bool { _, text := v.(string); return !text })
			}
			if !ok {
				t.Errorf("readTokenRequest(%q, %q) has a claim %s of a wrong type, %v", label, body, name, v)
			}
		}
		now := time.Now()
		claims, expires, err := s.claims(now, false, request.claims)
		if err != nil {
			return
		}
		if expires > now.Unix()+60 {
			t.Errorf("claims(%q, %q) expire at %d; want %d at most", label, body, expires, now.Unix()+60)
		}
		token := jwt.NewWithClaims(jwt.SigningMethodRS256, claims)
		if _, err := token.SigningString(); err != nil {
			t.Errorf("the claims of readTokenRequest(%q, %q) make no token: %v", label, body, err)
		}
	})
}

func FuzzExpired(f *testing.F) {
	for _, query := range []string{"", "expired", "expired=", "expired=true", "expired=0", "expired=key", "expired=1&expired=1", "%zz", "a;b", "expired=%6bey"} {
		f.Add(query)
	}
	f.Fuzz(func(t *testing.T, query string) {
		expired, unpublished, err := parseExpired(query)
		values, unreadable := url.ParseQuery(query)
		given := values["expired"]
		truth, none := false, error(nil)
		if len(given) == 1 && given[0] != "" && given[0] != "key" {
			truth, none = strconv.ParseBool(given[0])
		} else if len(given) == 1 {
			truth = true
		}
		if refuse := unreadable != nil || len(given) > 1 || none != nil; refuse != (err != nil) {
			t.Fatalf("parseExpired(%q) = %v; want an error: %v", query, err, refuse)
		} else if refuse {
			truth, given = false, nil
		}
		if key := len(given) == 1 && given[0] == "key"; expired != truth || unpublished != key {
			t.Errorf("parseExpired(%q) = %v, %v; want %v, %v", query, expired, unpublished, truth, key)
		}
	})
}

func FuzzClients(f *testing.F) {
	good := digestOf("hush")
	for _, content := range []string{
		"", "null", "{}", `{"a":null}`, `{"a":{"secret_sha256":"` + good + `"}}`,
		`{"a":{"secret_sha256":"` + good + `","claims":{"aud":["x"],"iss":"y","z":1}},"b":{"secret_sha256":"` + strings.ToUpper(good) + `"}}`,
		`{"a":{"secret_sha256":"` + good + `"},"a":{"secret_sha256":"` + good + `"}}`, `{"a":{"secret_sha256":"` + good + `","claims":{"sub":1}}}`,
	} {
		f.Add([]byte(content))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		clients, err := parseClients(content)
		if err != nil {
			if clients != nil {
				t.Errorf("parseClients(%q) = %v, %v; want no clients", content, clients, err)
			}
			return
		}
		if len(clients) == 0 || !json.Valid(content) {
			t.Errorf("parseClients(%q) = %v; want an error", content, clients)
		}
		for id, c := range clients {
			if id == "" || c.digest == [sha256.Size]byte{} && !bytes.Contains(content, bytes.Repeat([]byte("0"), 64)) {
				t.Errorf("parseClients(%q) has a client %q, digest %x", content, id, c.digest)
			}
			for _, name := range []string{"exp", "iat", "nbf", "jti"} {
				if _, ok := c.claims[name]; ok || c.claims["sub"] != id {
					t.Errorf("parseClients(%q) registers %s for %q, whose sub is %v", content, name, id, c.claims["sub"])
				}
			}
			if _, err := json.Marshal(c.claims); err != nil {
				t.Errorf("parseClients(%q) has claims for %q that make no token: %v", content, id, err)
			}
		}
	})
}
