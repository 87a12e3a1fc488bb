package main

import (
	"crypto/rsa"
	"encoding/base64"
	"math/big"
	"slices"
	"testing"
	"time"
)

func namesOf(keys []key) (names []string) {
	for _, k := range keys {
		names = append(names, k.name())
	}
	return names
}

func TestKey(t *testing.T) {
	t.Run("a kid is the thumbprint of RFC 7638", func(t *testing.T) {
		const text = "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3ok" +
			"njhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu" +
			"6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8a" +
			"wapJzKnqDKgw"
		n := must(base64.RawURLEncoding.DecodeString(text))
		got := thumbprint(&rsa.PublicKey{N: new(big.Int).SetBytes(n), E: 65537})
		equal(t, "thumbprint of section 3.1", got, "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs")
	})
	t.Run("n and e have no leading zero octet", func(t *testing.T) {
		for _, test := range []struct {
			name       string
			bits, e    int
			wantOctets int
			wantE      string
		}{
			{name: "the top bit is set, so DER has a zero octet", bits: 2048, e: 65537, wantOctets: 256, wantE: "AQAB"},
			{name: "n is shorter than 2048 bits", bits: 2040, e: 1<<31 - 1, wantOctets: 255, wantE: "f____w"},
		} {
			modulus := new(big.Int).SetBit(big.NewInt(1), test.bits-1, 1)
			n, e := parameters(&rsa.PublicKey{N: modulus, E: test.e})
			octets := must(base64.RawURLEncoding.Strict().DecodeString(n))
			equal(t, test.name+": e", e, test.wantE)
			equal(t, test.name+": n", new(big.Int).SetBytes(octets), modulus)
			equal(t, test.name+": octets of n", len(octets), test.wantOctets)
		}
	})
	t.Run("an expiry is rounded up to a whole second, as its name says", func(t *testing.T) {
		for _, test := range []struct {
			name          string
			expires, want time.Time
		}{
			{name: "whole", expires: epoch, want: epoch},
			{name: "a nanosecond more", expires: epoch.Add(1), want: epoch.Add(time.Second)},
			{name: "a nanosecond less", expires: epoch.Add(-1), want: epoch},
			{name: "elsewhere", expires: epoch.In(time.FixedZone("", 3600)), want: epoch},
		} {
			k := newKey(readyMade()[0], test.expires)
			stored, _, _ := parseName(k.name())
			equal(t, test.name+": expires, by key and by name", []time.Time{k.expires, stored}, []time.Time{test.want, test.want})
		}
	})
	t.Run("names sort by expiry and then by kid", func(t *testing.T) {
		greater, lesser := newKey(readyMade()[0], epoch), newKey(readyMade()[1], epoch)
		later := newKey(readyMade()[1], epoch.AddDate(0, 9, 0))
		names := namesOf([]key{lesser, greater, later})
		equal(t, "names", names, slices.Sorted(slices.Values(names)))
	})
	t.Run("a JWK has six members and no other", func(t *testing.T) {
		member := func(k key) string {
			n := base64.RawURLEncoding.EncodeToString(k.private.N.Bytes())
			return `{"kty":"RSA","use":"sig","alg":"RS256","kid":"` + k.kid + `","n":"` + n + `","e":"AQAB"}`
		}
		a, b := newKey(readyMade()[0], epoch), newKey(readyMade()[1], epoch)
		equal(t, "jwkSet of two", string(jwkSet([]key{a, b}).body), `{"keys":[`+member(a)+`,`+member(b)+"]}\n")
		equal(t, "jwkSet of none", string(jwkSet(nil).body), `{"keys":[]}`+"\n")
	})
}
