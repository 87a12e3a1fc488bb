package main

import (
	"encoding/base64"
	"strings"
	"testing"
)

func TestAStringIsSignedAsItIs(t *testing.T) {
	s := newServerWithKey(t)
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(s.token(t, "", `{"sub":"<&>"}`), ".")[1])
	if err != nil || !strings.Contains(string(payload), `"sub":"<&>"`) {
		t.Errorf("payload = %s, %v; want <&> in it, because escapes would make it six times as long", payload, err)
	}
}
