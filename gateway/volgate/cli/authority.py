"""What `volgate pki` does: an authority that is two files, and the certificates that it signs."""

from __future__ import annotations

import contextlib
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from volgate.edge.identity import Principal, Role
from volgate.errors import InvalidRequest, Precondition, from_os_error
from volgate.names import host_certificate_name

__all__ = ["Authority"]

_CRT, _KEY = "authority.crt", "authority.key"
_EARLIER = timedelta(minutes=5)  # clocks differ


@dataclass(frozen=True, slots=True)
class Authority:
    """A folder with a certificate and its key."""

    folder: Path
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def __repr__(self) -> str:
        return f"Authority({self.folder})"  # never the key

    @classmethod
    def create(cls, folder: Path, days: int) -> tuple[Path, Path]:
        """Make one and return its two files. Raises Precondition if the folder has one."""
        key, subject = ec.generate_private_key(ec.SECP256R1()), _subject("Volgate test authority")
        signs = x509.KeyUsage(False, False, False, False, False, True, True, False, False)  # the nine bits of the standard
        built = _builder(subject, subject, key, _now() + timedelta(days=days))
        built = built.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True).add_extension(signs, critical=True)
        built = built.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise from_os_error(error, f"make {folder}") from error
        return _write(folder / _CRT, folder / _KEY, built.sign(key, hashes.SHA256()), key)

    @classmethod
    def load(cls, folder: Path) -> Authority:
        """Read one that `create` made. Raises InvalidRequest."""
        try:
            certificate = x509.load_pem_x509_certificate((folder / _CRT).read_bytes())
            key = load_pem_private_key((folder / _KEY).read_bytes(), None)
        except (OSError, ValueError, TypeError) as error:
            why = error.strerror if isinstance(error, OSError) else "its files cannot be read"
            raise InvalidRequest(f"authority: {folder}: {why}; make one with `volgate pki init {folder}`", field="authority") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise InvalidRequest(f"authority: {folder}: {_KEY} is not the key of {_CRT}", field="authority")
        return cls(folder, certificate, key)

    def server(self, hosts: Sequence[str], days: int) -> tuple[Path, Path]:
        """A certificate that a gateway shows, for the names and addresses that clients use; return its two files."""
        names = [_general_name(host) for host in hosts]
        return self._issue(hosts[0].replace(":", "-"), hosts[0], names, [ExtendedKeyUsageOID.SERVER_AUTH], days)

    def both(self, role: str, name: str, hosts: Sequence[str], days: int) -> tuple[Path, Path]:
        """A certificate of a controller or a host, which serve and call; return its two files. Raises InvalidRequest."""
        caller = Principal.made(role, name, (), ())
        names = [x509.UniformResourceIdentifier(caller.uri), *(_general_name(host) for host in hosts)]
        if caller.role is Role.HOST:
            names.append(x509.DNSName(host_certificate_name(name)))
        uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        return self._issue(f"{role}-{name}", str(caller), names, uses, days)

    def client(self, role: str, name: str, pools: Sequence[str], hosts: Sequence[str], days: int) -> tuple[Path, Path]:
        """A certificate that says who calls; return its two files. Raises InvalidRequest for what the gateway would not take."""
        caller = Principal.made(role, name, pools, hosts)
        uri = x509.UniformResourceIdentifier(caller.uri)
        return self._issue(f"{role}-{name}", str(caller), [uri], [ExtendedKeyUsageOID.CLIENT_AUTH], days)

    def _issue(
        self, stem: str, common: str, names: Sequence[x509.GeneralName], uses: Sequence[x509.ObjectIdentifier], days: int
    ) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        until = min(_now() + timedelta(days=days), self.certificate.not_valid_after_utc)
        built = _builder(_subject(common), self.certificate.subject, key, until)
        built = built.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        built = built.add_extension(x509.SubjectAlternativeName(names), critical=False)
        built = built.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        ours = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        built = built.add_extension(ours, critical=False)
        return _write(self.folder / f"{stem}.crt", self.folder / f"{stem}.key", built.sign(self.key, hashes.SHA256()), key)


def _now() -> datetime:
    return datetime.now(UTC)


def _subject(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, until: datetime) -> x509.CertificateBuilder:
    began = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    return began.serial_number(x509.random_serial_number()).not_valid_before(_now() - _EARLIER).not_valid_after(until)


def _general_name(host: str) -> x509.GeneralName:
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(host))
    if not host or not host.isascii() or set(host) & set("/:@ "):
        raise InvalidRequest(f"host: {host!r} is neither a name nor an address", field="host")
    return x509.DNSName(host)


def _write(crt: Path, key: Path, certificate: x509.Certificate, secret: ec.EllipticCurvePrivateKey) -> tuple[Path, Path]:
    """Two new files, the key readable by its owner alone. Raises Precondition if one exists."""
    private = secret.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    if crt.exists() or key.exists():
        raise Precondition(f"{crt} or {key} exists and is not replaced; move both away, or use another folder or name")
    for path, mode, data in ((key, 0o600, private), (crt, 0o644, certificate.public_bytes(Encoding.PEM))):
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
        except OSError as error:
            raise from_os_error(error, f"write {path}") from error
    return crt, key
