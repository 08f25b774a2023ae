"""Mutations for fuzz tests: of bytes, of JSON values and of protobuf messages. All follow from the generator given."""

import copy
import json
from collections.abc import Callable
from typing import Any

import numpy as np

# Values of wrong types, sizes, signs and depths, as the text of a JSON value.
JSON_VALUES = [
    "null",
    "true",
    "false",
    "0",
    "1",
    "-1",
    "2",
    "3",
    "7",
    "1e3",
    "0.5",
    "-0.0",
    "1e400",
    "-1e400",
    "NaN",
    "Infinity",
    "1099511627776",
    "-9223372036854775809",
    "1e-320",
    '""',
    '"0"',
    '"x"',
    '"[MASK]"',
    '"[UNK]"',
    '"a b"',
    '"\\u0000"',
    '"\\ud800"',
    '"\\u2581"',
    '"false"',
    "[]",
    "[[]]",
    "[0]",
    '["a"]',
    "{}",
    '{"a":{}}',
]
JSON_VALUES += [
    "1" * 30,
    "1" * 5000,
    "[" * 100 + "]" * 100,
    "[" * 5000 + "]" * 5000,
    '{"a":' * 100 + "1" + "}" * 100,
    '"' + "x" * 100_000 + '"',
    '"' + "\\u001b[31m" * 10 + '"',
    '"\\udcff"',
    '"(a*)*b"',
    '"\\n"',
]
INSERTED = (
    b"\0",
    b"\xff",
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b"\n",
    b"-1",
    b"\xef\xbb\xbf",
    b"\xf4\x90\x80\x80",
    b"1e999",
)


def mutated_bytes(content: bytes, rng: np.random.Generator) -> bytes:
    """Flips bits, changes, cuts, doubles, drops or inserts bytes, one to three times."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 4))):
        if not data:
            return bytes(data)
        at, end = sorted(rng.integers(0, len(data) + 1, 2).tolist())
        kind = int(rng.integers(7))
        if kind == 0:
            data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            for i in rng.integers(0, len(data), int(rng.integers(1, 9))):
                data[i] = int(rng.integers(256))
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            data[end:end] = data[at : min(end, at + 4096)]
        elif kind == 4:
            del data[at : min(end, at + int(rng.integers(1, 40)))]
        elif kind == 5:
            data[at:at] = INSERTED[int(rng.integers(len(INSERTED)))]
        else:
            data[at : at + 4] = int(rng.integers(1 << 32)).to_bytes(4, "little")
    return bytes(data)


def mutated_json(value: Any, rng: np.random.Generator) -> bytes:
    """Replaces, removes, renames, doubles or exchanges one to three nodes of a JSON value; returns its text."""
    root = {"": copy.deepcopy(value)}
    raw: dict[str, str] = {}
    for _ in range(int(rng.integers(1, 4))):
        _mutate_node(root, raw, rng)
    text = json.dumps(root[""])
    for mark, inserted in raw.items():
        text = text.replace(json.dumps(mark), inserted)
    return text.encode()


def _mutate_node(root: dict, raw: dict[str, str], rng: np.random.Generator) -> None:
    # The path is drawn level by level, so that the few entries near the root are met as often as the many leaves.
    holder, key = root, ""
    while isinstance(holder[key], (dict, list)) and len(holder[key]) and (holder is root or rng.random() < 0.75):
        holder = holder[key]
        key = _choice(list(holder) if isinstance(holder, dict) else range(len(holder)), rng)
    kind = int(rng.integers(6))
    if kind == 0 and holder is not root:
        del holder[key]
    elif kind == 1 and holder is not root:
        other = _choice(list(holder) if isinstance(holder, dict) else range(len(holder)), rng)
        holder[key] = copy.deepcopy(holder[other])
    elif kind == 2 and isinstance(holder, dict) and holder is not root:
        holder[_choice(["", "x", "[MASK]", "-1", "99999999999999999999", "٣", key * 2, key.upper()], rng)] = holder.pop(
            key
        )
    elif kind == 3 and isinstance(holder, list):
        holder.insert(int(rng.integers(len(holder) + 1)), copy.deepcopy(holder[key]))
    else:
        mark = f"mark {len(raw)}"
        holder[key] = mark
        raw[mark] = _choice(JSON_VALUES, rng)


def _choice(items: Any, rng: np.random.Generator) -> Any:
    return items[int(rng.integers(len(items)))]


Fields = list[tuple[int, int, Any]]
"""Number, wire type and value of each field of a protobuf message: bytes for type 2, otherwise an integer."""


def protobuf_fields(data: bytes) -> Fields:
    """Splits a protobuf message into its fields. Raises ValueError or IndexError if it is damaged."""
    at, fields = 0, []
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            value, at = int.from_bytes(data[at : at + size], "little"), at + size
        elif kind == 2:
            size, at = _varint(data, at)
            value, at = data[at : at + size], at + size
        else:
            raise ValueError(f"wire type {kind}")
        fields.append((tag >> 3, kind, value))
    return fields


def protobuf_bytes(fields: Fields) -> bytes:
    """Joins fields to a protobuf message."""
    out = bytearray()
    for number, kind, value in fields:
        out += _encoded(number << 3 | kind)
        if kind == 0:
            out += _encoded(value)
        elif kind == 2:
            out += _encoded(len(value)) + value
        else:
            out += value.to_bytes(8 if kind == 1 else 4, "little")
    return bytes(out)


def mutated_protobuf(content: bytes, rng: np.random.Generator, mutate: Callable[..., bytes] = mutated_bytes) -> bytes:
    """Changes one to three fields of a message, or of the messages in it, and keeps the rest well-formed."""
    fields = protobuf_fields(content)
    for _ in range(int(rng.integers(1, 4))):
        # The number is drawn first: one kind of field may occur a hundred thousand times, another once.
        numbers = sorted({number for number, _, _ in fields})
        if not numbers:
            break
        number = _choice(numbers, rng)
        at = _choice([i for i, field in enumerate(fields) if field[0] == number], rng)
        kind, value = fields[at][1:]
        action = int(rng.integers(8))
        if action == 0:
            del fields[at]
        elif action == 1:
            fields.insert(int(rng.integers(len(fields) + 1)), fields[at])
        elif action == 2:
            other = int(rng.integers(len(fields)))
            fields[at], fields[other] = fields[other], fields[at]
        elif kind == 2:
            fields[at] = (number, 2, _mutated_value(value, rng, mutate))
        else:
            top = 1 << (64 if kind < 2 else 32)
            fields[at] = (
                number,
                kind,
                _choice([0, 1, 2, 3, 4, 5, 6, 255, top - 1, top >> 1, 0x7FC00000, 0xFF800000], rng) % top,
            )
    return protobuf_bytes(fields)


def _mutated_value(value: bytes, rng: np.random.Generator, mutate: Callable[..., bytes]) -> bytes:
    try:
        inner = protobuf_fields(value)
    except (ValueError, IndexError):
        inner = []
    if inner and rng.random() < 0.8 and protobuf_bytes(inner) == value:
        return mutated_protobuf(value, rng, mutate)
    return (
        _choice([b"", b"\xff\xfe", b"\0", b"[MASK]", b"[UNK]", b"\xe2\x96\x81", b"<0x41>", b"<0xZZ>"], rng)
        if rng.random() < 0.3
        else mutate(value, rng)
    )


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
