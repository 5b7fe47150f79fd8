"""What can be wrong with a field, by what the field means: values, and what each must be answered with."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

__all__ = ["INVALID", "KINDS", "LEAST64", "MOST64", "SIZE_MOST", "Bad", "kind_of"]

INVALID = ("INVALID_ARGUMENT",)
LEAST64, MOST64, LEAST32, MOST32 = -(2**63), 2**63 - 1, -(2**31), 2**31 - 1
SIZE_MOST = 1 << 50


@dataclass(frozen=True)
class Bad:
    """A value, the codes that may answer it, and whether the journal may keep a row of the refusal.

    `field` overrides the path that BadRequest names. Codes other than INVALID_ARGUMENT are for what is well-formed and yet wrong.
    """

    value: Any
    codes: tuple[str, ...] = INVALID
    journalled: bool = False
    field: str = ""


Strategy = Callable[[random.Random], Bad]
_MEAN = ("\0", "\n", "\r\n", "\t", "\x1b[31m", "\x7f", "\x85")
_FOREIGN = ("ü", "名前", "\u202e", "\u200b", "\ufeff", "é" * 30, "\U0001f984", "\uff41", "ⅸ", "İ")
_TRAVERSAL = (
    "..",
    "../..",
    "../../etc/shadow",
    "a/../b",
    "./a",
    "/etc/shadow",
    "//",
    "a/",
    "/a",
    "..\\..\\x",
    "%2e%2e%2f",
    "~root",
    "$(id)",
)


def text(rng: random.Random) -> str:
    """Text that no name may hold."""
    pieces = (
        lambda: rng.choice(_MEAN),
        lambda: rng.choice(_FOREIGN),
        lambda: rng.choice(_TRAVERSAL),
        lambda: "a" + rng.choice(_MEAN) + "b",
        lambda: "".join(rng.choice("ABCXYZ !\"#$%&'()*+,:;<=>?@[]^`{|}~\\") for _ in range(rng.randint(1, 20))),
        lambda: "x" * rng.choice((64, 65, 255, 256, 4096, 100_000)),
        lambda: rng.choice("-._") + "name",
        lambda: " name ",
        lambda: "a..b",
    )
    return rng.choice(pieces)()


def resource(*collections: str, optional: bool = False, unknown: Bad | None = None) -> Strategy:
    """A resource name: `resource("pools", "volumes")`. `unknown`: one that is well-formed and of nothing."""

    def draw(rng: random.Random) -> Bad:
        good = "/".join(f"{collection}/main" for collection in collections)
        if unknown is not None and rng.random() < 0.15:  # often enough
            return unknown
        ways = (
            lambda: "/".join(f"{collection}/{text(rng)}" for collection in collections),
            lambda: good.replace("main", text(rng), 1),
            lambda: text(rng) + "/" + good,
            lambda: good + "/" + text(rng),
            lambda: good + rng.choice(("/", "//", "\0", "\n", " ", "/x", "/volumes", "?a=b", "#f")),
            lambda: good[rng.randint(1, 3) :],
            lambda: good.replace(collections[0], rng.choice(("pool", "POOLS", "volumes ", "things", "")), 1),
            lambda: good.rpartition("/")[0],
            good.upper,
            lambda: text(rng),
            lambda: "x" if optional else "",
        )
        return Bad(rng.choice(ways)())

    return draw


def identifier(rng: random.Random) -> Bad:
    return Bad(rng.choice((text(rng), "", text(rng), "Name", "a/b", "-a", ".a", "_a", "a..b", "a" * 64)))


def number(least: int, most: int, *others: Bad) -> Strategy:
    """A number outside of what is allowed."""
    outside = [Bad(value) for value in (LEAST64, -1, -2, LEAST32 - 1, most + 1, most * 2, MOST32 + 1, MOST64) if not least <= value <= most]
    return lambda rng: rng.choice([*outside, *others])


def number32(least: int, most: int) -> Strategy:
    outside = [Bad(value) for value in (LEAST32, -1, -2, most + 1, most * 2, MOST32) if not least <= value <= most and value <= MOST32]
    return lambda rng: rng.choice(outside)


def enum(*others: int) -> Strategy:
    return lambda rng: Bad(rng.choice((99, -1, MOST32, LEAST32, 17, *others)))


def uid(rng: random.Random) -> Bad:
    wrong = Bad("00000000-0000-4000-8000-000000000000", ("FAILED_PRECONDITION",), journalled=True)
    form = rng.choice(
        ("x", "0" * 32, "{00000000-0000-4000-8000-000000000000}", "urn:uuid:00000000-0000-4000-8000-000000000000", "0" * 36, text(rng))
    )
    return rng.choice((Bad(form), Bad(form), wrong))


def request_id(rng: random.Random) -> Bad:
    return Bad(rng.choice(("x" * 129, "ü" * 65, "x" * 100_000, *(f"a{mean}b" for mean in _MEAN))))


def reason(rng: random.Random) -> Bad:
    return Bad(rng.choice(("why", "x" * 129, "ü" * 65, *(f"a{mean}b" for mean in _MEAN))))  # "why" beside release: one or the other


def label_keys(rng: random.Random) -> Bad:
    if rng.random() < 0.3:
        return Bad({f"key{index}": "" for index in range(rng.choice((65, 66, 1000)))}, field="labels")
    key = rng.choice(("", " ", "-a", "/a", ".a", "a b", "ü", "a\0", "a\n", "x" * 129, "=", "a=b", rng.choice(_MEAN), "😀"))
    return Bad({"good": "1", key: "2"}, field="labels")


def label_values(rng: random.Random) -> Bad:
    return Bad({"good": "1", "key": rng.choice(("x" * 129, "ü" * 65, *(f"a{mean}" for mean in _MEAN), "x" * 50_000))}, field="labels[key]")


def members(rng: random.Random) -> Bad:
    """Volumes and the names of their snapshots."""
    if rng.random() < 0.3:
        return Bad({f"v{index}": "s" for index in range(rng.choice((65, 66, 1000)))}, field="snapshots")
    if rng.random() < 0.3:
        return Bad({"nobody": "s"}, ("NOT_FOUND",), journalled=True)
    wrong = identifier(rng).value
    return Bad(rng.choice(({}, {wrong: "s"}, {"v": wrong}, {"v": "g", wrong: "s"})), field="snapshots")


def compared(rng: random.Random) -> Bad:
    wrong = ("Name", "a/b", "-a", ".a", "a..b", "a" * 64, "pools/sim/volumes/v", "pools/sim/volumes/other/snapshots/s", "\0", "ü")
    return rng.choice((Bad(rng.choice(wrong)), Bad(rng.choice(wrong)), Bad("nobody", ("NOT_FOUND",))))


def member_uids(rng: random.Random) -> Bad:
    if rng.random() < 0.3:
        return Bad({"nobody": ""}, field="volume_uids")
    wrong = uid(rng)
    return Bad({"v": wrong.value}, wrong.codes, wrong.journalled, field="volume_uids[v]")


def ips(rng: random.Random) -> Bad:
    return Bad(
        rng.choice((["x"], ["192.0.2.1", ""], ["192.0.2.1:80"], ["192.0.2.0/24"], ["192.0.2.999"], ["host"], ["192.0.2.1"] * 65, ["\0"]))
    )


def page_token(rng: random.Random) -> Bad:
    return Bad(rng.choice(("x", "AAAA", "=" * 8, "ü", "\0", "../..", "x" * 100_000, "".join(rng.choices("ABCab01-_=", k=40)))))


def path(rng: random.Random) -> Bad:
    outside = ("/etc/shadow", "/dev/zero", "/proc/self/environ", "/", "{images}/../x", "{images}/../../etc/passwd", "/nowhere/at/all")
    return rng.choice(
        (
            Bad(rng.choice(("relative", "./x", "../x", "a\0b", "/a\nb", "/" + "x" * 256, "/" + "ü" * 128, "/" + "a/" * 2100, "~/x"))),
            Bad(rng.choice(outside), ("PERMISSION_DENIED",)),
            Bad("{images}/nothing", ("NOT_FOUND",)),
            Bad("{images}", ("NOT_FOUND",)),
        )
    )


def new_path(rng: random.Random) -> Bad:
    outside = (
        "/etc/shadow",
        "/dev/zero",
        "/x",
        "{images}/x",
        "{exports}/../x",
        "{exports}",
        "{exports}/../../etc/passwd",
        "/nowhere/at/all",
    )
    return rng.choice(
        (
            Bad(
                rng.choice(("relative", "./x", "../x", "a\0b", "/a\nb", "/" + "x" * 256, "/" + "a/" * 2100, "~/x", "/", "{exports}/", "//"))
            ),
            Bad(rng.choice(("{exports}/.", "{exports}/..", "{exports}/taken/", "{exports}/a\x1b"))),
            Bad(rng.choice(outside), ("PERMISSION_DENIED",)),
            Bad(rng.choice(("{exports}/none/x", "{exports}/taken/x")), ("NOT_FOUND",)),
            Bad("{exports}/taken", ("ALREADY_EXISTS",), journalled=True),
        )
    )


def locator(rng: random.Random) -> Bad:
    return rng.choice(
        (
            Bad(rng.choice(("", "a/b", "/a", "../a", ".hidden", "..", ".", "a\0", "a\n", "x" * 256, "ü" * 128, "a/../b"))),
            Bad(rng.choice(("nothing", "ü", "name with spaces", "\u202ex", "x" * 255)), ("NOT_FOUND",), journalled=True),
            Bad(rng.choice(("volumes", ".volgate")), ("FAILED_PRECONDITION", "NOT_FOUND", "INVALID_ARGUMENT"), journalled=True),
        )
    )


def domain(rng: random.Random) -> Bad:
    return rng.choice(
        (
            Bad(rng.choice(("", "a\0", "a\nb", "x" * 256, "ü" * 128, "\x1b[0m"))),
            Bad(rng.choice(("nobody", "ü", "x" * 255, "../x", "00000000-0000-4000-8000-000000000000")), ("NOT_FOUND",), journalled=True),
        )
    )


def serial(rng: random.Random) -> Bad:
    return Bad(rng.choice(("x" * 21, "a b", "a/b", "ü", "\0", "a,b", "'", '"', "<x/>", "a\n", "x" * 10_000)))


def reference(rng: random.Random) -> Bad:
    allowed = Bad(rng.choice(("file:/etc/shadow", "env:PATH", "vault:x")), ("PERMISSION_DENIED",), journalled=True)
    return rng.choice(
        (Bad(rng.choice(("relative", "file:", ":x", "a b:c", "file:/a/../b", "file:/\0", "FILE:/x", "x:" + "x" * 10_000))), allowed)
    )


def line(rng: random.Random) -> Bad:
    return Bad(rng.choice(("a\nb", "a\0", "\x1b[31m", "x" * 10_000)))


def lines(rng: random.Random) -> Bad:
    return Bad(rng.choice((["a\nb"], ["x" * 10_000], ["good", "\0"], ["x"] * 100)))


def own_host(rng: random.Random) -> Bad:
    return rng.choice((Bad(""), Bad(rng.choice(("hosts/lab", "hosts/", "pools/main", "fuzz", text(rng))), ("PERMISSION_DENIED",))))


def address(rng: random.Random) -> Bad:
    return Bad(rng.choice(("", "host", "host:", ":1", "host:x", "a b:1", "http://host:1", "host:1\n", "user@host:1", "x" * 300 + ":1")))


def chunk(_: random.Random) -> Bad:
    return Bad(bytes((1 << 20) + 1))


def hole(_: random.Random) -> Bad:
    return Bad(0)


_TOO_MUCH = Bad(SIZE_MOST, ("RESOURCE_EXHAUSTED", "OUT_OF_RANGE"), journalled=True)
_VMDK, _VHDX = 3, 4
_GONE_VOLUME = Bad("pools/main/volumes/nobody", ("NOT_FOUND",), journalled=True)
_GONE_POOL = Bad("pools/nobody", ("NOT_FOUND",), journalled=True)
_GONE_SNAPSHOT = Bad("pools/main/volumes/v/snapshots/nobody", ("NOT_FOUND",), journalled=True)
_NO_POOL_VOLUME = Bad("pools/nobody/volumes/v", ("NOT_FOUND",), journalled=True)
_NO_POOL_SNAPSHOT = Bad("pools/nobody/volumes/v/snapshots/s", ("NOT_FOUND",), journalled=True)
_GONE_OPERATION = Bad(f"operations/{'0' * 32}", ("NOT_FOUND",))
_GONE_ATTACHMENT = Bad("attachments/00000000-0000-5000-8000-000000000000", ("NOT_FOUND",))

_POOL = resource("pools", unknown=_GONE_POOL)
_VOLUME = resource("pools", "volumes", unknown=_GONE_VOLUME)
_HOST = resource("hosts", optional=True, unknown=Bad("hosts/nobody", ("NOT_FOUND",), journalled=True))
_OPERATION = resource("operations", unknown=_GONE_OPERATION)
_ATTACHMENT = resource("attachments")
KINDS: dict[str, Strategy] = {
    "GetPool.name": _POOL,
    "DrainPool.name": _POOL,
    "QuarantinePool.name": _POOL,
    "ListVolumes.pool": resource("pools", optional=True, unknown=_GONE_POOL),
    "DeleteVolume.name": resource("pools", "volumes", unknown=_NO_POOL_VOLUME),
    "ExportVolume.name": resource("pools", "volumes", unknown=_GONE_VOLUME),
    "ExportVolume.path": new_path,
    "CreateVolume.source": resource("pools", "volumes", optional=True, unknown=_GONE_VOLUME),
    "RevertVolume.snapshot": resource("pools", "volumes", "snapshots", unknown=Bad("nobody", ("NOT_FOUND",), journalled=True)),
    "CreateSnapshotGroup.pool": resource("pools", unknown=_GONE_POOL),
    "snapshots{key}": members,
    "snapshots{value}": members,
    "volume_uids{key}": member_uids,
    "volume_uids{value}": member_uids,
    "ListChangedBlocks.name": resource("pools", "volumes", unknown=Bad("pools/sim/volumes/nobody", ("NOT_FOUND",))),
    "ListChangedBlocks.base_snapshot": compared,
    "ListChangedBlocks.snapshot": compared,
    "ListChangedBlocks.uid": lambda rng: replace(uid(rng), journalled=False),
    "FenceHost.name": resource("hosts", unknown=Bad("hosts/nobody", ("NOT_FOUND",), journalled=True)),
    "UnfenceHost.name": resource("hosts", unknown=Bad("hosts/nobody", ("NOT_FOUND",), journalled=True)),
    "addresses": ips,
    "DeleteSnapshot.name": resource("pools", "volumes", "snapshots", unknown=_NO_POOL_SNAPSHOT),
    "GetSnapshot.name": resource("pools", "volumes", "snapshots", unknown=_GONE_SNAPSHOT),
    "ListSnapshots.parent": resource("pools", "volumes", optional=True, unknown=_GONE_VOLUME),
    "ListAttachments.volume": resource("pools", "volumes", optional=True, unknown=_GONE_VOLUME),
    "GetAttachment.name": resource("attachments", unknown=_GONE_ATTACHMENT),
    "DetachVolume.name": _ATTACHMENT,
    "ListPaths.name": resource("pools", "volumes", unknown=_GONE_VOLUME),
    "WatchPaths.name": resource("pools", "volumes", unknown=_GONE_VOLUME),
    "GetHost.name": resource("hosts", unknown=Bad("hosts/nobody", ("NOT_FOUND",))),
    "RegisterHost.name": own_host,
    "HeartbeatHost.name": own_host,
    "CordonHost.name": resource("hosts", unknown=Bad("hosts/nobody", ("NOT_FOUND",))),
    "ReleaseHost.name": resource("hosts", unknown=Bad("hosts/nobody", ("NOT_FOUND",))),
    "RemoveHost.name": resource("hosts"),
    "HeartbeatHost.session": lambda rng: rng.choice((Bad(""), Bad("a\nb"), Bad("another", ("FAILED_PRECONDITION",)))),
    "session": lambda rng: Bad(rng.choice(("", "a\nb", "x" * 300))),
    "instance": lambda rng: rng.choice((Bad("a\nb"), Bad("another", ("PERMISSION_DENIED",)))),
    "protocol": lambda rng: Bad(rng.choice((0, -1, 2, MOST32)), ("FAILED_PRECONDITION",)),
    "address": address,
    "features": lines,
    **dict.fromkeys(("version", "machine_id", "boot_id", "iqn", "nqn", "nvme_host_id", "uri", "problem"), line),
    **dict.fromkeys(("libvirt_version", "qemu_version"), line),
    "GetOperation.name": _OPERATION,
    "WatchOperation.name": _OPERATION,
    "CancelOperation.name": _OPERATION,
    "ExpandVolume.size_bytes": number(1, SIZE_MOST, Bad(0), _TOO_MUCH),
    "CreateVolume.size_bytes": number(1, SIZE_MOST, Bad(0), _TOO_MUCH),
    "ImportVolume.header.size_bytes": number(0, SIZE_MOST, Bad(1, ("OUT_OF_RANGE",), journalled=True)),
    "ImportVolume.header.source_format": enum(0),
    "AdoptVolume.format": enum(0, _VMDK, _VHDX),
    # by the name alone
    "name": _VOLUME,
    "volume": _VOLUME,
    "pool": _POOL,
    "host": _HOST,
    "format": enum(_VMDK, _VHDX),
    "volume_id": identifier,
    "snapshot_id": identifier,
    "uid": uid,
    "volume_uid": uid,
    "request_id": request_id,
    "reason": reason,
    "labels{key}": label_keys,
    "labels{value}": label_values,
    "page_size": number32(0, 1000),
    "page_token": page_token,
    "image_bytes": number(0, SIZE_MOST, Bad(7)),
    "wait_seconds": number32(0, 600),
    "iothread": number32(0, 1024),
    "provisioning": enum(),
    "bus": enum(),
    "access": enum(),
    "cache": enum(),
    "io": enum(),
    "error_policy": enum(),
    "transport": enum(),
    "serial": serial,
    "passphrase": reference,
    "domain": domain,
    "locator": locator,
    "path": path,
    "chunk": chunk,
    "hole": hole,
    **{f"{way}_{unit}_sec": number(0, SIZE_MOST) for way in ("total", "read", "write") for unit in ("bytes", "iops")},
}


def kind_of(call: str, path_: str) -> Strategy | None:
    """How a field can be wrong; None for one that has no wrong value of its own (a flag, a message)."""
    full = f"{call}.{path_}"
    return KINDS.get(full) or KINDS.get(path_.rpartition(".")[2])
