"""Bad requests: one to three fields of a good one corrupted, bytes that are no message, streams out of order, fields that contradict."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError

from tests.edge.place import MIB
from tests.edge.secured import Secured
from tests.fuzz.badness import INVALID, LEAST64, MOST64, SIZE_MOST, kind_of
from tests.fuzz.good import GOOD, NAME
from tests.fuzz.walk import CALLS, Call, Field
from volgate.edge import validate
from volgate.v1 import attachment_pb2, operation_pb2, volume_pb2

__all__ = ["Case", "cases"]

_PARTS = ("header", "chunk", "hole")  # of an upload: what is wrong with them is their order, or their length


@dataclass
class Case:
    """One bad request: its messages (or bytes), how it may be answered, which fields it covers."""

    call: Call
    messages: list[Any]
    codes: set[str] = field(default_factory=set)
    fields: set[str] = field(default_factory=set)
    covers: set[str] = field(default_factory=set)
    journalled: bool = False
    what: str = ""


def cases(place: Secured, rng: random.Random, number: int) -> Iterator[Case]:
    """First each field of each call in both ways, then contradictions, then as the dice fall until there are `number`."""
    every = [(call, one) for call in CALLS.values() for one in call.fields]
    drawn = 0
    for call, one in every:
        yield malformed(place, rng, call, one)
        yield corrupted(place, rng, call, [one])
        drawn += 2
    for case in contradictions(place, rng):
        yield case
        drawn += 1
    while drawn < number:
        call = rng.choice([call for call in CALLS.values() if call.fields])
        dice = rng.random()
        if dice < 0.15:  # about a seventh
            yield malformed(place, rng, call, rng.choice(call.fields))
        elif dice < 0.25:  # a tenth
            yield rng.choice(list(contradictions(place, rng)))
        else:
            yield corrupted(place, rng, call, rng.sample(call.fields, min(len(call.fields), rng.choice((1, 1, 1, 2, 3)))))
        drawn += 1


def _base(place: Secured, rng: random.Random, call: Call) -> list[Any]:
    good = GOOD[call.name](place, rng)
    messages = good if isinstance(good, list) else [good]
    if "validate_only" in call.descriptor.input_type.fields_by_name:
        messages[0].validate_only = rng.choice((True, False))  # a bad request is refused either way
    return messages


def corrupted(place: Secured, rng: random.Random, call: Call, chosen: list[Field]) -> Case:
    """Wrong values; flags and messages have none, so one of their siblings gets it."""
    case = Case(call, _base(place, rng, call), what="value")
    for one in chosen:
        if one.descriptor.type == FieldDescriptor.TYPE_BOOL:
            one.set(case.messages[0], True)
            case.covers.add(one.path)
        if one.path == "keep_labels":
            case.messages[0].labels.clear()  # together they are a contradiction, which has a case of its own
    wrong = [one for one in chosen if kind_of(call.name, one.path) or call.name == "ImportVolume"]
    if not wrong:
        wrong = [rng.choice([one for one in call.fields if kind_of(call.name, one.path)])]
    if call.name == "ImportVolume" and (order := [one.path for one in wrong if one.path in _PARTS]):
        return _out_of_order(case, rng, rng.choice(order))
    for one in sorted(wrong, key=lambda one: one.path == "name"):  # a name that is wrong stays so
        _spoil(place, rng, case, one)
    return case


def _spoil(place: Secured, rng: random.Random, case: Case, one: Field) -> None:
    strategy = kind_of(case.call.name, one.path)
    assert strategy is not None, f"{case.call.name}.{one.path}: say in badness.py how it can be wrong"
    bad, first = strategy(rng), case.messages[0]
    if one.path.endswith(("{key}", "{value}")) and any(path.endswith(("{key}", "{value}")) for path in case.covers):
        case.covers.add(one.path)
        return  # one map, already spoiled
    value = bad.value
    if isinstance(value, str):
        value = value.replace("{images}", str(place.images)).replace("{exports}", str(place.exports))
    if (case.call.name, one.path) == ("CreateVolume", "size_bytes"):
        first.source = ""  # with a source, 0 means the source's
    if case.call.name.startswith("Delete") and one.path == "uid":
        first.name = NAME if case.call.name == "DeleteVolume" else f"{NAME}/snapshots/s"  # what is gone has no uid to differ
    if one.path == "header.path":
        first.header.image_bytes = 0
        del case.messages[1:]
    if one.path == "header.image_bytes":
        first.header.path = ""
    one.set(first, value)
    prefix = one.path.rpartition(".")[0]
    named = bad.field or one.name.split("{")[0]
    case.fields.add(f"{prefix}.{named}" if prefix else named)
    case.codes.update(bad.codes)
    case.journalled |= bad.journalled
    case.covers.add(one.path)


def _out_of_order(case: Case, rng: random.Random, path: str) -> Case:
    empty, piece = volume_pb2.ImportVolumeRequest(), volume_pb2.ImportVolumeRequest(chunk=b"x" * rng.randint(0, 100))
    large = volume_pb2.ImportVolumeRequest(chunk=bytes(MIB + 1))
    good = case.messages

    def hole(length: int) -> volume_pb2.ImportVolumeRequest:
        return volume_pb2.ImportVolumeRequest(hole=length)

    ways = {
        "header": [[], [empty], [piece], [piece, *good], [empty, *good]],
        "chunk": [[good[0], empty], [good[0], large], [*good, good[0]], [good[0], piece, empty, piece], [*good, large]],
        "hole": [[*good, hole(wrong)] for wrong in (0, -1, LEAST64, MOST64, SIZE_MOST, SIZE_MOST + 1)]
        + [[good[0], hole(SIZE_MOST), hole(1)], [good[0], hole(1), hole(-1)]],
    }
    case.messages = rng.choice(ways[path])
    case.codes, case.fields, case.covers, case.what = set(INVALID), {path}, {path}, "order"
    if path == "hole":
        case.codes.add("OUT_OF_RANGE")  # a file system may end before our own limit does
    return case


def malformed(place: Secured, rng: random.Random, call: Call, one: Field) -> Case:
    """A good request followed by this field in bytes that no parser takes."""
    messages = _base(place, rng, call)
    data = messages[0].SerializeToString() + _broken(one, call, rng)
    kind = type(messages[0])
    try:
        kind.FromString(data)
    except DecodeError:
        return Case(call, [data], set(INVALID), {"request"}, {one.path}, what="bytes")
    raise AssertionError(f"{call.name}.{one.path}: {data[-40:]!r} can be read")


def _broken(one: Field, call: Call, rng: random.Random) -> bytes:
    names = one.path.replace("{key}", ".key").replace("{value}", ".value").split(".")
    message, numbers = call.descriptor.input_type, []
    for name in names:
        found = message.fields_by_name[name]
        numbers.append(found.number)
        message = found.message_type
    varint = {FieldDescriptor.TYPE_STRING: False, FieldDescriptor.TYPE_BYTES: False, FieldDescriptor.TYPE_MESSAGE: False}
    if varint.get(found.type, True):
        inner = _tag(numbers[-1], 0) + b"\xff" * rng.randint(10, 20)
    elif found.type == FieldDescriptor.TYPE_STRING and rng.random() < 0.5:  # half of them
        inner = _tag(numbers[-1], 2) + b"\x02" + rng.choice((b"\xff\xfe", b"\xc3(", b"\xed\xa0", b"\x80a"))
    else:
        inner = _tag(numbers[-1], 2) + rng.choice((b"\x7fshort", b"\xff\xff\xff\xff\x0f", b"\xff" * 11))
    for number in reversed(numbers[:-1]):
        inner = _tag(number, 2) + _varint(len(inner)) + inner
    return inner


def _tag(number: int, wire: int) -> bytes:
    return _varint(number << 3 | wire)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:  # seven bits a byte
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def contradictions(place: Secured, rng: random.Random) -> Iterator[Case]:
    """Each field is fine, together they are not."""

    def attach(where: str, *paths: str, **options: Any) -> Case:
        request = attachment_pb2.AttachVolumeRequest(
            volume=NAME, host="hosts/lab", domain="test", options=attachment_pb2.DiskOptions(**options)
        )
        return Case(CALLS["AttachVolume"], [request], set(INVALID), {f"options.{where}"}, {f"options.{p}" for p in paths}, what="together")

    yield attach(
        "io",
        "io",
        "cache",
        io=attachment_pb2.IO_MODE_NATIVE,
        cache=rng.choice((attachment_pb2.CACHE_MODE_WRITEBACK, attachment_pb2.CACHE_MODE_WRITETHROUGH)),
    )
    yield attach("iothread", "iothread", "bus", iothread=rng.randint(1, 1024), bus=attachment_pb2.DISK_BUS_VIRTIO_SCSI)
    for unit in ("bytes", "iops"):
        limits = {f"total_{unit}_sec": rng.randint(1, 1 << 40), f"{rng.choice(('read', 'write'))}_{unit}_sec": 1}
        yield attach(f"qos.total_{unit}_sec", "qos", qos=limits)
        kinds = volume_pb2.UpdateVolumeRequest(name=NAME, keep_labels=True, qos=limits)
        total = {f"qos.total_{unit}_sec"}
        yield Case(CALLS["UpdateVolume"], [kinds], set(INVALID), total, {"qos", *total}, what="together")
    together = {"codes": set(INVALID), "what": "together"}
    kept = volume_pb2.UpdateVolumeRequest(name=NAME, labels={"a": "b"}, keep_labels=True)
    yield Case(CALLS["UpdateVolume"], [kept], fields={"labels"}, covers={"keep_labels", "labels"}, **together)
    other = volume_pb2.CreateVolumeRequest(pool="pools/main", volume_id=place.name("x"), source="pools/shallow/volumes/v")
    yield Case(CALLS["CreateVolume"], [other], fields={"source"}, covers={"source", "pool"}, journalled=True, **together)
    foreign = volume_pb2.RevertVolumeRequest(name=NAME, snapshot="pools/main/volumes/p/snapshots/s", request_id=place.name("r"))
    yield Case(CALLS["RevertVolume"], [foreign], fields={"snapshot"}, covers={"snapshot", "name"}, **together)
    missing = volume_pb2.RevertVolumeRequest(name=NAME, snapshot="s")
    yield Case(CALLS["RevertVolume"], [missing], fields={"request_id"}, covers={"request_id"}, **together)
    nothing = volume_pb2.CreateVolumeRequest(pool="pools/main", volume_id=place.name("x"))
    yield Case(CALLS["CreateVolume"], [nothing], fields={"size_bytes"}, covers={"size_bytes"}, **together)
    both = volume_pb2.ImportHeader(
        pool="pools/main", volume_id=place.name("x"), source_format=1, path=str(place.images / "image.raw"), image_bytes=rng.randint(1, MIB)
    )
    header = [volume_pb2.ImportVolumeRequest(header=both)]
    yield Case(CALLS["ImportVolume"], header, fields={"header.image_bytes"}, covers={"header.path"}, **together)
    for last in ("nan:" + "0" * 32, "1e999:" + "0" * 32, "1..2:" + "0" * 32, ":", "1.5:zz", "x"):
        request = operation_pb2.ListOperationsRequest()
        request.page_token = validate.page_token("operations", request, last)  # well signed, and yet no cursor
        yield Case(CALLS["ListOperations"], [request], fields={"page_token"}, covers={"page_token"}, **together)
    for spoiled in (volume_pb2.ListVolumesRequest(), volume_pb2.ListVolumesRequest(pool="pools/main")):
        spoiled.page_token = validate.page_token("volumes", spoiled, "\ud800")
        yield Case(CALLS["ListVolumes"], [spoiled], fields={"page_token"}, covers={"page_token"}, **together)
