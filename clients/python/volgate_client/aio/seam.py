"""What differs between asyncio and threads beyond the words `async` and `await`; `sync/seam.py` is its twin."""

# ruff: noqa: ASYNC109  # a timeout is also told to the gateway as the deadline

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeVar

import grpc
from grpc import aio

__all__ = ["Channel", "Unary", "Upload", "in_thread", "open_channel", "send", "sleep"]

Q = TypeVar("Q")
A = TypeVar("A")
T = TypeVar("T")
Channel = aio.Channel
Unary = aio.UnaryUnaryMultiCallable
Upload = aio.StreamUnaryMultiCallable

sleep = asyncio.sleep
in_thread = asyncio.to_thread


def open_channel(target: str, options: Sequence[tuple[str, Any]], credentials: grpc.ChannelCredentials | None) -> aio.Channel:
    """A channel; nothing is connected before the first call."""
    if credentials is None:
        return aio.insecure_channel(target, options=options)
    return aio.secure_channel(target, credentials, options=options)


async def send(method: Callable[..., Any], parts: AsyncIterator[Q], *, timeout: float, metadata: Any) -> Any:
    """Call a method with a stream of requests. What `parts` raises cancels the call and is raised here."""
    failures: list[BaseException] = []

    async def guarded() -> AsyncIterator[Q]:
        try:
            async for part in parts:
                yield part
        except Exception as error:  # the stream's own failure, which gRPC would hide: raised below
            failures.append(error)
            raise

    try:
        return await method(guarded(), timeout=timeout, metadata=metadata)
    except (asyncio.CancelledError, grpc.RpcError):
        if failures:
            raise failures[0] from None
        raise
