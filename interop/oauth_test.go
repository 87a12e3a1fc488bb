package interop

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
)

// An ask is what a client is to ask the token endpoint for.
type ask struct {
	Secret string `json:"secret"`
	Scope  string `json:"scope"`
	Query  string `json:"query"` // of the token endpoint
}

// An answer is what a client makes of the server's.
type answer struct {
	Token     string `json:"token"`
	Scope     string `json:"scope"`
	ExpiresIn any    `json:"expires_in"`
	Error     string `json:"error"` // the code
}

// A client gets an answer to each ask, as clientID. Its name is that of its test.
type client func(t *testing.T, name, issuer string, asks []ask) []answer

// Both the id and the secrets mean something else when they are form-decoded. A library
// that takes ASCII only cannot have the first secret.
const (
	clientID    = "reports+eu"
	secret      = `a+b%2B c&d:ü="/`
	asciiSecret = `a+b%2B c&d:="/`
	api         = "https://api.example" // the aud
)

func writeFile(t *testing.T, name, content string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestOAuthClients(t *testing.T) {
	t.Parallel()
	s := start(t, "-clients", writeFile(t, "clients.json", fmt.Sprintf(
		`{%q: {"secret_sha256": ["%x", "%x"], "claims": {"aud": %q, "scope": "read write"}}}`,
		clientID, sha256.Sum256([]byte(secret)), sha256.Sum256([]byte(asciiSecret)), api)))
	node := program("node", "oauth/clients.mjs")
	python := program("/usr/bin/python3", "oauth/clients.py") // Debian's, which has the packages
	const challenge = "OAUTH_WWW_AUTHENTICATE_CHALLENGE"      // of a 401, whose body these libraries do not read
	for _, c := range []struct {
		name        string
		client      client
		secret      string
		wantRefused string // the code of a wrong secret
	}{
		{"openid-client, in the form", node, secret, challenge},
		{"openid-client, by Basic", node, secret, challenge},
		{"oauth4webapi, in the form", node, secret, challenge},
		{"oauth4webapi, by Basic", node, secret, challenge},
		{"simple-oauth2, in the form", node, asciiSecret, "invalid_client"},
		{"simple-oauth2, by Basic", node, asciiSecret, "invalid_client"},
		{"axios, in the form", node, secret, "invalid_client"},
		{"axios, by Basic", node, secret, "invalid_client"},
		{"undici, in the form", node, secret, "invalid_client"},
		{"undici, by Basic", node, secret, "invalid_client"},
		{"requests, in the form", python, secret, "invalid_client"},
		{"requests, by Basic", python, secret, "invalid_client"},
		{"requests-oauthlib, in the form", python, secret, "invalid_client"},
		{"requests-oauthlib, by Basic", python, secret, "invalid_client"},
		{"curl, in the form", curl, secret, "invalid_client"},
		{"curl, by Basic", curl, secret, "invalid_client"},
	} {
		tests := []struct {
			name string
			ask
			want        answer // without its token
			wantExpired bool   // and a token all the same
		}{
			{"a client that asks for no scope gets all of its own", ask{c.secret, "", ""}, answer{Scope: "read write", ExpiresIn: 600.0}, false},
			{"a client that asks for less scope gets that", ask{c.secret, "read", ""}, answer{Scope: "read", ExpiresIn: 600.0}, false},
			{"a scope too many is refused", ask{c.secret, "read admin", ""}, answer{Error: "invalid_scope"}, false},
			{"a wrong secret is refused", ask{"wrong", "", ""}, answer{Error: c.wantRefused}, false},
			{"an expired token is handed over", ask{c.secret, "", "?expired=true"}, answer{Scope: "read write"}, true},
		}
		t.Run(c.name, func(t *testing.T) {
			var asks []ask
			for _, test := range tests {
				asks = append(asks, test.ask)
			}
			answers := c.client(t, c.name, s.issuer, asks)
			if len(answers) != len(asks) {
				t.Fatalf("the client has %d answers; want %d", len(answers), len(asks))
			}
			for i, test := range tests {
				t.Run(test.name, func(t *testing.T) {
					got, token := answers[i], answers[i].Token
					if got.Token = ""; got != test.want {
						t.Errorf("answer to %+v = %+v; want %+v", test.ask, got, test.want)
					}
					subject, err := verifyByDiscovery(t.Context(), s.issuer, token)
					switch expired := (*oidc.TokenExpiredError)(nil); {
					case test.want.Error != "":
					case test.wantExpired && !errors.As(err, &expired):
						t.Errorf("Verify(token) = %v; want that it has expired", err)
					case !test.wantExpired && (err != nil || subject != clientID):
						t.Errorf("Verify(token) = %q, %v; want %q", subject, err, clientID)
					}
				})
			}
		})
	}
}

// verifyByDiscovery verifies a token as a service does that is told the issuer alone. It
// returns the sub of the token.
func verifyByDiscovery(ctx context.Context, issuer, token string) (subject string, err error) {
	provider, err := oidc.NewProvider(ctx, issuer)
	if err != nil {
		return "", err
	}
	verified, err := provider.Verifier(&oidc.Config{ClientID: api}).Verify(ctx, token)
	if err != nil {
		return "", err
	}
	return verified.Subject, nil
}

// program returns the client that a program of oauth/ has under its name.
func program(command, path string) client {
	return func(t *testing.T, name, issuer string, asks []ask) (answers []answer) {
		runProgram(t, exec.Command(command, path, name), map[string]any{"issuer": issuer, "id": clientID, "asks": asks}, &answers)
		return answers
	}
}

// run returns what a command prints on stdout.
func run(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Stderr = t.Output()
	output, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %q: %v", name, args, err)
	}
	return output
}

func curl(t *testing.T, name, issuer string, asks []ask) (answers []answer) {
	for _, a := range asks {
		args := []string{"-sS", issuer + "/auth" + a.Query, "-d", "grant_type=client_credentials", "-d", "scope=" + a.Scope}
		if name == "curl, by Basic" {
			args = append(args, "-u", clientID+":"+a.Secret)
		} else {
			args = append(args, "--data-urlencode", "client_id="+clientID, "--data-urlencode", "client_secret="+a.Secret)
		}
		var got answer
		if err := json.Unmarshal(run(t, "curl", args...), &got); err != nil {
			t.Fatal(err)
		}
		answers = append(answers, got)
	}
	return answers
}

func TestCurl(t *testing.T) {
	t.Parallel()
	plain := start(t)
	secure, certificate := startTLS(t)
	for _, test := range []struct {
		name   string
		server server
		args   []string
		want   string // the protocol and the status
		says   string
	}{
		{"a POST without a body gets a token", plain, []string{"-X", "POST"}, "1.1 200", "access_token"},
		{"HTTP/1.0 without a Host gets a token", plain, []string{"--http1.0", "-H", "Host:", "-d", "sub=alice"}, "1 200", "access_token"},
		{"an upgrade to HTTP/2 is passed over", plain, []string{"--http2", "-d", "sub=alice"}, "1.1 200", "access_token"},
		{"HTTPS speaks HTTP/2", secure, []string{"--cacert", certificate, "-d", "sub=alice"}, "2 200", "access_token"},
		{"HTTPS speaks HTTP/2 by prior knowledge", secure, []string{"--http2-prior-knowledge", "--cacert", certificate, "-d", "sub=alice"}, "2 200", "access_token"},
		{"a body in Latin-1 is told to be UTF-8", plain, []string{"--data-binary", "{\"sub\":\"J\xfcrgen\"}"}, "1.1 400", "the body has to be UTF-8"},
	} {
		t.Run(test.name, func(t *testing.T) {
			output := run(t, "curl", append(test.args, "-sS", "-w", "%{http_version} %{http_code}", test.server.auth)...)
			if !bytes.HasSuffix(output, []byte("\n"+test.want)) || !bytes.Contains(output, []byte(test.says)) {
				t.Errorf("curl %q = %s; want %s and %s", test.args, output, test.says, test.want)
			}
		})
	}
}

// eventually waits until ok is true, for the programs of others.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it is not so after 20 seconds that %s", what)
		}
	}
}
