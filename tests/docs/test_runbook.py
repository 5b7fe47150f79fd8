"""The runbook has one entry for each reason that the code answers with, and none for a reason that it does not."""

import re
from pathlib import Path

import pytest

from tests.contract.reasons import used

RUNBOOK = Path(__file__).parents[2] / "docs/runbook.md"
ENTRIES = dict(re.findall(r"^### ([A-Z0-9_]+)\n(.*?)(?=^### |\Z)", RUNBOOK.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL))
USED = used()


def test_every_reason_has_an_entry():
    missing = {reason: USED[reason] for reason in USED if reason not in ENTRIES}
    assert not missing, f"write entries in {RUNBOOK.name} for {missing}"


def test_no_entry_is_dead():
    assert set(ENTRIES) <= set(USED), "remove these entries, or the code lost a reason"


def test_entries_are_in_order():
    assert list(ENTRIES) == sorted(ENTRIES)


@pytest.mark.parametrize("reason", ENTRIES)
def test_an_entry_says_what_it_means_what_holds_it_and_what_to_do(reason):
    parts = re.split(r"\*\*(Means|Holds|Do):\*\*", ENTRIES[reason])
    assert parts[1::2] == ["Means", "Holds", "Do"]
    assert all(len(text.split()) >= 1 for text in parts[2::2])
    assert len(parts[6].split()) >= 3, "an instruction, not a word"
