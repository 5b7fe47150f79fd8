"""The Ceph plugin before the judge, on a real cluster."""

from __future__ import annotations

import os
import time

import pytest
import rbd

from tests.labs.ceph import CephCluster
from volgate.conformance import Conformance
from volgate.conformance.picture import PAGE
from volgate_plugins.ceph_rbd.backend import CephRbd

PURGE_SECONDS = 90.0  # a client that was killed watches an image for half a minute more
_OURS = ("marker", "client.")
_OF_IMAGES = ("rbd_data.", "rbd_object_map.", "rbd_id.", "rbd_header.")


class TestCeph(Conformance):
    backend_class = CephRbd
    one_connection = True

    @pytest.fixture(autouse=True)
    def cluster(self, ceph: CephCluster):
        type(self).ceph = ceph

    @pytest.fixture
    def table(self, ceph: CephCluster):
        return ceph.table(namespace=ceph.new_namespace())

    def litter(self, table):
        """Images, what is in the trash, and the rows of the pool's object, once the purge had its time."""
        deadline = time.monotonic() + PURGE_SECONDS
        while (found := self.there(table["namespace"])) and time.monotonic() < deadline:
            time.sleep(0.1)
        return found

    def there(self, namespace: str) -> list[str]:
        with self.ceph.ioctx(namespace) as ioctx:
            names = [name for name in rbd.RBD().list(ioctx) if not name.startswith("foreign-")]
            trash = [f"trash {entry['name']}" for entry in rbd.RBD().trash_list(ioctx)]
            rows = [f"row {key}" for key in self.ceph.rows(ioctx, "volgate.pool") if not key.startswith(_OURS)]
            objects = [one.key for one in ioctx.list_objects() if one.key.startswith(_OF_IMAGES)]
            groups = [f"group {name}" for name in rbd.RBD().group_list(ioctx)]
            return names + trash + rows + groups + (objects if not rbd.RBD().list(ioctx) else [])

    def foreign(self, table, size: int) -> str:
        name = f"foreign-{os.urandom(4).hex()}"
        with self.ceph.ioctx(table["namespace"]) as ioctx:
            rbd.RBD().create(ioctx, name, size)
            with rbd.Image(ioctx, name) as image:
                for offset in (0, size - PAGE):
                    image.write(b"\xad" * PAGE, offset)
        return name

    def with_secret(self, table, reference: str):
        return {**table, "key": reference}

    def secret(self, table) -> str:
        return self.ceph.key_file.read_text()
