package main

import (
	"cmp"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A server is the HTTP API.
type server struct {
	issuer       string
	profile      tokenProfile
	store        *keystore
	clients      registry // nil on an open server
	tester       *tester  // nil with clients: bad tokens are for tests
	verbose      bool     // log each request
	log          *slog.Logger
	cacheControl []string // of documents
	failures     throttle // of client authentication
}

// newServer returns the server that the flags describe. base is its URL on this machine.
func newServer(c config, base string, store *keystore, clients registry, log *slog.Logger) *server {
	s := &server{
		issuer:       cmp.Or(c.issuer, base),
		store:        store,
		clients:      clients,
		verbose:      c.verbose,
		log:          log,
		cacheControl: []string{"public, max-age=" + strconv.Itoa(int(store.maxAge()/time.Second))},
	}
	s.profile = tokenProfile{issuer: s.issuer, audience: c.audience, lifetime: c.tokenTTL.Truncate(time.Second)}
	if clients == nil {
		s.tester = newTester(s.issuer, store.bits)
	}
	return s
}

// routes returns the route table. The routes answer under the path of the issuer, too.
func (s *server) routes() http.Handler {
	mux := http.NewServeMux()
	issuer, _ := url.Parse(s.issuer)
	metadata := s.serve(newDocument(s.metadata()))
	for _, path := range slices.Compact([]string{"", issuer.EscapedPath()}) {
		s.private(mux, path+"/{$}", "GET, HEAD, OPTIONS", s.root)
		s.public(mux, path+"/.well-known/jwks.json", s.jwks)
		s.public(mux, path+"/.well-known/openid-configuration", metadata)
		s.public(mux, "/.well-known/oauth-authorization-server"+path, metadata) // RFC 8414 section 3.1
		s.private(mux, path+"/auth", "POST, OPTIONS", s.auth)
		if s.tester != nil {
			s.public(mux, path+"/faults", s.serve(newDocument(faults)))
			s.public(mux, path+"/faults/jwks.json", s.untrustedSet)
		}
	}
	mux.HandleFunc("/", s.notFound)
	if s.verbose {
		return s.logRequests(mux)
	}
	return mux
}

// A handler answers a request, or returns the error to answer with.
type handler func(http.ResponseWriter, *http.Request) error

// Header values, allocated once because the JWK Set is a hot path.
var noSniff, anyOrigin, jsonType = []string{"nosniff"}, []string{"*"}, []string{"application/json"}

// public routes path to a handler of GET and HEAD whose response any origin may read.
// OPTIONS is a CORS preflight.
func (s *server) public(mux *http.ServeMux, path string, h handler) {
	const allow = "GET, HEAD, OPTIONS"
	next := s.route(allow, h)
	mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
		header := w.Header()
		header["Access-Control-Allow-Origin"] = anyOrigin
		if r.Method == http.MethodOptions {
			header.Set("Access-Control-Allow-Methods", "GET, HEAD")
			header.Set("Access-Control-Max-Age", "86400")
			if requested := r.Header.Get("Access-Control-Request-Headers"); requested != "" {
				header.Set("Access-Control-Allow-Headers", requested)
			}
		}
		next(w, r)
	})
}

// private routes path to a handler whose response no other origin may read: any web page
// could fetch tokens from a developer's machine.
func (s *server) private(mux *http.ServeMux, path, allow string, h handler) {
	mux.HandleFunc(path, s.route(allow, h))
}

// errWebPage is the answer of an open server to a POST from a web page. Browsers send Origin
// with every POST, and no page needs one here. Any other page could fetch tokens from a
// developer's machine or change its JWK Set, also by DNS rebinding: under a name of its own
// that resolves to 127.0.0.1.
var errWebPage = refuse(http.StatusForbidden, "access_denied",
	"a server without -clients answers no POST with an Origin header: send the request from a program and not from a web page")

// route rejects methods that are not in allow, answers OPTIONS (RFC 9110 section 9.3.7),
// and writes the errors of h.
func (s *server) route(allow string, h handler) http.HandlerFunc {
	methods := strings.Split(allow, ", ")
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header()["X-Content-Type-Options"] = noSniff
		switch {
		case r.Method == http.MethodOptions:
			w.Header().Set("Allow", allow)
			w.WriteHeader(http.StatusNoContent)
		case r.Method == http.MethodPost && s.clients == nil && r.Header["Origin"] != nil:
			writeError(w, s.log, errWebPage)
		case !slices.Contains(methods, r.Method):
			w.Header().Set("Allow", allow)
			writeError(w, s.log, refuse(http.StatusMethodNotAllowed, "method_not_allowed", "this path is for %s", allow))
		default:
			if err := h(w, r); err != nil {
				writeError(w, s.log, err)
			}
		}
	}
}

func (s *server) root(w http.ResponseWriter, r *http.Request) error {
	w.Header().Set("Content-Type", "text/plain")
	io.WriteString(w, "JWKS Server Running!")
	return nil
}

func (s *server) jwks(w http.ResponseWriter, r *http.Request) error {
	set, err := s.store.jwks(r.Context())
	if err != nil {
		return err
	}
	s.writeDocument(w, r, set)
	return nil
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
		"grant_types_supported":                 s.clients.grants(),
		"token_endpoint_auth_methods_supported": methods,
	}
}

// serve returns a handler that responds with d.
func (s *server) serve(d *document) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		s.writeDocument(w, r, d)
		return nil
	}
}

// writeDocument responds with d, or with 304 if the client has it (RFC 9110 section 13.1.2).
func (s *server) writeDocument(w http.ResponseWriter, r *http.Request, d *document) {
	header := w.Header()
	header["Cache-Control"] = s.cacheControl
	header["Etag"] = []string{d.etag}
	for _, tags := range r.Header["If-None-Match"] {
		for tag := range strings.SplitSeq(tags, ",") {
			if tag = strings.Trim(tag, " \t"); tag == "*" || strings.TrimPrefix(tag, "W/") == d.etag {
				w.WriteHeader(http.StatusNotModified)
				return
			}
		}
	}
	header["Content-Type"] = jsonType
	header["Content-Length"] = []string{strconv.Itoa(len(d.body))}
	w.Write(d.body)
}

// A tokenResponse is the response of RFC 6749 section 5.1, plus the token as "token".
type tokenResponse struct {
	Token       string `json:"token"`
	AccessToken string `json:"access_token"`
	TokenType   string `json:"token_type"`
	ExpiresIn   int64  `json:"expires_in,omitempty"` // 1*DIGIT: clients refuse anything else
	Scope       string `json:"scope,omitempty"`
	Fault       string `json:"fault,omitempty"`
}

// auth is the token endpoint (RFC 6749 section 3.2).
func (s *server) auth(w http.ResponseWriter, r *http.Request) error {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return badRequest("the query cannot be read: %v", err)
	}
	parse := parseOptions
	if s.tester != nil {
		parse = s.tester.parseOptions
	} else if query.Has("fault") {
		return badRequest("fault is not for a server with -clients, which issues good tokens only")
	}
	options, err := parse(query, s.profile.lifetime)
	if err != nil {
		return err
	}
	body, err := readBody(w, r)
	if err != nil {
		return err
	}
	token, err := s.issue(r, options, body)
	if err == errUnknownClient {
		s.logFailure(token.client)
	}
	if err != nil {
		return err
	}
	if token.client != "" {
		aud, _ := parseStrings(encode(token.claims["aud"]))
		s.log.Info("token issued", "client", token.client, "jti", token.claims["jti"], "aud", aud,
			"scope", token.scope(), "kid", token.key.kid, "exp", token.expires)
	}
	writeJSON(w, http.StatusOK, tokenResponse{
		Token: token.text, AccessToken: token.text, TokenType: "Bearer",
		ExpiresIn: max(token.expires-token.now.Unix(), 0), Scope: token.scope(), Fault: query.Get("fault"),
	})
	return nil
}

// An issuedToken is a signed token and the client that it was issued to.
type issuedToken struct {
	*draft
	text   string
	client string // its id; empty on an open server
}

// issue does what a token request costs: it takes a turn, parses the body and signs the
// token. A request that waits for its turn costs memory for its body and nothing else.
//
// The turn is over when issue returns. Writing the response in a turn would let a client
// that does not read keep others from getting tokens.
func (s *server) issue(r *http.Request, options tokenOptions, body []byte) (issuedToken, error) {
	turn, err := s.store.turn(r.Context())
	if err != nil {
		return issuedToken{}, err
	}
	defer turn.release()
	request, err := parseTokenRequest(r.Header, body)
	if err != nil {
		return issuedToken{}, err
	}
	claims, client, err := request.authorize(s.clients, s.profile.audience)
	if err != nil {
		return issuedToken{client: request.clientID()}, err
	}
	d, err := s.profile.draft(turn, options.lifetime, claims)
	if err != nil {
		return issuedToken{}, err
	}
	text, err := options.sign(d)
	return issuedToken{draft: d, text: text, client: client}, err
}

// logFailure logs failed client authentication at most once a minute.
func (s *server) logFailure(client string) {
	if n := s.failures.add(); n > 0 {
		s.log.Warn("client authentication failed", "client", client[:min(len(client), 100)], "failures", n)
	}
}

// untrustedSet responds with the JWK Set that the jku of bad tokens names.
func (s *server) untrustedSet(w http.ResponseWriter, r *http.Request) error {
	untrusted, err := s.tester.untrusted()
	if err != nil {
		return err
	}
	s.writeDocument(w, r, untrusted.set)
	return nil
}

func (s *server) notFound(w http.ResponseWriter, r *http.Request) {
	w.Header()["X-Content-Type-Options"] = noSniff
	writeError(w, s.log, refuse(http.StatusNotFound, "not_found",
		"nothing is here: the JWK Set is at /.well-known/jwks.json, and tokens come from POST /auth"))
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

// A statusRecorder records the status of a response.
type statusRecorder struct {
	http.ResponseWriter
	status int
}

// Unwrap lets an http.ResponseController reach the connection.
func (r *statusRecorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

func (r *statusRecorder) WriteHeader(status int) {
	r.status = status
	r.ResponseWriter.WriteHeader(status)
}
