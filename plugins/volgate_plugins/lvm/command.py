"""LVM's commands: changes are made plain, and what is there is read from one JSON report. What fails becomes one of our errors."""

from __future__ import annotations

import json
import re

from volgate.backend.run import refuse_killed, run
from volgate.errors import DeadlineExceeded, InUse, NotFound, OutOfSpace, Precondition, VolgateError
from volgate_plugins.lvm.settings import LvmSettings

__all__ = ["Commands"]

_ENV = {"LC_ALL": "C", "LVM_SUPPRESS_FD_WARNINGS": "1"}  # the pool's lock is among the descriptors
_KNOWN: tuple[tuple[str, type[VolgateError], str], ...] = (
    ("insufficient free space", OutOfSpace, ""),
    ("Insufficient suitable allocatable extents", OutOfSpace, ""),
    ("reached threshold", OutOfSpace, ""),
    (" in use", InUse, ""),
    ("is used by another device", InUse, ""),
    ("Failed to find logical volume", NotFound, ""),
)
_ALREADY = re.compile(r"already contains? thin device with device_id (\d+)")
_MISSING = ("not found", "Cannot process volume group")
_TOLD = 400


class Commands:
    """Runs them for one volume group. Any thread; LVM itself lets one change a group at a time."""

    def __init__(self, settings: LvmSettings) -> None:
        """`settings` name the group and its devices."""
        self._settings = settings

    def change(self, doing: str, command: str, *words: str) -> None:
        """Make a change. Raises OutOfSpace, InUse, NotFound, DeadlineExceeded, Unreachable, Precondition (LVM_HALF_MADE and others)."""
        self._run(doing, command, "-q", *words)

    def report(self, doing: str, command: str, kind: str, fields: tuple[str, ...]) -> list[dict[str, str]]:
        """Rows of a report about the group, sizes in bytes. Raises as `change`, Precondition (LVM_GROUP_MISSING)."""
        words = ("--reportformat", "json", "--units", "b", "--nosuffix", "-o", ",".join(fields), self._settings.vg)
        try:
            told = json.loads(self._run(doing, command, *words))
        except ValueError as error:
            raise Precondition(f"{doing}: {command} printed no JSON", reason="COMMAND_FAILED") from error
        return [row for part in told["report"] for row in part[kind]]

    def device_mapper(self, doing: str, *words: str) -> str:
        """Ask device mapper itself (`dmsetup`). Raises as `change`."""
        return self._run(doing, "dmsetup", *words).decode(errors="replace")

    def _run(self, doing: str, command: str, *words: str) -> bytes:
        named = self._settings.devices and command != "dmsetup"
        devices = ["--devices", ",".join(self._settings.devices)] if named else []
        seconds = self._settings.command_seconds
        try:
            done = run([command, *devices, *words], timeout=seconds, env=_ENV)
        except FileNotFoundError as error:
            raise Precondition(f"{doing}: there is no {command} on this host; install lvm2", reason="LVM_MISSING") from error
        if done.timed_out:
            raise DeadlineExceeded(f"{doing}: {command} did not end within {seconds:.0f} s and was killed", reason="COMMAND_TIMEOUT")
        refuse_killed(done, f"{doing}: {command}")
        if done.returncode:
            raise self._failure(doing, command, done.stderr.decode(errors="replace").strip())
        return done.stdout

    def _failure(self, doing: str, command: str, said: str) -> VolgateError:
        group = f'Volume group "{self._settings.vg}"'
        if any(f"{group} {piece}" in said for piece in _MISSING[:1]) or f"{_MISSING[1]} {self._settings.vg}" in said:
            where = f"on {', '.join(self._settings.devices)}" if self._settings.devices else "on this host"
            return Precondition(
                f"{doing}: there is no volume group {self._settings.vg} {where}; are its devices there?", reason="LVM_GROUP_MISSING"
            )
        if half := _ALREADY.search(said):
            told = f"{doing}: the thin pool has a device {half[1]} of a command that died; LVM changes nothing until it is gone"
            return Precondition(f"{told}: {said[-_TOLD:]}", reason="LVM_HALF_MADE", metadata={"device": half[1]})
        for piece, kind, reason in _KNOWN:
            if piece in said:
                return kind(f"{doing}: {command}: {said[-_TOLD:]}", reason=reason)
        return Precondition(f"{doing}: {command} failed: {said[-_TOLD:]}", reason="COMMAND_FAILED")
