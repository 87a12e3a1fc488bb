//go:build ignore

// Verify is a verifier of several servers that are one issuer. It takes a token from each
// server ten times a second, and at each of those times asks the JWK Sets of all servers to
// verify all tokens that have not expired. It also asks each server's JWK Set as it was some
// time before the token was issued, because verifiers cache sets. A server that does not
// answer is not asked.
//
//	go run deploy/checks/verify.go [-for 30s] [-cached 10s] URL...
package main

import (
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"slices"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

const period = 100 * time.Millisecond

type keySet map[string]*rsa.PublicKey

type snapshot struct {
	at   time.Time
	keys keySet
}

type issued struct {
	token   string
	server  int
	expires time.Time
	refused bool
}

var client = http.Client{Timeout: time.Second}

func main() {
	lasts := flag.Duration("for", 30*time.Second, "how long to verify")
	cached := flag.Duration("cached", 10*time.Second, "age of the oldest JWK Set that has to know a new token's key")
	flag.Parse()
	urls := flag.Args()
	history := make([][]snapshot, len(urls))
	var live []*issued
	var tokens, verified, refused, silent int
	for end := time.Now().Add(*lasts); time.Now().Before(end); time.Sleep(period) {
		var fresh []*issued
		for i, url := range urls {
			if token, err := newToken(url, i); err == nil {
				fresh = append(fresh, token)
			} else {
				silent++
			}
		}
		live = append(live, fresh...)
		for i, url := range urls {
			keys, err := fetch(url)
			if err != nil {
				silent++
				continue
			}
			now := time.Now()
			old := slices.DeleteFunc(slices.Clone(history[i]), func(s snapshot) bool { return s.at.After(now.Add(-*cached)) })
			history[i] = append(history[i], snapshot{now, keys})
			// A token in its last second is left out, because it expires between two reads of the clock.
			live = slices.DeleteFunc(live, func(t *issued) bool { return time.Until(t.expires) < time.Second })
			check := func(t *issued, keys keySet, which string) {
				verified++
				if err := verify(t.token, keys); err != nil && !t.refused {
					t.refused = true
					refused++
					fmt.Printf("%s: token of %s refused by the JWK Set of %s%s: %v\n", now.Format(time.TimeOnly), urls[t.server], url, which, err)
				}
			}
			for _, t := range live {
				check(t, keys, "")
			}
			if len(old) > 0 {
				for _, t := range fresh {
					check(t, old[len(old)-1].keys, fmt.Sprintf(" of %s before", *cached))
				}
			}
		}
		tokens += len(fresh)
	}
	fmt.Printf("%d verifications, %d requests without an answer\n", verified, silent)
	fmt.Printf("%d tokens verified, %d refused\n", tokens, refused)
	if refused > 0 || tokens == 0 {
		os.Exit(1)
	}
}

func newToken(url string, server int) (*issued, error) {
	var answer struct {
		Token string `json:"token"`
	}
	response, err := client.Post(url+"/auth", "", nil)
	if err := read(response, err, &answer); err != nil {
		return nil, err
	}
	var claims jwt.RegisteredClaims
	if _, _, err := jwt.NewParser().ParseUnverified(answer.Token, &claims); err != nil {
		return nil, err
	}
	return &issued{token: answer.Token, server: server, expires: claims.ExpiresAt.Time}, nil
}

func fetch(url string) (keySet, error) {
	var answer struct {
		Keys []struct{ Kid, N, E string }
	}
	response, err := client.Get(url + "/.well-known/jwks.json")
	if err := read(response, err, &answer); err != nil {
		return nil, err
	}
	number := func(text string) *big.Int {
		digits, _ := base64.RawURLEncoding.DecodeString(text)
		return new(big.Int).SetBytes(digits)
	}
	keys := keySet{}
	for _, k := range answer.Keys {
		keys[k.Kid] = &rsa.PublicKey{N: number(k.N), E: int(number(k.E).Int64())}
	}
	return keys, nil
}

func read(response *http.Response, err error, v any) error {
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		io.Copy(io.Discard, response.Body)
		return fmt.Errorf("%s", response.Status)
	}
	return json.NewDecoder(response.Body).Decode(v)
}

func verify(token string, keys keySet) error {
	_, err := jwt.Parse(token, func(t *jwt.Token) (any, error) {
		kid, _ := t.Header["kid"].(string)
		if k := keys[kid]; k != nil {
			return k, nil
		}
		return nil, fmt.Errorf("unknown kid %s", kid)
	}, jwt.WithValidMethods([]string{"RS256"}))
	return err
}
