"""The connection: one channel, the services' stubs, and what every call needs around them."""

# ruff: noqa: ASYNC109  # a timeout is also told to the gateway as the deadline

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any, Self, TypeVar

import grpc
from google.protobuf.message import Message

from volgate.v1 import (
    attachment_pb2,
    attachment_pb2_grpc,
    host_pb2_grpc,
    operation_pb2,
    operation_pb2_grpc,
    pool_pb2_grpc,
    snapshot_pb2_grpc,
    volume_pb2,
    volume_pb2_grpc,
)
from volgate_client import tls, trace
from volgate_client.aio import seam
from volgate_client.attempts import Attempts
from volgate_client.errors import Cancelled, DeadlineExceeded, VolgateError, from_operation, from_rpc
from volgate_client.target import DEFAULT, OPTIONS, File, target

__all__ = ["Connection"]

Q = TypeVar("Q", bound=Message)
A = TypeVar("A")
_UNFINISHED = (operation_pb2.OPERATION_STATE_QUEUED, operation_pb2.OPERATION_STATE_RUNNING, operation_pb2.OPERATION_STATE_IN_DOUBT)


class Connection:
    """One connection to a gateway; many calls may use it at once.

    `call` repeats what is safe to repeat, with the same request_id, until `timeout` seconds have passed: a gateway that does
    not answer, one that is too busy, an outcome that is in doubt. Nothing else is ever repeated.
    """

    def __init__(
        self,
        address: str = DEFAULT,
        *,
        timeout: float = 60.0,
        long_timeout: float = 86400.0,
        certificate: File = "",
        key: File = "",
        authority: File = "",
        credentials: grpc.ChannelCredentials | None = None,
        retrying: Callable[[VolgateError], None] | None = None,
    ) -> None:
        """`address` is unix:PATH, the absolute PATH of a socket, or HOST:PORT.

        HOST:PORT needs the client's `certificate`, its `key` and the `authority` of the gateway, files in PEM that are read
        once, or `credentials` instead of the three. Raises InvalidRequest naming the one that is missing or of no use.
        `timeout` bounds a call with its repeats, `long_timeout` an image's transfer or the wait for an operation; seconds.
        `retrying` is told each failure before the call is repeated.
        """
        self.address = target(address)
        self.timeout = timeout
        self.long_timeout = long_timeout
        self.retrying = retrying
        self.closed = False
        found = credentials or tls.credentials(self.address, certificate, key, authority)
        self.channel = seam.open_channel(self.address, OPTIONS, found)
        self.pools = pool_pb2_grpc.PoolServiceStub(self.channel)
        self.volumes = volume_pb2_grpc.VolumeServiceStub(self.channel)
        self.snapshots = snapshot_pb2_grpc.SnapshotServiceStub(self.channel)
        self.attachments = attachment_pb2_grpc.AttachmentServiceStub(self.channel)
        self.hosts = host_pb2_grpc.HostServiceStub(self.channel)
        self.operations = operation_pb2_grpc.OperationServiceStub(self.channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls that run end as cancelled, what they began goes on in the gateway."""
        self.closed = True
        await self.channel.close()

    async def call(self, method: seam.Unary[Q, A], request: Q, *, timeout: float | None = None) -> A:
        """Call a stub's method. Raises VolgateError; a mutation without a request_id gets one, so that a repeat is the same call."""
        request = identified(request)
        attempts = Attempts(self.timeout if timeout is None else timeout, None, self.retrying)
        while True:
            if self.closed:
                raise Cancelled("CANCELLED", f"the client of {self.address} is closed")
            try:
                return await method(request, timeout=attempts.left(), metadata=trace.headers())
            except grpc.RpcError as error:
                pause = attempts.pause(from_rpc(error, self.address))
            await seam.sleep(pause)

    def patient(self, timeout: float | None) -> Attempts:
        """The attempts of long work: given up when the gateway is gone for longer than a call may take."""
        return Attempts(self.long_timeout if timeout is None else timeout, self.timeout, self.retrying)

    async def plan(self, method: seam.Unary[Q, Any], request: Q) -> volume_pb2.Plan:
        """What a mutation would do: its steps, the space it takes, who blocks it. Nothing is changed."""
        asked = type(request)()
        asked.CopyFrom(request)
        setattr(asked, "validate_only", True)  # noqa: B010  # every mutation's request has it, Message does not
        answer = await self.call(method, asked)
        plan: volume_pb2.Plan = answer.plan
        return plan

    async def pages(self, method: seam.Unary[Q, Any], request: Q, field: str) -> AsyncIterator[Any]:
        """Every row of a list, page by page; `field` names the rows in the answer."""
        asked: Any = type(request)()
        asked.CopyFrom(request)
        while True:
            answer = await self.call(method, asked)
            for row in getattr(answer, field):
                yield row
            if not answer.next_page_token:
                return
            asked.page_token = answer.next_page_token

    async def watch(self, name: str, *, timeout: float | None = None) -> AsyncIterator[operation_pb2.Operation]:
        """An operation now and at each change until it ends, over restarts of the gateway.

        Raises NotFound, Unavailable if the gateway is gone for longer than the client's `timeout`, DeadlineExceeded.
        """
        attempts = self.patient(timeout)
        request = operation_pb2.WatchOperationRequest(name=name)
        while True:
            try:
                async for answer in self.operations.WatchOperation(request, timeout=attempts.left(), metadata=trace.headers()):
                    attempts.progressed()
                    yield answer.operation
                    if answer.operation.state not in _UNFINISHED:
                        return
                pause = 0.1  # the gateway closed the stream: it stops or is too slow
            except grpc.RpcError as error:
                failure = from_rpc(error, self.address)
                failure.operation = name
                if isinstance(failure, DeadlineExceeded):
                    raise failure from error
                pause = attempts.pause(failure)
            await seam.sleep(pause)

    async def watch_paths(self, name: str, *, timeout: float | None = None) -> AsyncIterator[attachment_pb2.WatchPathsResponse]:
        """Paths of an attachment or a volume now and at each change, over restarts of the gateway, until it is gone.

        Raises NotFound then, Unavailable if the gateway is gone for longer than the client's `timeout`, DeadlineExceeded.
        """
        attempts = self.patient(timeout)
        request = attachment_pb2.WatchPathsRequest(name=name)
        while True:
            try:
                async for answer in self.attachments.WatchPaths(request, timeout=attempts.left(), metadata=trace.headers()):
                    attempts.progressed()
                    yield answer
                pause = 0.1  # the gateway closed the stream: it stops
            except grpc.RpcError as error:
                failure = from_rpc(error, self.address)
                if isinstance(failure, DeadlineExceeded):
                    raise failure from error
                pause = attempts.pause(failure)
            await seam.sleep(pause)

    async def wait(
        self, operation: operation_pb2.Operation, *, timeout: float | None = None, progress: Callable[[float], None] | None = None
    ) -> operation_pb2.Operation:
        """Follow an operation to its end; `progress` is told the done fraction, 0 to 1.

        Raises the operation's error if it failed, Cancelled, or DeadlineExceeded after `timeout` seconds: it goes on.
        """
        if operation.state in _UNFINISHED:
            async for operation in self.watch(operation.name, timeout=timeout):  # noqa: B020, PLR1704  # the newest state is the operation
                if progress:
                    progress(operation.progress)
        if operation.state != operation_pb2.OPERATION_STATE_DONE:
            raise from_operation(operation)
        return operation


def identified(request: Q) -> Q:
    """The request with a request_id; the caller's own message stays as it is, so that it can be sent again as another call."""
    if "request_id" not in request.DESCRIPTOR.fields_by_name or getattr(request, "request_id"):  # noqa: B009  # Message does not declare it
        return request
    copy = type(request)()
    copy.CopyFrom(request)
    setattr(copy, "request_id", str(uuid.uuid4()))  # noqa: B010  # as above
    return copy
