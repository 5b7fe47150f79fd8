"""error.proto lists exactly the reasons that the code answers with, each with its statuses and retry advice."""

import pytest

from tests.contract.reasons import ADVICE, listed, used
from volgate import errors
from volgate.v1 import error_pb2

_RETRYABLE = {
    kind.status for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.VolgateError) and kind.retryable
}
LISTED, USED = listed(), used()


def test_the_collector_sees_every_form_of_a_reason():
    assert "UID_MISMATCH" in USED, "a reason= of a raise"
    assert "QUOTA_EXCEEDED" in USED, "a row of a table"
    assert "STILL_RUNNING" in USED, "a class's default"
    assert len(USED) > 60


def test_the_listing_is_read_whole():
    names = {name.removeprefix("REASON_") for name in error_pb2.Reason.keys()}  # noqa: SIM118  # an enum wrapper is no dict
    assert names == set(LISTED)


def test_every_reason_in_the_code_is_listed():
    missing = {reason: places for reason, places in USED.items() if reason not in LISTED}
    assert not missing, f"add them to proto/volgate/v1/error.proto (and docs/runbook.md): {missing}"


def test_every_listed_reason_is_used():
    assert set(LISTED) - set(USED) == {"UNSPECIFIED"}


@pytest.mark.parametrize("reason", sorted(set(LISTED) - {"UNSPECIFIED"}))
def test_an_entry_tells_statuses_and_when_to_retry(reason):
    entry = LISTED[reason]
    assert entry.retry in ADVICE, entry.comment
    known = set(USED[reason]) - {""}
    assert known <= entry.statuses, f"{reason} leaves as {known}: {USED[reason]}"
    if "" not in USED[reason]:
        assert entry.statuses == known
    if entry.statuses & _RETRYABLE and not known <= {"FAILED_PRECONDITION"}:
        assert entry.retry == "same call", f"{reason} carries RetryInfo"
