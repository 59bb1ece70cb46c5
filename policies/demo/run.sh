#!/bin/sh
# The whole demonstration in one terminal: starts an agent of its own with the starter policies and the demonstration's,
# does the acts of act.sh, and ends 0 only if the agent showed a program that started, a file that was opened, a
# connection, and the stopped acts, and the secret was not read. Needs root.
set -u
cd "$(dirname "$0")/../.." || exit 1
pavise=${PAVISE:-bin/pavise}
dir=/run/pavise-demo
say() { printf 'demo: %s\n' "$*"; }

if [ "$(id -u)" -ne 0 ]; then
	say "the agent needs root: run it with sudo"
	exit 4
fi
work=$(mktemp -d) || exit 1
agent= reader=
cleanup() {
	if [ -n "$agent" ]; then
		kill "$agent" 2>/dev/null
		wait "$agent" 2>/dev/null
	fi
	if [ -n "$reader" ]; then
		kill "$reader" 2>/dev/null
	fi
	rm -rf "$work" "$dir"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

umask 077
mkdir -p "$dir" && echo 'anyone may read this' >"$dir/open" && echo 'the secret words' >"$dir/secret" || exit 1

# Live events go to this terminal and to a file, which is checked at the end.
: >"$work/events"
tail -n +1 -f "$work/events" &
reader=$!
"$pavise" run --socket "$work/pavise.sock" --state "$work/state" --policy policies --policy policies/demo/policy.yaml \
	--for 2m --events text >"$work/events" &
agent=$!

tries=0
until "$pavise" --socket "$work/pavise.sock" get policies >/dev/null 2>&1; do
	tries=$((tries + 1))
	if ! kill -0 "$agent" 2>/dev/null || [ "$tries" -ge 300 ]; then
		wait "$agent"
		code=$?
		agent=
		say "the agent did not start (exit code $code)"
		[ "$code" -ne 0 ] || code=1
		exit "$code"
	fi
	sleep 0.1
done

DEMO_APPLIED=1 PAVISE=$pavise PAVISE_SOCKET=$work/pavise.sock sh policies/demo/act.sh
acted=$?

# The agent prints what it saw while it still runs; then it ends as its --for would end it.
shown() { grep -q -- "$1" "$work/events"; }
tries=0
until shown ' deny .*net\.connect.*demo/port' || [ "$tries" -ge 50 ]; do
	tries=$((tries + 1))
	sleep 0.1
done
kill -INT "$agent" 2>/dev/null
wait "$agent"
ended=$?
agent=
sleep 0.2 # for tail
kill "$reader" 2>/dev/null
wait "$reader" 2>/dev/null
reader=

failed=0
check() {
	if [ "$2" -eq 0 ]; then say "ok      $1"; else say "FAILED  $1"; failed=1; fi
}
say ""
say "what was shown:"
shown 'process\.exec'; check "a program's start was shown" $?
shown 'file\.open.*/run/pavise-demo/open'; check "an allowed open was shown" $?
shown 'net\.connect.*18999'; check "a connection was shown" $?
shown ' \(deny\|kill\) .*file\.open.*/run/pavise-demo/secret.*demo/secret'; check "the stopped open was shown, with its policy and rule" $?
shown ' deny .*net\.connect.*18998.*demo/port'; check "the stopped connection was shown, with its policy and rule" $?
check "what is allowed worked, and what is forbidden was stopped" "$acted"
check "the agent ended cleanly" "$ended"
exit "$failed"
