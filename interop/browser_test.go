package interop

import (
	"context"
	"encoding/json"
	"io"
	"net"
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
	mux := http.NewServeMux()
	mux.Handle("GET /", http.FileServer(http.Dir("oauth")))
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, `<!doctype html><script type="module" src="/browser.mjs"></script>`)
	})
	mux.HandleFunc("GET /given", func(w http.ResponseWriter, r *http.Request) { json.NewEncoder(w).Encode(given) })
	page := httptest.NewServer(mux)
	defer page.Close()
	return chromium(t, page.URL)
}

// chromium opens a page in Chromium and returns the JSON that the page posts to the URL in the
// fragment of its own.
func chromium(t *testing.T, page string, flags ...string) (results map[string]string) {
	t.Helper()
	posted := make(chan []byte, 1)
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		posted <- body
	}))
	defer receiver.Close()
	ctx, stop := context.WithTimeout(t.Context(), 50*time.Second)
	defer stop()
	cmd := exec.CommandContext(ctx, "/usr/bin/chromium", append(flags, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
		"--disable-dev-shm-usage", "--no-first-run", "--log-level=3", "--disable-background-networking", "--disable-component-update", "--disable-sync",
		"--user-data-dir="+t.TempDir(), page+"#"+receiver.URL)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // it stops all its processes
	cmd.WaitDelay = 10 * time.Second
	cmd.Stderr = t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
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

// TestAPageWhoseNameIsRebound opens a page of tokens.example in Chromium. Then the page's server
// ends and an open jwks-server takes its address, as if the name now resolved to loopback: to
// the browser, page and server are of one origin.
func TestAPageWhoseNameIsRebound(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	rebind := make(chan struct{})
	mux := http.NewServeMux()
	mux.Handle("GET /{$}", http.FileServer(http.Dir("rebound")))
	mux.HandleFunc("GET /rebind", func(w http.ResponseWriter, r *http.Request) { close(rebind) })
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	page := &http.Server{Handler: mux}
	go page.Serve(listener)
	rebound := make(chan server, 1)
	go func() {
		defer close(rebound)
		select {
		case <-rebind:
		case <-t.Context().Done():
		}
		page.Close()
		rebound <- start(t, "-addr", address)
	}()
	host, port, _ := net.SplitHostPort(address)
	results := chromium(t, "http://tokens.example:"+port+"/", "--host-resolver-rules=MAP tokens.example "+host)
	s := <-rebound

	for attempt, want := range map[string]string{
		"POST /auth":                              "403 access_denied",
		"POST /auth with claims":                  "403 access_denied",
		"POST /auth without a referrer":           "403 access_denied",
		"POST /auth in no-cors mode":              "403 access_denied",
		"POST /auth by a form":                    "access_denied",
		"POST /auth by XMLHttpRequest":            "403 access_denied",
		"POST /faults/sets?fault=empty":           "403 access_denied",
		"POST /faults/sets?fault=error by a form": "access_denied",
		"a beacon to /faults/sets?fault=empty":    "sent",
	} {
		t.Run(attempt, func(t *testing.T) {
			if got := results[attempt]; got != want {
				t.Errorf("got %q; want %q", got, want)
			}
		})
	}
	t.Run("the JWK Set is as it was", func(t *testing.T) {
		var set struct{ Keys []any }
		getJSON(t, s.jwks, &set)
		if len(set.Keys) == 0 {
			t.Error("the JWK Set has no keys; want those of the server")
		}
	})
	t.Run("a program gets a token", func(t *testing.T) { s.token(t, "") })
}
