"""Bad backends before the judge: run by the tests beside, which compare what it finds. VOLGATE_BAD is a module, and perhaps some of it."""

from __future__ import annotations

import importlib
import os

from tests.conformance.judged.judge import Judge, JudgeOfSecrets

_module, _, _some = os.environ["VOLGATE_BAD"].partition(":")
_found = importlib.import_module(f"tests.conformance.judged.{_module}")


for _kind in [getattr(_found, _name) for _name in _some.split(",")] if _some else _found.BAD:
    _told = {"backend_class": _kind, "kind": getattr(_found, "KINDS", {}).get(_kind.__name__, _kind.rule), "__module__": __name__}
    globals()[f"Test{_kind.__name__}"] = type(f"Test{_kind.__name__}", (JudgeOfSecrets if "Secret" in _kind.__name__ else Judge,), _told)
