"""`volgate conform`: the suite over the wire, against a pool that a gateway serves."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from volgate.cli.output import object_
from volgate.cli.progress import fraction
from volgate.cli.session import SESSION
from volgate.errors import Unsupported

__all__ = ["conform"]


class _Watch:
    """A pytest plugin that tells how far the run is."""

    def __init__(self, tell: Callable[[float], None] | None) -> None:
        self._tell = tell
        self._done = self._all = 0

    def pytest_collection_finish(self, session: Any) -> None:
        self._all = len(session.items)

    def pytest_runtest_logfinish(self) -> None:
        self._done += 1
        if self._tell and self._all:
            self._tell(self._done / self._all)


def conform(pool: str, level: int, seed: int, report: Path | None) -> int:
    """Run levels 1 to `level`, show what was proven, return the exit status: 0, or 1 if the pool does not conform.

    Raises VolgateError: the gateway, or the pool, is not there; Unsupported where the suite's own libraries are not installed.
    """
    try:
        import pytest

        from volgate.conformance import options, plugin
        from volgate.conformance import report as reports
    except ImportError as error:
        told = f"conform needs {error.name}, which is not installed: pip install 'volgate[conformance]'"
        raise Unsupported(told) from error
    options.Target.ask(SESSION.address, pool, SESSION.files)  # so that what is wrong with it is told as such
    with tempfile.TemporaryDirectory(prefix="volgate-conform-") as folder:
        written = Path(folder, "report.json")
        words = ["--pyargs", "volgate.conformance.served", "-c", os.devnull, "--rootdir", folder, "-p", "no:cacheprovider", "--no-header"]
        words += ["--conformance-server", SESSION.address, "--conformance-pool", pool, "--conformance-level", str(level)]
        words += [word for name, path in SESSION.files.items() for word in (f"--conformance-{name}", str(path))]
        words += ["--conformance-seed", str(seed), "--conformance-report", str(written)]
        said = io.StringIO()
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # this run is the suite's alone
        with fraction("conformance") as tell, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            pytest.main(words, plugins=[plugin, _Watch(tell)])
        if not written.exists():
            sys.stderr.write(said.getvalue())
            return 1
        facts = json.loads(written.read_text(encoding="utf-8"))
    if report is not None:
        report.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    object_(facts, "\n".join(reports.read(facts).lines()))
    return 0 if facts["passed"] else 1
