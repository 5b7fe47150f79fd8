"""A run of everything leaves nothing out unseen."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.wholeness import allowed

CASES = """
import pytest

def test_a(): pass

@pytest.mark.{mark}
def test_b(): assert {holds}
"""


def run(folder: Path, text: str, *words: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_it.py").write_text(text)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "tests.wholeness",
        "-p",
        "no:cacheprovider",
        "-c",
        "/dev/null",
        "--rootdir",
        str(folder),
    ]
    root = Path(__file__).parents[2]
    return subprocess.run([*command, *words, str(folder)], cwd=root, check=False, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(("mark", "holds"), [("skip", True), ("xfail", False), ("xfail", True)])
def test_what_is_skipped_or_expected_to_fail_fails(tmp_path, mark, holds):
    ran = run(tmp_path, CASES.format(mark=mark, holds=holds))
    assert ran.returncode == 1 and "not in left_out.txt" in ran.stdout and "1 passed" in ran.stdout, ran.stdout


def test_what_is_deselected_is_refused(tmp_path):
    ran = run(tmp_path, "def test_a(): pass\ndef test_b(): pass\n", "-k", "test_a")
    assert ran.returncode != 0 and "test_it.py::test_b" in ran.stdout + ran.stderr


def test_the_list_is_read_as_patterns():
    assert allowed("tests/conformance/test_good.py::TestGood::test_what_is_answered_is_durable[collapse]")
    assert not allowed("tests/conformance/test_directory.py::TestDirectory::test_what_is_answered_is_durable[collapse]")
    assert not allowed("# No setting")
