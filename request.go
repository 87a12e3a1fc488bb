package main

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"mime"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	maxBody   = 16 << 10 // bytes of a token request
	maxClaims = 128      // in it, because each costs time to sign

	expiredAgo    = time.Hour               // age of an expired token's exp; well beyond common leeways of up to five minutes
	maxExpiredAgo = 10 * 365 * 24 * 60 * 60 // seconds
)

// readBody reads the body of a token request, which may be absent.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if len(r.Header["Content-Encoding"]) > 0 {
		w.Header().Set("Accept-Encoding", "identity") // RFC 9110 section 12.5.3
		return nil, refuse(http.StatusUnsupportedMediaType, "invalid_request",
			"the body has a Content-Encoding: send it uncompressed, without one")
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		if r.ProtoMajor == 1 { // MaxBytesReader does that too, but not through the writer of -v
			w.Header().Set("Connection", "close")
		}
		return nil, refuse(http.StatusRequestEntityTooLarge, "invalid_request", "the body is too large: it may have %d bytes", maxBody)
	}
	if err != nil {
		return nil, badRequest("the body cannot be read: it has to come whole, within ten seconds")
	}
	return bytes.TrimSpace(body), nil
}

// A tokenRequest is the body of POST /auth and the client credentials of the request.
type tokenRequest struct {
	grant       string // grant_type; may be absent
	credentials []credential
	claims      map[string]json.RawMessage // requested; never nil
}

// aliases are OAuth parameters that are claims under another name.
var aliases = map[string]string{"username": "sub", "audience": "aud", "resource": "aud"}

// queryParameters belong in the query of POST /auth, and so not in a body.
var queryParameters = []string{"expired", "expires_in", "fault", "key"}

// testParameters are those of queryParameters that are for an open server.
var testParameters = []string{"fault", "key"}

// errTestParameter is the answer of a server with clients to a parameter that is for tests.
func errTestParameter(name string) error {
	return badRequest("%s is not for a server with -clients, which issues good tokens only", name)
}

// parseTokenRequest parses a body. On an open server, a JSON object without grant_type is
// claims, all of them, under their own names. Any other body is an OAuth request: a form as
// in RFC 6749 section 4.4.2, or its parameters as a JSON object.
//
// If a body has several errors, it always returns the same one.
func parseTokenRequest(header http.Header, body []byte, clients registry) (tokenRequest, error) {
	parameters, err := parseBody(header.Get("Content-Type"), body)
	if err != nil {
		return tokenRequest{}, err
	}
	for _, name := range queryParameters {
		switch {
		case parameters[name] == nil:
		case clients != nil && slices.Contains(testParameters, name):
			return tokenRequest{}, errTestParameter(name)
		default:
			return tokenRequest{}, badRequest("%s belongs in the query: POST /auth?%s=...", name, name)
		}
	}
	var inBody credential
	request := tokenRequest{claims: parameters}
	if clients == nil && bytes.HasPrefix(body, []byte("{")) && parameters["grant_type"] == nil {
		err = checkClaims(parameters)
	} else {
		request, inBody, err = parseParameters(parameters)
	}
	if err != nil {
		return tokenRequest{}, err
	}
	request.credentials, err = parseCredentials(header.Get("Authorization"), inBody)
	return request, err
}

// checkClaims returns an error if an object of claims has a secret of an OAuth request.
func checkClaims(claims map[string]json.RawMessage) error {
	for _, name := range []string{"client_assertion", "client_secret", "password"} {
		if claims[name] != nil {
			return badRequest("%s cannot be a claim, because tokens contain no secrets: add grant_type to make the object an OAuth request", name)
		}
	}
	return nil
}

// parseParameters returns the OAuth request with these parameters, and its client credentials.
func parseParameters(parameters map[string]json.RawMessage) (request tokenRequest, inBody credential, err error) {
	request.claims = map[string]json.RawMessage{}
	for _, name := range slices.Sorted(maps.Keys(parameters)) {
		raw := parameters[name]
		switch name {
		case "grant_type":
			request.grant, err = parseString(raw)
		case "client_id":
			inBody.id, err = parseString(raw)
		case "client_secret":
			inBody.secret, err = parseString(raw)
		case "password", "client_assertion", "client_assertion_type", "refresh_token": // never in a token
		default:
			claim := cmp.Or(aliases[name], name)
			if request.claims[claim] != nil {
				return request, inBody, badRequest("%s is given twice, under two names, such as audience and aud: give one of them", claim)
			}
			request.claims[claim] = raw
		}
		if err != nil {
			return request, inBody, badRequest("%s %v", name, err)
		}
	}
	return request, inBody, nil
}

// parseBody returns the parameters in a body: the members of a JSON object, which is known
// by its first character, or those of a form.
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

// formParameters are the parameters of a form. Others are ignored, and so are empty ones
// (RFC 6749 section 3.2).
var formParameters = slices.Concat(queryParameters, []string{
	"grant_type", "client_id", "client_secret", "sub", "username", "scope", "aud", "audience", "resource",
})

// formStart matches the first character of a form. It tells forms from other bodies, because
// curl labels every body as a form.
var formStart = regexp.MustCompile(`^[A-Za-z0-9%&*+\-._=]`)

func parseForm(contentType, body string) (map[string]json.RawMessage, error) {
	kind, _, err := mime.ParseMediaType(cmp.Or(contentType, "application/x-www-form-urlencoded"))
	if err != nil || kind != "application/x-www-form-urlencoded" || !formStart.MatchString(body) {
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

// tokenOptions are the query parameters of POST /auth.
type tokenOptions struct {
	lifetime time.Duration                // from now to exp; negative if the token has expired
	sign     func(*draft) (string, error) // returns the token
}

// parseOptions parses expired and expires_in, which exclude each other. longest is the
// lifetime of a token without either.
func parseOptions(query url.Values, longest time.Duration) (tokenOptions, error) {
	name, err := oneOf(query, "expired", "expires_in")
	if err != nil {
		return tokenOptions{}, err
	}
	o := tokenOptions{lifetime: longest, sign: (*draft).sign}
	switch value := query.Get(name); name {
	case "expired":
		expired, err := strconv.ParseBool(cmp.Or(value, "true"))
		if err != nil {
			return tokenOptions{}, badRequest("expired has to be true or false")
		}
		if expired {
			o.lifetime = -expiredAgo
		}
	case "expires_in":
		most := int64(longest / time.Second)
		seconds, err := strconv.ParseInt(value, 10, 64)
		if err != nil || seconds > most || seconds < -maxExpiredAgo {
			return tokenOptions{}, badRequest("expires_in has to be a number of seconds from -%d to %d", maxExpiredAgo, most)
		}
		o.lifetime = time.Duration(seconds) * time.Second
	}
	return o, nil
}

// oneOf returns the one of names that a query has; "" if it has none. They exclude each other.
func oneOf(query url.Values, names ...string) (name string, err error) {
	given := 0
	for _, n := range names {
		if query.Has(n) {
			name = n
			given += len(query[n])
		}
	}
	if given > 1 {
		last := len(names) - 1
		return "", badRequest("give one of %s and %s, once", strings.Join(names[:last], ", "), names[last])
	}
	return name, nil
}

// parseCredentials returns the client credentials of a request: those in the body, or those
// of HTTP Basic (RFC 6749 section 2.3.1). A body may repeat the client id of HTTP Basic.
func parseCredentials(authorization string, inBody credential) ([]credential, error) {
	if authorization == "" {
		return []credential{inBody}, nil
	}
	list := parseBasic(authorization)
	if inBody != (credential{}) {
		list = slices.DeleteFunc(list, func(c credential) bool { return c.id != inBody.id })
		if inBody.secret != "" || len(list) == 0 {
			return nil, badRequest("a client has to authenticate once, in the Authorization header or in the body")
		}
	}
	return list, nil
}

// parseBasic returns the credentials in an Authorization header, or nil if it is not HTTP
// Basic. It returns them form-decoded (RFC 6749), and then verbatim (curl, requests, axios).
func parseBasic(authorization string) []credential {
	scheme, encoded, _ := strings.Cut(authorization, " ")
	text, err := base64.StdEncoding.DecodeString(strings.TrimLeft(encoded, " "))
	id, secret, found := strings.Cut(string(text), ":")
	if !strings.EqualFold(scheme, "Basic") || err != nil || !found {
		return nil
	}
	verbatim := credential{id: id, secret: secret}
	decodedID, err1 := url.QueryUnescape(id)
	decodedSecret, err2 := url.QueryUnescape(secret)
	if err1 != nil || err2 != nil {
		return []credential{verbatim}
	}
	return []credential{{id: decodedID, secret: decodedSecret}, verbatim}
}

// clientID returns the client id that a request names, or "".
func (r tokenRequest) clientID() string {
	if len(r.credentials) == 0 {
		return ""
	}
	return r.credentials[0].id
}

// errUnknownClient is returned if no client has the credentials of a request.
var errUnknownClient = refuse(http.StatusUnauthorized, "invalid_client",
	"no client has this id and secret: send those registered with the server, by HTTP Basic or in the body")

// authorize returns the claims that the request may have: the requested ones on an open
// server, otherwise the client's registered claims, narrowed to the request. client is its
// id, or empty on an open server.
func (r tokenRequest) authorize(clients registry, audience string) (claims map[string]json.RawMessage, client string, err error) {
	if clients != nil {
		var ok bool
		if client, ok = clients.authenticate(r.credentials); !ok {
			return nil, "", errUnknownClient
		}
	}
	if grants := clients.grants(); r.grant != "" && !slices.Contains(grants, r.grant) {
		return nil, "", refuse(http.StatusBadRequest, "unsupported_grant_type", "grant_type has to be %s", strings.Join(grants, " or "))
	}
	if clients != nil {
		claims, err = clients[client].narrow(r.claims, audience)
		return claims, client, err
	}
	id := r.clientID()
	if !utf8.ValidString(id) {
		return nil, "", badRequest("the client id has to be UTF-8")
	}
	if id != "" && r.claims["sub"] == nil {
		r.claims["sub"] = encode(id) // RFC 9068 section 2.2
	}
	return r.claims, "", nil
}
