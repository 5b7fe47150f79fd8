"""A target that dies before any step of a connect or a release: the call ends in time and tells, nothing stays, and its repeat is right."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from tests.kernel.attached import QUEUE
from tests.kernel.outward import watching
from tests.kernel.san import eventually, links, sh, two_ways
from tests.kernel.test_iscsi import Target, direct, left
from tests.soaking import SOAK, count, draw
from volgate.connection import IscsiLun
from volgate.errors import VolgateError
from volgate.hosts.connectors import Connectors

pytestmark = [pytest.mark.kernel, pytest.mark.drawn(turns=5), pytest.mark.timeout(6 * 3600 if SOAK else 600)]
LIMIT = 40.0
"""What a call is given, seconds."""
HALF = 0.5
POINTS = count(1, soak=1000)


class San:
    """A LUN by two portals that can die, and the connectors of a host."""

    def __init__(self) -> None:
        """Nothing is connected."""
        two_ways()
        sh(QUEUE)  # what has no way waits for ever: the worst that an operator can set
        self.target = Target(50)
        self.lun: IscsiLun = self.target.reached()
        self.host = Connectors("here", _no_secret, lambda _deadline: ())

    def connect(self) -> None:
        """As an attach does."""
        self.host.connect(self.lun, time.monotonic() + LIMIT)

    def release(self) -> None:
        """As a detach, or the undo of an attach, does."""
        self.host.release(self.lun.source, time.monotonic() + LIMIT)

    def die(self, *, vanishing: bool) -> None:
        """End as a service that stops, its sessions with it; or `vanishing`, as a machine without power: nothing answers any more."""
        if vanishing:
            links(up=False)
        else:
            self.target.lun.enable(on=False)

    def live(self) -> None:
        """Be back."""
        self.target.lun.enable(on=True)
        links(up=True)

    def require_right(self) -> None:
        """Connect, read what the volume holds, and let go of it again."""
        self.connect()
        assert direct(self.lun.source) == self.target.mark
        self.release()
        assert left() == []


def _no_secret(_reference: str) -> object:
    raise AssertionError("nothing here has a secret")


@pytest.fixture(scope="module")
def san() -> Iterator[San]:
    san = San()
    yield san
    san.host.close()


def killed(call: Callable[[], None], patch: pytest.MonkeyPatch, san: San, number: int, *, vanishing: bool) -> str:
    """Make a call whose target dies before its act of that number; return what it said, "" if nothing."""
    at = "the end"

    def before(now: int, what: str) -> None:
        nonlocal at
        if now == number:
            at = what
            san.die(vanishing=vanishing)

    began, said = time.monotonic(), ""
    with watching(patch, before):
        try:
            call()
        except VolgateError as error:
            assert type(error) is not VolgateError, f"a bug before {at}: {error.message}"
            assert error.reason != "LANE_TIMEOUT", f"it hangs before {at}: {error.message}"
            said = error.reason
    if at == "the end":
        san.die(vanishing=vanishing)
    how = "vanishes" if vanishing else "stops"
    print(f"{number:3} {how:8} before {at}: {said or 'success'} after {time.monotonic() - began:.1f} s", flush=True)
    return said


def numbered(call: Callable[[], None], patch: pytest.MonkeyPatch, name: str) -> list[tuple[int, bool]]:
    """Count the acts of a call that nothing disturbs; return the numbers to try, one past the last among them, and how to die before each."""
    with watching(patch, lambda _number, _what: None) as outward:
        call()
    print(f"{name}: {len(outward.told)} steps")
    for number, what in enumerate(outward.told, 1):
        print(f"{number:3} {what}")
    every = range(1, len(outward.told) + 2)
    chance = draw()
    return [(number, chance.random() < HALF) for number in sorted(chance.sample(every, min(POINTS, len(every))))]


def test_a_target_that_dies_before_any_step_of_a_connect_leaves_nothing_and_its_repeat_is_right(
    san: San, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = numbered(san.connect, monkeypatch, "connect")
    san.release()
    for number, vanishing in numbers:
        killed(san.connect, monkeypatch, san, number, vanishing=vanishing)
        san.release()
        assert left() == [], number
        san.live()
        san.require_right()


def test_a_target_that_dies_before_any_step_of_a_release_keeps_nothing(san: San, monkeypatch: pytest.MonkeyPatch) -> None:
    san.connect()
    for number, vanishing in numbered(san.release, monkeypatch, "release"):
        san.connect()
        if killed(san.release, monkeypatch, san, number, vanishing=vanishing):
            eventually(lambda: quiet(san.release), LIMIT)
        assert left() == [], number
        san.live()
        san.require_right()


def quiet(call: Callable[[], None]) -> bool:
    """Whether a call succeeds."""
    try:
        call()
    except VolgateError as error:
        print(f"again: {error.message}")
        return False
    return True
