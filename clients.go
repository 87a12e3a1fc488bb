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
	"regexp"
	"slices"
	"strings"
)

// A client is an entry of the clients file.
type client struct {
	digests [][sha256.Size]byte        // of its secrets
	claims  map[string]json.RawMessage // of its tokens: the registered ones, sub and client_id
	scope   []string                   // the words of the registered scope
	aud     []string                   // the registered aud
}

// A registry is the clients of the clients file, by id. It is nil on an open server.
type registry map[string]client

// A credential is a client id and secret.
type credential struct{ id, secret string }

// readClients reads the clients file. It returns an error if anything in it is invalid,
// because a damaged file must not leave the token endpoint open. Errors contain no secrets.
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

// parseClients parses the clients file. If the file has several errors, it always returns
// the same one.
func parseClients(content []byte) (registry, error) {
	entries, err := parseObject(content)
	if err == nil {
		err = checkMembers(json.NewDecoder(bytes.NewReader(content)))
	}
	if err != nil {
		return nil, fmt.Errorf("it has to be one JSON object: %w", err)
	}
	if len(entries) == 0 {
		return nil, errors.New("no clients")
	}
	clients := registry{}
	for _, id := range slices.Sorted(maps.Keys(entries)) {
		if clients[id], err = newClient(id, entries[id]); err != nil {
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
	c := client{claims: map[string]json.RawMessage{"sub": encode(id), "client_id": encode(id)}}
	if c.digests, err = parseDigests(members["secret_sha256"]); err != nil {
		return client{}, err
	}
	for _, name := range slices.Sorted(maps.Keys(members)) {
		if name != "secret_sha256" && name != "claims" {
			return client{}, fmt.Errorf("unknown member %q: it may have secret_sha256 and claims", name)
		}
	}
	if members["claims"] == nil {
		return c, nil
	}
	claims, err := parseObject(members["claims"])
	if err != nil {
		return client{}, errors.New("claims has to be an object")
	}
	for _, name := range slices.Sorted(maps.Keys(claims)) {
		if err := c.register(name, claims[name]); err != nil {
			return client{}, fmt.Errorf("claim %q %w", name, err)
		}
	}
	return c, nil
}

// scopeFormat matches the scope of RFC 6749 section 3.3: words separated by single spaces.
var scopeFormat = regexp.MustCompile(`^[!#-\[\]-~]+( [!#-\[\]-~]+)*$`)

// register adds a claim to the tokens of c. Its error completes "claim NAME ...".
func (c *client) register(name string, raw json.RawMessage) (err error) {
	switch name {
	case "":
		return errors.New("has to have a name")
	case "sub", "client_id", "exp", "iat", "nbf", "jti":
		return errors.New("cannot be registered, because the server sets it")
	case "iss":
		if iss, err := parseString(raw); err != nil || iss == "" {
			return errors.New("has to be a string that is not empty")
		}
	case "scope":
		scope, err := parseString(raw)
		c.scope = strings.Split(scope, " ")
		if err != nil || !scopeFormat.MatchString(scope) || len(unique(c.scope)) < len(c.scope) {
			return errors.New("has to be a string of different words, separated by single spaces, in the characters of RFC 6749 section 3.3")
		}
	case "aud":
		c.aud, err = parseStrings(raw)
		if err != nil || len(c.aud) == 0 || slices.Contains(c.aud, "") || len(unique(c.aud)) < len(c.aud) {
			return errors.New("has to be a string or an array of different strings, none of them empty")
		}
	default:
		var value any
		if err := json.Unmarshal(raw, &value); err != nil { // raw is JSON, so it is a number
			return errors.New("has a number that is out of range")
		}
	}
	c.claims[name] = raw
	return nil
}

// parseDigests parses one SHA-256 digest in hex, or an array of them.
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
		return nil, errors.New("secret_sha256 has to be the SHA-256 digest of a secret that is not empty, " +
			"in 64 hex digits, or an array of such digests")
	}
	return digests, nil
}

// authenticate returns the id of the first credential in list that is a client's. It takes
// as long for an unknown client: it compares all digests, in constant time.
func (clients registry) authenticate(list []credential) (id string, ok bool) {
	for _, c := range list {
		known, exists := clients[c.id]
		if !exists {
			known.digests = make([][sha256.Size]byte, 1)
		}
		sum := sha256.Sum256([]byte(c.secret))
		match := 0
		for _, digest := range known.digests {
			match |= subtle.ConstantTimeCompare(sum[:], digest[:])
		}
		if match == 1 && exists && !ok {
			id, ok = c.id, true
		}
	}
	return id, ok
}

// narrow returns the registered claims, with the requested part of scope and aud (RFC 6749
// section 3.3, RFC 8707 section 2), each word and audience once. null and empty lists
// request all. A client without a registered aud has the server's.
func (c client) narrow(requested map[string]json.RawMessage, audience string) (map[string]json.RawMessage, error) {
	registered := c.aud
	if registered == nil && audience != "" {
		registered = []string{audience}
	}
	claims := maps.Clone(c.claims)
	for _, name := range slices.Sorted(maps.Keys(requested)) {
		switch raw := requested[name]; {
		case name != "scope" && name != "aud":
			return nil, badRequest("%s cannot be requested: "+
				"a token has the claims registered for the client, and a request may only narrow scope and audience", name)
		case string(raw) == "null" || string(raw) == `""` && name == "scope":
		case name == "scope":
			scope, err := parseString(raw)
			words := strings.Split(scope, " ")
			if err != nil || !subset(words, c.scope) {
				return nil, refuse(http.StatusBadRequest, "invalid_scope",
					"scope has to be some of the words registered for the client, separated by single spaces: %q", c.scope)
			}
			claims["scope"] = encode(strings.Join(unique(words), " "))
		default:
			aud, err := parseStrings(raw)
			if err != nil || !subset(aud, registered) {
				return nil, refuse(http.StatusBadRequest, "invalid_target",
					"audience has to be among those registered for the client: %q", registered)
			}
			if len(aud) == 1 {
				claims["aud"] = raw
			} else if len(aud) > 1 {
				claims["aud"] = encode(unique(aud))
			}
		}
	}
	return claims, nil
}

func subset(values, all []string) bool {
	return !slices.ContainsFunc(values, func(v string) bool { return !slices.Contains(all, v) })
}

// unique returns values without duplicates.
func unique(values []string) (list []string) {
	for _, v := range values {
		if !slices.Contains(list, v) {
			list = append(list, v)
		}
	}
	return list
}

// grants returns the grant types of the token endpoint.
func (clients registry) grants() []string {
	if clients == nil {
		return []string{"client_credentials", "password"}
	}
	return []string{"client_credentials"}
}
