"""Implements what the instructions of a pickle do to its stack and memo, within limits."""

import mmap
from collections.abc import Mapping
from typing import Any

from deberta_jax.errors import brief
from deberta_jax.pickles.names import TENSORS, Global, is_harmless
from deberta_jax.pickles.values import PickleError, Placeholder, Storage, StoredTensor

MAX_BYTES = 64 << 20
"""Largest size of a program. That of the 48-layer model has 100 kB."""

MAX_INSTRUCTIONS = 2_000_000
"""Largest number of instructions of a program."""

# What is slow to make, or is visited by Python's garbage collector again and again, counts as several instructions.
_PLACEHOLDER_COST = 4
_NAME_COST = 4
_LONGEST_NAME = 1000
_LONGEST_KEY = 10_000
_MOST_NUMBERS_AS_KEYS = 20_000
_MOST_AXES = 64


class _Mark:
    """Marks a place on the stack."""


MARK = _Mark()
_UNSET = object()
SET, _TUPLE = Global("builtins", "set"), Global("builtins", "tuple")


class Machine:
    """Holds the stack and the memo of a program, its position, and how many instructions are left to it."""

    def __init__(self, data: bytes | mmap.mmap, start: int, storages: Mapping[str, Any], most: int):
        self.data, self.position = data, start
        self.end = min(len(data), start + MAX_BYTES)
        self.storages = storages
        self.found: list[Storage] = []
        self.left = most
        self.numbers_as_keys = 0
        self.stack: list[Any] = []
        # A list, because a program could choose the keys of a dict so that each look-up visits all of them.
        self.memo: list[Any] = []

    def spend(self, count: int) -> None:
        """Counts a step that copies ``count`` values as so many instructions."""
        self.left -= count
        if self.left < 0:
            raise PickleError("the program copies too many values for a file of weights")

    def take(self, count: int) -> bytes:
        """Returns the next ``count`` bytes of the program."""
        start = self.position
        if count > self.end - start:
            raise PickleError("the program ends too early")
        self.position = start + count
        return self.data[start : self.position]

    def line(self) -> str:
        """Returns the next line of the program, which is a name."""
        stop = self.data.find(b"\n", self.position, min(self.end, self.position + _LONGEST_NAME + 1))
        if stop < 0:
            raise PickleError("the program is damaged (a name without an end)")
        raw = self.take(stop - self.position)
        self.position += 1
        return raw.decode("utf-8")

    def pop(self) -> Any:
        """Removes and returns the top of the stack, which must be a value."""
        value = self.stack.pop()
        if value is MARK:
            raise PickleError("the program is damaged (a mark where a value belongs)")
        return value

    def pop_to_mark(self) -> list[Any]:
        """Removes the values above the last mark, and the mark, and returns the values."""
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is MARK:
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
        """Stores the top of the stack in the memo. A program numbers the entries of its memo one after another."""
        value, memo = self.stack[-1], self.memo
        if index == len(memo) and value is not MARK:
            memo.append(value)
            return
        if value is MARK or index > MAX_INSTRUCTIONS:
            raise PickleError("the program is damaged (an entry of its memo that cannot be)")
        memo += [_UNSET] * (index + 1 - len(memo))
        memo[index] = value

    def get(self, index: int) -> None:
        """Pushes an entry of the memo."""
        value = self.memo[index] if index < len(self.memo) else _UNSET
        if value is _UNSET:
            raise PickleError("the program is damaged (an entry of its memo is missing)")
        self.stack.append(value)

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
        for index in range(0, len(values), 2):
            target[self.key(values[index])] = values[index + 1]

    def key(self, key: Any) -> Any:
        """Returns a value that can be a dictionary key.

        Any but short texts and numbers become placeholders: hashing a nested tuple, comparing long texts, or printing a
        huge number may take forever. So may a look-up if the file chooses the hashes, as it can with many numbers.
        """
        if isinstance(key, (str, bytes)):
            return key if len(key) <= _LONGEST_KEY else self.placeholder(Global("builtins", type(key).__name__), key)
        if key is None or isinstance(key, (int, float)):
            self.numbers_as_keys += 1
            small = not isinstance(key, int) or -(2**63) < key < 2**63
            if small and self.numbers_as_keys <= _MOST_NUMBERS_AS_KEYS:
                return key
            return self.placeholder(Global("builtins", type(key).__name__), key)
        if isinstance(key, tuple):
            return self.placeholder(_TUPLE, key)
        if isinstance(key, Placeholder):
            return key
        raise PickleError("a dictionary has a key that is neither text nor number")

    def placeholder(self, kind: Global, *parts: Any) -> Placeholder:
        """Returns a new placeholder."""
        self.spend(_PLACEHOLDER_COST)
        return Placeholder(kind, *parts)

    def name(self, module: Any, name: Any) -> None:
        """Pushes the name of a function or class."""
        parts = (module, name)
        if not all(isinstance(part, str) and len(part) <= _LONGEST_NAME for part in parts):
            raise PickleError("the program is damaged (a name that is no short text)")
        self.spend(_NAME_COST)
        self.stack.append(Global(module, name))

    def call(self) -> None:
        """Replaces a name and its arguments by the description of what the call makes."""
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise PickleError("the program is damaged (a call of something that is no name)")
        if function in TENSORS:
            self.stack.append(self.made(function, arguments))
        elif is_harmless(function):
            self.stack.append(self.placeholder(function, arguments))
        else:
            raise PickleError(
                f"it names {brief(f'{function.module}.{function.name}', 100)} to be called, which makes no tensor and "
                "no plain container; nothing was run. Save tensors and plain containers alone"
            )

    def made(self, function: Global, arguments: tuple) -> Any:
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
                return self.made(inner, inner_arguments)
            case "Size", (list(shape) | tuple(shape),) if len(shape) <= _MOST_AXES:
                return tuple(shape)
            case "OrderedDict", ():
                return {}
            case "OrderedDict", (list(pairs),):
                self.spend(len(pairs))
                self.stack.append({})
                for pair in pairs:
                    if not isinstance(pair, list | tuple) or len(pair) != 2:
                        raise PickleError("the program is damaged (a key without a value)")
                    self.set_items([*pair])
                return self.pop()
        raise PickleError(f"a call of {function.module}.{function.name} with arguments that torch.save does not write")

    def instance(self, values: int) -> None:
        """Pushes a placeholder for an instance of any class, which is never built; ``values`` counts its arguments."""
        parts = [self.pop() for _ in range(values)]
        kind = self.pop()
        if not isinstance(kind, Global):
            raise PickleError("the program is damaged (an instance of something that is no name)")
        self.stack.append(self.placeholder(kind, *parts))

    def storage(self) -> None:
        """Replaces a persistent id by the storage that it describes."""
        match self.pop():
            case ("storage", Global("torch", kind), str(key), str(), int(numel), *view) if (
                kind in self.storages and len(key) <= _LONGEST_NAME
            ):
                if any(part is not None for part in view) or not 0 <= numel < 2**48:
                    raise PickleError("a storage that is a view of another; save the weights again with torch.save")
                self.found.append(Storage(key, self.storages[kind], numel))
                self.stack.append(self.found[-1])
            case _:
                raise PickleError("a persistent id that is no storage")

    def build(self) -> None:
        """Adds a state to a placeholder. The state of an OrderedDict is ignored: torch keeps version numbers there."""
        state = self.pop()
        target = self.top((dict, Placeholder))
        if isinstance(target, Placeholder):
            target.parts.append(state)
