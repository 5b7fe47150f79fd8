"""The page of commands is the command line's: every command with what its own help says first, and every option of it."""

import re
from collections.abc import Iterator
from pathlib import Path

import click
from typer.main import get_command

from volgate.cli.app import app

PAGE = (Path(__file__).parents[2] / "docs/commands.md").read_text(encoding="utf-8")


def commands(group: click.Command, path: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every command with its full name."""
    for name, command in getattr(group, "commands", {}).items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{path}{name} ")
        else:
            yield f"{path}{name}", command


def row(name: str, command: click.Command) -> tuple[str, str, str]:
    """The name with its arguments, its options, what it does."""
    arguments = [
        str(parameter.metavar or parameter.name).upper() for parameter in command.params if parameter.param_type_name == "argument"
    ]
    options = [parameter.opts[0] for parameter in command.params if parameter.param_type_name == "option" and parameter.name != "help"]
    return (
        " ".join([name, *arguments]).replace("|", "\\|"),
        " ".join(f"`{option}`" for option in options),
        " ".join((command.help or "").split()),
    )


def test_every_command_is_on_the_page_with_its_options_and_its_help():
    expected = [row(name, command) for name, command in commands(get_command(app))]
    assert re.findall(r"^\| `volgate (.*?)` \| (.*?) \| (.*?) \|$", PAGE, re.MULTILINE) == expected


def test_the_flags_of_every_command_are_told():
    flags = {parameter.opts[0] for parameter in get_command(app).params if parameter.param_type_name == "option"}
    assert flags <= set(re.findall(r"`(--[a-z-]+)`", PAGE))
