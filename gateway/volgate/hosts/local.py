"""This machine as a host: connectors and libvirt put together."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import structlog

from volgate.backend import secrets as references
from volgate.connect.local import unwritten
from volgate.connection import Connection, as_file
from volgate.errors import NotFound, Precondition, VolgateError
from volgate.hosts.connectors import Connectors
from volgate.hosts.freezing import Freezes
from volgate.hosts.identity import boot_id, identify, program_version
from volgate.hosts.interface import (
    AttachedDisk,
    AttachPlan,
    DetachOutcome,
    Domain,
    EventKind,
    Finding,
    FoundDisk,
    Halt,
    HostEvent,
    HostInfo,
    Presence,
)
from volgate.hosts.keys import Key, Keys
from volgate.hypervisor import block_jobs, domains, halts, limits, ours, overlay, qmp
from volgate.hypervisor.attach import Request, attach
from volgate.hypervisor.attach import plan as plan_disk
from volgate.hypervisor.calls import Calls, Libvirt
from volgate.hypervisor.devices import Device
from volgate.hypervisor.disk_xml import layers
from volgate.hypervisor.domains import Seen
from volgate.hypervisor.events import Event, Events
from volgate.hypervisor.facts import describe_domain, describe_link
from volgate.hypervisor.features import probe
from volgate.hypervisor.link import Link
from volgate.model import Feature, Leftover, PathState, Qos
from volgate.model import Path as IoPath
from volgate.secret import Secret

__all__ = ["LocalHost"]

_log = structlog.get_logger()
_GONE = Presence(domain_exists=False, active=False, live=False, config=False, qemu=False)
_INFO_SECONDS = 5.0
_ASK_SECONDS = 5.0  # a detach that is to wait for nothing still has so long to ask
_ASK_AGAIN = 6.0  # a guest in early boot misses the first request; QEMU refuses to repeat it for 5 seconds
_TICK = 1.0  # a detach looks this often although no event came: one may be lost with a connection


class LocalHost:
    """Implements :class:`volgate.hosts.interface.Host` on one libvirt connection; libvirt may be down at any time."""

    def __init__(
        self,
        name: str,
        uri: str,
        *,
        disk_hook: Callable[[str, AttachPlan], str] | None = None,
        resolve: Callable[[str], Secret] = references.resolve,
    ) -> None:
        """Nothing is connected yet. `disk_hook` may amend a rendered disk; `resolve` gets the key that a reference names."""
        self.name = name
        self._events = Events()
        self._clean: set[tuple[str, int]] = set()
        self._features: dict[tuple[str, str], tuple[Feature, ...]] = {}
        self._link = Link(uri, self._connected)
        self._calls = Calls(self._link)
        self._freezes = Freezes(self._calls)
        self._hook = disk_hook or (lambda xml, _plan: xml)
        self._keys = Keys(resolve)
        self._connectors = Connectors(name, resolve, self._known_features)

    def info(self) -> HostInfo:
        """Describe the host; a libvirt that is down is a fact, not an error."""
        deadline = time.monotonic() + _INFO_SECONDS
        found = HostInfo(self.name, identify(), self._link.uri, connected=False, version=program_version())
        try:
            versions = self._calls.ask("describe", deadline, describe_link)
            found = replace(found, connected=True, libvirt_version=versions[0], qemu_version=versions[1])
            return replace(found, features=self._calls.probe("features", deadline, partial(self._probe, versions)))
        except VolgateError as error:
            return replace(found, problem=error.message)

    def _probe(self, versions: tuple[str, str], connection: Libvirt) -> tuple[Feature, ...]:
        """Ask once for each connection and each QEMU: it is costly, and changes with neither."""
        known = self._features
        if versions not in known:
            known[versions] = probe(connection)
        return known[versions]

    def find_domain(self, reference: str, *, timeout: float) -> Domain:
        """Find a domain by name or uuid."""
        return self._find(reference, time.monotonic() + timeout)

    def _find(self, reference: str, deadline: float) -> Domain:
        return self._calls.ask("find", deadline, lambda c: Domain(*describe_domain(domains.lookup(c, reference))))

    def list_domains(self, *, timeout: float) -> Sequence[Domain]:
        """List every domain."""

        def work(connection: Libvirt) -> list[Domain]:
            found = []
            for domain in connection.listAllDomains():
                try:
                    found.append(Domain(*describe_domain(domain)))
                except NotFound:
                    continue  # it ended meanwhile
            return found

        return self._calls.ask("list", time.monotonic() + timeout, work)

    def prepare(self, plan: AttachPlan, *, timeout: float) -> str:
        """Prove the volume and render its disk for a domain that somebody else starts."""
        deadline = time.monotonic() + timeout
        wanted, key = self._request(plan, deadline)

        def work(connection: Libvirt) -> str:
            self._keys.promise(connection, key)
            return plan_disk(domains.lookup(connection, plan.domain), wanted)

        return self._calls.look(self._key(plan.domain, deadline), "prepare", deadline, work)

    def attach(self, plan: AttachPlan, *, timeout: float) -> AttachedDisk:
        """Prove, attach, prove again."""
        deadline = time.monotonic() + timeout
        wanted, key = self._request(plan, deadline)

        def work(connection: Libvirt) -> AttachedDisk:
            domain = domains.lookup(connection, plan.domain)
            device, seen = self._keys.attach(connection, key, lambda: attach(domain, wanted, deadline=deadline))
            return _disk(plan.domain, domain.name(), device, live=seen.live is not None, config=seen.config is not None)

        return self._calls.change(self._key(plan.domain, deadline), "attach", deadline, work)

    def detach(self, domain: str, alias: str, source: str, *, timeout: float) -> DetachOutcome:
        """Take the disk away; with the last one that needs a secret, that too."""
        outcome = self._detach(domain, alias, source, timeout=timeout)
        if outcome is DetachOutcome.GONE and (not source or source.startswith(("rbd:", "iscsi:", "/dev/"))):
            try:
                self._calls.ask("secrets", time.monotonic() + _ASK_SECONDS, self._keys.sweep)
            except VolgateError as error:  # the disk is gone; the next detach looks again
                _log.warning("secrets that no domain needs may be left in libvirt", error=error.message)
        return outcome

    def _detach(self, domain: str, alias: str, source: str, *, timeout: float) -> DetachOutcome:
        """Ask, then wait for the guest in the caller's own thread: no lane and no lock is held meanwhile."""
        deadline = time.monotonic() + timeout

        def begin(connection: Libvirt) -> bool:
            found = domains.lookup(connection, domain)
            return domains.begin_detach(found, alias, source, settle=lambda: overlay.settle(found, alias, deadline=_soon(deadline)))

        try:
            key = self._key(domain, _soon(deadline))
            while True:
                mark, asked = self._events.mark(key), time.monotonic()
                waits = self._calls.change(key, "detach", _soon(deadline), begin)
                while time.monotonic() < asked + _ASK_AGAIN:
                    left = deadline - time.monotonic()
                    if waits and left > 0:
                        self._events.wait(key, mark, min(left, _TICK))
                    mark, waits = self._events.mark(key), True
                    if self._released(key, alias, source, deadline):
                        return DetachOutcome.GONE
                    if left <= 0:
                        return DetachOutcome.PENDING
        except NotFound as error:
            if error.reason != "DOMAIN_NOT_FOUND":
                raise
            return DetachOutcome.GONE

    def _released(self, domain: str, alias: str, source: str, deadline: float) -> bool:
        """Look once, after the configuration let go; what QEMU has and libvirt does not list is taken away."""

        def clear(connection: Libvirt) -> None:
            domains.clear(domains.lookup(connection, domain), alias, source, deadline=deadline)

        seen = self._see(domain, alias, source, _soon(deadline))
        if seen.live is None and seen.qemu:
            self._calls.change(domain, "repair", _soon(deadline), clear)
            seen = self._see(domain, alias, source, _soon(deadline))
        return seen.gone

    def _see(self, domain: str, alias: str, source: str, deadline: float) -> Seen:
        return self._calls.look(domain, "look", deadline, lambda c: domains.observe(domains.lookup(c, domain), alias, source, config=None))

    def release(self, source: str, *, timeout: float) -> None:
        """Take its devices and sessions away."""
        self._connectors.release(source, time.monotonic() + timeout)

    def grow(self, source: str, size: int, *, timeout: float) -> None:
        """Have its devices learn the size."""
        self._connectors.grow(source, size, time.monotonic() + timeout)

    def held(self, *, timeout: float) -> Sequence[str]:
        """What is connected here."""
        return self._connectors.held(time.monotonic() + timeout)

    def leftovers(self, accounted: Sequence[str], *, apply: bool, timeout: float) -> Sequence[Leftover]:
        """What is connected here that nothing accounts for."""
        return self._connectors.leftovers(accounted, time.monotonic() + timeout, apply=apply)

    def presence(self, domain: str, alias: str, source: str, *, timeout: float) -> Presence:
        """Look where the disk is."""

        def work(connection: Libvirt) -> Presence:
            try:
                found = domains.lookup(connection, domain)
                boot = describe_domain(found)[4]
                seen = domains.observe(found, alias, source)
            except NotFound:
                return _GONE
            device = seen.live or seen.config
            if device and seen.config and seen.config.source == source and device.source in layers(seen.config.xml):
                device = seen.config  # of a switch cut in two: a layer that the next start needs is in use
            return Presence(
                domain_exists=True,
                active=seen.active,
                live=seen.live is not None,
                config=seen.config is not None,
                qemu=seen.qemu,
                source=device.source if device else "",
                boot=boot,
            )

        deadline = time.monotonic() + timeout
        return self._calls.look(self._key(domain, deadline, missing=domain), "look", deadline, work)

    def our_disks(self, *, timeout: float) -> Sequence[FoundDisk]:
        """List the disks whose alias is ours."""

        def work(connection: Libvirt) -> list[FoundDisk]:
            listed: list[FoundDisk] = []
            for domain in connection.listAllDomains():
                try:
                    identity, name = describe_domain(domain)[:2]
                    listed += [_found_disk(identity, name, disk) for disk in ours.our_disks(domain)]
                except NotFound:
                    continue  # it ended meanwhile
            return listed

        return self._calls.ask("disks", time.monotonic() + timeout, work)

    def resize(self, domain: str, alias: str, size: int, *, timeout: float) -> int:
        """Grow the attached disk."""
        deadline = time.monotonic() + timeout

        def work(connection: Libvirt) -> int:
            found = domains.lookup(connection, domain)
            overlay.settle(found, alias, deadline=deadline)
            return block_jobs.resize(found, domains.require_live(found, alias), size)

        return self._calls.change(self._key(domain, deadline), "resize", deadline, work)

    def limit(self, domain: str, alias: str, qos: Qos, *, timeout: float) -> None:
        """Set the disk's limits."""

        def work(connection: Libvirt) -> None:
            found = domains.lookup(connection, domain)
            limits.limit(found, domains.observe(found, alias, ""), qos)

        deadline = time.monotonic() + timeout
        self._calls.change(self._key(domain, deadline), "limit", deadline, work)

    def switch_overlay(self, domain: str, alias: str, top: Connection, base: str, *, quiesce: bool, timeout: float) -> bool:
        """Put a layer on top, of a running guest through QEMU, of a stopped one in its configuration."""
        deadline = time.monotonic() + timeout
        source = self._connectors.file(as_file(top), deadline)
        key = self._key(domain, deadline)

        def work(connection: Libvirt) -> bool:
            found = domains.lookup(connection, domain)
            overlay.settle(found, alias, deadline=deadline)
            overlay.refuse_torn(found, alias, source, base)
            seen = domains.observe(found, alias, "")
            if seen.active:
                on_top = seen.live is not None and seen.live.source == source.path
                with block_jobs.frozen(found, partial(self._freezes.rescue, key)) if quiesce and not on_top else nullcontext():
                    overlay.switch(found, alias, source, base, unwritten=lambda: unwritten(as_file(top)), deadline=deadline)
            elif quiesce:
                raise Precondition(f"quiesce: {found.name()} does not run, there is no guest to freeze", reason="NO_AGENT")
            overlay.configure(found, alias, source)
            return quiesce

        return self._calls.change(key, "snapshot", deadline, work)

    def freeze(self, domain: str, *, timeout: float) -> None:
        """Freeze the guest's file systems."""
        deadline = time.monotonic() + timeout
        self._freezes.freeze(self._key(domain, deadline), deadline)

    def thaw(self, domain: str, *, timeout: float) -> bool:
        """Thaw them."""
        deadline = time.monotonic() + timeout
        return self._freezes.thaw(self._key(domain, deadline), deadline)

    def paths(self, domain: str, alias: str, *, timeout: float) -> Sequence[IoPath]:
        """The disk as the domain has it; a domain that cannot be asked is a failed path."""

        def work(connection: Libvirt) -> IoPath:
            found = domains.lookup(connection, domain)
            seen = domains.observe(found, alias, "")
            device = seen.live or seen.config
            if device is None:
                return IoPath("libvirt", self.name, found.name(), alias, PathState.FAILED, last_error="the domain does not have the disk")
            errors = qmp.io_errors(found, alias) if seen.live else 0
            facts = {"alias": alias, "target": device.target, "address": device.place, "serial": device.serial}
            state = PathState.ACTIVE_OPTIMIZED if seen.live else PathState.STANDBY
            return IoPath("libvirt", self.name, found.name(), device.target, state, errors=errors, facts=facts)

        deadline = time.monotonic() + timeout
        try:
            return [self._calls.look(self._key(domain, deadline), "paths", deadline, work)]
        except VolgateError as error:
            return [IoPath("libvirt", self.name, domain, alias, PathState.FAILED, last_error=error.message)]

    def file_paths(self, connection: Connection, *, timeout: float) -> Sequence[IoPath]:
        """The host's part of the way."""
        return self._connectors.paths(connection, time.monotonic() + timeout)

    def renew_key(self, connection: Connection, *, timeout: float) -> None:
        """Let libvirt have the key of now."""
        deadline = time.monotonic() + timeout
        if (key := self._connectors.key(connection, self._keys, deadline, proven=False)) is not None:
            self._calls.ask("renew the key", deadline, lambda c: self._keys.renew(c, key))

    def renew_passphrase(self, reference: str, *, timeout: float) -> None:
        """Let libvirt have the passphrase of now."""
        deadline = time.monotonic() + timeout
        key = self._connectors.passphrase(reference, self._keys, deadline)
        self._calls.ask("renew the passphrase", deadline, lambda c: self._keys.renew(c, key))

    def sweep_secrets(self, prepared: Sequence[str], *, timeout: float) -> None:
        """Remove what nothing needs."""
        self._keys.expect(prepared)
        self._calls.ask("secrets", time.monotonic() + timeout, self._keys.sweep)

    def repair(self, domain: str, sources: Sequence[str], *, apply: bool, timeout: float) -> Sequence[Finding]:
        """Find orphans, and remove them if asked."""
        deadline = time.monotonic() + timeout

        def work(connection: Libvirt) -> list[Finding]:
            found, gone = domains.orphans(domains.lookup(connection, domain), sources, deadline if apply else None)
            return [Finding(domain, name, "", "QEMU has it, libvirt does not list it", gone) for name in found.names]

        return self._calls.change(self._key(domain, deadline), "repair", _soon(deadline), work)

    def halted(self, *, timeout: float) -> Sequence[Halt]:
        """List the domains that an I/O error stopped."""
        deadline = time.monotonic() + timeout

        def disks_of(domain: str, connection: Libvirt) -> tuple[str, ...]:
            return halts.failed_disks(domains.lookup(connection, domain))

        found = []
        for domain, name in self._calls.ask("halted", deadline, halts.halted):
            try:
                disks = self._calls.look(domain, "halted", deadline, partial(disks_of, domain))
            except VolgateError as error:
                _log.info("a stopped domain does not tell by which disk", domain=name, error=error.message)
            else:
                found.append(Halt(domain, name, disks))
        return found

    def resume(self, domain: str, *, timeout: float) -> bool:
        """Let it run again."""
        deadline = time.monotonic() + timeout
        return self._calls.change(self._key(domain, deadline), "resume", deadline, lambda c: halts.resume(domains.lookup(c, domain)))

    def subscribe(self, listener: Callable[[HostEvent], None]) -> None:
        """Hand events on; libvirt is connected, and stays so, from now on."""

        def tell(event: Event) -> None:
            listener(HostEvent(EventKind(event.kind), event.domain, event.alias))

        self._events.subscribe(tell)
        self._link.start()
        self._connectors.keep()

    def close(self) -> None:
        """Let go of libvirt."""
        self._freezes.close()
        self._calls.close()
        self._connectors.close()
        self._link.close()
        self._events.close()

    def _connected(self, connection: Libvirt) -> None:
        """A new connection may mean a libvirtd that died, or another one: orphans are looked for again, features asked for."""
        self._clean.clear()
        self._features = {}
        self._keys.forget()
        self._events.register(connection)

    def _request(self, plan: AttachPlan, deadline: float) -> tuple[Request, Key | None]:
        source, key = self._connectors.ready(plan, self._keys, deadline)
        return Request(source, plan.options, plan.alias, lambda xml: self._hook(xml, plan), plan.beside, self._clean), key

    def _known_features(self, deadline: float) -> Collection[Feature]:
        """What QEMU here can; asked for once."""
        known = next(iter(self._features.values()), None)
        return known or self._calls.probe("features", deadline, lambda c: self._probe(describe_link(c), c))

    def _key(self, domain: str, deadline: float, *, missing: str = "") -> str:
        """The uuid of a domain, by which its lanes are known. Raises NotFound unless `missing` says what to take then."""
        try:
            return str(uuid.UUID(domain))
        except ValueError:
            pass
        try:
            return self._find(domain, deadline).uuid
        except NotFound:
            if not missing:
                raise
            return missing


def _found_disk(domain: str, name: str, seen: ours.Found) -> FoundDisk:
    return FoundDisk(_disk(domain, name, seen.device, live=seen.live, config=seen.config), ours.read_options(seen.device.xml))


def _disk(domain: str, name: str, device: Device, *, live: bool, config: bool) -> AttachedDisk:
    return AttachedDisk(
        domain=domain,
        domain_name=name,
        alias=device.alias,
        target=device.target,
        address=device.place,
        source=device.source,
        live=live,
        config=config,
        xml=device.xml,
        boot_id=boot_id(),
    )


def _soon(deadline: float) -> float:
    """A deadline that leaves time to ask libvirt at all."""
    return max(deadline, time.monotonic() + _ASK_SECONDS)
