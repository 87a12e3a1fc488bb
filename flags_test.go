package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func TestInvalidFlagsExitWithStatus2AndLeaveNothingBehind(t *testing.T) {
	type row struct {
		args []string
		want string
	}
	rows := []row{
		{args: []string{"-token-ttl", "999ms"}, want: "-token-ttl 999ms is too short: use 1s or more"},
		{args: []string{"-token-ttl", "-1s"}, want: "-token-ttl -1s is too short: use 1s or more"},
		{args: []string{"-key-ttl", "19m59s"}, want: "-key-ttl 19m59s is too short: use at least twice the -token-ttl, which is 10m0s"},
		{args: []string{"-key-ttl", "-1h"}, want: "-key-ttl -1h0m0s is too short: use at least twice the -token-ttl, which is 10m0s"},
		{args: []string{"-token-ttl", "31m"}, want: "-key-ttl 1h0m0s is too short: use at least twice the -token-ttl, which is 31m0s"},
		{
			args: []string{"-token-ttl", "2000000h", "-key-ttl", "2000000h"},
			want: "-key-ttl 2000000h0m0s is too short: use at least twice the -token-ttl, which is 2000000h0m0s",
		},
		{args: []string{"-key-ttl", "87600h0m1s"}, want: "-key-ttl 87600h0m1s is too long: use 87600h0m0s, ten years, or less"},
		{args: []string{"-addr", ""}, want: "-addr is empty, which would listen on all addresses: use host:port, or :port for all addresses"},
		{args: []string{"-publish-ahead", "999ms"}, want: "-publish-ahead 999ms is too short: use 1s or more"},
		{args: []string{"-publish-ahead", "87600h0m1s"}, want: "-publish-ahead 87600h0m1s is too long: use 87600h0m0s, ten years, or less"},
		{
			args: []string{"-publish-ahead", "77h40m"},
			want: "-publish-ahead 77h40m0s is too long: the JWK Set would have 106 keys of 2048 bits in 50032 bytes, " +
				"and some verifiers read only 50000; raise -key-ttl, or lower -publish-ahead",
		},
		{args: []string{"-key-bits", "1024"}, want: "-key-bits 1024 is not supported: use 2048, 3072 or 4096"},
		{args: []string{"-key-bits", "2049"}, want: "-key-bits 2049 is not supported: use 2048, 3072 or 4096"},
		{
			args: []string{"-key-bits", "4096", "-token-ttl", "1s", "-key-ttl", "6499ms"},
			want: "-key-ttl 6.499s is too short for -key-bits 4096: a key would sign for 4.999s, and generating one takes up to 5s",
		},
		{args: []string{"-check", "http://a", "-healthcheck"}, want: "-check and -healthcheck exclude each other: give one of them"},
		{
			args: []string{"-check", "http://a", "-clients", "a"},
			want: "-check needs bad tokens, which a server with -clients does not issue: leave out -clients",
		},
		{args: []string{"-check-wait", "0s"}, want: "-check-wait 0s is too short: use a positive duration"},
		{args: []string{"-clients="}, want: `invalid value "" for flag -clients: a file name is required`},
		{args: []string{"-tls-cert=", "-tls-key="}, want: `invalid value "" for flag -tls-cert: a file name is required`},
		{args: []string{"-tls-cert", "a.pem", "-tls-key="}, want: `invalid value "" for flag -tls-key: a file name is required`},
		{args: []string{"-tls-cert", "a.pem"}, want: "-tls-cert and -tls-key need each other: give both or neither"},
		{args: []string{"-tls-key", "a.pem"}, want: "-tls-cert and -tls-key need each other: give both or neither"},
		{
			args: []string{"-claims", "{}", "-clients", "a"},
			want: "-claims has no effect with -clients: register the claims of each client in the clients file",
		},
		{
			args: []string{"-claims", ""},
			want: `invalid value "" for flag -claims: it has to be one JSON object: unexpected end of JSON input at byte 0`,
		},
		{args: []string{"-claims", "[]"}, want: `invalid value "[]" for flag -claims: it has to be one JSON object: it is not an object`},
		{
			args: []string{"-claims", `{"a":{"b":1,"b":2}}`},
			want: `invalid value "{\"a\":{\"b\":1,\"b\":2}}" for flag -claims: it has to be one JSON object: duplicate member b`,
		},
		{
			args: []string{"-claims", `{"exp":1}`},
			want: `invalid value "{\"exp\":1}" for flag -claims: exp cannot be the same in all tokens: set their lifetime with -token-ttl`,
		},
		{args: []string{"-issuer", "https://a.test/\xff"}, want: "-issuer and -audience have to be UTF-8, because they are in tokens"},
		{args: []string{"-audience", "J\xfcrgen"}, want: "-issuer and -audience have to be UTF-8, because they are in tokens"},
		{args: []string{"-nonsense"}, want: "flag provided but not defined: -nonsense"},
		{args: []string{"-key-ttl", "soon"}, want: `invalid value "soon" for flag -key-ttl: parse error`},
		{args: []string{"-key-bits", "many"}, want: `invalid value "many" for flag -key-bits: parse error`},
		{args: []string{"-v", "stray"}, want: `"stray" is not a flag`},
		{args: []string{"-issuer", "a", "-issuer", "a"}, want: `invalid value "a" for flag -issuer: the flag is given twice`},
		{args: []string{"-clients", "a", "-clients", "b"}, want: `invalid value "b" for flag -clients: the flag is given twice`},
		{args: []string{"-v", "-v=false"}, want: `invalid boolean value "false" for -v: the flag is given twice`},
	}
	for _, service := range []string{"", "localhost:3000/hello", "http:///hello", "http://a:b@localhost/hello"} {
		const want = "invalid value %q for flag -check: use the http or https URL, without a user, of a resource that needs a token"
		rows = append(rows, row{args: []string{"-check", service}, want: fmt.Sprintf(want, service)})
	}
	for _, issuer := range []string{
		"https://a.test?q", "https://a.test?", "https://a.test#f", "https://a.test#", "https://user@a.test",
		"ftp://a.test", "a.test", "https:a.test", "https://", "https://:80", "https://a.test/%zz",
	} {
		const want = "-issuer %q is not an issuer: use an http or https URL without user, query and fragment"
		rows = append(rows, row{args: []string{"-issuer", issuer}, want: fmt.Sprintf(want, issuer)})
	}
	for _, issuer := range []string{
		"https://a.test//", "https://a.test//a", "https://a.test/a//b", "https://a.test/a/./b", "https://a.test/../a", "https://a.test/a/..",
		"https://a.test/%2e%2E/a", "https://a.test/a%5fb", "https://a.test/%41", "https://a.test/%7e", `https://a.test/a\b`,
		"https://a.test/.well-known/oauth%2Dauthorization-server",
	} {
		const want = "-issuer %q has a path that clients would change: " +
			"leave out ., .., empty segments, backslashes, and escapes of letters, digits and -._~"
		rows = append(rows, row{args: []string{"-issuer", issuer}, want: fmt.Sprintf(want, issuer)})
	}
	for _, typ := range []string{"", "application/at+jwt", "a b", "é", "+jwt", "1"} {
		const want = "-typ %q is not a typ: use JWT, or a media type without application/, such as at+jwt"
		rows = append(rows, row{args: []string{"-typ", typ}, want: fmt.Sprintf(want, typ)})
	}
	canceled, cancel := context.WithCancel(t.Context())
	cancel() // a server that starts nevertheless stops at once
	for _, test := range rows {
		t.Run(strings.Join(test.args, " "), func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "keys")
			code, stdout, stderr := runHere(canceled, append([]string{"-keys", dir}, test.args...)...)
			equal(t, "exit status", code, 2)
			equal(t, "stdout", stdout, "")
			equal(t, "stderr", stderr, "jwks-server: "+test.want+"; -h lists the flags\n")
			wantMissing(t, dir)
		})
	}
}

func TestFlagsAtTheirLimitsAreValid(t *testing.T) {
	for _, args := range [][]string{
		{},
		{"-token-ttl", "1s"},
		{"-token-ttl", "1s", "-key-ttl", "2s", "-publish-ahead", "1s"},
		{"-key-ttl", "20m"},
		{"-key-ttl", "87600h"},
		{"-key-ttl", "87600h", "-publish-ahead", "87600h"},
		{"-publish-ahead", "77h39m59s"},
		{"-key-bits", "3072"},
		{"-key-bits", "4096", "-token-ttl", "1s", "-key-ttl", "6500ms", "-publish-ahead", "1s"},
		{"-tls-cert", "a.pem", "-tls-key", "b.pem"},
		{"-key-ttl", "10s", "-token-ttl", "2s", "-publish-ahead", "20s"},
		{"-typ", "at+jwt", "-claims", `{"a":[null,{}],"":null}`},
	} {
		_, err := parseFlags(args, io.Discard)
		wantError(t, strings.Join(args, " "), err, "")
	}
	for _, issuer := range []string{
		"http://a.test", "https://a.test:8443/tenant/a", "http://[::1]:80", "https://a.test/", "https://a.test/a/",
		"https://a.test/%2F%5B%5D%60%7B%7f%C3%a9%40%20",
	} {
		_, err := parseFlags([]string{"-issuer", issuer}, io.Discard)
		wantError(t, "-issuer "+issuer, err, "")
	}
}

func TestHelpListsEachFlagWithItsDefault(t *testing.T) {
	var stderr strings.Builder
	_, err := parseFlags([]string{"-v", "-h"}, &stderr)
	equal(t, "error", err, flag.ErrHelp)
	for _, want := range []string{
		`-addr host:port`, `-audience name`, `-check URL`, `-check-wait duration`, `-clients file`,
		`-healthcheck`, `-issuer URL`, `-key-bits bits`, `-key-ttl duration`,
		`-keys directory`, `-log-json`, `-publish-ahead duration`, `-tls-cert file`, `-tls-key file`, `-token-ttl duration`, `-v`,
	} {
		if !regexp.MustCompile(`(?m)^  ` + want + `\b`).MatchString(stderr.String()) {
			t.Errorf("the help does not list %s:\n%s", want, &stderr)
		}
	}
	for _, want := range []string{`(default "localhost:8080")`, "(default 10m0s)", "(default 2048)"} {
		if !strings.Contains(stderr.String(), want) {
			t.Errorf("the help does not have %s:\n%s", want, &stderr)
		}
	}
}

func TestLogJSONIsFoundBesideInvalidFlags(t *testing.T) {
	for _, test := range []struct {
		args []string
		want bool
	}{
		{args: nil, want: false},
		{args: []string{"-log-json"}, want: true},
		{args: []string{"-nonsense", "--log-json"}, want: true},
		{args: []string{"-log-json=1"}, want: true},
		{args: []string{"-log-json=false"}, want: false},
		{args: []string{"-log-json=perhaps"}, want: true},
		{args: []string{"-v", "log-json"}, want: false},
		{args: []string{"-log-jsons"}, want: false},
	} {
		equal(t, strings.Join(test.args, " "), logsJSON(test.args), test.want)
	}
}
