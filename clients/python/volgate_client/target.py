"""Where a gateway listens."""

from __future__ import annotations

import os
from typing import TypeAlias, TypedDict

from volgate_client.errors import local

__all__ = ["DEFAULT", "OPTIONS", "File", "Files", "target"]

File: TypeAlias = str | os.PathLike[str]


class Files(TypedDict, total=False):
    """What a connection by TCP needs, in PEM: the client's certificate, its key, the gateway's authority."""

    certificate: File
    key: File
    authority: File


DEFAULT = "unix:/run/volgate/volgate.sock"

_LONGEST_SOCKET = 107
OPTIONS = (
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.initial_reconnect_backoff_ms", 50),  # a gateway that restarts is found again at once, not after gRPC's 20 s
    ("grpc.max_reconnect_backoff_ms", 2000),
)


def target(address: str) -> str:
    """An address as gRPC has it: unix:PATH, an absolute PATH of a socket, or HOST:PORT; "" is the default socket.

    Raises InvalidRequest for a socket's path that is longer than the system can connect to.
    """
    found = f"unix:{address}" if address.startswith("/") else address or DEFAULT
    if found.startswith("unix:") and len(os.fsencode(found.removeprefix("unix:"))) > _LONGEST_SOCKET:
        raise local("address", f"{found} is longer than the {_LONGEST_SOCKET} bytes of a socket's path")
    return found
