# Short names for what .ci/run and people type.
.PHONY: run test race lint cross fuzz interop interop-slow bench image checks

run:
	go run .

test:
	go test ./...

# Without the tests of what runs one step after another: a check, and the catalogue of tokens.
race:
	go test -race -skip '^TestCheck|^TestEachFault' ./...

lint:
	test -z "$$(gofmt -l . | tee /dev/stderr)"
	go vet ./...
	go mod tidy -diff

# Vets what cannot run here: builds for other systems.
SYSTEMS = windows/amd64 darwin/arm64 linux/arm64 linux/386
cross:
	for system in $(SYSTEMS); do \
		CGO_ENABLED=0 GOOS=$${system%/*} GOARCH=$${system#*/} go vet . || exit 1; \
	done

# A few seconds for each target; FUZZTIME=10m for more.
FUZZTIME ?= 5s
fuzz:
	for target in $$(go test -list '^Fuzz' . | grep ^Fuzz); do \
		go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) . || exit 1; \
	done

interop: interop/node/node_modules interop/oauth/node_modules deploy/fixtures/node_modules
	cd interop && go vet ./... && go test -count=1 -parallel 20 ./...
	sed -n '/^<!-- seen/,/^<!-- end/p' interop/README.md

# Services that wait 10 s and more before they read the JWK Set again. Commit what it writes.
interop-slow: interop/node/node_modules
	cd interop && go test -count=1 -timeout 2h -parallel 32 -run 'TestServices$$' . -slow -update
	cd interop && go test -count=1 -run 'TestThePage|TestEachService' . -update

%/node_modules: %/package-lock.json
	cd $* && npm ci --silent
	touch $@

bench:
	go test -run '^$$' -bench . .

# DOCKER may be podman or buildah, whose own format has no HEALTHCHECK.
DOCKER ?= docker
IMAGE ?= jwks-server
image: export BUILDAH_FORMAT = docker
image:
	rm -rf deploy/image
	mkdir -p deploy/image/volumes/keys
	chmod 770 deploy/image/volumes/keys
	CGO_ENABLED=0 GOOS=linux go build -trimpath -ldflags '-s -w' -o deploy/image/jwks-server .
	chmod 755 deploy/image/jwks-server
	$(DOCKER) build -t $(IMAGE) -f deploy/Dockerfile deploy/image

# What needs root, Debian, and namespaces or emulators of its own.
CHECKS = hang hosts image qemu systemd testcontainers wine
checks: $(CHECKS:%=deploy/checks/%)
	for check in $^; do echo "$$check"; $$check || exit 1; done
