"""What the tests of the store run on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.controllers.places import OnPostgres, OnSqlite


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path) -> Iterator[OnSqlite | OnPostgres]:
    """An empty database of either kind."""
    made = OnSqlite(tmp_path) if request.param == "sqlite" else OnPostgres(request.getfixturevalue("postgres"))
    yield made
    made.close()


@pytest.fixture
def on_postgres(postgres) -> Iterator[OnPostgres]:
    """An empty database of a PostgreSQL."""
    made = OnPostgres(postgres)
    yield made
    made.close()
