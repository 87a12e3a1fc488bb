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

// encode marshals v, which must be marshalable. It does not escape <, > and &, because
// \u003c is six times as long.
func encode(v any) json.RawMessage {
	var text bytes.Buffer
	e := json.NewEncoder(&text)
	e.SetEscapeHTML(false)
	e.Encode(v)
	return bytes.TrimSuffix(text.Bytes(), []byte("\n"))
}

// parseString parses a JSON string. Its error completes "NAME ...".
func parseString(raw json.RawMessage) (string, error) {
	var s *string
	if err := json.Unmarshal(raw, &s); err != nil || s == nil {
		return "", errors.New("has to be a string")
	}
	return *s, nil
}

// parseStrings parses a JSON string, or an array of strings. Its error completes "NAME ...".
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

// parseObject returns the members of a JSON object, not decoded. Of duplicates the last wins.
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
	return object, checkSurrogates(text)
}

// checkSurrogates returns an error if text has an unpaired surrogate escape, which is no
// character (RFC 8259 section 8.2). text must be valid JSON.
func checkSurrogates(text []byte) error {
	for {
		start := bytes.IndexByte(text, '\\')
		if start < 0 {
			return nil
		}
		text = text[start:]
		size := len(`\n`)
		if first := codeUnit(text); utf16.IsSurrogate(first) {
			size = len(`\ud83d\ude00`)
			if utf16.DecodeRune(first, codeUnit(text[size/2:])) == utf8.RuneError {
				return fmt.Errorf("%s is an unpaired surrogate", text[:size/2])
			}
		}
		text = text[size:]
	}
}

// codeUnit returns the UTF-16 code unit that text begins with as \uXXXX, or -1.
func codeUnit(text []byte) rune {
	digits, found := bytes.CutPrefix(text, []byte(`\u`))
	if !found {
		return -1
	}
	unit, _ := strconv.ParseUint(string(digits[:4]), 16, 16)
	return rune(unit)
}

// checkMembers returns an error if an object in d has duplicate members. d must be valid JSON.
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
	d.Token() // the closing delimiter
	return nil
}
