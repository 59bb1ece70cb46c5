#!/bin/sh
# Fetch the programs that the tests of learning watch, from Debian, into .cache/workloads: nginx with its Perl module, and the libraries that they need. They
# are unpacked, not installed: nothing of them is started by it.
set -eu
cd "$(dirname "$0")/.."
dir=.cache/workloads
[ ! -x $dir/usr/sbin/nginx ] || exit 0
tmp=.cache/workloads.tmp
rm -rf $tmp
mkdir -p $tmp/deb $tmp/root
libraries() {
	apt-cache depends nginx libnginx-mod-http-perl | sed -n 's/^ *Depends: \(lib[^ ]*\)$/\1/p' | grep -v '^libc6$' | sort -u
}
fetch() { (cd $tmp/deb && apt-get -q -o APT::Sandbox::User=root download nginx libnginx-mod-http-perl $(libraries)); }
fetch || { apt-get -q update </dev/null && fetch; }
for deb in $tmp/deb/*.deb; do dpkg-deb -x "$deb" $tmp/root; done
rm -rf $dir
mv $tmp/root $dir
rm -rf $tmp
