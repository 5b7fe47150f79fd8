"""The worker: imports one plugin, opens one pool of it, and makes its calls in threads.

`python -m volgate.worker.process PLUGIN LEVEL DESCRIPTORS`, the last being how many it was given.
Descriptor 3 is the socket to the gateway; its end is the end of the worker. Descriptor 4, if there is one, is the lock of the pool that
it works on: it and its children hold it. Nothing here runs in the gateway.
"""

from __future__ import annotations

import faulthandler
import inspect
import itertools
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

import msgspec
import structlog
from opentelemetry import context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from volgate import telemetry
from volgate.backend import AdmitRequest, Backend, BackendType, DiskContext, FinishedRecord, PoolContext, capabilities
from volgate.backend import run as commands
from volgate.backend import secrets as secret_sources
from volgate.errors import Cancelled, InvalidRequest, NotFound, Unreachable
from volgate.lanes import Lane
from volgate.secret import Secret
from volgate.settings import convert_strictly
from volgate.worker import loading
from volgate.worker.facet_calls import METHODS, FacetCall
from volgate.worker.frames import Answer, Ask, Call, Cancel, Channel, Failure, Part, Ping, Pong, Progress, Reply
from volgate.worker.learning import learn
from volgate.worker.offers import Described, Offer, Opened

__all__ = ["HOOKS", "Worker", "main"]

_SOCKET, _OCCUPANCY = 3, 4
_WIDTH, _DEPTH = 64, 4096
_ASK_SECONDS = 30.0
_OUT_OF_MEMORY = 12
HOOKS = ("volgate_admit", "volgate_disk", "volgate_finished", "volgate_secrets")
_TOLD: dict[str, type[AdmitRequest | DiskContext | FinishedRecord]] = {
    "volgate_admit": AdmitRequest,
    "volgate_disk": DiskContext,
    "volgate_finished": FinishedRecord,
}
learn(_TOLD.values())
_log = structlog.get_logger()


class Worker:
    """One plugin in this process."""

    def __init__(self, plugin: str, channel: Channel) -> None:
        """Take the plugin's entry point; it is imported by the first call that needs it."""
        self._value = plugin
        self._channel = channel
        self._lane = Lane("worker", _WIDTH, _DEPTH)
        self._importing = threading.Lock()
        self._plugin: Any = None
        self._backend: Backend | None = None
        self._cancelled: set[int] = set()
        self._asked: dict[int, Future[str]] = {}
        self._numbers = itertools.count()

    def serve(self) -> None:
        """Receive until the gateway is gone."""
        while (frame := self._channel.receive()) is not None:
            match frame:
                case Ping():
                    self._channel.send(Pong())
                case Cancel(id=identifier):
                    self._cancelled.add(identifier)
                case Reply():
                    self._replied(frame)
                case Call():
                    self._lane.submit(self._run, frame)
                case _:
                    raise ValueError(f"a {type(frame).__name__} from the gateway")

    def _run(self, call: Call) -> None:
        began = time.monotonic()
        token = context.attach(TraceContextTextMapPropagator().extract({"traceparent": call.trace})) if call.trace else None
        try:
            value = self._own(call) if call.method not in METHODS else self._facet(call, METHODS[call.method])
            self._channel.send(Answer(call.id, value, time.monotonic() - began))
        except MemoryError:
            _log.exception("out of memory", method=call.method)
            os._exit(_OUT_OF_MEMORY)  # what the plugin keeps may be torn: nothing more is asked of it
        except Exception as error:  # noqa: BLE001  # foreign code: whatever it raises goes to the caller
            failure = Failure.of(call.id, error)
            if not failure.reason and call.method in METHODS:
                _log.exception("the plugin raised what is no answer", method=call.method)
            self._channel.send(failure)
        finally:
            self._cancelled.discard(call.id)
            if token is not None:
                context.detach(token)

    def _facet(self, call: Call, method: FacetCall) -> msgspec.Raw:
        if self._backend is None:
            raise NotFound("the pool is not open in this worker")
        arguments = method.unpack(call.arguments)
        if method.progress:
            arguments[method.progress] = self._teller(call.id)
        value = getattr(self._backend, method.name)(**arguments)
        if not method.yields:
            return method.pack_answer(value)
        *most, last = method.pieces(value)
        for piece in most:
            self._channel.send(Part(call.id, method.pack_answer(piece)))
        return method.pack_answer(last)

    def _teller(self, identifier: int) -> Callable[[float], None]:
        def tell(fraction: float) -> None:
            if identifier in self._cancelled:
                raise Cancelled("the operation was cancelled")
            self._channel.send(Progress(identifier, fraction))

        return tell

    def _own(self, call: Call) -> msgspec.Raw:
        known: dict[str, Callable[..., object]] = {
            "describe": self.describe,
            "validate": self.validate,
            "open": self.open,
            "hook": self.answer_hook,
        }
        arguments = {name: msgspec.msgpack.decode(raw) for name, raw in call.arguments.items()}
        return msgspec.Raw(msgspec.msgpack.encode(known[call.method](**arguments)))

    def describe(self) -> Described:
        """Import the plugin and ask what it offers."""
        plugin = self._imported()
        offers = tuple(Offer(o.kind, o.summary, o.width, o.depth, o.machine_bound) for o in loading.offers(plugin))
        return Described(offers, tuple(name for name in loading.answered(plugin) if name in HOOKS))

    def validate(self, kind: str, table: Mapping[str, Any], where: str) -> None:
        """Read a pool's table as `open` would. Raises InvalidRequest naming the key."""
        convert_strictly(table, self._offer(kind).settings, where)

    def open(self, kind: str, table: Mapping[str, Any], where: str, pool: str, instance: str) -> Opened:
        """Open the pool."""
        offer = self._offer(kind)
        secret_sources.install(self._ask)
        self._backend = offer.open(convert_strictly(table, offer.settings, where), PoolContext(pool, instance))
        return Opened(capabilities(self._backend), self._backend.traits)

    def answer_hook(self, name: str, arguments: dict[str, Any]) -> object:
        """Ask one of the plugin's other hooks; pluggy's rule holds: an implementation takes the arguments that it names."""
        if name not in HOOKS:
            raise NotFound(f"there is no hook {name}")
        if name in _TOLD:
            told = "context" if name == "volgate_disk" else "record" if name == "volgate_finished" else "request"
            arguments[told] = msgspec.convert(arguments[told], _TOLD[name])
        function = getattr(self._imported(), name)
        answer = function(**{key: value for key, value in arguments.items() if key in inspect.signature(function).parameters})
        return answer.reveal() if isinstance(answer, Secret) else answer

    def _imported(self) -> Any:
        with self._importing:
            if self._plugin is None:
                self._plugin = loading.load(self._value)
            return self._plugin

    def _offer(self, kind: str) -> BackendType:
        for offer in loading.offers(self._imported()):
            if offer.kind == kind:
                return offer
        raise InvalidRequest(f"plugin {self._value} offers no pools of kind {kind!r}", field="kind")

    def _ask(self, reference: str) -> Secret:
        """Get a secret from the gateway, which knows the vaults."""
        number, future = next(self._numbers), Future[str]()
        self._asked[number] = future
        try:
            self._channel.send(Ask(number, reference))
            return Secret(future.result(_ASK_SECONDS))
        except TimeoutError:
            raise Unreachable(f"secret {reference}: the gateway did not get it within {_ASK_SECONDS:g} s", reason="WORKER_LOST") from None
        finally:
            del self._asked[number]

    def _replied(self, reply: Reply) -> None:
        future = self._asked.get(reply.id)
        if future is None:
            return
        if reply.failure:
            future.set_exception(InvalidRequest(reply.failure, field="secret"))
        else:
            future.set_result(reply.value)


def main() -> None:
    """Be a worker until the gateway is gone; what still runs then is abandoned with the process."""
    faulthandler.enable()
    plugin, level, descriptors = sys.argv[1:]
    telemetry.configure_logs(level)
    if int(descriptors) > _OCCUPANCY:
        os.set_inheritable(_OCCUPANCY, False)  # given to children by name
        commands.always_occupy(_OCCUPANCY)
    with socket.socket(fileno=_SOCKET) as end:
        end.set_inheritable(False)
        try:
            Worker(plugin, Channel(end)).serve()
        finally:
            os._exit(0)


if __name__ == "__main__":
    main()
