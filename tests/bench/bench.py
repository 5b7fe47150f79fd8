"""What the groups of rows share: a working folder on a real file system, and gateways that serve from it."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from tests.edge.server import Server
from volgate_client import Client

GIB = 1 << 30
MIB = 1 << 20
LEAST = 4


@dataclass
class Bench:
    """One run. `scale` shortens it: the share of the usual rounds, volumes and bytes."""

    scale: float = 1.0
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="vgb-")))
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _shared: Server | None = None

    def __enter__(self) -> Self:
        self._stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def scaled(self, usual: int, least: int = 2) -> int:
        """Return how many of `usual` this run does."""
        return max(least, round(usual * self.scale))

    def rounds(self, usual: int, seconds: float = 15.0) -> Iterator[int]:
        """Number the rounds, one to warm up first; on a slow or busy machine those that fit into `seconds`, at least four."""
        ends = time.monotonic() + seconds
        for number in range(self.scaled(usual) + 1):
            if number > LEAST and time.monotonic() > ends:
                return
            yield number

    def place(self, name: str) -> Path:
        """Return a new empty folder."""
        made = self.folder / name
        made.mkdir(parents=True)
        return made

    @contextlib.contextmanager
    def serving(self, name: str, config: str = "") -> Iterator[Server]:
        """Serve with a state directory of its own."""
        server = Server(self.folder / name, config=config).start(60.0)
        try:
            yield server
        finally:
            server.stop()
            shutil.rmtree(self.folder / name, ignore_errors=True)

    @property
    def pool(self) -> Path:
        """The directory of the shared gateway's pool."""
        return self.shared().state / "pools/default"

    def shared(self) -> Server:
        """Return one gateway for all groups that need no special one."""
        if self._shared is None:
            self._shared = self._stack.enter_context(self.serving("shared"))
        return self._shared

    def client(self) -> Client:
        """Return a client of the shared gateway."""
        return self._stack.enter_context(self.shared().client())
