package main

import (
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
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

func (s *server) notFound(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Content-Type-Options", "nosniff")
	s.writeError(w, refuse(http.StatusNotFound, "not_found",
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

// A statusRecorder knows the status of its response.
type statusRecorder struct {
	http.ResponseWriter
	status int
}

func (r *statusRecorder) WriteHeader(status int) {
	r.status = status
	r.ResponseWriter.WriteHeader(status)
}
