"""The backend in a process of its own, as a gateway's worker: what is killed, held up and lied to while the tests look on."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from volgate.backend.secrets import resolve
from volgate.conformance.in_process import INSTANCE, POOL
from volgate.secret import Secret
from volgate.worker.facet_calls import METHODS
from volgate.worker.link import Link, Lost, Start
from volgate.worker.offers import PoolOf

__all__ = ["Child", "Lost"]

_SECONDS = 60.0


class Child:
    """A worker that has the pool open."""

    def __init__(self, plugin: str, kind: str, table: Mapping[str, Any], secret: Callable[[str], Secret] | None = None) -> None:
        """Start it and open the pool. Raises what the plugin raises, Lost."""
        self._link = Link(Start(plugin, "warning", silent=_SECONDS, secret=secret or resolve))
        pool = PoolOf(kind, dict(table), f"pools.{POOL}", POOL, INSTANCE)
        arguments = {name: msgspec.Raw(msgspec.msgpack.encode(value)) for name, value in msgspec.structs.asdict(pool).items()}
        try:
            self._link.call("open", arguments, timeout=_SECONDS)
        except BaseException:  # whatever it was, no process stays
            self.end()
            raise

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._link.pid

    def call(self, method: str, *args: Any, timeout: float = _SECONDS, **kwargs: Any) -> Any:
        """Call a method of the backend. Raises what it raises (RuntimeError for anything but our errors), Lost if it dies."""
        described = METHODS[method]
        arguments = described.bind(*args, **kwargs)
        progress = arguments.get(described.progress) if described.progress else None
        parts = self._link.call(method, described.pack(arguments), timeout=timeout, progress=progress)
        if described.yields:
            return [value for part in parts for value in described.unpack_answer(part)]
        return described.unpack_answer(parts[-1])

    def kill(self) -> None:
        """Kill the worker, without waiting until it is gone; its link may have done so already."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def end(self) -> None:
        """Kill the worker and wait until it is gone."""
        self._link.end("the test is over")
        self._link.gone.wait(_SECONDS)
