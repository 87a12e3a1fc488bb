package main

import (
	"container/list"
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// listen listens on addr, a host and a port. A host name is listened on at all its
// addresses on one port, because clients differ in which of them they try.
//
// An address that this machine does not have is an error only if it has none of them.
func listen(ctx context.Context, config net.ListenConfig, addr string) ([]net.Listener, error) {
	host, service, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	port, err := net.DefaultResolver.LookupPort(ctx, "tcp", service)
	if err != nil {
		return nil, err
	}
	addresses, err := lookup(ctx, host)
	if err != nil {
		return nil, err
	}
	for attempts := 10; ; attempts-- {
		listeners, err := listenAll(ctx, config, addresses, port)
		if err == nil || port > 0 || attempts == 1 { // a free port of one address may be in use at another
			return listeners, err
		}
	}
}

// lookup returns the addresses of a host. localhost is both loopback addresses, although
// many a hosts file names one of them only.
func lookup(ctx context.Context, host string) ([]string, error) {
	if _, err := netip.ParseAddr(host); err == nil || host == "" {
		return []string{host}, nil
	}
	if strings.EqualFold(host, "localhost") {
		return []string{"127.0.0.1", "::1"}, nil
	}
	addresses, err := net.DefaultResolver.LookupHost(ctx, host)
	slices.Sort(addresses)
	return slices.Compact(addresses), err
}

// listenAll listens on those addresses that this machine has.
func listenAll(ctx context.Context, config net.ListenConfig, addresses []string, port int) (listeners []net.Listener, err error) {
	for _, address := range addresses {
		l, listenErr := config.Listen(ctx, "tcp", net.JoinHostPort(address, strconv.Itoa(port)))
		switch {
		case listenErr == nil:
			listeners = append(listeners, l)
			port = l.Addr().(*net.TCPAddr).Port
		case hasAddress(address):
			closeAll(listeners)
			return nil, listenErr
		default:
			err = listenErr
		}
	}
	if len(listeners) == 0 {
		return nil, err
	}
	return listeners, nil
}

// hasAddress reports whether this machine can listen on address at all.
func hasAddress(address string) bool {
	l, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	if err == nil {
		l.Close()
	}
	return err == nil
}

func closeAll(listeners []net.Listener) {
	for _, l := range listeners {
		l.Close()
	}
}

// reservedFiles are file descriptors for everything but connections and the pipes of
// limiters, so that connections never prevent keys from being stored.
const reservedFiles = 100

// maxConnections returns how many connections leave enough file descriptors for the rest.
func maxConnections() int {
	turns := runtime.GOMAXPROCS(0) + 1 // one is for making keys
	return max(maxOpenFiles()-reservedFiles-2*turns, 1)
}

// A connectionLimit limits the number of connections. At the limit, each new connection
// closes the one that has been idle longest, so that one client cannot keep the others
// out with idle connections.
type connectionLimit struct {
	max     int
	log     *slog.Logger
	reached problem

	mu    sync.Mutex                 // guards the following fields
	conns map[net.Conn]*list.Element // open connections, with their elements in idle, or nil while in use
	idle  list.List                  // of net.Conn: new connections and those between two requests; the first has been idle longest
}

func newConnectionLimit(limit int, log *slog.Logger) *connectionLimit {
	return &connectionLimit{max: limit, log: log, conns: map[net.Conn]*list.Element{}}
}

// track is the ConnState hook of an http.Server.
func (l *connectionLimit) track(c net.Conn, state http.ConnState) {
	surplus := l.update(c, state)
	if surplus == nil {
		return
	}
	if n := l.reached.add(); n > 0 {
		l.log.Warn("connection limit reached; each new connection closes the one that has been idle longest", "limit", l.max, "count", n)
	}
	if secure, ok := surplus.(*tls.Conn); ok {
		surplus = secure.NetConn() // closing the TLS connection would write to it, and wait
	}
	surplus.Close()
}

// update records the state of c. It returns the connection to close, or nil.
func (l *connectionLimit) update(c net.Conn, state http.ConnState) net.Conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	element, open := l.conns[c]
	if !open && state != http.StateNew {
		return nil // a new connection closed it
	}
	if element != nil {
		l.idle.Remove(element)
	}
	switch state {
	case http.StateNew, http.StateIdle:
		l.conns[c] = l.idle.PushBack(c)
	case http.StateActive:
		l.conns[c] = nil
	default:
		delete(l.conns, c)
	}
	if len(l.conns) <= l.max {
		return nil
	}
	surplus := l.idle.Remove(l.idle.Front()).(net.Conn)
	delete(l.conns, surplus)
	return surplus
}
