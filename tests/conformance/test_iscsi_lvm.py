"""The plugin `iscsi` before the judge, with volumes that are logical ones, in a guest whose kernel has a target."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance.in_a_guest import InAGuest
from tests.kernel.groups import Group
from tests.kernel.san import LIO
from volgate_plugins.iscsi import PublishedLogical

pytestmark = [pytest.mark.kernel, pytest.mark.drawn(2, turns=5), pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def group() -> Group:
    return Group(pool=512 << 20)


class TestIscsiLvm(InAGuest):
    backend_class = PublishedLogical
    points = 2  # every one would take days

    @pytest.fixture
    def table(self, group: Group):
        below = group.table(oversubscription=8.0)
        return {"iqn": "iqn.2026-01.org.volgate", "portals": ["127.0.0.1"], "records": f"/srv/{group.name}.records", "lvm": below}

    def litter(self, table):
        group = table["lvm"]["vg"]
        records = Path(table["records"])
        found = [*records.glob("[!.]*"), *LIO.glob("iscsi/iqn*/tpgt_1"), *LIO.glob("core/iblock*/*/enable")]
        return [*map(str, found), *map(str, Path("/dev", group).glob("v.*")), *map(str, Path("/dev", group).glob("s.*"))]
