"""Runs the `console` blocks of a page in one shell, or all its blocks: commands behind `$ `, what they print below them.

A printed line must occur in the output, in order; `...` stands for anything, runs of spaces are one space. `# exit N` behind a
command is its expected status, else 0. A line that ends in a backslash goes on.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

__all__ = ["Shell", "Step", "follow", "run", "steps"]

_BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
_ANY_BLOCK = re.compile(r"^```(\w*)(?: title=(\S+))?\n(.*?)^```", re.MULTILINE | re.DOTALL)
_END = "--- end of command"


@dataclass
class Step:
    """One command, its expected status, and what is to be seen."""

    command: str
    status: int = 0
    seen: list[str] = field(default_factory=list)


def steps(text: str) -> list[Step]:
    """Every command of a page's text, in order."""
    found: list[Step] = []
    for block in _BLOCK.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("$ "):
                command, _, status = line.removeprefix("$ ").partition("# exit ")
                found.append(Step(command.strip(), int(status or 0)))
            elif line.strip():
                found[-1].seen.append(line)
    return found


class Shell:
    """One bash for many steps, in a session of its own: at the end of the block nothing of it is left."""

    def __init__(self, folder: Path, page: str, environment: Mapping[str, str]) -> None:
        self._page = page
        self._process = subprocess.Popen(
            ["bash"],
            cwd=folder,
            env={**environment, "NO_COLOR": "1", "COLUMNS": "240", "TERM": "dumb"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for stream in (self._process.stdin, self._process.stdout):
            assert stream
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        self._process.wait(10)

    @property
    def folder(self) -> Path:
        """Where the shell is now."""
        return Path(f"/proc/{self._process.pid}/cwd").readlink()

    def do(self, step: Step) -> None:
        """Run one; raise AssertionError if it answers otherwise than the page says."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{{ {step.command}\n}} </dev/null; status=$?; echo; echo '{_END}' $status\n")
        self._process.stdin.flush()
        output: list[str] = []
        for line in self._process.stdout:
            if line.startswith(_END):
                break
            output.append(line)
        else:
            raise AssertionError(f"{self._page}: the shell ended at $ {step.command}\n{''.join(output)}")
        text = "".join(output)
        assert int(line.split()[-1]) == step.status, f"{self._page}: $ {step.command}\n{text}"
        lines = [" ".join(line.split()) for line in output]
        for wanted in step.seen:
            pattern = re.compile(".*".join(re.escape(" ".join(piece.split())) for piece in wanted.split("...")))
            while lines and not pattern.search(lines[0]):
                lines.pop(0)
            assert lines, f"{self._page}: $ {step.command}\nno line {wanted!r} in\n{text}"


def run(page: Path, *, server: str, folder: Path, **variables: str) -> list[Step]:
    """Run a page; raise AssertionError at the first command that answers otherwise than the page says."""
    environment = {**os.environ, **variables, "VOLGATE_SERVER": server}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    ran = steps(page.read_text(encoding="utf-8"))
    with Shell(folder, page.name, environment) as shell:
        for step in ran:
            shell.do(step)
    return ran


def follow(page: Path, *, folder: Path, environment: Mapping[str, str]) -> list[str]:
    """Follow a page to the letter, block after block, in an empty folder; return the names of the files that it had made.

    A block with a title is a file, written where the shell is; one of `sh` is run as it stands, and its first failure ends the page;
    one of `console` is run and looked at.
    """
    files: list[str] = []
    with Shell(folder, page.name, environment) as shell:
        for language, title, text in _ANY_BLOCK.findall(page.read_text(encoding="utf-8")):
            if title:
                (shell.folder / title).write_text(text, encoding="utf-8")
                files.append(title)
            elif language == "sh":
                shell.do(Step(f"set -e\n{text}set +e"))
            elif language == "console":
                for step in steps(f"```console\n{text}```"):
                    shell.do(step)
            else:
                raise AssertionError(f"{page.name}: a block of {language} without a title: nobody can follow it")
    return files
