"""Messages that no client sends: valid ones, changed as bytes or field by field."""

from __future__ import annotations

import random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

_NUMBERS = {
    FieldDescriptor.CPPTYPE_INT32: (0, 1, -1, 7, 2**31 - 1, -(2**31)),
    FieldDescriptor.CPPTYPE_UINT32: (0, 1, 7, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (0, 1, -1, 2, 17, 18, 19, 128, 129, 2**31, 2**62, 2**63 - 1, -(2**63)),
    FieldDescriptor.CPPTYPE_UINT64: (0, 1, 2, 5, 2**63, 2**64 - 1),
    FieldDescriptor.CPPTYPE_FLOAT: (0.0, -0.0, 1.0, float("nan"), float("inf"), 3e38, -3e38, 1e-45),
    FieldDescriptor.CPPTYPE_DOUBLE: (0.0, 1.5, float("nan"), float("-inf"), 1e308),
    FieldDescriptor.CPPTYPE_ENUM: (0, 1, 2, 3, 4, 99, -1),
    FieldDescriptor.CPPTYPE_BOOL: (False, True),
}
_WORDS = (
    "", "0", "1", "18446744073709551615", "9" * 400, "x" * 300, "\0", "é\u202e\n", "common", "argmax", "sample", "seed",
    "step", "sequence_id", "sequence_start", "sequence_end", "instruction_choice", "reset_state", "priority",
    "triton_x", "observation", "action", "action_mask", "state", "agent_0", "FP32", "INT64", "BOOL", "BYTES",
)  # fmt: skip


def varint(number: int) -> bytes:
    """Protobuf's variable-length integer."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def mutated(data: bytes, generator: random.Random) -> bytes:
    """One to four changes: flipped, cut, repeated or inserted bytes, long varints, huge lengths, unknown fields."""
    message = bytearray(data)
    for _ in range(generator.randint(1, 4)):
        at = generator.randint(0, len(message))
        match generator.randint(0, 7):
            case 0 if message:
                message[min(at, len(message) - 1)] ^= 1 << generator.randint(0, 7)
            case 1:
                del message[at:]
            case 2:
                message[at:at] = generator.randbytes(generator.randint(1, 16))
            case 3:
                message[at:at] = message[: generator.randint(0, len(message))]
            case 4:
                message[at:at] = b"\xff" * generator.randint(1, 10) + b"\x01"
            case 5:  # an observation of many huge sizes
                sizes = b"\xff\xff\xff\xff\xff\xff\xff\xff\x3f" * generator.randint(1, 200)
                message += b"\x1a" + varint(len(sizes) + 4) + b"\x12" + varint(len(sizes)) + sizes
            case 6:
                message += bytes([generator.randint(0, 255), generator.randint(0, 255)]) + generator.randbytes(4)
            case _:
                message = bytearray(generator.randbytes(generator.randint(0, 200)))
    return bytes(message)


def scrambled(data: bytes, kind: type[Message], generator: random.Random) -> bytes:
    """One to three fields, at any depth, set, emptied, repeated or dropped; what comes out is a message of its kind."""
    message = kind.FromString(data)
    for _ in range(generator.randint(1, 3)):
        owner = generator.choice(_messages_in(message))
        if owner.DESCRIPTOR.fields:
            _change(owner, generator.choice(owner.DESCRIPTOR.fields), generator)
    return message.SerializeToString()


def _messages_in(message: Any) -> list[Any]:
    """A message and all that lie in it."""
    found = [message]
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            values = list(value.values()) if field.message_type.fields_by_name["value"].message_type else []
        else:
            values = list(value) if field.is_repeated else [value]
        for each in values:
            found += _messages_in(each)
    return found


def _change(owner: Any, field: FieldDescriptor, generator: random.Random) -> None:
    name, value = field.name, getattr(owner, field.name)
    if generator.random() < 0.2:
        owner.ClearField(name)
    elif field.message_type is not None and field.message_type.GetOptions().map_entry:
        key = generator.choice(_WORDS)
        if field.message_type.fields_by_name["value"].message_type is None:
            value[key] = generator.choice(_WORDS)
        else:
            inner = value[key]
            _change(inner, generator.choice(inner.DESCRIPTOR.fields), generator)
    elif field.message_type is not None and field.is_repeated:
        fresh = value.add()
        if len(value) > 1:
            fresh.CopyFrom(value[generator.randrange(len(value) - 1)])
    elif field.message_type is not None:
        value.SetInParent()
    elif field.is_repeated:
        _change_list(value, field, generator)
    else:
        setattr(owner, name, _scalar(field, value, generator))


def _change_list(value: Any, field: FieldDescriptor, generator: random.Random) -> None:
    if value and generator.random() < 0.5:
        at = generator.randrange(len(value))
        value[at] = _scalar(field, value[at], generator)
    else:
        value.extend([_scalar(field, None, generator)] * generator.choice((1, 1, 2, 65, 1000)))


def _scalar(field: FieldDescriptor, old: Any, generator: random.Random) -> Any:
    if field.cpp_type != FieldDescriptor.CPPTYPE_STRING:
        return generator.choice(_NUMBERS[field.cpp_type])
    if field.type != FieldDescriptor.TYPE_BYTES:
        return generator.choice(_WORDS)
    old = old or b""
    return generator.choice(
        (b"", old + b"\0", old[:-1], old * 2, generator.randbytes(len(old)), generator.randbytes(72))
    )
