package main

import (
	"cmp"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// The lanes of the diagram. Those of keys show when the key is in the set, and the answers to its tokens.
const setLane, readLane, knownLane, newLane, unknownLane = 0, 1, 2, 3, 4

// A recording is what happened in a run of the check, which prints its rows to it.
type recording struct {
	start, rowStart time.Time
	rows            map[string][2]time.Time // start and end, by name

	mu     sync.Mutex // guards the fields below
	shapes []*shape
	bars   [5]*shape      // the last one of each lane
	lanes  map[string]int // of keys, by kid
}

// A shape is a bar, or a mark if it has no length. Its class is its style; without one it is not drawn.
type shape struct {
	lane     int
	class    string
	from, to time.Time
}

// Write notes where rows begin and end. It is called with each line.
func (r *recording) Write(line []byte) (int, error) {
	if m := rowLine.FindStringSubmatch(strings.TrimSpace(string(line))); m != nil {
		now := time.Now()
		r.rows[m[2]], r.rowStart = [2]time.Time{r.rowStart, now}, now
	}
	return len(line), nil
}

// observe returns h, which takes some time, so that no two events are simultaneous.
func (r *recording) observe(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		time.Sleep(5 * time.Millisecond)
		recorder := &statusRecorder{ResponseWriter: w, status: 200}
		h.ServeHTTP(recorder, request)
		r.note(request, recorder.status)
	})
}

// note records a request to the issuer or to the service.
func (r *recording) note(request *http.Request, status int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	add := func(lane int, class string, length time.Duration) *shape {
		s := &shape{lane: lane, class: class, from: now, to: now.Add(length)}
		r.shapes = append(r.shapes, s)
		return s
	}
	begin := func(lane int, class string) {
		if r.bars[lane].class != class {
			r.bars[lane].to = now
			r.bars[lane] = add(lane, class, time.Hour)
		}
	}
	inSet, read, answer := "good", "failed", "refused"
	if status == 200 {
		read, answer = "read", "accepted"
	}
	fault, kid := request.FormValue("fault"), request.FormValue("key")
	_, encoded, _ := strings.Cut(request.Header.Get("Authorization"), " ")
	token, _, err := jwt.NewParser().ParseUnverified(encoded, jwt.MapClaims{})
	switch {
	case request.URL.Path == jwksPath:
		add(readLane, read, 0)
	case request.Method == "POST" && request.URL.Path == "/faults/sets":
		if f, _ := findSetFault(fault); f.respond != nil {
			inSet = ""
		}
		begin(setLane, cmp.Or(fault, "good"))
		begin(knownLane, inSet)
		begin(newLane, "") // the check makes one afterwards
	case kid == "new":
		begin(newLane, "good")
	case kid != "":
		r.lanes[kid] = newLane
	case err == nil && !wrongSignature(token, encoded):
		add(cmp.Or(r.lanes[fmt.Sprint(token.Header["kid"])], unknownLane), answer, 0)
	}
}

// wrongSignature reports whether another key signed a token than the known one, which it names.
func wrongSignature(token *jwt.Token, encoded string) bool {
	known := &readyMade()[0].PublicKey
	input := encoded[:strings.LastIndexByte(encoded, '.')]
	return token.Header["kid"] == thumbprint(known) && jwt.SigningMethodRS256.Verify(input, token.Signature, known) != nil
}

const checkSVG = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 740 230" role="img" aria-label="A service accepts ` +
	`the tokens of a new key after it has read the JWK Set, of a known key after a failed read, and of a key that was removed.">
<style>
text { font: 13px system-ui, sans-serif; fill: #1f2328 } line { stroke: #8b949e; stroke-dasharray: 2 4 }
.good { fill: #9ec5fe } .odd { fill: #ffda6a } .error { fill: #f1aeb5 }
#accepted, #read { fill: #0a58ca } #failed { fill: #b02a37 } #refused { stroke: #b02a37; stroke-width: 2 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .good { fill: #1f4b8f } .odd { fill: #664d03 } .error { fill: #842029 }
#accepted, #read { fill: #9ec5fe } #failed { fill: #ff8a94 } #refused { stroke: #ff8a94 } }
</style>
<defs><circle id="accepted" r="3.5"/><path id="refused" d="M-3.5-3.5l7 7m0-7l-7 7"/>
<g id="read"><line y2="98"/><path d="M-6-5h12l-6 11z"/></g><g id="failed"><line y2="98"/><path d="M-6-5h12l-6 11z"/></g></defs>
<text x="4" y="47">JWK Set</text><text x="4" y="75">reads</text>
<text x="4" y="103">known key</text><text x="4" y="131">new key</text><text x="4" y="159">unknown key</text>
%s<rect class="good" x="96" y="206" width="16" height="16"/><text x="120" y="219">in the JWK Set</text>
<use href="#accepted" x="250" y="214"/><text x="262" y="219">token accepted</text>
<use href="#refused" x="390" y="214"/><text x="402" y="219">token refused</text>
</svg>
`

// draw returns some rows of the check, one after the other, as an SVG.
func (r *recording) draw() string {
	var b strings.Builder
	text := func(x float64, y int, anchor, s string) {
		fmt.Fprintf(&b, "<text x=\"%.1f\" y=\"%d\" text-anchor=\"%s\">%s</text>\n", x, y, anchor, s)
	}
	left := 96.0
	for i, part := range [][3]string{{"a new key", "good", "new-key"}, {"an odd set", "sets/odd", "sets/odd"},
		{"a failed read", "sets/error", "sets/error"}, {"a removed key", "removed-key", "removed-key"}} {
		from, to := r.rows[part[1]][0], r.rows[part[2]][1]
		x := func(at time.Time) float64 { return left + 11*min(max(0, at.Sub(from)), to.Sub(from)).Seconds() }
		if i > 0 {
			text(left-14, 187, "middle", "⋯")
		}
		text((left+x(to))/2, 18, "middle", part[0])
		text(left, 187, "start", fmt.Sprintf("%.0f s", from.Sub(r.start).Seconds()))
		text(x(to), 187, "end", fmt.Sprintf("%.0f s", to.Sub(r.start).Seconds()))
		for _, s := range r.shapes {
			width, y := x(s.to)-x(s.from), 34+28*s.lane
			switch {
			case s.from == s.to && s.from.After(from) && !s.from.After(to):
				fmt.Fprintf(&b, "<use href=\"#%s\" x=\"%.1f\" y=\"%d\"/>\n", s.class, x(s.from), y+8)
			case s.class != "" && width > 2:
				fmt.Fprintf(&b, "<rect class=\"%s\" x=\"%.1f\" y=\"%d\" width=\"%.1f\" height=\"16\"/>\n", s.class, x(s.from), y, width)
				if s.lane == setLane {
					text(x(s.from)+width/2, y+13, "middle", s.class)
				}
			}
		}
		left = x(to) + 28
	}
	return fmt.Sprintf(checkSVG, b.String())
}

func TestDiagramShowsARunOfTheCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCheckTest(t, fewFaults)
		service := c.service()
		service.limit, service.refill = 1, 10*time.Second
		r := &recording{
			start: time.Now(), rows: map[string][2]time.Time{}, bars: [5]*shape{{}, {}, {}, {}, {}},
			lanes: map[string]int{thumbprint(&readyMade()[0].PublicKey): knownLane},
		}
		r.note(httptest.NewRequest("POST", "/faults/sets", nil), 200)
		c.serve(t, "issuer.test:80", r.observe(c.server.routes()))
		c.serve(t, "service.test:80", r.observe(service))
		ok(t, checkService(c.ctx, c.config, serverClient{base: "http://issuer.test", http: newHTTPClient(c.dial)}, true, r))
		wantDrawing(t, "interop/check-life.svg", r.draw())
	})
}
