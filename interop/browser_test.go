package interop

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

func TestAPageOfAnotherOrigin(t *testing.T) {
	t.Parallel()
	s := start(t)
	results := browse(t, map[string]string{"server": s.issuer, "token": s.token(t, "")})
	for _, test := range []struct{ name, attempt, want string }{
		{"verifies a token with jose", "jose", "user123"},
		{"may send a header with the request for the JWK Set", "jose with a header", "user123"},
		{"reads the metadata of OpenID Connect", "openid-configuration", s.issuer},
		{"reads the metadata of OAuth", "oauth-authorization-server", s.issuer},
		{"reads the catalogue of faults", "faults", "signature"},
		{"cannot take a token", "POST /auth", "TypeError"},
		{"cannot take a token with claims in JSON", "POST /auth with JSON", "TypeError"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := results[test.attempt]; got != test.want {
				t.Errorf("results[%q] = %q; want %q", test.attempt, got, test.want)
			}
		})
	}
}

// browse runs oauth/browser.mjs in Chromium and returns its results.
func browse(t *testing.T, given map[string]string) (results map[string]string) {
	t.Helper()
	posted := make(chan []byte, 1)
	mux := http.NewServeMux()
	mux.Handle("GET /", http.FileServer(http.Dir("oauth")))
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, `<!doctype html><script type="module" src="/browser.mjs"></script>`)
	})
	mux.HandleFunc("GET /given", func(w http.ResponseWriter, r *http.Request) { json.NewEncoder(w).Encode(given) })
	mux.HandleFunc("POST /results", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		posted <- body
	})
	page := httptest.NewServer(mux)
	defer page.Close()

	ctx, stop := context.WithTimeout(t.Context(), 50*time.Second)
	defer stop()
	chromium := exec.CommandContext(ctx, "/usr/bin/chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
		"--disable-dev-shm-usage", "--no-first-run", "--log-level=3", "--disable-background-networking", "--disable-component-update", "--disable-sync",
		"--user-data-dir="+t.TempDir(), page.URL)
	chromium.Cancel = func() error { return chromium.Process.Signal(syscall.SIGTERM) } // it stops all its processes
	chromium.WaitDelay = 10 * time.Second
	chromium.Stderr = t.Output()
	if err := chromium.Start(); err != nil {
		t.Fatal(err)
	}
	defer chromium.Wait()
	defer stop()
	select {
	case body := <-posted:
		if err := json.Unmarshal(body, &results); err != nil {
			t.Fatal(err)
		}
	case <-ctx.Done():
		t.Fatal("the page has no results after 50 seconds")
	}
	return results
}
