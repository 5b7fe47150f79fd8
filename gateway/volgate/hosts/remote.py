"""A host on another machine: the host interface over gRPC. Every call has a deadline; what was lost on the way is told as it is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from volgate.connection import Connection
from volgate.errors import InDoubt, InvalidRequest, Precondition, Unreachable, VolgateError
from volgate.hosts.interface import (
    AttachedDisk,
    AttachPlan,
    DetachOutcome,
    Domain,
    Finding,
    FoundDisk,
    Halt,
    HostEvent,
    HostInfo,
    Presence,
)
from volgate.hosts.remote_channel import Channels, answered, reach
from volgate.hosts.remote_events import Events
from volgate.hosts.standing import Standing
from volgate.hosts.wire import CHANGES, METHODS, PROTOCOL, unpack_failure
from volgate.model import Leftover, Path, Qos
from volgate.tracing import span
from volgate.v1 import agent_pb2, agent_pb2_grpc

__all__ = ["RemoteHost"]

_GONE = Presence(domain_exists=False, active=False, live=False, config=False, qemu=False)
_REACH_SECONDS = 5.0
_FRESH_SECONDS = 5.0  # a connection that answered so lately is used without asking whether it is there
_AWAY_SECONDS = 2.0
_ANSWER_SECONDS = 8.0  # beyond a call's own time: a host takes up to 5 seconds to ask libvirt at all, and the way back takes some
_GOES_ON = "NO_ANSWER"  # of all that a host may say, what the call outlives


class RemoteHost:
    """Implements :class:`volgate.hosts.interface.Host`.

    A host that is away is Unreachable (HOST_DOWN) as long as nothing was sent; a change whose answer was lost is InDoubt. Of a host
    that was released every disk is gone, and nothing else can be done.
    """

    def __init__(self, name: str, instance: str, channels: Channels, standing: Callable[[], Standing]) -> None:
        """`standing` tells how the host stands now. Nothing is connected yet."""
        self.name = name
        self._instance = instance
        self._channels = channels
        self._standing = standing
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = None
        self._made_of: tuple[object, ...] = ()
        self._answered = 0.0
        self._away: tuple[float, str] | None = None
        self._events = Events(name, standing, self._stub, self._speaker)

    def info(self) -> HostInfo:
        """What the host last said of itself; asks nobody."""
        return self._standing().info

    def find_domain(self, reference: str, *, timeout: float) -> Domain:
        """Find a domain by name or uuid."""
        found: Domain = self._call("find_domain", timeout, reference=reference)
        return found

    def list_domains(self, *, timeout: float) -> Sequence[Domain]:
        """List every domain."""
        found: list[Domain] = self._call("list_domains", timeout)
        return found

    def prepare(self, plan: AttachPlan, *, timeout: float) -> str:
        """Prove the volume and render its disk."""
        xml: str = self._call("prepare", timeout, plan=plan)
        return xml

    def attach(self, plan: AttachPlan, *, timeout: float) -> AttachedDisk:
        """Prove, attach, prove again."""
        disk: AttachedDisk = self._call("attach", timeout, plan=plan)
        return disk

    def detach(self, domain: str, alias: str, source: str, *, timeout: float) -> DetachOutcome:
        """Take a disk away; of a host that was released there is none."""
        if self._standing().info.released:
            return DetachOutcome.GONE
        outcome: DetachOutcome = self._call("detach", timeout, domain=domain, alias=alias, source=source)
        return outcome

    def release(self, source: str, *, timeout: float) -> None:
        """Let go of a volume; a host that was released does that itself when it returns."""
        if not self._standing().info.released:
            self._call("release", timeout, source=source)

    def grow(self, source: str, size: int, *, timeout: float) -> None:
        """Have the host's devices learn a volume's size."""
        self._call("grow", timeout, source=source, size=size)

    def held(self, *, timeout: float) -> Sequence[str]:
        """What the host has connected."""
        found: list[str] = self._call("held", timeout)
        return found

    def leftovers(self, accounted: Sequence[str], *, apply: bool, timeout: float) -> Sequence[Leftover]:
        """What the host has that nothing accounts for."""
        found: list[Leftover] = self._call("leftovers", timeout, accounted=list(accounted), apply=apply)
        return found

    def presence(self, domain: str, alias: str, source: str, *, timeout: float) -> Presence:
        """Look where the disk is; on a host that was released it is nowhere."""
        if self._standing().info.released:
            return _GONE
        seen: Presence = self._call("presence", timeout, domain=domain, alias=alias, source=source)
        return seen

    def resize(self, domain: str, alias: str, size: int, *, timeout: float) -> int:
        """Grow the attached disk."""
        grown: int = self._call("resize", timeout, domain=domain, alias=alias, size=size)
        return grown

    def limit(self, domain: str, alias: str, qos: Qos, *, timeout: float) -> None:
        """Set the disk's limits."""
        self._call("limit", timeout, domain=domain, alias=alias, qos=qos)

    def switch_overlay(self, domain: str, alias: str, top: Connection, base: str, *, quiesce: bool, timeout: float) -> bool:
        """Put a layer on top."""
        frozen: bool = self._call("switch_overlay", timeout, domain=domain, alias=alias, top=top, base=base, quiesce=quiesce)
        return frozen

    def freeze(self, domain: str, *, timeout: float) -> None:
        """Freeze the guest's file systems."""
        self._call("freeze", timeout, domain=domain)

    def thaw(self, domain: str, *, timeout: float) -> bool:
        """Thaw them."""
        held: bool = self._call("thaw", timeout, domain=domain)
        return held

    def our_disks(self, *, timeout: float) -> Sequence[FoundDisk]:
        """List the disks whose alias is ours."""
        found: list[FoundDisk] = self._call("our_disks", timeout)
        return found

    def paths(self, domain: str, alias: str, *, timeout: float) -> Sequence[Path]:
        """The libvirt part of the way."""
        found: list[Path] = self._call("paths", timeout, domain=domain, alias=alias)
        return found

    def file_paths(self, connection: Connection, *, timeout: float) -> Sequence[Path]:
        """The host's part of the way."""
        found: list[Path] = self._call("file_paths", timeout, connection=connection)
        return found

    def renew_key(self, connection: Connection, *, timeout: float) -> None:
        """Let libvirt there have the key of now."""
        self._call("renew_key", timeout, connection=connection)

    def renew_passphrase(self, reference: str, *, timeout: float) -> None:
        """Let libvirt there have the passphrase of now."""
        self._call("renew_passphrase", timeout, reference=reference)

    def sweep_secrets(self, prepared: Sequence[str], *, timeout: float) -> None:
        """Remove the secrets there that nothing needs."""
        self._call("sweep_secrets", timeout, prepared=list(prepared))

    def repair(self, domain: str, sources: Sequence[str], *, apply: bool, timeout: float) -> Sequence[Finding]:
        """Find orphans, and remove them if asked."""
        found: list[Finding] = self._call("repair", timeout, domain=domain, sources=list(sources), apply=apply)
        return found

    def halted(self, *, timeout: float) -> Sequence[Halt]:
        """List the domains that an I/O error stopped."""
        found: list[Halt] = self._call("halted", timeout)
        return found

    def resume(self, domain: str, *, timeout: float) -> bool:
        """Let such a domain run again."""
        again: bool = self._call("resume", timeout, domain=domain)
        return again

    def subscribe(self, listener: Callable[[HostEvent], None]) -> None:
        """Hand events on, from the first call on: a host that nobody asks has nothing that anybody waits for."""
        self._events.subscribe(listener)

    def close(self) -> None:
        """Let go of the connection; calls that run end as lost."""
        self._events.close()
        with self._lock:
            channel, self._channel = self._channel, None
            self._made_of = ("closed",)
        if channel is not None:
            channel.close()

    def _call(self, method: str, timeout: float, **arguments: Any) -> Any:
        standing = self._standing()
        standing.require_held()
        standing.require_live()
        call = METHODS[method]
        with span(f"host {method}", host=self.name):
            stub = self._reached(timeout)
            self._events.start()
            packed = call.pack({**arguments, "timeout": timeout})
            request = agent_pb2.CallRequest(speaker=self._speaker(), method=method, arguments=packed)
            carrier: dict[str, str] = {}
            TraceContextTextMapPropagator().inject(carrier)
            try:
                answer = stub.Call(request, timeout=timeout + _ANSWER_SECONDS, metadata=tuple(carrier.items()))
            except grpc.RpcError as error:
                self._answered = 0.0
                raise self._lost(method, error) from error
            self._answered = time.monotonic()
        if answer.WhichOneof("outcome") == "failure":
            failure = unpack_failure(answer.failure)
            raise self._unknown(method) if isinstance(failure, InvalidRequest) and failure.field == "method" else failure
        return call.unpack_answer(answer.value)

    def _unknown(self, method: str) -> Precondition:
        return Precondition(f"hosts/{self.name} does not know {method}; run the same volgate on both", reason="HOST_PROTOCOL")

    def _lost(self, method: str, error: grpc.RpcError) -> VolgateError:
        """What became of a call that has no answer."""
        told = answered(error)
        if isinstance(told, InvalidRequest) and told.field == "method":
            return self._unknown(method)
        if told is not None and told.reason != _GOES_ON:
            if told.reason == "HOST_STALE":  # refused by the host, so nothing was done; the next call has the new session
                return Unreachable(told.message, reason="HOST_DOWN", retry_after=1.0)
            return told
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            return self._unknown(method)
        text = f"{method} on hosts/{self.name}: no answer ({error.code().name}: {told.message if told else error.details()})"
        if method in CHANGES:
            return InDoubt(f"{text}; what came of it is looked at next")
        return Unreachable(text, reason="HOST_DOWN", retry_after=2.0)

    def _reached(self, timeout: float) -> agent_pb2_grpc.AgentServiceStub:
        channel = self._connected()
        if time.monotonic() - self._answered > _FRESH_SECONDS:
            self._reach(channel, timeout)
        return agent_pb2_grpc.AgentServiceStub(channel)

    def _reach(self, channel: grpc.Channel, timeout: float) -> None:
        """Wait for the connection; who asks right after another waited in vain waits no second time."""
        away = self._away
        if away is not None and time.monotonic() - away[0] < _AWAY_SECONDS:
            raise Unreachable(away[1], reason="HOST_DOWN", retry_after=_AWAY_SECONDS)
        try:
            reach(channel, min(max(timeout, 1.0), _REACH_SECONDS), f"hosts/{self.name} at {self._standing().info.address}")
        except Unreachable as error:
            self._away = (time.monotonic(), error.message)
            raise
        self._away = None

    def _stub(self) -> agent_pb2_grpc.AgentServiceStub:
        return agent_pb2_grpc.AgentServiceStub(self._connected())

    def _speaker(self) -> agent_pb2.Speaker:
        return agent_pb2.Speaker(protocol=PROTOCOL, instance=self._instance, session=self._standing().session)

    def _connected(self) -> grpc.Channel:
        """The channel to where the host is now, by the certificate of now."""
        wanted = (self._standing().info.address, self._channels.stamp())
        with self._lock:
            if self._made_of == ("closed",):
                raise Unreachable(f"hosts/{self.name} is let go of", reason="STOPPING")
            if self._channel is None or self._made_of != wanted:
                old, self._channel = self._channel, self._channels.open(str(wanted[0]), self.name)
                self._made_of, self._answered = wanted, 0.0
                if old is not None:
                    threading.Timer(60.0, old.close).start()  # calls that run on it end first
            return self._channel
