#!/usr/bin/env bash
# Install what the Makefile's targets need: Debian packages (none of them starts a daemon) and the virtual environment .venv.
# Idempotent, and quick when nothing changed: a stamp holds the hash of all that decides the result.
set -euo pipefail
cd "$(dirname "$0")/.."

packages() { sed -e 's/#.*//' -e '/^\s*$/d' deploy/debian/packages.txt; }
digest() { cat pyproject.toml constraints.txt deploy/debian/packages.txt deploy/install.sh | sha256sum | cut -d' ' -f1; }

missing_packages() {
    local name
    for name in $(packages); do
        dpkg-query -W -f '${db:Status-Status}\n' "$name" 2>/dev/null | grep -qx installed || echo "$name"
    done
}

install_packages() {
    local policy=/usr/sbin/policy-rc.d saved=
    [ -e "$policy" ] && { saved=$(mktemp); cp -a "$policy" "$saved"; }
    # shellcheck disable=SC2064  # expanded now on purpose: the trap outlives the function's variables
    trap "rm -f '$policy'; [ -z '$saved' ] || mv '$saved' '$policy'" EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 0755 "$policy"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"
    rm -f "$policy"
    [ -z "$saved" ] || mv "$saved" "$policy"
    trap - EXIT
}

if [ -f .venv/.stamp ] && [ "$(cat .venv/.stamp)" = "$(digest)" ]; then
    exit 0
fi
mapfile -t missing < <(missing_packages)
[ ${#missing[@]} -eq 0 ] || install_packages "${missing[@]}"
/usr/bin/python3 -m venv .venv
.venv/bin/python -m pip install --quiet --constraint constraints.txt --upgrade pip
.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[server,cli,conformance,dev]'
# rados and rbd come with Debian's Ceph and with no package registry: the environment is given these two modules, and no more
for found in /usr/lib/python3/dist-packages/{rados,rbd}[-.]*; do
    ln -sf "$found" .venv/lib/python3.11/site-packages/
done
digest >.venv/.stamp
