"""PoolService."""

from __future__ import annotations

from volgate.edge import convert, validate
from volgate.edge.types import Context
from volgate.edge.wait import Calls, caller, scope
from volgate.errors import InvalidRequest
from volgate.names import PoolName
from volgate.v1 import pool_pb2, pool_pb2_grpc

__all__ = ["PoolServicer"]


class PoolServicer(pool_pb2_grpc.PoolServiceServicer):
    """Shows pools, drains them, and keeps them from being touched."""

    def __init__(self, calls: Calls) -> None:
        """Take what all servicers share."""
        self._calls = calls

    async def ListPools(self, request: pool_pb2.ListPoolsRequest, _: Context) -> pool_pb2.ListPoolsResponse:  # noqa: N802  # the contract's name
        """Every pool by name."""
        size, after = validate.page_size(request.page_size), validate.read_token("pools", request, request.page_token)
        found = [pool for pool in await self._calls.ask("pools", self._calls.gateway.list_pools, scope()) if pool.name > after]
        more = validate.page_token("pools", request, found[size - 1].name) if len(found) > size else ""
        return pool_pb2.ListPoolsResponse(pools=[convert.pool(pool) for pool in found[:size]], next_page_token=more)

    async def GetPool(self, request: pool_pb2.GetPoolRequest, _: Context) -> pool_pb2.GetPoolResponse:  # noqa: N802  # the contract's name
        """One pool, measured now."""
        name = PoolName.parse(request.name)
        status = await self._calls.ask(str(name), self._calls.gateway.get_pool, name.pool)
        found = await self._calls.ask(str(name), self._calls.gateway.list_foreign, name.pool)
        return pool_pb2.GetPoolResponse(pool=convert.pool(status), foreign=map(convert.foreign, found))

    async def DrainPool(self, request: pool_pb2.DrainPoolRequest, _: Context) -> pool_pb2.DrainPoolResponse:  # noqa: N802  # the contract's name
        """Refuse or accept new volumes."""
        name = PoolName.parse(request.name)
        status = await self._calls.ask(str(name), self._calls.gateway.pool_states.drain, name.pool, caller(), resume=request.resume)
        return pool_pb2.DrainPoolResponse(pool=convert.pool(status))

    async def QuarantinePool(  # noqa: N802  # the contract's name
        self, request: pool_pb2.QuarantinePoolRequest, _: Context
    ) -> pool_pb2.QuarantinePoolResponse:
        """Do nothing in a pool any more, or again."""
        name, reason = PoolName.parse(request.name), validate.printable(request.reason, "reason").strip()
        if bool(reason) == request.release:
            raise InvalidRequest("reason: say why, or set release and no reason", field="reason")
        set_ = self._calls.gateway.pool_states.quarantine
        status, left = await self._calls.ask(str(name), set_, name.pool, reason, caller())
        return pool_pb2.QuarantinePoolResponse(pool=convert.pool(status), operations=left)
