package main

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf16"
	"unicode/utf8"
)

const maxNesting = 32 // of arrays and objects in JSON

// A client may have tokens.
type client struct {
	digests [][sha256.Size]byte        // of its secrets
	claims  map[string]json.RawMessage // of its tokens: those registered, and its id as sub
	scope   []string                   // the words of the registered scope
	aud     []string                   // the registered aud
}

// readClients reads the file of -clients. Every fault of the file is an error, because a
// damaged file must not leave the token endpoint open. Errors tell no secret.
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
	if err == nil {
		err = checkMembers(json.NewDecoder(bytes.NewReader(content)))
	}
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

// checkMembers refuses a member that is twice in one object of the JSON value in d, which
// is known to be valid.
func checkMembers(d *json.Decoder) error {
	token, _ := d.Token()
	opening, nested := token.(json.Delim)
	if !nested {
		return nil
	}
	for names := map[any]bool{}; d.More(); {
		if opening == '{' {
			name, _ := d.Token()
			if names[name] {
				return fmt.Errorf("duplicate member %s", name)
			}
			names[name] = true
		}
		if err := checkMembers(d); err != nil {
			return err
		}
	}
	d.Token() // its end
	return nil
}

func newClient(id string, entry json.RawMessage) (client, error) {
	if id == "" {
		return client{}, errors.New("its id must not be empty")
	}
	members, err := parseObject(entry)
	if err != nil {
		return client{}, fmt.Errorf("it has to be an object with secret_sha256: %w", err)
	}
	var c client
	if c.digests, err = parseDigests(members["secret_sha256"]); err != nil {
		return client{}, err
	}
	registered := map[string]json.RawMessage{}
	if members["claims"] != nil {
		if registered, err = parseObject(members["claims"]); err != nil {
			return client{}, errors.New("claims has to be an object")
		}
	}
	delete(members, "secret_sha256")
	delete(members, "claims")
	for name := range members {
		return client{}, fmt.Errorf("unknown member %q: it may have secret_sha256 and claims", name)
	}
	for _, name := range []string{"sub", "exp", "iat", "nbf", "jti"} {
		if registered[name] != nil {
			return client{}, fmt.Errorf("%s cannot be registered, because the server sets it", name)
		}
	}
	return c, c.register(id, registered)
}

// register sets the claims of the client's tokens. It refuses those that are not of the
// type that RFC 7519 section 4.1 and RFC 8693 section 4.2 give them.
func (c *client) register(id string, claims map[string]json.RawMessage) (err error) {
	c.claims = maps.Clone(claims)
	c.claims["sub"] = encode(id)
	if raw, ok := claims["iss"]; ok {
		if _, err := text(raw); err != nil {
			return fmt.Errorf("iss %w", err)
		}
	}
	if raw, ok := claims["scope"]; ok {
		scope, err := text(raw)
		if err != nil {
			return fmt.Errorf("scope %w", err)
		}
		c.scope = strings.Fields(scope)
	}
	if raw, ok := claims["aud"]; ok {
		if c.aud, err = texts(raw); err != nil {
			return fmt.Errorf("aud %w", err)
		}
	}
	return nil
}

// parseDigests reads one SHA-256 digest in hex, or a list of them.
func parseDigests(raw json.RawMessage) ([][sha256.Size]byte, error) {
	list, err := texts(raw)
	var digests [][sha256.Size]byte
	for _, digits := range list {
		digest, decodeErr := hex.DecodeString(digits)
		if decodeErr != nil || len(digest) != sha256.Size || [sha256.Size]byte(digest) == sha256.Sum256(nil) {
			err = errors.New("not a digest")
			break
		}
		digests = append(digests, [sha256.Size]byte(digest))
	}
	if err != nil || len(list) == 0 {
		return nil, errors.New("secret_sha256 has to be the SHA-256 digest of a secret that is not empty, in 64 hex digits, or a list of such digests")
	}
	return digests, nil
}

// text reads a JSON string. Its error is the end of a sentence.
func text(raw json.RawMessage) (string, error) {
	var s *string
	if err := json.Unmarshal(raw, &s); err != nil || s == nil {
		return "", errors.New("has to be a string")
	}
	return *s, nil
}

// texts reads a JSON string, or an array of strings.
func texts(raw json.RawMessage) ([]string, error) {
	if one, err := text(raw); err == nil {
		return []string{one}, nil
	}
	var list []*string
	if err := json.Unmarshal(raw, &list); err != nil || list == nil || slices.Contains(list, nil) {
		return nil, errors.New("has to be a string or an array of strings")
	}
	values := make([]string, len(list))
	for i, s := range list {
		values[i] = *s
	}
	return values, nil
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

// authenticate returns the id of the first credential that is right. It compares digests
// in constant time, all of them, and takes as long for an unknown client.
func (s *server) authenticate(list []credential) (id string, ok bool) {
	for _, c := range list {
		known, exists := s.clients[c.id]
		if !exists {
			known.digests = make([][sha256.Size]byte, 1)
		}
		sum, match := sha256.Sum256([]byte(c.secret)), 0
		for _, digest := range known.digests {
			match |= subtle.ConstantTimeCompare(sum[:], digest[:])
		}
		if match == 1 && exists && !ok {
			id, ok = c.id, true
		}
	}
	return id, ok
}

// logFailure logs failed authentications once a minute.
func (s *server) logFailure(list []credential) {
	if n := s.failures.add(); n > 0 {
		id := append(list, credential{})[0].id
		s.log.Warn("client authentication failed", "client", id[:min(len(id), 100)], "failures", n)
	}
}

// narrow returns the registered claims with no more scope and audience than asked for
// (RFC 6749 section 3.3, RFC 8707 section 2). A client without a registered aud has the
// server's.
func (c client) narrow(asked map[string]json.RawMessage, audience string) (map[string]json.RawMessage, error) {
	registered := c.aud
	if registered == nil && audience != "" {
		registered = []string{audience}
	}
	claims := maps.Clone(c.claims)
	for name, raw := range asked {
		switch {
		case name != "scope" && name != "aud":
			return nil, badRequest("%s cannot be asked for: a token has the claims registered for the client, and a request may only narrow scope and audience", name)
		case string(raw) == "null": // asks for nothing
		case name == "scope":
			scope, err := text(raw)
			words := strings.Fields(scope)
			if err != nil || !subset(words, c.scope) {
				return nil, refuse(http.StatusBadRequest, "invalid_scope", "scope has to be some of the words registered for the client: %q", c.scope)
			}
			if len(words) > 0 {
				claims["scope"] = encode(strings.Join(words, " "))
			}
		default:
			aud, err := texts(raw)
			if err != nil || len(aud) == 0 || !subset(aud, registered) {
				return nil, refuse(http.StatusBadRequest, "invalid_target", "audience has to be among those registered for the client: %q", registered)
			}
			claims["aud"] = raw
		}
	}
	return claims, nil
}

func subset(values, all []string) bool {
	return !slices.ContainsFunc(values, func(v string) bool { return !slices.Contains(all, v) })
}

// grants returns the grant types of the token endpoint.
func (s *server) grants() []string {
	if s.clients == nil {
		return []string{"client_credentials", "password"}
	}
	return []string{"client_credentials"}
}

// parseObject returns the members of a JSON object, as they are. If one is there twice,
// the last one counts.
func parseObject(text []byte) (object map[string]json.RawMessage, err error) {
	err = json.Unmarshal(text, &object)
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &syntax):
		return nil, fmt.Errorf("%w at byte %d", err, syntax.Offset)
	case err != nil || object == nil:
		return nil, errors.New("it is not an object")
	case !utf8.Valid(text):
		return nil, errors.New("it has to be UTF-8")
	}
	return object, checkText(text)
}

// checkText refuses valid JSON that nests deeper than maxNesting, and a surrogate without its
// other half, which is no character (RFC 8259 section 8.2).
func checkText(text []byte) error {
	depth, quoted := 0, false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case quoted && c == '\\':
			unit := escape(text[i:])
			switch {
			case !utf16.IsSurrogate(unit):
				i++
			case utf16.DecodeRune(unit, escape(text[i+6:])) == utf8.RuneError:
				return fmt.Errorf("%s is half a character", text[i:i+6])
			default:
				i += 11
			}
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			if depth++; depth > maxNesting {
				return fmt.Errorf("it nests deeper than %d arrays and objects", maxNesting)
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return nil
}

// escape returns the code unit that text begins with as \uXXXX; -1 if it does not.
func escape(text []byte) rune {
	if len(text) < 6 || text[0] != '\\' || text[1] != 'u' {
		return -1
	}
	unit, err := strconv.ParseUint(string(text[2:6]), 16, 16)
	if err != nil {
		return -1
	}
	return rune(unit)
}

// logInterval is how often the log repeats what lasts.
const logInterval = time.Minute

// A throttle counts events of which the log tells once a minute.
type throttle struct {
	mu    sync.Mutex
	count int
	told  time.Time
}

// add counts an event. It returns how many there were since the last time that it
// returned a number; 0 if that is less than a minute ago.
func (t *throttle) add() (n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.count++
	if time.Since(t.told) < logInterval {
		return 0
	}
	n, t.count, t.told = t.count, 0, time.Now()
	return n
}
