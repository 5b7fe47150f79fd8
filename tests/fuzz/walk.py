"""Every call of the contract and every field of its request, from the descriptors: what is added there is covered here or fails."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

from volgate.v1 import attachment_pb2, host_pb2, operation_pb2, pool_pb2, snapshot_pb2, volume_pb2

__all__ = ["CALLS", "Call", "Field"]

_FILES = (pool_pb2, volume_pb2, snapshot_pb2, attachment_pb2, host_pb2, operation_pb2)


@dataclass(frozen=True)
class Field:
    """A field of a request by its path: `options.qos.read_iops_sec`; of a map, the keys are `labels{key}`, the values `labels{value}`."""

    call: str
    path: str
    descriptor: FieldDescriptor

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]

    def set(self, message: Any, value: Any) -> None:
        """Write the field into a request."""
        *parents, last = self.path.split("{")[0].split(".")
        for parent in parents:
            message = getattr(message, parent)
        if isinstance(value, list):
            del getattr(message, last)[:]
            getattr(message, last).extend(value)
        elif isinstance(value, dict):
            getattr(message, last).clear()
            getattr(message, last).update(value)
        elif value is None:
            message.ClearField(last)
        else:
            setattr(message, last, value)


@dataclass(frozen=True)
class Call:
    """A method of a service."""

    service: str
    name: str
    descriptor: MethodDescriptor
    fields: tuple[Field, ...]

    @property
    def path(self) -> str:
        return f"/{self.descriptor.containing_service.full_name}/{self.name}"


def _fields(call: str, message: Descriptor, prefix: str = "") -> Iterator[Field]:
    for field in message.fields:
        path = f"{prefix}{field.name}"
        below = field.message_type
        if below is not None and below.GetOptions().map_entry:
            yield Field(call, f"{path}{{key}}", field)
            yield Field(call, f"{path}{{value}}", field)
            continue
        yield Field(call, path, field)
        if below is not None:
            yield from _fields(call, below, f"{path}.")


def _calls() -> Iterator[Call]:
    for file in _FILES:
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                fields = tuple(_fields(method.name, method.input_type))
                yield Call(service.name.removesuffix("Service").lower() + "s", method.name, method, fields)


CALLS: dict[str, Call] = {call.name: call for call in _calls()}
