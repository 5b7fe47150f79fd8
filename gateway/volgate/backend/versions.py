"""The versions of the facets and hooks, one by one: a plugin that was written for an older one works, or is refused in one clear line.

A facet's version grows when its methods change. A class that fills the older method gets the newer one made of it, for as long as
`oldest` says. A hook's version grows when it tells more: an implementation is given the arguments that it names, so an older one never
notices. What is too new cannot be given: it is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["VERSIONS", "Version", "adapt", "unfit", "unfit_arguments"]


@dataclass(frozen=True, slots=True)
class Version:
    """What this volgate speaks, and the oldest that it understands."""

    now: int = 1
    oldest: int = 1

    def __str__(self) -> str:
        """As told to people."""
        return str(self.now) if self.now == self.oldest else f"{self.oldest} to {self.now}"


VERSIONS: Mapping[str, Version] = {
    "Backend": Version(),
    "Resizes": Version(),
    "Snapshots": Version(),
    "Overlays": Version(),
    "Reverts": Version(),
    "Clones": Version(2),  # 2: bytes_to_copy in place of clone_is_copy
    "Measures": Version(),
    "DataPath": Version(),
    "Extracts": Version(),
    "Adopts": Version(),
    "Relabels": Version(),
    "PathsSeen": Version(),
    "Holders": Version(),
    "Groups": Version(),
    "ChangedBlocks": Version(),
    "Fences": Version(),
    "Publishes": Version(),
    "FencesHosts": Version(),
    "volgate_backends": Version(),
    "volgate_admit": Version(),
    "volgate_disk": Version(),
    "volgate_finished": Version(),
    "volgate_secrets": Version(2),  # 2: also told the pool
}


@dataclass(frozen=True, slots=True)
class _Older:
    """A method that only classes for an older version of a facet have, the one that replaced it, and how that one is made of it."""

    method: str
    replaced_by: str
    made: Callable[..., Any]


def _bytes_to_copy(self: Any, spec: Any) -> int:
    """Clones 1 said only whether: then all of the origin may be copied."""
    return int(self.get_volume(spec.source.volume).size) if spec.source is not None and self.clone_is_copy(spec) else 0


_OLDER = (_Older("clone_is_copy", "bytes_to_copy", _bytes_to_copy),)


def adapt(kind: type) -> None:
    """Fill the methods that a class written for an older version lacks."""
    for older in _OLDER:
        lacks = getattr(getattr(kind, older.replaced_by, None), "__isabstractmethod__", False)
        if lacks and hasattr(kind, older.method):
            setattr(kind, older.replaced_by, older.made)


def unfit(written_for: Mapping[str, int], versions: Mapping[str, Version] = VERSIONS) -> str:
    """Say in one line why a plugin that was written for these versions cannot be served; "" if it can."""
    for name, number in written_for.items():
        if name not in versions:
            return f"it was written for {name} {number}, which this volgate does not have: upgrade volgate"
        if number > versions[name].now:
            return f"it was written for {name} {number}, this volgate has {name} {versions[name]}: upgrade volgate"
        if number < versions[name].oldest:
            return f"it was written for {name} {number}, this volgate has {name} {versions[name]}: upgrade the plugin"
    return ""


def unfit_arguments(hook: str, wanted: Iterable[str], known: Iterable[str]) -> str:
    """Say in one line why an implementation of a hook that wants these arguments cannot be served; "" if it can."""
    if unknown := [name for name in wanted if name not in known]:
        return f"its {hook} wants {', '.join(unknown)}, which {hook} {VERSIONS[hook].now} does not tell: upgrade volgate"
    return ""
