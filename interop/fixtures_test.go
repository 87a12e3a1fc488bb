package interop

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// runFixture runs the tests in a copy of deploy/fixtures with a service under test. It returns
// what they print, and fails if a server is left running.
func runFixture(t *testing.T, service, dir string, command ...string) (output string, err error) {
	t.Helper()
	fixtures, err := filepath.Abs("../deploy/fixtures")
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	// The wrapper keeps the process id of the issuer.
	wrapper := fmt.Sprintf("#!/bin/sh\necho $$ >>%s/pids\nexec %s \"$@\"\n", root, binary)
	for _, err := range []error{
		os.CopyFS(filepath.Join(root, dir), os.DirFS(filepath.Join(fixtures, dir))),
		os.Symlink(filepath.Join(fixtures, "node_modules"), filepath.Join(root, "node_modules")),
		os.WriteFile(filepath.Join(root, "start.mjs"), readDeploy(t, "fixtures/start.mjs"), 0o600),
		os.WriteFile(filepath.Join(root, "service.mjs"), []byte(service), 0o600),
		os.WriteFile(filepath.Join(root, "server"), []byte(wrapper), 0o700),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Dir = filepath.Join(root, dir)
	cmd.Env = append(os.Environ(), "JWKS_SERVER="+filepath.Join(root, "server"))
	cmd.WaitDelay = time.Second // a server that is left running keeps the output open
	text, err := cmd.CombinedOutput()
	pids, readErr := os.ReadFile(filepath.Join(root, "pids"))
	if readErr != nil {
		t.Fatalf("no server was started: %v; make interop installs what is needed\n%s", readErr, text)
	}
	for line := range strings.Lines(string(pids)) {
		var pid int
		fmt.Sscan(line, &pid)
		if syscall.Kill(pid, 0) == nil {
			t.Errorf("server %d still runs after its tests", pid)
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	return string(text), err
}

func TestFixtures(t *testing.T) {
	t.Parallel()
	var musts []string
	for _, f := range start(t).faults(t) {
		if f.Refuse == "must" {
			musts = append(musts, f.Name)
		}
	}
	good := string(readDeploy(t, "fixtures/service.mjs"))
	for _, runner := range []struct {
		name, dir string
		command   []string
		result    string // of a bad token in what is printed
	}{
		{name: "pytest", dir: "pytest", command: []string{"/usr/bin/python3", "-m", "pytest", "-v", "-p", "no:cacheprovider"}, result: "[%s] "},
		{name: "node:test", dir: "node", command: []string{"node", "--test"}, result: "the fault %s is refused"},
		{name: "Jest", dir: "jest", command: []string{"../node_modules/.bin/jest", "--verbose"}, result: "the fault %s is refused"},
		{name: "Go", dir: "go", command: []string{"go", "test", "-v", "-count=1", "."}, result: ": TestService/%s "},
	} {
		t.Run(runner.name+" passes and tries every bad token that must be refused", func(t *testing.T) {
			output, err := runFixture(t, good, runner.dir, runner.command...)
			if err != nil {
				t.Errorf("%v; want all tests to pass\n%s", err, output)
			}
			for _, name := range musts {
				if !strings.Contains(output, fmt.Sprintf(runner.result, name)) {
					t.Errorf("the tests do not try %s", name)
				}
			}
		})
		t.Run(runner.name+" fails for a service that accepts every token", func(t *testing.T) {
			const careless = `import { createServer } from 'node:http'
				const server = createServer((request, response) => response.end())
				server.listen(0, 'localhost', () => console.log('http://localhost:' + server.address().port))`
			if output, err := runFixture(t, careless, runner.dir, runner.command...); err == nil {
				t.Errorf("the tests pass; want them to fail\n%s", output)
			}
		})
		t.Run(runner.name+" fails for a service that does not start", func(t *testing.T) {
			output, err := runFixture(t, "process.exit(3)", runner.dir, runner.command...)
			if err == nil || !strings.Contains(output, "node ended before it served") {
				t.Errorf("%v; want the tests to fail because node ended before it served\n%s", err, output)
			}
		})
	}
}
