"""Runs the `console` blocks of a page in one shell: commands behind `$ `, what they print below them.

A printed line must occur in the output, in order; `...` stands for anything, runs of spaces are one space. `# exit N` behind a
command is its expected status, else 0. A line that ends in a backslash goes on.
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Step", "run", "steps"]

_BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
_END = "--- end of command"


@dataclass
class Step:
    """One command, its expected status, and what is to be seen."""

    command: str
    status: int = 0
    seen: list[str] = field(default_factory=list)


def steps(page: Path) -> list[Step]:
    """Every command of a page, in order."""
    found: list[Step] = []
    for block in _BLOCK.findall(page.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("$ "):
                command, _, status = line.removeprefix("$ ").partition("# exit ")
                found.append(Step(command.strip(), int(status or 0)))
            elif line.strip():
                found[-1].seen.append(line)
    return found


def run(page: Path, *, server: str, folder: Path, **variables: str) -> list[Step]:
    """Run a page; raise AssertionError at the first command that answers otherwise than the page says."""
    environment = {**os.environ, **variables, "VOLGATE_SERVER": server, "NO_COLOR": "1", "COLUMNS": "240", "TERM": "dumb"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    ran = steps(page)
    shell = subprocess.Popen(
        ["bash"], cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    with shell:
        for step in ran:
            _run_one(shell, step, page.name)
        assert shell.stdin
        shell.stdin.close()
    return ran


def _run_one(shell: subprocess.Popen[str], step: Step, page: str) -> None:
    assert shell.stdin and shell.stdout
    shell.stdin.write(f"{{ {step.command}; }} </dev/null; status=$?; echo; echo '{_END}' $status\n")
    shell.stdin.flush()
    output: list[str] = []
    for line in shell.stdout:
        if line.startswith(_END):
            break
        output.append(line)
    text = "".join(output)
    assert int(line.split()[-1]) == step.status, f"{page}: $ {step.command}\n{text}"
    lines = [" ".join(line.split()) for line in output]
    for wanted in step.seen:
        pattern = re.compile(".*".join(re.escape(" ".join(piece.split())) for piece in wanted.split("...")))
        while lines and not pattern.search(lines[0]):
            lines.pop(0)
        assert lines, f"{page}: $ {step.command}\nno line {wanted!r} in\n{text}"
