#!/bin/sh
# The demonstration's acts, against a running agent. It adds the policy "demo", does five harmless things below
# /run/pavise-demo and on the loopback, says what happened, and takes all of it away again. Needs root, as the agent does.
#   PAVISE  the command (default: bin/pavise)    PAVISE_SOCKET  the agent's socket (default: the usual one)
# It ends 0 only if what is allowed worked and what is forbidden was stopped.
set -u
cd "$(dirname "$0")/../.." || exit 1
pavise=${PAVISE:-bin/pavise}
socket=${PAVISE_SOCKET:-/run/pavise/pavise.sock}
dir=/run/pavise-demo
say() { printf 'demo: %s\n' "$*"; }
# step lets the events of the last act be printed before the next one is told.
step() { sleep 0.4; say "$*"; }

cleanup() {
	if [ -z "${DEMO_APPLIED:-}" ]; then
		"$pavise" --socket "$socket" delete policy demo >/dev/null 2>&1
	fi
	rm -rf "$dir"
}

if ! "$pavise" --socket "$socket" get policies >/dev/null; then
	say "no agent answers at $socket: start one with 'make run' in another terminal"
	exit 3
fi
trap cleanup EXIT
trap 'exit 130' INT TERM

# The files are made before the rules hold.
if [ -z "${DEMO_APPLIED:-}" ]; then
	umask 077
	mkdir -p "$dir" && echo 'anyone may read this' >"$dir/open" && echo 'the secret words' >"$dir/secret" || exit 1
	say "adding policy demo: nobody may open $dir/secret, nor connect to 127.0.0.1:18998"
	"$pavise" --socket "$socket" apply -f policies/demo/policy.yaml || exit 1
fi

failed=0
step "1. running a program: uname"
/bin/uname -sr || failed=1

step "2. reading $dir/open, which is allowed"
if [ "$(cat "$dir/open")" = 'anyone may read this' ]; then
	say "   it was read"
else
	say "   FAILED: it was not read"
	failed=1
fi

step "3. connecting to 127.0.0.1:18999, where nobody listens; the policy only notes it"
bash -c 'exec 3<>/dev/tcp/127.0.0.1/18999' 2>/dev/null
say "   the connection was tried"

step "4. reading $dir/secret, which is forbidden"
words=$(cat "$dir/secret" 2>/dev/null)
code=$?
if [ "$code" -eq 0 ] || [ -n "$words" ]; then
	say "   FAILED: it was read: $words"
	failed=1
elif [ "$code" -eq 137 ]; then
	say "   STOPPED: cat was killed before it read a byte"
else
	say "   STOPPED: cat was refused, and read nothing"
fi

step "5. connecting to 127.0.0.1:18998, which is forbidden"
if LC_ALL=C bash -c 'exec 3<>/dev/tcp/127.0.0.1/18998' 2>&1 | grep -q 'Operation not permitted'; then
	say "   STOPPED: the call failed with EPERM; bash was not killed"
else
	say "   FAILED: it was not refused"
	failed=1
fi
sleep 0.4
if [ "$failed" -ne 0 ]; then
	say "something was not as it should be"
fi
exit "$failed"
