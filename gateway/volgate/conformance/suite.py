"""The class that an author inherits: all tests of the suite, and the fixtures that they ask for."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import pytest

from volgate.backend import Backend
from volgate.conformance.contract_extracts import ExtractContract
from volgate.conformance.contract_fences import FenceContract
from volgate.conformance.contract_groups import GroupContract
from volgate.conformance.contract_images import ImageContract, MakeForeign
from volgate.conformance.contract_publishes import PublishContract
from volgate.conformance.contract_snapshots import SnapshotContract
from volgate.conformance.contract_volumes import VolumeContract
from volgate.conformance.data import DataIntegrity
from volgate.conformance.faults import Faults, Victims
from volgate.conformance.in_process import Opened, find_offer
from volgate.conformance.leaks import Leaks
from volgate.conformance.model import Model
from volgate.conformance.options import Options
from volgate.conformance.races import Races

__all__ = ["Conformance"]

Table = Mapping[str, Any]


class Conformance(
    VolumeContract,
    SnapshotContract,
    GroupContract,
    FenceContract,
    PublishContract,
    ImageContract,
    ExtractContract,
    DataIntegrity,
    Model,
    Races,
    Faults,
    Leaks,
):
    """Inherit it under a name that begins with Test, name the backend, and say where it may make volumes.

    Example::

        class TestAcme(Conformance):
            backend_class = Acme

            @pytest.fixture
            def table(self, tmp_path):
                return {"path": str(tmp_path)}
    """

    backend_class: ClassVar[type[Backend]]
    """The class that `open` returns: its facets choose the tests."""
    plugin: ClassVar[str] = ""
    """The entry point; "": the module of the class, or the nearest package around it, that has `volgate_backends`."""
    kind: ClassVar[str] = ""
    """Which of the plugin's kinds; "": its only one."""
    one_connection: ClassVar[bool] = False
    """Whether a library carries all calls over one connection, so that a system call that stands still holds them all."""
    lives: ClassVar[int] = 6
    """How often everything is made and taken away, to see that nothing leaks; fewer where each call takes seconds."""
    over_the_wire: ClassVar[bool] = False

    @classmethod
    def lacks(cls, fixtures: Iterable[str]) -> str:
        """Say why tests that ask for these fixtures cannot be run, "" if they can."""
        if "make_foreign" in fixtures and cls.foreign is Conformance.foreign:
            return "the test class has no `foreign`"
        if "secret_table" in fixtures and cls.with_secret is Conformance.with_secret:
            return "the test class has no `with_secret`: no setting holds a secret"
        if "own_ways" in fixtures and cls.one_connection:
            return "all calls share one connection of a library"
        return ""

    @pytest.fixture
    def table(self) -> Table:
        """The pool's table, as it would stand below `[pools.<name>]`: of an empty pool, for each test anew or one for all."""
        raise NotImplementedError("give the test class a fixture `table` that returns the pool's settings")

    def litter(self, table: Table) -> Iterable[str]:
        """Name everything that lies on the storage of a pool: what no volume accounts for is then found. Nothing, where it is not known."""
        del table
        return ()

    def foreign(self, table: Table, size: int) -> str:
        """Make an object of `size` bytes without an owner tag, its first and last page of the value 0xAD; return its locator.

        Needed for a backend that adopts; without it the tests of that are not run, and reported so.
        """
        raise NotImplementedError

    def with_secret(self, table: Table, reference: str) -> Table:
        """The table with a secret that is referenced so. Needed for a backend whose settings hold one."""
        raise NotImplementedError

    def secret(self, table: Table) -> str:
        """The secret that the storage takes; "" if it looks at none, and any will do."""
        del table
        return ""

    # -- what the tests ask for

    @pytest.fixture
    def subject(self, table: Table, conformance_options: Options) -> Iterator[Opened]:
        """The pool, open in this process."""
        _, offer = find_offer(self.backend_class, self.plugin, self.kind)
        opened = Opened(offer, table, conformance_options.seed, lambda: self.litter(table))
        assert isinstance(opened.backend, self.backend_class), f"open returned a {type(opened.backend).__name__}"
        if not self.lacks(["make_foreign"]):
            opened.make_foreign = lambda size: self.foreign(table, size)
        yield opened
        opened.clear()
        opened.backend.close()

    @pytest.fixture
    def victims(self, subject: Opened, conformance_options: Options) -> Iterator[Victims]:
        """Processes that are killed and lied to."""
        plugin, offer = find_offer(self.backend_class, self.plugin, self.kind)
        made = Victims(plugin, offer.kind, subject, conformance_options.points)
        yield made
        made.close()

    @pytest.fixture
    def make_foreign(self, table: Table) -> MakeForeign:
        """Makes objects that are not ours."""
        return lambda size: self.foreign(table, size)

    @pytest.fixture
    def secret_table(self, table: Table) -> Callable[[str], Table]:
        """Puts a secret into the table."""
        return lambda reference: self.with_secret(table, reference)

    @pytest.fixture(name="lives")
    def _lives(self) -> int:
        return type(self).lives

    @pytest.fixture
    def own_ways(self) -> None:
        """Asked for by what holds where each call has a way of its own to the storage."""

    @pytest.fixture
    def canary(self, table: Table) -> str:
        """The secret that must not be told."""
        return self.secret(table) or f"canary-{os.urandom(12).hex()}"

    @pytest.fixture
    def own_temporary_files(self, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
        """A folder for temporary files that nobody else uses: not the test's own folder, which may be the pool."""
        folder = tmp_path_factory.mktemp("temporary")
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        monkeypatch.setenv("TMPDIR", str(folder))

    @pytest.fixture
    def model_examples(self, conformance_options: Options) -> int:
        """How many sequences of verbs are tried."""
        return conformance_options.examples
