"""The backend that the gateway calls while the plugin's own one lives in a worker: the same facets, every method a call to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from volgate.backend import Backend, Traits
from volgate.worker.facet_calls import METHODS, FacetCall, facet
from volgate.worker.supervisor import Supervisor

__all__ = ["proxy"]


def proxy(supervisor: Supervisor) -> Backend:
    """Open the pool and return its backend. Raises what the plugin raises, Unreachable."""
    opened = supervisor.open()
    named = [facet(name) for name in opened.capabilities]
    bases = tuple(kind for kind in named if not any(other is not kind and issubclass(other, kind) for other in named)) or (Backend,)
    missing = {name for kind in bases for name in kind.__abstractmethods__}
    body: dict[str, Any] = {name: _forwarded(METHODS[name]) for name in missing & METHODS.keys()}
    body |= {"traits": property(_traits), "close": _close, "__slots__": ("supervisor", "seen")}
    made = cast("Any", type("InWorker", bases, body))()
    made.supervisor, made.seen = supervisor, opened.traits
    return cast("Backend", made)


def _forwarded(method: FacetCall) -> Callable[..., Any]:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.supervisor.call(method, method.bind(*args, **kwargs))

    call.__name__ = method.name
    return call


def _traits(self: Any) -> Traits:
    return cast("Traits", self.seen)


def _close(self: Any) -> None:
    self.supervisor.close()
