"""The good backend without a way to look at a snapshot, neither as an image nor through a clone: run by the test beside."""

from __future__ import annotations

from typing import Any

from tests.conformance.judged.good import AllButClones2, offer
from tests.conformance.judged.judge import Judge
from volgate.backend import BackendType, Resizes, Reverts, hookimpl

Unreadable: Any = type("Unreadable", (Reverts, Resizes), {**vars(AllButClones2), "__module__": __name__})


@hookimpl
def volgate_backends() -> list[BackendType]:
    return [offer(Unreadable, "unreadable")]


class TestUnreadable(Judge):
    backend_class = Unreadable
