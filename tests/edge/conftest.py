"""One gateway for the tests of the edge: a pool to work in, a shallow one, one that is down; a host that answers, one that does not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.edge.place import Place, running


@pytest.fixture(scope="session")
def place() -> Iterator[Place]:
    with running() as made:
        yield made
        assert made.server.stop() == 0, "whatever the tests did, it ends in order"
