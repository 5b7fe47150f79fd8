"""What a worker and a gateway start with."""

from __future__ import annotations

import subprocess
import sys

import pytest

LOOK = """
import sys
print("structlog" in sys.modules, "rich" in sys.modules)
import rich.console
print(rich.console.Console.__name__)
"""


@pytest.mark.parametrize("first", ["import volgate.worker.process", "from volgate import plain_logs; plain_logs.load()"])
def test_logs_come_without_rich_and_a_plugin_that_wants_it_has_it(first: str) -> None:
    done = subprocess.run([sys.executable, "-c", first + LOOK], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["True", "False", "Console"]
