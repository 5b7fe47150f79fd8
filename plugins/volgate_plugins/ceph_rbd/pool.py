"""The pool's own object: whose the pool is, what is being made, what is to be purged, and which clients are the gateway's."""

from __future__ import annotations

import contextlib
import errno
import time
import uuid
from collections.abc import Iterable, Mapping

import msgspec
import rados

from volgate.backend import PoolContext
from volgate.errors import Precondition, translate
from volgate_plugins.ceph_rbd.cluster import Cluster, Link
from volgate_plugins.ceph_rbd.faults import changing, number, reading
from volgate_plugins.ceph_rbd.process import Process

__all__ = ["OBJECT", "GroupNote", "Marker", "Note", "PoolObject"]

OBJECT = "volgate.pool"
_MARKER = "marker"
_MAKING, _PURGING, _CLIENT, _GROUP = "make.", "purge.", "client.", "group."
_PAGE = 1000
_NOTED_SECONDS = 60.0
_FORGOTTEN_SECONDS = 600.0


class Marker(msgspec.Struct, frozen=True, kw_only=True):
    """Whose pool this is."""

    schema: int = 1
    instance: str
    uid: str
    pool: str
    created: float


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """What an image that has no tag yet is: `source` the id of the image that it is a clone of, `adopted` the name that it had."""

    uid: str
    source: str = ""
    adopted: str = ""


class GroupNote(msgspec.Struct, frozen=True, kw_only=True):
    """Of which images a group of ours cut snapshots, by their ids, and since when; seconds since 1970."""

    images: tuple[str, ...]
    since: float


class Client(msgspec.Struct, frozen=True, kw_only=True):
    """A client of the gateway: when it last said so, the process that it is, and whether it died and was put on the blocklist."""

    seen: float
    process: Process
    shut_out: bool = False


_markers, _notes = msgspec.json.Decoder(Marker), msgspec.json.Decoder(Note)
_group_notes, _clients = msgspec.json.Decoder(GroupNote), msgspec.json.Decoder(Client)


class PoolObject:
    """The rows of one object's omap; every change proves the marker in the same request."""

    def __init__(self, cluster: Cluster, context: PoolContext) -> None:
        """Nothing is read yet. `shut_out` are dead clients that are known to be on the blocklist."""
        self._cluster, self._context = cluster, context
        self._text = ""
        self.shut_out: set[str] = set()

    @property
    def instance(self) -> str:
        """The gateway that owns the pool."""
        return self._context.instance

    def open(self, link: Link, *, used: bool) -> None:
        """Read the marker, or set one where there is none and nothing is `used`.

        Raises Precondition (POOL_FOREIGN, POOL_MARKER_MISSING, POOL_MARKER_DAMAGED).
        """
        doing = f"open pool {self._context.pool}"
        with reading(doing):
            found = _read(link)
        if not found:
            if used or self._cluster.settings.expect_marker:
                raise self._missing()
            found = self._mark(link, doing)
        self._require_ours(found)
        self._text = found

    def is_marked(self, link: Link) -> bool:
        """Whether there is a marker, whosever."""
        with reading(f"open pool {self._context.pool}"):
            return bool(_read(link))

    def prove(self, link: Link) -> None:
        """See that the marker is there and ours: only then is an absence believed. Raises Precondition."""
        with reading(f"read the marker of pool {self._context.pool}"):
            found = _read(link)
        if not found:
            raise self._missing()
        self._require_ours(found)
        if found != self._text:
            raise Precondition(f"{self._where()} is another pool than the one that was opened", reason="POOL_FOREIGN")

    def begin(self, link: Link, image: str, note: Note) -> None:
        """Note that an image of this name is being made: one without a tag is then ours, and no stranger's."""
        self._write(link, f"create image {image}", {_MAKING + image: msgspec.json.encode(note)})

    def made(self, link: Link, image: str) -> None:
        """It is made and tagged, or gone."""
        self._write(link, f"note image {image}", removed=[_MAKING + image])

    def making(self, link: Link, image: str) -> Note | None:
        """What is noted of an image that is being made, or was when its maker died."""
        rows = self._rows(link, _MAKING + image, exact=True)
        return next((_notes.decode(value) for value in rows.values()), None)

    def all_making(self, link: Link) -> set[str]:
        """The names of all images that are being made."""
        return {key.removeprefix(_MAKING) for key in self._rows(link, _MAKING)}

    def doom(self, link: Link, image_id: str, due: float) -> None:
        """Note that an image is to be purged from the trash at a time, seconds since 1970."""
        self._write(link, f"delete image {image_id}", {_PURGING + image_id: str(due).encode()})

    def purged(self, link: Link, image_id: str) -> None:
        """It is gone, or was taken back."""
        self._write(link, f"purge image {image_id}", removed=[_PURGING + image_id])

    def doomed(self, link: Link) -> dict[str, float]:
        """What is to be purged, and when: image ids and seconds since 1970."""
        return {key.removeprefix(_PURGING): float(value) for key, value in self._rows(link, _PURGING).items()}

    def note_group(self, link: Link, uid: str, images: Iterable[str]) -> None:
        """Note that a group is being cut of these images."""
        row = msgspec.json.encode(GroupNote(images=tuple(images), since=time.time()))
        self._write(link, f"cut group {uid}", {_GROUP + uid: row})

    def forget_group(self, link: Link, uid: str) -> None:
        """It is gone."""
        self._write(link, f"remove group {uid}", removed=[_GROUP + uid])

    def groups(self, link: Link) -> dict[str, GroupNote]:
        """All groups that were cut, or begun, by uid."""
        found = self._rows(link, _GROUP)
        return {key.removeprefix(_GROUP): _group_notes.decode(value) for key, value in found.items()}

    def note_client(self, link: Link) -> None:
        """Say that this client is the gateway's: what it has open when it dies is in nobody's use. Repeated now and then."""
        now = time.monotonic()
        if not link.noted or now - link.noted > _NOTED_SECONDS:
            with translate("look what this process is"):
                row = Client(seen=time.time(), process=Process.mine())
            self._write(link, "note this client", {_CLIENT + link.address: msgspec.json.encode(row)})
            link.noted = now

    def forget_clients(self, link: Link) -> None:
        """Drop the notes of clients that have not said anything for long: what they watched is long let go."""
        before = time.time() - _FORGOTTEN_SECONDS
        old = [key for key, value in self._rows(link, _CLIENT).items() if _clients.decode(value).seen < before]
        if old:
            self._write(link, "forget old clients", removed=old)

    def drop_client(self, link: Link) -> None:
        """This client ends in order."""
        with contextlib.suppress(Precondition):
            self._write(link, "forget this client", removed=[_CLIENT + link.address])

    def clients(self, link: Link) -> set[str]:
        """The addresses of the gateway's clients, this one among them."""
        return {key.removeprefix(_CLIENT) for key in self._rows(link, _CLIENT)} | {link.address}

    def dead_clients(self, link: Link) -> set[str]:
        """Those of the gateway's clients that have surely ended: their process, or their connection in this one."""
        rows = {key.removeprefix(_CLIENT): _clients.decode(value) for key, value in self._rows(link, _CLIENT).items()}
        self.shut_out |= {address for address, row in rows.items() if row.shut_out}
        return {address for address, row in rows.items() if address in self._cluster.ended or row.process.has_ended()}

    def note_shut_out(self, link: Link, addresses: set[str]) -> None:
        """Note that dead clients are on the blocklist: no other process waits for the monitors to put them there again."""
        rows = {key: value for key, value in self._rows(link, _CLIENT).items() if key.removeprefix(_CLIENT) in addresses}
        said = {key: msgspec.structs.replace(_clients.decode(value), shut_out=True) for key, value in rows.items()}
        if said:
            self._write(link, "note clients that are shut out", {key: msgspec.json.encode(row) for key, row in said.items()})
        self.shut_out |= addresses

    # -- rows

    def _rows(self, link: Link, prefix: str, *, exact: bool = False) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        after = ""
        with reading(f"read the notes of pool {self._context.pool}"):
            while True:
                with rados.ReadOpCtx() as op:
                    io = link.ioctx
                    rows, _ = io.get_omap_vals_by_keys(op, (prefix,)) if exact else io.get_omap_vals(op, after, prefix, _PAGE)
                    try:
                        link.ioctx.operate_read_op(op, OBJECT)
                    except rados.ObjectNotFound as error:
                        raise self._missing() from error
                    page = list(rows)
                found |= dict(page)
                if exact or len(page) < _PAGE:
                    return found
                after = page[-1][0]

    def _write(self, link: Link, doing: str, values: Mapping[str, bytes] | None = None, removed: Iterable[str] = ()) -> None:
        with changing(doing), rados.WriteOpCtx() as op:
            op.omap_cmp(_MARKER, self._text)
            if values:
                link.ioctx.set_omap(op, tuple(values), tuple(values.values()))
            if gone := tuple(removed):
                link.ioctx.remove_omap_keys(op, gone)
            try:
                link.ioctx.operate_write_op(op, OBJECT)
            except rados.Error as error:
                if number(error) not in (errno.ECANCELED, errno.ENOENT):
                    raise
                self.prove(link)
                raise

    def _mark(self, link: Link, doing: str) -> str:
        marker = Marker(instance=self.instance, uid=str(uuid.uuid4()), pool=self._context.pool, created=time.time())
        text = msgspec.json.encode(marker, order="sorted")
        with changing(doing):
            try:
                with rados.WriteOpCtx() as op:
                    op.new(rados.LIBRADOS_CREATE_EXCLUSIVE)
                    link.ioctx.set_omap(op, (_MARKER,), (text,))
                    link.ioctx.operate_write_op(op, OBJECT)
            except rados.ObjectExists:
                return _read(link)  # another worker was first
        return text.decode()

    def _require_ours(self, text: str) -> None:
        try:
            marker = _markers.decode(text)
        except msgspec.MsgspecError as error:
            raise Precondition(f"the marker of {self._where()} is damaged: {error}", reason="POOL_MARKER_DAMAGED") from error
        if (marker.instance, marker.pool) != (self.instance, self._context.pool):
            raise Precondition(
                f"{self._where()} belongs to pool {marker.pool!r} of the gateway instance {marker.instance!r}, this is pool"
                f" {self._context.pool!r} of {self.instance!r}; give this pool an RBD namespace or a pool of its own, or remove the object"
                f" {OBJECT} if that gateway is gone for good",
                reason="POOL_FOREIGN",
            )

    def _where(self) -> str:
        settings = self._cluster.settings
        return "/".join(filter(None, (settings.pool, settings.namespace)))

    def _missing(self) -> Precondition:
        return Precondition(
            f"{self._where()} has no object {OBJECT}, the marker of the pool: it was made anew or is another one; correct `pool` and"
            " `namespace`, or remove `expect_marker` and the images that a gateway made for a new pool",
            reason="POOL_MARKER_MISSING",
        )


def _read(link: Link) -> str:
    with rados.ReadOpCtx() as op:
        rows, _ = link.ioctx.get_omap_vals_by_keys(op, (_MARKER,))
        try:
            link.ioctx.operate_read_op(op, OBJECT)
        except rados.ObjectNotFound:
            return ""
        return str(dict(rows).get(_MARKER, b"").decode())
