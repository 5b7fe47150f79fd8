"""The credentials of a client: a certificate that says who it is, its key, and the authority of the gateway."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import grpc

from volgate_client.errors import local
from volgate_client.target import File

__all__ = ["credentials"]

_LOCAL = ("unix:", "unix-abstract:")


def credentials(target: str, certificate: File, key: File, authority: File) -> grpc.ChannelCredentials | None:
    """Read the files, in PEM, for a gateway that is reached by TCP; None for a unix socket, which needs none.

    Raises InvalidRequest naming the argument that is missing or of no use: the whole of TCP is mutual TLS.
    """
    if target.startswith(_LOCAL):
        return None
    given = {"certificate": certificate, "key": key, "authority": authority}
    if missing := [name for name, path in given.items() if not os.fspath(path)]:
        told = (
            f"{target} is reached by TLS, and needs {' and '.join(missing)}: the client's certificate, its key, and the authority of the "
            "gateway, as files in PEM (of a command line: --cert, --key, --ca)"
        )
        raise local(missing[0], told)
    held = {name: _read(name, path) for name, path in given.items()}
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=held["authority"].decode("ascii", "replace"))
    except ssl.SSLError:
        raise local("authority", f"{authority} holds no certificate in PEM") from None
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key, password=_none)
    except (ssl.SSLError, ValueError):
        raise local("key", f"{key} is not the private key, without a password, of the certificate in {certificate}") from None
    return grpc.ssl_channel_credentials(held["authority"], held["key"], held["certificate"])


def _read(name: str, path: File) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise local(name, f"{os.fspath(path)}: {error.strerror}") from None


def _none() -> str:
    """No password: OpenSSL would ask the terminal for one."""
    return ""
