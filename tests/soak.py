"""`make soak`: every test that has a full count, with it; then docs/soak-report.md of what was run and what it printed.

A module with such tests imports `tests.soaking`, or has tests of which a run of everything draws a share. Further arguments go to pytest (`-k kills`); a partial run writes no report, but
`--only WORD...` runs the modules whose path has one of the words, and writes docs/soak-report-WORD.md of the first.
"""

from __future__ import annotations

import datetime as dt
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "build" / "soak.xml"
REPORT = ROOT / "docs" / "soak-report.md"
SECONDS_PER_TEST = 3 * 3600
LINES_PER_TEST = 16
LONGEST = 300
CONFORMANCE = ["--conformance-points", "0", "--conformance-examples", "100"]


def modules() -> list[str]:
    """Test modules with full counts, the backends before the judge among them."""
    found = (ROOT / "tests").rglob("test_*.py")
    marks = (
        "tests.soaking import",
        "pytest.mark.drawn(",
        "judged.judge import",
        "volgate.conformance import Conformance",
        "in_a_guest import",
        "test_iscsi_files import",
    )
    return sorted(str(path.relative_to(ROOT)) for path in found if any(mark in path.read_text(encoding="utf-8") for mark in marks))


def run(arguments: list[str], words: list[str]) -> int:
    """Run them, or those with one of the words; the result is in RESULT."""
    RESULT.parent.mkdir(exist_ok=True)
    argv = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "worksteal", "-o", f"timeout={SECONDS_PER_TEST}"]
    argv += [f"--junitxml={RESULT}", "-o", "junit_logging=system-out", *CONFORMANCE, *arguments]
    argv += [path for path in modules() if not words or any(word in path for word in words)]
    return subprocess.run(argv, check=False, cwd=ROOT, env={**os.environ, "VOLGATE_SOAK": "1"}).returncode


def report(tree: ET.ElementTree[ET.Element]) -> str:
    """Tell the run as Markdown."""
    revision = subprocess.run(["git", "rev-parse", "--short", "HEAD"], check=True, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    when = dt.datetime.now(tz=dt.UTC).strftime("%Y-%m-%d")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    lines = [
        "# Soak report",
        "",
        f"Written by `make soak` on {when} at revision {revision}; {os.cpu_count()} cores, {memory} GiB, Python {platform.python_version()}.",
        "The numbers are what the tests printed; a seed given as `VOLGATE_SEED` repeats its run.",
        "",
    ]
    for case in tree.iter("testcase"):
        failed = case.find("failure") is not None or case.find("error") is not None
        name = f"{case.get('classname', '').removeprefix('tests.')}::{case.get('name')}"
        lines.append(f"- {'**FAILED**' if failed else 'passed'} `{name}` ({float(case.get('time', '0')):.0f} s)")
        printed = [line.strip() for line in (case.findtext("system-out") or "").splitlines() if line.strip()]
        lines += [f"  - {_short(line)}" for line in printed if not line.startswith(("---", "20"))][-LINES_PER_TEST:]  # nor log lines
    return "\n".join(lines) + "\n"


def _short(line: str) -> str:
    """Without the temporary folders of that run, which say nothing to anybody."""
    cut = re.sub(r"/tmp/[^\s'\"]*(/|$)", ".../", line)
    return cut if len(cut) <= LONGEST else f"{cut[:LONGEST]} ..."


def main() -> int:
    """Run and report."""
    arguments, words = sys.argv[1:], []
    if arguments[:1] == ["--only"]:
        arguments, words = [], arguments[1:]
    status = run(arguments, words)
    if not arguments and RESULT.exists():
        target = REPORT.with_stem(f"{REPORT.stem}-{words[0]}") if words else REPORT
        target.write_text(report(ET.parse(RESULT)), encoding="utf-8")
        print(f"report: {target.relative_to(ROOT)}")
    return status


if __name__ == "__main__":
    sys.exit(main())
