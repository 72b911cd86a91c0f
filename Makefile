# `make help` lists the targets; the README says what they are for.

GO        ?= go
PKG       ?= ./...
TESTFLAGS ?=
# One package's tests, privileged ones included, must be done by then.
TIMEOUT   ?= 8m
# Packages tested at the same time: they wait for timers, programs and guests more
# than they compute. The longest begins first.
ATONCE    ?= $(shell expr $$(nproc) + 1)
FIRST     := ./test/e2e
FUZZTIME  ?= 1m
SOAKTIME  ?= 5m
SOAK      ?= sk_lookup,tproxy,relay-aliases
VERSION   ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

# What must also build on Windows and macOS: the binary, which is an agent in listen
# mode and a controller there, and the packages under it. This is the one list of it.
PORTABLE := ./cmd/decoynet ./agent ./config ./controller ./deception ./internal/claim ./internal/ecs ./internal/eve ./internal/outbound ./internal/pki \
	./internal/proxyheader ./internal/pump ./internal/registry ./internal/rpc/... ./internal/spool ./internal/store ./internal/strip ./internal/tunnel

CROSS_ALL      := linux/amd64 linux/arm64
CROSS_PORTABLE := windows/amd64 darwin/arm64

# The same flags for every command below. Building, testing and linting then
# share one build cache; with cgo or -trimpath in some of them only, the whole
# of SQLite would be compiled once more for each.
export CGO_ENABLED := 0
export GOFLAGS     := $(strip $(shell $(GO) env GOFLAGS 2>/dev/null) -trimpath -buildvcs=false)
# Committed BPF objects are made with Debian 12's compiler, whoever makes them.
export BPF2GO_CC   ?= clang-14
# `su` leaves the system directories out; Go is often in neither.
export PATH        := $(PATH):/usr/local/go/bin:/usr/local/sbin:/usr/sbin:/sbin

GOLANGCI := $(GO) tool -modfile=tools/go.mod golangci-lint

.DEFAULT_GOAL := build
.PHONY: build test race demo bench parity fuzz soak vm-scale vet lint format generate generate-check cross clean help \
	deps-go deps-test deps-demo deps-bench deps-generate

build: deps-go ## bin/decoynet, static
	$(GO) build -ldflags '-X main.version=$(VERSION)' -o bin/decoynet ./cmd/decoynet

test: deps-test build ## all tests that this machine can run (as root also the privileged ones); PKG=./relay/... TESTFLAGS=-v
	$(GO) test -p $(ATONCE) -timeout $(TIMEOUT) $(TESTFLAGS) $(if $(filter ./...,$(PKG)),$(FIRST)) $(PKG)

race: deps-test build ## the tests under the race detector (needs a C compiler)
	CGO_ENABLED=1 $(GO) test -race -timeout $(TIMEOUT) $(TESTFLAGS) $(PKG)

demo: deps-demo build ## the whole job on this machine, in network namespaces (root)
	bin/decoynet demo

bench: deps-bench build ## the side-by-side tables; BENCH=relay|... for one; JSON in bench/out
	$(GO) run ./bench $(if $(BENCH),-only $(BENCH))

fuzz: deps-go ## every fuzz target, FUZZTIME (1m) each
	scripts/fuzz $(FUZZTIME) $(PKG)

parity: deps-bench build ## what Suricata detects in each feed of the captures below CORPUS, compared with the originals
	$(GO) run ./bench/parity -corpus '$(CORPUS)' $(PARITYFLAGS)

soak: deps-bench build ## minutes at full speed for each of SOAK (peers too, if named); no connection may fail
	$(GO) run ./bench -only endurance -rounds 1 -duration $(SOAKTIME) -subjects $(SOAK)

vm-scale: deps-test ## 256 VLANs of 256 decoys on one trunk port, in a virtual machine
	DECOYNET_VLANS=256 $(GO) test -timeout 15m -count 1 -v -run '^TestManyVLANs$$' ./test/e2e

vet: deps-go ## go vet over the tree
	$(GO) vet ./...

lint: deps-go ## golangci-lint with .golangci.yml, formatting included
	$(GOLANGCI) run

format: deps-go ## gofumpt over the tree
	$(GOLANGCI) fmt

generate: deps-generate ## regenerate the BPF objects and whatever else go:generate makes
	$(GO) generate ./...

generate-check: deps-generate ## do the committed generated files equal a fresh generation?
	scripts/generate-check

cross: deps-go ## build for every platform that is promised
	@set -e; for p in $(CROSS_ALL); do \
		echo "$$p: everything"; \
		GOOS=$${p%/*} GOARCH=$${p#*/} $(GO) build -o /dev/null ./...; \
	done; \
	for p in $(CROSS_PORTABLE); do \
		echo "$$p: $(PORTABLE)"; \
		GOOS=$${p%/*} GOARCH=$${p#*/} $(GO) build -o /dev/null $(PORTABLE); \
	done

clean: ## remove what was built
	rm -rf bin bench/out .cache

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# DEPS=skip trusts that everything needed is there.
deps-go deps-test deps-demo deps-bench deps-generate: deps-%:
	@$(if $(filter skip,$(DEPS)),true,scripts/deps $*)
