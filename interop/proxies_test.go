package interop

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// A proxy passes on to a URL what comes to an address.
type proxy func(t *testing.T, address, upstream string)

func TestProxies(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name       string
		proxy      proxy
		wantCached bool
	}{
		{"HAProxy", haproxy, false},
		{"nginx with the recipe", nginxRecipe, true},
		{"Varnish", varnish, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			front := freeAddress(t)
			issuer := "http://" + front
			// The JWK Set has a max-age of a second, so that a copy is soon stale.
			origin, stop := launch(t, "-issuer", issuer, "-audience", api, "-publish-ahead", "24s")
			test.proxy(t, front, origin.issuer)
			through := server{issuer, issuer + "/.well-known/jwks.json", issuer + "/auth", http.DefaultClient}

			t.Run("a good token verifies by discovery", func(t *testing.T) {
				if _, err := verifyByDiscovery(t.Context(), issuer, through.token(t, "")); err != nil {
					t.Errorf("Verify(token) = %v; want no error", err)
				}
			})
			t.Run("connections that are kept alive meet no error under load", func(t *testing.T) {
				for method, url := range map[string]string{"POST": through.auth, "GET": through.jwks} {
					if got, want := load(t, method, url), map[string]int{"200": 400}; !maps.Equal(got, want) {
						t.Errorf("statuses of 400 times %s %s = %v; want %v", method, url, got, want)
					}
				}
			})
			if test.wantCached {
				t.Run("verifiers go on while the server is down", func(t *testing.T) {
					token := through.token(t, "")
					stop()
					time.Sleep(1100 * time.Millisecond) // until the copy is stale
					if _, err := verifyByDiscovery(t.Context(), issuer, token); err != nil {
						t.Errorf("Verify(token) = %v; want no error", err)
					}
				})
			}
		})
	}
}

// load asks for many at once over connections that are kept alive. It returns how many
// answers had each status.
func load(t *testing.T, method, url string) map[string]int {
	t.Helper()
	statuses := map[string]int{}
	for status := range strings.FieldsSeq(string(run(t, "curl", "-sS", "-X", method, "--parallel", "--parallel-max", "8",
		"-o", "/dev/null", "-w", "%{http_code}\n", url+"#[1-400]"))) {
		statuses[status]++
	}
	return statuses
}

func TestTheDefaultHealthCheckOfHAProxyKeepsTheServerUp(t *testing.T) {
	t.Parallel()
	front := freeAddress(t)
	haproxy(t, front, start(t).issuer)
	eventually(t, "HAProxy has checked the server with OPTIONS and got 204", func() bool {
		return bytes.Contains(run(t, "curl", "-sS", "http://"+front+"/haproxy;csv"), []byte(",L7OK,204,"))
	})
}

// haproxy checks the server as it does by default: OPTIONS / HTTP/1.0.
func haproxy(t *testing.T, address, upstream string) {
	background(t, address, "haproxy", "-db", "-f", writeFile(t, "haproxy.cfg", fmt.Sprintf(`
listen tokens
	bind %s
	mode http
	timeout connect 5s
	timeout client 30s
	timeout server 30s
	stats uri /haproxy
	option httpchk
	server origin %s check inter 200ms
`, address, strings.TrimPrefix(upstream, "http://"))))
}

var nginxBlock = regexp.MustCompile("```nginx\n([^`]*proxy_cache_path[^`]*)```")

// nginxRecipe runs what the documentation says, with other addresses and another directory.
func nginxRecipe(t *testing.T, address, upstream string) {
	t.Helper()
	var recipe [][]byte
	for _, page := range []string{"README.md", "../README.md"} {
		if content, err := os.ReadFile(page); err == nil && recipe == nil {
			recipe = nginxBlock.FindSubmatch(content)
		}
	}
	if recipe == nil {
		t.Fatal("no page has a recipe for nginx as a cache")
	}
	nginx(t, address, strings.NewReplacer("127.0.0.1:8081", address, "http://127.0.0.1:8080", upstream,
		"/var/cache/nginx-jwks", t.TempDir()).Replace(string(recipe[1])))
}

// nginx runs with what is in the http block of its configuration.
func nginx(t *testing.T, address, http string) {
	t.Helper()
	dir := t.TempDir()
	background(t, address, "nginx", "-e", "stderr", "-c", writeFile(t, "nginx.conf", fmt.Sprintf(`
daemon off; user root; pid %s/pid; events {}
http { access_log off; proxy_temp_path %[1]s/temporary; %s }`, dir, http)))
}

func varnish(t *testing.T, address, upstream string) {
	background(t, address, "varnishd", "-F", "-j", "none", "-a", address, "-b", strings.TrimPrefix(upstream, "http://"), "-n", t.TempDir(), "-s", "malloc,16m")
}

func TestTheIssuerIsTheHostThatNginxPassesOrThatOfTheFlag(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name       string
		passing    string // a directive
		flags      []string
		wantIssuer string // empty: the address of the server
	}{
		{name: "nginx passes the address of the server by default"},
		{name: "a name that nginx passes", passing: "proxy_set_header Host tokens.example;", wantIssuer: "http://tokens.example"},
		{name: "the issuer of the flag", passing: "proxy_set_header Host other.example;", flags: []string{"-issuer", "http://tokens.example"},
			wantIssuer: "http://tokens.example"},
	} {
		t.Run(test.name, func(t *testing.T) {
			front, origin := freeAddress(t), start(t, test.flags...)
			nginx(t, front, fmt.Sprintf("server { listen %s; location / { proxy_pass %s; %s } }\n", front, origin.issuer, test.passing))
			token := server{auth: "http://" + front + "/auth", client: http.DefaultClient}.token(t, "")
			claims := &jwt.RegisteredClaims{}
			if _, _, err := jwt.NewParser().ParseUnverified(token, claims); err != nil {
				t.Fatal(err)
			}
			if want := cmp.Or(test.wantIssuer, origin.issuer); claims.Issuer != want {
				t.Errorf("iss = %s; want %s", claims.Issuer, want)
			}
		})
	}
}

// freeAddress returns a loopback address that nobody else picks, so that its port stays free
// until a proxy listens there.
func freeAddress(t *testing.T) string {
	t.Helper()
	host := fmt.Sprintf("127.%d.%d.%d", 1+rand.IntN(254), rand.IntN(256), 1+rand.IntN(254))
	listener, err := net.Listen("tcp", host+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

// background runs a program until the test is over. It returns once the program listens.
func background(t *testing.T, address, name string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); cmd.Wait() })
	eventually(t, name+" listens", func() bool {
		connection, err := net.Dial("tcp", address)
		if err == nil {
			connection.Close()
		}
		return err == nil
	})
}
