"""HostService: what everybody sees of hosts, what a host says of itself, what an operator does with one."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Any, cast

from volgate.edge import convert, validate
from volgate.edge.types import Context
from volgate.edge.wait import Calls, caller, scope
from volgate.errors import InvalidRequest
from volgate.names import check_identifier
from volgate.operations import requests
from volgate.operations.fencing import Fenced
from volgate.operations.hosts import Registration
from volgate.store.records import HostRecord
from volgate.v1 import host_pb2, host_pb2_grpc

__all__ = ["HostServicer", "host_name"]

_IDENTITY = ("machine_id", "boot_id", "iqn", "nqn", "nvme_host_id")
_LONGEST = 256
_PROBLEM_LONGEST = 2000
_FEATURES_MOST = 64
_ADDRESSES_MOST = 64


def host_name(text: str, field: str) -> str:
    """Read `hosts/{host}`; "" stays ""."""
    if not text:
        return ""
    head, _, name = text.partition("/")
    if head != "hosts":
        raise InvalidRequest(f"{field}: {text[:80]!r} is not of the form hosts/{{host}}", field=field)
    return check_identifier(name, field)


class HostServicer(host_pb2_grpc.HostServiceServicer):
    """Serves hosts and those who look after them."""

    def __init__(self, calls: Calls) -> None:
        """Take what all servicers share."""
        self._calls = calls

    async def ListHosts(self, request: host_pb2.ListHostsRequest, _: Context) -> host_pb2.ListHostsResponse:  # noqa: N802  # the contract's name
        """Every host by name."""
        size, after = validate.page_size(request.page_size), validate.read_token("hosts", request, request.page_token)
        found = [info for info in await self._calls.ask("hosts", self._calls.gateway.hosts.list_hosts, scope()) if info.name > after]
        more = validate.page_token("hosts", request, found[size - 1].name) if len(found) > size else ""
        return host_pb2.ListHostsResponse(hosts=[convert.host(info) for info in found[:size]], next_page_token=more)

    async def GetHost(self, request: host_pb2.GetHostRequest, _: Context) -> host_pb2.GetHostResponse:  # noqa: N802  # the contract's name
        """One host with its domains."""
        name = _required(request.name)
        info, domains = await self._calls.ask(f"hosts/{name}", self._calls.gateway.hosts.get_host, name)
        return host_pb2.GetHostResponse(host=convert.host(info, domains))

    async def RegisterHost(self, request: host_pb2.RegisterHostRequest, _: Context) -> host_pb2.RegisterHostResponse:  # noqa: N802  # the contract's name
        """Take a host in."""
        gateway = self._calls.gateway
        identity: dict[str, Any] = {name: _text(getattr(request.identity, name), f"identity.{name}") for name in _IDENTITY}
        said = HostRecord(
            _required(request.name),
            address=_address(request.address),
            session=_session(request.session),
            version=_text(request.version, "version"),
            **identity,
            **_status(request.status),
        )
        asked = Registration(said, _text(request.instance, "instance"), request.protocol)
        instance = await self._calls.ask("registrations", gateway.hosts.register, asked)
        return host_pb2.RegisterHostResponse(instance=instance, heartbeat_seconds=gateway.world.settings.limits.heartbeat_seconds)

    async def HeartbeatHost(self, request: host_pb2.HeartbeatHostRequest, _: Context) -> host_pb2.HeartbeatHostResponse:  # noqa: N802  # the contract's name
        """Note that a host is alive."""
        said = HostRecord(_required(request.name), session=_session(request.session), **_status(request.status))
        if not self._calls.gateway.hosts.beat(said):  # no thread for what touches no database
            await self._calls.ask("registrations", self._calls.gateway.hosts.heartbeat, said)
        return host_pb2.HeartbeatHostResponse()

    async def CordonHost(self, request: host_pb2.CordonHostRequest, _: Context) -> host_pb2.CordonHostResponse:  # noqa: N802  # the contract's name
        """Close a host, or open it."""
        name, hosts = _required(request.name), self._calls.gateway.hosts
        info, held = await self._calls.ask(f"hosts/{name}", hosts.cordon, name, caller(), uncordon=request.uncordon)
        return host_pb2.CordonHostResponse(host=convert.host(info), attachments=[f"attachments/{record.id}" for record in held])

    async def ReleaseHost(self, request: host_pb2.ReleaseHostRequest, _: Context) -> host_pb2.ReleaseHostResponse:  # noqa: N802  # the contract's name
        """Let go of a dead host's attachments."""
        name, hosts = _required(request.name), self._calls.gateway.hosts
        info, gone = await self._calls.ask(f"hosts/{name}", hosts.release, name, caller(), assume_off=request.assume_off)
        return host_pb2.ReleaseHostResponse(host=convert.host(info), attachments=[f"attachments/{record.id}" for record in gone])

    async def RemoveHost(self, request: host_pb2.RemoveHostRequest, _: Context) -> host_pb2.RemoveHostResponse:  # noqa: N802  # the contract's name
        """Forget a host."""
        name = _required(request.name)
        await self._calls.ask(f"hosts/{name}", self._calls.gateway.hosts.remove, name, caller())
        return host_pb2.RemoveHostResponse()

    async def FenceHost(self, request: host_pb2.FenceHostRequest, context: Context) -> host_pb2.FenceHostResponse:  # noqa: N802  # the contract's name
        """Keep a host's clients out."""
        typed, identifier = requests.FenceHost(_required(request.name), _ips(request.addresses)), validate.request_id(request.request_id)
        if request.validate_only:
            return host_pb2.FenceHostResponse(plan=convert.plan(await self._calls.plan(typed)))
        ticket, _ = await self._calls.run(typed, identifier, context)
        done = cast("Fenced", ticket.future.result())
        return host_pb2.FenceHostResponse(
            host=convert.host(await self._calls.read(self._calls.gateway.hosts.described, typed.host)),
            addresses=done.addresses,
            initiators=done.initiators,
            unfenced_attachments=[f"attachments/{one}" for one in done.unfenced],
            operation=convert.operation(ticket.record()),
        )

    async def UnfenceHost(self, request: host_pb2.UnfenceHostRequest, context: Context) -> host_pb2.UnfenceHostResponse:  # noqa: N802  # the contract's name
        """Let them in again."""
        typed, identifier = requests.UnfenceHost(_required(request.name), request.assume_restarted), validate.request_id(request.request_id)
        if request.validate_only:
            return host_pb2.UnfenceHostResponse(plan=convert.plan(await self._calls.plan(typed)))
        ticket, _ = await self._calls.run(typed, identifier, context)
        host = convert.host(await self._calls.read(self._calls.gateway.hosts.described, typed.host))
        return host_pb2.UnfenceHostResponse(host=host, operation=convert.operation(ticket.record()))


def _ips(found: Sequence[str]) -> tuple[str, ...]:
    if len(found) > _ADDRESSES_MOST:
        raise InvalidRequest(f"addresses: at most {_ADDRESSES_MOST}", field="addresses")
    try:
        return tuple(sorted({str(ipaddress.ip_address(text)) for text in found}))
    except ValueError as error:
        raise InvalidRequest(f"addresses: {error}; give IP addresses, without a port", field="addresses") from None


def _required(text: str) -> str:
    name = host_name(text, "name")
    if not name:
        raise InvalidRequest("name: say which host, as hosts/{host}", field="name")
    return name


def _text(text: str, field: str, longest: int = _LONGEST) -> str:
    """One printable line, or nothing."""
    if len(text) > longest or not (text.isprintable() or not text):
        raise InvalidRequest(f"{field}: give one line of at most {longest} printable characters", field=field)
    return text


def _session(text: str) -> str:
    if not text:
        raise InvalidRequest("session: draw one for the registration", field="session")
    return _text(text, "session")


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or len(text) > _LONGEST or not text.isprintable() or set(text) & set("/ @?#,"):
        raise InvalidRequest(f"address: {text[:80]!r} is not HOST:PORT, where controllers call the host", field="address")
    return text


def _status(message: host_pb2.HostStatus) -> dict[str, Any]:
    """How a host is, as fields of its record."""
    if len(message.features) > _FEATURES_MOST:
        raise InvalidRequest(f"status.features: at most {_FEATURES_MOST}", field="status.features")
    texts = {name: _text(getattr(message, name), f"status.{name}") for name in ("uri", "libvirt_version", "qemu_version")}
    features = tuple(_text(word, "status.features") for word in message.features)
    problem = _text(message.problem, "status.problem", _PROBLEM_LONGEST)
    return {**texts, "connected": message.connected, "problem": problem, "features": features}
