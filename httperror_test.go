package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// checkError checks a response against the rules for all errors.
func (w response) checkError(t testing.TB, request string, status int, code string) {
	t.Helper()
	if w.status != status {
		t.Errorf("%s = %d %s; want %d %s", request, w.status, w.body, status, code)
		return
	}
	members := w.json(t)
	description, _ := members["error_description"].(string)
	if members["error"] != code || len(members) != 2 {
		t.Errorf("%s = %s; want the error %s and its description", request, w.body, code)
	}
	if !regexp.MustCompile(`^[\x20-\x21\x23-\x5B\x5D-\x7E]+$`).MatchString(description) {
		t.Errorf("%s: error_description = %q; want the characters of RFC 6749 section 5.2", request, description)
	}
	want := http.Header{
		"Content-Type": {"application/json"}, "X-Content-Type-Options": {"nosniff"},
		"Cache-Control": {"no-store"}, "Pragma": {"no-cache"},
	}
	switch status {
	case http.StatusServiceUnavailable:
		want.Set("Retry-After", "1")
	case http.StatusUnauthorized:
		want.Set("WWW-Authenticate", `Basic realm="jwks-server", charset="UTF-8"`)
	case http.StatusMethodNotAllowed:
		want.Set("Allow", w.header.Get("Allow")) // which TestRoutes checks
	case http.StatusRequestEntityTooLarge:
		want.Set("Connection", "close")
	case http.StatusUnsupportedMediaType:
		want.Set("Accept-Encoding", "identity")
	}
	if origin, ok := w.header["Access-Control-Allow-Origin"]; ok { // which TestCORS checks
		want["Access-Control-Allow-Origin"] = origin
	}
	checkHeader(t, request, w.header, want)
}

func checkHeader(t testing.TB, request string, got, want http.Header) {
	t.Helper()
	if !maps.EqualFunc(got, want, slices.Equal) {
		t.Errorf("%s: header = %v; want %v", request, got, want)
	}
}

func TestErrors(t *testing.T) {
	s := newServerWithKey(t)
	t.Run("what they quote has the characters that RFC 6749 allows", func(t *testing.T) {
		for _, query := range []string{"%\"\\", "a=%é", "a=%\u007f\u0080", "fault=\"\\é"} {
			s.post(query, "").checkError(t, query, 400, "invalid_request")
		}
		for _, body := range []string{
			`sub=%"\`, "sub=%\x00\x01", "sub=%é", "sub=%\u2028", "sub=%\x7f", `{"a":"\x"}`, `{\`, `{"a":é}`, "{\x00", "{\x7f", "{\"a\":\u2028}",
		} {
			s.post("", body).checkError(t, body, 400, "invalid_request")
		}
	})
	written := func(err error) response {
		w := httptest.NewRecorder()
		s.route("GET", func(http.ResponseWriter, *http.Request) error { return err }).ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
		return response{status: w.Code, header: w.Header(), body: w.Body.String()}
	}
	t.Run("a quotation mark becomes an apostrophe", func(t *testing.T) {
		equal(t, "description", written(badRequest("not %q", "a")).json(t)["error_description"], any("not 'a'"))
	})
	t.Run("any other character is replaced", func(t *testing.T) {
		for r := range rune(0x180) {
			written(badRequest("%c and %s", r, []byte{byte(r)})).checkError(t, fmt.Sprintf("%q", r), 400, "invalid_request")
		}
	})
	t.Run("an internal cause goes to the log alone", func(t *testing.T) {
		w := written(errors.New("hush, the\ncause"))
		w.checkError(t, "a failure", 500, "server_error")
		if strings.Contains(w.body, "hush") || !strings.Contains(s.log.String(), `level=ERROR msg="cannot answer" error="hush, the; cause"`) {
			t.Errorf("a failure = %s, log %s; want the cause in the log alone", w.body, s.log)
		}
	})
	t.Run("a request that waited in vain for a key is not told to ask again in a second", func(t *testing.T) {
		for _, err := range []error{
			fmt.Errorf("%w: %w", errNoKey, context.DeadlineExceeded), fmt.Errorf("%w: %w", errNoKey, context.Canceled),
			fmt.Errorf("%w: %w", errNoKey, errors.New("hush")),
		} {
			w := written(err)
			w.checkError(t, err.Error(), 503, "temporarily_unavailable")
			if !strings.Contains(w.body, "has no key") || strings.Contains(w.body, "busy") || strings.Contains(w.body, "hush") {
				t.Errorf("%v = %s; want to read that there is no key", err, w.body)
			}
		}
	})
	t.Run("without a key there is 503 and never an empty set", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := newServerWithKey(t)
			dir := string(s.store.dir)
			if err := errors.Join(os.RemoveAll(dir), os.WriteFile(dir, nil, 0o600)); err != nil {
				t.Fatal(err)
			}
			for _, test := range []struct {
				wait         time.Duration
				method, path string
				want         int
			}{
				{wait: 45 * time.Minute, method: "POST", path: "/auth", want: 200}, // the keys in memory keep working
				{wait: time.Second, method: "POST", path: "/auth", want: 503},
				{method: "POST", path: "/auth?expired=true", want: 503},
				{method: "POST", path: "/auth?fault=none", want: 503},
				{wait: 14*time.Minute + 58*time.Second, method: "GET", path: jwksPath, want: 200},
				{wait: time.Second, method: "GET", path: jwksPath, want: 503},
				{method: "HEAD", path: jwksPath, want: 503},
				{method: "POST", path: "/auth", want: 503},
			} {
				time.Sleep(test.wait)
				w := s.do(test.method, test.path, "")
				equal(t, test.method+" "+test.path, w.status, test.want)
				if test.want == 503 {
					w.checkError(t, test.path, 503, "temporarily_unavailable")
					equal(t, "the body has the internal cause", strings.Contains(w.body, "dir"), false)
				}
			}
		})
	})
}
