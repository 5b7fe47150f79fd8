"""The contract explains itself: every message, field, enum, value, service and call has a comment, with units and errors."""

import re
from pathlib import Path

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_tools import protoc

ROOT = Path(__file__).parents[2]
_CODES = [code.name for code in grpc.StatusCode]
_UNITS = {"_bytes": "byte", "_seconds": "second", "_bytes_sec": "bytes a second", "_iops_sec": "operations a second"}


@pytest.fixture(scope="module")
def comments(tmp_path_factory):
    """Every element's full name with its kind and leading comment."""
    out = tmp_path_factory.mktemp("contract") / "set.binpb"
    files = sorted(str(path.relative_to(ROOT / "proto")) for path in (ROOT / "proto/volgate").rglob("*.proto"))
    include = Path(protoc.__file__).parent / "_proto"
    assert protoc.main(["protoc", f"-I{ROOT / 'proto'}", f"-I{include}", "--include_source_info", f"-o{out}", *files]) == 0
    found = {}
    for file in descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file:
        leading = {tuple(place.path): place.leading_comments for place in file.source_code_info.location}
        for path, kind, name in _elements(file, (), ""):
            found[f"{file.package}.{name}"] = (kind, " ".join(leading.get(path, "").split()))
    return found


def _elements(holder, path, prefix):
    """Walk a descriptor by the field numbers that source locations use."""
    below = {
        "message_type": "message",
        "nested_type": "message",
        "enum_type": "enum",
        "service": "service",
        "field": "field",
        "value": "value",
        "method": "call",
        "oneof_decl": "oneof",
        "extension": "field",
    }
    for attribute, kind in below.items():
        field = holder.DESCRIPTOR.fields_by_name.get(attribute)
        for index, item in enumerate(getattr(holder, attribute) if field else ()):
            if kind == "message" and item.options.map_entry:
                continue
            here, name = (*path, field.number, index), f"{prefix}{item.name}"
            yield here, kind, name
            yield from _elements(item, here, f"{name}.")


def test_the_walk_sees_every_kind(comments):
    kinds = {kind for kind, _ in comments.values()}
    assert kinds == {"message", "enum", "service", "field", "value", "call", "oneof"}
    assert len(comments) > 300


def test_everything_has_a_comment(comments):
    assert not [name for name, (_, text) in comments.items() if len(text) < 4]


def test_every_quantity_names_its_unit(comments):
    wrong = [
        name
        for name, (kind, text) in comments.items()
        if kind == "field" and (unit := next((u for end, u in _UNITS.items() if name.endswith(end)), "")) and unit not in text.lower()
    ]
    assert not wrong


def test_every_call_names_its_errors(comments):
    silent = [
        name for name, (kind, text) in comments.items() if kind == "call" and not any(re.search(rf"\b{code}\b", text) for code in _CODES)
    ]
    assert not silent
