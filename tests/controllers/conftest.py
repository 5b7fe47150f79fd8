"""Databases of one server, and controllers that share one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.controllers.fleet import Fleet
from tests.controllers.places import OnPostgres
from tests.labs.wire import Wire


@pytest.fixture
def on_postgres(postgres) -> Iterator[OnPostgres]:
    """An empty database."""
    made = OnPostgres(postgres)
    yield made
    made.close()


@pytest.fixture
def wire(postgres) -> Iterator[Wire]:
    """A wire to the server that the test may cut."""
    with Wire(postgres.port) as made:
        yield made


@pytest.fixture
def fleet(postgres) -> Iterator[Fleet]:
    """Controllers of this test's own."""
    with Fleet(postgres) as made:
        yield made
