"""LUNs that an administrator made on a SAN, and masked to the hosts and to this machine: handed out, wiped and returned."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec

from volgate.backend import Extracts, FencesHosts, Initiator, Measures, PoolCheck, PoolContext, Relabels, Traits, VolumeId, tag_of
from volgate.backend.files import opened, sync_directory, write_all
from volgate.backend.image import convert
from volgate.connection import Connection, IscsiLun
from volgate.errors import AlreadyExists, NotFound, OutOfRange, OutOfSpace, Precondition, Unreachable, Unsupported, VolgateError, translate
from volgate.model import Capacity, Format, Health, Labels, Provisioning, SourceKind, Volume, VolumeSpec
from volgate_plugins.iscsi import initiator, reservation
from volgate_plugins.iscsi.holdings import Content, Holding, Holdings
from volgate_plugins.iscsi.records import Barred, Records
from volgate_plugins.iscsi.settings import IscsiSettings, LunSettings

__all__ = ["Inventory"]

_CHUNK = 1 << 20
_AT_ONCE = 16  # sessions
_NOTED = 1 << 30  # a wipe that dies goes on from the last multiple
Progress = Callable[[float], None]


class Inventory(Measures, Extracts, Relabels, FencesHosts):
    """A pool. A volume is a whole LUN; LUNs do not grow and have no snapshots. Hosts are kept out by reservations."""

    def __init__(self, settings: IscsiSettings, context: PoolContext) -> None:
        """Ask the SAN for nothing yet. Raises Precondition (POOL_FOREIGN, POOL_MARKER_MISSING)."""
        self._settings, self._context = settings, context
        with translate(f"open pool {context.pool}"):
            self._records = Records(settings, context)
        self._holdings = Holdings(self._records, settings.luns, context)
        self._keys = reservation.Keys.of(context.instance)

    @property
    def traits(self) -> Traits:
        """What fits into a LUN is made; where all have one size, that is the grain."""
        sizes = [lun.size for lun in self._settings.luns]
        some = Traits(formats=(Format.RAW,), grain=math.gcd(*sizes), minimum=min(sizes), maximum=max(sizes), carrier="records")
        return replace(some, shared=True, whole=True, long_makings=tuple(Provisioning), long_deletions=True)

    def create_volume(self, spec: VolumeSpec) -> Volume:
        """Take the smallest free LUN that fits, of these the one that was free for longest, and wipe it unless it is known to be clean."""
        doing = f"create volume {spec.name}"
        if spec.format is not Format.RAW or (spec.source and spec.source.kind is not SourceKind.EMPTY):
            raise Unsupported(f"{doing}: a LUN of an inventory is raw and no clone", field="format")
        with self._turn(doing):
            held = self._holdings.of(spec.uid) or self._taken(spec, doing)
        if held.content.making:
            held = self._wipe(held, doing)
            assert held.tag is not None
            held = self._holdings.put(held.lun, held.tag, Content(incomplete=spec.incomplete))
        return held.volume()

    def delete_volume(self, volume: VolumeId) -> None:
        """Wipe the LUN, then it is free. One whose wipe failed stays, as deleting, until the call is repeated."""
        doing = f"delete volume {volume.name}"
        with self._turn(doing):
            held = self._holdings.of(volume.uid)
            if held is None or held.tag is None:
                return
            if not held.content.returning:
                held = self._holdings.put(held.lun, held.tag, Content(returning=True))
        held = self._wipe(held, doing)
        with self._alone(held.lun, doing) as unit:
            if not self._keeps_out(held.lun):
                reservation.forget_all(unit, self._keys)  # what hosts that died have left
        self._holdings.release(held)

    def get_volume(self, name: str) -> Volume:
        """By the record."""
        with translate(f"read volume {name}"):
            return self._holdings.named(name).volume()

    def list_volumes(self) -> Iterator[Volume]:
        """By the records."""
        with translate("list volumes"):
            found = [held.volume() for held in self._holdings.all() if held.shown]
        yield from sorted(found, key=lambda volume: volume.name)

    def connection(self, volume: VolumeId, *, host: str) -> Connection:
        """The LUN."""
        del host  # the SAN's masking is its administrator's
        held = self._find(volume, f"connection of volume {volume.name}")
        if held.content.incomplete:
            raise Precondition(f"volume {volume.name} is still being filled", reason="NOT_READY")
        return self._lun(held.lun)

    def relabel_volume(self, volume: VolumeId, labels: Labels) -> Volume:
        """Replace all labels."""
        with self._turn(f"label volume {volume.name}"):
            held = self._find(volume, f"label volume {volume.name}")
            assert held.tag is not None
            return self._holdings.put(held.lun, msgspec.structs.replace(held.tag, labels=dict(labels)), held.content).volume()

    def capacity(self) -> Capacity:
        """The LUNs."""
        with translate("measure the pool"):
            every = self._holdings.all()
        taken = sum(held.lun.size for held in every if not held.free)
        total = sum(held.lun.size for held in every)
        return Capacity(total, total - taken, taken, total)

    def check(self) -> PoolCheck:
        """Look whether the SAN answers, by one LUN, and whether the records and the settings know the same LUNs."""
        try:
            with translate("check the pool"):
                self._records.prove()
                lost = self._holdings.lost()
            with self._reached(self._settings.luns[0], "check the pool"):
                pass
        except VolgateError as error:
            return PoolCheck(Health.DOWN, error.message)
        if lost:
            told = f"{self._settings.records} tells of LUNs that the settings do not have: {', '.join(lost)}"
            return PoolCheck(Health.DEGRADED, f"{told}; put them back into the settings, or remove these files")
        return PoolCheck(Health.OK)

    def close(self) -> None:
        """Nothing is held."""

    # -- bytes

    def image(self, volume: VolumeId, snapshot_uid: str = "", *, writable: bool = False) -> Connection:
        """The LUN."""
        doing = f"image of volume {volume.name}"
        held = self._find(volume, doing)
        if snapshot_uid:
            raise NotFound(f"{doing}: a LUN of an inventory has no snapshots")
        if writable and not held.content.incomplete:
            raise Precondition(f"{doing}: it is complete; images are written into new volumes", reason="NOT_INCOMPLETE")
        return self._lun(held.lun)

    def fill_from_file(self, volume: VolumeId, path: str, source_format: Format, progress: Progress) -> None:
        """Write an image over all of it."""
        doing = f"fill volume {volume.name}"
        held = self._find(volume, doing)
        if not held.content.incomplete:
            raise Precondition(f"{doing}: it is complete; images are written into new volumes", reason="NOT_INCOMPLETE")
        progress(0.0)
        with translate(doing), tempfile.TemporaryDirectory(prefix="volgate-iscsi-") as folder:
            raw = path
            if source_format is not Format.RAW:
                raw = f"{folder}/raw"
                convert(
                    path, source_format, raw, Format.RAW, maximum=held.lun.size, durable=False, progress=lambda done: progress(done / 2)
                )
            with (
                self._reached(held.lun, doing) as unit,
                reservation.admitted(unit, self._keys, ours=True, doing=doing),
                opened(raw, os.O_RDONLY) as source,
            ):
                _write_out(source, unit, held.lun.size, doing, progress)
        progress(1.0)

    def complete(self, volume: VolumeId) -> Volume:
        """It is a volume like others."""
        with self._turn(f"complete volume {volume.name}"):
            held = self._find(volume, f"complete volume {volume.name}")
            assert held.tag is not None
            return self._holdings.put(held.lun, held.tag, Content()).volume()

    def extract_to_file(self, volume: VolumeId, snapshot_uid: str, path: str, progress: Progress) -> None:
        """Read all of it."""
        doing = f"extract volume {volume.name}"
        held = self._find(volume, doing)
        if snapshot_uid:
            raise NotFound(f"{doing}: a LUN of an inventory has no snapshots")
        size = held.lun.size
        progress(0.0)
        with self._reached(held.lun, doing) as unit, translate(doing), opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as target:
            os.ftruncate(target, size)
            for at in range(0, size, _CHUNK):
                data = unit.read(at, min(_CHUNK, size - at))
                if any(data):
                    write_all(target, data, at)
                progress(min(0.999, at / size))
            os.fsync(target)
            sync_directory(str(Path(path).absolute().parent))
        progress(1.0)

    # -- hosts

    def fence_host(self, initiator: Initiator, volumes: Sequence[VolumeId]) -> None:
        """By its key, at the LUNs of these volumes, and at those that it was kept out of before: noted first, then done at each."""
        doing = f"fence hosts/{initiator.host}"
        with self._turn(doing):
            before = {wwid for barred in self._records.barred() if barred.host == initiator.host for wwid in barred.luns}
            luns = self._known({*before, *self._wwids(volumes, doing)}, doing)
            self._records.bar(Barred(host=initiator.host, iqn=initiator.iqn.lower(), luns=tuple(sorted(lun.wwid for lun in luns))))
        with ThreadPoolExecutor(_AT_ONCE) as threads:  # one that does not answer holds up no other
            told = threads.map(lambda lun: self._kept_out(lun, initiator, doing), luns)
            if problems := [problem for problem in told if problem]:  # of the others it is kept out all the same
                raise Unreachable("; ".join(problems), reason="FENCE_UNPROVEN", retry_after=1.0)

    def unfence_host(self, host: str) -> None:
        """Of a LUN that another host is kept out of too, nothing changes."""
        doing = f"unfence hosts/{host}"
        with self._turn(doing):
            luns = {wwid for barred in self._records.barred() if barred.host == host for wwid in barred.luns}
        for lun in self._known(luns, doing):
            with self._alone(lun, doing) as unit:
                if not self._keeps_out(lun, but=host):
                    reservation.let_in(unit, self._keys)
        with self._turn(doing):
            self._records.admit(host)

    def fenced_hosts(self) -> Sequence[str]:
        """By the notes."""
        with translate("look who is fenced"):
            return sorted(barred.host for barred in self._records.barred())

    # -- inside

    def _wwids(self, volumes: Sequence[VolumeId], doing: str) -> set[str]:
        """The LUNs of volumes. Raises Precondition if one may be of a LUN that left the settings."""
        found = {volume.uid: self._holdings.of(volume.uid) for volume in volumes}
        if None in found.values() and (lost := self._holdings.lost()):
            told = f"{doing}: it may have LUNs that the settings do not have any more: {', '.join(lost)}"
            raise Precondition(f"{told}; put them back, and repeat the call")
        return {held.lun.wwid for held in found.values() if held is not None}

    def _known(self, wwids: set[str], doing: str) -> list[LunSettings]:
        """The LUNs. Raises Precondition if one left the settings."""
        found = [lun for lun in self._settings.luns if lun.wwid in wwids]
        if lost := wwids - {lun.wwid for lun in found}:
            told = f"{doing}: the host is kept out of LUNs that the settings do not have any more: {', '.join(sorted(lost))}"
            raise Precondition(f"{told}; put them back, and repeat the call")
        return found

    def _kept_out(self, lun: LunSettings, initiator: Initiator, doing: str) -> str:
        """Keep a host out of a LUN; return why it is not proven, "" if it is."""
        try:
            with self._alone(lun, doing) as unit:
                reservation.keep_out(unit, self._keys, initiator.key, doing)
        except VolgateError as error:
            return f"LUN {lun.wwid}: {error.message}"
        return ""

    def _keeps_out(self, lun: LunSettings, but: str = "") -> bool:
        """Whether a host (`but` one) is kept out of a LUN, whoever has that now."""
        return any(lun.wwid in barred.luns and barred.host != but for barred in self._records.barred())

    @contextmanager
    def _alone(self, lun: LunSettings, doing: str) -> Iterator[initiator.Unit]:
        """Reach a LUN, and change who is kept out of it, one after the other."""
        with translate(doing), self._records.turn(lun.wwid, doing), self._reached(lun, doing) as unit:
            yield unit

    def _taken(self, spec: VolumeSpec, doing: str) -> Holding:
        """Raises AlreadyExists, OutOfRange, OutOfSpace."""
        every = self._holdings.all()
        for held in every:
            if held.shown and (known := held.volume()).name == spec.name:
                raise AlreadyExists(f"volume {spec.name} exists with uid {known.uid}, asked was {spec.uid}")
        size = self.traits.rounded(spec.size)
        fitting = [held for held in every if held.free and held.lun.size >= size]
        if not fitting:
            raise OutOfSpace(f"{doing}: no free LUN of the inventory has {size} bytes; delete volumes, or add LUNs to the settings")
        chosen = min((held for held in fitting if held.lun.size == fitting[0].lun.size), key=lambda held: held.since)
        content = Content(incomplete=spec.incomplete) if chosen.content.clean else Content(making=True)
        return self._holdings.put(chosen.lun, tag_of(spec, self._context.instance, time.time()), content)

    def _find(self, volume: VolumeId, doing: str) -> Holding:
        with translate(doing):
            held = self._holdings.of(volume.uid)
        if held is None or not held.shown or held.tag is None or held.tag.name != volume.name:
            raise NotFound(f"volume {volume.name} of uid {volume.uid} has no LUN of the inventory")
        return held

    def _wipe(self, held: Holding, doing: str) -> Holding:
        """Let a LUN read as zeroes, from where an earlier wipe came to."""
        assert held.tag is not None
        ours = held.content.returning
        with self._reached(held.lun, doing) as unit, reservation.admitted(unit, self._keys, ours=ours, doing=doing):
            start = held.content.wiped
            for done in unit.zero(start, held.lun.size - start):
                if done // _NOTED > start // _NOTED:
                    unit.sync()
                    held = self._holdings.put(held.lun, held.tag, msgspec.structs.replace(held.content, wiped=done))
                    start = done
            unit.sync()
        return held

    @contextmanager
    def _reached(self, lun: LunSettings, doing: str) -> Iterator[initiator.Unit]:
        """Log in, and prove that it is the one before anything is done to it. Raises Precondition (IDENTITY_MISMATCH), and as `reached`."""
        settings = self._settings
        with initiator.reached(settings.initiator, settings.ways(lun.target), lun.lun, settings.proof(), settings.seconds) as unit:
            if (found := unit.identity()) != lun.wwid:
                told = (
                    f"{doing}: LUN {lun.lun} of {lun.target} is {found or 'without a name'}, the settings say {lun.wwid}; nothing was done"
                )
                raise Precondition(told, reason="IDENTITY_MISMATCH")
            if unit.size < lun.size or lun.size % unit.block:
                told = f"{doing}: LUN {lun.wwid} has {unit.size} bytes, the settings say {lun.size}; correct the settings"
                raise Precondition(told, reason="IDENTITY_MISMATCH")
            yield unit

    def _lun(self, lun: LunSettings) -> IscsiLun:
        settings = self._settings
        return IscsiLun(lun.wwid, settings.ways(lun.target), lun.lun, lun.size, settings.multipath, settings.proof())

    @contextmanager
    def _turn(self, doing: str) -> Iterator[None]:
        with translate(doing), self._records.turn("inventory", doing):
            yield


def _write_out(source: int, unit: initiator.Unit, size: int, doing: str, progress: Progress) -> None:
    length = os.fstat(source).st_size
    if length > size:
        raise OutOfRange(f"{doing}: the image has {length} bytes, the LUN {size}")
    for at in range(0, size, _CHUNK):
        data = os.pread(source, _CHUNK, at)
        wanted = min(_CHUNK, size - at)
        if any(data):
            unit.write(at, data.ljust(wanted, b"\0"))
        else:
            list(unit.zero(at, wanted))  # of an earlier filling
        progress(0.5 + min(0.499, at / size / 2))
    unit.sync()
