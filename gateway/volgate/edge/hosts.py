"""HostService."""

from __future__ import annotations

from volgate.edge import convert, validate
from volgate.edge.types import Context
from volgate.edge.wait import Calls, scope
from volgate.errors import InvalidRequest
from volgate.names import check_identifier
from volgate.v1 import host_pb2, host_pb2_grpc

__all__ = ["HostServicer", "host_name"]


def host_name(text: str, field: str) -> str:
    """Read `hosts/{host}`; "" stays ""."""
    if not text:
        return ""
    head, _, name = text.partition("/")
    if head != "hosts":
        raise InvalidRequest(f"{field}: {text[:80]!r} is not of the form hosts/{{host}}", field=field)
    return check_identifier(name, field)


class HostServicer(host_pb2_grpc.HostServiceServicer):
    """Shows hosts."""

    def __init__(self, calls: Calls) -> None:
        """Take what all servicers share."""
        self._calls = calls

    async def ListHosts(self, request: host_pb2.ListHostsRequest, _: Context) -> host_pb2.ListHostsResponse:  # noqa: N802  # the contract's name
        """Every host by name."""
        size, after = validate.page_size(request.page_size), validate.read_token("hosts", request, request.page_token)
        found = [info for info in await self._calls.ask("hosts", self._calls.gateway.list_hosts, scope()) if info.name > after]
        more = validate.page_token("hosts", request, found[size - 1].name) if len(found) > size else ""
        return host_pb2.ListHostsResponse(hosts=[convert.host(info, []) for info in found[:size]], next_page_token=more)

    async def GetHost(self, request: host_pb2.GetHostRequest, _: Context) -> host_pb2.GetHostResponse:  # noqa: N802  # the contract's name
        """One host with its domains."""
        name = host_name(request.name, "name")
        if not name:
            raise InvalidRequest("name: say which host, as hosts/{host}", field="name")
        info, domains = await self._calls.ask(f"hosts/{name}", self._calls.gateway.get_host, name)
        return host_pb2.GetHostResponse(host=convert.host(info, domains))
