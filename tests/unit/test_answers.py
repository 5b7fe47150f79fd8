"""Kept answers: equal requests share one until the next commit, and never a moment longer."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from volgate.edge.answers import Answers
from volgate.errors import NotFound
from volgate.model import Format, Provisioning, Volume, VolumeState
from volgate.store import index
from volgate.store.database import Database
from volgate.v1 import volume_pb2

Answer = volume_pb2.GetVolumeResponse


class Rig:
    def __init__(self, most: int = 10) -> None:
        self.commits = 0
        self.made = 0
        self.answers: Answers[Answer] = Answers(lambda: self.commits, most)

    async def make(self) -> Answer:
        self.made += 1
        return Answer(volume=volume_pb2.Volume(size_bytes=self.made))

    async def ask(self, name: str = "a") -> int:
        return (await self.answers.to(volume_pb2.GetVolumeRequest(name=name), self.make)).volume.size_bytes


async def test_equal_requests_share_an_answer_until_a_commit() -> None:
    rig = Rig()
    assert [await rig.ask("a"), await rig.ask("b"), await rig.ask("a"), await rig.ask("b")] == [1, 2, 1, 2]
    rig.commits += 1
    assert [await rig.ask("a"), await rig.ask("a"), await rig.ask("b")] == [3, 3, 4]


async def test_an_answer_made_while_a_commit_happened_is_not_kept() -> None:
    rig = Rig()

    async def overtaken() -> Answer:
        rig.commits += 1
        return await rig.make()

    request = volume_pb2.GetVolumeRequest(name="a")
    assert (await rig.answers.to(request, overtaken)).volume.size_bytes == 1
    assert await rig.ask() == 2


async def test_a_slow_answer_is_not_kept_under_a_later_count() -> None:
    rig, gate = Rig(), asyncio.Event()

    async def slow() -> Answer:
        found = await rig.make()
        await gate.wait()
        return found

    first = asyncio.create_task(rig.answers.to(volume_pb2.GetVolumeRequest(name="a"), slow))
    await asyncio.sleep(0)
    rig.commits += 1
    assert await rig.ask("b") == 2
    gate.set()
    assert (await first).volume.size_bytes == 1
    assert await rig.ask("a") == 3


async def test_an_error_is_not_kept() -> None:
    rig = Rig()

    async def missing() -> Answer:
        raise NotFound("a does not exist")

    with pytest.raises(NotFound):
        await rig.answers.to(volume_pb2.GetVolumeRequest(name="a"), missing)
    assert await rig.ask() == 1


async def test_the_number_of_kept_answers_is_bounded() -> None:
    rig = Rig(most=3)
    for number in range(50):
        await rig.ask(str(number))
        assert len(rig.answers._kept) <= 3
    assert await rig.ask("49") == 50


def test_a_commit_is_counted_before_its_writer_is_answered(tmp_path: Path) -> None:
    database = Database(tmp_path / "volgate.db")
    try:
        for number in range(20):
            before = database.commits
            volume = Volume("v", str(number), "v", 1, 1, Format.RAW, Provisioning.THIN, VolumeState.READY)
            database.write(lambda commit, volume=volume: index.put_volume(commit, "p", volume, 1.0))
            assert database.commits > before
    finally:
        database.close()
