"""Finding plugins: those that come with the gateway, and those that other distributions declare as entry points."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points, version
from typing import Any

from volgate.backend import BackendType, hooks, versions
from volgate.errors import NotFound

__all__ = ["BUILT_IN", "GROUP", "Found", "answered", "find", "load", "offers"]

GROUP = "volgate.plugins"
BUILT_IN = "built-in"
_OWN = ("directory", "memory", "ceph-rbd", "lvm", "iscsi")  # each offers the kind of its own name, and perhaps others


@dataclass(frozen=True, slots=True)
class Found:
    """A plugin that is installed; `value` names the module, or the object in it, that has the hooks (`package.module:object`)."""

    name: str
    value: str
    version: str


def find() -> list[Found]:
    """Every installed plugin, none imported: the built-in ones, then the others by name. A built-in name cannot be taken."""
    own = [Found(name, f"volgate_plugins.{name.replace('-', '_')}", BUILT_IN) for name in _OWN]
    others = sorted(entry_points(group=GROUP), key=lambda entry: entry.name)
    listed = {(found.name, found.value) for found in own}
    return own + [
        Found(entry.name, entry.value, entry.dist.version if entry.dist else "")
        for entry in others
        if (entry.name, entry.value) not in listed
    ]


def load(value: str) -> Any:
    """Import a plugin. Raises whatever its import raises, and NotFound for a name that is nowhere in its module."""
    try:
        return EntryPoint("", value, GROUP).load()
    except AttributeError as error:
        raise NotFound(f"entry point {value}: {error}") from error
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "volgate":
            raise
        told = f"{error.msg}: it was written for another volgate, this is {version('volgate')}: upgrade the older of the two"
        raise ImportError(told, name=error.name, path=error.path) from error


def offers(plugin: Any) -> list[BackendType]:
    """What a plugin offers. Raises TypeError for anything but offers, ValueError (another version), and whatever the plugin raises."""
    found = list(plugin.volgate_backends()) if "volgate_backends" in answered(plugin) else []
    for offer in found:
        if not isinstance(offer, BackendType):
            raise TypeError(f"volgate_backends returned {offer!r}, not a BackendType")
        if told := versions.unfit(offer.written_for):
            raise ValueError(f"kind {offer.kind!r}: {told}")
    return found


def answered(plugin: Any) -> tuple[str, ...]:
    """The hooks that a plugin answers. Raises ValueError for one that there is not, or that wants what is not told."""
    known = {name: inspect.signature(spec).parameters for name, spec in vars(hooks).items() if hasattr(spec, f"{hooks.PROJECT}_spec")}
    found = [name for name in dir(plugin) if hasattr(getattr(plugin, name, None), f"{hooks.PROJECT}_impl")]
    for name in found:
        if name not in known:
            raise ValueError(f"it answers {name}, a hook that this volgate does not have; there are: {', '.join(known)}")
        parameters = inspect.signature(getattr(plugin, name)).parameters.values()
        wanted = [parameter.name for parameter in parameters if parameter.default is parameter.empty]
        if told := versions.unfit_arguments(name, wanted, known[name]):
            raise ValueError(told)
    return tuple(found)
