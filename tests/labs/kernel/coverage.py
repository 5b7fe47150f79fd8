"""Coverage of tests that run in the guest: measured there if it is measured here, and brought back."""

from __future__ import annotations

import os
import shutil
import sys
import uuid
from pathlib import Path

__all__ = ["COVERAGE", "collect", "measured"]

COVERAGE = "COVERAGE_"  # how its variables begin


def measured(python: str, module: str) -> list[str]:
    """A command that runs this module, as this process is run."""
    coverage = sys.modules.get("coverage")
    current = coverage.Coverage.current() if coverage else None
    if current is None:
        return [python, "-m", module]
    settings = [f"--rcfile={current.config.config_file}"] if current.config.config_file else []
    return [python, "-m", "coverage", "run", "--parallel-mode", "--data-file=/share/.coverage", *settings, "-m", module]


def collect(share: Path) -> None:
    """Put what was measured beside our own data, for `coverage combine`."""
    coverage = sys.modules.get("coverage")
    current = coverage.Coverage.current() if coverage else None
    if current is not None:
        own = Path(os.path.abspath(current.config.data_file))
        for path in share.glob(".coverage*"):
            shutil.move(path, own.with_name(f"{own.name}.kernel-{uuid.uuid4().hex[:12]}"))
