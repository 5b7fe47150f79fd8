"""The demo as a newcomer runs it: it goes as promised, and a promise that is not kept fails it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.demo import stage


@pytest.mark.timeout(300)
def test_the_demo_goes_as_promised():
    done = subprocess.run([sys.executable, "-m", "tests.demo"], check=False, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for told in ("sha256 of the pattern, inside the guest", "the guest sees 2 GiB", "operations that go on", "nothing is left running"):
        assert told in done.stdout


def test_a_promise_that_is_not_kept_is_a_mismatch():
    with pytest.raises(stage.Mismatch, match="size: expected 2, found 1"):
        stage.check("size", 1, 2)
