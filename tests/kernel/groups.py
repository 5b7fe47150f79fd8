"""Volume groups in the guest, for tests of pools in them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from tests.kernel.san import sh

__all__ = ["Group"]

_numbers = itertools.count()


class Group:
    """A volume group of extents of 1 MiB on a device of its own, with a thin pool."""

    def __init__(self, size: int = 1 << 30, pool: int = 256 << 20) -> None:
        """Make it. Bytes."""
        self.name = f"group{next(_numbers)}"
        disk = Path(f"/srv/{self.name}.img")
        disk.parent.mkdir(exist_ok=True)
        with disk.open("wb") as file:
            file.truncate(size)
        self.device = sh(f"losetup --find --show {disk}").strip()
        sh(f"pvcreate -q {self.device}; vgcreate -q -s 1m {self.name} {self.device}")
        sh(f"lvcreate -q -y --type thin-pool -L {pool}b --poolmetadatasize 4m -n pool {self.name}")

    def table(self, **more: object) -> dict[str, object]:
        """The table of a pool in it."""
        return {"vg": self.name, "thin_pool": "pool", "devices": [self.device], **more}

    def logicals(self) -> dict[str, str]:
        """The names of its logical volumes but the thin pool, with their tags."""
        told = json.loads(sh(f"lvs --reportformat json -o lv_name,lv_tags {self.name}"))
        return {row["lv_name"]: row["lv_tags"] for row in told["report"][0]["lv"] if row["lv_name"] != "pool"}
