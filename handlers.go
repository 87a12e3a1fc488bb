package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

const (
	maxBody   = 16 << 10 // bytes of a token request
	maxClaims = 128      // in it, because each costs time to sign
)

// A server answers requests with what its keystore holds.
type server struct {
	issuer   string
	audience string // of tokens; may be empty
	keys     *keystore
	clients  map[string]client // those that may have tokens; nil means anybody
	hosts    []string          // the names that /auth answers to, beside that in issuer; nil means any
	verbose  bool              // log each request
	log      *slog.Logger

	cacheControl []string                 // of documents
	failures     throttle                 // of client authentication
	other        func() (otherKey, error) // the key that signs bad tokens
}

// routes returns the route table. The routes answer under the path of the issuer, too.
func (s *server) routes() http.Handler {
	s.other = sync.OnceValues(func() (otherKey, error) { return newOtherKey(s.keys.bits) })
	s.cacheControl = []string{"public, max-age=" + strconv.Itoa(int(s.keys.maxAge()/time.Second))}
	issuer, _ := url.Parse(s.issuer)
	if s.hosts != nil {
		s.hosts = append(s.hosts, issuer.Hostname())
	}
	mux := http.NewServeMux()
	get := func(path string, h handler) { mux.Handle(path, s.route("GET, HEAD, OPTIONS", true, h)) }
	metadata := s.document(newDocument(s.metadata()))
	for _, path := range slices.Compact([]string{"", issuer.EscapedPath()}) {
		mux.Handle(path+"/{$}", s.route("GET, HEAD, OPTIONS", false, s.root))
		get(path+"/.well-known/jwks.json", s.jwks)
		get(path+"/.well-known/openid-configuration", metadata)
		get("/.well-known/oauth-authorization-server"+path, metadata) // RFC 8414 section 3.1
		mux.Handle(path+"/auth", s.route("POST, OPTIONS", false, s.auth))
		if s.clients == nil {
			get(path+"/faults", s.document(newDocument(faults)))
			get(path+"/faults/jwks.json", s.otherJWKS)
		}
	}
	mux.HandleFunc("/", s.notFound)
	if s.verbose {
		return s.logRequests(mux)
	}
	return mux
}

// Values of header fields that many answers have, made once because sets are read often.
var noSniff, anyOrigin, jsonType = []string{"nosniff"}, []string{"*"}, []string{"application/json"}

// A handler answers a request, or returns the error to answer with.
type handler func(http.ResponseWriter, *http.Request) error

// route passes on the allowed methods and answers OPTIONS (RFC 9110 section 9.3.7). Pages of
// any origin may read what is shared, and OPTIONS is their preflight. Tokens are not shared,
// because any web page could take them from a developer's loopback.
func (s *server) route(allow string, shared bool, h handler) http.Handler {
	methods := strings.Split(allow, ", ")
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		header := w.Header()
		header["X-Content-Type-Options"] = noSniff
		if shared {
			header["Access-Control-Allow-Origin"] = anyOrigin
		}
		switch {
		case r.Method == http.MethodOptions:
			header.Set("Allow", allow)
			if shared {
				header.Set("Access-Control-Allow-Methods", "GET, HEAD")
				header.Set("Access-Control-Max-Age", "86400")
				if asked := r.Header.Get("Access-Control-Request-Headers"); asked != "" {
					header.Set("Access-Control-Allow-Headers", asked)
				}
			}
			w.WriteHeader(http.StatusNoContent)
		case !slices.Contains(methods, r.Method):
			header.Set("Allow", allow)
			s.writeError(w, refuse(http.StatusMethodNotAllowed, "method_not_allowed", "this path is for %s", allow))
		default:
			if err := h(w, r); err != nil {
				s.writeError(w, err)
			}
		}
	})
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
	return s.serve(w, r, set)
}

// metadata returns what clients and verifiers need to know of this issuer (OpenID Connect
// Discovery 1.0 section 3, RFC 8414 section 2).
func (s *server) metadata() map[string]any {
	methods := []string{"client_secret_basic", "client_secret_post"}
	if s.clients == nil {
		methods = append(methods, "none")
	}
	return map[string]any{
		"issuer":                                s.issuer,
		"jwks_uri":                              s.issuer + "/.well-known/jwks.json",
		"token_endpoint":                        s.issuer + "/auth",
		"response_types_supported":              []string{"id_token"},
		"subject_types_supported":               []string{"public"},
		"id_token_signing_alg_values_supported": []string{"RS256"},
		"grant_types_supported":                 s.grants(),
		"token_endpoint_auth_methods_supported": methods,
	}
}

func (s *server) document(d *document) handler {
	return func(w http.ResponseWriter, r *http.Request) error { return s.serve(w, r, d) }
}

// serve answers with a document, or with 304 if the client has it (RFC 9110 section 13.1.2).
func (s *server) serve(w http.ResponseWriter, r *http.Request, d *document) error {
	header := w.Header()
	header["Cache-Control"] = s.cacheControl
	header["Etag"] = []string{d.etag}
	for _, tags := range r.Header["If-None-Match"] {
		for tag := range strings.SplitSeq(tags, ",") {
			if tag = strings.Trim(tag, " \t"); tag == "*" || strings.TrimPrefix(tag, "W/") == d.etag {
				w.WriteHeader(http.StatusNotModified)
				return nil
			}
		}
	}
	header["Content-Type"] = jsonType
	header["Content-Length"] = []string{strconv.Itoa(len(d.body))}
	w.Write(d.body)
	return nil
}

// auth is the token endpoint (RFC 6749 section 3.2). All that costs time is done in a
// turn, so that a request that waits costs its body and nothing else.
func (s *server) auth(w http.ResponseWriter, r *http.Request) error {
	if !s.answersTo(r.Host) {
		return refuse(http.StatusMisdirectedRequest, "invalid_request",
			"the Host of the request is not a name of this server: use its address or localhost, or start it with -issuer and the URL that you use")
	}
	order, err := s.parseOrder(r.URL.RawQuery)
	if err != nil {
		return err
	}
	body, err := readBody(w, r)
	if err != nil {
		return err
	}
	turn, err := s.keys.turn(r.Context())
	if err != nil {
		return err
	}
	defer turn.release()
	request, err := parseTokenRequest(r.Header.Get("Content-Type"), body)
	if err != nil {
		return err
	}
	asked, client, err := s.authorize(r, request)
	if err != nil {
		return err
	}
	claims, expires, err := s.claims(turn.now, order.lifetime, asked)
	if err != nil {
		return err
	}
	token, err := s.sign(turn, claims, expires, order)
	if err != nil {
		return err
	}
	response := tokenResponse{
		Token: token, AccessToken: token, TokenType: "Bearer",
		ExpiresIn: max(expires-turn.now.Unix(), 0), Scope: scope(claims), Fault: order.fault.Name,
	}
	if client != "" {
		aud, _ := texts(encode(claims["aud"]))
		s.log.Info("token issued", "client", client, "jti", claims["jti"], "aud", aud, "scope", response.Scope, "kid", turn.key.kid, "exp", expires)
	}
	writeJSON(w, http.StatusOK, response)
	return nil
}

// answersTo reports whether /auth may answer to a Host. On an open server that listens on
// loopback, other names may be those of a web page that had its name lead here.
func (s *server) answersTo(host string) bool {
	host = (&url.URL{Host: host}).Hostname()
	return s.hosts == nil || host == "" || net.ParseIP(host) != nil ||
		slices.ContainsFunc(s.hosts, func(name string) bool { return strings.EqualFold(name, host) })
}

// readBody reads the body of a token request, which may be absent.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		return nil, refuse(http.StatusRequestEntityTooLarge, "invalid_request", "the body is too large: it may have %d bytes", maxBody)
	}
	if err != nil {
		return nil, badRequest("the body cannot be read: it has to come whole, within ten seconds")
	}
	return bytes.TrimSpace(body), nil
}

// A tokenRequest is what the body of POST /auth says.
type tokenRequest struct {
	grant      string                     // grant_type; may be absent
	id, secret string                     // of a client that authenticates in the body
	claims     map[string]json.RawMessage // asked for; never nil
}

// aliases are OAuth parameters that are claims under another name.
var aliases = map[string]string{"username": "sub", "audience": "aud", "resource": "aud"}

// parseTokenRequest reads a body: a JSON object of claims, known by its first character,
// or a form as in RFC 6749 section 4.4.2.
func parseTokenRequest(contentType string, body []byte) (tokenRequest, error) {
	parameters, err := parseBody(contentType, body)
	if err != nil {
		return tokenRequest{}, err
	}
	request := tokenRequest{claims: map[string]json.RawMessage{}}
	own := map[string]*string{"grant_type": &request.grant, "client_id": &request.id, "client_secret": &request.secret}
	for name, raw := range parameters {
		switch claim := cmp.Or(aliases[name], name); name {
		case "expired", "expires_in", "fault":
			return tokenRequest{}, badRequest("%s belongs in the query: POST /auth?%s=...", name, name)
		case "grant_type", "client_id", "client_secret":
			if *own[name], err = text(raw); err != nil {
				return tokenRequest{}, badRequest("%s %v", name, err)
			}
		case "password", "client_assertion", "client_assertion_type", "refresh_token": // never in a token
		default:
			if request.claims[claim] != nil {
				return tokenRequest{}, badRequest("%s is there under two names, such as audience and aud: give one of them", claim)
			}
			request.claims[claim] = raw
		}
	}
	return request, nil
}

func parseBody(contentType string, body []byte) (map[string]json.RawMessage, error) {
	switch {
	case len(body) == 0:
		return nil, nil
	case bytes.HasPrefix(body, []byte("\xef\xbb\xbf")):
		return nil, badRequest("the body begins with a byte-order mark: send it without one, as plain UTF-8")
	case !utf8.Valid(body):
		return nil, badRequest("the body has to be UTF-8")
	case body[0] != '{':
		return parseForm(contentType, string(body))
	}
	object, err := parseObject(body)
	if err != nil {
		return nil, badRequest("the body has to be one JSON object: %v", err)
	}
	if len(object) > maxClaims {
		return nil, badRequest("the body has %d claims: it may have %d", len(object), maxClaims)
	}
	return object, nil
}

// formParameters are those that a form may have. Others and empty ones are ignored (RFC
// 6749 section 3.2).
var formParameters = []string{
	"grant_type", "client_id", "client_secret", "sub", "username", "scope", "aud", "audience", "resource", "expired", "expires_in", "fault",
}

func parseForm(contentType, body string) (map[string]json.RawMessage, error) {
	kind, _, err := mime.ParseMediaType(cmp.Or(contentType, "application/x-www-form-urlencoded"))
	begins := strings.Trim(body[:1], "%&*+-._=") == "" || 'a' <= body[0]|0x20 && body[0]|0x20 <= 'z' || '0' <= body[0] && body[0] <= '9'
	if err != nil || kind != "application/x-www-form-urlencoded" || !begins {
		return nil, badRequest("the body has to be a JSON object, or a form labelled application/x-www-form-urlencoded")
	}
	form, err := url.ParseQuery(body)
	if err != nil {
		return nil, badRequest("the form in the body cannot be read: %v", err)
	}
	parameters := map[string]json.RawMessage{}
	for _, name := range formParameters {
		values := slices.DeleteFunc(form[name], func(v string) bool { return v == "" })
		switch {
		case slices.ContainsFunc(values, func(v string) bool { return !utf8.ValidString(v) }):
			return nil, badRequest("%s has to be UTF-8", name)
		case len(values) == 1:
			parameters[name] = encode(values[0])
		case len(values) > 1 && cmp.Or(aliases[name], name) == "aud":
			parameters[name] = encode(values)
		case len(values) > 1:
			return nil, badRequest("%s has to be given once", name)
		}
	}
	return parameters, nil
}

func (s *server) notFound(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Content-Type-Options", "nosniff")
	s.writeError(w, refuse(http.StatusNotFound, "not_found",
		"nothing is here: the JWK Set is at /.well-known/jwks.json, and tokens come from POST /auth"))
}

// An httpError is an error for the client to read, with a code and a description as in
// RFC 6749 section 5.2.
type httpError struct {
	status            int
	code, description string
}

func (e *httpError) Error() string { return e.description }

func refuse(status int, code, format string, args ...any) error {
	return &httpError{status: status, code: code, description: fmt.Sprintf(format, args...)}
}

func badRequest(format string, args ...any) error {
	return refuse(http.StatusBadRequest, "invalid_request", format, args...)
}

// writeError answers with err. Errors that are not for the client are logged and answered
// with a generic 500.
func (s *server) writeError(w http.ResponseWriter, err error) {
	e := &httpError{status: http.StatusInternalServerError, code: "server_error", description: "the server failed: its log says why"}
	switch {
	case errors.As(err, &e):
	case errors.Is(err, errBusy), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		e = &httpError{status: http.StatusServiceUnavailable, code: "temporarily_unavailable", description: "the server is busy: try again in a second"}
	case errors.Is(err, errNoKey): // the keystore's loop logs why
		e = &httpError{status: http.StatusServiceUnavailable, code: "temporarily_unavailable",
			description: "the server has no key and cannot store one: its log says why; try again later"}
	default:
		s.log.Error("cannot answer", "error", oneLine(err))
	}
	switch e.status {
	case http.StatusServiceUnavailable:
		w.Header().Set("Retry-After", "1")
	case http.StatusUnauthorized:
		w.Header().Set("WWW-Authenticate", `Basic realm="jwks-server", charset="UTF-8"`)
	}
	description := disallowed.ReplaceAllString(strings.ReplaceAll(e.description, `"`, "'"), "?")
	writeJSON(w, e.status, map[string]string{"error": e.code, "error_description": description})
}

// oneLine returns the text of err in one line, however many errors it joins.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// disallowed are the characters that RFC 6749 section 5.2 keeps out of a description.
var disallowed = regexp.MustCompile(`[^ !#-\[\]-~]`)

// writeJSON answers with v, which no cache may keep (RFC 6749 section 5.1).
func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Pragma", "no-cache")
	w.WriteHeader(status)
	w.Write(append(encode(v), '\n'))
}

// logRequests logs a line for each request, without the query.
func (s *server) logRequests(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		recorder := &statusRecorder{ResponseWriter: w, status: http.StatusOK}
		defer func() {
			s.log.Info("request", "method", r.Method, "path", r.URL.Path, "status", recorder.status, "duration", time.Since(start))
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
