package main

import (
	"bufio"
	"crypto"
	cryptorand "crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A blackHole is a ResponseWriter that costs nothing.
type blackHole struct{ header http.Header }

func (b blackHole) Header() http.Header         { return b.header }
func (b blackHole) Write(p []byte) (int, error) { return len(p), nil }
func (b blackHole) WriteHeader(int)             {}

func benchmarkHandler(b *testing.B, h http.Handler, method, target string) {
	r := httptest.NewRequest(method, target, nil)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		w := blackHole{http.Header{}}
		for pb.Next() {
			clear(w.header)
			h.ServeHTTP(w, r)
		}
	})
}

// quiet returns the handler of a server that logs nothing.
func quiet(b *testing.B) http.Handler {
	cfg := testConfig(b)
	keys, err := openKeystore(b.Context(), cfg, log.New(io.Discard, "", 0))
	if err != nil {
		b.Fatal(err)
	}
	return newHandler(cfg, keys, nil, keys.log)
}

func BenchmarkJWKS(b *testing.B) {
	h := quiet(b)
	benchmarkHandler(b, h, "GET", "/.well-known/jwks.json")
}

func BenchmarkBareHandler(b *testing.B) {
	h := quiet(b)
	benchmarkHandler(b, bareHandler(do(h, "GET", "/.well-known/jwks.json", "").Body.Bytes()), "GET", "/.well-known/jwks.json")
}

func BenchmarkAuth(b *testing.B) {
	h := quiet(b)
	benchmarkHandler(b, h, "POST", "/auth")
}

func BenchmarkRawSignature(b *testing.B) {
	sign := rawSignature(b)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			sign()
		}
	})
}

// rawSignature returns a function that does the RSA operation of a token.
func rawSignature(b *testing.B) func() {
	k, err := rsa.GenerateKey(cryptorand.Reader, 2048)
	if err != nil {
		b.Fatal(err)
	}
	digest := sha256.Sum256(nil)
	return func() {
		if _, err := rsa.SignPKCS1v15(nil, k, crypto.SHA256, digest[:]); err != nil {
			panic(err)
		}
	}
}

// bareHandler is the least that a net/http server can do to answer with a set.
func bareHandler(set []byte) http.Handler {
	length, etag := strconv.Itoa(len(set)), fmt.Sprintf(`"%.22x"`, sha256.Sum256(set))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h["Access-Control-Allow-Origin"] = []string{"*"}
		h["Cache-Control"] = []string{"public, max-age=300"}
		h["Content-Length"] = []string{length}
		h["Content-Type"] = []string{"application/json"}
		h["Etag"] = []string{etag}
		w.Write(set)
	})
}

// BenchmarkBareServer serves the bare handler for BenchmarkLoad, which runs it as
// another process.
func BenchmarkBareServer(b *testing.B) {
	file := os.Getenv("JWKS_BARE_SERVER")
	if file == "" {
		b.SkipNow()
	}
	set, err := os.ReadFile(file)
	if err != nil {
		b.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	fmt.Fprintf(os.Stderr, "JWK Set: http://%s/.well-known/jwks.json\n", listener.Addr())
	b.Fatal(newHTTPServer(bareHandler(set), log.Default()).Serve(listener))
}

// BenchmarkLoad measures the server as its users meet it, through sockets and as a
// process of its own. It runs once, whatever b.N, for about a minute and a half, and
// prints what it finds: figures in pairs that were measured in turn.
func BenchmarkLoad(b *testing.B) {
	const (
		rounds = 5
		jwks   = "GET /.well-known/jwks.json HTTP/1.1\r\nHost: x\r\n\r\n"
		auth   = "POST /auth HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
	)
	cores := runtime.NumCPU()
	server := startServer(b, "-keys", b.TempDir())
	set := filepath.Join(b.TempDir(), "set")
	if err := os.WriteFile(set, server.get(b, jwks), 0o600); err != nil {
		b.Fatal(err)
	}
	b.Setenv("JWKS_BARE_SERVER", set)
	bare := startChild(b, exec.Command(os.Args[0], "-test.run=^$", "-test.bench=^BenchmarkBareServer$"))
	bare.listens(b)
	sign := rawSignature(b)

	var sets, bareSets, tokens, raw []float64
	for range rounds {
		sets = append(sets, server.load(b, jwks, 16, time.Second))
		bareSets = append(bareSets, bare.load(b, jwks, 16, time.Second))
		tokens = append(tokens, server.load(b, auth, 16, 2*time.Second))
		raw = append(raw, rate(slices.Repeat([]func(){sign}, cores), 2*time.Second))
	}
	bare.kill()
	fmt.Printf("\n%d cores, %s, %s\n", cores, cpuModel(), runtime.Version())
	line := func(name string, value float64, unit string, more ...string) {
		fmt.Printf("%-48s %8.4g %s%s\n", name, value, unit, strings.Join(more, ""))
	}
	line("JWK Sets", median(sets), "/s")
	line("  a bare handler", median(bareSets), "/s", ratio(sets, bareSets))
	line("tokens", median(tokens), "/s")
	line("  raw signatures on as many cores", median(raw), "/s", ratio(tokens, raw))

	var idle50, idle99, flood50, flood99, alone, read []float64
	for range rounds {
		idle := server.probe(b, jwks, 5*time.Millisecond, 2*time.Second)
		alone = append(alone, server.load(b, auth, 64, 2*time.Second))
		var busy []float64
		var reader sync.WaitGroup
		reader.Go(func() { busy = server.probe(b, jwks, 5*time.Millisecond, 2*time.Second) })
		read = append(read, server.load(b, auth, 64, 2*time.Second))
		reader.Wait()
		idle50, idle99 = append(idle50, quantile(idle, 0.5)), append(idle99, quantile(idle, 0.99))
		flood50, flood99 = append(flood50, quantile(busy, 0.5)), append(flood99, quantile(busy, 0.99))
	}
	line("a JWKS read, idle: p50", median(idle50), "ms")
	line("  during a flood of /auth on 64 connections", median(flood50), "ms", ratio(flood50, idle50))
	line("a JWKS read, idle: p99", median(idle99), "ms")
	line("  during the flood", median(flood99), "ms", ratio(flood99, idle99))
	line("tokens in the flood, alone", median(alone), "/s")
	line("  with the reader", median(read), "/s", ratio(read, alone))

	for done := 0; done < 100_000; {
		done += int(server.load(b, jwks, 16, time.Second))
	}
	busy := server.memory(b)
	line("memory after 100,000 requests", busy, "MiB")
	var idle []net.Conn
	for range 2000 {
		c := server.dial(b)
		c.do(b, jwks)
		idle = append(idle, c)
	}
	line("  2,000 idle connections add", server.memory(b)-busy, "MiB")
	for _, c := range idle {
		c.Close()
	}
	server.kill()

	rotating := startServer(b, "-keys", b.TempDir(), "-key-ttl", "6s", "-token-ttl", "1s", "-publish-ahead", "9s")
	slowest := make([]float64, 2)
	var wait sync.WaitGroup
	for i, request := range []string{auth, jwks} {
		wait.Go(func() {
			time.Sleep(time.Duration(i) * 5 * time.Millisecond)
			slowest[i] = slices.Max(rotating.probe(b, request, 10*time.Millisecond, 15*time.Second))
		})
	}
	wait.Wait()
	line("the slowest of 200 requests/s over 3 rotations", slices.Max(slowest), "ms")
	rotating.kill()

	var empty, filled []float64
	for range 10 {
		first := func(dir string) float64 {
			start := time.Now()
			s := startServer(b, "-keys", dir)
			defer s.kill()
			s.get(b, jwks)
			return float64(time.Since(start)) / 1e6
		}
		dir := b.TempDir()
		empty, filled = append(empty, first(dir)), append(filled, first(dir))
	}
	line("from an empty directory to the first set", median(empty), "ms")
	line("from a filled one", median(filled), "ms")
}

// memory is the resident memory in MiB.
func (s *running) memory(b *testing.B) float64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	kib, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
	if err != nil {
		b.Fatal(err)
	}
	return kib / 1024
}

// A connection is an HTTP/1.1 client that costs little itself.
type connection struct {
	net.Conn
	r *bufio.Reader
}

func (s *running) dial(b *testing.B) *connection {
	c, err := net.Dial("tcp", s.addr())
	if err != nil {
		b.Fatal(err)
	}
	return &connection{c, bufio.NewReaderSize(c, 8<<10)}
}

// do returns the body of the response, which is valid until the next call.
func (c *connection) do(b *testing.B, request string) []byte {
	if _, err := io.WriteString(c, request); err != nil {
		b.Error(err)
		return nil
	}
	length, status := 0, ""
	for {
		line, err := c.r.ReadSlice('\n')
		if err != nil {
			b.Error(err)
			return nil
		}
		if status == "" {
			status = string(line)
		}
		if len(line) <= 2 {
			break
		}
		if value, ok := strings.CutPrefix(string(line), "Content-Length: "); ok {
			length, _ = strconv.Atoi(strings.TrimSpace(value))
		}
	}
	body, err := c.r.Peek(length)
	c.r.Discard(length)
	if err != nil || !strings.Contains(status, " 200 ") {
		b.Errorf("%s%s%v", status, body, err)
	}
	return body
}

func (s *running) get(b *testing.B, request string) []byte {
	c := s.dial(b)
	defer c.Close()
	return c.do(b, request)
}

// load is how many answers a second the server gives to clients that ask again as
// soon as they have one.
func (s *running) load(b *testing.B, request string, clients int, d time.Duration) float64 {
	var work []func()
	for range clients {
		c := s.dial(b)
		defer c.Close()
		work = append(work, func() { c.do(b, request) })
	}
	return rate(work, d)
}

// rate is how often a second the work is done, by a worker each.
func rate(work []func(), d time.Duration) float64 {
	var wait sync.WaitGroup
	var done atomic.Int64
	start := time.Now()
	for _, do := range work {
		wait.Go(func() {
			for time.Since(start) < d {
				do()
				done.Add(1)
			}
		})
	}
	wait.Wait()
	return float64(done.Load()) / time.Since(start).Seconds()
}

// probe asks at regular times and returns how many milliseconds each answer took.
func (s *running) probe(b *testing.B, request string, every, d time.Duration) []float64 {
	c := s.dial(b)
	defer c.Close()
	var took []float64
	for start, i := time.Now(), time.Duration(0); i*every < d; i++ {
		time.Sleep(time.Until(start.Add(i * every)))
		asked := time.Now()
		c.do(b, request)
		took = append(took, float64(time.Since(asked))/1e6)
	}
	return took
}

func quantile(values []float64, q float64) float64 {
	values = slices.Sorted(slices.Values(values))
	return values[int(q*float64(len(values)-1))]
}

func median(values []float64) float64 { return quantile(values, 0.5) }

// ratio is the median of the ratios of values measured in turn.
func ratio(values, yardstick []float64) string {
	var ratios []float64
	for i := range values {
		ratios = append(ratios, values[i]/yardstick[i])
	}
	return fmt.Sprintf("   ratio %.2f", median(ratios))
}

func cpuModel() string {
	info, _ := os.ReadFile("/proc/cpuinfo")
	_, rest, _ := strings.Cut(string(info), "model name\t: ")
	model, _, _ := strings.Cut(rest, "\n")
	return model
}
