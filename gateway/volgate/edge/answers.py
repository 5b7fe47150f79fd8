"""Answers made of the index, kept until the next commit: a caller that polls what does not change costs a look at a counter."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from google.protobuf.message import Message

__all__ = ["Answers"]

M = TypeVar("M", bound=Message)


class Answers(Generic[M]):
    """The answers to one method; used on the event loop alone."""

    def __init__(self, commits: Callable[[], int], most: int) -> None:
        """`commits` counts the commits so far; at most `most` answers are kept."""
        self._commits = commits
        self._most = most
        self._as_of = -1
        self._kept: dict[tuple[bytes, Hashable], M] = {}

    async def to(self, request: Message, make: Callable[[], Awaitable[M]], scope: Hashable = None) -> M:
        """The answer to an equal request of the same scope if nothing was committed since it was made, else a new one.

        Raises what `make` raises.
        """
        key, now = (request.SerializeToString(deterministic=True), scope), self._commits()
        if now != self._as_of or len(self._kept) >= self._most:
            self._kept, self._as_of = {}, now
        if (found := self._kept.get(key)) is not None:
            return found
        made = await make()
        if now == self._as_of:  # read after that count, and so at least as new
            self._kept[key] = made
        return made
