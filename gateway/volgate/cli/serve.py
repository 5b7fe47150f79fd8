"""`volgate serve` and `volgate rescan`: the settings become a running gateway."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from volgate import plain_logs
from volgate.backend import run as commands
from volgate.errors import InvalidRequest, Unreachable, VolgateError
from volgate.settings import Settings, load
from volgate.spawner import Spawner

if TYPE_CHECKING:
    # imported where they are used: `volgate --help` stays quick
    from volgate.edge.network import Network
    from volgate.hosts.agent import Agent
    from volgate.hosts.interface import AttachPlan
    from volgate.hosts.local import LocalHost
    from volgate.operations.fleet import Connect
    from volgate.operations.gateway import Gateway
    from volgate.registry import Registry
    from volgate.secret import Secret
    from volgate.store.database import Database

_LONGEST_SOCKET = 107
_QUICK_STOP = 1.0
_SHORTEST_LEASE = 3.0
_DESCRIPTORS = 1 << 20  # some systems allow a thousand times that, which only costs
_LOOPBACK = re.compile(r"(127(\.[0-9]{1,3}){3}|localhost|):[0-9]{1,5}")
__all__ = ["check", "logs_to_stderr", "rescan", "run"]


def run(config: Path | None, state_dir: Path | None, role: str = "", *, check_only: bool = False) -> int:
    """Serve until SIGTERM or SIGINT; return the exit status. Raises VolgateError when it cannot begin."""
    settings = load(config, state_dir, role)
    plain_logs.load()
    _require_usable(settings)
    if check_only:
        return check(settings)
    os.umask(os.umask(0o022) | 0o022)  # nothing is born writable to others; set once, for it is the whole process's
    spawner = Spawner.start()  # older than every thread and than gRPC: nothing forks from this process afterwards
    commands.install(spawner)
    try:
        if settings.server.role == "host":
            asyncio.run(_serve_host(settings))
        else:
            asyncio.run(_serve(settings, lambda: load(config, state_dir, role), spawner))
    finally:
        spawner.close()
    return 0


def _require_usable(settings: Settings) -> None:
    """Refuse what would fail only once the gateway is up. Raises InvalidRequest naming the key."""
    import grp
    import logging

    server = settings.server
    if len(os.fsencode(settings.socket_path)) > _LONGEST_SOCKET:
        told = f"configuration: server.socket: {settings.socket_path} is longer than the {_LONGEST_SOCKET} bytes that a socket can have"
        raise InvalidRequest(told, field="server.socket")
    if not re.fullmatch("0?[0-7]{3}", server.socket_mode):
        raise InvalidRequest(
            f"configuration: server.socket_mode: {server.socket_mode!r} is no mode such as 0660", field="server.socket_mode"
        )
    if server.socket_group:
        try:
            grp.getgrnam(server.socket_group)
        except KeyError:
            told = f"configuration: server.socket_group: there is no group {server.socket_group!r} on this machine"
            raise InvalidRequest(told, field="server.socket_group") from None
    if settings.database.url:
        from volgate.store.link import parse

        parse(settings.database.url)
    if settings.database.lease_seconds < _SHORTEST_LEASE:
        told = f"configuration: database.lease_seconds: less than {_SHORTEST_LEASE:g} s would end controllers that are only busy"
        raise InvalidRequest(told, field="database.lease_seconds")
    if settings.telemetry.prometheus_listen and not _LOOPBACK.fullmatch(settings.telemetry.prometheus_listen):
        told = (
            f"configuration: telemetry.prometheus_listen: {settings.telemetry.prometheus_listen!r} is no port of a loopback address, such "
            "as 127.0.0.1:9464: metrics are in the clear and stay on this machine; send them away by otlp_endpoint, or through a proxy"
        )
        raise InvalidRequest(told, field="telemetry.prometheus_listen")
    if settings.telemetry.log_level.upper() not in logging.getLevelNamesMapping():
        told = f"configuration: telemetry.log_level: {settings.telemetry.log_level!r} is not debug, info, warning or error"
        raise InvalidRequest(told, field="telemetry.log_level")


def check(settings: Settings) -> int:
    """Read the configuration and the certificates that it names as `serve` would, open nothing; return 0. Raises VolgateError.

    A pool whose plugin is left out is warned of: `serve` starts with it, down, and serves the others.
    """
    from volgate.pools import Pools
    from volgate.registry import Registry

    logs_to_stderr()
    _network(settings)
    registry = Registry(settings.plugins.blocked, log_level=settings.telemetry.log_level)
    try:
        if settings.database.url:
            from volgate.store.postgres import probe

            sys.stderr.write(f"{probe(settings.database.url, _password(settings))}\n")
        pools = Pools(registry, settings.pools, "check", settings.limits.native_timeout)
        pools.close()
        for pool in pools:
            if pool.unserved:
                sys.stderr.write(f"warning: pool {pool.name} will be down: {pool.unserved}\n")
    finally:
        registry.close()
    return 0


def rescan(config: Path | None, state_dir: Path | None) -> dict[str, int]:
    """Rebuild the index of a stopped gateway from its storages; return the rows changed in each pool. Raises VolgateError."""
    settings = load(config, state_dir)
    if settings.server.role == "host":
        raise InvalidRequest("configuration: server.role: a host has no index; run this where its controller is", field="server.role")
    logs_to_stderr()
    spawner = Spawner.start()
    commands.install(spawner)
    try:
        with _opened(settings, spawner) as gateway:
            try:
                return _rescanned(gateway)
            finally:
                gateway.close(_QUICK_STOP)
    finally:
        spawner.close()


def _rescanned(gateway: Gateway) -> dict[str, int]:
    if gateway.peers:
        gateway.peers.start()  # others would take a controller without a heartbeat for dead
    gateway.world.pools.check()
    down = [f"{pool.name}: {pool.problem}" for pool in gateway.world.pools if pool.health == "down"]
    if down:
        raise Unreachable("pools are down: " + "; ".join(down), reason="POOL_DOWN")
    return gateway.rescan()


def logs_to_stderr() -> None:
    """Keep log lines away from what programs read, and those that only tell of progress away from people too."""
    import logging

    import structlog

    quiet = structlog.make_filtering_bound_logger(logging.WARNING)
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr), wrapper_class=quiet)


@contextlib.contextmanager
def _opened(settings: Settings, spawner: Spawner) -> Iterator[Gateway]:
    """Lock the state directory and open the store, the pools' settings and the hosts."""
    from volgate.hosts.local import LocalHost
    from volgate.operations.fleet import Fleet
    from volgate.operations.gateway import Gateway
    from volgate.operations.lease import Lease
    from volgate.operations.world import World
    from volgate.pools import Pools
    from volgate.registry import Registry
    from volgate.store.database import StateLock

    lock = StateLock(settings.state_dir)
    registry: Registry | None = None
    try:
        fresh = not (settings.database.url or settings.server.instance or (settings.state_dir / "instance").exists())
        registry = Registry(settings.plugins.blocked, log_level=settings.telemetry.log_level)
        database, instance = _database(settings)
        pools = Pools(registry, settings.pools, instance, settings.limits.native_timeout, _locks(settings))
        local = {
            name: LocalHost(name, host.uri, disk_hook=_disk_hook(registry, name), resolve=registry.secret)
            for name, host in settings.hosts.items()
        }
        fleet = Fleet(local, _connector(settings, instance), settings.limits.host_dead_seconds, fresh=fresh)
        lease = Lease(settings.database.lease_seconds, spawner.lease) if database.shared else Lease()
        yield Gateway(World(settings, registry, database, pools, fleet, lease))
    finally:
        if registry is not None:
            registry.close()
        lock.release()


def _connector(settings: Settings, instance: str) -> Connect | None:
    """What reaches hosts that register; None where none can."""
    if not settings.server.listen:
        return None
    from volgate.hosts.remote import RemoteHost
    from volgate.hosts.remote_channel import Channels

    channels = Channels(settings.tls)
    return lambda name, standing: RemoteHost(name, instance, channels, standing)


def _locks(settings: Settings) -> Path:
    return settings.state_dir.resolve() / "pool-locks"


def _database(settings: Settings) -> tuple[Database, str]:
    """Open the database; return with it the gateway's id, which all controllers of a shared one have."""
    from volgate.store.database import Database

    mine = _instance(settings)
    if not settings.database.url:
        database = Database(settings.state_dir / "volgate.db")
        database.set_instance(mine)
        return database, mine
    from volgate.operations.kin import identify
    from volgate.store.postgres import Postgres

    database = Database(Postgres(settings.database.url, _password(settings), identify(settings.host_name, _locks(settings))))
    shared = database.instance(mine)
    if settings.server.instance not in ("", shared):
        database.close()
        told = f"configuration: server.instance: the database is that of instance {shared}; leave the key out, or name another database"
        raise InvalidRequest(told, field="server.instance")
    if shared != mine:
        _keep_instance(settings, shared)
    return database, shared


def _password(settings: Settings) -> Callable[[], Secret] | None:
    """What reads the database's password, anew for each connection."""
    from volgate.backend import secrets

    reference = settings.database.password
    return (lambda: secrets.resolve(reference)) if reference else None


def _disk_hook(registry: Registry, host: str) -> Callable[[str, AttachPlan], str]:
    """What lets plugins amend the disks of one host."""
    from volgate.backend.hooks import DiskContext

    return lambda xml, plan: registry.amend_disk(
        xml, DiskContext(f"attachments/{plan.attachment}", plan.volume, plan.domain, f"hosts/{host}")
    )


def _instance(settings: Settings) -> str:
    """The gateway's id: configured, or kept in a file beside the database so that it outlives a lost database."""
    import uuid

    path = settings.state_dir / "instance"
    if settings.server.instance:
        return settings.server.instance
    with contextlib.suppress(FileNotFoundError):
        if found := path.read_text(encoding="ascii").strip():
            return found
    drawn = str(uuid.uuid4())
    _keep_instance(settings, drawn)
    return drawn


def _keep_instance(settings: Settings, drawn: str) -> None:
    path = settings.state_dir / "instance"
    partial = path.with_suffix(".partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, drawn.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    partial.replace(path)


def _network(settings: Settings) -> Network | None:
    """The TCP listeners that the settings ask for. Raises InvalidRequest naming the key."""
    if not settings.server.listen:
        return None
    from volgate.edge.network import Network

    return Network.of(settings)


def _raise_descriptors() -> None:
    """Let this process open as many files as the system allows it, and no more than make sense."""
    import resource

    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if most == resource.RLIM_INFINITY else min(most, _DESCRIPTORS)
    if now != resource.RLIM_INFINITY and now < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def _begun(settings: Settings) -> tuple[Network | None, Callable[[], None], asyncio.Event]:
    """What every role begins with: the listeners, what ends the telemetry, and what is set when the process is to stop."""
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # or its library has a line, not of JSON, for each handshake of a stranger
    from volgate import telemetry

    _raise_descriptors()  # of this process alone: what the spawner starts keeps the usual limit
    network = _network(settings)
    seen = settings.telemetry
    finish = telemetry.configure(
        telemetry.TelemetrySettings(
            otlp_endpoint=seen.otlp_endpoint,
            prometheus_listen=seen.prometheus_listen,
            log_level=seen.log_level,
            service_name=seen.service_name,
        )
    )
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    return network, finish, stop


async def _serve_host(settings: Settings) -> None:
    """The role host: one hypervisor, its journal, and whoever has the certificate of a controller."""
    network, finish, stop = _begun(settings)
    from volgate.edge.agent_server import AgentServer
    from volgate.hosts.remote_channel import Channels
    from volgate.hosts.remote_registrar import Registrar

    assert network is not None, "the settings of a host have addresses"
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, lambda: None)  # a host has no pools to read again, and does not die of it
    with _opened_host(settings) as (agent, host):
        server = AgentServer(agent, network, settings.limits.reader_timeout)
        bound = await server.start()
        address = settings.server.advertise or bound[0]
        registrar = Registrar(agent.membership, address, host.info, Channels(settings.tls))
        agent.start()
        registrar.start(settings.controller.addresses)
        await stop.wait()
        registrar.close()
        await server.stop(settings.server.stop_seconds)
    await asyncio.to_thread(finish)


@contextlib.contextmanager
def _opened_host(settings: Settings) -> Iterator[tuple[Agent, LocalHost]]:
    """Lock the state directory, open the host's journal and its libvirt."""
    from volgate.hosts.agent import Agent
    from volgate.hosts.journal import JournalledHost
    from volgate.hosts.local import LocalHost
    from volgate.hosts.membership import Membership
    from volgate.registry import Registry
    from volgate.store.database import StateLock
    from volgate.store.steps import Steps

    ((_, table),) = settings.hosts.items()
    name = settings.server.name or next(iter(settings.hosts))
    lock = StateLock(settings.state_dir)
    with contextlib.ExitStack() as held:
        held.callback(lock.release)
        steps = Steps(settings.state_dir / "host.db")
        held.callback(steps.close)
        registry = Registry(settings.plugins.blocked, log_level=settings.telemetry.log_level)
        held.callback(registry.close)
        host = LocalHost(name, table.uri, disk_hook=_disk_hook(registry, name), resolve=registry.secret)
        held.callback(host.close)
        agent = Agent(host, JournalledHost(host, steps), Membership(name, steps))
        held.callback(agent.close)
        yield agent, host


async def _serve(settings: Settings, again: Callable[[], Settings], spawner: Spawner) -> None:
    """`again` reads the configuration as it is now."""
    network, finish, stop = _begun(settings)
    from volgate import telemetry
    from volgate.edge.server import EdgeServer

    loop, changed = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGHUP, changed.set)
    lost = asyncio.Event()
    with _opened(settings, spawner) as gateway:
        gateway.when_lost(partial(loop.call_soon_threadsafe, _set, lost, stop))
        until = loop.time() + _QUICK_STOP
        try:
            await asyncio.to_thread(gateway.start)
            server = EdgeServer(
                gateway,
                settings.socket_path,
                socket_mode=int(settings.server.socket_mode, 8),
                socket_group=settings.server.socket_group,
                reader_timeout=settings.limits.reader_timeout,
                network=network,
            )
            await server.start()  # first: a server that never started must not be held beyond the event loop's life
            telemetry.observe_lanes(lambda: [*gateway.lanes(), *server.lanes])
            telemetry.observe_operations(gateway.runner.jobs.unfinished, gateway.runner.jobs.doubtful, gateway.runner.jobs.oldest)
            telemetry.observe_pools(lambda: gateway.world.pools)
            telemetry.observe_hosts(lambda: len(gateway.world.hosts), gateway.world.hosts.dead)
            reloading = loop.create_task(_reload(gateway, again, changed))
            await stop.wait()
            if lost.is_set():
                _begin_anew(spawner)
            reloading.cancel()
            until = loop.time() + settings.server.stop_seconds
            gateway.begin_stop()
            await server.stop(settings.server.stop_seconds)
        finally:
            await asyncio.to_thread(gateway.close, max(_QUICK_STOP, until - loop.time()))
    await asyncio.to_thread(finish)


def _begin_anew(spawner: Spawner) -> NoReturn:
    """Others took this process for dead: come back as another one. Callers see a link that broke, and repeat their calls."""
    import structlog

    structlog.get_logger().warning("others have this controller's place: it begins anew")
    spawner.close()
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606  # the very program that runs


def _set(*events: asyncio.Event) -> None:
    for event in events:
        event.set()


async def _reload(gateway: Gateway, again: Callable[[], Settings], changed: asyncio.Event) -> None:
    """Read the configuration again whenever it is said to have changed; one that makes no sense changes nothing."""
    import structlog

    log = structlog.get_logger()
    while True:
        await changed.wait()
        changed.clear()
        try:
            later = await asyncio.to_thread(lambda: gateway.reload(again()))
        except VolgateError as error:
            log.warning("the configuration is not taken over", error=error.message)
        except Exception:  # whatever it was, the next SIGHUP must find somebody who listens
            log.exception("the configuration is not taken over: a bug")
        else:
            log.info("configuration reloaded", pools=[pool.name for pool in gateway.world.pools], at_the_next_start=later)
