package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	maxBody   = 16 << 10 // bytes of a token request
	maxClaims = 128      // in it, because each costs time to sign

	past    = time.Hour               // how long ago an expired token expired, because leeways reach five minutes
	maxPast = 10 * 365 * 24 * 60 * 60 // seconds ago at most
)

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

// An order is what the query of POST /auth asks for.
type order struct {
	lifetime time.Duration // from now to exp; negative if the token has expired
	otherKey bool          // sign with a key that is not in the JWK Set
	fault    fault         // may be empty
}

// parseOrder reads a query. At most one of its parameters asks for a kind of token.
func (s *server) parseOrder(query string) (order, error) {
	values, err := url.ParseQuery(query)
	if err != nil {
		return order{}, badRequest("the query cannot be read: %v", err)
	}
	o := order{lifetime: s.keys.tokenTTL.Truncate(time.Second)}
	var given []string
	for _, name := range []string{"expired", "expires_in", "fault"} {
		given = append(given, values[name]...)
	}
	if len(given) == 0 {
		return o, nil
	}
	if len(given) > 1 {
		return order{}, badRequest("give one of expired, expires_in and fault, once")
	}
	switch value := given[0]; {
	case values.Has("expires_in"):
		longest := int64(o.lifetime / time.Second)
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil || n > longest || n < -maxPast {
			return order{}, badRequest("expires_in has to be a number of seconds from -%d to %d", maxPast, longest)
		}
		o.lifetime = time.Duration(n) * time.Second
	case values.Has("fault"):
		if s.clients != nil {
			return order{}, badRequest("fault is not for a server with -clients, which issues good tokens only")
		}
		if o.fault, err = findFault(value); err != nil {
			return order{}, err
		}
		if o.fault.expired {
			o.lifetime = -past
		}
	default:
		o.otherKey = value == "key"
		expired, err := strconv.ParseBool(cmp.Or(value, "true"))
		if err != nil && !o.otherKey {
			return order{}, badRequest("expired has to be true, false or key")
		}
		if expired || o.otherKey {
			o.lifetime = -past
		}
	}
	return o, nil
}

// A credential is what a client says of itself.
type credential struct{ id, secret string }

// credentials returns what the sender of r says of itself (RFC 6749 section 2.3.1). A
// Basic one is returned both form-decoded, as the RFC wants it, and as sent, because curl,
// requests and axios do not encode.
func credentials(r *http.Request, request tokenRequest) ([]credential, error) {
	inBody := credential{id: request.id, secret: request.secret}
	if r.Header.Get("Authorization") == "" {
		return []credential{inBody}, nil
	}
	var list []credential
	scheme, encoded, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	basic := &http.Request{Header: http.Header{"Authorization": {scheme + " " + strings.TrimLeft(encoded, " ")}}}
	if id, secret, ok := basic.BasicAuth(); ok {
		list = []credential{{id: id, secret: secret}}
		decodedID, err1 := url.QueryUnescape(id)
		decodedSecret, err2 := url.QueryUnescape(secret)
		if decoded := (credential{id: decodedID, secret: decodedSecret}); err1 == nil && err2 == nil && decoded != list[0] {
			list = []credential{decoded, list[0]}
		}
	}
	if inBody.id != "" {
		list = slices.DeleteFunc(list, func(c credential) bool { return c.id != inBody.id })
	}
	if inBody.secret != "" || inBody.id != "" && len(list) == 0 {
		return nil, badRequest("a client has to authenticate once, in the Authorization header or in the body")
	}
	return list, nil
}

// authorize returns the claims that the sender of r gets: on an open server those that it
// asks for, otherwise those registered for the client, narrowed to what it asks for. The
// client is empty on an open server.
func (s *server) authorize(r *http.Request, request tokenRequest) (claims map[string]json.RawMessage, client string, err error) {
	list, err := credentials(r, request)
	if err != nil {
		return nil, "", err
	}
	if s.clients != nil {
		var ok bool
		if client, ok = s.authenticate(list); !ok {
			s.logFailure(list)
			return nil, "", refuse(http.StatusUnauthorized, "invalid_client",
				"no client has this id and secret: send those registered with the server, by HTTP Basic or in a form")
		}
	}
	if grants := s.grants(); request.grant != "" && !slices.Contains(grants, request.grant) {
		return nil, "", refuse(http.StatusBadRequest, "unsupported_grant_type", "grant_type has to be %s", strings.Join(grants, " or "))
	}
	if s.clients != nil {
		claims, err = s.clients[client].narrow(request.claims, s.audience)
		return claims, client, err
	}
	if _, ok := request.claims["sub"]; !ok && len(list) > 0 && list[0].id != "" {
		if !utf8.ValidString(list[0].id) {
			return nil, "", badRequest("the client id has to be UTF-8")
		}
		request.claims["sub"] = encode(list[0].id) // RFC 9068 section 2.2
	}
	return request.claims, "", nil
}

// grants returns the grant types of the token endpoint.
func (s *server) grants() []string {
	if s.clients == nil {
		return []string{"client_credentials", "password"}
	}
	return []string{"client_credentials"}
}
