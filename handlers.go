package main

import (
	"cmp"
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// A server is the HTTP API.
type server struct {
	issuer       string // empty if it is the URL by which a request reached the server
	base         string // URL of the server on this machine
	profile      tokenProfile
	store        *keystore
	clients      registry   // nil on an open server
	tester       *setTester // nil with clients: bad tokens and JWK Sets are for tests
	verbose      bool       // log each request
	log          *slog.Logger
	cacheControl []string // of documents
	failures     problem  // of client authentication
}

// newServer returns the server that the flags describe. base is its URL on this machine.
func newServer(c config, base string, store *keystore, clients registry, log *slog.Logger) *server {
	s := &server{
		issuer:       c.issuer,
		base:         base,
		store:        store,
		clients:      clients,
		verbose:      c.verbose,
		log:          log,
		cacheControl: []string{"public, max-age=" + strconv.Itoa(int(store.maxAge()/time.Second))},
	}
	s.profile = tokenProfile{audience: c.audience, typ: c.typ, claims: c.claims, lifetime: c.tokenTTL.Truncate(time.Second)}
	if clients == nil {
		s.profile.expiryHint = expiryHint
		s.tester = newSetTester(store)
	} else {
		s.issuer = cmp.Or(c.issuer, base)
	}
	return s
}

// issuerOf returns the issuer of the response to r: -issuer, or on an open server without
// it the URL by which the request reached the server, so that localhost, a mapped port and
// the name of a container all work. Forwarded headers are not trusted.
func (s *server) issuerOf(r *http.Request) string {
	switch {
	case s.issuer != "":
		return s.issuer
	case !isHost(r.Host): // as in HTTP/1.0
		return s.base
	default:
		return schemes[r.TLS != nil] + "://" + r.Host
	}
}

// isHost reports whether host is the host of a URL. HTTP/2 has clients send what they like.
func isHost(host string) bool {
	u, err := url.Parse("http://" + host)
	return err == nil && u.Hostname() != "" && u.Host == host && utf8.ValidString(host)
}

var schemes = map[bool]string{false: "http", true: "https"} // by whether the server has a certificate

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

// setFaults returns the handler of /faults/sets: GET lists the faults of the JWK Set, and
// POST sets one.
func (s *server) setFaults(catalogue *document) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		if r.Method == http.MethodPost {
			return s.tester.setFault(w, r)
		}
		s.writeDocument(w, r, catalogue)
		return nil
	}
}

// metadata responds with the metadata of the issuer for clients and verifiers (OpenID
// Connect Discovery 1.0 section 3, RFC 8414 section 2).
func (s *server) metadata(w http.ResponseWriter, r *http.Request) error {
	methods := []string{"client_secret_basic", "client_secret_post"}
	if s.clients == nil {
		methods = append(methods, "none")
	}
	issuer := s.issuerOf(r)
	base := strings.TrimSuffix(issuer, "/")
	s.writeDocument(w, r, newDocument(map[string]any{
		"issuer":                                issuer,
		"jwks_uri":                              base + "/.well-known/jwks.json",
		"token_endpoint":                        base + "/auth",
		"response_types_supported":              []string{"id_token"},
		"subject_types_supported":               []string{"public"},
		"id_token_signing_alg_values_supported": []string{"RS256"},
		"grant_types_supported":                 s.clients.grants(),
		"token_endpoint_auth_methods_supported": methods,
	}))
	return nil
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
	header["Content-Type"] = d.mediaType
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
	body, err := readBody(w, r)
	if err != nil {
		return err
	}
	options, err := s.parseOptions(r.Context(), query)
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

// parseOptions parses the query of auth. On an open server that may make a key, so it comes
// before a turn is taken.
func (s *server) parseOptions(ctx context.Context, query url.Values) (tokenOptions, error) {
	if s.tester != nil {
		return s.tester.parseOptions(ctx, query, s.profile.lifetime)
	}
	for _, name := range testParameters {
		if query.Has(name) {
			return tokenOptions{}, errTestParameter(name)
		}
	}
	return parseOptions(query, s.profile.lifetime)
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
	request, err := parseTokenRequest(r.Header, body, s.clients)
	if err != nil {
		return issuedToken{}, err
	}
	claims, client, err := request.authorize(s.clients, s.profile.audience)
	if err != nil {
		return issuedToken{client: request.clientID()}, err
	}
	profile := s.profile
	profile.issuer = s.issuerOf(r)
	d, err := profile.draft(turn, options.lifetime, request.clientID(), claims)
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

// untrustedSet responds with the JWK Set that jku of bad tokens names.
func (s *server) untrustedSet(w http.ResponseWriter, r *http.Request) error {
	k, err := s.tester.untrusted(r.Context())
	if err != nil {
		return err
	}
	s.writeDocument(w, r, k.set)
	return nil
}

// untrustedChain responds with the certificate that x5u of bad tokens names.
func (s *server) untrustedChain(w http.ResponseWriter, r *http.Request) error {
	k, err := s.tester.untrusted(r.Context())
	if err != nil {
		return err
	}
	s.writeDocument(w, r, k.chain)
	return nil
}
