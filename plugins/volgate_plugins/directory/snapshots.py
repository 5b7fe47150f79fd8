"""Snapshots as frozen layers, reverts as new tops, and the merging of layers that nothing needs any more."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence

from volgate.backend import Clones, Overlay, Overlays, Reverts, SnapshotSpec, VolumeId
from volgate.backend.files import opened, share_blocks, sync_directory
from volgate.backend.run import run_checked
from volgate.errors import AlreadyExists, Holder, InUse, NotFound, Precondition
from volgate.model import Format, Snapshot, Volume, VolumeSpec
from volgate_plugins.directory.manifest import Cut, Manifest, Merge
from volgate_plugins.directory.sources import bytes_to_copy
from volgate_plugins.directory.volumes import Volumes

__all__ = ["Snapshotting"]

_MERGE_TIMEOUT = 24 * 3600.0


class Snapshotting(Volumes, Overlays, Reverts, Clones):
    """A directory pool with snapshots, reverts and clones."""

    def create_snapshot(self, volume: VolumeId, spec: SnapshotSpec) -> Snapshot:
        """Freeze the active layer (qcow2) or share its blocks with a new file (raw)."""
        with self._store.holding(volume, f"snapshot {spec.name}") as (stored_as, manifest):
            if found := self._known(manifest, spec):
                return _snapshot(manifest, found)
            self._store.require_no_overlay(manifest)
            self._store.sweep(stored_as, manifest)
            self._store.pool.require_free(0, f"snapshot {spec.name}")
            if manifest.format is Format.RAW:
                return self._share_raw(stored_as, manifest, spec)
            cut = self._cut(stored_as, manifest, spec, manifest.content.active)
            file = self._new_top(stored_as, manifest, manifest.content.active, cut.size)
            changed = manifest.topped(file, snapshots=(*manifest.content.snapshots, cut))
            return _snapshot(self._store.save(stored_as, changed), cut)

    def delete_snapshot(self, volume: VolumeId, snapshot_uid: str) -> None:
        """Forget the snapshot and unlink the layers that only it needed; the active chain stays as it is."""
        with contextlib.suppress(NotFound), self._store.holding(volume, "deletion of a snapshot") as (stored_as, manifest):
            cut = manifest.snapshot(snapshot_uid)
            if cut is None:
                self._store.sweep(stored_as, manifest)
                return
            if clones := self._clones(manifest, snapshot_uid):
                holders = tuple(Holder("volume", name, "clone") for name in clones)
                raise InUse(f"snapshot {cut.name} of volume {volume.name} is held by its clones {', '.join(clones)}", holders=holders)
            kept = tuple(other for other in manifest.content.snapshots if other.uid != snapshot_uid)
            self._prune(stored_as, manifest.change(snapshots=kept))

    def list_snapshots(self, volume: VolumeId) -> Sequence[Snapshot]:
        """Return the snapshots, oldest first."""
        with self._store.holding(volume, "snapshots") as (_, manifest):
            return [_snapshot(manifest, cut) for cut in manifest.content.snapshots]

    def prepare_overlay(self, volume: VolumeId, spec: SnapshotSpec) -> Overlay:
        """Make a new top layer that QEMU is not yet told of."""
        with self._store.holding(volume, f"overlay for snapshot {spec.name}") as (stored_as, manifest):
            folder = self._store.folder(stored_as)
            if done := self._known(manifest, spec):
                return Overlay(self._store.connection(stored_as, manifest), f"{folder}/{done.layer}")
            if manifest.format is Format.RAW:
                raise Precondition("an attached raw volume has no snapshots; detach it, or use qcow2", reason="NEEDS_QCOW2")
            pending = manifest.content.pending
            if pending is None or pending.uid != spec.uid:
                self._store.require_no_overlay(manifest)
                prepared, pending = self._prepare(stored_as, manifest, spec)
            else:
                prepared = manifest
            return Overlay(self._store.connection(stored_as, prepared, pending.layer), f"{folder}/{manifest.content.active}")

    def finish_overlay(self, volume: VolumeId, spec: SnapshotSpec) -> Snapshot:
        """Make the prepared layer the active one; the old one is the snapshot."""
        with self._store.holding(volume, f"overlay for snapshot {spec.name}") as (stored_as, manifest):
            if done := self._known(manifest, spec):
                return _snapshot(manifest, done)
            pending = manifest.content.pending
            if pending is None or pending.uid != spec.uid:
                raise Precondition(f"no overlay is prepared for snapshot {spec.name} of volume {volume.name}", reason="NO_OVERLAY")
            cut = self._cut(stored_as, manifest, spec, manifest.content.active)
            changed = manifest.change(active=pending.layer, pending=None, snapshots=(*manifest.content.snapshots, cut))
            return _snapshot(self._store.save(stored_as, changed), cut)

    def abandon_overlay(self, volume: VolumeId, snapshot_uid: str) -> None:
        """Remove a prepared layer."""
        with contextlib.suppress(NotFound), self._store.holding(volume, "removal of an overlay") as (stored_as, manifest):
            pending = manifest.content.pending
            if pending and pending.uid == snapshot_uid:
                self._prune(stored_as, manifest.change(pending=None))
            else:
                self._store.sweep(stored_as, manifest)

    def collapse_layers(self, volume: VolumeId) -> int:
        """Merge layers into the one above while that is all they serve; only for a detached volume."""
        with self._store.holding(volume, "merging layers") as (stored_as, manifest):
            if manifest.content.pending or manifest.content.incomplete or manifest.format is Format.RAW:
                return 0
            alive = tuple(child for child in manifest.content.children if self._store.exists(child.object))
            left = self._prune(stored_as, manifest if alive == manifest.content.children else manifest.change(children=alive))
            while merge := left.mergeable():
                left = self._merge(stored_as, left, merge)
            return len(manifest.content.layers) - len(left.content.layers)

    def revert_volume(self, volume: VolumeId, snapshot_uid: str, *, token: str) -> Volume:
        """Put a new top on the snapshot's layer; newer snapshots stay."""
        with self._store.holding(volume, "revert") as (stored_as, manifest):
            if token in manifest.content.reverts:
                self._store.sweep(stored_as, manifest)
                return self._store.volume(stored_as, manifest)
            cut = manifest.snapshot(snapshot_uid)
            if cut is None:
                raise NotFound(f"snapshot {snapshot_uid} of volume {volume.name} does not exist")
            self._store.require_no_overlay(manifest)
            self._store.sweep(stored_as, manifest)
            tokens = manifest.reverted_by(token)
            if manifest.format is Format.RAW:
                file = self._share(stored_as, manifest, cut.layer)
                changed = manifest.with_layer(file, "", active=file, reverts=tokens, promised=cut.size)
            else:
                file = self._new_top(stored_as, manifest, cut.layer, cut.size)
                changed = manifest.with_layer(file, cut.layer, active=file, reverts=tokens, promised=cut.size)
            return self._store.volume(stored_as, self._prune(stored_as, changed))

    def bytes_to_copy(self, spec: VolumeSpec) -> int:
        """The data of the source, for a raw clone whose blocks cannot be shared."""
        return bytes_to_copy(self._store, spec)

    def children(self, volume: VolumeId) -> Sequence[str]:
        """Return the clones that lie on layers of this volume."""
        with self._store.holding(volume, "children") as (_, manifest):
            return self._clones(manifest)

    def _known(self, manifest: Manifest, spec: SnapshotSpec) -> Cut | None:
        if found := manifest.snapshot(spec.uid):
            return found
        if any(cut.name == spec.name for cut in manifest.content.snapshots):
            raise AlreadyExists(f"volume {manifest.tag.name} has another snapshot {spec.name}")
        if manifest.content.incomplete:
            raise Precondition(f"volume {manifest.tag.name} is still being filled", reason="NOT_READY")
        return None

    def _cut(self, stored_as: str, manifest: Manifest, spec: SnapshotSpec, layer: str) -> Cut:
        size = self._store.size(stored_as, manifest.content.active, manifest.format)
        return Cut(uid=spec.uid, name=spec.name, layer=layer, size=size, labels=spec.labels, created=time.time(), quiesced=spec.quiesced)

    def _prepare(self, stored_as: str, manifest: Manifest, spec: SnapshotSpec) -> tuple[Manifest, Cut]:
        cut = self._cut(stored_as, manifest, spec, manifest.next_file())
        self._new_top(stored_as, manifest, manifest.content.active, cut.size)
        return self._store.save(stored_as, manifest.with_layer(cut.layer, manifest.content.active, pending=cut)), cut

    def _new_top(self, stored_as: str, manifest: Manifest, below: str, size: int) -> str:
        self._store.require_depth(stored_as, manifest, below)
        folder, file = self._store.folder(stored_as), manifest.next_file()
        self._store.make_overlay(folder, file, size, below)
        sync_directory(folder)
        return file

    def _share_raw(self, stored_as: str, manifest: Manifest, spec: SnapshotSpec) -> Snapshot:
        if not self._store.pool.shares:
            raise Precondition(
                f"{self._store.pool.root} lies on a file system that cannot share blocks, so a raw volume has no snapshots; "
                "use format qcow2, or XFS or Btrfs below the pool",
                reason="NEEDS_REFLINK",
            )
        file = self._share(stored_as, manifest, manifest.content.active)
        cut = self._cut(stored_as, manifest, spec, file)
        changed = manifest.with_layer(file, "", snapshots=(*manifest.content.snapshots, cut))
        return _snapshot(self._store.save(stored_as, changed), cut)

    def _share(self, stored_as: str, manifest: Manifest, source: str) -> str:
        folder, file = self._store.folder(stored_as), manifest.next_file()
        with opened(f"{folder}/{source}", os.O_RDONLY) as old, opened(f"{folder}/{file}", os.O_RDWR | os.O_CREAT | os.O_TRUNC) as new:
            share_blocks(old, new)
            os.fsync(new)
        sync_directory(folder)
        return file

    def _prune(self, stored_as: str, manifest: Manifest) -> Manifest:
        manifest = self._store.save(stored_as, manifest.pruned())
        self._store.sweep(stored_as, manifest)
        return manifest

    def _merge(self, stored_as: str, manifest: Manifest, merge: Merge) -> Manifest:
        folder, below = self._store.folder(stored_as), manifest.layer(merge.gone).parent
        noted = self._store.save(stored_as, manifest.change(merging=merge))
        command = ["qemu-img", "rebase", "-q", "-f", "qcow2", "-b", below, *(["-F", "qcow2"] if below else []), f"{folder}/{merge.into}"]
        run_checked(command, doing=f"merge layer {merge.gone}", timeout=_MERGE_TIMEOUT, cwd=folder)
        with opened(f"{folder}/{merge.into}", os.O_RDONLY) as descriptor:
            os.fsync(descriptor)
        merged = self._store.save(stored_as, noted.merged(merge))
        self._store.sweep(stored_as, merged)
        return merged


def _snapshot(manifest: Manifest, cut: Cut) -> Snapshot:
    tag = manifest.tag
    return Snapshot(cut.name, cut.uid, tag.name, tag.uid, cut.size, dict(cut.labels), cut.created, cut.quiesced)
