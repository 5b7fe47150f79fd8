"""Makes volgate_client/sync from volgate_client/aio: `python clients/python/generate_sync.py [--check]`.

Words of the language are replaced token by token, so that names and comments that look like them stay; then ruff formats.
`seam.py` and `__init__.py` are written by hand in both packages.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

HERE = Path(__file__).resolve().parent / "volgate_client"
FILES = ("connection.py", "images.py", "client.py")
_DROPPED = ("async", "await")
_RENAMED = {
    "AsyncClient": "Client",
    "AsyncIterator": "Iterator",
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "aio": "sync",
}
_PROSE = (
    ("A gateway, for asyncio. Make it where an event loop runs.", "A gateway, for threads: many may use one client at once."),
    ('"AsyncClient"', '"Client"'),
)


def translated(text: str) -> str:
    """The text without `async` and `await`, names replaced, formatted."""
    lines = text.splitlines(keepends=True)
    for token in reversed(list(tokenize.generate_tokens(io.StringIO(text).readline))):
        if token.type != tokenize.NAME or token.string not in (*_DROPPED, *_RENAMED):
            continue
        row, start = token.start
        line, end = lines[row - 1], token.end[1]
        if token.string in _DROPPED:
            lines[row - 1] = line[:start] + line[end:].removeprefix(" ")
        else:
            lines[row - 1] = line[:start] + _RENAMED[token.string] + line[end:]
    made = "".join(lines)
    for before, after in _PROSE:
        made = made.replace(before, after)
    made = re.sub(r"^# ruff: noqa: ASYNC.*\n", "", made, flags=re.MULTILINE)
    return _formatted("# Generated from the package aio by generate_sync.py; edit that.\n" + made)


def _formatted(text: str) -> str:
    ruff = [sys.executable, "-m", "ruff"]
    name = ["--stdin-filename", str(HERE / "sync" / "generated.py"), "-"]
    rules = ["check", "--quiet", "--select", "I,UP028,UP034", "--fix", "--unsafe-fixes", "--exit-zero"]
    sorted_text = subprocess.run([*ruff, *rules, *name], input=text, capture_output=True, text=True, check=True).stdout  # noqa: S603  # our own words
    return subprocess.run([*ruff, "format", "--quiet", *name], input=sorted_text, capture_output=True, text=True, check=True).stdout  # noqa: S603  # as above


def main(arguments: list[str]) -> int:
    """Write the package, or with --check tell which files differ; return the exit status."""
    stale = []
    for name in FILES:
        made, target = translated((HERE / "aio" / name).read_text(encoding="utf-8")), HERE / "sync" / name
        if target.exists() and target.read_text(encoding="utf-8") == made:
            continue
        stale.append(name)
        if "--check" not in arguments:
            target.write_text(made, encoding="utf-8")
    if stale and "--check" in arguments:
        sys.stderr.write(f"not as generated: {', '.join(stale)}; run python clients/python/generate_sync.py\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
