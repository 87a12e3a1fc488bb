package main

import (
	"bufio"
	"cmp"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A blackHole is a ResponseWriter that discards the response.
type blackHole struct{ header http.Header }

func (b blackHole) Header() http.Header         { return b.header }
func (b blackHole) Write(p []byte) (int, error) { return len(p), nil }
func (b blackHole) WriteHeader(int)             {}

// BenchmarkHandler measures without sockets.
func BenchmarkHandler(b *testing.B) {
	s := newTestServer(b)
	handler := func(h http.Handler, method, path string) func() {
		r := httptest.NewRequest(method, path, nil)
		return func() { h.ServeHTTP(blackHole{http.Header{}}, r) }
	}
	for _, test := range []struct {
		name string
		do   func()
	}{
		{"set", handler(s.routes(), "GET", jwksPath)},
		{"bare handler", handler(bareHandler(s.do("GET", jwksPath, "").body), "GET", jwksPath)},
		{"token", handler(s.routes(), "POST", "/auth")},
		{"raw signature", rawSignature},
	} {
		b.Run(test.name, func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					test.do()
				}
			})
		})
	}
}

// rawSignature is the RSA operation of a token.
func rawSignature() {
	digest := sha256.Sum256(nil)
	if _, err := rsa.SignPKCS1v15(nil, readyMade()[0], crypto.SHA256, digest[:]); err != nil {
		panic(err)
	}
}

// bareHandler is the least that a net/http server can do to answer with a set.
func bareHandler(set string) http.Handler {
	header := http.Header{
		"Access-Control-Allow-Origin": {"*"}, "Cache-Control": {"public, max-age=300"}, "Content-Length": {strconv.Itoa(len(set))},
		"Content-Type": {"application/json"}, "Etag": {`"0123456789012345678901"`}, "X-Content-Type-Options": {"nosniff"},
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		maps.Copy(w.Header(), header)
		io.WriteString(w, set)
	})
}

// children are what this binary does as a child of a benchmark, by the value of JWKS_BENCH.
var children = map[string]func(){
	"bare": func() { // serves the bare handler
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			panic(err)
		}
		fmt.Printf("http://%s\n", listener.Addr())
		panic(newHTTPServer(bareHandler(os.Getenv("JWKS_SET")), slog.Default()).Serve(listener))
	},
	"reader": func() {
		var order reading
		json.Unmarshal([]byte(os.Getenv("JWKS_READING")), &order)
		os.Stdout.Write(encode(order.run()))
	},
}

func childCommand(name, env string, before ...string) *exec.Cmd {
	args := append(before, os.Args[0])
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), env, "JWKS_BENCH="+name)
	return cmd
}

// A reading asks at a fixed rate on one connection.
type reading struct {
	Addr, Request string
	Every, For    time.Duration
}

// run returns how many milliseconds each answer took. A request that has to be sent late,
// because the answer before it was late, counts from when it was due.
func (r reading) run() (took samples) {
	c, err := dial(r.Addr)
	for start, i := time.Now(), time.Duration(0); err == nil && i*r.Every < r.For; i++ {
		due := start.Add(i * r.Every)
		if wait := time.Until(due); wait > 0 {
			time.Sleep(wait)
			due = time.Now()
		}
		err = c.do(r.Request, 200)
		took = append(took, float64(time.Since(due))/1e6)
	}
	if err != nil {
		panic(err)
	}
	return took
}

// realTime is the prefix of a command line that gives the command real-time priority; empty if
// that is not possible.
var realTime = sync.OnceValue(func() []string {
	if exec.Command("chrt", "-f", "50", "true").Run() == nil {
		return []string{"chrt", "-f", "50"}
	}
	return nil
})

// read runs a reading in a process of its own, so that a flood that this process sends does
// not delay it.
func (p *process) read(b *testing.B, request string, every, d time.Duration) (took samples) {
	order := encode(reading{Addr: p.addr(), Request: request, Every: every, For: d})
	cmd := childCommand("reader", "JWKS_READING="+string(order), slices.Clone(realTime())...)
	cmd.Stderr = os.Stderr
	output, err := cmd.Output()
	ok(b, err, json.Unmarshal(output, &took))
	return took
}

const (
	readEvery = 2500 * time.Microsecond // 400 reads a second
	rounds    = 4
	round     = 2 * time.Second
	jwks      = "GET " + jwksPath + " HTTP/1.1\r\nHost: localhost\r\n\r\n"
)

func auth(query, body string) string {
	return fmt.Sprintf("POST /auth%s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s", query, len(body), body)
}

// The benchmarks below measure the server as its users meet it, through sockets and as a process
// of its own. Each runs once, whatever b.N, and prints what it finds. Figures that are compared
// were measured in turn.

func BenchmarkRates(b *testing.B) {
	p := startProcess(b, "-keys", b.TempDir())
	bare := launch(b, childCommand("bare", "JWKS_SET="+p.do("GET", jwksPath, "").body)).serving(b)
	var sets, bareSets, tokens, raw, cpu, rawCPU samples
	for range rounds {
		sets = append(sets, p.load(b, jwks, 200, 16, round/2))
		bareSets = append(bareSets, bare.load(b, jwks, 200, 16, round/2))
		cost, n := p.cost(b, auth("", ""), 200, round)
		tokens, cpu = append(tokens, n), append(cpu, cost)
		before := cpuTime(b, os.Getpid())
		n = rate(slices.Repeat([]func(){rawSignature}, runtime.NumCPU()), round)
		raw, rawCPU = append(raw, n), append(rawCPU, (cpuTime(b, os.Getpid())-before)/(n*round.Seconds()))
	}
	fmt.Println()
	line("JWK Sets", sets.median(), "/s")
	line("  of a bare handler", bareSets.median(), "/s, ratio "+sets.over(bareSets))
	line("tokens", tokens.median(), "/s")
	line("  raw signatures on as many cores", raw.median(), "/s, ratio "+tokens.over(raw))
	line("CPU time of the server for a token", cpu.median(), "ms")
	line("  of a raw signature", rawCPU.median(), "ms, ratio "+cpu.over(rawCPU))
}

func BenchmarkReads(b *testing.B) {
	p := startProcess(b, "-keys", b.TempDir())
	var idle, flooded, alone, beside samples
	for range rounds {
		idle = append(idle, p.read(b, jwks, readEvery, round)...)
		alone = append(alone, p.load(b, auth("", ""), 200, 64, round))
		beside = append(beside, p.readInFlood(b, auth("", ""), 200, &flooded))
	}
	fmt.Printf("\nreads of the JWK Set, 400/s on one connection, by a process of real-time priority: %t\n", realTime() != nil)
	latency("idle", idle, nil)
	latency("in a flood of /auth on 64 connections", flooded, idle)
	line("tokens in the flood, without reads", alone.median(), "/s")
	line("  with reads", beside.median(), "/s, ratio "+beside.over(alone))
}

func BenchmarkBodies(b *testing.B) {
	secret := `{"a": {"secret_sha256": "` + strings.Repeat("ab", 32) + `"}}`
	for _, server := range []struct {
		name   string
		args   []string
		status int
	}{
		{"an open server", nil, 200},
		{"a server with -clients, without credentials", []string{"-clients", putFile(b, secret)}, 401},
	} {
		p := startProcess(b, withKey(b, server.args...)...)
		var dearest body
		most := 0.0
		fmt.Printf("\nbodies of 16 KiB, %s\n", server.name)
		for _, body := range bodies() {
			cost, _ := p.cost(b, auth("", body.text), server.status, round/2)
			line("CPU time of "+body.name, cost, "ms")
			if cost > most {
				dearest, most = body, cost
			}
		}
		var empty, dear samples
		for range rounds {
			p.readInFlood(b, auth("", ""), server.status, &empty)
			p.readInFlood(b, auth("", dearest.text), server.status, &dear)
		}
		latency("reads in a flood of empty bodies", empty, nil)
		latency("  of "+dearest.name, dear, empty)
		line("peak memory", p.memory(b, "VmHWM:"), "MiB")
	}
}

func BenchmarkFaults(b *testing.B) {
	p := startProcess(b, withKey(b, "-audience", "bench")...)
	worst, least := "", 1e9
	fmt.Println("\nfaults: tokens/s, of those of good tokens")
	for _, f := range faults {
		query := "?fault=" + f.Name
		p.token(b, query, "") // makes the untrusted key
		good := p.load(b, auth("", ""), 200, 16, round/5)
		ratio := p.load(b, auth(query, ""), 200, 16, round/5) / good
		fmt.Printf("  %s %.2f", f.Name, ratio)
		if ratio < least {
			worst, least = query, ratio
		}
	}
	fmt.Println()
	var good, bad samples
	for range rounds {
		p.readInFlood(b, auth("", ""), 200, &good)
		p.readInFlood(b, auth(worst, ""), 200, &bad)
	}
	latency("reads in a flood of good tokens", good, nil)
	latency("  of "+worst, bad, good)
}

func BenchmarkMemory(b *testing.B) {
	p := startProcess(b, "-keys", b.TempDir())
	for done := 0.0; done < 100_000; {
		done += p.load(b, jwks, 200, 16, time.Second)
	}
	busy := p.memory(b, "VmRSS:")
	for range 2000 {
		c, err := dial(p.addr())
		ok(b, err)
		ok(b, c.do(jwks, 200))
		defer c.Close()
	}
	fmt.Println()
	line("memory after 100,000 requests", busy, "MiB")
	line("  2,000 idle connections add", p.memory(b, "VmRSS:")-busy, "MiB")
}

func BenchmarkRotation(b *testing.B) {
	p := startProcess(b, "-keys", b.TempDir(), "-key-ttl", "6s", "-token-ttl", "1s", "-publish-ahead", "9s")
	var other sync.WaitGroup
	var took [2]samples
	other.Go(func() { took[0] = p.read(b, auth("", ""), 10*time.Millisecond, 15*time.Second) })
	took[1] = p.read(b, jwks, 10*time.Millisecond, 15*time.Second)
	other.Wait()
	fmt.Println()
	latency("200 requests/s over 3 rotations", slices.Concat(took[:]...), nil)
}

func BenchmarkStart(b *testing.B) {
	first := func(dir string) float64 {
		start := time.Now()
		p := startProcess(b, "-keys", dir)
		defer p.kill()
		p.set(b)
		return float64(time.Since(start)) / 1e6
	}
	var empty, filled samples
	for range 2 * rounds {
		dir := b.TempDir()
		empty, filled = append(empty, first(dir)), append(filled, first(dir))
	}
	fmt.Println()
	line("from an empty directory to the first set", empty.median(), "ms")
	line("from a filled one", filled.median(), "ms")
}

func line(name string, value float64, unit string) { fmt.Printf("%-50s %8.4g %s\n", name, value, unit) }

// latency prints the figures of reads, and their ratios to those of other reads.
func latency(name string, took, others samples) {
	fmt.Printf("%-50s", name)
	for i, at := range []float64{0.5, 0.99, 1} {
		fmt.Printf("  %s %.3g ms", []string{"p50", "p99", "max"}[i], took.quantile(at))
		if others != nil {
			fmt.Printf(" (%.2f times)", took.quantile(at)/others.quantile(at))
		}
	}
	fmt.Println()
}

// A body is a token request of up to 16 KiB that may be expensive.
type body struct{ name, text string }

func bodies() (list []body) {
	fill := func(name, before, part, after string) {
		n := (maxBody - len(before) - len(after)) / len(part)
		list = append(list, body{name, before + strings.Repeat(part, n)[:n*len(part)-1] + after})
	}
	fill("a wide array of numbers", `{"a":[`, "1,", "]}")
	fill("a wide array of long numbers", `{"a":[`, "1.7976931348623157e308,", "]}")
	fill("a wide array of objects", `{"a":[`, "{},", "]}")
	fill("escapes", `{"a":"`, `\u00e4`, `a"}`)
	fill("a string that JSON has to escape", `{"a":"`, `<`, `"}`)
	fill("a form of blanks to decode", "sub=", "%3c", "a")
	fill("a form of many values", "aud=a", "&aud=a", "a")
	var members strings.Builder
	for i := range maxClaims {
		fmt.Fprintf(&members, `"%0115d":"<<",`, i)
	}
	deep := func(name string, n int, before, after string) {
		list = append(list, body{name, `{"a":` + strings.Repeat(before, n) + "0" + strings.Repeat(after, n) + "}"})
	}
	deep("arrays of depth 8,000", 8000, "[", "]")
	deep("objects of depth 2,700", 2700, `{"":`, "}")
	return append(list, body{"many members", "{" + strings.TrimSuffix(members.String(), ",") + "}"})
}

// readInFlood adds to took how long reads take in a flood on 64 connections. It returns the rate
// of the flood.
func (p *process) readInFlood(b *testing.B, request string, status int, took *samples) (rate float64) {
	var reader sync.WaitGroup
	reader.Go(func() { *took = append(*took, p.read(b, jwks, readEvery, round)...) })
	rate = p.load(b, request, status, 64, round+round/4) // the reader takes a moment to start
	reader.Wait()
	return rate
}

// cost returns the CPU time in milliseconds that the server takes for each answer, and the rate
// of answers.
func (p *process) cost(b *testing.B, request string, status int, d time.Duration) (cost, rate float64) {
	before := cpuTime(b, p.cmd.Process.Pid)
	rate = p.load(b, request, status, 16, d)
	return (cpuTime(b, p.cmd.Process.Pid) - before) / (rate * d.Seconds()), rate
}

// cpuTime is the CPU time in milliseconds that a process has taken.
func cpuTime(b *testing.B, pid int) float64 {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	ok(b, err)
	_, after, _ := strings.Cut(string(stat), ") ")
	var user, system float64
	_, err = fmt.Sscan(strings.Join(strings.Fields(after)[11:13], " "), &user, &system)
	ok(b, err)
	return (user + system) * 10 // Linux counts hundredths of a second
}

// A connection is an HTTP/1.1 client that costs little itself.
type connection struct {
	net.Conn
	r *bufio.Reader
}

func dial(addr string) (*connection, error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	return &connection{c, bufio.NewReaderSize(c, 32<<10)}, nil
}

// do sends a request and reads the answer, which has to have a status.
func (c *connection) do(request string, status int) error {
	_, err := io.WriteString(c, request)
	first, readErr := c.r.ReadString('\n')
	if err = cmp.Or(err, readErr); err != nil {
		return err
	}
	length, chunked := 0, false
	for line := []byte(first); len(line) > 2; {
		if line, err = c.r.ReadSlice('\n'); err != nil {
			return err
		}
		if value, ok := strings.CutPrefix(string(line), "Content-Length: "); ok {
			length, _ = strconv.Atoi(strings.TrimSpace(value))
		}
		chunked = chunked || strings.HasPrefix(string(line), "Transfer-Encoding: chunked")
	}
	if chunked {
		length = len("\r\n") // after the last chunk
		_, err = io.Copy(io.Discard, httputil.NewChunkedReader(c.r))
	}
	if _, discardErr := c.r.Discard(length); cmp.Or(err, discardErr) != nil {
		return cmp.Or(err, discardErr)
	}
	if !strings.HasPrefix(first, fmt.Sprintf("HTTP/1.1 %d ", status)) {
		return fmt.Errorf("answer %q; want %d", first, status)
	}
	return nil
}

// load returns how many answers a second the server gives to clients that send their next request
// as soon as they have an answer.
func (p *process) load(b *testing.B, request string, status, clients int, d time.Duration) float64 {
	var work []func()
	for range clients {
		c, err := dial(p.addr())
		ok(b, err)
		defer c.Close()
		work = append(work, func() {
			if err := c.do(request, status); err != nil {
				b.Error(err)
				runtime.Goexit()
			}
		})
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

// samples are measurements of one quantity.
type samples []float64

func (s samples) quantile(q float64) float64 {
	sorted := slices.Sorted(slices.Values(s))
	return sorted[int(q*float64(len(sorted)-1))]
}

func (s samples) median() float64 { return s.quantile(0.5) }

// over is the median of the ratios of figures that were measured in turn.
func (s samples) over(yardstick samples) string {
	var ratios samples
	for i := range s {
		ratios = append(ratios, s[i]/yardstick[i])
	}
	return fmt.Sprintf("%.2f", ratios.median())
}

// BenchmarkSlowReaders measures tokens beside clients that do not read their responses.
func BenchmarkSlowReaders(b *testing.B) {
	p := startProcess(b, withKey(b, tlsFlags(b)...)...)
	ask := func() (answered samples) {
		for range 200 {
			start := time.Now()
			if w := p.do("POST", "/auth", ""); w.status == 200 {
				answered = append(answered, float64(time.Since(start))/1e6)
			}
		}
		return answered
	}
	alone := ask()
	var blocked sync.WaitGroup
	for range 8 {
		blocked.Go(func() { pipelineWithoutReading(b, p) })
	}
	openStreamsWithoutWindow(b, p)
	blocked.Wait()
	beside := ask()
	fmt.Println()
	line("tokens of 200 requests beside 9 slow readers", float64(len(beside)), "")
	latency("tokens without slow readers", alone, nil)
	latency("  beside them", beside, alone)
}

// BenchmarkOverload measures floods of more connections than the queue has places.
func BenchmarkOverload(b *testing.B) {
	for _, clients := range []int{64, 2500, 8000} {
		p := startProcess(b, withKey(b)...)
		var reads samples
		var tokens, refused atomic.Int64
		var reader sync.WaitGroup
		reader.Go(func() { reads = p.read(b, jwks, 4*readEvery, 4*round) })
		work := make([]func(), 0, clients)
		for range clients {
			c, err := dial(p.addr())
			ok(b, err)
			defer c.Close()
			work = append(work, func() {
				if c.do(auth("", ""), 200) == nil {
					tokens.Add(1)
				} else {
					refused.Add(1)
				}
			})
		}
		rate(work, 4*round)
		reader.Wait()
		seconds := (4 * round).Seconds()
		fmt.Printf("\na flood of /auth on %d connections\n", clients)
		line("tokens", float64(tokens.Load())/seconds, "/s")
		line("refusals", float64(refused.Load())/seconds, "/s")
		latency("reads of the JWK Set", reads, nil)
		line("peak memory", p.memory(b, "VmHWM:"), "MiB")
	}
}
