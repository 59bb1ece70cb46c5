#!/bin/sh
# Everything that can be proved on one machine; make test runs it. Each step runs even if one
# before it failed, and the summary at the end says what ran, what was skipped and why.
set -u
cd "$(dirname "$0")/.."

if [ "$(id -u)" != 0 ]; then
	echo "test: loading kernel programs, and sharing files with virtual machines, need root; make check does not" >&2
	exit 1
fi
export CGO_ENABLED=0
results=.cache/test
rm -rf $results
mkdir -p $results
start=$(date +%s)

# step NAME COMMAND...: a step that fails is a failure among the tests.
step() {
	name=$1; shift
	echo "== $name"
	"$@" && return
	echo "== $name: failed"
	printf '{"Action":"fail","Package":"make test","Test":"%s"}\n' "$name" >>$results/steps.json
}

# Of steps that are tests, the failures are in their results.
tests() {
	name=$1; file=$2; shift 2
	echo "== $name"
	"$@" || [ -s "$file" ] || step "$name" false
}

format() {
	files=$(gofmt -l .)
	[ -z "$files" ] || { echo "not formatted (make format):" $files; return 1; }
	clang-format-19 --dry-run --Werror bpf/*.[ch]
}

# The generated files are committed; they must be what the sources make.
current() {
	sha256sum bpf/*_bpfel.go bpf/*_bpfel.o agent/openapi.json docs/openapi.yaml clients/python/pavise.py >$results/generated &&
		go generate ./... &&
		{ sha256sum --quiet -c $results/generated || { echo "generated files were not current: commit them"; return 1; }; }
}

# -count=1: a result from the cache proves nothing about this kernel.
unit() { go test -json -count=1 -skip '^TestKernel' ./... | $results/sum -live $results/unit.json; }

# One package at a time: kernel programs see the whole machine.
here() {
	packages=$(grep -rl --include='*_test.go' '^func TestKernel' . | xargs -n 1 dirname | sort -u)
	go test -json -count=1 -p 1 -run '^TestKernel' $packages | $results/sum -live $results/here.json
}

machines() { $results/vmrun -matrix -timeout 40m -json $results/machines.json ./...; }

go build -o $results/ ./internal/testsum/sum ./internal/vmtest/vmrun || exit 1
: >$results/steps.json
step "format" format
step "generated files" current
step "workloads" sh internal/workloads.sh
step "vet" go vet ./...
step "build" make --no-print-directory build VERSION="${VERSION-test}"
step "demonstration" make --no-print-directory run DEMO=1 VERSION="${VERSION-test}"
tests "unit tests" $results/unit.json unit
tests "kernel tests on Linux $(uname -r), this machine" $results/here.json here
tests "kernel tests in virtual machines" $results/machines.json machines

echo
echo "== summary, after $(($(date +%s) - start)) s"
touch $results/unit.json $results/here.json $results/machines.json
echo "== ways around a rule (docs/bypasses.txt), by rung; here: the rungs of this machine"
$results/sum -ways docs/bypasses.txt $results/unit.json $results/here.json $results/machines.json ||
	printf '{"Action":"fail","Package":"make test","Test":"ways around a rule"}\n' >>$results/steps.json
echo
$results/sum $results/steps.json $results/unit.json $results/here.json $results/machines.json
