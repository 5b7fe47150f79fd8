"""How calls of the host interface travel between controller and host: read from its signatures once; values in msgpack, never pickle."""

from __future__ import annotations

import collections.abc
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args, get_origin, get_type_hints

import msgspec

from volgate import connection
from volgate.connection import Connection
from volgate.hosts.interface import AttachPlan, Host, HostEvent
from volgate.worker.frames import Failure
from volgate.worker.learning import learn

__all__ = ["CHANGES", "METHODS", "PROTOCOL", "HostCall", "pack_event", "pack_failure", "unpack_event", "unpack_failure"]

PROTOCOL = 1
"""The version of what travels. It changes when a value or a method does that the other side cannot do without."""
CHANGES = frozenset({"attach", "detach", "release", "resize", "limit", "switch_overlay", "freeze", "grow", "thaw", "resume", "repair"})
"""Calls whose outcome is in doubt when their answer is lost; all others only look."""

_UNSENT = frozenset({"info", "subscribe", "close"})
_LOCATIONS = {kind.__name__: kind for kind in (get_args(connection.Connection) or (connection.Connection,))}


@dataclass(frozen=True, slots=True)
class HostCall:
    """One method of the host interface: the types of its parameters and of its answer."""

    name: str
    parameters: dict[str, Any]
    answer: Any

    def pack(self, arguments: Mapping[str, Any]) -> dict[str, bytes]:
        """Encode the arguments."""
        return {name: msgspec.msgpack.encode(_tagged(value)) for name, value in arguments.items()}

    def unpack(self, arguments: Mapping[str, bytes]) -> dict[str, Any]:
        """Decode the arguments. Raises ValueError for what is not as the signature says."""
        if set(arguments) != set(self.parameters):
            raise ValueError(f"{self.name} has the arguments {sorted(self.parameters)}, not {sorted(arguments)}")
        return {name: _decoded(raw, self.parameters[name]) for name, raw in arguments.items()}

    def pack_answer(self, value: Any) -> bytes:
        """Encode the answer."""
        return msgspec.msgpack.encode(value)

    def unpack_answer(self, raw: bytes) -> Any:
        """Decode the answer. Raises ValueError."""
        return msgspec.msgpack.decode(raw, type=self.answer)


def _tagged(value: Any) -> Any:
    """A connection travels with the name of its type, also within a plan."""
    if type(value).__name__ in _LOCATIONS:
        return (type(value).__name__, value)
    if isinstance(value, AttachPlan):
        fields = {name: getattr(value, name) for name in AttachPlan.__dataclass_fields__ if name != "connection"}
        return (_tagged(value.connection), fields)
    return value


def _decoded(raw: bytes, kind: Any) -> Any:
    if kind == Connection:
        return _location(msgspec.msgpack.decode(raw, type=tuple[str, msgspec.Raw]))
    if kind is AttachPlan:
        tagged, fields = msgspec.msgpack.decode(raw, type=tuple[tuple[str, msgspec.Raw], dict[str, msgspec.Raw]])
        hints = get_type_hints(AttachPlan)
        rest = {name: msgspec.msgpack.decode(part, type=hints[name]) for name, part in fields.items() if name in hints}
        return AttachPlan(connection=_location(tagged), **rest)
    return msgspec.msgpack.decode(raw, type=kind)


def _location(tagged: tuple[str, msgspec.Raw]) -> Any:
    name, raw = tagged
    if name not in _LOCATIONS:
        raise ValueError(f"a connection of the kind {name[:80]!r} is not known here")
    return msgspec.msgpack.decode(raw, type=_LOCATIONS[name])


def pack_failure(error: BaseException) -> bytes:
    """Encode what a call raised."""
    return msgspec.msgpack.encode(Failure.of(0, error))


def unpack_failure(raw: bytes) -> Exception:
    """What the call raised there."""
    return msgspec.msgpack.decode(raw, type=Failure).error()


def pack_event(event: HostEvent) -> bytes:
    """Encode an event."""
    return msgspec.msgpack.encode(event)


def unpack_event(raw: bytes) -> HostEvent:
    """Decode an event."""
    return msgspec.msgpack.decode(raw, type=HostEvent)


def _describe(name: str) -> HostCall:
    hints = get_type_hints(getattr(Host, name))
    answer = hints.pop("return")
    if get_origin(answer) is collections.abc.Sequence:
        answer = list[get_args(answer)[0]]  # type: ignore[misc]  # a type made at run time
    hints = {key: list[str] if get_origin(hint) is collections.abc.Sequence else hint for key, hint in hints.items()}
    return HostCall(name, hints, type(None) if answer is None else answer)


METHODS: dict[str, HostCall] = {
    name: _describe(name) for name, _ in inspect.getmembers(Host, inspect.isfunction) if not name.startswith("_") and name not in _UNSENT
}
"""Every method that travels, by name."""

_KINDS = [kind for call in METHODS.values() for kind in (*call.parameters.values(), call.answer)]
learn(_LOCATIONS.values())
learn(kind for kind in (*_KINDS, *get_type_hints(AttachPlan).values(), HostEvent, Failure) if kind not in (Connection, AttachPlan))
