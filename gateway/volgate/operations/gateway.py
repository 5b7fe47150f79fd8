"""The gateway as the edge sees it: submit mutations, read the index, move bytes. Everything here blocks and is thread-safe."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import replace
from queue import SimpleQueue
from typing import TYPE_CHECKING

import structlog

from volgate.backend import Adopts, Foreign, PathsSeen
from volgate.errors import NotFound, Unreachable, VolgateError
from volgate.hosts.interface import EventKind, HostEvent
from volgate.lanes import Lane
from volgate.model import Format, PathState, Redundancy, Transport, Volume
from volgate.model import Path as IoPath
from volgate.names import AttachmentName, SnapshotName, VolumeName
from volgate.operations import changes, lookups, paths, requests, transfer, transports, ways
from volgate.operations.admission import admit
from volgate.operations.handlers import HANDLERS
from volgate.operations.homes import Homes
from volgate.operations.hosts import Hosts
from volgate.operations.keys import Keys
from volgate.operations.ledger import Ledger
from volgate.operations.pool_states import PoolStates
from volgate.operations.quarantine import refuse
from volgate.operations.recovery import Rebuild, Repairs, repair_host
from volgate.operations.reload import Reload
from volgate.operations.requests import Caller, Plan, Request
from volgate.operations.resumes import Resumes
from volgate.operations.runner import Runner
from volgate.operations.scan import Merges, reconcile_attachments, scan_pool
from volgate.operations.scope import EVERYTHING, Scope
from volgate.operations.snapshots import merge_of
from volgate.operations.sweep import Sweep
from volgate.operations.ticket import Ticket
from volgate.operations.world import World
from volgate.pools import Pool, PoolStatus
from volgate.settings import Settings
from volgate.store import attachments, index, journal
from volgate.store.records import AttachmentRecord, IndexedSnapshot, IndexedVolume, OperationRecord, VolumeRow

if TYPE_CHECKING:
    # see `_peers`
    from volgate.operations.peers import Peers

__all__ = ["Gateway"]

_MOST_FOREIGN = 1000
_SCAN_SECONDS = 5.0  # the keeper has other things to do than to wait for a storage that hangs
_LOOK_SECONDS = 0.5
_EVENT_SECONDS = 0.3  # events come in bursts, and the operation that one belongs to goes first
_log = structlog.get_logger()


class Gateway:
    """One controller with its pools and hosts."""

    def __init__(self, world: World) -> None:
        """Take the world; `start` does the rest."""
        self.world = world
        self.runner = Runner(world, self._follow)
        self.hosts = Hosts(world, self.runner, world.database.instance(), self._arrived)
        self._rebuild = Rebuild(world, self.runner, self.hosts.settled)
        self._merges = Merges(world, self.runner)
        self._scans: Sweep[Pool, int | None] = Sweep("scan")
        self._repairs = Repairs(world)
        self._resumes = Resumes(world)
        self._keys = Keys(world)
        self.pool_states = PoolStates(world, self.runner)
        self.peers = _peers(world, self.runner, self._learn) if world.database.shared else None
        self._ledger = Ledger(world, self.runner)
        self._homes = Homes(world, self.peers.here if self.peers else None)
        self._reload = Reload(world, self.runner, self._homes, self.peers)
        self._changes: SimpleQueue[tuple[Settings, Future[None]]] = SimpleQueue()
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="gateway-keeper", daemon=True)

    def start(self) -> None:
        """Open the pools, take up what a dead process left, begin to keep the index true."""
        world = self.world
        world.settings.spool_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self.peers:
            self.peers.start()
            self._homes.claim_all()
            self.peers.serve(pool.name for pool in world.pools if not pool.elsewhere)
        self.pool_states.load()
        world.pools.check()
        self.hosts.load()
        world.hosts.subscribe(self._on_event)
        transfer.sweep_spool(world)
        for name in world.hosts.local:  # others mend themselves at their start
            if not repair_host(world, name):
                self._repairs.add(name)
        self._rebuild.run()
        left = self.peers.join() if self.peers else self.runner.recover()
        _log.info("gateway started", pools=[pool.name for pool in world.pools], resumed=left)
        self._thread.start()

    def _learn(self) -> None:
        """Know what operators said to other controllers, of pools and of hosts. Raises VolgateError."""
        self.pool_states.load()
        self.hosts.load()

    def lanes(self) -> list[Lane]:
        """Every lane of fixed width: of the pools, and of the operations."""
        return [*(pool.lane for pool in self.world.pools), *self.runner.lanes.all]

    def reload(self, settings: Settings) -> list[str]:
        """Serve the pools of these settings; return the names of the sections that differ and take effect at the next start only.

        Raises InvalidRequest naming the key: then nothing changed; Unreachable (stopping).
        """
        done: Future[None] = Future()
        self._changes.put((settings, done))
        self._wake.set()
        while not wait((done,), _LOOK_SECONDS).done:
            if self._stop.is_set():
                raise Unreachable("the gateway is stopping", reason="STOPPING")
        done.result()
        now = self.world.settings
        return [name for name in type(now).__struct_fields__ if name != "pools" and getattr(now, name) != getattr(settings, name)]

    def when_lost(self, act: Callable[[], object]) -> None:
        """Call `act` once other controllers have taken this one for dead and its place."""
        if self.peers:
            self.peers.when_lost(act)

    def begin_stop(self) -> None:
        """Accept no new mutation."""
        self.runner.begin_stop()

    def close(self, grace: float) -> None:
        """Finish what runs within `grace` seconds, leave the rest to the next start, close everything."""
        self._stop.set()
        self._wake.set()
        left = self.runner.stop(grace)
        if left:
            _log.warning("operations are left to the next start", count=left)
        self._scans.close()
        self._rebuild.close()
        self._repairs.close()
        self._resumes.close()
        self._keys.close()
        if self.peers:
            self.peers.close()
        for host in self.world.hosts.values():
            host.close()
        self.world.pools.close()
        self.world.database.close()

    # -- mutations

    def submit(self, request: Request, caller: Caller) -> Ticket:
        """Join or begin an operation; returns at once, that of a detach once the database was asked."""
        return self.runner.submit(self._completed(request, caller.scope), caller)

    def plan(self, request: Request, caller: Caller) -> Plan:
        """What a mutation would do. Refused by a plugin's policy as the mutation would be."""
        completed = self._completed(request, caller.scope)
        refuse(self.world, completed)
        admit(self.world.registry, request, caller)
        return HANDLERS[request.method].plan(self.world, completed)

    def _completed(self, request: Request, scope: Scope) -> Request:
        """Fill in which volume a detach is about: that is what it locks; among controllers, which host an attach is for.

        Raises Denied, NotFound for what lies outside of the scope.
        """
        if isinstance(request, requests.AttachVolume) and scope.hosts is not None:
            scope.require_host(self.world.host(request.host)[0])
        if isinstance(request, requests.AttachVolume) and self.peers:
            return replace(request, host=self.world.host(request.host)[0])  # whoever goes on with it knows which one was the only one
        if isinstance(request, requests.DetachVolume):
            with self.world.database.read() as connection:
                record = attachments.find(connection, request.attachment)
            if record is not None:
                _require_attachment(record, scope)
                return replace(request, volume=str(VolumeName(record.pool, record.volume)))
        return request

    def _follow(self, request: Request) -> Request | None:
        """The internal operation that follows one: merge layers that are needed no more."""
        if isinstance(request, requests.DetachVolume):
            name = VolumeName.parse(request.volume) if request.volume else None
        elif isinstance(request, requests.DeleteSnapshot | requests.RevertVolume):
            name = request.name.of if isinstance(request, requests.DeleteSnapshot) else request.name
        else:
            name = None
        return merge_of(self.world, name) if name else None

    # -- bytes

    def open_upload(self) -> transfer.Upload:
        """Begin to spool an image."""
        return transfer.Upload(self.world.settings.spool_dir)

    def allowed_path(self, path: str) -> str:
        """Resolve and check a server-side path of an image."""
        return paths.allowed_path(self.world, path)

    def new_path(self, path: str) -> str:
        """Resolve and check the server-side path of a file that an export makes."""
        return paths.new_path(self.world, path)

    def export(self, name: VolumeName | SnapshotName, wanted: Format) -> transfer.ExportReader:
        """Read a detached volume or a snapshot as an image."""
        return transfer.open_export(self.world, self.runner, name, wanted)

    # -- reads

    def commits(self) -> int:
        """How many commits there were: while it stands still, so does the index."""
        return self.world.database.commits

    def get_volume(self, name: VolumeName, *, refresh: bool) -> IndexedVolume:
        """A volume from the index, or with `refresh` from the storage. Raises NotFound."""
        pool = self.world.pools.get(name.pool)
        if refresh:
            pool.require_served()
            volume = self._refreshed(pool, name)
        with self.world.database.read() as connection:
            found = index.find_volume(connection, name.pool, name.volume)
        if found is None:
            raise NotFound(f"{name} does not exist")
        return replace(found, volume=volume, observed_at=time.time()) if refresh else found

    def _refreshed(self, pool: Pool, name: VolumeName) -> Volume:
        """Read a volume from the storage; its row is brought up to date unless an operation is about to do that."""
        release = self.runner.hold_if_free(str(name))
        try:
            volume = lookups.require_volume(pool, name, "", ready=False)
            if release:
                self.world.database.write(lambda commit: index.put_volume(commit, pool.name, volume, time.time()))
        finally:
            if release:
                release()
        return volume

    def list_volumes(self, pool: str, after: str, limit: int, scope: Scope = EVERYTHING) -> list[VolumeRow]:
        """A page of the index; `after` is `pool/volume` of the last row seen."""
        if pool:
            self.world.pools.get(pool)
        head, _, tail = after.partition("/")
        with self.world.database.read() as connection:
            return index.page_volumes(connection, pool, (head, tail), limit, scope.pools)

    def get_snapshot(self, name: SnapshotName) -> IndexedSnapshot:
        """A snapshot from the index. Raises NotFound."""
        self.world.pools.get(name.pool)
        with self.world.database.read() as connection:
            found = index.find_snapshot(connection, name.pool, name.volume, name.snapshot)
        if found is None:
            raise NotFound(f"{name} does not exist")
        return found

    def list_snapshots(self, pool: str, volume: str, after: str, limit: int, scope: Scope = EVERYTHING) -> list[IndexedSnapshot]:
        """A page of the index; `after` is `pool/volume/snapshot` of the last row seen."""
        if pool:
            self.world.pools.get(pool)
        parts = (*after.split("/"), "", "")[:3] if after else ("", "", "")
        with self.world.database.read() as connection:
            return index.page_snapshots(connection, pool, volume, parts, limit, scope.pools)

    def list_changes(self, asked: changes.Span, cursor: changes.Cursor, limit: int) -> changes.Changes:
        """A page of what differs between two points in time of a volume."""
        return changes.list_changes(self.world, asked, cursor, limit)

    def get_attachment(self, identifier: str, scope: Scope = EVERYTHING) -> AttachmentRecord:
        """An attachment. Raises NotFound, also for one outside of the scope."""
        with self.world.database.read() as connection:
            found = attachments.find(connection, identifier)
        if found is None:
            raise NotFound(f"attachments/{identifier} does not exist")
        _require_attachment(found, scope)
        return lookups.with_fences(self.world, [found])[0]

    def list_attachments(self, volume: str, host: str, after: str, limit: int, scope: Scope = EVERYTHING) -> list[AttachmentRecord]:
        """A page of attachments by id; `volume` is a full name or ""."""
        name = VolumeName.parse(volume) if volume else VolumeName("", "")
        within = (scope.pools, scope.hosts)
        with self.world.database.read() as connection:
            found = attachments.page(connection, pool=name.pool, volume=name.volume, host=host, after=after, limit=limit, within=within)
        return lookups.with_fences(self.world, found)

    def list_paths(self, name: str) -> tuple[list[IoPath], Redundancy]:
        """Every way and station of an attachment or a volume, and what they come to."""
        timeout = self.world.settings.limits.libvirt_timeout
        record = self.get_attachment(AttachmentName.parse(name).id) if name.startswith("attachments/") else None
        of = VolumeName(record.pool, record.volume) if record else VolumeName.parse(name)
        pool = self.world.pools.get(of.pool)
        pool.require_served()
        host_name, host = self.world.host(record.host if record else self.world.hosts.one())
        found: list[IoPath] = []
        try:
            volume = lookups.require_volume(pool, of, record.volume_uid if record else "", ready=False)
            found += self._ways(pool, volume, host_name, record.options.transport if record else Transport.HOST, timeout)
        except Unreachable as error:  # that the storage does not answer is what is asked about
            found.append(IoPath("pool", "gateway", of.pool, str(of), PathState.FAILED, last_error=error.message))
        if record:
            found += ways.at_guest(host, record, timeout=timeout)
        return found, ways.redundancy(found)

    def _ways(self, pool: Pool, volume: Volume, host: str, transport: Transport, timeout: float) -> list[IoPath]:
        """The stations that the storage and the host know, up to the guest."""
        backend = pool.backend()
        found = list(pool.call(backend.paths, lookups.identity(volume))) if isinstance(backend, PathsSeen) else []
        try:
            connection = transports.by(pool.call(backend.connection, lookups.identity(volume), host=host), transport)
            return [*found, *self.world.hosts[host].file_paths(connection, timeout=timeout)]
        except VolgateError as error:
            name = str(VolumeName(pool.name, volume.name))
            return [*found, IoPath("file", host, name, "", PathState.FAILED, last_error=error.message)]

    def list_pools(self, scope: Scope = EVERYTHING) -> list[PoolStatus]:
        """Every pool, also those that are down; within 10 seconds, however many hang."""
        return [status for status in self.world.pools.statuses() if scope.has_pool(status.name)]

    def get_pool(self, name: str) -> PoolStatus:
        """One pool, checked and measured now."""
        pool = self.world.pools.get(name)
        pool.check()
        return pool.status()

    def list_foreign(self, name: str) -> list[Foreign]:
        """What AdoptVolume could take, at most 1000; nothing while the pool is down or where the backend adopts nothing."""
        pool = self.world.pools.get(name)
        if pool.untouched:
            return []
        backend = pool.backend()
        return pool.call(_first_foreign, backend) if isinstance(backend, Adopts) else []

    # -- operations

    def get_operation(self, identifier: str, scope: Scope = EVERYTHING) -> OperationRecord:
        """One operation. Raises NotFound, also for one outside of the scope."""
        return self._ledger.get(identifier, scope)

    def list_operations(self, after: str, limit: int, scope: Scope = EVERYTHING, *, unfinished: bool) -> list[OperationRecord]:
        """A page, newest first; `after` is `created_at:id` of the last row seen."""
        return self._ledger.page(after, limit, scope, unfinished=unfinished)

    def watch_operation(
        self, identifier: str, listener: Callable[[OperationRecord], None], scope: Scope = EVERYTHING
    ) -> Callable[[], None]:
        """Call `listener` now and at each change until it ends; return what stops that. Raises NotFound."""
        return self._ledger.watch(identifier, listener, scope)

    def cancel_operation(self, identifier: str, caller: Caller) -> OperationRecord:
        """Ask an operation to stop and undo. Raises NotFound."""
        return self._ledger.cancel(identifier, caller)

    # -- background

    def _arrived(self, name: str) -> None:
        """A host is there, perhaps after a reboot: its domains and its attachments are looked at now."""
        self._repairs.add(name)
        self._keys.hurry()
        self.runner.rouse()
        self._wake.set()

    def _on_event(self, event: HostEvent) -> None:
        if event.kind is EventKind.RECONNECTED:
            self._keys.hurry()
        if event.kind is not EventKind.IO_ERROR:  # of these there may be many; a guest that is stopped by one is told of by itself
            self.runner.rouse()
            self._wake.set()

    def _keep(self) -> None:
        """Check pools, scan them and look at attachments, for as long as the gateway runs."""
        limits = self.world.settings.limits
        scanned = 0.0
        while not self._stop.is_set():
            try:
                self._change()
                self.world.pools.check()
                self._reload.settle()
                self.hosts.keep()
                self._repairs.run()
                self._keys.renew()
                if not self._rebuild.done:
                    self._rebuild.run()
                reconcile_attachments(self.world, self.runner, self._resumes.look())
                if time.monotonic() - scanned >= limits.scan_seconds or not scanned:
                    self.rescan(_SCAN_SECONDS)
                    self._merges.resume()
                    self._prune()
                    scanned = time.monotonic()
            except VolgateError as error:
                _log.warning("background check failed", error=error.message)
            except Exception:  # noqa: BLE001  # the keeper must outlive any single failure; it is logged with its traceback
                _log.exception("bug in the background check")
            if self._wake.wait(limits.check_seconds):
                self._stop.wait(_EVENT_SECONDS)
            self._wake.clear()

    def _change(self) -> None:
        """Take over what the configuration says now; the disks that hosts have of new pools are looked for before anybody is told."""
        while not self._changes.empty():
            settings, done = self._changes.get()
            try:
                self._reload.want(settings.pools)
                self._rebuild.run()
                done.set_result(None)
            except BaseException as error:  # noqa: BLE001  # whatever it was, whoever waits is told
                done.set_exception(error)

    def rescan(self, seconds: float | None = None) -> dict[str, int]:
        """Bring every pool's rows up to date; return how many changed in each pool that is up. Attachments without a record get one.

        After `seconds` it goes on without the pools that have not answered: they end by themselves.
        """
        changed = self._scans.run([pool for pool in self.world.pools if not pool.left_alone], self._scan, seconds)
        self._rebuild.run(again=True)
        return {name: rows for name, rows in changed.items() if rows is not None}

    def _scan(self, pool: Pool) -> int | None:
        try:
            changed = scan_pool(self.world, pool, self.runner)
            pool.status()  # keeps what it measures: the metrics tell that, also of a pool that nobody looks at
            return changed
        except VolgateError as error:
            _log.info("pool is not scanned", pool=pool.name, error=error.message)
            return None

    def _prune(self) -> None:
        oldest = time.time() - self.world.settings.limits.operation_retention_hours * 3600
        self.world.database.write(lambda commit: journal.prune(commit, oldest))


def _peers(world: World, runner: Runner, changed: Callable[[], None]) -> Peers:
    from volgate.operations.peers import Peers  # with it comes the driver of a database that most have not

    return Peers(world, runner, changed)


def _require_attachment(record: AttachmentRecord, scope: Scope) -> None:
    if not (scope.has_pool(record.pool) and scope.has_host(record.host)):
        raise NotFound(f"attachments/{record.id} does not exist")


def _first_foreign(backend: Adopts) -> list[Foreign]:
    return list(itertools.islice(backend.list_foreign(), _MOST_FOREIGN))
