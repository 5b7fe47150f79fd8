"""A private PostgreSQL of Debian's package: a cluster in a folder of its own, on a unix socket and a port of the loopback."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import psycopg

__all__ = ["PostgresServer", "free_port"]

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
START_SECONDS = 60.0
_starter = ThreadPoolExecutor(1)  # a server dies with the thread that started it: this one lives as long as we do
CONFIG = """
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = '{base}'
max_connections = 120
shared_buffers = 32MB
fsync = {fsync}
logging_collector = off
timezone = 'UTC'
{more}
"""


class PostgresServer:
    """One server; `password` is that of its user `volgate`, who owns each database that `create` makes."""

    def __init__(self, base: Path | None = None, *, durable: bool = False, more: str = "") -> None:
        """Prepare; nothing runs before `start()`. Without `durable` a power cut would lose commits, a kill does not."""
        self._made = base is None
        self.base = base or Path(tempfile.mkdtemp(prefix="vgp-", dir="/tmp"))
        self.password = secrets.token_hex(12)
        self.port = free_port()
        self._durable, self._more = durable, more
        self._user = pwd.getpwnam("postgres")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def data(self) -> Path:
        return self.base / "data"

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def start(self) -> Self:
        """Make the cluster if there is none, start the server and wait until it takes connections."""
        if not self.data.exists():
            self._make()
        with (self.base / "log").open("ab") as log:
            argv = self._as_user(str(PROGRAMS[-1] / "postgres"), "-D", str(self.data))
            begun = _starter.submit(subprocess.Popen, argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd="/")
            self._process = begun.result()
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                with self.admin() as connection:
                    connection.execute("SELECT 1")
                return self
            except psycopg.OperationalError:
                assert self._process.poll() is None and time.monotonic() < deadline, self.log()
                time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End the server (SIGINT: at once, but in order; SIGQUIT, SIGKILL: as a crash) and wait until all of it is gone."""
        if self._process is None:
            return
        below = self._below()
        for pid in [self.pid, *below]:
            _signal(pid, signal.SIGCONT)
        self._process.send_signal(how)
        self._process.wait(30)
        self._process = None
        deadline = time.monotonic() + 30
        while left := [pid for pid in below if Path(f"/proc/{pid}").exists()]:
            assert time.monotonic() < deadline, left
            time.sleep(0.01)

    def kill9(self) -> None:
        """Kill the server without warning."""
        self.stop(signal.SIGKILL)

    def restart(self) -> None:
        """End it in order and start it again."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """Let the server and every backend hang (SIGSTOP)."""
        for pid in [self.pid, *self._below()]:
            _signal(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on."""
        for pid in [*self._below(), self.pid]:
            _signal(pid, signal.SIGCONT)

    def admin(self, database: str = "postgres") -> psycopg.Connection[Any]:
        """A connection of the superuser by the unix socket."""
        return psycopg.connect(f"host={self.base} port={self.port} dbname={database} user=postgres connect_timeout=2", autocommit=True)

    def create(self, name: str = "") -> str:
        """Make an empty database; return its name."""
        name = name or f"v{secrets.token_hex(6)}"
        with self.admin() as connection:
            connection.execute(f"CREATE DATABASE {name} OWNER volgate")
        return name

    def drop(self, name: str) -> None:
        """Remove a database, whoever uses it."""
        with self.admin() as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def url(self, database: str, *, port: int = 0) -> str:
        """The URL by TCP, without the password."""
        return f"postgresql://volgate@127.0.0.1:{port or self.port}/{database}"

    def run(self, program: str, *words: str, server: PostgresServer | None = None) -> str:
        """Run a client program of the same version at this server, or at another; return what it printed."""
        at = server or self
        argv = self._as_user(str(PROGRAMS[-1] / program), "-h", str(at.base), "-p", str(at.port), *words)
        return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=120, cwd="/").stdout

    def log(self) -> str:
        """What the server said."""
        return (self.base / "log").read_text(errors="replace")[-4000:]

    def use_tls(self, certificate: Path | None = None, key: Path | None = None) -> None:
        """Serve by TLS too with these files, or without any not any more."""
        for source, name in ((certificate, "server.crt"), (key, "server.key")):
            if source:
                copy = self.data / name
                shutil.copyfile(source, copy)
                copy.chmod(0o600)
                os.chown(copy, self._user.pw_uid, self._user.pw_gid)
        with self.admin() as connection:
            connection.execute(f"ALTER SYSTEM SET ssl = {'on' if certificate else 'off'}")
            connection.execute("SELECT pg_reload_conf()")
        deadline = time.monotonic() + 30
        while True:
            with self.admin() as connection:
                if connection.execute("SHOW ssl").fetchone() == ("on" if certificate else "off",):
                    return
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.02)

    def standby(self) -> PostgresServer:
        """A second server that follows this one, started; this one has `wal_level = replica`."""
        with self.admin() as connection:
            connection.execute("CREATE ROLE follower REPLICATION LOGIN")
        made = PostgresServer()
        made.password = self.password
        made.base.chmod(0o711)
        os.chown(made.base, self._user.pw_uid, self._user.pw_gid)
        made.run("pg_basebackup", "-U", "follower", "-D", str(made.data), "-R", "--checkpoint=fast", "--no-sync", server=self)
        with (made.data / "postgresql.conf").open("a") as file:
            file.write(CONFIG.format(port=made.port, base=made.base, fsync="off", more=""))
        return made.start()

    def caught_up(self, other: PostgresServer) -> bool:
        """Whether this standby has all that `other` has."""
        with other.admin() as first, self.admin() as second:
            written = first.execute("SELECT pg_current_wal_lsn()").fetchone()
            return bool(second.execute("SELECT pg_last_wal_replay_lsn() >= %s", written).fetchone()[0])

    def promote(self) -> None:
        """Let a standby become the server."""
        with self.admin() as connection:
            connection.execute("SELECT pg_promote()")

    def until(self, what: Callable[[psycopg.Connection[Any]], object], database: str, timeout: float = 60.0) -> Any:
        """Look until `what` finds something; return that."""
        deadline = time.monotonic() + timeout
        with self.admin(database) as connection:
            while not (found := what(connection)):
                assert time.monotonic() < deadline, "it does not come"
                time.sleep(0.02)
        return found

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:  # whatever it was, nothing stays running
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        self.stop(signal.SIGQUIT)
        if self._made:
            shutil.rmtree(self.base, ignore_errors=True)

    def _make(self) -> None:
        self.base.chmod(0o711)
        os.chown(self.base, self._user.pw_uid, self._user.pw_gid)
        secret = self.base / "secret"
        secret.write_text(self.password)
        options = ["-U", "postgres", "--auth-local=trust", "--auth-host=scram-sha-256", "--no-sync", "-E", "UTF8", "--locale=C.UTF-8"]
        done = subprocess.run(
            self._as_user(str(PROGRAMS[-1] / "initdb"), "-D", str(self.data), *options),
            check=False,
            capture_output=True,
            text=True,
            cwd="/",
        )
        assert done.returncode == 0, done.stderr
        fsync = "on" if self._durable else "off"
        with (self.data / "postgresql.conf").open("a") as file:
            file.write(CONFIG.format(port=self.port, base=self.base, fsync=fsync, more=self._more))
        self.start()
        with self.admin() as connection:
            connection.execute(f"CREATE ROLE volgate LOGIN PASSWORD '{self.password}'")
        self.stop()

    def _as_user(self, *words: str) -> list[str]:
        ids = [f"--reuid={self._user.pw_uid}", f"--regid={self._user.pw_gid}", "--clear-groups", "--pdeathsig=KILL"]
        return ["setpriv", *ids, *words]

    def _below(self) -> list[int]:
        """Its backends, from the kernel's table: a minimal Debian has no program that lists processes."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                if int(path.read_text().rpartition(")")[2].split()[1]) == self.pid:
                    found.append(int(path.parent.name))
        return found


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # a backend may end at any time
        os.kill(pid, number)


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
