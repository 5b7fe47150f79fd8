"""The audit: who changed what, and how that ended. One line of the log, and the plugins that want to know."""

from __future__ import annotations

import structlog

from volgate.backend.hooks import FinishedRecord
from volgate.registry import Registry

__all__ = ["tell_ended"]

_log = structlog.get_logger()


def tell_ended(registry: Registry, record: FinishedRecord) -> None:
    """Tell of a mutation that ended."""
    _log.info("operation ended", operation=record.operation.removeprefix("operations/"), method=record.method, target=record.name,
              uid=record.uid, principal=record.principal, outcome=record.outcome, seconds=round(record.seconds, 4))  # fmt: skip
    registry.finished(record)
