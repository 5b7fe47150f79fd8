"""A string that never shows itself."""

from __future__ import annotations

import re
import weakref
from typing import final

__all__ = ["Secret", "redacted"]

_SECRET_LIKE = re.compile(
    r"(?i)\b((?:password|passwd|secret|authorization)\s*[=:]\s*|(?:key|token)=)((?:bearer|basic)\s+)?(?!\*\*\*)[^\s,;\"']+"
)
_SHORTEST = 6
_live: weakref.WeakSet[Secret] = weakref.WeakSet()


@final
class Secret:
    """Hold a secret so that no log, repr, format, pickle or error prints it.

    The only way out is :meth:`reveal`, which a reader can search for.
    """

    __slots__ = ("__weakref__", "_value")

    def __init__(self, value: str) -> None:
        """Keep `value`."""
        self._value = value
        _live.add(self)

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


def redacted(text: str) -> str:
    """Return `text` without the secrets that are held now, and without what stands behind `password=` and its like.

    The last line of defence for what foreign code puts into its errors; too short a secret would tear holes into every text.
    """
    for secret in tuple(_live):
        if len(value := secret.reveal()) >= _SHORTEST:
            text = text.replace(value, "***")
    return _SECRET_LIKE.sub(r"\1***", text)
