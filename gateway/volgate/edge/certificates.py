"""The gateway's certificate, its key and the authority of its clients: read from files, and again whenever these change."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import grpc
import structlog
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from volgate.errors import InvalidRequest, VolgateError

__all__ = ["Certificates", "Material"]

_log = structlog.get_logger()
_Signature = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Material:
    """What the three files hold, and when the certificate expires."""

    certificate: bytes
    key: bytes
    authority: bytes
    until: datetime

    def __repr__(self) -> str:
        return f"Material(until={self.until})"  # never the key

    @classmethod
    def read(cls, certificate: Path, key: Path, authority: Path) -> Material:
        """Read and check the files. Raises InvalidRequest naming the setting: unreadable, no PEM, no pair, expired."""
        held = {name: _bytes(name, path) for name, path in (("certificate", certificate), ("key", key), ("client_authority", authority))}
        ours = _certificate("certificate", certificate, held["certificate"])
        _certificate("client_authority", authority, held["client_authority"])
        try:
            public = load_pem_private_key(held["key"], None).public_key()
        except (ValueError, TypeError, UnsupportedAlgorithm):  # its words could hold parts of the file
            raise _wrong("key", key, "holds no private key in PEM that can be read without a password") from None
        if public != ours.public_key():
            raise _wrong("key", key, f"is not the key of {certificate}; replace both")
        since, until = ours.not_valid_before_utc, ours.not_valid_after_utc
        if not since <= datetime.now(UTC) <= until:
            what = "expired at" if since < datetime.now(UTC) else "is not valid before"
            moment = until if since < datetime.now(UTC) else since
            raise _wrong("certificate", certificate, f"{what} {moment:%Y-%m-%d %H:%M} UTC; issue another")
        return cls(held["certificate"], held["key"], held["client_authority"], until)


class Certificates:
    """Gives gRPC what to serve with; it asks before each handshake, on threads of its own."""

    def __init__(self, certificate: Path, key: Path, authority: Path) -> None:
        """Read the files. Raises InvalidRequest naming the setting."""
        self._paths = (certificate, key, authority)
        self._lock = threading.Lock()
        self._seen = self._signature()
        self._material = Material.read(*self._paths)

    def credentials(self) -> grpc.ServerCredentials:
        """Credentials for one address, which require a certificate of every client: gRPC keeps for each what it was given last."""
        given = self._material

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            nonlocal given
            newest = self.newest()
            if newest is given:
                return None
            given = newest
            return _configuration(newest)

        told = cast("Callable[[], grpc.ServerCertificateConfiguration]", fetch)  # None is its word for no change
        return grpc.dynamic_ssl_server_credentials(_configuration(given), told, require_client_authentication=True)

    def newest(self) -> Material:
        """What the files hold, read again if they changed since the last time. Broken ones are logged, and the old ones go on."""
        with self._lock:
            now = self._signature()
            if now == self._seen:
                return self._material
            self._seen = now
            try:
                found = Material.read(*self._paths)
            except VolgateError as error:
                _log.error("new certificate is not used", error=error.message, until=f"{self._material.until:%Y-%m-%d %H:%M} UTC")
                return self._material
            if found != self._material:
                self._material = found
                _log.info("new certificate is used", certificate=str(self._paths[0]), until=f"{found.until:%Y-%m-%d %H:%M} UTC")
            return self._material

    def _signature(self) -> _Signature:
        return tuple(_stamp(path) for path in self._paths)


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        facts = path.stat()
    except OSError:
        return (0, 0, 0)
    return (facts.st_mtime_ns, facts.st_size, facts.st_ino)


def _bytes(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _wrong(name, path, str(error.strerror)) from None


def _wrong(name: str, path: Path, why: str) -> InvalidRequest:
    return InvalidRequest(f"configuration: tls.{name}: {path}: {why}", field=f"tls.{name}")


def _certificate(name: str, path: Path, held: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificates(held)[0]
    except ValueError:
        raise _wrong(name, path, "holds no certificate in PEM") from None


def _configuration(material: Material) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(material.key, material.certificate)], root_certificates=material.authority)
