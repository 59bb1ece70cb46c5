#!/bin/sh
# Fetch Debian's cloud kernels for the virtual machines of the test kit.
#
#   kernels.sh [-u] DIR NAME...        NAME is 5.10, 6.1, 6.12 or newest
#
# Each kernel is unpacked into DIR/NAME: vmlinuz, usr/lib/modules/*, and the file `release` (what
# `uname -r` will say). A kernel that is present is used again; -u looks for a newer one.
#
# apt runs with a configuration and a state of its own, below DIR: the system's sources, lists and
# cache are only read, to learn the address of its Debian archive. $PAVISE_DEBIAN_ARCHIVE (an
# address that ends in /debian) takes precedence, for a system that is not Debian.
set -eu

say() { echo "kernels: $*" >&2; }
die() { say "$*"; exit 1; }

update=
if [ "${1-}" = -u ]; then update=1; shift; fi
[ $# -ge 2 ] || die "usage: kernels.sh [-u] DIR NAME..."
dir=$1; shift
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)

missing=
for name; do
	case $name in 5.10|6.1|6.12|newest) ;; *) die "no kernel is called $name: 5.10, 6.1, 6.12, newest" ;; esac
	if [ -n "$update" ] || [ ! -f "$dir/$name/release" ]; then missing="$missing $name"; fi
done
[ -n "$missing" ] || exit 0

for tool in apt-get apt-cache dpkg-deb flock xz depmod; do
	command -v "$tool" >/dev/null || PATH=$PATH:/usr/sbin:/sbin
	command -v "$tool" >/dev/null || die "$tool is missing: run make deps (Debian packages apt dpkg util-linux xz-utils kmod)"
done
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
[ -f $keyring ] || die "$keyring is missing: run make deps (Debian package debian-archive-keyring)"

# One fetch at a time; a second one waits and then finds the kernels present.
exec 9>"$dir/.lock"
flock 9
tmp=$dir/.tmp
rm -rf "$tmp"
mkdir "$tmp"
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' INT TERM HUP

main=${PAVISE_DEBIAN_ARCHIVE-}
security=${main:+$main-security}
if [ -z "$main" ]; then
	# What apt would fetch to update itself; nothing is fetched. Other archives than Debian's have
	# suites called bookworm too, so the one with updates is asked for first.
	apt-get update --print-uris 2>"$tmp/log" |
		sed -n "s|^'\(.*\)/dists/\([^']*\)/InRelease'.*|\2 \1|p" >"$tmp/suites" || true
	main=$(awk '$1 ~ /-updates$/ {print $2; exit}' "$tmp/suites")
	[ -n "$main" ] || main=$(awk '$1 ~ /^(bullseye|bookworm|trixie|forky|sid|stable|testing|unstable)$/ {print $2; exit}' "$tmp/suites")
	security=$(awk '$1 ~ /-security$/ {print $2; exit}' "$tmp/suites")
	[ -n "$main" ] || die "this system's apt sources name no Debian archive: set PAVISE_DEBIAN_ARCHIVE"
	[ -n "$security" ] || security=$main-security
fi

# apt SUITE COMMAND...: apt-get or apt-cache for that suite only.
apt() {
	suite=$1; tool=$2; shift 2
	s=$tmp/apt/$suite
	"$tool" -q -o "Dir::Etc::SourceList=$s/sources.list" -o Dir::Etc::SourceParts=/dev/null \
		-o "Dir::State=$s" -o Dir::State::status=/dev/null -o "Dir::Cache=$s/cache" \
		-o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false \
		-o APT::Architecture=amd64 -o APT::Sandbox::User=root -o Acquire::Retries=3 "$@"
}

# lists SUITE: fetch the suite's package lists, once.
lists() {
	s=$tmp/apt/$1
	[ ! -d "$s" ] || return 0
	case $1 in *-security) uri=$security ;; *) uri=$main ;; esac
	mkdir -p "$s/lists/partial" "$s/cache/archives/partial"
	echo "deb [arch=amd64 signed-by=$keyring] $uri $1 main" >"$s/sources.list"
	say "reading the package list of $1"
	if ! apt "$1" apt-get --error-on=any update >"$tmp/log" 2>&1; then
		cat "$tmp/log" >&2
		rm -rf "$s"
		say "the package list of $1 could not be fetched: is there a network? Is the suite still in the archive?"
		return 1
	fi
}

# newest PATTERN SUITE...: the newest matching package, as "SUITE NAME", by version.
newest() {
	pattern=$1; shift
	for suite; do
		lists "$suite" || continue
		apt "$suite" apt-cache pkgnames linux- | grep -E "^linux-$pattern-cloud-amd64\$" | sed "s/^/$suite /" || true
	done | sed 's/\(.*linux-[a-z]*-\)\(.*\)/\2 \1\2/' | sort -V -k1,1 | tail -n 1 | cut -d' ' -f2-
}

fetch() {
	case $1 in
	5.10) found=$(newest 'image-5\.10\.0-[0-9]+' bullseye-security) ;;
	6.1) found=$(newest 'image-6\.1\.0-[0-9]+' bookworm) ;;
	6.12) found=$(newest 'image-6\.12\.[0-9]+\+deb13' trixie) ;;
	newest) found=$(newest 'binary-[7-9]\.[0-9.]+\+deb[0-9]+' trixie-backports sid) ;;
	esac
	if [ -z "$found" ]; then
		say "no kernel found for $1"
		return 1
	fi
	suite=${found% *}; package=${found#* }
	release=${package#linux-*-}
	if [ "$(cat "$dir/$1/release" 2>/dev/null)" = "$release" ]; then
		say "$1: $release is present and the newest"
		return 0
	fi
	packages=$package
	# From 7.1 on, Debian splits the image: the kernel in one package, its modules in another.
	case $package in linux-binary-*) packages="$package linux-modules-$release" ;; esac
	say "$1: fetching $release from $suite"
	rm -rf "$tmp/deb" "$tmp/root"
	mkdir "$tmp/deb" "$tmp/root"
	if ! (cd "$tmp/deb" && apt "$suite" apt-get download $packages) >"$tmp/log" 2>&1; then
		cat "$tmp/log" >&2
		say "$packages could not be fetched: is there a network?"
		return 1
	fi
	for deb in "$tmp"/deb/*.deb; do dpkg-deb -x "$deb" "$tmp/root"; done
	# Older packages have /boot/vmlinuz-* and /lib/modules, newer ones both below /usr/lib/modules.
	if [ -d "$tmp/root/lib/modules" ]; then
		mkdir -p "$tmp/root/usr/lib"
		mv "$tmp/root/lib/modules" "$tmp/root/usr/lib/modules"
		rmdir "$tmp/root/lib"
	fi
	modules=$tmp/root/usr/lib/modules/$release
	for image in "$tmp/root/boot/vmlinuz-$release" "$modules/vmlinuz"; do
		[ ! -f "$image" ] || mv "$image" "$tmp/root/vmlinuz"
	done
	[ -f "$tmp/root/vmlinuz" ] || { say "$packages: no kernel inside"; return 1; }
	[ -d "$modules/kernel" ] || { say "$packages: no modules inside"; return 1; }
	ln -s usr/lib "$tmp/root/lib"
	depmod -b "$tmp/root" "$release" 2>"$tmp/log" || { cat "$tmp/log" >&2; return 1; }
	echo "$release" >"$tmp/root/release"
	rm -rf "$dir/$1"
	mv "$tmp/root" "$dir/$1"
	say "$1: $release is ready"
}

failed=
for name in $missing; do
	if [ -z "$update" ] && [ -f "$dir/$name/release" ]; then continue; fi
	fetch "$name" || failed="$failed $name"
done
[ -z "$failed" ] || die "not fetched:$failed"
