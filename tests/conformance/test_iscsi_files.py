"""The plugin `iscsi` before the judge, with volumes that are files, in a guest whose kernel has a target."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.conformance.in_a_guest import InAGuest
from tests.kernel.san import LIO
from volgate_plugins.iscsi import PublishedWithSnapshots

pytestmark = [pytest.mark.kernel, pytest.mark.drawn(4, turns=5), pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def place() -> Path:
    """A file system that shares blocks."""
    root = Path("/srv/judged")
    root.mkdir(parents=True)
    commands = f"truncate -s 1G {root}.img; mkfs.xfs -q -m reflink=1 {root}.img; mount -o loop {root}.img {root}"
    subprocess.run(["/bin/sh", "-ec", commands], check=True, timeout=120)
    return root


class TestIscsiFiles(InAGuest):
    backend_class = PublishedWithSnapshots
    points = 3  # every one would take hours

    @pytest.fixture
    def table(self, place: Path, tmp_path: Path):
        secret = tmp_path / "chap"
        secret.write_text("correct-horse-12")
        return self.with_secret(
            {
                "iqn": "iqn.2026-01.org.volgate",
                "portals": ["127.0.0.1"],
                "records": f"{place}/records",
                "directory": {"path": f"{place}/pool", "oversubscription": 8.0},
            },
            f"file:{secret}",
        )

    def with_secret(self, table, reference: str):
        return {**table, "chap": {"user": "gate", "secret": reference}}

    def litter(self, table):
        files = [path for path in Path(table["directory"]["path"]).glob("*/**/*") if path.is_file()]
        files += Path(table["records"]).glob("[!.]*")
        return [*map(str, files), *map(str, LIO.glob("iscsi/iqn*/tpgt_1")), *map(str, LIO.glob("core/iblock*/*/enable"))]
