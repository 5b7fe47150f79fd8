"""LIO, the kernel's target, by its configfs: each volume a backing store, and a target with that one unit.

Every method looks at what is there and does what is missing, so that it may have died anywhere before. What does not bear the name of a
volume of ours is never touched. Callers have the unit's turn.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from volgate.backend.secrets import resolve
from volgate.errors import InvalidRequest, Precondition, Unreachable, translate
from volgate_plugins.iscsi import loop
from volgate_plugins.iscsi.identity import LUN, Unit
from volgate_plugins.iscsi.settings import IscsiSettings

__all__ = ["Lio"]

_ROOT = Path("/sys/kernel/config/target")
_REGISTRATIONS = Path("/var/target/pr")
_LINK = "volgate"
_DEVICE = re.compile(r"Major: (\d+) Minor: (\d+)")
_SECTOR = 512
_TRIES, _PAUSE_SECONDS = 10, 0.2
_HIDDEN = {"generate_node_acls": "0", "cache_dynamic_acls": "0", "demo_mode_write_protect": "1", "demo_mode_discovery": "0"}


class Lio:
    """The targets of one pool."""

    def __init__(self, settings: IscsiSettings) -> None:
        """Raises Precondition (LIO_MISSING)."""
        self._settings = settings
        if not _ROOT.is_dir():
            told = f"{_ROOT} is not there: the kernel's target is not loaded, or configfs not mounted"
            raise Precondition(f"{told}; load it (modprobe iscsi_target_mod; a line in /etc/modules-load.d)", reason="LIO_MISSING")
        with translate("open LIO"):
            (_ROOT / "iscsi").mkdir(exist_ok=True)

    def lacks(self) -> list[str]:
        """What is missing for volumes that hosts share: LIO keeps their registrations in a folder, which it does not make."""
        folder = _REGISTRATIONS
        with contextlib.suppress(OSError):
            folder = Path(_read(_ROOT / "dbroot")) / "pr"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            return [f"{folder} cannot be made ({error.strerror}), and without it no volume can be attached as shared: make it, as root"]
        return []

    def put(self, unit: Unit, initiators: Iterable[str], source: Callable[[], str], *, anew: bool = False) -> None:
        """Have the unit reachable by these initiators and no others; `source` tells the path of its file or device, if that is needed.

        `anew`: nobody may be left who began to log in before; the kernel takes no entry away before its logins are over.
        """
        del anew
        secrets = self._secrets()
        with translate(f"publish {unit.target}"):
            store, tpg = _store(unit), _tpg(unit)
            if not _enabled(store):
                self._unmake(unit)
                self._back(unit, store, source())
            (tpg / "attrib").parent.mkdir(parents=True, exist_ok=True)
            for name, value in {**_HIDDEN, "authentication": str(int(bool(secrets)))}.items():
                _set(tpg / "attrib" / name, value)
            _map(tpg / f"lun/lun_{LUN}", store)
            for portal in self._settings.ways(unit.target):
                _listen(tpg / "np" / portal.place)
            _admit(tpg, {*initiators}, secrets)
            _set(tpg / "enable", "1")

    def remove(self, unit: Unit) -> None:
        """Take all of the unit away, with the sessions that there are; success if nothing is there."""
        with translate(f"withdraw {unit.target}"):
            self._unmake(unit)

    def initiators(self, unit: Unit) -> set[str]:
        """Those that reach the unit now: none if it is not wholly there."""
        tpg = _tpg(unit)
        with contextlib.suppress(FileNotFoundError):
            if _enabled(_store(unit)) and _read(tpg / "enable") == "1":
                return {acl.name for acl in _folders(tpg / "acls") if (acl / f"lun_{LUN}" / _LINK).is_symlink()}
        return set()

    def stands(self, unit: Unit, initiators: Iterable[str]) -> bool:
        """Whether the unit is reachable by these initiators alone, with the secrets of now."""
        wanted, secrets, tpg = {*initiators}, self._secrets(), _tpg(unit)
        with translate(f"look at {unit.target}"), contextlib.suppress(FileNotFoundError):
            return self.initiators(unit) == wanted and all(
                _read(tpg / "acls" / name / "auth" / file) == value for name in wanted for file, value in secrets.items()
            )
        return False

    def sessions(self, unit: Unit) -> Iterator[tuple[str, str]]:
        """Initiator and address of each that is logged in."""
        with contextlib.suppress(FileNotFoundError):
            for acl in _folders(_tpg(unit) / "acls"):
                told = _read(acl / "info")
                yield from ((acl.name, found) for found in re.findall(r"Address (\S+) ", told) if "LOGGED_IN" in told)

    def size(self, unit: Unit) -> int:
        """What hosts are told that the unit has, bytes; 0 if it is not there."""
        with contextlib.suppress(FileNotFoundError):
            major, minor = _device(_store(unit))
            return int(_read(Path(f"/sys/dev/block/{major}:{minor}/size"))) * _SECTOR
        return 0

    def grow(self, unit: Unit) -> None:
        """Have the unit look how large what lies below it is; nothing to do if it is not there."""
        with translate(f"grow {unit.target}"), contextlib.suppress(FileNotFoundError):
            major, minor = _device(_store(unit))
            if major == loop.LOOP_MAJOR:
                loop.grow(f"/dev/loop{minor}")

    # -- inside

    def _back(self, unit: Unit, store: Path, source: str) -> None:
        with _block(source) as device:
            store.mkdir(parents=True)
            (store / "control").write_text(f"udev_path={device}", encoding="ascii")
            (store / "wwn/vpd_unit_serial").write_text(unit.serial, encoding="ascii")
            (store / "udev_path").write_text(source, encoding="utf-8")
            (store / "enable").write_text("1", encoding="ascii")
        with contextlib.suppress(OSError):  # what lies below may know no discards
            _set(store / "attrib/emulate_tpu", "1")

    def _unmake(self, unit: Unit) -> None:
        store, tpg = _store(unit), _tpg(unit)
        with contextlib.suppress(FileNotFoundError):
            _admit(tpg, set(), {})
        with contextlib.suppress(FileNotFoundError):
            for lun in _folders(tpg / "lun"):
                _unmap(lun)
        with contextlib.suppress(FileNotFoundError):
            for portal in _folders(tpg / "np"):
                _gone(portal)
        for folder in (tpg, tpg.parent, store):
            _gone(folder)
        with contextlib.suppress(OSError):  # another unit may have the number too
            store.parent.rmdir()

    def _secrets(self) -> dict[str, str]:
        """What LIO's files for CHAP are to hold. Raises InvalidRequest."""
        chap = self._settings.chap
        if chap is None:
            return {}
        found = {"userid": chap.user, "password": resolve(chap.secret).reveal()}
        if chap.target_user:
            found |= {"userid_mutual": chap.target_user, "password_mutual": resolve(chap.target_secret).reveal()}
        if not all(found.values()):
            raise InvalidRequest("chap: a secret is empty", field="chap")
        return found


def _store(unit: Unit) -> Path:
    return _ROOT / f"core/iblock_{unit.number}" / unit.store


def _tpg(unit: Unit) -> Path:
    return _ROOT / "iscsi" / unit.target / "tpgt_1"


@contextmanager
def _block(source: str) -> Iterator[str]:
    """Give the block device that a file or a device is, which is there at least until the block ends."""
    real = os.path.realpath(source)
    if stat.S_ISBLK(Path(real).stat().st_mode):
        yield real
    else:
        with loop.attached(real) as device:
            yield device


def _device(store: Path) -> tuple[int, int]:
    found = _DEVICE.search(_read(store / "info"))
    if not found:
        raise FileNotFoundError(str(store))
    return int(found[1]), int(found[2])


def _enabled(store: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return _read(store / "enable") == "1"
    return False


def _map(lun: Path, store: Path) -> None:
    """Have the unit of a target be this store."""
    lun.mkdir(parents=True, exist_ok=True)
    for link in _links(lun):
        if link.resolve() != store:
            link.unlink()
    if not _links(lun):
        (lun / _LINK).symlink_to(store)


def _unmap(lun: Path) -> None:
    for link in _links(lun):
        link.unlink(missing_ok=True)
    _gone(lun)


def _listen(portal: Path) -> None:
    """Have a portal. LIO refuses it for a moment while the last target that had the same address goes, or is switched off."""
    for left in reversed(range(_TRIES)):
        try:
            portal.mkdir(exist_ok=True)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EADDRINUSE):
                raise
            if not left:
                told = f"LIO does not listen at {portal.name} ({error.strerror}); see `dmesg`, correct the portal or repeat the call"
                raise Unreachable(told, retry_after=1.0) from error
            time.sleep(_PAUSE_SECONDS)
        else:
            return


def _admit(tpg: Path, wanted: set[str], secrets: dict[str, str]) -> None:
    """Let these initiators in, and no others: whoever else is logged in is thrown out by that."""
    for acl in _folders(tpg / "acls"):
        if acl.name not in wanted:
            for lun in _folders(acl):
                if lun.name.startswith("lun_"):
                    _unmap(lun)
            _gone(acl)
    for name in sorted(wanted):
        acl = tpg / "acls" / name
        acl.mkdir(exist_ok=True)
        for file, value in secrets.items():
            _set(acl / "auth" / file, value)
        _map(acl / f"lun_{LUN}", tpg / f"lun/lun_{LUN}")


def _set(file: Path, value: str) -> None:
    if _read(file) != value:
        file.write_text(value, encoding="utf-8")


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8").strip()


def _folders(parent: Path) -> list[Path]:
    return [entry for entry in parent.iterdir() if entry.is_dir() and not entry.is_symlink()]


def _links(parent: Path) -> list[Path]:
    return [entry for entry in parent.iterdir() if entry.is_symlink()]


def _gone(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        folder.rmdir()
