"""This machine as a host: connectors and libvirt put together."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from volgate.connect.health import file_paths
from volgate.connect.local import connect
from volgate.connection import Connection
from volgate.errors import NotFound, Precondition, VolgateError
from volgate.hosts.interface import AttachedDisk, AttachPlan, DetachOutcome, Domain, EventKind, Finding, HostEvent, HostInfo, Presence
from volgate.hypervisor import block_jobs, devices, domains, qmp, repair
from volgate.hypervisor.disk_xml import render
from volgate.hypervisor.events import Event, Events
from volgate.hypervisor.facts import describe_domain, describe_link
from volgate.hypervisor.link import Link
from volgate.model import Path as IoPath
from volgate.model import PathState

__all__ = ["LocalHost"]

_GONE = Presence(domain_exists=False, active=False, live=False, config=False, qemu=False)


class LocalHost:
    """Implements :class:`volgate.hosts.interface.Host` on one libvirt connection; libvirt may be down at any time."""

    def __init__(self, name: str, uri: str, *, disk_hook: Callable[[str, AttachPlan], str] | None = None) -> None:
        """Nothing is connected yet. `disk_hook` may amend a rendered disk."""
        self.name = name
        self._events = Events()
        self._link = Link(uri, self._events.register)
        self._hook = disk_hook or (lambda xml, _plan: xml)

    def info(self) -> HostInfo:
        """Describe the host; a libvirt that is down is a fact, not an error."""
        base = HostInfo(self.name, _first_line("/etc/machine-id"), _boot_id(), self._link.uri, connected=False)
        try:
            libvirt_version, qemu_version, features = self._link.call("", 10.0, "describe", lambda: describe_link(self._link.connection()))
        except VolgateError as error:
            return HostInfo(base.name, base.machine_id, base.boot_id, base.uri, connected=False, problem=error.message)
        return HostInfo(base.name, base.machine_id, base.boot_id, base.uri, True, libvirt_version, qemu_version, features)  # connected

    def find_domain(self, reference: str, *, timeout: float) -> Domain:
        """Find a domain by name or uuid."""
        return self._link.call("", timeout, "find", lambda: Domain(*describe_domain(domains.lookup(self._link.connection(), reference))))

    def list_domains(self, *, timeout: float) -> Sequence[Domain]:
        """List every domain."""
        return self._link.call("", timeout, "list", lambda: [Domain(*describe_domain(d)) for d in self._link.connection().listAllDomains()])

    def prepare(self, plan: AttachPlan, *, timeout: float) -> str:
        """Prove the volume and render its disk for a domain that somebody else starts."""

        def work() -> str:
            source = connect(plan.connection)
            found = devices.disks(domains.lookup(self._link.connection(), plan.domain).XMLDesc())
            target = devices.free_target({device.target for device in found}, plan.options.bus)
            return self._hook(render(source, plan.options, alias=plan.alias, target=target), plan)

        return self._link.call(plan.domain, timeout, "prepare", work)

    def attach(self, plan: AttachPlan, *, timeout: float) -> AttachedDisk:
        """Prove, attach, prove again."""

        def work() -> AttachedDisk:
            domain = domains.lookup(self._link.connection(), plan.domain)
            source = connect(plan.connection)
            device = domains.attach(
                domain, source, plan.options, alias=plan.alias, amend=lambda text: self._hook(text, plan), timeout=timeout
            )
            seen = domains.observe(domain, plan.alias, source.path)
            return AttachedDisk(
                domain=plan.domain,
                domain_name=domain.name(),
                alias=plan.alias,
                target=device.target,
                address=device.place,
                source=device.source,
                live=seen.live is not None,
                config=seen.config is not None,
                xml=device.xml,
                boot_id=_boot_id(),
            )

        return self._link.call(plan.domain, timeout, "attach", work)

    def detach(self, domain: str, alias: str, source: str, *, timeout: float) -> DetachOutcome:
        """Detach and wait for the guest; a domain that is gone holds nothing."""

        def work() -> bool:
            try:
                found = domains.lookup(self._link.connection(), domain)
            except NotFound:
                return True
            return domains.detach(found, alias, source, timeout=timeout, wait=self._events.wait)

        gone = self._link.call(domain, timeout + 15.0, "detach", work)
        return DetachOutcome.GONE if gone else DetachOutcome.PENDING

    def presence(self, domain: str, alias: str, source: str, *, timeout: float) -> Presence:
        """Look where the disk is."""

        def work() -> Presence:
            try:
                found = domains.lookup(self._link.connection(), domain)
            except NotFound:
                return _GONE
            seen = domains.observe(found, alias, source)
            device = seen.live or seen.config
            boot = describe_domain(found)[4]
            return Presence(
                True,
                seen.active,
                seen.live is not None,
                seen.config is not None,
                seen.qemu,
                device.source if device else "",
                boot,  # domain_exists
            )

        return self._link.call(domain, timeout, "look", work)

    def resize(self, domain: str, alias: str, size: int, *, timeout: float) -> int:
        """Grow the attached disk."""

        def work() -> int:
            found = domains.lookup(self._link.connection(), domain)
            return block_jobs.resize(found, self._live(domain, alias), size)

        return self._link.call(domain, timeout, "resize", work)

    def switch_overlay(self, domain: str, alias: str, top: Connection, base: str, *, quiesce: bool, timeout: float) -> bool:
        """Put a layer on top, of a running guest through QEMU, of a stopped one in its configuration."""

        def work() -> bool:
            found = domains.lookup(self._link.connection(), domain)
            source = connect(top)
            if found.isActive():
                device = self._live(domain, alias)
                if quiesce and device.source != source.path:
                    with block_jobs.frozen(found):
                        block_jobs.switch_overlay(found, device, source, base)
                else:
                    block_jobs.switch_overlay(found, device, source, base)
            elif quiesce:
                raise Precondition(f"quiesce: {found.name()} does not run, there is no guest to freeze", reason="NO_AGENT")
            block_jobs.configure_overlay(found, alias, source)
            return quiesce

        return self._link.call(domain, timeout, "snapshot", work)

    def paths(self, domain: str, alias: str, *, timeout: float) -> Sequence[IoPath]:
        """The disk as the domain has it."""

        def work() -> list[IoPath]:
            try:
                found = domains.lookup(self._link.connection(), domain)
                seen = domains.observe(found, alias, "")
            except VolgateError as error:
                return [IoPath("libvirt", self.name, domain, alias, PathState.FAILED, last_error=error.message)]
            device = seen.live or seen.config
            if device is None:
                return [IoPath("libvirt", self.name, found.name(), alias, PathState.FAILED, last_error="the domain does not have the disk")]
            errors = qmp.io_errors(found, alias) if seen.live else 0
            facts = {"alias": alias, "target": device.target, "address": device.place, "serial": device.serial}
            state = PathState.ACTIVE_OPTIMIZED if seen.live else PathState.STANDBY
            return [IoPath("libvirt", self.name, found.name(), device.target, state, errors=errors, facts=facts)]

        return self._link.call(domain, timeout, "paths", work)

    def file_paths(self, connection: Connection, *, timeout: float) -> Sequence[IoPath]:
        """The host's part of the way."""
        return self._link.call("", timeout, "file paths", lambda: file_paths(connection, self.name))

    def repair(self, domain: str, sources: Sequence[str], *, apply: bool, timeout: float) -> Sequence[Finding]:
        """Find orphans, and remove them if asked."""

        def work() -> list[Finding]:
            found = domains.lookup(self._link.connection(), domain)
            if not found.isActive():
                return []
            names, clean = repair.repair(found, sources, apply=apply, deadline=time.monotonic() + timeout)
            return [Finding(domain, name, "", "QEMU has it, libvirt does not list it", clean) for name in names]

        return self._link.call(domain, timeout + 5.0, "repair", work)

    def subscribe(self, listener: Callable[[HostEvent], None]) -> None:
        """Hand events on."""

        def tell(event: Event) -> None:
            listener(HostEvent(EventKind(event.kind), event.domain, event.alias))

        self._events.listeners.append(tell)

    def close(self) -> None:
        """Let go of libvirt."""
        self._link.close()

    def _live(self, domain: str, alias: str) -> devices.Device:
        found = domains.lookup(self._link.connection(), domain)
        device = domains.observe(found, alias, "").live
        if device is None:
            raise Precondition(f"{found.name()} does not have disk {alias} now")
        return device


def _boot_id() -> str:
    return _first_line("/proc/sys/kernel/random/boot_id")


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return ""
