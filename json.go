package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// A document is a response body, rendered once.
type document struct {
	mediaType []string // the value of Content-Type
	body      []byte
	etag      string // a strong entity tag (RFC 9110 section 8.8.3)
}

// jsonType is allocated once, because the JWK Set is a hot path.
var jsonType = []string{"application/json"}

// newDocument returns v, which must be marshalable, as a JSON document.
func newDocument(v any) *document { return newText(jsonType, append(encode(v), '\n')) }

func newText(mediaType []string, body []byte) *document {
	digest := sha256.Sum256(body)
	return &document{mediaType: mediaType, body: body, etag: `"` + base64.RawURLEncoding.EncodeToString(digest[:16]) + `"`}
}

// encode returns v, which is of a type that JSON has, as JSON. It leaves < and > as they
// are, because a string of them would become six times as long.
func encode(v any) json.RawMessage {
	var text bytes.Buffer
	e := json.NewEncoder(&text)
	e.SetEscapeHTML(false)
	e.Encode(v)
	return bytes.TrimSuffix(text.Bytes(), []byte("\n"))
}

const maxNesting = 32 // of arrays and objects in JSON

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

// parseString parses a JSON string. Its error is the end of a sentence.
func parseString(raw json.RawMessage) (string, error) {
	var s *string
	if err := json.Unmarshal(raw, &s); err != nil || s == nil {
		return "", errors.New("has to be a string")
	}
	return *s, nil
}

// parseStrings parses a JSON string, or an array of strings.
func parseStrings(raw json.RawMessage) ([]string, error) {
	if one, err := parseString(raw); err == nil {
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
