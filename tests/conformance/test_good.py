"""The small right backend before the judge: what the bad ones differ from."""

from tests.conformance.judged.good import Good
from tests.conformance.judged.judge import Judge


class TestGood(Judge):
    backend_class = Good
