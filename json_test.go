package main

import (
	"encoding/base64"
	"strings"
	"testing"
)

func TestAStringIsSignedAsItIs(t *testing.T) {
	s := newServerWithKey(t)
	payload := must(base64.RawURLEncoding.DecodeString(strings.Split(s.token(t, "", `{"sub":"<&>"}`), ".")[1]))
	if !strings.Contains(string(payload), `"sub":"<&>"`) {
		t.Errorf("payload = %s; want <&> in it, because escapes would make it six times as long", payload)
	}
}

func TestAnUnpairedSurrogateIsRefused(t *testing.T) {
	for _, test := range []struct {
		strings   []string // each is tried as a member's name, as its value, and deeper
		wantError string
	}{
		{strings: []string{`\ud83d\ude00`, `\uD83D\uDE00`, `\uDBFF\udfff\ud800\uDC00`, `\\ud83d`, `\\\\ud83d\\ude00`, `\\\ud83d\ude00`,
			`\ud7ff\ue000\ufffd\u0000`, `\"\/\b\f\n\r\t`, `é名😀`, `ud83d`, strings.Repeat(`\ud83d\ude00`, 1300)}},
		{strings: []string{`\ud83d`, `\ude00`, `\uD800`, `\uDFFF`, `\ude00\ud83d`, `\ud83d\ud83d`, `\ud83d\\ude00`, `\ud83dx`, `\ud83d\u0041`,
			`\ud83d\ue000`,
			`\ud83d\n`, `\\\ud83d`, `\ud83d\ude00\ud83d`, `\ud83d\ud83d\ude00`, `x\ude00\n`, strings.Repeat(`\ud83d\ude00`, 1300) + `\ude00`},
			wantError: "unpaired surrogate"},
	} {
		for _, s := range test.strings {
			for _, text := range []string{`{"` + s + `":1}`, `{"a":"` + s + `"}`, `{"a":[{"b":["` + s + `"],"c":"d"}]}`} {
				_, err := parseObject([]byte(text))
				wantError(t, "parseObject("+text+")", err, test.wantError)
			}
		}
	}
}
