"""The command line: `volgate [--server ADDR] [--output table|json] ... NOUN VERB ...`; the flags of every command are accepted anywhere.

Exit status: 0 success; 2 the command line or the request is wrong; 3 the object does not exist; 4 the object's state or
another object forbids it; 5 no answer, too busy, in doubt or too late: repeat the same command; 1 anything else.
"""

from __future__ import annotations

import sys

__all__ = ["hoist", "main"]

_FLAGS = ("--server", "--output", "--timeout", "--cert", "--key", "--ca")


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit with its status."""
    from typer.main import get_command

    from volgate.cli.app import app
    from volgate.cli.failures import report

    status = 0
    try:
        get_command(app)(hoist(list(sys.argv[1:] if arguments is None else arguments)), prog_name="volgate")
    except Exception as error:  # noqa: BLE001  # told to a person: our errors with what to do, anything else with its type
        status = report(error)
    sys.exit(status)  # outside: what the error's traceback holds (threads, servers) is gone before the interpreter ends


def hoist(words: list[str]) -> list[str]:
    """Put the flags of every command first, wherever they stand before a `--`, so that one parser sees them."""
    flags: list[str] = []
    left: list[str] = []
    while words:
        word = words.pop(0)
        if word == "--":
            left += [word, *words]
            break
        name, equals, _ = word.partition("=")
        if name not in _FLAGS:
            left.append(word)
        elif equals or not words:
            flags.append(word)
        else:
            flags += [word, words.pop(0)]
    return flags + left
