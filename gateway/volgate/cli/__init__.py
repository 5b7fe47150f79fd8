"""The command line: `volgate [--server ADDR] [--output table|json] NOUN VERB ...`; both flags are accepted anywhere."""

from __future__ import annotations

import os
import sys

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> None:
    """Run a command; exit with 0, 1 (failure), 2 (usage), 3 (not found), 4 (conflict), 5 (unavailable or too slow)."""
    from volgate.cli.app import app
    from volgate.cli.session import SESSION, report

    words, flags = _take_flags(list(sys.argv[1:] if arguments is None else arguments))
    SESSION.address = flags.get("--server") or os.environ.get("VOLGATE_SERVER") or "unix:/run/volgate/volgate.sock"
    SESSION.json = flags.get("--output") == "json"
    if flags.get("--output") not in (None, "table", "json"):
        sys.stderr.write("--output: table or json\n")
        sys.exit(2)
    try:
        app(words, prog_name="volgate", standalone_mode=True)
    except Exception as error:  # noqa: BLE001  # told to a person: our errors with what to do, anything else with its type
        sys.exit(report(error))


def _take_flags(words: list[str]) -> tuple[list[str], dict[str, str]]:
    """Take --server and --output out of a line, wherever they stand."""
    left: list[str] = []
    flags: dict[str, str] = {}
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if name in ("--server", "--output") and (equals or words):
            flags[name] = value if equals else words.pop(0)
        else:
            left.append(word)
    return left, flags
