"""How failures are told, and what the process exits with."""

from __future__ import annotations

import json
import sys
from typing import Any

from volgate.cli.session import SESSION
from volgate.errors import VolgateError as ServerError
from volgate_client.errors import VolgateError

__all__ = ["EXIT_LATE", "report"]

EXIT_LATE = 5
_EXITS = {
    "INVALID_ARGUMENT": 2,
    "OUT_OF_RANGE": 2,
    "NOT_FOUND": 3,
    "ALREADY_EXISTS": 4,
    "FAILED_PRECONDITION": 4,
    "ABORTED": EXIT_LATE,
    "UNAVAILABLE": EXIT_LATE,
    "DEADLINE_EXCEEDED": EXIT_LATE,
}


def report(error: Exception) -> int:
    """Tell on standard error what failed, who holds it and what to do; return the exit status."""
    facts = _facts(error)
    facts["exit"] = _EXITS.get(facts["code"], 1)
    if SESSION.json:
        sys.stderr.write(json.dumps({"error": facts}) + "\n")
    else:
        red, plain = ("\x1b[31m", "\x1b[0m") if sys.stderr.isatty() else ("", "")
        sys.stderr.write(f"{red}{facts['reason']}{plain}: {facts['message']}\n")
        for line in _hints(facts):
            sys.stderr.write(f"  {line}\n")
    return int(facts["exit"])


def _facts(error: Exception) -> dict[str, Any]:
    if isinstance(error, VolgateError):
        code, holders, fields = error.code, [h._asdict() for h in error.holders], [f._asdict() for f in error.fields]
    elif isinstance(error, ServerError):
        code, holders = error.status, [{"kind": h.kind, "name": h.name, "detail": h.detail} for h in error.holders]
        fields = [{"field": error.field, "description": error.message}] if error.field else []
    elif isinstance(error, UnicodeEncodeError):
        wrong = f"{error.object!r} is no valid UTF-8"
        base = {"code": "INVALID_ARGUMENT", "reason": "INVALID_FIELD", "message": wrong}
        return {**base, "holders": [], "fields": [], "retry_after": None, "operation": ""}
    else:
        kind = "OS_ERROR" if isinstance(error, OSError) else type(error).__name__
        base = {"code": "UNKNOWN", "reason": kind, "message": str(error) or kind}
        return {**base, "holders": [], "fields": [], "retry_after": None, "operation": ""}
    return {
        "code": code,
        "reason": error.reason,
        "message": error.message,
        "holders": holders,
        "fields": fields,
        "retry_after": error.retry_after,
        "operation": error.operation,
    }


def _hints(facts: dict[str, Any]) -> list[str]:
    """Who holds it and what to do."""
    hints = [f"held by {h['kind']} {h['name']} {h['detail']}".rstrip() for h in facts["holders"]]
    late = facts["exit"] == EXIT_LATE
    if facts["operation"]:
        verb = "watch" if facts["code"] in ("ABORTED", "DEADLINE_EXCEEDED") else "show"
        hints.append(f"volgate operation {verb} {facts['operation']}")
    if facts["code"] == "UNAVAILABLE" and facts["reason"] == "UNAVAILABLE":
        hints.append(
            f"is `volgate serve` running, and may you use its socket? --server or VOLGATE_SERVER names another (now {SESSION.address})"
            if SESSION.address.startswith(("unix:", "/"))
            else f"does a gateway listen at {SESSION.address}, with a certificate for that name and of --ca, and does it take --cert?"
        )
    elif late:
        hints.append("repeat the same command; --timeout SECONDS lets it wait longer")
    return hints
