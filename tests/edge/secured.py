"""A gateway that serves TCP, its authority, and certificates of every kind, usable and not."""

from __future__ import annotations

import json
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.edge import fingerprint
from tests.edge import place as edge
from tests.edge.place import Place
from tests.edge.wire import Wire
from volgate.cli.authority import Authority
from volgate.v1.operation_pb2 import ListOperationsRequest
from volgate_client.target import Files

__all__ = ["CONFIG", "Pair", "Pki", "Secured", "secured"]

CONFIG = (
    edge.CONFIG.replace("[limits]\n", "[limits]\n{limits}\n")
    + """
[pools.sim]
kind = "memory"
[server]
listen = ["127.0.0.1:0"]
[tls]
certificate = "{top}/pki/gateway.crt"
key = "{top}/pki/gateway.key"
client_authority = "{top}/pki/authority.crt"
"""
)
URI = x509.UniformResourceIdentifier


class Pair(NamedTuple):
    """A certificate and its key."""

    certificate: Path
    key: Path


class Pki:
    """An authority with the product's own words for what is usable, and with the library's for what is not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root, _ = Authority.create(folder, 30)
        self.authority = Authority.load(folder)

    def gateway(self) -> Pair:
        """A new certificate of the gateway, in the place of the last one."""
        made = Pair(*self.authority.server(["localhost", "127.0.0.1"], 20))
        return Pair(made.certificate.rename(self.folder / "gateway.crt"), made.key.rename(self.folder / "gateway.key"))

    def client(self, role: str, name: str, pools: Sequence[str] = (), hosts: Sequence[str] = ()) -> Pair:
        """What `volgate pki client` makes."""
        paths = [self.folder / f"{role}-{name}.{kind}" for kind in ("crt", "key")]
        return Pair(*paths) if paths[0].exists() else Pair(*self.authority.client(role, name, pools, hosts, 10))

    def odd(
        self,
        *names: x509.GeneralName,
        seconds: float = 3600.0,
        use: x509.ObjectIdentifier = ExtendedKeyUsageOID.CLIENT_AUTH,
        itself: bool = False,
        common: str = "admin:odd",
    ) -> Pair:
        """A certificate with these names that ends in `seconds`, signed by the authority or by itself."""
        key, subject = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])
        now = datetime.now(UTC)
        signer, issuer = (key, subject) if itself else (self.authority.key, self.authority.certificate.subject)
        built = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
        built = built.serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(days=1))
        built = built.not_valid_after(now + timedelta(seconds=seconds)).add_extension(x509.ExtendedKeyUsage([use]), critical=False)
        if names:
            built = built.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = built.sign(signer, hashes.SHA256())
        stem = self.folder / f"odd-{uuid.uuid4().hex[:8]}"
        made = Pair(stem.with_suffix(".crt"), stem.with_suffix(".key"))
        made.certificate.write_bytes(certificate.public_bytes(Encoding.PEM))
        made.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return made

    def credentials(self, pair: Pair | None, root: Path | None = None) -> grpc.ChannelCredentials:
        held = [path.read_bytes() for path in (pair.key, pair.certificate)] if pair else []
        return grpc.ssl_channel_credentials((root or self.root).read_bytes(), *held)

    def files(self, pair: Pair) -> Files:
        """For the Python client."""
        return Files(certificate=pair.certificate, key=pair.key, authority=self.root)


class Secured(Place):
    """A place with a TCP listener; `wire` is still the unix socket's."""

    def __init__(self, top: Path, limits: str = "", config: str = CONFIG) -> None:
        self.pki = Pki(top / "pki")
        self.pki.gateway()
        super().__init__(top, config.replace("{limits}", limits))
        self._wires: dict[Pair | None, Wire] = {}

    @property
    def address(self) -> str:
        """Where it listens now."""
        return str(self.lines("listening")[-1]["listen"][0])

    def lines(self, event: str) -> list[dict[str, Any]]:
        """What the log says under a word; a line that is no JSON fails."""
        # the last one may be half written
        found = [json.loads(line) for line in self.server.log.read_text().rpartition("\n")[0].splitlines()]
        return [line for line in found if line["event"] == event]

    def line(self, event: str, **facts: Any) -> dict[str, Any]:
        """The newest line with these facts, once it is there: a caller has its answer before the log has its line."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            for line in reversed(self.lines(event)):
                if facts.items() <= line.items():
                    return line
            time.sleep(0.02)
        raise AssertionError(f"no line {event!r} with {facts}: {self.lines(event)[-3:]}")

    def picture(self) -> tuple[object, ...]:
        """What the database and the pools hold, once nothing changes any more by itself."""
        seen: tuple[object, ...] = ()
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                pools = tuple(fingerprint.of_pool(self.top / name) for name in ("main", "shallow"))
            except FileNotFoundError:  # layers are being merged
                continue
            now = (fingerprint.of_database(self.state), *pools)
            if now == seen and not self.wire.operations.ListOperations(ListOperationsRequest(unfinished_only=True)).operations:
                return now
            seen = now
            time.sleep(0.05)
        raise AssertionError("the gateway does not come to rest")

    def by(self, role: str, name: str, pools: Sequence[str] = (), hosts: Sequence[str] = ()) -> Wire:
        """The stubs of a client, over a connection that is kept."""
        pair = self.pki.client(role, name, pools, hosts)
        if pair not in self._wires:
            self._wires[pair] = self.connect(pair)
        return self._wires[pair]

    def connect(self, pair: Pair | None, root: Path | None = None) -> Wire:
        """A new connection."""
        return Wire(self.address, self.pki.credentials(pair, root))

    def close(self) -> None:
        for wire in self._wires.values():
            wire.channel.close()


@contextmanager
def secured(limits: str = "", config: str = CONFIG) -> Iterator[Secured]:
    """A gateway and its folders, removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="vg-tls-", dir="/tmp") as folder:
        made = Secured(Path(folder), limits, config)
        made.start()
        try:
            yield made
        finally:
            made.close()
            made.wire.channel.close()
            made.server.stop()
