"""The old plugin before the judge of today; run by test_versions.py."""

from tests.conformance.judged.judge import Judge
from tests.thirdparty.version_1 import Old


class TestOld(Judge):
    backend_class = Old
