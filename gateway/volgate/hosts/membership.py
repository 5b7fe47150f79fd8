"""What a host belongs to: one gateway for good, and the session of its present registration. Shared by many threads."""

from __future__ import annotations

import threading
import uuid

import structlog

from volgate.errors import Denied, Precondition, Unreachable
from volgate.hosts.wire import PROTOCOL
from volgate.store.steps import Steps

__all__ = ["Membership"]

_INSTANCE = "instance"
_log = structlog.get_logger()


class Membership:
    """Whether this host serves, and whom."""

    def __init__(self, name: str, steps: Steps) -> None:
        """Nothing is served before a controller has taken the host in."""
        self.name = name
        self._steps = steps
        self._lock = threading.Lock()
        self._instance = steps.get(_INSTANCE)
        self._session = uuid.uuid4().hex
        self._accepted = False
        self._refusals: dict[str, str] = {}
        self._repaired = False

    @property
    def instance(self) -> str:
        """The gateway that the host belongs to; "" before its first registration."""
        return self._instance

    @property
    def session(self) -> str:
        """The session that a registration is to have now."""
        return self._session

    def accept(self, address: str, instance: str) -> None:
        """A controller has taken the host in. Raises Denied (HOST_OF_ANOTHER) for one of another gateway: it is not served."""
        with self._lock:
            if self._instance and self._instance != instance:
                told = f"the controller at {address} is of gateway {instance}, this host belongs to {self._instance}; remove it there first"
                raise Denied(told, reason="HOST_OF_ANOTHER")
            if not self._instance:
                self._steps.put(_INSTANCE, instance)  # durable before the first call of that gateway
                self._instance = instance
            self._refusals.pop(address, None)
            if not self._accepted:
                _log.info("registered", controller=address, instance=instance)
            self._accepted = True

    def refuse(self, address: str, why: str) -> None:
        """A controller does not take the host in: nothing is served until it does."""
        with self._lock:
            if self._refusals.get(address) != why:
                _log.error("not registered, nothing is served", controller=address, error=why)
            self._refusals[address] = why

    def expire(self, session: str) -> None:
        """A controller knows this session no more: the host registers by a new one, and no call of the old one is done any more."""
        with self._lock:
            if session == self._session:
                self._session = uuid.uuid4().hex
                self._accepted = False

    def repaired(self) -> None:
        """What an earlier process left is mended: the host may serve."""
        self._repaired = True

    def admit(self, protocol: int, instance: str, session: str) -> None:
        """Let a call in. Raises Denied (HOST_OF_ANOTHER), Precondition (HOST_PROTOCOL, HOST_STALE), Unreachable (HOST_DOWN)."""
        if protocol != PROTOCOL:
            told = f"hosts/{self.name} speaks version {PROTOCOL} of the protocol, the controller {protocol}; run the same volgate on both"
            raise Precondition(told, reason="HOST_PROTOCOL")
        if not self._instance or instance != self._instance:
            whose = f"belongs to gateway {self._instance}" if self._instance else "belongs to no gateway yet"
            raise Denied(f"hosts/{self.name} {whose} and takes no calls of {instance or 'nobody'}", reason="HOST_OF_ANOTHER")
        with self._lock:
            refusals = "; ".join(self._refusals.values())
            served = self._accepted and not refusals
            stale = session != self._session
        if not served:
            raise Unreachable(f"hosts/{self.name} is not registered{': ' + refusals if refusals else ''}", reason="HOST_DOWN")
        if stale:
            raise Precondition(f"hosts/{self.name} has registered anew since; repeat the call", reason="HOST_STALE")
        if not self._repaired:
            raise Unreachable(f"hosts/{self.name} still mends what its last process left: libvirt does not answer", reason="HOST_DOWN")
