"""Checks of fields: each raises InvalidRequest with the field's path, before anything is touched."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from typing import TypeVar

from google.protobuf.message import Message

from volgate.errors import InvalidRequest

__all__ = [
    "bad_token",
    "bounded",
    "choice",
    "labels",
    "page_size",
    "page_token",
    "path",
    "printable",
    "read_token",
    "request_id",
    "serial",
    "uid",
]

T = TypeVar("T")
_PRINTABLE = re.compile(r"[^\x00-\x1f\x7f-\x9f]*")
_UID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")
_REFERENCE = re.compile(r"[a-z][a-z0-9+-]*:[A-Za-z0-9_.:@/+-]{1,240}")
_SERIAL = re.compile(r"[A-Za-z0-9_.+-]{0,20}")
_LONGEST = 128
_COMPONENT_MOST = 255
_PATH_MOST = 4095
_PAGE_DEFAULT = 500
_PAGE_MOST = 1000


def printable(value: str, field: str, *, longest: int = _LONGEST) -> str:
    """A string without control characters, of at most `longest` bytes of UTF-8."""
    if len(value.encode()) > longest:
        raise InvalidRequest(f"{field}: {len(value.encode())} bytes, at most {longest} are allowed", field=field)
    if not _PRINTABLE.fullmatch(value):
        raise InvalidRequest(f"{field}: contains control characters", field=field)
    return value


def path(value: str, field: str) -> str:
    """Empty, or a path that the kernel can take."""
    if any(len(part.encode()) > _COMPONENT_MOST for part in value.split("/")):
        raise InvalidRequest(f"{field}: a part of the path is longer than {_COMPONENT_MOST} bytes", field=field)
    return printable(value, field, longest=_PATH_MOST)


def request_id(value: str, field: str = "request_id", *, needed: bool = False) -> str:
    """The caller's id of a request."""
    if needed and not value:
        raise InvalidRequest(f"{field}: is mandatory for this call, which is not repeatable by nature", field=field)
    return printable(value, field)


def uid(value: str, field: str) -> str:
    """Empty, or a uuid in the form that the contract shows them."""
    if value and not _UID.fullmatch(value):
        raise InvalidRequest(f"{field}: {value[:64]!r} is not a uuid", field=field)
    return value.lower()


def bounded(value: int, field: str, least: int, most: int) -> int:
    """A number from `least` to `most`."""
    if not least <= value <= most:
        raise InvalidRequest(f"{field}: {value} is outside {least} to {most}", field=field)
    return value


def choice(value: int, table: Mapping[int, T], field: str) -> T:
    """A known value of an enum."""
    if value not in table:
        raise InvalidRequest(f"{field}: {value} is not a value of this enum that can be used here", field=field)
    return table[value]


def labels(value: Mapping[str, str], field: str) -> dict[str, str]:
    """At most 64 labels: keys of `[A-Za-z0-9][A-Za-z0-9._/-]*`, values printable, 128 bytes each."""
    if len(value) > 64:  # noqa: PLR2004  # the contract's number
        raise InvalidRequest(f"{field}: {len(value)} labels, at most 64 are allowed", field=field)
    for key, item in value.items():
        if not _LABEL.fullmatch(key):
            raise InvalidRequest(f"{field}: {key[:64]!r} is not a label key", field=field)
        printable(item, f"{field}[{key}]")
    return dict(value)


def serial(value: str, field: str) -> str:
    """A disk's serial that every bus shows whole."""
    if not _SERIAL.fullmatch(value):
        raise InvalidRequest(f"{field}: {value[:64]!r} is not a serial; at most 20 of A-Z a-z 0-9 _ . + -", field=field)
    return value


def reference(value: str, field: str) -> str:
    """Empty, or what names a secret: `scheme:rest`, of characters that libvirt's XML and a log show as they are."""
    if value and (not _REFERENCE.fullmatch(value) or "/../" in value):
        told = "is no reference to a secret; write file:/path, or what a plugin's scheme needs, at most 256 of A-Z a-z 0-9 _ . : @ / + -"
        raise InvalidRequest(f"{field}: {value[:64]!r} {told}", field=field)
    return value


def page_size(value: int) -> int:
    """How many rows a page holds."""
    return bounded(value, "page_size", 0, _PAGE_MOST) or _PAGE_DEFAULT


def page_token(what: str, request: Message, last: str) -> str:
    """A cursor that only the same list of the same filters takes back."""
    body = json.dumps([last, _mark(what, request)]).encode()
    return base64.urlsafe_b64encode(hashlib.sha256(body).digest()[:6] + body).decode()


def read_token(what: str, request: Message, token: str) -> str:
    """The key of the last row seen, "" for the first page. Raises InvalidRequest (BAD_PAGE_TOKEN)."""
    if not token:
        return ""
    try:
        blob = base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True)
        if hashlib.sha256(blob[6:]).digest()[:6] == blob[:6]:
            last, mark = json.loads(blob[6:])
            if mark == _mark(what, request) and isinstance(last, str) and last.encode():
                return last
    except (ValueError, TypeError):  # no base64, no JSON, no pair, no text: all the same to the caller
        pass
    raise bad_token()


def bad_token() -> InvalidRequest:
    """The error for a cursor that cannot be read."""
    return InvalidRequest("page_token: is damaged or of another list; begin again without it", reason="BAD_PAGE_TOKEN", field="page_token")


def _mark(what: str, request: Message) -> str:
    """Identify a list by its call and its filters."""
    copy = type(request)()
    copy.CopyFrom(request)
    copy.ClearField("page_token")
    copy.ClearField("page_size")
    return hashlib.sha256(what.encode() + copy.SerializeToString(deterministic=True)).hexdigest()[:8]
