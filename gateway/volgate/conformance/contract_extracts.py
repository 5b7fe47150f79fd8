"""Extracts: the file that a backend writes of a volume is the volume, and nothing besides."""

from __future__ import annotations

import os
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from volgate.backend import Clones, DataPath, Extracts, Reverts, Snapshots, VolumeId
from volgate.backend.files import allocated_bytes
from volgate.conformance.cases import Level, proves
from volgate.conformance.in_process import Opened
from volgate.conformance.picture import PAGE
from volgate.errors import Cancelled, NotFound, Precondition
from volgate.model import Format, Volume

__all__ = ["ExtractContract"]

_STEP = 1 << 20
"""Bytes that one page may take in a sparse file, at most."""


class ExtractContract:
    """What holds for the file that `extract_to_file` writes."""

    @proves(Level.CONTRACT, Extracts, wire=False)
    def test_only_what_exists_is_extracted(self, subject: Opened) -> None:
        """Extracting a volume or a snapshot that does not exist is NotFound, or Precondition for another uid, and makes no file."""
        made, path = subject.create(), f"{subject.folder()}/extract"
        meant = [(VolumeId(subject.name(), str(uuid.uuid4())), ""), (replace(subject.id(made), uid=str(uuid.uuid4())), "")]
        for volume, snapshot in (*meant, (subject.id(made), str(uuid.uuid4()))):
            with subject.refused(NotFound, Precondition):
                subject.facet(Extracts).extract_to_file(volume, snapshot, path, lambda _done: None)
            assert not Path(path).exists()

    @proves(Level.CONTRACT, Extracts, wire=False)
    def test_extracting_tells_how_far_it_is(self, subject: Opened) -> None:
        """The progress goes up, from 0 to 1 at the most, and ends with 1."""
        made, told = subject.filled({0: 1, PAGE: 2, subject.size(4) - PAGE: 3}, size=subject.size(4)), list[float]()
        subject.facet(Extracts).extract_to_file(subject.id(made), "", f"{subject.folder()}/extract", told.append)
        assert told == sorted(told) and told[0] >= 0.0 and told[-1] == 1.0

    @proves(Level.DATA, Extracts, wire=False)
    def test_an_extract_is_the_volume_to_the_byte(self, subject: Opened) -> None:
        """The file has the volume's size and bytes, whatever these are; also of a clone, and after the pool was opened anew."""
        made, held = _random(subject)
        _holds(_extract(subject, made), held)
        if isinstance(subject.backend, Clones):
            larger = subject.clone(made, size=subject.size(6))
            _holds(_extract(subject, larger), held.ljust(larger.size, b"\0"))
        subject.reopen()
        _holds(_extract(subject, made), held)

    @proves(Level.DATA, Extracts, Snapshots, wire=False)
    def test_an_extract_of_a_snapshot_is_of_its_moment(self, subject: Opened) -> None:
        """A snapshot is extracted as the volume was when it was cut, with the size of then; the volume as it is now."""
        made, held = _random(subject)
        cut = subject.snapshot(made)
        subject.write(made, {0: 7, made.size - PAGE: 8})
        now = bytes([7]) * PAGE + held[PAGE:-PAGE] + bytes([8]) * PAGE
        for _ in range(2):
            _holds(_extract(subject, made, cut.uid), held)
            _holds(_extract(subject, made), now)
        if isinstance(subject.backend, Reverts):
            subject.backend.revert_volume(subject.id(made), cut.uid, token=str(uuid.uuid4()))
            _holds(_extract(subject, made), held)

    @proves(Level.DATA, Extracts, wire=False)
    def test_an_extract_starts_again(self, subject: Opened) -> None:
        """What lies at the path already, of an extract that died, is no part of the next: not behind its end, nor in its holes."""
        made = subject.filled({PAGE: 1})
        path = Path(subject.folder()) / "extract"
        path.write_bytes(b"\xff" * (made.size + PAGE))
        subject.facet(Extracts).extract_to_file(subject.id(made), "", str(path), lambda _done: None)
        _holds(path.read_bytes(), (bytes(PAGE) + b"\1" * PAGE).ljust(made.size, b"\0"))

    @proves(Level.DATA, Extracts, wire=False)
    def test_an_extract_is_sparse(self, subject: Opened) -> None:
        """The file takes space for what the volume holds alone, a mebibyte for each page at the most, and none for an empty one."""
        size = subject.size(16)
        for pages in ({}, {0: 1, 5 * _STEP: 2, size - PAGE: 3}):
            path = f"{subject.folder()}/extract"
            subject.facet(Extracts).extract_to_file(subject.id(subject.filled(pages, size=size)), "", path, lambda _done: None)
            assert allocated_bytes(path) <= len(pages) * _STEP
            assert Path(path).stat().st_size == size

    @proves(Level.FAULTS, Extracts, wire=False)
    def test_a_cancelled_extract_stops(self, subject: Opened) -> None:
        """What `progress` raises ends an extract and is raised; nothing lies beside its file, and the next one is whole."""
        made, held = _random(subject)
        folder = subject.folder()

        def stop(_done: float) -> None:
            raise Cancelled("enough")

        for _ in range(2):
            with pytest.raises(Cancelled, match="enough"):
                subject.facet(Extracts).extract_to_file(subject.id(made), "", f"{folder}/extract", stop)
            assert {*os.listdir(folder)} <= {"extract"}  # noqa: PTH208  # names are all that is wanted
        _holds(_extract(subject, made), held)


def _random(subject: Opened) -> tuple[Volume, bytes]:
    """A volume of bytes that nobody can guess, with holes and whole zeroes between, and these bytes."""
    size = subject.size(4)
    held = bytearray(size)
    for at in (0, size // 4 - 1, size // 2 + 777, size - 3 * PAGE):  # not where pages or objects begin
        held[at : at + 3 * PAGE] = subject.random.randbytes(3 * PAGE)
    made = subject.create(size=size, incomplete=True)
    path = Path(subject.folder()) / "image"
    path.write_bytes(held)
    subject.facet(DataPath).fill_from_file(subject.id(made), str(path), Format.RAW, lambda _done: None)
    return subject.facet(DataPath).complete(subject.id(made)), bytes(held)


def _extract(subject: Opened, volume: Volume, snapshot_uid: str = "") -> bytes:
    path = Path(subject.folder()) / "extract"
    subject.facet(Extracts).extract_to_file(subject.id(volume), snapshot_uid, str(path), lambda _done: None)
    return path.read_bytes()


def _holds(found: bytes, held: bytes) -> None:
    """Raise AssertionError with the first byte that differs; pytest, in a CI, would explain megabytes for minutes."""
    if found != held:
        at = next((n for n, (one, other) in enumerate(zip(found, held, strict=False)) if one != other), min(len(found), len(held)))
        raise AssertionError(
            f"byte {at} differs: {found[at : at + 16].hex()} of {len(found)} bytes, not {held[at : at + 16].hex()} of {len(held)}"
        )
