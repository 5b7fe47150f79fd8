"""The judge is judged: a backend that breaks a rule of level 4 fails at it, and at no other."""

from __future__ import annotations

import pytest

from tests.conformance.judged.bad_faults import KeepsItsSecret
from tests.conformance.judged.trials import bad_of, failed_rules, of_level_4
from tests.soaking import SOAK


@pytest.mark.drawn(6)
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", [*bad_of("bad_faults"), KeepsItsSecret], ids=lambda kind: kind.__name__)
def test_a_bad_backend_fails_at_its_rule_alone(kind, tmp_path):
    tests = of_level_4(kind, every=SOAK)
    found = failed_rules("bad_faults", [kind.__name__], tmp_path, "--conformance-points", str(kind.points), tests=tests)
    rules = found[kind.__name__]
    assert ({kind.rule} if kind.rule else set()) <= rules <= {kind.rule, *getattr(kind, "kin", ())}
