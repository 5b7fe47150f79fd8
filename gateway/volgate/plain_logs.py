"""structlog without rich: it would take that for colours, a third of a worker's start, and our logs are JSON."""

from __future__ import annotations

import importlib
import sys

__all__ = ["load"]


def load() -> None:
    """Import structlog, before anything else does. Whoever wants rich afterwards, such as a plugin, has it."""
    if "rich" in sys.modules:
        importlib.import_module("structlog")
        return
    sys.modules["rich"] = None  # type: ignore[assignment]  # the import system's own word for what cannot be imported
    try:
        importlib.import_module("structlog")
    finally:
        del sys.modules["rich"]
