"""Reads the pickles that ``torch.save`` writes without running anything.

A pickle is a program for a stack machine whose instructions can import and call. This machine has no such ability:
it knows the instructions that containers, numbers, texts and tensors need, and where a program names a function it
compares the name with a short list and keeps a description of the tensor instead of calling. There is nothing in it
that a hostile file could reach, whatever it names and however deep it hides it.
"""

import pickle
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from deberta_jax.weights.source import BFLOAT16

MAX_BYTES = 64 << 20
"""A program for the 48-layer model has 100 kB."""

MAX_INSTRUCTIONS = 2_000_000

_STORAGES = {
    "DoubleStorage": np.dtype("<f8"), "FloatStorage": np.dtype("<f4"), "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": BFLOAT16, "LongStorage": np.dtype("<i8"), "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"), "CharStorage": np.dtype("i1"), "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}  # fmt: skip


class PickleError(ValueError):
    """The program is damaged, or does more than build tensors and plain containers."""


class Global(NamedTuple):
    """A name that the program mentioned. Only a name."""

    module: str
    name: str


class Storage(NamedTuple):
    """A run of numbers outside the program: ``key`` says where."""

    key: str
    dtype: np.dtype
    numel: int


class StoredTensor(NamedTuple):
    """What a tensor is made of; strides and offset count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


_ALLOWED = (
    {
        Global("torch._utils", "_rebuild_tensor"),
        Global("torch._utils", "_rebuild_tensor_v2"),
        Global("torch._utils", "_rebuild_parameter"),
        Global("torch", "Size"),
        Global("collections", "OrderedDict"),
    }
    | {Global("torch", name) for name in _STORAGES}
    | {Global("torch", name) for name in ("float16", "bfloat16", "float32", "float64", "int64")}
)
_MARK = object()


def run(stream: Any) -> Any:
    """Runs one program from the stream's position to its end; the stream is then behind it.

    Args:
      stream: with ``read``, ``readline`` and ``tell``; reading past its end gives less, however much is asked for.

    Returns:
      What the program built, of dict, list, tuple, str, bytes, int, float, bool, None and StoredTensor.

    Raises:
      PickleError: with the reason, in one line.
    """
    machine = _Machine()
    start = stream.tell()
    try:
        for _ in range(MAX_INSTRUCTIONS):
            code = stream.read(1)
            if code == pickle.STOP:
                break
            if code not in _STEPS:
                what = f"instruction {code!r} has no use in a file of weights" if code else "the program ends too early"
                raise PickleError(what)
            read, step = _STEPS[code]
            step(machine, read(stream))
            if stream.tell() - start > MAX_BYTES:
                raise PickleError("the program is too long for a file of weights")
        else:
            raise PickleError("the program is too long for a file of weights")
    except PickleError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise PickleError(f"the program is damaged ({' '.join(str(error).split())[:80]})") from None
    if len(machine.stack) != 1:
        raise PickleError("the program is damaged (it does not end with one value)")
    return machine.stack[0]


class _Machine:
    def __init__(self):
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise PickleError("the program is damaged (a mark where a value belongs)")
        return value

    def pop_to_mark(self) -> list[Any]:
        for place in range(len(self.stack) - 1, -1, -1):
            if self.stack[place] is _MARK:
                values = self.stack[place + 1 :]
                del self.stack[place:]
                return values
        raise PickleError("the program is damaged (a mark is missing)")

    def top(self, kind: type) -> Any:
        value = self.stack[-1]
        if not isinstance(value, kind):
            raise PickleError(f"the program is damaged (expected {kind.__name__})")
        return value

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def name(self, module: str, name: str) -> None:
        found = Global(module, name)
        if found not in _ALLOWED:
            raise PickleError(f"it names {module}.{name}"[:120] + ", which is no tensor and no plain container; "
                              "nothing was run. Save model.state_dict() alone")  # fmt: skip
        self.stack.append(found)

    def set_items(self, values: list[Any]) -> None:
        target = self.top(dict)
        if len(values) % 2:
            raise PickleError("the program is damaged (a key without a value)")
        for key, value in zip(values[::2], values[1::2], strict=True):
            # A nested tuple as a key can take for ever to hash, a huge number for ever to print.
            if not isinstance(key, str) and not (isinstance(key, int) and abs(key) < 2**63):
                raise PickleError("a dictionary has a key that is neither text nor number")
            target[key] = value

    def call(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise PickleError("the program is damaged (a call of something that is no name)")
        self.stack.append(_build(function, arguments))

    def storage(self) -> None:
        match self.pop():
            case ("storage", Global("torch", kind), str(key), str(), int(numel), *view) if kind in _STORAGES:
                if any(part is not None for part in view) or numel < 0:
                    raise PickleError("a storage that is a view of another; save the weights again with torch.save")
                self.stack.append(Storage(key, _STORAGES[kind], numel))
            case _:
                raise PickleError("a persistent id that is no storage")

    def build(self) -> None:
        """State for the object below: torch's OrderedDict carries version numbers there, which nothing needs."""
        self.pop()
        self.top(dict)


def _build(function: Global, arguments: tuple) -> Any:
    """What a call of an allowed name stands for."""
    match function.name, arguments:
        case (
            ("_rebuild_tensor" | "_rebuild_tensor_v2"),
            (Storage() as storage, int(offset), tuple(shape), tuple(stride), *_),
        ):
            return StoredTensor(storage, offset, shape, stride)
        case "_rebuild_parameter", (StoredTensor() as tensor, *_):
            return tensor
        case "Size", (list(shape) | tuple(shape),):
            return tuple(shape)
        case "OrderedDict", ():
            return {}
        case "OrderedDict", (list(pairs),):
            machine = _Machine()
            machine.stack.append({})
            machine.set_items([item for key, value in pairs for item in (key, value)])
            return machine.pop()
    raise PickleError(f"a call of {function.module}.{function.name} with arguments that torch.save does not write")


def _push(machine: _Machine, value: Any) -> None:
    machine.stack.append(value)


def _constant(make: Callable[[], Any]) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.stack.append(make())


def _tuple(count: int) -> Callable[[_Machine, Any], None]:
    def step(machine: _Machine, _: Any) -> None:
        values = [machine.pop() for _ in range(count)]
        machine.stack.append(tuple(reversed(values)))

    return step


def _append(machine: _Machine, _: Any) -> None:
    value = machine.pop()
    machine.top(list).append(value)


def _append_all(machine: _Machine, _: Any) -> None:
    values = machine.pop_to_mark()
    machine.top(list).extend(values)


def _set_item(machine: _Machine, _: Any) -> None:
    value, key = machine.pop(), machine.pop()
    machine.set_items([key, value])


def _stack_global(machine: _Machine, _: Any) -> None:
    name, module = machine.pop(), machine.pop()
    machine.name(str(module), str(name))


def _nothing(machine: _Machine, _: Any) -> None:
    pass


def _none(stream: Any) -> None:
    return None


def _bytes(stream: Any, count: int) -> bytes:
    """Exactly that many; the stream gives fewer at its end, however many are asked for."""
    raw = stream.read(min(count, MAX_BYTES))
    if len(raw) != count:
        raise PickleError("the program ends too early")
    return raw


def _number(count: int, *, signed: bool = False) -> Callable[[Any], int]:
    return lambda stream: int.from_bytes(_bytes(stream, count), "little", signed=signed)


def _sized(count: int) -> Callable[[Any], bytes]:
    """Bytes after their length, which takes ``count`` bytes itself."""
    length = _number(count)
    return lambda stream: _bytes(stream, length(stream))


def _text(count: int, encoding: str = "utf-8") -> Callable[[Any], str]:
    raw = _sized(count)
    return lambda stream: raw(stream).decode(encoding)


def _long(count: int) -> Callable[[Any], int]:
    raw = _sized(count)
    return lambda stream: int.from_bytes(raw(stream), "little", signed=True)


def _float(stream: Any) -> float:
    return struct.unpack(">d", _bytes(stream, 8))[0]


def _two_lines(stream: Any) -> tuple[str, str]:
    first, second = stream.readline(), stream.readline()
    if not (first.endswith(b"\n") and second.endswith(b"\n")):
        raise PickleError("the program ends too early")
    return first[:-1].decode("utf-8"), second[:-1].decode("utf-8")


def _get(machine: _Machine, index: int) -> None:
    machine.stack.append(machine.memo[index])


# Instruction -> how its argument is read, and what it does.
_STEPS: dict[bytes, tuple[Callable[[Any], Any], Callable[[_Machine, Any], None]]] = {
    pickle.PROTO: (_number(1), _nothing),
    pickle.FRAME: (_number(8), _nothing),
    pickle.BININT: (_number(4, signed=True), _push),
    pickle.BININT1: (_number(1), _push),
    pickle.BININT2: (_number(2), _push),
    pickle.LONG1: (_long(1), _push),
    pickle.LONG4: (_long(4), _push),
    pickle.BINFLOAT: (_float, _push),
    pickle.BINUNICODE: (_text(4), _push),
    pickle.SHORT_BINUNICODE: (_text(1), _push),
    pickle.BINUNICODE8: (_text(8), _push),
    pickle.BINSTRING: (_text(4, "latin-1"), _push),
    pickle.SHORT_BINSTRING: (_text(1, "latin-1"), _push),
    pickle.BINBYTES: (_sized(4), _push),
    pickle.SHORT_BINBYTES: (_sized(1), _push),
    pickle.BINBYTES8: (_sized(8), _push),
    pickle.NONE: (_none, _constant(lambda: None)),
    pickle.NEWTRUE: (_none, _constant(lambda: True)),
    pickle.NEWFALSE: (_none, _constant(lambda: False)),
    pickle.EMPTY_DICT: (_none, _constant(dict)),
    pickle.EMPTY_LIST: (_none, _constant(list)),
    pickle.EMPTY_TUPLE: (_none, _constant(tuple)),
    pickle.MARK: (_none, _constant(lambda: _MARK)),
    pickle.TUPLE: (_none, lambda machine, _: _push(machine, tuple(machine.pop_to_mark()))),
    pickle.TUPLE1: (_none, _tuple(1)),
    pickle.TUPLE2: (_none, _tuple(2)),
    pickle.TUPLE3: (_none, _tuple(3)),
    pickle.APPEND: (_none, _append),
    pickle.APPENDS: (_none, _append_all),
    pickle.SETITEM: (_none, _set_item),
    pickle.SETITEMS: (_none, lambda machine, _: machine.set_items(machine.pop_to_mark())),
    pickle.BINPUT: (_number(1), _Machine.put),
    pickle.LONG_BINPUT: (_number(4), _Machine.put),
    pickle.MEMOIZE: (_none, lambda machine, _: machine.put(len(machine.memo))),
    pickle.BINGET: (_number(1), _get),
    pickle.LONG_BINGET: (_number(4), _get),
    pickle.GLOBAL: (_two_lines, lambda machine, names: machine.name(*names)),
    pickle.STACK_GLOBAL: (_none, _stack_global),
    pickle.REDUCE: (_none, lambda machine, _: machine.call()),
    pickle.BINPERSID: (_none, lambda machine, _: machine.storage()),
    pickle.BUILD: (_none, lambda machine, _: machine.build()),
}
