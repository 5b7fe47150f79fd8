"""How answers are shown: aligned lines for people, JSON for programs.

JSON has the contract's field names, enums by their names in the contract, 64-bit numbers as numbers, times as RFC 3339, and
every field always: a message that is not set is null.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from google.protobuf.message import Message

from volgate.cli.session import SESSION

__all__ = ["human", "object_", "plain", "record", "say", "short", "table", "when"]

_STEP = 1024


def table(messages: Iterable[Message], columns: Sequence[str], row: Callable[[Any], Sequence[str]]) -> None:
    """Show a list: a JSON array, or a table. A column whose name begins with `>` is aligned to the right."""
    if SESSION.json:
        _print_json([plain(message) for message in messages])
        return
    titles = [title.removeprefix(">") for title in columns]
    cells = [[_printable(cell) for cell in row(message)] for message in messages]
    widths = [max(len(line[at]) for line in [titles, *cells]) for at in range(len(titles))]
    right = [title.startswith(">") for title in columns]
    for number, line in enumerate([titles, *cells]):
        aligned = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)]
        text = "  ".join(aligned).rstrip()
        sys.stdout.write(_bold(text) + "\n" if number == 0 else text + "\n")


def record(message: Message, rows: Iterable[tuple[str, str]]) -> None:
    """Show one object: a JSON object, or a line for each field that has a value."""
    if SESSION.json:
        _print_json(plain(message))
        return
    lines = [(title, _printable(value)) for title, value in rows if value]
    width = max((len(title) for title, _ in lines), default=0)
    for title, value in lines:
        sys.stdout.write(f"{_bold(title.ljust(width))}  {value}\n")


def object_(facts: Mapping[str, Any] | Sequence[Any], sentence: str) -> None:
    """Show what is no message of the contract: its facts as JSON, or a sentence."""
    if SESSION.json:
        _print_json(facts)
    elif sentence:
        sys.stdout.write(sentence + "\n")


def say(text: str) -> None:
    """A line for people, on standard error so that programs do not read it."""
    sys.stderr.write(text + "\n")


def plain(message: Message) -> dict[str, Any]:
    """A message as JSON's types."""
    return {field.name: _field(message, field) for field in message.DESCRIPTOR.fields}


def _field(message: Message, field: Any) -> Any:
    value = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return {key: value[key] for key in sorted(value)}
    if field.is_repeated:
        return [_value(field, item) for item in value]
    if field.message_type is not None and not message.HasField(field.name):
        return None
    return _value(field, value)


def _value(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return value.ToJsonString() if field.message_type.full_name == "google.protobuf.Timestamp" else plain(value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known else value
    return value


def _print_json(tree: Any) -> None:
    sys.stdout.write(json.dumps(tree, indent=2) + "\n")


def _printable(text: str) -> str:
    """One line without control characters: names of foreign files and messages of libraries may hold anything."""
    return "".join(c if c.isprintable() else " " for c in text)


def _bold(text: str) -> str:
    return f"\x1b[1m{text}\x1b[0m" if sys.stdout.isatty() else text


def human(amount: int) -> str:
    """Bytes for people, in binary units; "" for none."""
    number = float(amount)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if number < _STEP:
            return f"{number:.0f} {unit}" if number == int(number) else f"{number:.1f} {unit}"
        number /= _STEP
    return f"{number:.1f} PiB"


def short(name: str) -> str:
    """A resource name as the command line takes it: POOL/NAME for pools/POOL/volumes/NAME."""
    return "/".join(name.split("/")[1::2])


def when(message: Message, field: str) -> str:
    """A time to the second, UTC; "" if it is not set."""
    return str(getattr(message, field).ToJsonString()[:19]) + "Z" if message.HasField(field) else ""
