"""The plugin `iscsi` before the judge, with volumes that are files behind targets of tgtd, in a guest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.test_iscsi_files import TestIscsiFiles as Files
from tests.conformance.test_iscsi_files import place  # noqa: F401  # its fixture
from tests.kernel.san import TGT_PORT, Daemon

pytestmark = [pytest.mark.kernel, pytest.mark.drawn(2, turns=5), pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    made = Daemon()
    yield made
    made.end()


class TestIscsiTgt(Files):
    @pytest.fixture
    def table(self, place: Path, tmp_path: Path, daemon: Daemon):  # noqa: F811  # the fixture
        self.daemon = daemon
        secret = tmp_path / "chap"
        secret.write_text("correct-horse-12")
        return self.with_secret(
            {
                "target": "tgt",
                "iqn": "iqn.2026-01.org.volgate",
                "portals": [f"127.0.0.1:{TGT_PORT}"],
                "records": f"{place}/records.tgt",
                "directory": {"path": f"{place}/pool.tgt", "oversubscription": 8.0},
            },
            f"file:{secret}",
        )

    def litter(self, table):
        files = [path for path in Path(table["directory"]["path"]).glob("*/**/*") if path.is_file()]
        files += Path(table["records"]).glob("[!.]*")
        return [*map(str, files), *(self.daemon.targets() or {"tgtd is dead": None})]
