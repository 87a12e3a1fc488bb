package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"regexp"
	"strings"
)

// An httpError is an error for the client to read, with a code and a description as in
// RFC 6749 section 5.2.
type httpError struct {
	status            int
	code, description string
}

func (e *httpError) Error() string { return e.description }

// A handler responds to a request, or returns the error to respond with.
type handler func(http.ResponseWriter, *http.Request) error

func refuse(status int, code, format string, args ...any) error {
	return &httpError{status: status, code: code, description: fmt.Sprintf(format, args...)}
}

func badRequest(format string, args ...any) error {
	return refuse(http.StatusBadRequest, "invalid_request", format, args...)
}

// writeError responds with err. Errors that are not for the client are logged, and the
// client gets a generic 500.
func writeError(w http.ResponseWriter, log *slog.Logger, err error) {
	e := toHTTPError(err)
	if e == nil {
		log.Error("cannot answer", "error", oneLine(err))
		e = &httpError{status: http.StatusInternalServerError, code: "server_error", description: "the server failed: its log says why"}
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

// toHTTPError returns err as an error for the client, or nil if it is not for the client.
// errNoKey comes before the errors of a context, which it may wrap: a request without a key
// often ends because its time is up, but asking again in a second does not help.
func toHTTPError(err error) *httpError {
	unavailable := &httpError{status: http.StatusServiceUnavailable, code: "temporarily_unavailable"}
	switch e := (*httpError)(nil); {
	case errors.As(err, &e):
		return e
	case errors.Is(err, errNoKey): // the loop of the keystore logs why
		unavailable.description = "the server has no key, and could not make and store one: its log says why; try again later"
		return unavailable
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		unavailable.description = "the server is busy: try again in a second"
		return unavailable
	default:
		return nil
	}
}

// disallowed matches the characters that RFC 6749 section 5.2 does not allow in a description.
var disallowed = regexp.MustCompile(`[^ !#-\[\]-~]`)

// writeJSON responds with v, which no cache may store (RFC 6749 section 5.1).
func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Pragma", "no-cache")
	w.WriteHeader(status)
	w.Write(append(encode(v), '\n'))
}
