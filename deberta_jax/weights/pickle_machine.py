"""Reads the pickles that ``torch.save`` writes, without importing or calling anything that they name.

A pickle is a program for a stack machine, whose instructions can import and call any Python function. This machine has
only the instructions that containers, numbers, strings and tensors need. If a program names a function, the name is
compared with a short list, and a description of the tensor is kept instead of a call. So a malicious file cannot run
code.

Training programs store more than tensors: command-line arguments, paths, numpy scalars, settings of an optimizer. Such
an object becomes a ``Placeholder``, which keeps the name of its class and its arguments and does nothing. A call of any
other name is refused, because it may be an attack.
"""

import pickle
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from deberta_jax.errors import brief
from deberta_jax.weights.pickle_names import STORAGES, TENSORS, Global, is_harmless

MAX_BYTES = 64 << 20
"""Largest size of a program. That of the 48-layer model has 100 kB."""

MAX_INSTRUCTIONS = 2_000_000
"""Largest number of instructions of a program."""


class PickleError(ValueError):
    """Signals a program that is damaged, or that does more than build tensors and plain containers."""


class Storage(NamedTuple):
    """Describes a flat array of numbers that is stored outside the program, under ``key``."""

    key: str
    dtype: np.dtype
    numel: int


class StoredTensor(NamedTuple):
    """Describes a tensor as a view of a storage; strides and offset count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Placeholder:
    """Stands for an object that is not built. ``parts`` holds its arguments, state and items, which may be tensors."""

    __slots__ = ("kind", "parts")

    def __init__(self, kind: Global, *parts: Any):
        self.kind = kind
        self.parts: list[Any] = list(parts)

    def __repr__(self) -> str:
        return f"Placeholder({self.kind.module}.{self.kind.name})"


_MARK = object()
_SET = Global("builtins", "set")


def run(stream: Any) -> Any:
    """Runs one program from the stream's position, and leaves the stream directly after it.

    Args:
      stream: a binary stream with ``read``, ``readline`` and ``tell``. ``read`` may return fewer bytes at the end.

    Returns:
      The value that the program builds, of dict, list, tuple, str, bytes, int, float, bool, None, StoredTensor,
      Storage, Global and Placeholder.

    Raises:
      PickleError: the program is damaged or refused; the message is one line.
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
        raise PickleError(f"the program is damaged ({brief(error, 80)})") from None
    if len(machine.stack) != 1:
        raise PickleError("the program is damaged (it does not end with one value)")
    return machine.stack[0]


class _Machine:
    """Holds the stack and the memo of a program, and implements its instructions."""

    def __init__(self):
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def pop(self) -> Any:
        """Removes and returns the top of the stack, which must be a value."""
        value = self.stack.pop()
        if value is _MARK:
            raise PickleError("the program is damaged (a mark where a value belongs)")
        return value

    def pop_to_mark(self) -> list[Any]:
        """Removes the values above the last mark, and the mark, and returns the values."""
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is _MARK:
                values = self.stack[index + 1 :]
                del self.stack[index:]
                return values
        raise PickleError("the program is damaged (a mark is missing)")

    def top(self, kinds: tuple[type, ...]) -> Any:
        """Returns the top of the stack, which must have one of these types."""
        value = self.stack[-1]
        if not isinstance(value, kinds):
            raise PickleError(f"the program is damaged (expected {kinds[0].__name__})")
        return value

    def put(self, index: int) -> None:
        """Stores the top of the stack in the memo."""
        self.memo[index] = self.stack[-1]

    def add(self, values: list[Any], kind: type) -> None:
        """Adds values to the list or set on top of the stack."""
        target = self.top((kind, Placeholder))
        (target.parts if isinstance(target, Placeholder) else target).extend(values)

    def set_items(self, values: list[Any]) -> None:
        """Adds alternating keys and values to the dict on top of the stack."""
        target = self.top((dict, Placeholder))
        if len(values) % 2:
            raise PickleError("the program is damaged (a key without a value)")
        if isinstance(target, Placeholder):
            target.parts.extend(values)
            return
        for key, value in zip(values[::2], values[1::2], strict=True):
            target[_key(key)] = value

    def call(self) -> None:
        """Replaces a name and its arguments by the description of what the call makes."""
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise PickleError("the program is damaged (a call of something that is no name)")
        if function in TENSORS:
            self.stack.append(_build(function, arguments))
        elif is_harmless(function):
            self.stack.append(Placeholder(function, arguments))
        else:
            raise PickleError(
                f"it names {brief(f'{function.module}.{function.name}', 100)} to be called, which makes no tensor and "
                "no plain container; nothing was run. Save model.state_dict() alone"
            )

    def instance(self, values: int) -> None:
        """Pushes a placeholder for an instance of any class, which is never built; ``values`` counts its arguments."""
        parts = [self.pop() for _ in range(values)]
        kind = self.pop()
        if not isinstance(kind, Global):
            raise PickleError("the program is damaged (an instance of something that is no name)")
        self.stack.append(Placeholder(kind, *parts))

    def storage(self) -> None:
        """Replaces a persistent id by the storage that it describes."""
        match self.pop():
            case ("storage", Global("torch", kind), str(key), str(), int(numel), *view) if kind in STORAGES:
                if any(part is not None for part in view) or numel < 0:
                    raise PickleError("a storage that is a view of another; save the weights again with torch.save")
                self.stack.append(Storage(key, STORAGES[kind], numel))
            case _:
                raise PickleError("a persistent id that is no storage")

    def build(self) -> None:
        """Adds a state to a placeholder. The state of an OrderedDict is ignored: torch keeps version numbers there."""
        state = self.pop()
        target = self.top((dict, Placeholder))
        if isinstance(target, Placeholder):
            target.parts.append(state)


def _key(key: Any) -> Any:
    """Returns a value that can be a dictionary key.

    A tuple becomes a placeholder, because hashing a nested one may take forever; a huge number is refused, because
    printing it may.
    """
    if isinstance(key, str | bytes | float | Placeholder | None) or (isinstance(key, int) and abs(key) < 2**63):
        return key
    if isinstance(key, tuple):
        return Placeholder(Global("builtins", "tuple"), *key)
    raise PickleError("a dictionary has a key that is neither text nor number")


def _build(function: Global, arguments: tuple) -> Any:
    """Returns the tensor or container that a call of an allowed name makes."""
    match function.name, arguments:
        case (
            ("_rebuild_tensor" | "_rebuild_tensor_v2"),
            (Storage() as storage, int(offset), tuple(shape), tuple(stride), *_),
        ):
            return StoredTensor(storage, offset, shape, stride)
        case (("_rebuild_parameter" | "_rebuild_parameter_with_state"), (StoredTensor() as tensor, *_)):
            return tensor
        # A tensor with attributes: the function that makes it, its class, the function's arguments, the attributes.
        case "_rebuild_from_type_v2", (Global() as inner, Global(), tuple(inner_arguments), _) if (
            inner in TENSORS and inner != function
        ):
            return _build(inner, inner_arguments)
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
    machine.add([value], list)


def _append_all(machine: _Machine, _: Any) -> None:
    machine.add(machine.pop_to_mark(), list)


def _set_item(machine: _Machine, _: Any) -> None:
    value, key = machine.pop(), machine.pop()
    machine.set_items([key, value])


def _stack_global(machine: _Machine, _: Any) -> None:
    name, module = machine.pop(), machine.pop()
    machine.stack.append(Global(str(module), str(name)))


def _nothing(machine: _Machine, _: Any) -> None:
    pass


def _none(stream: Any) -> None:
    return None


def _bytes(stream: Any, count: int) -> bytes:
    """Reads exactly ``count`` bytes. Raises PickleError if the stream ends before."""
    raw = stream.read(min(count, MAX_BYTES))
    if len(raw) != count:
        raise PickleError("the program ends too early")
    return raw


def _number(count: int, *, signed: bool = False) -> Callable[[Any], int]:
    return lambda stream: int.from_bytes(_bytes(stream, count), "little", signed=signed)


def _sized(count: int) -> Callable[[Any], bytes]:
    """Returns a reader of bytes that are preceded by their length in ``count`` bytes."""
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


# Instruction -> (function that reads its argument from the stream, function that executes it).
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
    pickle.BYTEARRAY8: (_sized(8), _push),
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
    pickle.EMPTY_SET: (_none, _constant(lambda: Placeholder(_SET))),
    pickle.FROZENSET: (_none, lambda machine, _: _push(machine, Placeholder(_SET, *machine.pop_to_mark()))),
    pickle.ADDITEMS: (_none, lambda machine, _: machine.add(machine.pop_to_mark(), Placeholder)),
    pickle.NEWOBJ: (_none, lambda machine, _: machine.instance(1)),
    pickle.NEWOBJ_EX: (_none, lambda machine, _: machine.instance(2)),
    pickle.SETITEM: (_none, _set_item),
    pickle.SETITEMS: (_none, lambda machine, _: machine.set_items(machine.pop_to_mark())),
    pickle.BINPUT: (_number(1), _Machine.put),
    pickle.LONG_BINPUT: (_number(4), _Machine.put),
    pickle.MEMOIZE: (_none, lambda machine, _: machine.put(len(machine.memo))),
    pickle.BINGET: (_number(1), _get),
    pickle.LONG_BINGET: (_number(4), _get),
    pickle.GLOBAL: (_two_lines, lambda machine, names: _push(machine, Global(*names))),
    pickle.STACK_GLOBAL: (_none, _stack_global),
    pickle.REDUCE: (_none, lambda machine, _: machine.call()),
    pickle.BINPERSID: (_none, lambda machine, _: machine.storage()),
    pickle.BUILD: (_none, lambda machine, _: machine.build()),
}
