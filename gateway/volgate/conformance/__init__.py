"""The judge of backends, shipped as a pytest plugin: inherit `Conformance`, name the backend, run pytest.

Four levels: the contract, the data, calls at once, faults. A rule is one test; the facets of the backend choose which apply.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from volgate.conformance.suite import Conformance

__all__ = ["Conformance"]


def __getattr__(name: str) -> object:
    """Import the suite when it is asked for: pytest loads the plugin beside it wherever volgate is installed, hypothesis may not be."""
    if name != "Conformance":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from volgate.conformance.suite import Conformance

    return Conformance
