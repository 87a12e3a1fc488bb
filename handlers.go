package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"math"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

const (
	maxBody = 16 << 10  // bytes of a token request
	past    = time.Hour // how long ago an expired token expired: leeways reach five minutes
)

// A server answers HTTP requests with what its keystore holds.
type server struct {
	config
	keys *keystore
	log  *log.Logger
}

// newHandler returns the routes of the server, all of them.
func newHandler(cfg config, keys *keystore, log *log.Logger) http.Handler {
	s := &server{cfg, keys, log}
	mux := http.NewServeMux()
	for _, route := range []struct {
		method, path string
		handle       http.HandlerFunc
	}{
		{"GET", "/{$}", s.root},
		{"GET", "/.well-known/jwks.json", s.jwks},
		{"POST", "/auth", s.auth},
	} {
		mux.HandleFunc(route.method+" "+route.path, route.handle)
		mux.HandleFunc(route.path, s.otherMethod(route.method))
	}
	mux.HandleFunc("/", s.otherPath)
	if s.verbose {
		return s.logRequests(mux)
	}
	return mux
}

func (s *server) root(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain")
	io.WriteString(w, "JWKS Server Running!")
}

func (s *server) jwks(w http.ResponseWriter, r *http.Request) {
	set, err := s.keys.jwks(r.Context())
	if err != nil {
		s.fail(w, err)
		return
	}
	set.ServeHTTP(w, r)
}

// auth is the token endpoint (RFC 6749 section 3.2).
func (s *server) auth(w http.ResponseWriter, r *http.Request) {
	expired, unpublished, err := parseExpired(r.URL.RawQuery)
	if err != nil {
		s.fail(w, err)
		return
	}
	request, err := readTokenRequest(w, r)
	if err != nil {
		s.fail(w, err)
		return
	}

	var response struct { // RFC 6749 section 5.1, and token for people
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
		TokenType   string `json:"token_type"`
		ExpiresIn   int64  `json:"expires_in"`
		Scope       string `json:"scope,omitempty"`
	}
	token, err := s.keys.sign(r.Context(), unpublished, func(now time.Time) (jwt.MapClaims, error) {
		claims, left, err := s.claims(now, expired, request.claims)
		response.ExpiresIn = left
		response.Scope, _ = claims["scope"].(string)
		return claims, err
	})
	if err != nil {
		s.fail(w, err)
		return
	}
	response.Token, response.AccessToken, response.TokenType = token, token, "Bearer"
	writeJSON(w, http.StatusOK, response)
}

// claims returns the claims of a token issued at now, and the seconds that it has
// left. Those asked for replace the server's own, but for a later exp: the key
// would not outlive the token.
func (s *server) claims(now time.Time, expired bool, asked map[string]any) (claims jwt.MapClaims, left int64, err error) {
	lifetime := int64(s.tokenTTL / time.Second)
	issued := now.Unix()
	if expired {
		issued -= int64(past/time.Second) + lifetime
	}
	expires := issued + lifetime
	claims = jwt.MapClaims{
		"iss": s.issuer,
		"sub": "user123",
		"iat": issued,
		"exp": expires,
		"jti": rand.Text(),
	}
	if s.audience != "" {
		claims["aud"] = s.audience
	}
	maps.Copy(claims, asked)
	if exp, ok := asked["exp"].(json.Number); ok {
		e, _ := exp.Float64() // checkClaims has seen to it
		if e > float64(expires) {
			return nil, 0, badRequest("exp is too late: a token lives for %s at most, until %d for this one", s.tokenTTL, expires)
		}
		expires = int64(math.Floor(max(e, 0)))
	}
	return claims, expires - now.Unix(), nil
}

// parseExpired reads what expired says in the query: whether the token shall have
// expired, and whether its key shall be missing from the JWK Set.
func parseExpired(query string) (expired, unpublished bool, err error) {
	values, err := url.ParseQuery(query)
	if err != nil {
		return false, false, badRequest("the query cannot be read: %v", err)
	}
	switch v := values["expired"]; {
	case len(v) == 0:
		return false, false, nil
	case len(v) > 1:
		return false, false, badRequest("expired is given %d times: give it once", len(v))
	case v[0] == "":
		return true, false, nil
	case v[0] == "key":
		return true, true, nil
	default:
		expired, err := strconv.ParseBool(v[0])
		if err != nil {
			return false, false, badRequest("expired is %.20s: it has to be true, false or key", v[0])
		}
		return expired, false, nil
	}
}

// A tokenRequest is what the body of POST /auth asks for.
type tokenRequest struct {
	claims map[string]any // to be in the token; they have the types of RFC 7519
}

// readTokenRequest reads an optional body: a JSON object of claims, known by its
// first character, or the form of RFC 6749 section 4.4.2.
func readTokenRequest(w http.ResponseWriter, r *http.Request) (tokenRequest, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		return tokenRequest{}, &httpError{http.StatusRequestEntityTooLarge, "invalid_request",
			fmt.Sprintf("the body is too large: %d bytes are the most", maxBody)}
	}
	if err != nil {
		return tokenRequest{}, badRequest("the body cannot be read: send it whole, within ten seconds")
	}
	parameters := map[string]any{}
	if body = bytes.TrimLeft(body, " \t\r\n"); len(body) > 0 {
		if body[0] == '{' {
			parameters, err = parseObject(body)
		} else {
			parameters, err = parseForm(r.Header.Get("Content-Type"), string(body))
		}
		if err != nil {
			return tokenRequest{}, err
		}
	}
	return newTokenRequest(parameters)
}

// parseObject reads a JSON object. Numbers keep their digits.
func parseObject(body []byte) (map[string]any, error) {
	var object map[string]any
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	if err := d.Decode(&object); err != nil {
		return nil, badRequest("the body is not a JSON object: %v", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, badRequest("there is something after the JSON object in the body: send the object alone")
	}
	return object, nil
}

// parseForm reads those parameters of a form that this server knows and ignores
// the others and the empty ones (RFC 6749 section 3.2).
func parseForm(contentType, body string) (map[string]any, error) {
	kind, _, err := mime.ParseMediaType(contentType)
	if contentType != "" && (err != nil || kind != "application/x-www-form-urlencoded") || !startsForm(body[0]) {
		return nil, badRequest("the body has to be a JSON object or a form labelled application/x-www-form-urlencoded")
	}
	form, err := url.ParseQuery(body)
	if err != nil {
		return nil, badRequest("the form in the body cannot be read: %v", err)
	}
	parameters := map[string]any{}
	for _, name := range []string{"grant_type", "sub", "username", "aud", "audience", "scope", "client_id", "client_secret"} {
		var values []any
		for _, v := range form[name] {
			if v != "" {
				values = append(values, v)
			}
		}
		switch {
		case len(values) == 1:
			parameters[name] = values[0]
		case len(values) > 1 && name != "aud" && name != "audience":
			return nil, badRequest("%s is given %d times: give it once", name, len(values))
		case len(values) > 1:
			parameters[name] = values
		}
	}
	return parameters, nil
}

// startsForm tells whether c may begin a form, rather than JSON or a file.
func startsForm(c byte) bool {
	return c == '%' || c == '_' || c == '&' || '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'z'
}

// newTokenRequest sorts the parameters of a body into claims and the rest, which
// must not enter a token.
func newTokenRequest(parameters map[string]any) (tokenRequest, error) {
	for alias, claim := range map[string]string{"username": "sub", "audience": "aud"} {
		if v, ok := parameters[alias]; ok {
			if _, both := parameters[claim]; both {
				return tokenRequest{}, badRequest("%s and %s are the same claim: give one of them", alias, claim)
			}
			parameters[claim] = v
			delete(parameters, alias)
		}
	}
	grant, given := parameters["grant_type"]
	if given && grant != "client_credentials" && grant != "password" {
		return tokenRequest{}, &httpError{http.StatusBadRequest, "unsupported_grant_type",
			"grant_type has to be client_credentials or password"}
	}
	for _, name := range []string{"grant_type", "client_id", "client_secret", "password"} {
		delete(parameters, name)
	}
	if err := checkClaims(parameters); err != nil {
		return tokenRequest{}, badRequest("%v", err)
	}
	return tokenRequest{claims: parameters}, nil
}

// checkClaims reports a registered claim (RFC 7519 section 4.1), or a scope (RFC
// 8693 section 4.2), that is not of its type.
func checkClaims(claims map[string]any) error {
	for name, value := range claims {
		switch name {
		case "iss", "sub", "jti", "scope":
			if _, ok := value.(string); !ok {
				return fmt.Errorf("%s has to be a string", name)
			}
		case "aud":
			list, ok := value.([]any)
			if !ok {
				list = []any{value}
			}
			for _, v := range list {
				if _, ok := v.(string); !ok {
					return errors.New("aud has to be a string or an array of strings")
				}
			}
		case "exp", "nbf", "iat":
			number, _ := value.(json.Number)
			if _, err := number.Float64(); err != nil {
				return fmt.Errorf("%s has to be a number of seconds since 1970", name)
			}
		}
	}
	return nil
}

// A document is JSON made once and served many times to caches and browsers.
type document struct {
	body                       []byte
	length, etag, cacheControl []string // header values
}

var (
	contentTypeJSON = []string{"application/json"}
	anyOrigin       = []string{"*"}
)

// newDocument makes a document of v that a cache may keep for maxAge.
func newDocument(v any, maxAge time.Duration) *document {
	body := encode(v)
	sum := sha256.Sum256(body)
	return &document{
		body:         body,
		length:       []string{strconv.Itoa(len(body))},
		etag:         []string{`"` + base64.RawURLEncoding.EncodeToString(sum[:16]) + `"`},
		cacheControl: []string{fmt.Sprintf("public, max-age=%d", maxAge/time.Second)},
	}
}

// ServeHTTP answers 304 to a request that has the document (RFC 9110 section 13.1.2).
func (d *document) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header() // set directly: the names are canonical and the values made
	h["Access-Control-Allow-Origin"] = anyOrigin
	h["Cache-Control"] = d.cacheControl
	h["Etag"] = d.etag
	for _, tags := range r.Header["If-None-Match"] {
		for tag := range strings.SplitSeq(tags, ",") {
			tag = strings.Trim(tag, " \t")
			if tag == "*" || strings.TrimPrefix(tag, "W/") == d.etag[0] {
				w.WriteHeader(http.StatusNotModified)
				return
			}
		}
	}
	h["Content-Type"] = contentTypeJSON
	h["Content-Length"] = d.length
	w.Write(d.body)
}

func (s *server) otherMethod(method string) http.HandlerFunc {
	if method == "GET" {
		method = "GET, HEAD"
	}
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Allow", method)
		s.fail(w, &httpError{http.StatusMethodNotAllowed, "method_not_allowed",
			fmt.Sprintf("%.20s is not for this path: use %s", r.Method, method)})
	}
}

func (s *server) otherPath(w http.ResponseWriter, r *http.Request) {
	s.fail(w, &httpError{http.StatusNotFound, "not_found",
		"there is nothing here: the JWK Set is at /.well-known/jwks.json, tokens are at /auth"})
}

// An httpError is a refusal, as its client shall see it: code and description are
// those of RFC 6749 section 5.2.
type httpError struct {
	status            int
	code, description string
}

func (e *httpError) Error() string { return e.description }

func badRequest(format string, args ...any) error {
	return &httpError{http.StatusBadRequest, "invalid_request", fmt.Sprintf(format, args...)}
}

// fail answers with err; one that is not an httpError is not for the client's eyes.
func (s *server) fail(w http.ResponseWriter, err error) {
	var refusal *httpError
	switch {
	case errors.As(err, &refusal):
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		refusal = &httpError{http.StatusServiceUnavailable, "temporarily_unavailable",
			"the server is busy: try again in a second"}
	case errors.Is(err, errNoKey): // the keystore's loop logs why
		refusal = &httpError{http.StatusServiceUnavailable, "temporarily_unavailable",
			"there is no key and none can be stored: see the log of the server, and try again"}
	default:
		s.log.Printf("a request failed: %v", err)
		refusal = &httpError{http.StatusInternalServerError, "server_error",
			"the server failed: see its log"}
	}
	if refusal.status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	writeJSON(w, refusal.status, map[string]string{
		"error":             refusal.code,
		"error_description": strings.Map(descriptive, refusal.description),
	})
}

// descriptive maps r to what an error_description may hold.
func descriptive(r rune) rune {
	switch {
	case r == '"':
		return '\''
	case r < ' ' || r > '~' || r == '\\':
		return '?'
	}
	return r
}

// writeJSON answers with v, which no cache may keep.
func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	w.Write(encode(v))
}

// encode returns v, which can always be encoded, as a line of JSON.
func encode(v any) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// logRequests logs a line for each request, without its query.
func (s *server) logRequests(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		recorder := &statusRecorder{w, http.StatusOK}
		defer func() {
			s.log.Printf("%s %q %d %s", r.Method, r.URL.Path, recorder.status, time.Since(start))
		}()
		next.ServeHTTP(recorder, r)
	})
}

// A statusRecorder remembers the status of a response.
type statusRecorder struct {
	http.ResponseWriter
	status int
}

func (r *statusRecorder) WriteHeader(status int) {
	r.status = status
	r.ResponseWriter.WriteHeader(status)
}
