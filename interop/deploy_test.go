package interop

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	security "k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
	"sigs.k8s.io/yaml"
)

// manifests are the documents of deploy/kubernetes.yaml.
type manifests struct {
	claim   corev1.PersistentVolumeClaim
	service corev1.Service
	set     appsv1.StatefulSet
	budget  policyv1.PodDisruptionBudget
}

func readManifests(t *testing.T) (m manifests) {
	t.Helper()
	kinds := map[string]any{
		"PersistentVolumeClaim v1": &m.claim, "Service v1": &m.service,
		"StatefulSet apps/v1": &m.set, "PodDisruptionBudget policy/v1": &m.budget,
	}
	for document := range bytes.SplitSeq(readDeploy(t, "kubernetes.yaml"), []byte("\n---\n")) {
		var kind struct{ APIVersion, Kind string }
		if err := yaml.Unmarshal(document, &kind); err != nil {
			t.Fatal(err)
		}
		name := kind.Kind + " " + kind.APIVersion
		if kinds[name] == nil {
			t.Fatalf("kubernetes.yaml has %q; want one each of PersistentVolumeClaim, Service, StatefulSet and PodDisruptionBudget", name)
		}
		if err := yaml.UnmarshalStrict(document, kinds[name]); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		delete(kinds, name)
	}
	if len(kinds) > 0 {
		t.Fatalf("kubernetes.yaml lacks %v", kinds)
	}
	return m
}

func readDeploy(t *testing.T, name string) []byte {
	t.Helper()
	content, err := os.ReadFile("../deploy/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// acceptFlags fails the test if the server does not accept flags. It refuses them with exit
// status 2, and a certificate that does not exist with 1, before it listens.
func acceptFlags(t *testing.T, flags []string) {
	t.Helper()
	output, err := exec.Command(binary, append(flags, "-tls-cert", "no-file", "-tls-key", "no-file")...).CombinedOutput()
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("jwks-server %q: %v, %s; want its flags to be accepted", flags, err, output)
	}
}

// imageFlags returns the flags in the image, to which those of a container are appended.
func imageFlags(t *testing.T) (command []string) {
	t.Helper()
	entrypoint := regexp.MustCompile(`(?m)^ENTRYPOINT (.*)$`).FindSubmatch(readDeploy(t, "Dockerfile"))
	if entrypoint == nil {
		t.Fatal("the Dockerfile has no ENTRYPOINT")
	}
	if err := json.Unmarshal(entrypoint[1], &command); err != nil {
		t.Fatal(err)
	}
	return command[1:]
}

func TestKubernetes(t *testing.T) {
	t.Parallel()
	m := readManifests(t)
	pod := m.set.Spec.Template
	container := pod.Spec.Containers[0]

	t.Run("the pod passes the restricted Pod Security Standard", func(t *testing.T) {
		evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
		if err != nil {
			t.Fatal(err)
		}
		restricted := security.LevelVersion{Level: security.LevelRestricted, Version: security.LatestVersion()}
		got := policy.AggregateCheckResults(evaluator.EvaluatePod(restricted, &pod.ObjectMeta, &pod.Spec))
		if !got.Allowed {
			t.Error(got.ForbiddenDetail())
		}
		if c := container.SecurityContext; c == nil || c.ReadOnlyRootFilesystem == nil || !*c.ReadOnlyRootFilesystem {
			t.Error("the root file system can be written; want it to be read-only")
		}
	})
	t.Run("the server accepts the flags", func(t *testing.T) { acceptFlags(t, append(imageFlags(t), container.Args...)) })
	t.Run("no user or group is pinned, so that a platform may assign them, and that of the image is not root", func(t *testing.T) {
		c := pod.Spec.SecurityContext
		if c.RunAsUser != nil || c.RunAsGroup != nil || c.FSGroup != nil {
			t.Errorf("runAsUser = %v, runAsGroup = %v, fsGroup = %v; want none", c.RunAsUser, c.RunAsGroup, c.FSGroup)
		}
		// Kubernetes cannot see that a user given by name is not root.
		if user := `(?m)^USER [1-9]\d*:[1-9]\d*$`; !regexp.MustCompile(user).Match(readDeploy(t, "Dockerfile")) {
			t.Errorf("the Dockerfile does not match %s", user)
		}
	})
	t.Run("the probes ask what the server answers", func(t *testing.T) {
		s := start(t)
		for name, probe := range map[string]*corev1.Probe{"liveness": container.LivenessProbe, "readiness": container.ReadinessProbe} {
			response, err := http.Get(s.issuer + probe.HTTPGet.Path)
			if err != nil {
				t.Fatal(err)
			}
			response.Body.Close()
			if response.StatusCode != http.StatusOK {
				t.Errorf("%s: GET %s = %s; want 200", name, probe.HTTPGet.Path, response.Status)
			}
		}
	})
	t.Run("names agree with what they name", func(t *testing.T) {
		port := container.Ports[0].Name
		claim := pod.Spec.Volumes[0].PersistentVolumeClaim
		for _, tt := range []struct{ name, got, want string }{
			{"serviceName", m.set.Spec.ServiceName, m.service.Name},
			{"the service's target port", m.service.Spec.Ports[0].TargetPort.StrVal, port},
			{"the liveness probe's port", container.LivenessProbe.HTTPGet.Port.StrVal, port},
			{"the readiness probe's port", container.ReadinessProbe.HTTPGet.Port.StrVal, port},
			{"the claim of the volume", claim.ClaimName, m.claim.Name},
			{"the service's selector", m.service.Spec.Selector["app"], pod.Labels["app"]},
			{"the set's selector", m.set.Spec.Selector.MatchLabels["app"], pod.Labels["app"]},
			{"the budget's selector", m.budget.Spec.Selector.MatchLabels["app"], pod.Labels["app"]},
		} {
			if tt.got != tt.want || tt.want == "" {
				t.Errorf("%s = %q; want %q", tt.name, tt.got, tt.want)
			}
		}
		for i, mount := range container.VolumeMounts {
			if volume := pod.Spec.Volumes[i].Name; mount.Name != volume {
				t.Errorf("mount %d is of %q; want %q", i, mount.Name, volume)
			}
		}
	})
	t.Run("keys are below the mount point, so that a missing mount stops the start", func(t *testing.T) {
		if want := "-keys=" + container.VolumeMounts[0].MountPath + "/"; !strings.Contains(strings.Join(container.Args, " "), want) {
			t.Errorf("args = %q; want %s... among them", container.Args, want)
		}
	})
}

func TestCompose(t *testing.T) {
	t.Parallel()
	file := types.ConfigFile{Filename: "compose.yaml", Content: readDeploy(t, "compose.yaml")}
	project, err := loader.LoadWithContext(t.Context(), types.ConfigDetails{WorkingDir: t.TempDir(), ConfigFiles: []types.ConfigFile{file}},
		func(o *loader.Options) { o.SetProjectName("deploy", true) }) // checks it against the schema, too
	if err != nil {
		t.Fatal(err)
	}
	t.Run("the service under test waits until the server is healthy", func(t *testing.T) {
		if got := project.Services["my-service"].DependsOn["jwks"].Condition; got != types.ServiceConditionHealthy {
			t.Errorf("condition = %q; want %q", got, types.ServiceConditionHealthy)
		}
	})
	t.Run("the health check is that of the image", func(t *testing.T) {
		h := project.Services["jwks"].HealthCheck
		if h == nil {
			t.Fatal("jwks has no health check; want one, because images in the OCI format have none")
		}
		command, err := json.Marshal(h.Test[1:])
		if err != nil {
			t.Fatal(err)
		}
		got := fmt.Sprintf("HEALTHCHECK --interval=%s --timeout=%s --start-period=%s %s %s\n", h.Interval, h.Timeout, h.StartPeriod, h.Test[0],
			strings.ReplaceAll(string(command), ",", ", "))
		if image := string(readDeploy(t, "Dockerfile")); !strings.HasSuffix(image, "\n"+got) {
			t.Errorf("compose.yaml says %s; want that of the Dockerfile: %s", got, image)
		}
	})
	t.Run("the server accepts the flags", func(t *testing.T) { acceptFlags(t, append(imageFlags(t), project.Services["jwks"].Command...)) })
}

func TestSystemdUnit(t *testing.T) {
	t.Parallel()
	unit := strings.ReplaceAll(string(readDeploy(t, "jwks-server.service")), "\\\n", "")
	line := regexp.MustCompile(`(?m)^ExecStart=\S+ (.*)$`).FindStringSubmatch(unit)
	if line == nil {
		t.Fatal("the unit has no ExecStart")
	}
	acceptFlags(t, strings.Fields(line[1]))
}

func TestThePageNamesLinesThatTheServerLogs(t *testing.T) {
	t.Parallel()
	sources, err := filepath.Glob("../*.go")
	if err != nil {
		t.Fatal(err)
	}
	var code []byte
	for _, name := range sources {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		code = append(code, text...)
	}
	messages := regexp.MustCompile(`msg="([^"…]+)`).FindAllSubmatch(readDeploy(t, "README.md"), -1)
	if len(messages) == 0 {
		t.Fatal("deploy/README.md names no line of the log")
	}
	for _, message := range messages {
		if !bytes.Contains(code, append([]byte{'"'}, message[1]...)) {
			t.Errorf("no line of the log begins with %q, which deploy/README.md names", message[1])
		}
	}
}
