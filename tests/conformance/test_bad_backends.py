"""The judge is judged: a backend that breaks a rule of level 1 to 3 fails at it, and at no other."""

from __future__ import annotations

import threading
import uuid
from dataclasses import replace

import pytest

from tests.conformance.judged.good import Good, offer
from tests.conformance.judged.trials import MODEL, MODULES, bad_of, failed_rules, rules
from volgate.conformance.in_process import Opened
from volgate.conformance.races import Races

TOGETHER = 8  # each process of pytest takes a second to start
PARTS = [
    pytest.param(module, [kind.__name__ for kind in bad_of(module)][start : start + TOGETHER], id=f"{module}-{start}")
    for module in MODULES[:-1]
    for start in range(0, len(bad_of(module)), TOGETHER)
]


def test_every_rule_has_a_backend_that_breaks_it():
    broken = [kind.rule for module in MODULES for kind in bad_of(module)]
    judged_in_process = {name for name, rule in rules().items() if rule.case.process}
    assert set(broken) == judged_in_process
    assert len(judged_in_process) > 90


@pytest.mark.drawn(5)
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("module", "names"), PARTS)
def test_a_bad_backend_fails_at_its_rule_alone(module, names, tmp_path):
    names = [name for name in names if {kind.__name__: kind.rule for kind in bad_of(module)}[name] != MODEL]
    found = failed_rules(module, names, tmp_path, "--conformance-level", "3", "-k", "not verbs_in_any_order")
    # `also`: other rules that cannot hold where a backend breaks its own
    assert found == {kind.__name__: {kind.rule, *getattr(kind, "also", ())} for kind in bad_of(module) if kind.__name__ in names}


def test_what_only_a_sequence_shows_is_found_by_the_model(tmp_path):
    (kind,) = [kind for kind in bad_of("bad_data") if kind.rule == MODEL]
    found = failed_rules("bad_data", [kind.__name__], tmp_path, "--conformance-level", "3", "--conformance-examples", "40")
    assert found == {kind.__name__: {MODEL}}


class GivesEachCallerAnother(Good):
    rule = "one-creation-asked-for-at-once-is-one"

    def create_volume(self, spec):
        return super().create_volume(replace(spec, name=f"{spec.name}-{uuid.uuid4()}"))


class GivesAllTheSame(Good):
    rule = "of-two-that-want-a-name-one-has-it"

    one_at_a_time = threading.Lock()

    def create_volume(self, spec):
        with self.one_at_a_time:
            return super().create_volume(replace(spec, uid=str(uuid.uuid5(uuid.NAMESPACE_OID, spec.name))))


@pytest.mark.parametrize("kind", [GivesEachCallerAnother, GivesAllTheSame])
def test_a_rule_that_the_gateway_sees_to_can_be_broken(kind, tmp_path):
    rule = rules()[kind.rule]
    assert not rule.case.process
    pool = Opened(offer(kind, "bad"), {"path": str(tmp_path)}, seed=1)
    with pytest.raises(AssertionError):
        getattr(Races(), rule.test)(pool)
