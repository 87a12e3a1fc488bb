package main

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// routes returns the route table. The routes answer under the path of the issuer, too.
func (s *server) routes() http.Handler {
	mux := http.NewServeMux()
	issuer, _ := url.Parse(strings.TrimSuffix(s.issuer, "/"))
	const metadata = "/.well-known/oauth-authorization-server"
	for _, path := range slices.Compact([]string{"", issuer.EscapedPath()}) {
		s.private(mux, path+"/{$}", readOnly, s.root)
		s.public(mux, path+"/.well-known/openid-configuration", readOnly, s.metadata)
		for _, place := range slices.Compact([]string{path + metadata, metadata + path}) { // the latter by RFC 8414 section 3.1
			s.public(mux, place, readOnly, s.metadata)
		}
		s.private(mux, path+"/auth", "POST, OPTIONS", s.auth)
		if s.tester == nil {
			s.public(mux, path+"/.well-known/jwks.json", readOnly, s.jwks)
		} else {
			s.routeTests(mux, path)
		}
	}
	mux.HandleFunc("/", s.notFound)
	if s.verbose {
		return s.logRequests(mux)
	}
	return mux
}

// routeTests routes everything that is for tests, except for the parameters of auth.
func (s *server) routeTests(mux *http.ServeMux, path string) {
	t := s.tester
	s.public(mux, path+"/.well-known/jwks.json", readOnly, t.jwks(s.jwks, s.writeDocument))
	s.public(mux, path+"/faults", readOnly, s.serve(newDocument(faults)))
	s.public(mux, path+"/faults/sets", "GET, HEAD, POST, OPTIONS", s.setFaults(newDocument(setFaults)))
	s.private(mux, path+"/faults/reads", readOnly, t.countReads)
	s.public(mux, path+"/faults/jwks.json", readOnly, counted(&t.reads.jku, s.untrustedSet))
	s.public(mux, path+"/faults/x5u.pem", readOnly, counted(&t.reads.x5u, s.untrustedChain))
}

// Header values, allocated once because the JWK Set is a hot path.
var noSniff, anyOrigin = []string{"nosniff"}, []string{"*"}

const readOnly = "GET, HEAD, OPTIONS"

// public routes path to a handler whose responses to GET and HEAD any origin may read.
// OPTIONS is a CORS preflight.
func (s *server) public(mux *http.ServeMux, path, allow string, h handler) {
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

// private routes path to a handler whose responses no other origin may read, because otherwise any
// web page could fetch tokens from a developer's machine.
func (s *server) private(mux *http.ServeMux, path, allow string, h handler) {
	mux.HandleFunc(path, s.route(allow, h))
}

// errWebPage is the answer of an open server to a POST from a web page. Browsers send
// Origin with every POST. No page of this server sends one, and pages of other sites could fetch
// tokens from a developer's machine or change its JWK Set, even those whose own name resolves to
// 127.0.0.1 (DNS rebinding).
var errWebPage = refuse(http.StatusForbidden, "access_denied",
	"a server without -clients rejects every POST with an Origin header: send it from a program, not from a web page")

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
			s.log.Info("request", "method", r.Method, "path", r.URL.Path, "status", recorder.status,
				"duration", time.Since(start), "from", r.RemoteAddr)
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
