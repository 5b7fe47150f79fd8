"""What the Containerfile says, instruction by instruction."""

from __future__ import annotations

import json
import re
from pathlib import Path

__all__ = ["CONTAINERFILE", "instructions", "word"]

CONTAINERFILE = Path(__file__).parents[2] / "deploy/container/Containerfile"


def instructions() -> list[tuple[str, str]]:
    """Name and argument of each, lines joined and comments left out."""
    text = re.sub(r"^\s*#.*\n", "", CONTAINERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(name, " ".join(rest.split())) for name, rest in re.findall(r"^([A-Z]+) (.*)$", text, re.MULTILINE)]


def word(name: str) -> list[str]:
    """The words of the one instruction of this name that is written as a list."""
    (argument,) = [argument for found, argument in instructions() if found == name]
    return list(json.loads(argument[argument.index("[") :]))
