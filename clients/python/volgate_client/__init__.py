"""The Python client of Volgate: typed errors, retries with a request id, waits, paging, images with progress.

`Client` is for threads, `AsyncClient` for asyncio; both have the same methods. Importing this package is quick: gRPC is
imported when one of them is first named.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from volgate_client.errors import VolgateError

if TYPE_CHECKING:
    from volgate_client.aio.client import AsyncClient
    from volgate_client.sync.client import Client

__all__ = ["AsyncClient", "Client", "VolgateError"]

_HOMES = {"AsyncClient": "volgate_client.aio.client", "Client": "volgate_client.sync.client"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
