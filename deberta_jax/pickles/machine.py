"""Reads the pickles that ``torch.save`` writes, without importing or calling anything that they name.

A pickle is a program for a stack machine, whose instructions can import and call any Python function. This machine has
only the instructions that containers, numbers, strings and tensors need. If a program names a function, the name is
compared with a short list, and a description of the tensor is kept instead of a call. So a malicious file cannot run
code.

Nor can it use up time or memory: an instruction adds at most one object, whatever would copy many values counts as many
instructions, and their number is limited. A program may refer to one value many times, so a value may be much larger
than its program when it is printed, hashed or compared. None of this is done here to a value that is not known to be a
number or a short text; callers visit a shared container once.

Training programs store more than tensors: command-line arguments, paths, numpy scalars, settings of an optimizer. Such
an object becomes a ``Placeholder``, which keeps the name of its class and its arguments and does nothing. A call of any
other name is refused, because it may be an attack.
"""

import mmap
import pickle
import struct
from collections.abc import Callable, Mapping
from typing import Any

from deberta_jax.errors import brief
from deberta_jax.pickles import stack
from deberta_jax.pickles.stack import MARK, Machine
from deberta_jax.pickles.values import PickleError, Placeholder, Result


def run(
    data: bytes | mmap.mmap,
    start: int = 0,
    *,
    storages: Mapping[str, Any] | None = None,
    most: int | None = None,
) -> Result:
    """Runs one program.

    Args:
      data: the bytes of a file, or of a part of it.
      start: the offset of the program.
      storages: the classes of storages that tensors may have, such as ``FloatStorage``, with what ``Storage.dtype``
        has for each. None: the program may have no tensors.
      most: the largest number of instructions; None is ``stack.MAX_INSTRUCTIONS``.

    Returns:
      The value that the program builds, of dict, list, tuple, str, bytes, int, float, bool, None, StoredTensor,
      Storage, Global and Placeholder; and the end of the program.

    Raises:
      PickleError: the program is damaged or refused; the message is one line.
    """
    machine = Machine(data, start, storages or {}, stack.MAX_INSTRUCTIONS if most is None else most)
    try:
        _execute(machine)
    except PickleError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise PickleError(f"the program is damaged ({brief(error, 80)})") from None
    if len(machine.stack) != 1 or machine.stack[0] is MARK:
        raise PickleError("the program is damaged (it does not end with one value)")
    return Result(machine.stack[0], machine.position, machine.found)


def _execute(machine: Machine) -> None:
    """Executes instructions up to the one that ends the program."""
    data, steps, stop, end = machine.data, _STEPS, pickle.STOP[0], machine.end
    while True:
        position = machine.position
        if position >= end:
            whole = end == len(data)
            raise PickleError("the program ends too early" if whole else "the program is too long")
        code = data[position]
        machine.position = position + 1
        if code == stop:
            return
        step = steps[code]
        if step is None:
            raise PickleError(f"instruction {bytes([code])!r} has no use in a file of weights")
        machine.left -= 1
        if machine.left < 0:
            raise PickleError("the program is too long for a file of weights")
        step(machine)


_Step = Callable[[Machine], None]


def _nothing(machine: Machine) -> None:
    pass


def _skip(count: int) -> _Step:
    return lambda machine: _nothing(machine) if machine.take(count) else None


def _constant(make: Callable[[], Any]) -> _Step:
    return lambda machine: machine.stack.append(make())


def _number(count: int, *, signed: bool = False) -> _Step:
    def step(machine: Machine) -> None:
        start = machine.position
        machine.position = stop = start + count
        machine.stack.append(int.from_bytes(machine.data[start:stop], "little", signed=signed))

    return step


def _float(machine: Machine) -> None:
    machine.stack.append(struct.unpack(">d", machine.take(8))[0])


def _sized(count: int, make: Callable[[bytes], Any]) -> _Step:
    """Returns a step that pushes a value made of bytes that are preceded by their length in ``count`` bytes."""

    def step(machine: Machine) -> None:
        data, start = machine.data, machine.position + count
        stop = start + int.from_bytes(data[machine.position : start], "little")
        if stop > machine.end:
            raise PickleError("the program ends too early")
        machine.position = stop
        machine.stack.append(make(data[start:stop]))

    return step


def _same(raw: bytes) -> bytes:
    return raw


def _utf_8(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogatepass")


def _latin_1(raw: bytes) -> str:
    return raw.decode("latin-1")


def _signed(raw: bytes) -> int:
    return int.from_bytes(raw, "little", signed=True)


def _tuple(count: int) -> _Step:
    def step(machine: Machine) -> None:
        values = machine.stack[-count:]
        if len(values) < count or MARK in values:
            raise PickleError("the program is damaged (a mark where a value belongs)")
        machine.stack[-count:] = [tuple(values)]

    return step


def _numbered(count: int, act: Callable[[Machine, int], None]) -> _Step:
    """Returns a step that calls ``Machine.put`` or ``Machine.get`` with a number of ``count`` bytes."""

    def step(machine: Machine) -> None:
        start = machine.position
        machine.position = stop = start + count
        act(machine, int.from_bytes(machine.data[start:stop], "little"))

    return step


def _append(machine: Machine) -> None:
    value = machine.pop()
    machine.add([value], list)


def _set_item(machine: Machine) -> None:
    value, key = machine.pop(), machine.pop()
    machine.set_items([key, value])


def _global(machine: Machine) -> None:
    module, name = machine.line(), machine.line()
    machine.name(module, name)


def _stack_global(machine: Machine) -> None:
    name, module = machine.pop(), machine.pop()
    machine.name(module, name)


# What each instruction does.
_BY_CODE: dict[bytes, _Step] = {
    pickle.PROTO: _skip(1),
    pickle.FRAME: _skip(8),
    pickle.BININT: _number(4, signed=True),
    pickle.BININT1: _number(1),
    pickle.BININT2: _number(2),
    pickle.LONG1: _sized(1, _signed),
    pickle.LONG4: _sized(4, _signed),
    pickle.BINFLOAT: _float,
    pickle.BINUNICODE: _sized(4, _utf_8),
    pickle.SHORT_BINUNICODE: _sized(1, _utf_8),
    pickle.BINUNICODE8: _sized(8, _utf_8),
    pickle.BINSTRING: _sized(4, _latin_1),
    pickle.SHORT_BINSTRING: _sized(1, _latin_1),
    pickle.BINBYTES: _sized(4, _same),
    pickle.SHORT_BINBYTES: _sized(1, _same),
    pickle.BINBYTES8: _sized(8, _same),
    pickle.BYTEARRAY8: _sized(8, _same),
    pickle.NONE: _constant(lambda: None),
    pickle.NEWTRUE: _constant(lambda: True),
    pickle.NEWFALSE: _constant(lambda: False),
    pickle.EMPTY_DICT: _constant(dict),
    pickle.EMPTY_LIST: _constant(list),
    pickle.EMPTY_TUPLE: _constant(tuple),
    pickle.MARK: _constant(lambda: MARK),
    pickle.TUPLE: lambda machine: machine.stack.append(tuple(machine.pop_to_mark())),
    pickle.TUPLE1: _tuple(1),
    pickle.TUPLE2: _tuple(2),
    pickle.TUPLE3: _tuple(3),
    pickle.APPEND: _append,
    pickle.APPENDS: lambda machine: machine.add(machine.pop_to_mark(), list),
    pickle.EMPTY_SET: lambda machine: machine.stack.append(machine.placeholder(stack.SET)),
    pickle.FROZENSET: lambda machine: machine.stack.append(machine.placeholder(stack.SET, *machine.pop_to_mark())),
    pickle.ADDITEMS: lambda machine: machine.add(machine.pop_to_mark(), Placeholder),
    pickle.NEWOBJ: lambda machine: machine.instance(1),
    pickle.NEWOBJ_EX: lambda machine: machine.instance(2),
    pickle.SETITEM: _set_item,
    pickle.SETITEMS: lambda machine: machine.set_items(machine.pop_to_mark()),
    pickle.BINPUT: _numbered(1, Machine.put),
    pickle.LONG_BINPUT: _numbered(4, Machine.put),
    pickle.MEMOIZE: lambda machine: machine.put(len(machine.memo)),
    pickle.BINGET: _numbered(1, Machine.get),
    pickle.LONG_BINGET: _numbered(4, Machine.get),
    pickle.GLOBAL: _global,
    pickle.STACK_GLOBAL: _stack_global,
    pickle.REDUCE: Machine.call,
    pickle.BINPERSID: Machine.storage,
    pickle.BUILD: Machine.build,
}
_STEPS: list[_Step | None] = [_BY_CODE.get(bytes([code])) for code in range(256)]
