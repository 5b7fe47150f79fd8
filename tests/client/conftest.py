"""A gateway on a directory pool for the tests of a module, and clients of both kinds."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.edge.server import Server
from volgate_client import Client


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    top = Path(tempfile.mkdtemp(prefix="vg-client-", dir="/tmp"))
    (top / "exports").mkdir()
    made = Server(top / "state", config=f'[exports]\nallowed_directories = ["{top}/exports"]\n').start()
    try:
        yield made
    finally:
        made.stop()
        shutil.rmtree(top)


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with server.client() as made:
        yield made
