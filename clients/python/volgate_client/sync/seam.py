"""What differs between threads and asyncio beyond the words `async` and `await`; `aio/seam.py` is its twin."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ParamSpec, TypeVar

import grpc

__all__ = ["Channel", "Unary", "Upload", "in_thread", "open_channel", "send", "sleep"]

P = ParamSpec("P")
Q = TypeVar("Q")
T = TypeVar("T")
Channel = grpc.Channel
Unary = grpc.UnaryUnaryMultiCallable
Upload = grpc.StreamUnaryMultiCallable

sleep = time.sleep


def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a blocking function; the caller's thread may block."""
    return function(*args, **kwargs)


def open_channel(target: str, options: Sequence[tuple[str, Any]], credentials: grpc.ChannelCredentials | None) -> grpc.Channel:
    """A channel; nothing is connected before the first call."""
    if credentials is None:
        return grpc.insecure_channel(target, options=options)
    return grpc.secure_channel(target, credentials, options=options)


def send(method: Callable[..., Any], parts: Iterator[Q], *, timeout: float, metadata: Any) -> Any:
    """Call a method with a stream of requests. What `parts` raises cancels the call and is raised here."""
    failures: list[BaseException] = []
    started = threading.Event()

    def guarded() -> Iterator[Q]:
        started.wait()  # gRPC's thread may be here before the call has its name below
        try:
            yield from parts
        except Exception as error:  # noqa: BLE001  # raised in the caller's thread; here gRPC would only log it
            failures.append(error)
            call.cancel()

    # `future` and not a plain call: an interrupted caller (Ctrl-C) takes the call back
    call = getattr(method, "future")(guarded(), timeout=timeout, metadata=metadata)  # noqa: B009  # the stubs' types say less than they do
    started.set()
    try:
        return call.result()
    except grpc.FutureCancelledError:
        raise failures[0] from None  # nobody else cancels it
    except grpc.RpcError:
        if failures:
            raise failures[0] from None
        raise
    except BaseException:  # whatever it was, the call is not left running
        call.cancel()
        raise
