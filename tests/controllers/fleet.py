"""Controllers of one gateway: several real `volgate serve` on one PostgreSQL and one directory pool."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

from tests.labs.postgres import PostgresServer
from tests.recovery.calls import Caller
from tests.recovery.daemon import Daemon

__all__ = ["Fleet", "until"]

LEASE = 6.0
"""Seconds of silence after which a controller is dead here; a stopped one is ended after two thirds of it."""
EXTRA = """
[database]
url = "{url}"
password = "file:{secret}"
lease_seconds = {lease}
"""


class Member(Daemon):
    """One controller, with a state directory of its own; the pool, the images and the exports are everybody's."""

    def __init__(self, base: Path, shared: Path, extra: str, uri: str) -> None:
        base.mkdir(exist_ok=True)
        base.chmod(0o711)
        super().__init__(base, uri=uri, pool=shared / "pool", extra=extra, stop=10.0)
        self.images = shared / "images"
        self.images.mkdir(exist_ok=True)
        self.config.write_text(self.config.read_text().replace(str(base / "images"), str(self.images)))

    def __exit__(self, kind: object, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGCONT)
        if self.process is not None and self.process.poll() is None:
            super().__exit__(kind)
        else:
            assert kind is not None or "bug" not in self.tail().lower(), self.tail()


class Fleet:
    """Members by number, started when they are first asked for."""

    def __init__(self, server: PostgresServer, *, port: int = 0, lease: float = LEASE, uri: str = "test:///default") -> None:
        self.server, self.uri = server, uri
        self.database = server.create()
        self.base = Path(tempfile.mkdtemp(prefix="vgf-", dir="/tmp"))
        self.base.chmod(0o711)
        (self.base / "secret").write_text(server.password + "\n")
        self.extra = EXTRA.format(url=server.url(self.database, port=port), secret=self.base / "secret", lease=lease)
        self._members: dict[int, Member] = {}

    def __getitem__(self, number: int) -> Member:
        """A member that runs."""
        member = self.member(number)
        if member.process is None or member.process.poll() is not None:
            member.start()
        return member

    def member(self, number: int) -> Member:
        """A member as it is."""
        if number not in self._members:
            self._members[number] = Member(self.base / str(number), self.base, self.extra, self.uri)
            config = self._members[number].config
            config.write_text(config.read_text().replace("[server]\n", f'[server]\nname = "c{number}"\n'))
        return self._members[number]

    def call(self, number: int, patience: float = 60.0, *, retries: bool = True) -> Caller:
        """A caller of a member."""
        return self[number].caller(patience, retries=retries)

    def rows(self, question: str) -> list[tuple[Any, ...]]:
        """Ask the database."""
        with self.server.admin(self.database) as connection:
            return connection.execute(question).fetchall()

    def controllers(self) -> dict[str, str]:
        """The ids of those that live, by name."""
        return dict(self.rows("SELECT name, id FROM controller WHERE gone = 0"))

    def clean(self) -> bool:
        """Whether nobody waits or runs anywhere."""
        return not self.rows("SELECT 1 FROM turn") and not self.rows(
            "SELECT 1 FROM operation WHERE state NOT IN ('done', 'failed', 'cancelled')"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        failures = []
        for member in self._members.values():
            try:
                if member.process is not None:
                    member.__exit__(kind, *rest)
            except Exception as error:
                failures.append(error)
        shutil.rmtree(self.base, ignore_errors=True)
        self.server.drop(self.database)
        if failures:
            raise failures[0]


def until(true: Callable[[], Any], what: str = "it", timeout: float = 60.0) -> Any:
    """Look until something is so."""
    deadline = time.monotonic() + timeout
    while not (found := true()):
        assert time.monotonic() < deadline, f"{what} does not come"
        time.sleep(0.05)
    return found


@contextlib.contextmanager
def stopped(member: Member) -> Iterator[None]:
    """A member whose process is stopped (SIGSTOP)."""
    os.kill(member.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(member.pid, signal.SIGCONT)
