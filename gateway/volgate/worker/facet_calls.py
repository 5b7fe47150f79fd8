"""How the calls of the facets travel: read from their signatures once, so that a facet is described in one place only."""

from __future__ import annotations

import collections.abc
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast, get_args, get_origin, get_type_hints

import msgspec

from volgate import connection
from volgate.backend import Backend, VolumeId, facets
from volgate.model import Source, VolumeSpec
from volgate.worker.learning import learn

__all__ = ["METHODS", "FacetCall", "facet"]

_UNSENT = frozenset({"close", "traits"})
_PIECES = 500
_LOCATIONS = {kind.__name__: kind for kind in (get_args(connection.Connection) or (connection.Connection,))}


@dataclass(frozen=True, slots=True)
class FacetCall:
    """One method of a facet: its parameters' types, its answer's, and which parameter is told of the progress."""

    name: str
    parameters: dict[str, Any]
    answer: Any
    progress: str
    yields: bool
    signature: inspect.Signature

    def bind(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Name the arguments of a call, defaults included."""
        bound = self.signature.bind(None, *args, **kwargs)
        bound.apply_defaults()
        return {name: value for name, value in bound.arguments.items() if name != "self"}

    def pack(self, arguments: dict[str, Any]) -> dict[str, msgspec.Raw]:
        """Encode the arguments; the progress stays here."""
        return {name: _pack(value) for name, value in arguments.items() if name != self.progress}

    def unpack(self, arguments: dict[str, msgspec.Raw]) -> dict[str, Any]:
        """Decode the arguments."""
        return {name: msgspec.msgpack.decode(raw, type=self.parameters[name]) for name, raw in arguments.items()}

    def pack_answer(self, value: Any) -> msgspec.Raw:
        """Encode the answer, or one piece of what the method yields."""
        return _pack(_tagged(value))

    def pieces(self, values: Iterator[Any]) -> Iterator[list[Any]]:
        """Cut what the method yields."""
        piece: list[Any] = []
        for value in values:
            piece.append(value)
            if len(piece) == _PIECES:
                yield piece
                piece = []
        yield piece

    def unpack_answer(self, raw: msgspec.Raw) -> Any:
        """Decode the answer, or one piece."""
        if self.answer == connection.Connection:
            return _location(msgspec.msgpack.decode(raw, type=tuple[str, msgspec.Raw]))
        if self.answer is facets.Overlay:
            top, base = msgspec.msgpack.decode(raw, type=tuple[tuple[str, msgspec.Raw], str])
            return facets.Overlay(_location(top), base)
        return msgspec.msgpack.decode(raw, type=self.answer)


def _pack(value: Any) -> msgspec.Raw:
    return msgspec.Raw(msgspec.msgpack.encode(value))


def _tagged(value: Any) -> Any:
    """A connection travels with the name of its type."""
    if type(value).__name__ in _LOCATIONS:
        return (type(value).__name__, value)
    if isinstance(value, facets.Overlay):
        return (_tagged(value.top), value.base)
    return value


def _location(tagged: tuple[str, msgspec.Raw]) -> Any:
    name, raw = tagged
    return msgspec.msgpack.decode(raw, type=_LOCATIONS[name])


def objects_of(arguments: dict[str, Any]) -> frozenset[str]:
    """The names of the volumes that a call is about: what a call that cannot be ended may still change."""
    found: set[str] = set()
    for name, value in arguments.items():
        if isinstance(value, VolumeId | VolumeSpec):
            found.add(value.name)
        if isinstance(value, VolumeSpec) and isinstance(value.source, Source):
            found.add(value.source.volume)
        if name == "name" and isinstance(value, str):
            found.add(value)
    return frozenset(found)


def facet(name: str) -> type[Backend]:
    """The facet of a name."""
    if name not in facets.FACET_NAMES:
        raise LookupError(f"this gateway knows no facet {name}")
    return cast("type[Backend]", getattr(facets, name))


def _describe(name: str, method: Callable[..., Any]) -> FacetCall:
    hints = get_type_hints(method, localns=vars(facets))
    answer = hints.pop("return", type(None))
    origin = get_origin(answer)
    if answer is None:
        answer = type(None)
    if origin is collections.abc.Iterator or origin is collections.abc.Sequence:
        answer = list[get_args(answer)[0]]  # type: ignore[misc]  # a type made at run time
    progress = next((key for key, hint in hints.items() if get_origin(hint) is collections.abc.Callable), "")
    return FacetCall(
        name=name,
        parameters={key: hint for key, hint in hints.items() if key != progress},
        answer=answer,
        progress=progress,
        yields=origin is collections.abc.Iterator,
        signature=inspect.signature(method),
    )


def _methods() -> dict[str, FacetCall]:
    found: dict[str, FacetCall] = {}
    kinds: Sequence[type[Backend]] = (Backend, *(facet(name) for name in facets.FACET_NAMES))
    for kind in kinds:
        for name in sorted(getattr(kind, "__abstractmethods__", ())):
            if name not in found and name not in _UNSENT:
                found[name] = _describe(name, getattr(kind, name))
    return found


METHODS: dict[str, FacetCall] = _methods()
"""Every method of every facet, by name: no two facets share one."""

learn(_LOCATIONS.values())
learn(
    kind
    for call in METHODS.values()
    for kind in (*call.parameters.values(), call.answer)
    if kind not in (connection.Connection, facets.Overlay)  # those travel with the name of their type
)
