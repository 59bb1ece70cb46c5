# make help lists the targets. Go, git and make are all that must be there before: each target
# brings what else it needs (Debian packages through apt, as root; Go tools through Go).
SHELL := /bin/sh
export PATH := $(PATH):/usr/local/go/bin
export CGO_ENABLED := 0

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
PREFIX ?= /usr/local
SYSCONFDIR ?= /etc
UNITDIR ?= $(PREFIX)/lib/systemd/system
FUZZTIME ?= 10s
BENCH ?= .
BENCHTIME ?= 0.5s
GOLANGCI_LINT := .cache/bin/golangci-lint-v2.15.0

# For generate and lint, for the virtual machines, and to read back what is exported.
PACKAGES := clang-19 clang-format-19 llvm-19 libbpf-dev \
	qemu-system-x86 qemu-system-common busybox-static kmod e2fsprogs mount xz-utils debian-archive-keyring python3 tshark curl

.PHONY: help build run demo check test lint format bench fuzz generate deps install deb clean
.DEFAULT_GOAL := help

help: ## print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build bin/pavise, a static binary
	go build -trimpath -buildvcs=false -ldflags '-s -w -X main.version=$(VERSION)' -o bin/ ./cmd/...

run: build ## run the agent with the shipped policies; DEMO=1: with a demonstration (root)
	$(if $(DEMO),sh policies/demo/run.sh,bin/pavise run --policy policies --events text)

demo: ## in a second terminal, do what the demonstration's policies watch for
	sh policies/demo/act.sh

check: ## the fast loop: gofmt, vet, unit tests; nothing that needs root or a kernel
	@files=$$(gofmt -l .); [ -z "$$files" ] || { echo "not formatted (make format):" $$files >&2; exit 1; }
	go vet ./...
	go test -short ./...

test: deps ## everything: unit tests, kernel tests here and in virtual machines (root)
	@VERSION=$(VERSION) sh internal/test.sh

lint: deps $(GOLANGCI_LINT) ## golangci-lint and clang-format
	$(GOLANGCI_LINT) run
	clang-format-19 --dry-run --Werror bpf/*.[ch]

$(GOLANGCI_LINT):
	GOBIN=$(CURDIR)/.cache/bin go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(patsubst golangci-lint-%,%,$(notdir $@))
	mv .cache/bin/golangci-lint $@

format: deps ## gofmt and clang-format, in place
	gofmt -w .
	clang-format-19 -i bpf/*.[ch]

# A benchmark gives, beside a number, its budget (docs: DESIGN 8) as another of the unit budget-...: the pairs are repeated at the end.
bench: ## the benchmarks, and their budgets; BENCH=regexp chooses; as root, with those of the kernel
	@go test -p 1 -run '^$$' -bench '$(BENCH)' -benchmem -benchtime $(BENCHTIME) ./... | tee .bench.tmp; \
	awk '/^Benchmark/ {for (i = 3; i < NF; i += 2) v[$$(i+1)] = $$i; for (u in v) {w = "budget-" u; if (w in v) \
		printf "%-44s %12.6g %-16s budget %g%s\n", $$1, v[u], u, v[w], (v[u] > v[w] ? "  OVER" : "")}; delete v}' .bench.tmp | sort; \
	! grep -q '^FAIL' .bench.tmp; ret=$$?; rm -f .bench.tmp; exit $$ret

fuzz: ## each fuzz target for FUZZTIME (10s)
	@grep -rHoE --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*' . | while IFS=: read -r file name; do \
		name=$${name#func }; echo "$$name in $$(dirname $$file)"; \
		go test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) $$(dirname $$file) || exit 1; done

generate: deps ## compile the kernel programs and make the Go files that hold them
	go generate ./...

deps: ## install the Debian packages that generate, lint and test need (root)
	@command -v dpkg-query >/dev/null || { echo "deps: this is not Debian; install the likes of: $(PACKAGES)" >&2; exit 1; }; \
	missing=; for p in $(PACKAGES); do \
		[ "$$(dpkg-query -W -f '$${db:Status-Status}' $$p 2>/dev/null)" = installed ] || missing="$$missing $$p"; done; \
	[ -n "$$missing" ] || exit 0; \
	[ "$$(id -u)" = 0 ] || { echo "deps: installing needs root:$$missing" >&2; exit 1; }; \
	echo "deps: installing$$missing"; export DEBIAN_FRONTEND=noninteractive; \
	apt-get -q update </dev/null && apt-get -q -y install --no-install-recommends $$missing </dev/null

# Where the unit says that the program is.
install: build ## install the program, its manual, completions, systemd unit and starter policies (PREFIX, DESTDIR)
	install -d $(addprefix $(DESTDIR),$(PREFIX)/bin $(PREFIX)/share/man/man1 $(PREFIX)/share/bash-completion/completions $(PREFIX)/share/zsh/vendor-completions \
		$(PREFIX)/share/fish/vendor_completions.d $(UNITDIR) $(SYSCONFDIR)/pavise/policies)
	install -m 755 bin/* $(DESTDIR)$(PREFIX)/bin/
	bin/pavise man $(DESTDIR)$(PREFIX)/share/man/man1
	bin/pavise completion bash >$(DESTDIR)$(PREFIX)/share/bash-completion/completions/pavise
	bin/pavise completion zsh >$(DESTDIR)$(PREFIX)/share/zsh/vendor-completions/_pavise
	bin/pavise completion fish >$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/pavise.fish
	sed 's|/usr/bin/|$(PREFIX)/bin/|' packaging/pavise.service >$(DESTDIR)$(UNITDIR)/pavise.service
	for p in credential-files exec-from-writable persistence shell-outbound web-shell; do \
		[ -e $(DESTDIR)$(SYSCONFDIR)/pavise/policies/$$p.yaml ] || install -m 644 policies/$$p/policy.yaml $(DESTDIR)$(SYSCONFDIR)/pavise/policies/$$p.yaml; done

deb: build ## make bin/pavise.deb, a Debian package
	rm -rf .cache/deb
	$(MAKE) --no-print-directory install DESTDIR=$(CURDIR)/.cache/deb PREFIX=/usr UNITDIR=/usr/lib/systemd/system VERSION=$(VERSION)
	rm -f .cache/deb/usr/bin/*.deb
	sh packaging/deb.sh .cache/deb $(VERSION) $$(go env GOARCH) bin/pavise.deb

clean: ## remove what was built; the kernels in the user's cache stay
	rm -rf bin .cache
