"""What an operator does about a plugin that does not work: read from the words in which Python, the linker and the gateway say why."""

from __future__ import annotations

import re

__all__ = ["remedy"]

_NATIVE = re.compile(r"(lib[\w.+-]+?\.so[.\d]*): cannot open shared object file")
_MODULE = re.compile(r"No module named '([\w.]+)'")
_DEBIAN = {
    "librados.so.2": "librados2",
    "librbd.so.1": "librbd1",
    "libcephfs.so.2": "libcephfs2",
    "libgfapi.so.0": "libgfapi0",
    "libvirt.so.0": "libvirt0",
    "libnfs.so.13": "libnfs13",
    "libiscsi.so.7": "libiscsi7",
    "rados": "python3-rados",
    "rbd": "python3-rbd",
    "cephfs": "python3-cephfs",
    "libvirt": "python3-libvirt",
}
"""Native libraries and modules that storage plugins stand on, with Debian's packages of them."""

_DEBIAN_ALONE = frozenset({"rados", "rbd", "cephfs"})
"""Modules that no package registry has."""


def remedy(problem: str, plugin: str = "") -> str:
    """What to do about a problem of a plugin, in one line; "" if its words are known to nobody and no plugin is named."""
    if found := _NATIVE.search(problem):
        name = found.group(1)
        package = f"apt install {_DEBIAN[name]}" if name in _DEBIAN else f"apt-file search {name} names the package to install"
        return f"the native library {name} is missing: {package}, then restart the gateway"
    if found := _MODULE.search(problem):
        name = found.group(1).partition(".")[0]
        if name in _DEBIAN_ALONE:
            where = "the operator's guide says how an environment made by hand finds it"
            return f"the Python module {name} is missing: apt install {_DEBIAN[name]} ({where}), then restart the gateway"
        package = f"apt install {_DEBIAN[name]}, or " if name in _DEBIAN else ""
        return f"the Python module {name} is missing: {package}pip install it into the gateway's environment, then restart the gateway"
    if found := re.search(r"upgrade (the plugin|volgate|the older of the two)$", problem):
        return found.group(0)
    if not plugin:
        return ""
    if "is already offered by plugin" in problem or re.search(r"the name \S+ is taken", problem):
        return f"uninstall one of the two, or leave one out: [plugins] blocked = [{plugin!r}]".replace("'", '"')
    return f"tell its author; until it is mended, leave it out: [plugins] blocked = [{plugin!r}]".replace("'", '"')
