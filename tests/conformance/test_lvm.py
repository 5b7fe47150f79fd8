"""The LVM plugin before the judge, in a guest that has device mapper."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.conformance.in_a_guest import InAGuest
from volgate_plugins.lvm import Lvm

pytestmark = [pytest.mark.kernel, pytest.mark.drawn(2, turns=5), pytest.mark.timeout(900)]
GROUP, POOL = "judged", "pool"


def lvm(*words: str) -> str:
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def group() -> str:
    """A volume group of small extents on a device; return the device."""
    disk = Path("/srv/judged.img")
    disk.parent.mkdir(exist_ok=True)
    with disk.open("wb") as file:
        file.truncate(1 << 30)
    device = lvm("losetup", "--find", "--show", str(disk)).strip()
    lvm("pvcreate", "-q", device)
    lvm("vgcreate", "-q", "-s", "1m", GROUP, device)
    lvm("lvcreate", "-q", "-y", "--type", "thin-pool", "-L", "512m", "--poolmetadatasize", "8m", "-n", POOL, GROUP)
    return device


class TestLvm(InAGuest):
    backend_class = Lvm
    points = 3  # every one would take days
    lives = 1  # some fifty of LVM's commands each

    @pytest.fixture
    def table(self, group):
        return {"vg": GROUP, "thin_pool": POOL, "devices": [group], "oversubscription": 8.0}

    def litter(self, table):
        told = json.loads(lvm("lvs", "--reportformat", "json", "-o", "lv_name", GROUP))
        return [row["lv_name"] for row in told["report"][0]["lv"] if row["lv_name"] != POOL]
