"""What the kernel says by a number, told as one of ours."""

from __future__ import annotations

import errno

import pytest

from volgate.errors import Precondition, Unreachable, translate
from volgate.worker.frames import Failure


@pytest.mark.parametrize("number", [errno.EIO, errno.ENXIO, errno.ENODEV, errno.ENOLINK, errno.EREMOTEIO, errno.ETIMEDOUT])
def test_a_disk_whose_way_is_gone_is_unreachable_and_no_bug(number: int) -> None:
    with pytest.raises(Unreachable) as told, translate("read /dev/sda"):
        raise OSError(number, "as the block layer says")
    assert told.value.message.startswith("read /dev/sda: ")


def test_an_error_of_a_plugins_own_making_is_to_callers_what_it_was_made_of() -> None:
    class Picky(Precondition):
        """It takes more than a message."""

        def __init__(self, word: str, number: int) -> None:
            super().__init__(f"{word} {number}", reason="COMMAND_FAILED")

    told = Failure.of(1, Picky("sense", 5)).error()
    assert type(told) is Precondition and (told.message, told.reason) == ("sense 5", "COMMAND_FAILED")
    assert type(Failure.of(1, KeyError("a bug")).error()) is RuntimeError
