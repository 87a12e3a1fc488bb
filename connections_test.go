package main

import (
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// A fakeConn is a connection that can only be closed.
type fakeConn struct {
	net.Conn
	name   string
	closed *[]string // names
}

func (c fakeConn) Close() error {
	*c.closed = append(*c.closed, c.name)
	return nil
}

func TestTheConnectionThatHasBeenIdleLongestIsClosedForANewOne(t *testing.T) {
	const opened, used, idle, ended = http.StateNew, http.StateActive, http.StateIdle, http.StateClosed
	type event struct {
		name  string
		state http.ConnState
	}
	for _, test := range []struct {
		name   string
		events []event
		want   []string // closed connections
	}{
		{name: "none at the limit", events: []event{{"a", opened}, {"b", opened}, {"c", opened}}},
		{
			name:   "the first of new ones",
			events: []event{{"a", opened}, {"b", opened}, {"c", opened}, {"d", opened}, {"e", opened}},
			want:   []string{"a", "b"},
		},
		{
			name:   "not one in use",
			events: []event{{"a", opened}, {"a", used}, {"b", opened}, {"c", opened}, {"d", opened}},
			want:   []string{"b"},
		},
		{
			name: "idle since its last request",
			events: []event{
				{"a", opened}, {"b", opened}, {"c", opened}, {"a", used}, {"b", used}, {"b", idle}, {"a", idle},
				{"d", opened}, {"e", opened}, {"f", opened},
			},
			want: []string{"c", "b", "a"},
		},
		{
			name:   "the new one if all others are in use",
			events: []event{{"a", opened}, {"b", opened}, {"c", opened}, {"a", used}, {"b", used}, {"c", used}, {"d", opened}},
			want:   []string{"d"},
		},
		{
			name:   "none after others have ended",
			events: []event{{"a", opened}, {"b", opened}, {"b", used}, {"c", opened}, {"a", ended}, {"b", ended}, {"d", opened}, {"e", opened}},
		},
		{
			name:   "whatever becomes of one that was closed",
			events: []event{{"a", opened}, {"b", opened}, {"c", opened}, {"d", opened}, {"a", used}, {"a", idle}, {"a", ended}},
			want:   []string{"a"},
		},
	} {
		var closed []string
		conns := map[string]net.Conn{}
		limit := newConnectionLimit(3, newLogger(t.Output(), false, slog.LevelInfo))
		for _, e := range test.events {
			if conns[e.name] == nil {
				conns[e.name] = &fakeConn{name: e.name, closed: &closed}
			}
			limit.track(conns[e.name], e.state)
		}
		equal(t, test.name, closed, test.want)
	}
}

func TestAReachedConnectionLimitIsLoggedOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lockedBuffer
		limit := newConnectionLimit(1, newLogger(&log, false, slog.LevelInfo))
		for range 122 {
			limit.track(&fakeConn{closed: new([]string)}, http.StateNew)
			time.Sleep(time.Second)
		}
		counts := submatches(log.String(), `level=WARN msg="connection limit reached.*" limit=1 count=(\d+)\n`)
		equal(t, "counts", counts, []string{"1", "60", "60"})
	})
}

func TestClosingAConnectionDoesNotWaitForItsClient(t *testing.T) {
	testTLS() // outside of the bubble
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe() // without a buffer, so that a write waits for a reader
		server, client := tls.Server(near, testTLS().TLS), tls.Client(far, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12})
		go client.Handshake()
		ok(t, server.Handshake())
		limit := newConnectionLimit(1, newLogger(t.Output(), false, slog.LevelInfo))
		limit.track(server, http.StateNew)
		start := time.Now()
		limit.track(&fakeConn{}, http.StateNew)
		equal(t, "time until the connection is closed", time.Since(start), 0)
		_, err := near.Write(nil)
		equal(t, "error of a write", err, io.ErrClosedPipe)
		far.Close()
	})
}

func TestAHostNameIsListenedOnAtAllItsAddressesOnOnePort(t *testing.T) {
	for _, test := range []struct {
		addr string
		want []string // addresses, of those that this machine has
	}{
		{addr: "localhost:0", want: []string{"127.0.0.1", "::1"}},
		{addr: "LOCALHOST:", want: []string{"127.0.0.1", "::1"}},
		{addr: "127.0.0.1:0", want: []string{"127.0.0.1"}},
		{addr: "[::1]:0", want: []string{"::1"}},
	} {
		want := slices.DeleteFunc(test.want, func(address string) bool { return !hasAddress(address) })
		listeners, err := listen(t.Context(), net.ListenConfig{}, test.addr)
		if len(want) == 0 {
			wantError(t, test.addr, err, "listen tcp")
			continue
		}
		ok(t, err)
		var got []string
		port := listeners[0].Addr().(*net.TCPAddr).Port
		for _, l := range listeners {
			addr := l.Addr().(*net.TCPAddr)
			got = append(got, addr.IP.String())
			equal(t, test.addr+": port", addr.Port, port)
		}
		equal(t, test.addr+": addresses", got, want)
		closeAll(listeners)
	}
}

func TestAnAddressThatTheMachineDoesNotHaveIsNoErrorBesideOneThatItHas(t *testing.T) {
	const elsewhere = "192.0.2.1" // RFC 5737
	listeners, err := listenAll(t.Context(), net.ListenConfig{}, []string{elsewhere, "127.0.0.1"}, 0)
	ok(t, err)
	equal(t, "listeners", len(listeners), 1)
	closeAll(listeners)
	_, err = listenAll(t.Context(), net.ListenConfig{}, []string{elsewhere}, 0)
	wantError(t, "listening elsewhere only", err, "listen tcp 192.0.2.1:0: bind: ")
}

func TestAPortThatIsBusyAtOneAddressIsAnErrorAndLeavesNothingOpen(t *testing.T) {
	busy := listenAtIPv6Loopback(t)
	port := busy.Addr().(*net.TCPAddr).Port
	_, err := listen(t.Context(), net.ListenConfig{}, fmt.Sprintf("localhost:%d", port))
	wantError(t, "listening", err, fmt.Sprintf("listen tcp [::1]:%d: bind: address already in use", port))
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	ok(t, err)
	l.Close()
}

func TestAFreePortIsOneThatIsFreeAtAllAddresses(t *testing.T) {
	listenAtIPv6Loopback(t)
	var taken net.Listener
	config := net.ListenConfig{Control: func(network, address string, _ syscall.RawConn) (err error) {
		if network == "tcp6" && taken == nil {
			taken, err = net.Listen(network, address) // just before the server does
		}
		return err
	}}
	listeners, err := listen(t.Context(), config, "localhost:0")
	ok(t, err)
	defer closeAll(append(listeners, taken))
	equal(t, "listeners", len(listeners), 2)
	if port := listeners[0].Addr().(*net.TCPAddr).Port; port == taken.Addr().(*net.TCPAddr).Port {
		t.Errorf("port %d is taken at ::1", port)
	}
}

// listenAtIPv6Loopback listens at ::1 until the test is over. It skips the test on a
// machine without ::1.
func listenAtIPv6Loopback(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}
