"""Simulated hosts: `python -m tests.bench.crowd CONTROLLER AUTHORITY COUNT SECONDS`, each with its own certificate and connection.

They register, send heartbeats every SECONDS, and answer a controller's calls as hosts without domains, each 25 from one server whose
certificate has their names. Lines of JSON: how long all registrations took, then every two seconds what the heartbeats came to.
"""

from __future__ import annotations

import asyncio
import json
import resource
import statistics
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import grpc
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from grpc import aio

from tests.bench.measure import percentile
from volgate.cli.authority import Authority
from volgate.hosts.wire import PROTOCOL
from volgate.names import host_certificate_name
from volgate.v1 import agent_pb2, agent_pb2_grpc, host_pb2, host_pb2_grpc

AT_ONCE = 32
NEIGHBOURS = 25
TELL_SECONDS = 2.0
STATUS = host_pb2.HostStatus(uri="qemu:///system", connected=True, libvirt_version="9.0.0", qemu_version="7.2.0", features=["blockdev"])
Pem = tuple[bytes, bytes]


def issue(authority: Authority, names: list[x509.GeneralName]) -> Pem:
    """A certificate and its key, in memory: files of a thousand hosts are of no use."""
    key = ec.generate_private_key(ec.SECP256R1())
    built = x509.CertificateBuilder().subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "host")]))
    built = built.issuer_name(authority.certificate.subject).public_key(key.public_key()).serial_number(x509.random_serial_number())
    built = built.not_valid_before(authority.certificate.not_valid_before_utc).not_valid_after(authority.certificate.not_valid_after_utc)
    built = built.add_extension(x509.SubjectAlternativeName(names), critical=False)
    uses = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    made = built.add_extension(uses, critical=False).sign(authority.key, hashes.SHA256())
    return made.public_bytes(Encoding.PEM), key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


class Empty(agent_pb2_grpc.AgentServiceServicer):
    """A host without domains."""

    async def Call(self, request: agent_pb2.CallRequest, _: Any) -> agent_pb2.CallResponse:  # noqa: N802  # the contract's name
        return agent_pb2.CallResponse(value=msgspec.msgpack.encode([]))

    async def Listen(self, request: agent_pb2.ListenRequest, _: Any) -> Any:  # noqa: N802  # the contract's name
        yield agent_pb2.ListenResponse()
        await asyncio.Event().wait()


async def serve(authority: Authority, names: list[str], root: bytes) -> tuple[aio.Server, str]:
    """The other end of a controller's calls to any of these hosts."""
    certificate, key = issue(authority, [x509.DNSName(host_certificate_name(name)) for name in names])
    server = aio.server()
    agent_pb2_grpc.add_AgentServiceServicer_to_server(Empty(), server)
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, certificate)], root, require_client_auth=True))
    await server.start()
    return server, f"127.0.0.1:{port}"


class Crowd:
    """All of them."""

    def __init__(self, controller: str, root: bytes) -> None:
        self.controller, self.root = controller, root
        self.door = asyncio.Semaphore(AT_ONCE)
        self.beats: list[float] = []
        self.failed = 0

    async def register(self, name: str, address: str, pem: Pem) -> host_pb2_grpc.HostServiceStub:
        """Come in by a connection of its own."""
        credentials = grpc.ssl_channel_credentials(self.root, pem[1], pem[0])
        channel = aio.secure_channel(self.controller, credentials, [("grpc.use_local_subchannel_pool", 1)])
        stub: Any = host_pb2_grpc.HostServiceStub(channel)
        identity = host_pb2.HostIdentity(machine_id=uuid.uuid4().hex, boot_id=str(uuid.uuid4()), iqn=f"iqn.2026-01.internal:{name}")
        request = host_pb2.RegisterHostRequest(
            name=f"hosts/{name}", address=address, session=name, protocol=PROTOCOL, identity=identity, status=STATUS
        )
        async with self.door:
            await stub.RegisterHost(request, timeout=120, wait_for_ready=True)
        return stub

    async def live(self, name: str, stub: Any, seconds: float, offset: float) -> None:
        """Send heartbeats for ever."""
        beat = host_pb2.HeartbeatHostRequest(name=f"hosts/{name}", session=name, status=STATUS)
        following = time.monotonic() + offset
        while True:
            await asyncio.sleep(following - time.monotonic())
            began = time.monotonic()
            try:
                await stub.HeartbeatHost(beat, timeout=30)
                self.beats.append(time.monotonic() - began)
            except grpc.RpcError:
                self.failed += 1
            while following < time.monotonic():  # one that was stopped goes on at its own moments, not with all others
                following += seconds

    async def tell(self) -> None:
        """What came of the heartbeats, again and again."""
        since = time.monotonic()
        while True:
            await asyncio.sleep(TELL_SECONDS)
            beats, self.beats, now = self.beats, [], time.monotonic()
            if beats:
                told = {"rate": len(beats) / (now - since), "p50": statistics.median(beats), "p99": percentile(beats, 0.99)}
                print(json.dumps(told | {"failed": self.failed}), flush=True)
            since = now


async def run(controller: str, folder: Path, count: int, seconds: float) -> None:
    authority = Authority.load(folder)
    root = (folder / "authority.crt").read_bytes()
    names = [f"sim{number:04d}" for number in range(count)]
    pems = [issue(authority, [x509.UniformResourceIdentifier(f"volgate:host:{name}")]) for name in names]
    servers = [await serve(authority, names[at : at + NEIGHBOURS], root) for at in range(0, count, NEIGHBOURS)]
    crowd = Crowd(controller, root)
    began = time.monotonic()
    places = [servers[at // NEIGHBOURS][1] for at in range(count)]
    stubs = await asyncio.gather(*map(crowd.register, names, places, pems))
    print(json.dumps({"registered": time.monotonic() - began}), flush=True)
    lives = [crowd.live(name, stub, seconds, seconds * at / count) for at, (name, stub) in enumerate(zip(names, stubs, strict=True))]
    await asyncio.gather(crowd.tell(), *lives)


if __name__ == "__main__":
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 65536), most))
    asyncio.run(run(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])))
