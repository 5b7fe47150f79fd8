"""A volume's manifest (`volume.json`): its owner tag and its tree of layers. Pure: each change returns a new manifest.

A layer is a file of the volume's folder; its `parent` is a file beside it or, for a clone, `../<object>/<file>`. Exactly one layer
is active (written to), it never has children; all others are frozen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from volgate.backend import OwnerTag, seal, unseal
from volgate.model import Format, Labels

__all__ = ["Child", "Content", "Cut", "Layer", "Manifest", "Merge"]

_TOKENS_KEPT = 64


class Layer(msgspec.Struct, frozen=True):
    """One file; `parent` is empty for a root."""

    file: str
    parent: str = ""


class Cut(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot: the frozen layer that holds it; or, as `pending`, one whose new top layer `layer` waits for QEMU."""

    uid: str
    name: str
    layer: str
    size: int
    labels: Labels = {}
    created: float = 0.0
    quiesced: bool = False


class Child(msgspec.Struct, frozen=True):
    """A clone: the object whose root layer lies on `layer`; `snapshot_uid` if it was made from a snapshot."""

    object: str
    layer: str
    snapshot_uid: str = ""


class Merge(msgspec.Struct, frozen=True):
    """A merge under way: `into` takes over all data of `gone`, its parent."""

    gone: str
    into: str


class Content(msgspec.Struct, frozen=True, kw_only=True):
    """What the manifest holds beside the tag. `promised` is the size that counts against the pool's limit; `next` numbers files."""

    layers: tuple[Layer, ...]
    active: str
    promised: int
    next: int = 1
    incomplete: bool = False
    snapshots: tuple[Cut, ...] = ()
    pending: Cut | None = None
    reverts: tuple[str, ...] = ()
    children: tuple[Child, ...] = ()
    merging: Merge | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """Tag and content."""

    tag: OwnerTag
    content: Content

    @classmethod
    def read(cls, data: bytes) -> Manifest:
        """Read it. Raises DataLoss (TAG_DAMAGED)."""
        return cls(*unseal(data, Content))

    def encode(self) -> bytes:
        """Return the bytes to store."""
        return seal(self.tag, self.content)

    def change(self, **fields: Any) -> Manifest:
        """Return it with other content and the next generation."""
        tag = msgspec.structs.replace(self.tag, generation=self.tag.generation + 1)
        return Manifest(tag, msgspec.structs.replace(self.content, **fields))

    def labelled(self, labels: Labels) -> Manifest:
        """Return it with these labels only."""
        tag = msgspec.structs.replace(self.tag, labels=dict(labels), generation=self.tag.generation + 1)
        return Manifest(tag, self.content)

    @property
    def format(self) -> Format:
        """The format of every layer."""
        return self.tag.spec.format

    def next_file(self) -> str:
        """Return the name of the next layer; a name is used again only if its file never got into the manifest."""
        return f"{self.content.next:04d}.{self.format}"

    def layer(self, file: str) -> Layer:
        """Return a layer by its file. Raises KeyError."""
        return {layer.file: layer for layer in self.content.layers}[file]

    def chain(self, file: str) -> tuple[Layer, ...]:
        """Return the layers of this volume from `file` down to its root, `file` first."""
        by_file = {layer.file: layer for layer in self.content.layers}
        found = [by_file[file]]
        while found[-1].parent in by_file:
            found.append(by_file[found[-1].parent])
        return tuple(found)

    def snapshot(self, uid: str) -> Cut | None:
        """Return a snapshot by uid."""
        return next((cut for cut in self.content.snapshots if cut.uid == uid), None)

    def topped(self, file: str, **fields: Any) -> Manifest:
        """Return it with `file`, a new layer on the active one, as the active layer."""
        return self.change(layers=(*self.content.layers, Layer(file, self.content.active)), active=file, next=self._after(file), **fields)

    def with_layer(self, file: str, parent: str, **fields: Any) -> Manifest:
        """Return it with one more layer."""
        return self.change(layers=(*self.content.layers, Layer(file, parent)), next=self._after(file), **fields)

    def pruned(self) -> Manifest:
        """Return it without the layers that nothing needs: no snapshot, no clone, not the active or the pending top."""
        needed = {layer.file for file in self._roots() for layer in self.chain(file)}
        kept = tuple(layer for layer in self.content.layers if layer.file in needed)
        merging = (
            self.content.merging if self.content.merging and {self.content.merging.gone, self.content.merging.into} <= needed else None
        )
        return Manifest(self.tag, msgspec.structs.replace(self.content, layers=kept, merging=merging))

    def mergeable(self) -> Merge | None:
        """Return a layer that only serves the one layer above it, if both may be changed."""
        pinned = {layer.file for child in self.content.children for layer in self.chain(child.layer)}
        named = set(self._roots())
        for layer in self.content.layers:
            above = [other.file for other in self.content.layers if other.parent == layer.file]
            if layer.file not in named | pinned and len(above) == 1 and above[0] not in pinned:
                return Merge(layer.file, above[0])
        return None

    def merged(self, merge: Merge) -> Manifest:
        """Return it after the merge: the upper layer lies on what the gone one lay on."""
        below = self.layer(merge.gone).parent
        kept = [
            Layer(layer.file, below) if layer.file == merge.into else layer for layer in self.content.layers if layer.file != merge.gone
        ]
        return self.change(layers=tuple(kept), merging=None)

    def reverted_by(self, token: str) -> tuple[str, ...]:
        """Return the tokens with one more; the oldest are forgotten."""
        return (*self.content.reverts, token)[-_TOKENS_KEPT:]

    def _after(self, file: str) -> int:
        return max(self.content.next, int(file.split(".", maxsplit=1)[0]) + 1)

    def _roots(self) -> Iterator[str]:
        yield self.content.active
        if self.content.pending:
            yield self.content.pending.layer
        yield from (cut.layer for cut in self.content.snapshots)
        yield from (child.layer for child in self.content.children)
