package interop

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"
)

func TestOAuthClientsObtainTokensFromTheDiscoveredEndpoint(t *testing.T) {
	t.Parallel()
	const secret = `+ %&="ü/:` // all of it has to be encoded in a form, and so in Basic
	file := filepath.Join(t.TempDir(), "clients.json")
	content := fmt.Sprintf(`{"plain": {"secret_sha256": "%x", "claims": {"aud": "https://api.test"}},
		"od:d&id": {"secret_sha256": "%x", "claims": {"aud": ["https://api.test", "other"], "scope": "read"}}}`,
		sha256.Sum256([]byte("s3cret")), sha256.Sum256([]byte(secret)))
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	open := start(t, "-audience", "https://api.test")
	closed := start(t, "-clients", file)

	for _, test := range []struct {
		name       string
		server     server
		id, secret string
		style      oauth2.AuthStyle
		wantCode   string // of the error
	}{
		{"the open server gives a token to nobody in particular", open, "", "", oauth2.AuthStyleInParams, ""},
		{"the open server gives a token to any client by Basic", open, "any", "thing", oauth2.AuthStyleInHeader, ""},
		{"a client by Basic", closed, "plain", "s3cret", oauth2.AuthStyleInHeader, ""},
		{"a client in the form", closed, "plain", "s3cret", oauth2.AuthStyleInParams, ""},
		{"a client that tries what works", closed, "plain", "s3cret", oauth2.AuthStyleAutoDetect, ""},
		{"an encoded secret by Basic", closed, "od:d&id", secret, oauth2.AuthStyleInHeader, ""},
		{"an encoded secret in the form", closed, "od:d&id", secret, oauth2.AuthStyleInParams, ""},
		{"a wrong secret by Basic", closed, "plain", secret, oauth2.AuthStyleInHeader, "invalid_client"},
		{"a wrong secret in the form", closed, "plain", secret, oauth2.AuthStyleInParams, "invalid_client"},
		{"an unknown client", closed, "nobody", "s3cret", oauth2.AuthStyleInHeader, "invalid_client"},
		{"no client", closed, "", "", oauth2.AuthStyleInParams, "invalid_client"},
	} {
		t.Run(test.name, func(t *testing.T) {
			provider, err := oidc.NewProvider(t.Context(), test.server.issuer)
			if err != nil {
				t.Fatal(err)
			}
			config := clientcredentials.Config{
				ClientID:     test.id,
				ClientSecret: test.secret,
				TokenURL:     provider.Endpoint().TokenURL,
				AuthStyle:    test.style,
			}
			token, err := config.Token(t.Context())
			if test.wantCode != "" {
				if e := (*oauth2.RetrieveError)(nil); !errors.As(err, &e) || e.ErrorCode != test.wantCode {
					t.Errorf("Token() = %v; want a RetrieveError with %s", err, test.wantCode)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if left := time.Until(token.Expiry); token.Type() != "Bearer" || left < 9*time.Minute || left > 10*time.Minute {
				t.Errorf("Token() is of type %s and expires in %s; want Bearer and 10m", token.Type(), left)
			}
			verified, err := provider.Verifier(&oidc.Config{ClientID: "https://api.test"}).Verify(t.Context(), token.AccessToken)
			if err != nil {
				t.Fatalf("go-oidc: %v", err)
			}
			if test.server == closed && verified.Subject != test.id {
				t.Errorf("sub = %q; want the client id %q", verified.Subject, test.id)
			}
		})
	}
}

func TestOverTLSTheIssuerIsHTTPSAndTheProtocolHTTP2(t *testing.T) {
	t.Parallel()
	s, _ := startTLS(t, "-audience", "https://api.test")
	if !strings.HasPrefix(s.issuer, "https://127.0.0.1:") {
		t.Errorf("the issuer is %s; want https://127.0.0.1 and the port", s.issuer)
	}
	response, err := s.client.Get(s.jwks)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.ProtoMajor != 2 {
		t.Errorf("GET %s spoke %s; want HTTP/2", s.jwks, response.Proto)
	}
	provider, err := oidc.NewProvider(oidc.ClientContext(t.Context(), s.client), s.issuer)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := provider.Verifier(&oidc.Config{ClientID: "https://api.test"}).Verify(t.Context(), s.token(t, "")); err != nil {
		t.Errorf("go-oidc over HTTPS: %v; want no error", err)
	}
}
