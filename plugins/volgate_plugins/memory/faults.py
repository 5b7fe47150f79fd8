"""Faults on demand: which calls of the array are slow, fail, hang, lose their answer or kill their caller."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable
from typing import Literal

import msgspec

from volgate import errors
from volgate.errors import InvalidRequest, VolgateError

__all__ = ["VERBS", "Fault", "Faults", "Lose", "Strike"]

VERBS = (
    "open_pool",
    *("create_volume", "delete_volume", "get_volume", "list_volumes", "connection", "check", "expand_volume", "relabel_volume"),
    *("create_snapshot", "delete_snapshot", "list_snapshots", "revert_volume", "bytes_to_copy", "children"),
    *("capacity", "image", "fill_from_file", "complete", "list_foreign", "adopt_volume", "paths"),
    *("create_snapshot_group", "changed_blocks", "holders", "fence", "unfence", "fenced"),
)
"""What can fail: the opening of the pool, and the methods of the facets."""

_TICK = 0.02


class Lose(Exception):
    """The connection is to be cut without an answer; `crash`: its caller is told to end itself."""

    def __init__(self, *, crash: bool = False) -> None:
        """Note which."""
        super().__init__("lost")
        self.crash = crash


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What happens to calls of `verb` (a method of a facet, or `*`): `effect`, for `count` calls (0: all) with `probability` each.

    `delay` waits `seconds` and up to `jitter` more. `error` answers with the class `error` of volgate.errors, `reason` and `message`.
    `hang` answers nothing until it is released. `lose` cuts the connection after the effect. `crash` kills the calling process.
    `after`: an error, a delay, a hang or a crash comes after the effect instead of before it. `seed` makes the draws repeatable.
    """

    effect: Literal["delay", "error", "hang", "lose", "crash"]
    verb: str = "*"
    seconds: float = 0.0
    jitter: float = 0.0
    error: str = "Unreachable"
    reason: str = ""
    message: str = ""
    after: bool = False
    count: int = 0
    probability: float = 1.0
    seed: int = 0

    def check(self) -> None:
        """Raise InvalidRequest naming what makes no sense."""
        if self.verb not in ("*", *VERBS):
            raise InvalidRequest(f"faults: {self.verb!r} is no verb; there are: *, {', '.join(VERBS)}", field="faults.verb")
        for name in ("seconds", "jitter", "count"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InvalidRequest(f"faults: {name} must not be negative", field=f"faults.{name}")
        if not 0 <= self.probability <= 1:
            raise InvalidRequest("faults: probability is between 0 and 1", field="faults.probability")
        self.kind()

    def kind(self) -> type[VolgateError]:
        """The class of the error. Raises InvalidRequest."""
        kind = getattr(errors, self.error, None)
        if isinstance(kind, type) and issubclass(kind, VolgateError):
            return kind
        raise InvalidRequest(f"faults: {self.error!r} is no class of volgate.errors", field="faults.error")


class _Armed:
    """A fault in force: how often it still comes, and what releases those who hang in it."""

    def __init__(self, fault: Fault, *, configured: bool) -> None:
        self.fault = fault
        self.configured = configured
        self.left = fault.count or math.inf
        self.random = random.Random(fault.seed)  # noqa: S311  # a repeatable draw is the point
        self.released = threading.Event()

    def comes(self, verb: str) -> bool:
        return verb in VERBS and self.fault.verb in ("*", verb) and self.left > 0 and self.random.random() < self.fault.probability


class Strike:
    """What befalls one call."""

    def __init__(self, drawn: list[tuple[_Armed, float]], wanted: Callable[[], None]) -> None:
        """`wanted` raises once nobody waits for the call any more."""
        self._drawn = drawn
        self._wanted = wanted

    def before(self) -> None:
        """Do what comes before the effect. Raises the error, Lose, and what `wanted` raises."""
        self._befall(after=False)

    def after(self) -> None:
        """Do what comes after the effect."""
        self._befall(after=True)

    def _befall(self, *, after: bool) -> None:
        for armed, seconds in self._drawn:
            fault = armed.fault
            if (fault.after or fault.effect == "lose") is not after:
                continue
            match fault.effect:
                case "delay":
                    self._pause(threading.Event(), time.monotonic() + seconds)
                case "hang":
                    self._pause(armed.released, math.inf)
                case "error":
                    raise _made(fault)
                case "lose" | "crash":
                    raise Lose(crash=fault.effect == "crash")

    def _pause(self, event: threading.Event, until: float) -> None:
        while (left := until - time.monotonic()) > 0 and not event.wait(min(left, _TICK)):
            self._wanted()


def _made(fault: Fault) -> VolgateError:
    kind = fault.kind()
    error = kind.__new__(kind)  # Busy has arguments of its own
    text = fault.message or f"the simulated array fails {fault.verb if fault.verb != '*' else 'this call'} as it was told to"
    VolgateError.__init__(error, text, reason=fault.reason, retry_after=1.0 if kind.retryable else None)
    return error


class Faults:
    """The faults in force. Every method is thread-safe."""

    def __init__(self) -> None:
        """Start without any."""
        self._lock = threading.Lock()
        self._armed: list[_Armed] = []
        self._configured: dict[str, tuple[Fault, ...]] = {}

    def strike(self, verb: str, wanted: Callable[[], None]) -> Strike:
        """Draw what befalls a call."""
        drawn: list[tuple[_Armed, float]] = []
        with self._lock:
            for armed in self._armed:
                if armed.comes(verb):
                    armed.left -= 1
                    drawn.append((armed, armed.fault.seconds + armed.random.random() * armed.fault.jitter))
            self._armed = [armed for armed in self._armed if armed.left > 0 or armed.fault.effect == "hang"]
        return Strike(drawn, wanted)

    def add(self, fault: Fault) -> None:
        """Put a fault in force."""
        fault.check()
        with self._lock:
            self._armed.append(_Armed(fault, configured=False))

    def configure(self, pool: str, faults: tuple[Fault, ...]) -> None:
        """Put those of a pool's table in force; they are left as they are, counters and all, if the table says the same as before."""
        with self._lock:
            if self._configured.get(pool, ()) == faults:
                return
            self._configured[pool] = faults
            self._drop(lambda armed: armed.configured)
            self._armed += [_Armed(fault, configured=True) for fault in faults]

    def clear(self, verb: str = "*") -> int:
        """Take the faults of a verb (`*`: all) out of force and release who hangs in them; return how many there were."""
        with self._lock:
            return self._drop(lambda armed: verb in ("*", armed.fault.verb))

    def release(self, verb: str = "*") -> int:
        """Let go of who hangs now and take those faults out of force; return how many there were."""
        with self._lock:
            return self._drop(lambda armed: armed.fault.effect == "hang" and verb in ("*", armed.fault.verb))

    def listed(self) -> list[Fault]:
        """The faults that may still come, each with the count that is left."""
        with self._lock:
            return [
                armed.fault if armed.left == math.inf else msgspec.structs.replace(armed.fault, count=int(armed.left))
                for armed in self._armed
                if armed.left > 0
            ]

    def _drop(self, which: Callable[[_Armed], bool]) -> int:
        gone = [armed for armed in self._armed if which(armed)]
        self._armed = [armed for armed in self._armed if not which(armed)]
        for armed in gone:
            armed.released.set()
        return len(gone)
