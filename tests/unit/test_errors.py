"""What the kernel says by a number, told as one of ours."""

from __future__ import annotations

import errno

import pytest

from volgate.errors import Unreachable, translate


@pytest.mark.parametrize("number", [errno.EIO, errno.ENXIO, errno.ENODEV, errno.ENOLINK, errno.EREMOTEIO, errno.ETIMEDOUT])
def test_a_disk_whose_way_is_gone_is_unreachable_and_no_bug(number: int) -> None:
    with pytest.raises(Unreachable) as told, translate("read /dev/sda"):
        raise OSError(number, "as the block layer says")
    assert told.value.message.startswith("read /dev/sda: ")
