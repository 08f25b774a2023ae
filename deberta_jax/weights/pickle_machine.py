"""Reads the pickles that ``torch.save`` writes without running anything.

A pickle is a program for a stack machine whose instructions can import and call. This machine has no such ability:
it knows the instructions that containers, numbers, texts and tensors need, and where a program names a function it
compares the name with a short list and keeps a description of the tensor instead of calling. There is nothing in it
that a hostile file could reach, whatever it names and however deep it hides it.
"""

import pickletools
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
        for count, (opcode, argument, position) in enumerate(pickletools.genops(stream)):
            if count > MAX_INSTRUCTIONS or (position or 0) - start > MAX_BYTES:
                raise PickleError("the program is too long for a file of weights")
            step = _STEPS.get(opcode.name)
            if step is None:
                raise PickleError(f"instruction {opcode.name} has no use in a file of weights")
            step(machine, argument)
    except PickleError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, UnicodeError, OverflowError) as error:
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


def _set_item(machine: _Machine, _: Any) -> None:
    value, key = machine.pop(), machine.pop()
    machine.set_items([key, value])


def _stack_global(machine: _Machine, _: Any) -> None:
    name, module = machine.pop(), machine.pop()
    machine.name(str(module), str(name))


def _nothing(machine: _Machine, _: Any) -> None:
    pass


_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), _nothing),
    **dict.fromkeys(
        ("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
         "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"), _push,
    ),
    "NONE": _constant(lambda: None),
    "NEWTRUE": _constant(lambda: True),
    "NEWFALSE": _constant(lambda: False),
    "EMPTY_DICT": _constant(dict),
    "EMPTY_LIST": _constant(list),
    "EMPTY_TUPLE": _constant(tuple),
    "MARK": _constant(lambda: _MARK),
    "TUPLE": lambda machine, _: _push(machine, tuple(machine.pop_to_mark())),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "APPEND": _append,
    "APPENDS": lambda machine, _: (lambda values: machine.top(list).extend(values))(machine.pop_to_mark()),
    "SETITEM": _set_item,
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_to_mark()),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Machine.put),
    "MEMOIZE": lambda machine, _: machine.put(len(machine.memo)),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda machine, index: _push(machine, machine.memo[index])),
    "GLOBAL": lambda machine, argument: machine.name(*argument.split(" ", 1)),
    "STACK_GLOBAL": _stack_global,
    "REDUCE": lambda machine, _: machine.call(),
    "BINPERSID": lambda machine, _: machine.storage(),
    "BUILD": lambda machine, _: machine.build(),
}  # fmt: skip
