"""OperationService."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

from volgate.edge import convert, validate
from volgate.edge.types import Context
from volgate.edge.wait import Calls, caller, scope
from volgate.errors import InvalidRequest
from volgate.store.records import OperationRecord
from volgate.v1 import operation_pb2, operation_pb2_grpc

__all__ = ["OperationServicer"]

_CURSOR = re.compile(r"[0-9]{1,12}(\.[0-9]{1,12})?:[0-9a-f]{32}")
_NAME = re.compile(r"operations/([0-9a-f]{32})")


def _identifier(name: str) -> str:
    found = _NAME.fullmatch(name)
    if not found:
        raise InvalidRequest(f"name: {name[:80]!r} is not of the form operations/{{id}}", field="name")
    return found[1]


def _cursor(last: str) -> str:
    if last and not _CURSOR.fullmatch(last):
        raise validate.bad_token()
    return last


class OperationServicer(operation_pb2_grpc.OperationServiceServicer):
    """Shows, watches and cancels operations."""

    def __init__(self, calls: Calls) -> None:
        """Take what all servicers share."""
        self._calls = calls

    async def GetOperation(  # noqa: N802  # the contract's name
        self, request: operation_pb2.GetOperationRequest, _: Context
    ) -> operation_pb2.GetOperationResponse:
        """One operation."""
        record = await self._calls.read(self._calls.gateway.get_operation, _identifier(request.name), scope())
        return operation_pb2.GetOperationResponse(operation=convert.operation(record))

    async def ListOperations(  # noqa: N802  # the contract's name
        self, request: operation_pb2.ListOperationsRequest, _: Context
    ) -> operation_pb2.ListOperationsResponse:
        """A page, newest first."""
        size, after = validate.page_size(request.page_size), _cursor(validate.read_token("operations", request, request.page_token))
        found = await self._calls.read(self._calls.gateway.list_operations, after, size + 1, scope(), unfinished=request.unfinished_only)
        last = found[size - 1] if len(found) > size else None
        more = validate.page_token("operations", request, f"{last.created_at!r}:{last.id}") if last else ""
        return operation_pb2.ListOperationsResponse(operations=[convert.operation(r) for r in found[:size]], next_page_token=more)

    async def WatchOperation(  # noqa: N802  # the contract's name
        self, request: operation_pb2.WatchOperationRequest, _: Context
    ) -> AsyncIterator[operation_pb2.WatchOperationResponse]:
        """The operation at each change until it ends; a slow reader gets the newest state."""
        loop, changed = asyncio.get_running_loop(), asyncio.Event()
        newest: list[OperationRecord] = []

        def tell(record: OperationRecord) -> None:
            newest[:] = [record]
            loop.call_soon_threadsafe(changed.set)

        identifier = _identifier(request.name)
        stop = await self._calls.acquire("", lambda release: release(), self._calls.gateway.watch_operation, identifier, tell, scope())
        try:
            while True:
                await changed.wait()
                changed.clear()
                record = newest[0]
                yield operation_pb2.WatchOperationResponse(operation=convert.operation(record))
                if record.state.final:
                    return
        finally:
            stop()

    async def CancelOperation(  # noqa: N802  # the contract's name
        self, request: operation_pb2.CancelOperationRequest, _: Context
    ) -> operation_pb2.CancelOperationResponse:
        """Ask it to stop and undo."""
        record = await self._calls.read(self._calls.gateway.cancel_operation, _identifier(request.name), caller())
        return operation_pb2.CancelOperationResponse(operation=convert.operation(record))
