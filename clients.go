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
	"os"
	"slices"
	"strings"
)

// A client may have tokens.
type client struct {
	digests [][sha256.Size]byte        // of its secrets
	claims  map[string]json.RawMessage // of its tokens: those registered, and its id as sub
	scope   []string                   // the words of the registered scope
	aud     []string                   // the registered aud
}

// A registry is the clients of the clients file, by id. It is nil on an open server.
type registry map[string]client

// A credential is a client id and secret.
type credential struct{ id, secret string }

// readClients reads the file of -clients. Every fault of the file is an error, because a
// damaged file must not leave the token endpoint open. Errors tell no secret.
func readClients(path string) (registry, error) {
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

func parseClients(content []byte) (registry, error) {
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
	clients := registry{}
	for id, entry := range entries {
		if clients[id], err = newClient(id, entry); err != nil {
			return nil, fmt.Errorf("client %q: %w", id, err)
		}
	}
	return clients, nil
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
		if _, err := parseString(raw); err != nil {
			return fmt.Errorf("iss %w", err)
		}
	}
	if raw, ok := claims["scope"]; ok {
		scope, err := parseString(raw)
		if err != nil {
			return fmt.Errorf("scope %w", err)
		}
		c.scope = strings.Fields(scope)
	}
	if raw, ok := claims["aud"]; ok {
		if c.aud, err = parseStrings(raw); err != nil {
			return fmt.Errorf("aud %w", err)
		}
	}
	return nil
}

// parseDigests reads one SHA-256 digest in hex, or a list of them.
func parseDigests(raw json.RawMessage) ([][sha256.Size]byte, error) {
	list, err := parseStrings(raw)
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

// authenticate returns the id of the first credential that is right. It compares digests
// in constant time, all of them, and takes as long for an unknown client.
func (clients registry) authenticate(list []credential) (id string, ok bool) {
	for _, c := range list {
		known, exists := clients[c.id]
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
			scope, err := parseString(raw)
			words := strings.Fields(scope)
			if err != nil || !subset(words, c.scope) {
				return nil, refuse(http.StatusBadRequest, "invalid_scope", "scope has to be some of the words registered for the client: %q", c.scope)
			}
			if len(words) > 0 {
				claims["scope"] = encode(strings.Join(words, " "))
			}
		default:
			aud, err := parseStrings(raw)
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
func (clients registry) grants() []string {
	if clients == nil {
		return []string{"client_credentials", "password"}
	}
	return []string{"client_credentials"}
}
