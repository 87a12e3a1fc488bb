package interop

import (
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// goServices are recipes of one program, go/.
var goServices = []service{
	golang("golang-jwt with keyfunc", "golang-jwt", "golangjwt.go", service{
		strict: "golang-jwt with keyfunc, strict", heeds: true, keeps: keyfuncHour,
	}, "golang-jwt/jwt/v5", "MicahParks/keyfunc/v3"),
	golang("golang-jwt with keyfunc and a claims struct", "golang-jwt-struct", "golangjwt_struct.go", service{
		strict: "golang-jwt with keyfunc, strict", heeds: true, keeps: keyfuncHour,
	}, "golang-jwt/jwt/v5", "MicahParks/keyfunc/v3"),
	golang("golang-jwt with keyfunc, strict", "golang-jwt-strict", "golangjwt_strict.go", service{},
		"golang-jwt/jwt/v5", "MicahParks/keyfunc/v3"),
	golang("echo-jwt with keyfunc", "echo", "echo.go", service{
		strict: "echo-jwt with keyfunc, strict", heeds: true, keeps: keyfuncHour,
	}, "labstack/echo-jwt/v4", "labstack/echo/v4", "MicahParks/keyfunc/v3"),
	golang("echo-jwt with keyfunc, strict", "echo-strict", "echo_strict.go", service{},
		"labstack/echo-jwt/v4", "labstack/echo/v4", "MicahParks/keyfunc/v3"),
	golang("go-oidc", "go-oidc", "gooidc.go", service{strict: "go-oidc, strict"}, "coreos/go-oidc/v3"),
	golang("go-oidc, strict", "go-oidc-strict", "gooidc_strict.go", service{}, "coreos/go-oidc/v3"),
	golang("hashicorp/cap/jwt", "cap", "cap.go", service{strict: "hashicorp/cap/jwt, strict"}, "hashicorp/cap"),
	golang("hashicorp/cap/jwt, strict", "cap-strict", "cap_strict.go", service{}, "hashicorp/cap"),
	golang("auth0/go-jwt-middleware", "auth0", "auth0.go", service{
		strict: "auth0/go-jwt-middleware, strict", heeds: true, slow: true, wait: fiveMinutes,
	}, "auth0/go-jwt-middleware/v2"),
	golang("auth0/go-jwt-middleware, strict", "auth0-strict", "auth0_strict.go", service{},
		"auth0/go-jwt-middleware/v2"),
	golang("Open Policy Agent", "opa", "opa.go", service{}, "open-policy-agent/opa"),
	golang("go-jose", "go-jose", "gojose.go", service{heeds: true, slow: true, wait: tenMinutes}, "go-jose/go-jose/v4"),
	golang("jwx", "jwx", "jwx.go", service{
		strict: "jwx, strict", heeds: true, slow: true, wait: 20 * time.Minute,
	}, "lestrrat-go/jwx/v3"),
	golang("jwx, strict", "jwx-strict", "jwx_strict.go", service{}, "lestrrat-go/jwx/v3"),
	kubernetesService("Kubernetes API server", service{
		setsOf: "Kubernetes API server, max-age of 2 s", slow: true, wait: fiveMinutes,
	}),
	kubernetesService("Kubernetes API server, max-age of 2 s", service{flags: []string{"-publish-ahead", "48s"}}),
}

// keyfuncHour is for keyfunc, which reads the JWK Set every hour, and for unknown keys once in
// five minutes. What it does while several of those arrive, a run cannot tell.
const keyfuncHour = "65m, since it reads once an hour"

func golang(name, recipe, file string, s service, modules ...string) service {
	s.name, s.dir, s.files, s.prepare = name, "go", []string{file}, buildRecipes
	s.command = []string{"go-recipes", recipe}
	for _, module := range modules {
		s.packages = append(s.packages, "go:github.com/"+module)
	}
	return s
}

func kubernetesService(name string, s service) service {
	s.tls = true
	s = golang(name, "kubernetes", "kubernetes.go", s)
	s.packages = []string{"go:k8s.io/apiserver", "go:github.com/coreos/go-oidc"}
	return s
}

var recipesBuilt sync.Once

// buildRecipes builds the program of the Go recipes beside the server's, and puts both on the
// path.
func buildRecipes(t *testing.T) {
	recipesBuilt.Do(func() {
		dir := filepath.Dir(binary)
		build := exec.Command("go", "build", "-o", filepath.Join(dir, "go-recipes"), "./go")
		if output, err := build.CombinedOutput(); err != nil {
			t.Errorf("go build ./go: %v\n%s", err, output)
			return
		}
		os.Setenv("PATH", dir+string(os.PathListSeparator)+os.Getenv("PATH"))
	})
}
