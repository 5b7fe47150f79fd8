#!/usr/bin/env bash
# Build volgate_<version>_<architecture>.deb into a folder, build/deb unless another is named. `make install` comes before.
# With the same SOURCE_DATE_EPOCH (the last commit's time, unless it is set) the same sources give the same package.
set -euo pipefail
top=$(cd "$(dirname "$0")/../.." && pwd)
out=$(realpath -m "${1:-$top/build/deb}")
pip=("$top/.venv/bin/python" -m pip)
version=$(python3 -c 'import sys, tomllib; print(tomllib.load(sys.stdin.buffer)["project"]["version"])' <"$top/pyproject.toml")
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$top" log -1 --format=%ct)}
export SOURCE_DATE_EPOCH
umask 022
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
recipe=$work/recipe root=$recipe/root venv=$root/opt/volgate doc=$root/usr/share/doc/volgate

environment() {
    /usr/bin/python3 -m venv --without-pip "$venv"
    "${pip[@]}" wheel --quiet --no-deps --wheel-dir "$work/wheels" "$top"
    # By name and not by path: no file then tells where it was built.
    "${pip[@]}" --python "$venv/bin/python" install --quiet --no-compile --constraint "$top/constraints.txt" \
        --find-links "$work/wheels" "volgate[server,cli]==$version"
    strip --strip-unneeded "$venv"/lib/python3.*/site-packages/libvirtmod*.so # built here perhaps, and then with the build's folder in it
    rm "$venv"/bin/[Aa]ctivate*
    find "$venv/bin" -type f -exec sed -i "1s|$venv|/opt/volgate|" {} + # the scripts' first lines
    sed -i '/^\.\.\/.*bin\//d' "$venv"/lib/python3.*/site-packages/*.dist-info/RECORD # nor the sums of the scripts as they were
    sed -i "s|$venv|/opt/volgate|g" "$venv/pyvenv.cfg"
    # Debian's modules for Ceph, where they are installed; no package registry has them.
    for module in rados rbd; do
        ln -s -t "$venv"/lib/python3.11/site-packages "/usr/lib/python3/dist-packages/$module.cpython-311-$(dpkg-architecture -qDEB_HOST_MULTIARCH).so"
    done
    # Compiled here, for root running `volgate` would leave files that no package owns; never checked, for nobody edits these.
    /usr/bin/python3 -m compileall -q -s "$root" -p / --invalidation-mode unchecked-hash "$venv/lib"
}

files() {
    install -d "$root/usr/bin" && ln -s /opt/volgate/bin/volgate "$root/usr/bin/volgate"
    install -D -m 0644 "$top/deploy/config-examples/volgate.toml" "$root/etc/volgate/volgate.toml"
    install -D -m 0644 -t "$doc" "$top"/docs/*.md
    install -m 0644 "$top/CHANGELOG.md" "$doc/NEWS.md" # under its own name debhelper would take it for Debian's
    install -D -m 0644 -t "$doc/examples" "$top"/deploy/config-examples/*.toml "$top"/deploy/systemd/volgate-*.conf
    install -D -m 0644 -t "$root/usr/share/volgate/prometheus" "$top/deploy/prometheus/volgate.rules.yml"
    install -D -m 0644 -t "$root/usr/share/volgate/grafana" "$top/deploy/grafana/volgate.json"
}

recipe() {
    cp -r "$top/deploy/debian/package" "$recipe/debian"
    cp "$top/deploy/systemd/volgate.service" "$recipe/debian/volgate.service"
    cp "$top/deploy/systemd/volgate-host.service" "$recipe/debian/volgate.volgate-host.service"
    cp "$top/deploy/systemd/volgate.sysusers.conf" "$recipe/debian/volgate.sysusers"
    cat >"$recipe/debian/changelog" <<EOF
volgate ($version) stable; urgency=medium

  * What changed stands in NEWS.md beside this file.

 -- Volgate maintainers <maintainers@volgate.invalid>  $(date --utc --rfc-email --date="@$SOURCE_DATE_EPOCH")
EOF
}

environment
files
recipe
(cd "$recipe" && debian/rules binary >"$work/log" 2>&1) || { cat "$work/log" >&2 && exit 1; }
mkdir -p "$out"
mv "$work"/volgate_"$version"_*.deb "$out"
ls "$out"/volgate_"$version"_*.deb
