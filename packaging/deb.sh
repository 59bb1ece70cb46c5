#!/bin/sh
# Make a Debian package of what make install puts below a directory: deb.sh ROOT VERSION ARCHITECTURE OUTPUT
set -eu
root=$1 version=$2 arch=$3 out=$4
mkdir -p "$root/DEBIAN"
# Debian's versions begin with a digit.
version=$(printf %s "$version" | sed 's/^v//; s/-/+/g')
case $version in [0-9]*.*) ;; *) version=0~git.$version ;; esac
cat >"$root/DEBIAN/control" <<CONTROL
Package: pavise
Version: $version
Architecture: $arch
Maintainer: The Pavise project <pavise@localhost>
Section: admin
Priority: optional
Installed-Size: $(du -sk "$root" | cut -f1)
Suggests: bash-completion
Description: see and stop what processes do, in the kernel
 Pavise watches what every process, user, container and connection does, decides in
 the kernel whether it may, and changes its rules in milliseconds, without a restart
 and without breaking a connection. It needs Linux 5.15 or newer with BTF.
CONTROL
(cd "$root" && find etc -type f | sed 's|^|/|') >"$root/DEBIAN/conffiles"
cat >"$root/DEBIAN/postinst" <<'SCRIPT'
#!/bin/sh
set -e
if [ "$1" = configure ] && [ -d /run/systemd/system ]; then
	systemctl daemon-reload
	systemctl enable pavise.service
	systemctl restart pavise.service
fi
SCRIPT
cat >"$root/DEBIAN/prerm" <<'SCRIPT'
#!/bin/sh
set -e
if [ "$1" = remove ]; then
	if [ -d /run/systemd/system ]; then
		systemctl disable --now pavise.service
	fi
	# What is in force ends with the program that could change it; policies and history stay until purge.
	pavise uninstall --keep-state
fi
SCRIPT
cat >"$root/DEBIAN/postrm" <<'SCRIPT'
#!/bin/sh
set -e
if [ "$1" = purge ]; then
	rm -rf /var/lib/pavise /etc/pavise
fi
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
fi
SCRIPT
chmod 755 "$root/DEBIAN/postinst" "$root/DEBIAN/prerm" "$root/DEBIAN/postrm"
dpkg-deb --root-owner-group --build "$root" "$out"
