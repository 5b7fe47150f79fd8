"""Finding plugins: those that come with the gateway, and those that other distributions declare as entry points."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from volgate.backend import BackendType
from volgate.errors import NotFound

__all__ = ["BUILT_IN", "GROUP", "Found", "find", "load", "offers"]

GROUP = "volgate.plugins"
BUILT_IN = "built-in"
_OWN = ("directory", "memory")  # each offers the kind of its own name, and perhaps others


@dataclass(frozen=True, slots=True)
class Found:
    """A plugin that is installed; `value` names the module, or the object in it, that has the hooks (`package.module:object`)."""

    name: str
    value: str
    version: str


def find() -> list[Found]:
    """Every installed plugin, none imported: the built-in ones, then the others by name. A built-in name cannot be taken."""
    own = [Found(name, f"volgate_plugins.{name}", BUILT_IN) for name in _OWN]
    others = sorted(entry_points(group=GROUP), key=lambda entry: entry.name)
    listed = {(found.name, found.value) for found in own}
    return own + [
        Found(entry.name, entry.value, entry.dist.version if entry.dist else "")
        for entry in others
        if (entry.name, entry.value) not in listed
    ]


def load(value: str) -> Any:
    """Import a plugin. Raises whatever its import raises, and NotFound for a name that is nowhere in its module."""
    if ":" not in value:
        return importlib.import_module(value)
    try:
        return EntryPoint("", value, GROUP).load()
    except AttributeError as error:
        raise NotFound(f"entry point {value}: {error}") from error


def offers(plugin: Any) -> list[BackendType]:
    """What a plugin offers. Raises TypeError for anything but offers, and whatever the plugin raises."""
    found = list(plugin.volgate_backends()) if hasattr(plugin, "volgate_backends") else []
    for offer in found:
        if not isinstance(offer, BackendType):
            raise TypeError(f"volgate_backends returned {offer!r}, not a BackendType")
    return found
