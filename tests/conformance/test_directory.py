"""The directory plugin before the judge."""

from tests.conformance.judged.judge import Judge
from volgate_plugins.directory import Directory


class TestDirectory(Judge):
    backend_class = Directory
