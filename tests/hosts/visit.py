"""What tests do at a site, as an orchestrator and an operator do it."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

from tests.labs.site import HostNode, Site, until
from tests.recovery.calls import POOL, Call, Caller, Refused
from volgate.store.steps import Step, Steps
from volgate.v1 import attachment_pb2, host_pb2, operation_pb2

__all__ = ["MIB", "Visit", "steps_of"]

MIB = 1 << 20
PATIENCE = 90.0
SHARED = attachment_pb2.ACCESS_MODE_SHARED


class Visit:
    """Calls on a site."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.h1, self.h2, self.h3 = (site.hosts[name] for name in ("h1", "h2", "h3"))
        self.caller = Caller(site.controller.address, PATIENCE)
        self._threads = ThreadPoolExecutor(4)

    def close(self) -> None:
        self.caller.channel.close()
        self._threads.shutdown(wait=False)

    def whole(self) -> None:
        """Everything runs, every host is taken in and open, no attachment is left, no guest has a disk."""
        site = self.site
        if not site.controller.runs:
            site.controller.start()
        for node in site.hosts.values():
            node.port.heal()
            if not node.runs:
                node.spawn()
        for node in site.hosts.values():
            node.wait_live()
            if node.guest and not node.guest.domain.isActive():
                node.guest.reset()
            self.cordon(node, uncordon=True)
        self.caller.settle(PATIENCE)
        for record in self.caller.list_attachments():
            self.caller(self.detach(record.name))
        self.caller.settle(PATIENCE)
        for node in (self.h1, self.h2):
            assert node.guest
            assert node.guest.disks() == []

    # -- calls

    def create(self, *, raw: bool = False, pool: str = POOL) -> str:
        name = f"v-{uuid.uuid4().hex[:8]}"
        self.caller(Call("create", {"pool": pool, "volume_id": name, "size_bytes": MIB, "format": 1 if raw else 2, "request_id": name}))
        return name

    def attach(self, name: str, node: HostNode, *, pool: str = POOL, **options: Any) -> Call:
        assert node.guest
        fields = {"volume": f"{pool}/volumes/{name}", "host": f"hosts/{node.name}", "domain": node.guest.name}
        chosen = attachment_pb2.DiskOptions(bus=attachment_pb2.DISK_BUS_VIRTIO_SCSI, **options)
        return Call("attach", {**fields, "options": chosen, "request_id": uuid.uuid4().hex})

    def attached(self, name: str, node: HostNode, **options: Any) -> attachment_pb2.Attachment:
        """Attach; the guest has the disk afterwards."""
        record = self.caller(self.attach(name, node, **options)).attachment
        assert node.guest
        node.guest.wait_disk(record.options.serial)
        return record

    def detach(self, name: str) -> Call:
        return Call("detach", {"name": name, "wait_seconds": 60, "request_id": uuid.uuid4().hex})

    def refused(self, call: Call, timeout: float = 30.0) -> Refused:
        """Make a call once that must fail."""
        try:
            answer = self.caller.once(call, timeout)
        except Refused as error:
            return error
        raise AssertionError(f"{call} was answered: {answer}")

    def begun(self, call: Call) -> Future[Any]:
        """Make a call in the background, with a connection of its own."""

        def make() -> Any:
            with Caller(self.site.controller.address, PATIENCE) as caller:
                return caller(call)

        return self._threads.submit(make)

    def cordon(self, node: HostNode, *, uncordon: bool = False) -> host_pb2.CordonHostResponse:
        request = host_pb2.CordonHostRequest(name=f"hosts/{node.name}", uncordon=uncordon)
        return self.site.controller.wire.hosts.CordonHost(request, timeout=30, wait_for_ready=True)

    def host(self, node: HostNode) -> host_pb2.Host:
        found = self.site.controller.host(node.name)
        assert found
        return found

    def usable(self, node: HostNode) -> None:
        """Wait until an attach there is possible."""
        until(lambda: self.host(node).live and "compared with the record" not in self.host(node).problem, PATIENCE)

    def in_doubt(self, call: Call) -> operation_pb2.Operation | None:
        """The operation of a call, if its outcome is in doubt."""
        rows = self.caller.list_operations(unfinished=True)
        wanted = operation_pb2.OPERATION_STATE_IN_DOUBT
        return next((row for row in rows if row.request_id == call.fields["request_id"] and row.state == wanted), None)

    def serials(self, node: HostNode) -> set[str]:
        """The disks that the guest has."""
        assert node.guest
        return {disk.serial for disk in node.guest.disks()}

    def sees(self, node: HostNode, serials: set[str], what: str = "") -> None:
        """Wait until the guest has these disks and no others: it hears of one a moment after QEMU has it."""
        until(lambda: self.serials(node) == serials, 30.0, f"{what}: the disks of {node.name}'s guest, to be {serials},")


@contextmanager
def frozen_qemu(node: HostNode) -> Iterator[None]:
    """QEMU stands still: libvirt finds the domain, but no change of it ends."""
    assert node.guest
    pid = node.guest.qemu_pid()
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def steps_of(node: HostNode, alias: str = "") -> list[Step]:
    """What a host's journal has of an alias, or has not ended."""
    steps = Steps(node.state / "host.db")
    try:
        return steps.of_alias(alias) if alias else steps.unfinished()
    finally:
        steps.close()
