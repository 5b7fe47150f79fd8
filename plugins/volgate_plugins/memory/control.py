"""The hand on a running array: `python -m volgate_plugins.memory.control --socket PATH COMMAND`. Answers are lines of JSON."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import msgspec

from volgate.errors import VolgateError
from volgate_plugins.memory.client import Client
from volgate_plugins.memory.faults import VERBS, Fault
from volgate_plugins.memory.ports import NAMES
from volgate_plugins.memory.server import Status

__all__ = ["main"]

_SECONDS = 10.0
_EFFECTS = {
    "delay": "answer later",
    "error": "answer with an error",
    "hang": "answer nothing until `release`",
    "lose": "do it, then cut the connection instead of answering",
    "crash": "kill the process that calls",
}
_VERBS: dict[str, tuple[str, Any]] = {
    "clear": ("clear_faults", int),
    "release": ("release", int),
    "fail-port": ("fail_port", None),
    "restore-port": ("restore_port", None),
    "foreign": ("make_foreign", str),
    "open": ("open_volume", str),
    "accept-loss": ("accept_loss", bool),
    "stop": ("stop", None),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Do one command; return the exit code."""
    given = vars(_parser().parse_args(arguments))
    path, command = given.pop("socket"), given.pop("command")
    client = Client(path, connect_seconds=_SECONDS, call_seconds=_SECONDS)
    try:
        found = _do(client, command, given)
    except VolgateError as error:
        sys.stderr.write(f"{error.reason}: {error.message}\n")
        return 1
    finally:
        client.close()
    if found is not None:
        sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    return 0


def _do(client: Client, command: str, given: dict[str, Any]) -> object:
    if command in _EFFECTS:
        return client.call("add_fault", None, fault=Fault(effect=command, **given))  # type: ignore[arg-type]  # the parser knows the effects
    if command in ("status", "faults"):
        found: Status = client.call("hello", Status)
        return found.faults if command == "faults" else found
    verb, answer = _VERBS[command]
    return client.call(verb, answer, **given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m volgate_plugins.memory.control", description=__doc__)
    parser.add_argument("--socket", required=True, help="where the array listens")
    commands = parser.add_subparsers(dest="command", required=True)
    for effect, told in _EFFECTS.items():
        _fault(commands.add_parser(effect, help=told), effect)
    for name, told in (("clear", "take faults out of force"), ("release", "let go of calls that hang, and take that fault out of force")):
        commands.add_parser(name, help=told).add_argument("verb", nargs="?", default="*", choices=("*", *VERBS), metavar="VERB")
    commands.add_parser("faults", help="list the faults in force")
    commands.add_parser("status", help="tell what there is to know of the array")
    failing = commands.add_parser("fail-port", help="let one of the two ports fail")
    failing.add_argument("name", choices=NAMES)
    failing.add_argument("--problem", default="")
    commands.add_parser("restore-port", help="let a port come back").add_argument("name", choices=NAMES)
    foreign = commands.add_parser("foreign", help="make a file that belongs to nobody, to be adopted")
    foreign.add_argument("name")
    foreign.add_argument("--size", type=int, default=1 << 20, help="bytes")
    opening = commands.add_parser("open", help="let a simulated client open a volume, as its holder")
    opening.add_argument("volume")
    opening.add_argument("--address", required=True, help="the client's IP address")
    opening.add_argument("--locks", action="store_true", help="it holds the write lock")
    commands.add_parser("accept-loss", help="use an array that lost its volumes by its end again, empty")
    commands.add_parser("stop", help="end the array; it forgets everything")
    return parser


def _fault(parser: argparse.ArgumentParser, effect: str) -> None:
    parser.add_argument("verb", choices=("*", *VERBS), metavar="VERB", help="a method of a facet, or *")
    parser.add_argument("--count", type=int, default=0, help="for so many calls; 0: until `clear`")
    parser.add_argument("--probability", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    if effect != "lose":
        parser.add_argument("--after", action="store_true", help="after the effect, not before it")
    if effect == "delay":
        parser.add_argument("--seconds", type=float, default=1.0)
        parser.add_argument("--jitter", type=float, default=0.0, help="up to so many seconds more")
    if effect == "error":
        parser.add_argument("--error", default="Unreachable", help="a class of volgate.errors")
        parser.add_argument("--reason", default="")
        parser.add_argument("--message", default="")


if __name__ == "__main__":
    sys.exit(main())
