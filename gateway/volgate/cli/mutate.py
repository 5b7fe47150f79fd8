"""A mutation of the command line: done, or with --dry-run only planned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from volgate.cli.output import human, object_, plain

if TYPE_CHECKING:
    from volgate_client import Client

__all__ = ["planned"]


def planned(client: Client, method: Any, request: Any, *, dry_run: bool) -> bool:
    """With `dry_run`, show the plan of the request and return True."""
    if not dry_run:
        return False
    plan = client.plan(method, request)
    lines = [f"would: {', '.join(plan.steps)}", f"space: {human(plan.space_bytes)}"]
    lines += [f"blocked by {blocker}" for blocker in plan.blockers]
    object_(plain(plan), "\n".join(lines))
    return True
