"""The flags of this run and the connection they name."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from volgate_client import Client, VolgateError
    from volgate_client.target import Files

__all__ = ["DEFAULT_SERVER", "SESSION"]

DEFAULT_SERVER = "unix:/run/volgate/volgate.sock"
_TIMEOUT = 60.0
_LONG_TIMEOUT = 86400.0


@dataclass
class Session:
    """What the flags of every command say; `timeout` 0 means 60 seconds for a call and a day for a transfer or a wait."""

    address: str = DEFAULT_SERVER
    json: bool = False
    timeout: float = 0.0
    certificate: str = ""
    key: str = ""
    authority: str = ""

    @property
    def files(self) -> Files:
        """What a connection by TCP needs."""
        return {"certificate": self.certificate, "key": self.key, "authority": self.authority}

    def client(self) -> Client:
        """A connection to the server."""
        from volgate_client import Client

        limit, long_limit = self.timeout or _TIMEOUT, self.timeout or _LONG_TIMEOUT
        return Client(self.address, timeout=limit, long_timeout=long_limit, retrying=_tell_once(), **self.files)


def _tell_once() -> Callable[[VolgateError], None]:
    """Tell a person who waits why, once for each cause."""
    told: set[str] = set()

    def tell(failure: VolgateError) -> None:
        if sys.stderr.isatty() and failure.reason not in told:
            told.add(failure.reason)
            sys.stderr.write(f"trying again: {failure.message}\n")

    return tell


SESSION = Session()
