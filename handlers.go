package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
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
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

const (
	maxBody = 16 << 10  // bytes of a token request
	past    = time.Hour // how long ago an expired token expired: leeways reach five minutes
)

// A server answers requests with what its keystore holds.
type server struct {
	config
	keys        *keystore
	unpublished *keystore         // of the keys for ?expired=key
	clients     map[string]client // those that may have tokens; nil means anybody
	grants      []string          // the grant types of the token endpoint
	log         *log.Logger
}

// newHandler returns the routes of the server, all of them.
func newHandler(cfg config, keys *keystore, clients map[string]client, log *log.Logger) http.Handler {
	s := &server{cfg, keys, keys.unpublished(), clients, []string{"client_credentials"}, log}
	if clients == nil {
		s.grants = append(s.grants, "password")
	}
	mux := http.NewServeMux()
	handle := func(pattern string, h func(http.ResponseWriter, *http.Request) error) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if err := h(w, r); err != nil {
				s.fail(w, err)
			}
		})
	}
	get := func(path string, h func(http.ResponseWriter, *http.Request) error) {
		handle("GET "+path, h)
		handle(path, onlyMethod("GET, HEAD"))
	}
	get("/{$}", s.root)
	get("/.well-known/jwks.json", s.jwks)
	get("/.well-known/openid-configuration", s.metadata().serve)
	handle("POST /auth", s.auth)
	handle("/auth", onlyMethod("POST"))
	handle("/", s.nothing)
	if s.verbose {
		return s.logRequests(mux)
	}
	return mux
}

func (s *server) root(w http.ResponseWriter, r *http.Request) error {
	w.Header().Set("Content-Type", "text/plain")
	io.WriteString(w, "JWKS Server Running!")
	return nil
}

func (s *server) jwks(w http.ResponseWriter, r *http.Request) error {
	set, err := s.keys.jwks(r.Context())
	if err != nil {
		return err
	}
	return set.serve(w, r)
}

// metadata is what others need to know of this issuer (OpenID Connect Discovery 1.0
// section 3).
func (s *server) metadata() *document {
	methods := []string{"client_secret_basic", "client_secret_post"}
	if s.clients == nil {
		methods = append(methods, "none")
	}
	return newDocument(map[string]any{
		"issuer":                                s.issuer,
		"jwks_uri":                              s.issuer + "/.well-known/jwks.json",
		"token_endpoint":                        s.issuer + "/auth",
		"response_types_supported":              []string{"id_token"},
		"subject_types_supported":               []string{"public"},
		"id_token_signing_alg_values_supported": []string{"RS256"},
		"grant_types_supported":                 s.grants,
		"token_endpoint_auth_methods_supported": methods,
	}, s.maxAge())
}

// A document is JSON that is made once and served many times, to caches and browsers.
type document struct {
	body   []byte
	header http.Header
}

// newDocument makes a document of v that caches may keep for maxAge.
func newDocument(v any, maxAge time.Duration) *document {
	body, header := encode(v), http.Header{}
	digest := sha256.Sum256(body)
	header.Set("Access-Control-Allow-Origin", "*")
	header.Set("Cache-Control", fmt.Sprintf("public, max-age=%d", maxAge/time.Second))
	header.Set("Content-Length", strconv.Itoa(len(body)))
	header.Set("Content-Type", "application/json")
	header.Set("ETag", `"`+base64.RawURLEncoding.EncodeToString(digest[:16])+`"`)
	return &document{body, header}
}

// serve answers with the document, or 304 if the client has it (RFC 9110 section
// 13.1.2).
func (d *document) serve(w http.ResponseWriter, r *http.Request) error {
	h := w.Header()
	maps.Copy(h, d.header)
	for _, tags := range r.Header["If-None-Match"] {
		for tag := range strings.SplitSeq(tags, ",") {
			if tag = strings.Trim(tag, " \t"); tag == "*" || strings.TrimPrefix(tag, "W/") == d.header["Etag"][0] {
				delete(h, "Content-Length")
				delete(h, "Content-Type")
				w.WriteHeader(http.StatusNotModified)
				return nil
			}
		}
	}
	w.Write(d.body)
	return nil
}

// auth is the token endpoint (RFC 6749 section 3.2).
func (s *server) auth(w http.ResponseWriter, r *http.Request) error {
	expired, unpublished, err := parseExpired(r.URL.RawQuery)
	if err != nil {
		return err
	}
	request, err := readTokenRequest(w, r)
	if err != nil {
		return err
	}
	asked, err := s.authorize(r, request)
	if err != nil {
		return err
	}
	response := struct { // RFC 6749 section 5.1, and token for people
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
		TokenType   string `json:"token_type"`
		ExpiresIn   int64  `json:"expires_in"`
		Scope       string `json:"scope,omitempty"`
	}{TokenType: "Bearer"}
	keys := s.keys
	if unpublished {
		keys = s.unpublished
	}
	response.Token, err = keys.sign(r.Context(), func(now time.Time) (jwt.MapClaims, error) {
		claims, expires, err := s.claims(now, expired, asked)
		response.ExpiresIn = expires - now.Unix()
		response.Scope, _ = claims["scope"].(string)
		return claims, err
	})
	if err != nil {
		return err
	}
	response.AccessToken = response.Token
	writeJSON(w, http.StatusOK, response)
	return nil
}

// parseExpired reads expired in the query: whether the token shall have expired,
// and whether its key shall be missing from the JWK Set.
func parseExpired(query string) (expired, unpublished bool, err error) {
	values, err := url.ParseQuery(query)
	if err != nil {
		return false, false, badRequest("the query cannot be read: %v", err)
	}
	given := values["expired"]
	switch {
	case len(given) == 0:
		return false, false, nil
	case len(given) == 1 && given[0] == "key":
		return true, true, nil
	case len(given) == 1 && given[0] == "":
		return true, false, nil
	}
	if expired, err = strconv.ParseBool(given[0]); err != nil || len(given) > 1 {
		return false, false, badRequest("expired has to be given once, as true, false or key")
	}
	return expired, false, nil
}

// A tokenRequest is what the body of POST /auth says.
type tokenRequest struct {
	grant      string         // grant_type; may be absent
	id, secret string         // of a client that authenticates in the body
	claims     map[string]any // for the token; of their types, never nil
}

// readTokenRequest reads the body, which may be absent: a JSON object of claims,
// known by its first character, or a form as in RFC 6749 section 4.4.2.
func readTokenRequest(w http.ResponseWriter, r *http.Request) (tokenRequest, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		return tokenRequest{}, refuse(http.StatusRequestEntityTooLarge, "invalid_request", "the body is too large: it may have %d bytes", maxBody)
	}
	if err != nil {
		return tokenRequest{}, badRequest("the body cannot be read: it has to come whole, within ten seconds")
	}
	return parseTokenRequest(r.Header.Get("Content-Type"), bytes.TrimSpace(body))
}

func parseTokenRequest(contentType string, body []byte) (tokenRequest, error) {
	var err error
	parameters := map[string]any{}
	switch {
	case len(body) == 0:
	case body[0] == '{':
		if parameters, err = parseObject(body); err != nil {
			return tokenRequest{}, badRequest("the body has to be one JSON object: %v", err)
		}
	default:
		if parameters, err = parseForm(contentType, string(body)); err != nil {
			return tokenRequest{}, err
		}
	}
	for alias, name := range map[string]string{"username": "sub", "audience": "aud"} {
		if v, ok := parameters[alias]; ok {
			if _, both := parameters[name]; both {
				return tokenRequest{}, badRequest("%s and %s are the same claim: give one of them", alias, name)
			}
			parameters[name] = v
			delete(parameters, alias)
		}
	}
	if err := checkClaims(parameters); err != nil {
		return tokenRequest{}, err
	}
	take := func(name string) string {
		value, _ := parameters[name].(string)
		delete(parameters, name)
		return value
	}
	take("password")
	return tokenRequest{take("grant_type"), take("client_id"), take("client_secret"), parameters}, nil
}

// parseObject returns the members of the JSON object that content is. Numbers keep
// their digits, and no object in it may have a member twice (RFC 7519 section 4).
func parseObject(content []byte) (map[string]any, error) {
	d := json.NewDecoder(bytes.NewReader(content))
	d.UseNumber()
	var value any
	if err := d.Decode(&value); err != nil {
		if syntax := (*json.SyntaxError)(nil); errors.As(err, &syntax) {
			err = fmt.Errorf("%w at byte %d", err, syntax.Offset)
		}
		return nil, err
	}
	object, ok := value.(map[string]any)
	if !ok {
		return nil, errors.New("it is something else")
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("there is something after it")
	}
	return object, checkNames(json.NewDecoder(bytes.NewReader(content)))
}

// checkNames refuses a member that is twice in one object of the JSON value in d, which
// is known to be valid.
func checkNames(d *json.Decoder) error {
	token, _ := d.Token()
	opening, nested := token.(json.Delim)
	if !nested {
		return nil
	}
	for names := map[any]bool{}; d.More(); {
		if opening == '{' {
			name, _ := d.Token()
			if names[name] {
				return fmt.Errorf("%s is there twice", name)
			}
			names[name] = true
		}
		if err := checkNames(d); err != nil {
			return err
		}
	}
	d.Token() // its end
	return nil
}

// parseForm returns those parameters that this server knows and ignores others and
// empty ones (RFC 6749 section 3.2).
func parseForm(contentType, body string) (map[string]any, error) {
	kind, _, err := mime.ParseMediaType(cmp.Or(contentType, "application/x-www-form-urlencoded"))
	begins := body[0] == '%' || body[0] == '_' || 'a' <= body[0]|0x20 && body[0]|0x20 <= 'z'
	if err != nil || kind != "application/x-www-form-urlencoded" || !begins {
		return nil, badRequest("the body has to be a JSON object, or a form labelled application/x-www-form-urlencoded")
	}
	form, err := url.ParseQuery(body)
	if err != nil {
		return nil, badRequest("the form in the body cannot be read: %v", err)
	}
	parameters := map[string]any{}
	for _, name := range []string{"grant_type", "client_id", "client_secret", "sub", "username", "scope", "aud", "audience"} {
		var values []any
		for _, v := range form[name] {
			if v != "" {
				values = append(values, v)
			}
		}
		switch {
		case len(values) == 1:
			parameters[name] = values[0]
		case len(values) > 1 && strings.HasPrefix(name, "aud"):
			parameters[name] = values
		case len(values) > 1:
			return nil, badRequest("%s has to be given once", name)
		}
	}
	return parameters, nil
}

// checkClaims refuses a registered claim (RFC 7519 section 4.1) or a parameter of OAuth
// 2.0 that is not of its type.
func checkClaims(claims map[string]any) error {
	for name, value := range claims {
		switch name {
		case "iss", "sub", "jti", "scope", "grant_type", "client_id", "client_secret", "password":
			if _, ok := value.(string); !ok {
				return badRequest("%s has to be a string", name)
			}
		case "aud":
			list, ok := value.([]any)
			if !ok {
				list = []any{value}
			}
			if slices.ContainsFunc(list, func(v any) bool { _, text := v.(string); return !text }) {
				return badRequest("aud has to be a string or an array of strings")
			}
		case "exp", "nbf", "iat":
			number, _ := value.(json.Number)
			if _, err := number.Float64(); err != nil {
				return badRequest("%s has to be a number, of seconds since 1970", name)
			}
		}
	}
	return nil
}

// authorize returns the claims that the sender of r may have: any that it asks for, or
// if there are clients, those registered for the one that it is.
func (s *server) authorize(r *http.Request, request tokenRequest) (map[string]any, error) {
	claims := request.claims
	if s.clients != nil {
		c, err := s.authenticate(r, request)
		if err != nil {
			return nil, err
		}
		claims = c.claims
	}
	if request.grant != "" && !slices.Contains(s.grants, request.grant) {
		return nil, refuse(http.StatusBadRequest, "unsupported_grant_type", "grant_type has to be %s", strings.Join(s.grants, " or "))
	}
	if s.clients != nil {
		delete(request.claims, "scope") // the response says which one is granted
		if len(request.claims) > 0 {
			return nil, badRequest("the claims of a token are those registered for the client: send none")
		}
	}
	return claims, nil
}

// authenticate finds the client that r comes from (RFC 6749 section 2.3.1).
func (s *server) authenticate(r *http.Request, request tokenRequest) (client, error) {
	id, secret := request.id, request.secret
	if r.Header.Get("Authorization") != "" {
		user, password, _ := r.BasicAuth()
		user, _ = url.QueryUnescape(user) // empty if it is not Basic or not encoded,
		password, _ = url.QueryUnescape(password)
		if secret != "" || id != "" && id != user {
			return client{}, badRequest("a client has to authenticate once, in the Authorization header or in the body")
		}
		id, secret = user, password // and no client has an empty id
	}
	c, known := s.clients[id]
	digest := sha256.Sum256([]byte(secret))
	if match := subtle.ConstantTimeCompare(digest[:], c.digest[:]); match == 0 || !known {
		return client{}, refuse(http.StatusUnauthorized, "invalid_client",
			"no client has this id and secret: send those registered with the server, by HTTP Basic or in a form")
	}
	return c, nil
}

// claims returns the claims of a token issued at now, with their exp. Those asked
// for replace the server's own, but for a later exp: no token outlives its key.
func (s *server) claims(now time.Time, expired bool, asked map[string]any) (claims jwt.MapClaims, expires int64, err error) {
	lifetime := int64(s.tokenTTL / time.Second)
	issued := now.Unix()
	if expired {
		issued -= int64(past/time.Second) + lifetime
	}
	expires = issued + lifetime
	claims = jwt.MapClaims{"iss": s.issuer, "sub": "user123", "iat": issued, "exp": expires, "jti": rand.Text()}
	if s.audience != "" {
		claims["aud"] = s.audience
	}
	maps.Copy(claims, asked)
	if exp, ok := asked["exp"].(json.Number); ok {
		earlier, _ := exp.Float64()
		if earlier > float64(expires) {
			return nil, 0, badRequest("exp is too late: this token can live until %d, which is -token-ttl from its iat", expires)
		}
		expires = int64(math.Floor(max(earlier, 0)))
	}
	return claims, expires, nil
}

// A client may have tokens.
type client struct {
	digest [sha256.Size]byte // of its secret
	claims map[string]any    // of its tokens: its id as sub, and those registered for it
}

// readClients reads the file of -clients. Any fault in it is an error, for a damaged
// file must not leave the token endpoint open, and tells no secret.
func readClients(path string) (map[string]client, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read the clients file: %w", err)
	}
	clients, err := parseClients(content)
	if err != nil {
		return nil, fmt.Errorf("cannot use the clients file %s: %w", path, err)
	}
	return clients, nil
}

func parseClients(content []byte) (map[string]client, error) {
	entries, err := parseObject(content)
	if err != nil {
		return nil, fmt.Errorf("it has to be one JSON object: %w", err)
	}
	if len(entries) == 0 {
		return nil, errors.New("there is no client")
	}
	clients := map[string]client{}
	for id, entry := range entries {
		if clients[id], err = newClient(id, entry); err != nil {
			return nil, fmt.Errorf("client %q: %w", id, err)
		}
	}
	return clients, nil
}

func newClient(id string, entry any) (client, error) {
	if id == "" {
		return client{}, errors.New("its id must not be empty")
	}
	members, _ := entry.(map[string]any)
	digits, _ := members["secret_sha256"].(string)
	digest, err := hex.DecodeString(digits)
	if err != nil || len(digest) != sha256.Size || [sha256.Size]byte(digest) == sha256.Sum256(nil) {
		return client{}, errors.New("secret_sha256 has to be the 64 hex digits of the SHA-256 digest of a secret that is not empty")
	}
	registered, ok := members["claims"].(map[string]any)
	ok = ok || members["claims"] == nil
	delete(members, "secret_sha256")
	delete(members, "claims")
	if !ok || len(members) > 0 {
		return client{}, errors.New("it has to have secret_sha256, an object of claims if any, and nothing else")
	}
	for _, name := range []string{"sub", "exp", "iat", "nbf", "jti"} {
		if _, ok := registered[name]; ok {
			return client{}, fmt.Errorf("%s cannot be registered: it is the server's to say", name)
		}
	}
	claims := map[string]any{"sub": id}
	maps.Copy(claims, registered)
	return client{[sha256.Size]byte(digest), claims}, checkClaims(claims)
}

func (s *server) nothing(http.ResponseWriter, *http.Request) error {
	return refuse(http.StatusNotFound, "not_found",
		"nothing is here: the JWK Set is at /.well-known/jwks.json, and tokens come from POST /auth")
}

func onlyMethod(allow string) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		w.Header().Set("Allow", allow)
		return refuse(http.StatusMethodNotAllowed, "method_not_allowed", "this path is for %s", allow)
	}
}

// An httpError is a refusal for the client to read, with a code and a description
// as in RFC 6749 section 5.2.
type httpError struct {
	status            int
	code, description string
}

func (e *httpError) Error() string { return e.description }

func refuse(status int, code, format string, args ...any) error {
	return &httpError{status, code, fmt.Sprintf(format, args...)}
}

func badRequest(format string, args ...any) error {
	return refuse(http.StatusBadRequest, "invalid_request", format, args...)
}

// fail answers with err; what is not an httpError has a cause that is no business of
// the client's.
func (s *server) fail(w http.ResponseWriter, err error) {
	var e *httpError
	switch {
	case errors.As(err, &e):
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		e = &httpError{http.StatusServiceUnavailable, "temporarily_unavailable", "the server is busy: try again in a second"}
	case errors.Is(err, errNoKey): // the keystore's loop logs why
		e = &httpError{http.StatusServiceUnavailable, "temporarily_unavailable",
			"the server has no key and cannot store one: its log says why; try again later"}
	default:
		s.log.Printf("cannot answer: %v", err)
		e = &httpError{http.StatusInternalServerError, "server_error", "the server failed: its log says why"}
	}
	switch e.status {
	case http.StatusServiceUnavailable:
		w.Header().Set("Retry-After", "1")
	case http.StatusUnauthorized:
		w.Header().Set("WWW-Authenticate", `Basic realm="jwks-server"`)
	}
	writeJSON(w, e.status, map[string]string{
		"error": e.code,
		"error_description": strings.Map(func(r rune) rune {
			switch {
			case r == '"':
				return '\''
			case r < ' ' || r > '~' || r == '\\':
				return '?'
			}
			return r
		}, e.description),
	})
}

// writeJSON answers with v, which no cache may keep.
func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	w.Write(encode(v))
}

// encode returns v, which is of a type that JSON has, as a line of it.
func encode(v any) []byte {
	body, _ := json.Marshal(v)
	return append(body, '\n')
}

// logRequests logs a line for each request, without the query.
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

// A statusRecorder knows the status of its response.
type statusRecorder struct {
	http.ResponseWriter
	status int
}

func (r *statusRecorder) WriteHeader(status int) {
	r.status = status
	r.ResponseWriter.WriteHeader(status)
}
