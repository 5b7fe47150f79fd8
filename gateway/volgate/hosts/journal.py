"""A host's changes, recorded before their effect: one at a time for each alias, and none for an alias that was given up."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from volgate.connection import Connection
from volgate.errors import InDoubt, NotFound, Precondition, Unreachable, VolgateError
from volgate.hosts.interface import AttachedDisk, AttachPlan, DetachOutcome, Host
from volgate.model import Qos
from volgate.store.steps import Step, Steps

__all__ = ["JournalledHost"]

_log = structlog.get_logger()
_STEPS_KEPT = 7 * 86400.0
_WITHDRAWN_KEPT = 90 * 86400.0  # no call of a controller is that late
_REPAIR_SECONDS = 20.0
_LEAST_SECONDS = 5.0  # a detach that is to wait for nothing still waits so long for the alias


class JournalledHost:
    """The changing calls of a host; each raises what the host's own does, and Precondition (ALIAS_WITHDRAWN)."""

    def __init__(self, host: Host, steps: Steps) -> None:
        """`recover` comes before the first call."""
        self._host = host
        self._steps = steps
        self._lock = threading.Lock()
        self._turns: dict[str, tuple[threading.Lock, int]] = {}
        self._frozen: dict[str, int] = {}

    def attach(self, plan: AttachPlan, *, timeout: float) -> AttachedDisk:
        """Attach; a repeat is answered by what libvirt has, never by the record alone."""
        began = time.monotonic()
        with self._turn(plan.alias, timeout):
            if self._steps.is_withdrawn(plan.alias):
                told = f"attach of {plan.volume}: {plan.alias} was detached or given up, so this call is a late one; nothing was done"
                raise Precondition(told, reason="ALIAS_WITHDRAWN")
            number = self._steps.begin("attach", plan.alias, plan.domain, plan.connection.source)
            with self._ended(number):
                return self._host.attach(plan, timeout=_left(began, timeout))

    def detach(self, domain: str, alias: str, source: str, *, timeout: float) -> DetachOutcome:
        """Withdraw the alias, then take its disk away; from now on no attach brings it back."""
        began = time.monotonic()
        with self._turn(alias, max(timeout, _LEAST_SECONDS)):
            number = self._steps.withdraw(alias, "detach", domain, source)
            with self._ended(number):
                return self._host.detach(domain, alias, source, timeout=_left(began, timeout))

    def release(self, source: str, *, timeout: float) -> None:
        """Let go of a volume."""
        with self._turn(source, timeout), self._ended(self._steps.begin("release", "", "", source)):
            self._host.release(source, timeout=timeout)

    def grow(self, source: str, size: int, *, timeout: float) -> None:
        """Have devices learn a size: a look at them, which needs no record."""
        with self._turn(source, timeout):
            self._host.grow(source, size, timeout=timeout)

    def resize(self, domain: str, alias: str, size: int, *, timeout: float) -> int:
        """Grow the disk."""
        with self._step("resize", domain, alias, "", timeout) as left:
            return self._host.resize(domain, alias, size, timeout=left)

    def limit(self, domain: str, alias: str, qos: Qos, *, timeout: float) -> None:
        """Set the disk's limits."""
        with self._step("limit", domain, alias, "", timeout) as left:
            self._host.limit(domain, alias, qos, timeout=left)

    def switch_overlay(self, domain: str, alias: str, top: Connection, base: str, *, quiesce: bool, timeout: float) -> bool:
        """Put a layer on top."""
        with self._step("switch_overlay", domain, alias, top.source, timeout) as left:
            return self._host.switch_overlay(domain, alias, top, base, quiesce=quiesce, timeout=left)

    def freeze(self, domain: str, *, timeout: float) -> None:
        """Freeze a guest; the step stays open until its thaw, so that no guest stays frozen when this process dies."""
        number = self._steps.begin("freeze", "", domain, "")
        try:
            self._host.freeze(domain, timeout=timeout)
        except InDoubt:
            raise
        except VolgateError as error:
            self._steps.end(number, error.reason)
            raise
        self._frozen[domain] = number

    def thaw(self, domain: str, *, timeout: float) -> bool:
        """Thaw it."""
        held = self._host.thaw(domain, timeout=timeout)
        if (number := self._frozen.pop(domain, None)) is not None:
            self._steps.end(number, "done" if held else "thawed before")
        return held

    def recover(self) -> bool:
        """Mend what interrupted steps left in the domains; False if libvirt does not answer, and it is to be tried again."""
        left = self._steps.unfinished()
        self._close([step for step in left if step.kind == "release"], "interrupted, its controller repeats it")
        left = [step for step in left if step.kind != "release"]
        for domain in sorted({step.domain for step in left}):
            steps = [step for step in left if step.domain == domain]
            try:
                self._mend(domain, steps)
            except VolgateError as error:
                if error.retryable:
                    _log.warning("an interrupted step cannot be looked at yet", domain=domain, error=error.message)
                    return False
                self._close(steps, f"not mended: {error.reason}")  # the controller repeats it, and learns why it fails
        return True

    def prune(self) -> None:
        """Forget what no late call can be about any more."""
        now = time.time()
        self._steps.prune(now - _STEPS_KEPT, now - _WITHDRAWN_KEPT)

    def _mend(self, domain: str, steps: list[Step]) -> None:
        """Rid the domain of orphans and note where each disk is; what the step was to do is its controller's to repeat."""
        frozen = [step for step in steps if step.kind == "freeze"]
        try:
            if frozen:
                self._host.thaw(domain, timeout=_REPAIR_SECONDS)
                self._close(frozen, "interrupted, thawed")
            sources = sorted({step.source for step in steps} - {""})
            for finding in self._host.repair(domain, sources, apply=True, timeout=_REPAIR_SECONDS):
                _log.warning("orphan", domain=domain, device=finding.alias, repaired=finding.repaired)
        except NotFound:
            self._close(steps, "the domain is gone")
            return
        except Precondition as error:  # it does not run: QEMU has nothing
            _log.info("a domain needs no repair", domain=domain, error=error.message)
        for step in (step for step in steps if step not in frozen):
            seen = self._host.presence(domain, step.alias, step.source, timeout=_REPAIR_SECONDS)
            there = seen.live or seen.config or seen.qemu
            self._close([step], "interrupted, the disk is there" if there else "interrupted, the disk is nowhere")

    def _close(self, steps: list[Step], outcome: str) -> None:
        for step in steps:
            self._steps.end(step.id, outcome)
            _log.warning("an earlier process left a step", step=step.kind, alias=step.alias, domain=step.domain, outcome=outcome)

    @contextmanager
    def _step(self, kind: str, domain: str, alias: str, source: str, timeout: float) -> Iterator[float]:
        began = time.monotonic()
        with self._turn(alias, timeout):
            number = self._steps.begin(kind, alias, domain, source)
            with self._ended(number):
                yield _left(began, timeout)

    @contextmanager
    def _ended(self, number: int) -> Iterator[None]:
        """Record how a step ended; one in doubt stays open, for the next start to look at."""
        try:
            yield
        except InDoubt:
            raise
        except VolgateError as error:
            self._steps.end(number, error.reason)
            raise
        self._steps.end(number, "done")

    @contextmanager
    def _turn(self, alias: str, timeout: float) -> Iterator[None]:
        """The alias to this call alone. Raises Unreachable (DOMAIN_BUSY): another call of it does not end in time."""
        with self._lock:
            turn, users = self._turns.get(alias, (threading.Lock(), 0))
            self._turns[alias] = (turn, users + 1)
        try:
            if not turn.acquire(timeout=max(0.0, timeout)):
                raise Unreachable(f"{alias}: another call of it did not end in time; nothing was done", reason="DOMAIN_BUSY")
            try:
                yield
            finally:
                turn.release()
        finally:
            with self._lock:
                turn, users = self._turns.pop(alias)
                if users > 1:
                    self._turns[alias] = (turn, users - 1)


def _left(began: float, timeout: float) -> float:
    return max(0.0, timeout - (time.monotonic() - began))
