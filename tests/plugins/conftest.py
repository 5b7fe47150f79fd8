"""What tests of the directory plugin share."""

import pytest

from tests.plugins.directory_rig import MIB, mounted


@pytest.fixture
def still(tmp_path):
    """A file system that nobody else writes to, so that its space is known to the byte; a part of it is root's alone."""
    with mounted(tmp_path / "fs", "ext4", 64 * MIB, tmp_path / "mnt") as folder:
        yield folder
