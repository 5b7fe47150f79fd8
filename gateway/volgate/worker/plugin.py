"""A plugin that only a worker imports: what it offers, and its other hooks."""

from __future__ import annotations

import threading
import time
from typing import Any

import msgspec

from volgate.errors import Unreachable, VolgateError
from volgate.worker.link import Link, Lost, Start
from volgate.worker.offers import Described

__all__ = ["Broken", "PluginWorker"]

_PAUSE = 5.0
_described = msgspec.msgpack.Decoder(Described)


class Broken(Exception):
    """The plugin cannot be imported, or does not answer what it offers; `passing`: its process was lost, or slow, the next may do."""

    def __init__(self, told: str, *, passing: bool = False) -> None:
        """`told` is for the operator."""
        super().__init__(told)
        self.passing = passing


class PluginWorker:
    """One plugin in a process that opens no pool. The process stays only for a plugin with hooks other than `volgate_backends`."""

    def __init__(self, start: Start) -> None:
        """Nothing is started yet."""
        self._start = start
        self._lock = threading.Lock()
        self._link: Link | None = None
        self._until = 0.0
        self.described = Described((), ())

    def describe(self, seconds: float) -> Described:
        """Import the plugin and ask what it offers, for so long. Raises Broken in words for the operator."""
        try:
            link = Link(self._start)
        except Unreachable as error:
            raise Broken(error.message) from error
        try:
            raw = link.call("describe", {}, timeout=seconds)[-1]
            self.described = _described.decode(raw)
        except Lost as error:
            raise Broken(f"its import: the process that tried it was lost: {error}", passing=True) from error
        except (VolgateError, RuntimeError) as error:  # whatever its import raised is told to the operator
            link.end("the plugin is broken")
            raise Broken(str(error)) from error
        if self.described.hooks:
            self._link = link
        else:
            link.end("it is needed no more")
        return self.described

    def hook(self, name: str, arguments: dict[str, Any], *, timeout: float) -> Any:
        """Ask a hook. Raises the VolgateError that it raised; RuntimeError for a bug of it; Unreachable if it does not answer in time."""
        packed = {"name": name, "arguments": arguments}
        try:
            raw = self._live().call("hook", {key: _packed(value) for key, value in packed.items()}, timeout=timeout)[-1]
        except Lost as error:
            raise Unreachable(f"{name} of a plugin: its worker was lost: {error}", reason="WORKER_LOST") from error
        return msgspec.msgpack.decode(raw)

    def close(self) -> None:
        """End the process."""
        with self._lock:
            link, self._link, self._until = self._link, None, float("inf")
        if link is not None:
            link.end("the gateway stops")

    def _live(self) -> Link:
        with self._lock:
            if self._link is None or self._link.lost:
                if time.monotonic() < self._until:
                    raise Unreachable("its worker was lost a moment ago", reason="WORKER_LOST", retry_after=_PAUSE)
                self._until = time.monotonic() + _PAUSE
                self._link = Link(self._start)
            return self._link


def _packed(value: Any) -> msgspec.Raw:
    return msgspec.Raw(msgspec.msgpack.encode(value))


def refused(error: Exception) -> bool:
    """Whether what a hook raised is its answer, not a failure of it."""
    return isinstance(error, VolgateError) and error.reason not in ("WORKER_LOST", "LANE_TIMEOUT")
