package main

import (
	"bytes"
	"crypto/rsa"
	"encoding/base64"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"
)

const (
	slowSet     = 20 * time.Second // time until the response of the fault slow begins
	hugeSet     = 16 << 20         // bytes before the keys of the fault huge
	slowClients = 15 * time.Second // time to read the response of slow, or of huge
)

// A setFault is an oddity or a defect of the JWK Set. An odd set is legal, and has all
// good keys. A broken one has none of them, comes too late, or is too large.
type setFault struct {
	Name   string `json:"fault"`
	Accept string `json:"accept"` // tokens to accept: of keys that are first seen in this set (new), or of keys known before (known)
	Why    string `json:"why"`
	See    string `json:"see"`

	change  func(*oddSet)                                             // makes the set odd
	respond func(http.ResponseWriter, *http.Request, *document) error // to a read of a broken set; is given the good set
}

// setFaults is the catalogue.
var setFaults = []setFault{
	{Name: "unknown-kty", Accept: "new", Why: "a key of a type that verifiers do not know comes first", See: "RFC 7517 section 5",
		change: func(s *oddSet) { s.putFirst(unknownKty) }},
	{Name: "unknown-alg", Accept: "new", Why: "an RSA key with an alg that no verifier knows comes first", See: "RFC 7517 section 5",
		change: (*oddSet).putUnknownAlgFirst},
	{Name: "unknown-curve", Accept: "new", Why: "an EC key on a curve that no verifier knows comes first", See: "RFC 7517 section 5",
		change: func(s *oddSet) { s.putFirst(unknownCurve) }},
	{Name: "other-kinds", Accept: "new", Why: "keys for ES256 and EdDSA come first", See: "RFC 7517 section 4.1",
		change: func(s *oddSet) { s.putFirst(ecKey("other-kinds-ec"), edKey) }},
	{Name: "encryption-key", Accept: "new", Why: "an RSA key for encryption (use is enc) comes first", See: "RFC 7517 section 4.2",
		change: (*oddSet).putEncryptionKeyFirst},
	{Name: "extra-members", Accept: "new", See: "RFC 7517 section 4",
		Why: "the set and its keys have members that no verifier knows, and keys have x5t", change: (*oddSet).addMembers},
	{Name: "same-kid", Accept: "new", Why: "before each key comes an EC key with its kid", See: "RFC 7517 section 4.5",
		change: (*oddSet).putSameKidBeforeEach},
	{Name: "no-alg", Accept: "new", Why: "keys have neither alg nor use (those of Entra ID have no alg)", See: "RFC 7517 section 4.4",
		change: (*oddSet).removeAlg},
	{Name: "reversed", Accept: "new", Why: "keys come in the opposite order", See: "RFC 7517 section 5.1",
		change: (*oddSet).reverse},
	{Name: "media-type", Accept: "new", Why: "the Content-Type is application/jwk-set+json", See: "RFC 7517 section 8.5.2",
		change: (*oddSet).setMediaType},
	{Name: "odd", Accept: "new", Why: "the set has the oddities of all other legal sets at once", See: "RFC 7517 section 5",
		change: (*oddSet).changeAll},
	{Name: "error", Accept: "known", Why: "the response is 500", See: "RFC 9110 section 15.6.1",
		respond: failing(http.StatusInternalServerError, "server_error")},
	{Name: "unavailable", Accept: "known", Why: "the response is 503", See: "RFC 9110 section 15.6.4",
		respond: failing(http.StatusServiceUnavailable, "temporarily_unavailable")},
	{Name: "not-found", Accept: "known", Why: "the response is 404", See: "RFC 9110 section 15.5.5",
		respond: failing(http.StatusNotFound, "not_found")},
	{Name: "html", Accept: "known", Why: "the response is 200 with an HTML page, as a captive portal sends it", See: "RFC 9110 section 8.3",
		respond: responding("text/html; charset=utf-8", "<!DOCTYPE html>\n<title>Sign in</title>\n<p>Sign in to use this network.\n")},
	{Name: "empty", Accept: "known", Why: "the set has no keys", See: "RFC 7517 section 5.1",
		respond: responding("application/json", `{"keys":[]}`)},
	{Name: "no-keys", Accept: "known", Why: "the response is {}, a set without the member keys", See: "RFC 7517 section 5.1",
		respond: responding("application/json", `{}`)},
	{Name: "cut", Accept: "known", Why: "the response is the first half of the JSON", See: "RFC 8259 section 2",
		respond: func(w http.ResponseWriter, r *http.Request, good *document) error {
			return responding("application/json", string(good.body[:len(good.body)/2]))(w, r, nil)
		}},
	{Name: "slow", Accept: "known", Why: "the response begins after 20 s", See: "RFC 9111 section 4.2.4", respond: respondSlowly},
	{Name: "huge", Accept: "known", Why: "16 MiB of other data come before the keys", See: "RFC 9110 section 17.5", respond: respondHugely},
	{Name: "redirect", Accept: "known", Why: "the response is a redirection to the same URL", See: "RFC 9110 section 15.4",
		respond: func(w http.ResponseWriter, r *http.Request, _ *document) error {
			w.Header().Set("Cache-Control", "no-store")
			w.Header().Set("Location", r.URL.EscapedPath())
			w.WriteHeader(http.StatusFound)
			return nil
		}},
}

// findSetFault returns the fault of a name. Its error lists all names.
func findSetFault(name string) (setFault, error) {
	var names []string
	for _, f := range setFaults {
		if f.Name == name {
			return f, nil
		}
		names = append(names, f.Name)
	}
	return setFault{}, badRequest("fault has to be one of %s", strings.Join(names, ", "))
}

// document returns the JWK Set of keys, made odd by f. Without a change it is the text of the
// good set, because the secret of the fault hs256-jwk is the text of a JWK in it.
func (f setFault) document(keys []key) *document {
	if f.change == nil {
		return jwkSet(keys)
	}
	set := oddSet{mediaType: "application/json", members: map[string]any{}}
	for _, k := range keys {
		set.keys = append(set.keys, jwkMembers(k))
		set.public = append(set.public, &k.private.PublicKey)
	}
	f.change(&set)
	set.members["keys"] = set.keys
	return newText([]string{set.mediaType}, append(encode(set.members), '\n'))
}

// jwkMembers returns the members of the JWK of k.
func jwkMembers(k key) map[string]any {
	j := k.jwk()
	return map[string]any{"kty": j.Kty, "use": j.Use, "alg": j.Alg, "kid": j.Kid, "n": j.N, "e": j.E}
}

// An oddSet is a JWK Set under construction.
type oddSet struct {
	members   map[string]any // besides keys
	keys      []map[string]any
	public    []*rsa.PublicKey // the good keys
	mediaType string
}

// Keys that are in no good set. The points are those of RFC 7517 appendix A.1 and RFC 8037
// appendix A.2.
var (
	unknownKty = map[string]any{"kty": "AKP", "alg": "ML-DSA-44", "use": "sig", "kid": "unknown-kty",
		"pub": base64.RawURLEncoding.EncodeToString(make([]byte, 1312))}
	unknownCurve = map[string]any{"kty": "EC", "crv": "P-257", "use": "sig", "kid": "unknown-curve", "x": pointX, "y": pointY}
	edKey        = map[string]any{"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": "other-kinds-ed",
		"x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
)

const pointX, pointY = "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4", "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"

func ecKey(kid any) map[string]any {
	return map[string]any{"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": kid, "x": pointX, "y": pointY}
}

func (s *oddSet) putFirst(keys ...map[string]any) { s.keys = append(slices.Clone(keys), s.keys...) }

func (s *oddSet) putUnknownAlgFirst() { s.putFirst(s.copyOfKey("unknown-alg", "XS256", "sig")) }

func (s *oddSet) putEncryptionKeyFirst() {
	s.putFirst(s.copyOfKey("encryption-key", "RSA-OAEP-256", "enc"))
}

// copyOfKey returns the public key of a good key under another kid, with another alg and use.
func (s *oddSet) copyOfKey(kid, alg, use string) map[string]any {
	n, e := parameters(s.public[0])
	return map[string]any{"kty": "RSA", "use": use, "alg": alg, "kid": kid, "n": n, "e": e}
}

func (s *oddSet) reverse() { slices.Reverse(s.keys) }

func (s *oddSet) setMediaType() { s.mediaType = "application/jwk-set+json" }

func (s *oddSet) addMembers() {
	s.members["x-unknown"] = map[string]any{"a": []int{1}}
	for _, k := range s.keys {
		k["x-unknown"] = "a"
		k["x5t"] = base64.RawURLEncoding.EncodeToString(make([]byte, 20))
	}
}

func (s *oddSet) putSameKidBeforeEach() {
	var keys []map[string]any
	for _, k := range s.keys {
		keys = append(keys, ecKey(k["kid"]), k)
	}
	s.keys = keys
}

func (s *oddSet) removeAlg() {
	for _, k := range s.keys {
		delete(k, "alg")
		delete(k, "use")
	}
}

// changeAll makes all changes at once: first those of the good keys, then those that add keys.
func (s *oddSet) changeAll() {
	s.reverse()
	s.removeAlg()
	s.addMembers()
	s.putSameKidBeforeEach()
	s.setMediaType()
	s.putUnknownAlgFirst()
	s.putEncryptionKeyFirst()
	s.putFirst(unknownKty, unknownCurve, ecKey("other-kinds-ec"), edKey)
}

// failing returns a response with an error.
func failing(status int, code string) func(http.ResponseWriter, *http.Request, *document) error {
	return func(http.ResponseWriter, *http.Request, *document) error {
		return refuse(status, code, "this JWK Set has a fault, for tests: POST /faults/sets makes it good again")
	}
}

// responding returns a response with 200 and a body that no cache may store.
func responding(mediaType, body string) func(http.ResponseWriter, *http.Request, *document) error {
	return func(w http.ResponseWriter, r *http.Request, _ *document) error {
		w.Header().Set("Content-Type", mediaType)
		w.Header().Set("Cache-Control", "no-store")
		io.WriteString(w, body)
		return nil
	}
}

func respondSlowly(w http.ResponseWriter, r *http.Request, good *document) error {
	extendWriteDeadline(w, slowSet+slowClients)
	select {
	case <-time.After(slowSet):
	case <-r.Context().Done():
		return r.Context().Err()
	}
	return responding("application/json", string(good.body))(w, r, nil)
}

func respondHugely(w http.ResponseWriter, r *http.Request, good *document) error {
	extendWriteDeadline(w, slowClients)
	padding := bytes.Repeat([]byte("x"), 64<<10)
	before := `{"padding":"`
	err := responding("application/json", before)(w, r, nil)
	for n := 0; n < hugeSet && err == nil; n += len(padding) {
		_, err = w.Write(padding)
	}
	io.WriteString(w, `",`+string(good.body[1:]))
	return nil
}

// extendWriteDeadline lets a response take d, however long others may take.
func extendWriteDeadline(w http.ResponseWriter, d time.Duration) {
	http.NewResponseController(w).SetWriteDeadline(time.Now().Add(d))
}
