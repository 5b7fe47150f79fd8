"""How long a call goes on, and when it is repeated: exponential backoff bounded by a deadline."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from volgate_client.errors import VolgateError

__all__ = ["Attempts"]

_FIRST = 0.05
_MOST = 2.0
_LEAST_TIMEOUT = 0.001


class Attempts:
    """The attempts of one call.

    `timeout` bounds the whole, seconds. `patience` bounds the time from a failure until the next progress, seconds: a
    transfer may take a day, but a gateway that is gone is given up sooner.
    """

    def __init__(self, timeout: float, patience: float | None = None, retrying: Callable[[VolgateError], None] | None = None) -> None:
        """Start the clock. `retrying` is told each failure that is followed by another attempt."""
        self._retrying = retrying
        self._deadline = time.monotonic() + timeout
        self._patience = timeout if patience is None else patience
        self._give_up = self._deadline
        self._failing = False
        self._backoff = _FIRST

    def left(self) -> float:
        """Seconds until the deadline, for the next attempt."""
        return max(_LEAST_TIMEOUT, self._deadline - time.monotonic())

    def progressed(self) -> None:
        """The gateway answered: patience and backoff start anew."""
        self._failing = False
        self._backoff = _FIRST

    def pause(self, failure: VolgateError) -> float:
        """Seconds to wait before the next attempt. Raises `failure` if it is not retryable or no time is left."""
        if not failure.retryable:
            raise failure
        if not self._failing:
            self._failing = True
            self._give_up = min(self._deadline, time.monotonic() + self._patience)
        wait = max(failure.retry_after or 0.0, self._backoff * random.uniform(0.5, 1.0))  # noqa: S311  # spreads callers, hides nothing
        self._backoff = min(self._backoff * 2, _MOST)
        if time.monotonic() + wait >= self._give_up:
            raise failure
        if self._retrying:
            self._retrying(failure)
        return wait
