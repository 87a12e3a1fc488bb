package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	answerLimit  = 30 * time.Second // how long a service may take to answer
	serverLimit  = time.Minute      // how long the server may take; generating a key takes a while
	bodyLimit    = 200              // characters of a response body that are quoted
	maxRetryWait = 10 * time.Second // longest Retry-After that is honored
)

// A dialer opens connections, as net.Dialer.DialContext does.
type dialer func(ctx context.Context, network, address string) (net.Conn, error)

// newHTTPClient returns a client that opens a connection for each request: on a kept one,
// http.Transport hides that a connection was lost by sending the request again. It accepts
// any certificate, because test servers have certificates of their own, and uses no proxy.
func newHTTPClient(dial dialer) *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			DialContext: dial, DisableKeepAlives: true, DisableCompression: true,
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// A serverClient sends requests to the jwks-server.
type serverClient struct {
	base string
	http *http.Client
}

// A serverError is an error response of the server.
type serverError struct {
	status      int
	description string
}

func (e *serverError) Error() string { return e.description }

// call sends a request and decodes its JSON response into v. It repeats it while the server
// is busy. The error is a serverError if the server responds with another status than 200.
func (s serverClient) call(ctx context.Context, method, path string, v any) error {
	ctx, cancel := context.WithTimeout(ctx, serverLimit)
	defer cancel()
	for {
		status, body, err := s.send(ctx, method, path)
		switch {
		case err != nil:
			return err
		case status == http.StatusServiceUnavailable:
			sleep(ctx, time.Second)
			continue
		case status != http.StatusOK:
			var response struct {
				Description string `json:"error_description"`
			}
			json.Unmarshal(body, &response)
			return &serverError{status: status, description: response.Description}
		}
		if err := json.Unmarshal(body, v); err != nil {
			return fmt.Errorf("%s %s%s did not respond with the JSON of a jwks-server: %w", method, s.base, path, err)
		}
		return nil
	}
}

func (s serverClient) send(ctx context.Context, method, path string) (status int, body []byte, err error) {
	request, err := http.NewRequestWithContext(ctx, method, s.base+path, nil)
	if err != nil {
		return 0, nil, err
	}
	response, err := s.http.Do(request)
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	body, err = io.ReadAll(io.LimitReader(response.Body, 1<<20))
	return response.StatusCode, body, err
}

// A testToken is a token with the parts of it that the check needs.
type testToken struct {
	token    string
	typ, kid string
	claims   string // JSON
	keyURL   string // in jku or x5u; may be empty
	lifetime time.Duration
}

// token returns a token of POST /auth with a query.
func (s serverClient) token(ctx context.Context, query string) (testToken, error) {
	var response struct {
		Token     string `json:"token"`
		ExpiresIn int    `json:"expires_in"`
	}
	if err := s.call(ctx, "POST", "/auth"+query, &response); err != nil {
		return testToken{}, err
	}
	t := testToken{token: response.Token, lifetime: time.Duration(response.ExpiresIn) * time.Second}
	encoded := strings.Split(t.token, ".")
	if len(encoded) != 3 {
		return t, nil // a bad one
	}
	var header struct{ Typ, Kid, JKU, X5U string }
	text, _ := base64.RawURLEncoding.DecodeString(encoded[0])
	json.Unmarshal(text, &header)
	claims, _ := base64.RawURLEncoding.DecodeString(encoded[1])
	t.typ, t.kid, t.claims, t.keyURL = header.Typ, header.Kid, string(claims), header.JKU+header.X5U
	return t, nil
}

// A catalogueEntry is a bad token of GET /faults, or a JWK Set of GET /faults/sets.
type catalogueEntry struct{ Fault, Refuse, Accept, Why, See string }

func (e catalogueEntry) reason() string {
	if e.See == "" {
		return e.Why
	}
	return e.Why + " (" + e.See + ")"
}

func (s serverClient) catalogue(ctx context.Context, path string) (entries []catalogueEntry, err error) {
	return entries, s.call(ctx, "GET", path, &entries)
}

// readCounts are the numbers of times that the JWK Set and the URLs in bad tokens were read.
type readCounts struct{ JWKS, JKU, X5U int }

func (s serverClient) reads(ctx context.Context) (n readCounts, err error) {
	return n, s.call(ctx, "GET", "/faults/reads", &n)
}

// setFault gives the JWK Set a fault. An empty name makes it good again.
func (s serverClient) setFault(ctx context.Context, name string) error {
	path := "/faults/sets"
	if name != "" {
		path += "?fault=" + url.QueryEscape(name)
	}
	return s.call(ctx, "POST", path, new(struct{}))
}

// cacheControl returns the Cache-Control of the JWK Set. A HEAD request counts as no read.
func (s serverClient) cacheControl(ctx context.Context) string {
	request, err := http.NewRequestWithContext(ctx, "HEAD", s.base+jwkSetPath, nil)
	if err != nil {
		return ""
	}
	response, err := s.http.Do(request)
	if err != nil {
		return ""
	}
	response.Body.Close()
	return response.Header.Get("Cache-Control")
}

const jwkSetPath = "/.well-known/jwks.json"

// A serviceClient sends requests to the service that is checked.
type serviceClient struct {
	url  string
	http *http.Client
}

// An answer is the response of the service to a token, or why there was none.
type answer struct {
	status int
	header http.Header
	body   string // the first characters, unless the token was accepted
	lost   string // why there was no response; otherwise empty
	err    error  // its cause
	gone   bool   // nothing listened
	damage string // what a good token afterwards showed, if it got no answer; otherwise empty
	void   string // why the answer is no verdict; otherwise empty
}

func (a answer) accepted() bool { return a.void == "" && a.status/100 == 2 }
func (a answer) refused() bool {
	return a.void == "" && a.damage == "" && a.lost == "" && (a.status/100 == 3 || a.status/100 == 4)
}
func (a answer) crashed() bool { return a.void == "" && !a.accepted() && !a.refused() }

// withLoss returns a, after which a good token was lost, as a crash.
func (a answer) withLoss(after answer) answer {
	switch {
	case after.gone:
		a.damage = "the token ended the service, nothing listened afterwards"
	case a.lost == "":
		a.damage = "a good token afterwards: " + after.lost
	}
	return a
}

// busy reports whether the service asked to be asked again later.
func (a answer) busy() bool {
	return a.status == http.StatusTooManyRequests || a.status == http.StatusServiceUnavailable
}

// String says what happened. It adds that a status such as 500 is no refusal.
func (a answer) String() string {
	if a.crashed() && a.lost == "" && a.damage == "" {
		return a.brief() + ", which is no refusal"
	}
	return a.brief()
}

func (a answer) brief() string {
	switch {
	case a.void != "":
		return a.void
	case a.damage != "" && a.lost == "":
		return fmt.Sprintf("answered %d: %s", a.status, a.damage)
	case a.damage != "":
		return a.lost + ": " + a.damage
	case a.lost != "":
		return a.lost
	case a.accepted():
		return fmt.Sprintf("accepted with %d", a.status)
	case a.refused():
		return fmt.Sprintf("refused with %d", a.status)
	default:
		return fmt.Sprintf("answered %d", a.status)
	}
}

// withTime is brief, with the time that the answer took if there was one.
func (a answer) withTime(took time.Duration) string {
	if a.lost != "" {
		return a.brief()
	}
	return fmt.Sprintf("%s in %.1f s", a.brief(), took.Seconds())
}

// retryAfter returns how long to wait before the next request.
func (a answer) retryAfter() time.Duration {
	value := a.header.Get("Retry-After")
	wait := time.Second
	if seconds, err := strconv.Atoi(value); err == nil && seconds >= 0 {
		wait = time.Duration(min(seconds, int(maxRetryWait/time.Second))) * time.Second
	} else if date, err := http.ParseTime(value); err == nil {
		wait = time.Until(date)
	}
	return max(0, min(wait, maxRetryWait))
}

// ask sends a request with an Authorization header, or without one if it is empty. It does not
// wait for the end of the body, because a body may never end.
func (s serviceClient) ask(ctx context.Context, authorization string, limit time.Duration) answer {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, "GET", s.url, nil)
	if err != nil {
		return answer{lost: err.Error(), err: err}
	}
	if authorization != "" {
		request.Header.Set("Authorization", authorization)
	}
	response, err := s.http.Do(request)
	if err != nil {
		return noAnswer(err, limit)
	}
	defer response.Body.Close()
	a := answer{status: response.StatusCode, header: response.Header}
	if !a.accepted() {
		time.AfterFunc(time.Second, cancel) // the body may never end
		body, _ := io.ReadAll(io.LimitReader(response.Body, 4*bodyLimit))
		runes := bytes.Runes(body)
		a.body = string(runes[:min(len(runes), bodyLimit)])
	}
	return a
}

func noAnswer(err error, limit time.Duration) answer {
	var dial *net.OpError
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return answer{err: err, lost: fmt.Sprintf("no answer within %s", seconds(limit))}
	case errors.As(err, &dial) && dial.Op == "dial" && !errors.Is(err, context.Canceled):
		return answer{err: err, lost: "nothing listened, so the service has ended", gone: true}
	default:
		return answer{err: err, lost: "the connection was lost"}
	}
}

// seconds returns d in seconds: whole ones, or with one decimal.
func seconds(d time.Duration) string {
	if d%time.Second == 0 {
		return fmt.Sprintf("%d s", d/time.Second)
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

// sleep waits until d is over or ctx is canceled.
func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
