"""A string that never shows itself."""

from __future__ import annotations

from typing import final

__all__ = ["Secret"]


@final
class Secret:
    """Hold a secret so that no log, repr, format, pickle or error prints it.

    The only way out is :meth:`reveal`, which a reader can search for.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        """Keep `value`."""
        self._value = value

    def reveal(self) -> str:
        """Return the secret itself; never pass the result to a log or an argv."""
        return self._value

    def __repr__(self) -> str:
        return "Secret('***')"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(("Secret", self._value))

    def __reduce__(self) -> str:
        raise TypeError("a Secret is not pickled; pass a reference to it")
