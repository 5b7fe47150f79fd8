"""`volgate doctor`: what is wrong, and what to do about it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from volgate.cli.output import human, object_, short
from volgate.cli.session import SESSION
from volgate.errors import VolgateError as ServerError
from volgate.model import Feature
from volgate.settings import load
from volgate.v1 import host_pb2, operation_pb2, pool_pb2
from volgate.worker.remedies import remedy
from volgate_client import Client, VolgateError
from volgate_client.words import word

__all__ = ["Finding", "examine"]

_LITTLE_SPACE = 0.05
_LITTLE_STATE = 64 << 20  # bytes; the database and its log stay far below
_RENEWAL = timedelta(days=14)
_WANTED = {"QEMU": (5, 2), "libvirt": (7, 0)}
_NEEDED = {
    Feature.VIRTIO_BLK: "disks are attached on that bus unless another is asked for",
    Feature.BLOCKDEV: "every attach names the layers of its volume",
    Feature.EXTERNAL_SNAPSHOTS: "attached qcow2 volumes are snapshotted so",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One look: `ok` and what was seen, or a problem and what to do."""

    ok: bool
    subject: str
    seen: str
    action: str = ""


def examine(config: Path | None, state_dir: Path | None, *, repair: bool = False) -> int:
    """Look at everything, show it, return the exit status: 0, or 1 if anything is wrong. With `repair` leftovers of this machine go."""
    found = list(_state(config, state_dir)) if config or state_dir else []
    found += _certificates(config, state_dir)
    found += _database(config, state_dir)
    found += _plugins(config)
    try:
        with SESSION.client() as client:
            found += list(_server(client, repair=repair))
    except VolgateError as error:
        action = "start it with `volgate serve`, or name it with --server; the socket's group may use it"
        found.append(Finding(False, SESSION.address, error.message, action))  # ok
    problems = sum(not finding.ok for finding in found)
    lines = [
        f"{'ok     ' if f.ok else 'PROBLEM'}  {f.subject}: {f.seen}" + (f"\n         do: {f.action}" if f.action else "") for f in found
    ]
    lines.append(f"{problems} problem(s)" if problems else "all is well")
    object_({"ok": not problems, "findings": [asdict(finding) for finding in found]}, "\n".join(lines))
    return 1 if problems else 0


def _state(config: Path | None, state_dir: Path | None) -> Iterator[Finding]:
    """The state directory, as this user sees it."""
    try:
        folder = load(config, state_dir).state_dir
    except ServerError as error:
        yield Finding(ok=False, subject="configuration", seen=error.message, action="correct that key")
        return
    if not folder.is_dir():
        yield Finding(ok=False, subject=str(folder), seen="does not exist", action="`volgate serve` makes it, if its parent can be written")
        return
    free = shutil.disk_usage(folder).free
    writable = os.access(folder, os.W_OK | os.X_OK)
    seen = f"state directory, {human(free)} free" + ("" if writable else ", not writable")
    action = "" if writable else "run as the gateway's user, or correct the owner"
    if free < _LITTLE_STATE:
        action = "free space: without it no call is accepted"
    yield Finding(ok=not action, subject=str(folder), seen=seen, action=action)


def _certificates(config: Path | None, state_dir: Path | None) -> Iterator[Finding]:
    """The files of [tls], as the gateway would read them now: broken ones are not used, and those in use go on until they expire."""
    try:
        tls = load(config, state_dir).tls
    except ServerError:  # told already
        return
    if not (tls.certificate and tls.key and tls.client_authority):
        return
    from volgate.edge.certificates import Material

    try:
        material = Material.read(Path(tls.certificate), Path(tls.key), Path(tls.client_authority))
    except ServerError as error:
        action = "put good files there; a gateway that runs goes on with those that it read before, until they expire"
        yield Finding(ok=False, subject="TLS", seen=error.message, action=action)
        return
    left = material.until - datetime.now(UTC)
    action = "" if left > _RENEWAL else "renew it: new files are used without a restart"
    yield Finding(ok=not action, subject=tls.certificate, seen=f"serves TLS until {material.until:%Y-%m-%d %H:%M} UTC", action=action)
    if Path(tls.key).stat().st_mode & 0o077:
        seen, action = "others than its owner may use this private key", f"chmod 600 {tls.key}"
        yield Finding(ok=False, subject=tls.key, seen=seen, action=action)


def _database(config: Path | None, state_dir: Path | None) -> Iterator[Finding]:
    """The PostgreSQL of [database], asked as the gateway would."""
    try:
        database = load(config, state_dir).database
    except ServerError:  # told already
        return
    if not database.url:
        return
    from volgate.backend import secrets
    from volgate.store.postgres import probe

    try:
        seen = probe(database.url, (lambda: secrets.resolve(database.password)) if database.password else None)
    except ServerError as error:
        yield Finding(ok=False, subject="database", seen=error.message, action="bring it back, or correct [database]")
    else:
        yield Finding(ok=True, subject="database", seen=seen)


def _plugins(config: Path | None) -> Iterator[Finding]:
    """The broken plugins of this machine; those that nobody asked for yet are let alone."""
    from volgate.cli.serve import logs_to_stderr
    from volgate.registry import Registry

    logs_to_stderr()
    try:
        blocked = load(config).plugins.blocked
    except ServerError:  # told already
        blocked = ()
    registry = Registry(blocked)
    try:
        for plugin in registry.plugins():
            if plugin.status == "broken":
                yield Finding(ok=False, subject=f"plugin {plugin.name} {plugin.version}", seen=plugin.problem, action=plugin.action)
    finally:
        registry.close()


def _server(client: Client, *, repair: bool) -> Iterator[Finding]:
    from volgate.cli.leftovers import twins

    pools = list(client.list_pools())
    yield Finding(ok=True, subject=SESSION.address, seen="answers")
    yield from map(_pool, pools)
    hosts = list(client.list_hosts())
    yield from twins(hosts)
    for host in hosts:
        yield from _host(client, client.get_host(host.name) if host.connected else host, repair=repair)
    for held in client.list_attachments():
        if held.problem:
            subject = f"{held.name} ({short(held.volume)} on {held.domain_name})"
            yield Finding(ok=False, subject=subject, seen=held.problem, action=f"volgate attachment detach {short(held.name)} releases it")
    for operation in client.list_operations(unfinished_only=True):
        if operation.state == operation_pb2.OPERATION_STATE_IN_DOUBT:
            seen = f"{operation.method} of {operation.target} is in doubt and retried: {operation.error_message}"
            action = f"remove the cause; volgate operation watch {short(operation.name)}"
            yield Finding(ok=False, subject=operation.name, seen=seen, action=action)


def _pool(pool: pool_pb2.Pool) -> Finding:
    seen = f"{pool.kind}, {word(pool_pb2.PoolHealth, pool.health)}, {human(pool.free_bytes)} free of {human(pool.total_bytes)}"
    if pool.health != pool_pb2.POOL_HEALTH_OK:
        action = remedy(pool.problem) or "put right what it names; it is looked at again by itself"
        return Finding(ok=False, subject=pool.name, seen=f"{seen}: {pool.problem}", action=action)
    if pool.free_bytes < pool.total_bytes * _LITTLE_SPACE:
        return Finding(ok=False, subject=pool.name, seen=seen, action="free or add space: thin volumes stop their guests when it ends")
    notes = "; ".join(pool.notes)
    return Finding(ok=True, subject=pool.name, seen=f"{seen} ({notes})" if notes else seen)


def _host(client: Client, host: host_pb2.Host, *, repair: bool) -> Iterator[Finding]:
    if not host.connected:
        action = f"start libvirtd, and let the gateway's user connect to {host.uri}; or configure another [hosts] uri"
        yield Finding(ok=False, subject=host.name, seen=f"libvirt is not connected: {host.problem}", action=action)
        return
    seen = f"libvirt {host.libvirt_version}, QEMU {host.qemu_version}, features: {', '.join(host.features) or 'none'}"
    old = [
        f"{name} {found}"
        for name, found in (("libvirt", host.libvirt_version), ("QEMU", host.qemu_version))
        if _older(found, _WANTED[name])
    ]
    action = f"upgrade {' and '.join(old)}: {' '.join(f'{n} {a}.{b}' for n, (a, b) in _WANTED.items())} or newer is needed" if old else ""
    yield Finding(ok=not old, subject=host.name, seen=seen, action=action)
    yield from _lacks(host)
    if host.machine_id and host.machine_id == _machine_id():
        yield from _orphans(client, host, repair=repair)


def _lacks(host: host_pb2.Host) -> Iterator[Finding]:
    """What the default options need and the host does not have."""
    if host.problem:
        action = "repeat; the first look may take libvirt some seconds. If it stays, look at libvirtd's log"
        yield Finding(ok=False, subject=host.name, seen=f"its features are not known: {host.problem}", action=action)
        return
    missing = [f"{feature} ({why})" for feature, why in _NEEDED.items() if feature not in host.features]
    if missing:
        action = f"install or upgrade the QEMU that {host.uri} starts by default; if that is no QEMU at all, configure another [hosts] uri"
        yield Finding(ok=False, subject=host.name, seen=f"libvirt and QEMU lack {', '.join(missing)}", action=action)


def _older(version: str, wanted: tuple[int, int]) -> bool:
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    return bool(numbers) and numbers < wanted


def _machine_id() -> str:
    try:
        return Path("/etc/machine-id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _orphans(client: Client, host: host_pb2.Host, *, repair: bool) -> Iterator[Finding]:
    """Disks that QEMU has and libvirt does not list, on this machine, and what it has connected without an attachment."""
    from volgate.cli.leftovers import leftovers
    from volgate.cli.serve import logs_to_stderr
    from volgate.hosts.local import LocalHost

    logs_to_stderr()
    local = LocalHost(short(host.name), host.uri)
    try:
        for domain in host.domains:
            if not domain.active:
                continue
            for orphan in local.repair(domain.uuid, (), apply=False, timeout=10.0):
                action = f"repeat the attach or detach of that volume on {domain.name}: it repairs this; or restart the domain"
                yield Finding(ok=False, subject=f"{domain.name}: {orphan.alias}", seen=orphan.problem, action=action)
        yield from leftovers(client, host.name, local, repair=repair)
    except ServerError as error:
        yield Finding(
            ok=False, subject=host.name, seen=f"orphans were not looked for: {error.message}", action="run doctor as the gateway's user"
        )
    finally:
        local.close()
