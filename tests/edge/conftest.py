"""One gateway for the tests of the edge: a pool to work in, a shallow one, one that is down; a host that answers, one that does not."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.edge.place import Place


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    top = Path(tempfile.mkdtemp(prefix="vg-edge-", dir="/tmp"))
    made = Place(top)
    made.start()
    try:
        yield made
    finally:
        made.wire.channel.close()
        assert made.server.stop() == 0
        shutil.rmtree(top)
