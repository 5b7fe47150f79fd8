"""The host's own calls: it registers at each of its controllers and tells them that it is alive, on a thread for each."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import grpc
import structlog

from volgate.errors import Precondition, VolgateError
from volgate.hosts.identity import identify, program_version
from volgate.hosts.interface import HostInfo
from volgate.hosts.membership import Membership
from volgate.hosts.remote_channel import Channels, answered
from volgate.hosts.wire import PROTOCOL
from volgate.v1 import host_pb2, host_pb2_grpc

__all__ = ["Registrar"]

_log = structlog.get_logger()
_CALL_SECONDS = 5.0
_AWAY_SECONDS = 1.0  # between attempts at a controller that does not answer
_REFUSED_SECONDS = 5.0  # and at one that refuses
_STATUS_SECONDS = 2.0
_PROBLEM_LONGEST = 2000


@dataclass(frozen=True, slots=True)
class _Controller:
    """One controller, as the host reaches it."""

    address: str
    channel: grpc.Channel
    stub: host_pb2_grpc.HostServiceStub


class Registrar:
    """Keeps a host known to its controllers."""

    def __init__(self, membership: Membership, address: str, info: Callable[[], HostInfo], channels: Channels) -> None:
        """`address` is where controllers call this host; `info` asks libvirt."""
        self._membership = membership
        self._address = address
        self._info = info
        self._channels = channels
        self._stop = threading.Event()
        self._status = host_pb2.HostStatus(problem="libvirt was not asked yet")

    def start(self, controllers: tuple[str, ...]) -> None:
        """Begin with these controllers."""
        threading.Thread(target=self._look, name="host-status", daemon=True).start()
        for address in controllers:
            threading.Thread(target=self._keep, args=(address,), name=f"controller-{address}", daemon=True).start()

    def close(self) -> None:
        """Say nothing more."""
        self._stop.set()

    def _look(self) -> None:
        """Ask libvirt apart from the heartbeats: one that hangs delays none."""
        while True:
            found = self._info()
            self._status = host_pb2.HostStatus(
                uri=found.uri,
                connected=found.connected,
                problem=_one_line(found.problem),
                libvirt_version=found.libvirt_version,
                qemu_version=found.qemu_version,
                features=found.features,
            )
            if self._stop.wait(_STATUS_SECONDS):
                return

    def _keep(self, address: str) -> None:
        stamp: tuple[int, ...] = ()
        controller: _Controller | None = None
        pause = 0.0
        while not self._stop.wait(pause):
            try:
                if controller is None or stamp != self._channels.stamp():
                    stamp = self._channels.stamp()
                    controller = self._opened(address, controller)
                pause = self._attend(controller)
            except grpc.RpcError as error:
                told = answered(error)
                pause = _AWAY_SECONDS if told is None or told.retryable else _REFUSED_SECONDS
                if told is not None and not told.retryable:
                    self._membership.refuse(address, told.message)
                else:
                    _log.info("controller does not answer", controller=address, error=told.message if told else error.details())
            except VolgateError as error:
                self._membership.refuse(address, error.message)
                pause = _REFUSED_SECONDS

    def _opened(self, address: str, old: _Controller | None) -> _Controller:
        if old is not None:
            old.channel.close()
        channel = self._channels.open(address)
        return _Controller(address, channel, host_pb2_grpc.HostServiceStub(channel))

    def _attend(self, controller: _Controller) -> float:
        """Register, then tell that the host is alive until the controller wants to hear of it anew; return the pause before that."""
        session = self._membership.session
        answer = controller.stub.RegisterHost(self._registration(session), timeout=_CALL_SECONDS)
        self._membership.accept(controller.address, answer.instance)
        stamp = self._channels.stamp()
        beat = host_pb2.HeartbeatHostRequest(name=f"hosts/{self._membership.name}", session=session)
        while not self._stop.wait(answer.heartbeat_seconds):
            if session != self._membership.session or stamp != self._channels.stamp():
                return 0.0
            beat.status.CopyFrom(self._status)
            try:
                controller.stub.HeartbeatHost(beat, timeout=_CALL_SECONDS)
            except grpc.RpcError as error:
                told = answered(error)
                if isinstance(told, Precondition):
                    _log.warning("registering anew", controller=controller.address, error=told.message)
                    self._membership.expire(session)
                    return 0.0
                _log.info("controller does not answer", controller=controller.address, error=told.message if told else error.details())
        return 0.0

    def _registration(self, session: str) -> host_pb2.RegisterHostRequest:
        identity = identify()
        return host_pb2.RegisterHostRequest(
            name=f"hosts/{self._membership.name}",
            address=self._address,
            session=session,
            instance=self._membership.instance,
            protocol=PROTOCOL,
            version=program_version(),
            identity=host_pb2.HostIdentity(
                machine_id=identity.machine_id,
                boot_id=identity.boot_id,
                iqn=identity.iqn,
                nqn=identity.nqn,
                nvme_host_id=identity.nvme_host_id,
            ),
            status=self._status,
        )


def _one_line(text: str) -> str:
    """As a controller takes it: libvirt's own words may hold anything."""
    return "".join(c if c.isprintable() else " " for c in text)[:_PROBLEM_LONGEST]
