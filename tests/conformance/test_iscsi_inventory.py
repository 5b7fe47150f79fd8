"""The plugin `iscsi` before the judge, with LUNs that an administrator made, in a guest whose kernel has a target."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance.in_a_guest import InAGuest
from tests.kernel.san import HOST, LOOPBACK, Shelf
from volgate_plugins.iscsi import Inventory

pytestmark = [pytest.mark.kernel, pytest.mark.drawn(2, turns=5), pytest.mark.timeout(900)]
MIB = 1 << 20
SIZES = [size * MIB for size, count in {1: 14, 2: 8, 3: 4, 4: 4, 6: 2, 8: 2, 16: 2}.items() for _ in range(count)]


@pytest.fixture(scope="module")
def shelf() -> Shelf:
    return Shelf("shelf", SIZES)


class TestIscsiInventory(InAGuest):
    backend_class = Inventory

    @pytest.fixture
    def table(self, shelf: Shelf):
        records = "/srv/shelf.records"
        return {"target": "inventory", "portals": [LOOPBACK], "records": records, "initiator": HOST, "luns": shelf.luns()}

    def litter(self, table):
        """LUNs that are anybody's."""
        return [path.name for path in Path(table["records"]).glob("[!.]*") if b'"clean":true' not in path.read_bytes()]
