"""What happens on a host on another machine: one stream, taken up again whenever it ends; a gap is told as a reconnection."""

from __future__ import annotations

import threading
from collections.abc import Callable

import grpc
import structlog

from volgate.errors import VolgateError
from volgate.hosts.interface import EventKind, HostEvent
from volgate.hosts.standing import Standing
from volgate.hosts.wire import unpack_event
from volgate.v1 import agent_pb2, agent_pb2_grpc

__all__ = ["Events"]

_log = structlog.get_logger()
_PAUSES = (0.2, 5.0)  # between attempts: the first, the longest; seconds


class Events:
    """One thread that listens, from `start` on."""

    def __init__(
        self,
        name: str,
        standing: Callable[[], Standing],
        stub: Callable[[], agent_pb2_grpc.AgentServiceStub],
        speaker: Callable[[], agent_pb2.Speaker],
    ) -> None:
        """Nothing is asked yet."""
        self._name = name
        self._standing = standing
        self._stub = stub
        self._speaker = speaker
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._listeners: list[Callable[[HostEvent], None]] = []
        self._end: Callable[[], object] = lambda: None

    def subscribe(self, listener: Callable[[HostEvent], None]) -> None:
        """Call `listener` for each event."""
        self._listeners.append(listener)

    def start(self) -> None:
        """Begin to listen; no effect if that has begun."""
        if self._thread is None:
            with self._lock:
                if self._thread is None and not self._stop.is_set():
                    self._thread = threading.Thread(target=self._listen, name=f"events-{self._name}", daemon=True)
                    self._thread.start()

    def close(self) -> None:
        """Listen no more."""
        self._stop.set()
        self._end()

    def _listen(self) -> None:
        pause = _PAUSES[0]
        while not self._stop.wait(pause):
            pause = min(2 * pause, _PAUSES[1])
            if not self._standing().info.live:
                continue
            try:
                stream = self._stub().Listen(agent_pb2.ListenRequest(speaker=self._speaker()))
                self._end = stream.cancel
                for answer in stream:
                    pause = _PAUSES[0]
                    self._tell(unpack_event(answer.event) if answer.event else HostEvent(EventKind.RECONNECTED))
            except (grpc.RpcError, VolgateError) as error:
                _log.debug("events of a host", host=self._name, error=str(error))

    def _tell(self, event: HostEvent) -> None:
        for listener in self._listeners:
            listener(event)
