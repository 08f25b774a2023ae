"""Parses the text of a compiled program (XLA's optimized HLO), and finds how often each instruction runs."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

# Bits of an element by dtype.
_BITS = {
    "pred": 8,
    "s4": 4,
    "u4": 4,
    "s8": 8,
    "u8": 8,
    "s16": 16,
    "u16": 16,
    "s32": 32,
    "u32": 32,
    "s64": 64,
    "u64": 64,
    "f8e4m3fn": 8,
    "f8e5m2": 8,
    "bf16": 16,
    "f16": 16,
    "f32": 32,
    "f64": 64,
    "c64": 64,
    "c128": 128,
    "s1": 1,
    "u1": 1,
}


@dataclasses.dataclass(frozen=True)
class Array:
    """Describes one array of a result; ``space`` 0 is the main memory, others are on the chip."""

    dtype: str
    dims: tuple[int, ...]
    space: int = 0

    @property
    def bytes(self) -> int:
        """Returns the size in bytes."""
        return math.prod(self.dims) * _BITS.get(self.dtype, 0) // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """Holds one instruction.

    Attributes:
      arrays: its results.
      operands: names of instructions in the same computation.
      inside: the text between its brackets.
      rest: the text behind them, attributes and metadata.
      root: whether it is the computation's result.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    inside: str
    rest: str
    root: bool

    def attribute(self, name: str) -> str:
        """Returns the computation that an attribute such as ``calls`` names; "" if there is none."""
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.rest)
        return found[1] if found else ""

    @property
    def op_name(self) -> str:
        """Returns the path in the model's code that it comes from."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""

    @property
    def bytes(self) -> int:
        """Returns the bytes of all its results."""
        return sum(a.bytes for a in self.arrays)

    @property
    def main_bytes(self) -> int:
        """Returns the bytes of its results in main memory."""
        return sum(a.bytes for a in self.arrays if a.space == 0)


@dataclasses.dataclass(frozen=True)
class Computation:
    """Holds the instructions of one computation."""

    name: str
    instructions: tuple[Instruction, ...]

    @functools.cached_property
    def by_name(self) -> dict[str, Instruction]:
        """Returns the instructions by name."""
        return {i.name: i for i in self.instructions}

    @functools.cached_property
    def root(self) -> Instruction:
        """Returns the instruction that is the computation's result."""
        return next((i for i in self.instructions if i.root), self.instructions[-1])


@dataclasses.dataclass(frozen=True)
class HloProgram:
    """Holds all computations by name, and the name of the entry computation."""

    computations: dict[str, Computation]
    entry: str

    def executed(self) -> Iterator[tuple[Computation, Instruction, float]]:
        """Yields every instruction that control flow reaches, with its computation and how often it runs.

        Of a conditional the branch with the largest results counts. For the instructions in a fusion see ``inside``.
        """
        yield from self._walk(self.entry, 1.0)

    def _walk(self, name: str, times: float) -> Iterator[tuple[Computation, Instruction, float]]:
        computation = self.computations[name]
        for i in computation.instructions:
            if i.opcode == "while":
                yield from self._walk(i.attribute("body"), times * self.trips(computation, i))
            elif i.opcode == "conditional":
                yield from self._walk(max(self._branches(i), key=self._weight), times)
            elif i.opcode == "call":
                yield from self._walk(i.attribute("to_apply") or i.attribute("calls"), times)
            elif i.opcode == "async-start":
                yield from self._walk(i.attribute("calls"), times)
            else:
                yield computation, i, times

    def _branches(self, conditional: Instruction) -> list[str]:
        several = re.search(r"branch_computations=\{([^}]*)\}", conditional.rest)
        if several:
            return re.findall(r"[\w.\-]+", several[1])
        return [conditional.attribute("true_computation"), conditional.attribute("false_computation")]

    def _weight(self, name: str) -> int:
        return sum(i.bytes for i in self.computations[name].instructions)

    def inside(self, instruction: Instruction) -> Iterator[tuple[Computation, Instruction]]:
        """Yields the instructions of a fusion and of the fusions in it; none for another instruction."""
        called = self.computations.get(instruction.attribute("calls"))
        if called is None or instruction.opcode != "fusion":
            return
        for i in called.instructions:
            yield called, i
            yield from self.inside(i)

    def trips(self, computation: Computation, loop: Instruction) -> int:
        """Returns how often a loop's body runs.

        The number is that of the compiler, else it follows from the constant that the loop's counter is compared with,
        the counter's start and its step: loops over a ring that send in both directions at once take steps of two.

        Raises:
          ValueError: neither can be found.
        """
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest)
        if known:
            return int(known[1])
        condition = self.computations[loop.attribute("condition")]
        for compare in (*condition.instructions, *(i for c in condition.instructions for _, i in self.inside(c))):
            if compare.opcode == "compare":
                limit = self._limit(computation, loop, condition, "direction=LE" in compare.rest)
                start, step = self._counter(computation, loop, condition)
                return -(-(limit - start) // step)
        raise ValueError(f"{loop.name}: the number of trips is not known")

    def _limit(self, computation: Computation, loop: Instruction, condition: Computation, inclusive: bool) -> int:
        constants = [int(i.inside) for i in condition.instructions if _is_count(i)]
        if not constants:  # the limit is carried by the loop
            carried = computation.by_name[loop.operands[0]]
            given = [computation.by_name.get(name) for name in carried.operands]
            read = [int(m[1]) for i in condition.instructions if (m := re.search(r"index=(\d+)", i.rest))]
            constants = [int(g.inside) for k in read if (g := given[k]) is not None and _is_count(g)]
        if not constants:
            raise ValueError(f"{loop.name}: the number of trips is not known")
        return max(constants) + inclusive

    def _counter(self, computation: Computation, loop: Instruction, condition: Computation) -> tuple[int, int]:
        """Returns the start and the step of a loop's counter; 0 and 1 where they cannot be found."""
        body, carried = self.computations[loop.attribute("body")], computation.by_name[loop.operands[0]]
        if body.root.opcode != "tuple" or carried.opcode != "tuple":
            return 0, 1
        for k in (int(m[1]) for i in condition.instructions if (m := re.search(r"index=(\d+)", i.rest))):
            step = self._step(body, body.by_name[body.root.operands[k]])
            if step:
                start = computation.by_name.get(carried.operands[k])
                return int(start.inside) if start is not None and _is_count(start) else 0, step
        return 0, 1

    def _step(self, body: Computation, grown: Instruction) -> int:
        """Returns the constant that is added to the counter, here or in a fusion; 0 where there is none."""
        while grown.opcode in ("copy", "bitcast"):
            grown = body.by_name[grown.operands[0]]
        for owner, i in ((body, grown), *self.inside(grown)):
            for name in i.operands if i.opcode == "add" else ():
                given = owner.by_name.get(name)
                if given is not None and given.opcode == "parameter" and owner is not body:
                    given = body.by_name.get(grown.operands[int(given.inside)])
                if given is not None and _is_count(given):
                    return int(given.inside)
        return 0


def _is_count(i: Instruction) -> bool:
    return i.opcode == "constant" and re.fullmatch(r"\d+", i.inside) is not None


def parse_hlo(text: str) -> HloProgram:
    """Returns the program of an HLO text. Raises ValueError for another text."""
    computations: dict[str, Computation] = {}
    entry, name, lines = "", "", []
    for line in text.splitlines():
        if not line.startswith(" "):
            header = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
            if header:
                name, lines = header[2], []
                entry = name if header[1] else entry
            elif line.startswith("}"):
                computations[name] = Computation(name, tuple(lines))
        elif name and (instruction := _instruction(line)) is not None:
            lines.append(instruction)
    if not entry:
        raise ValueError("no entry computation: this is not the text of a compiled program")
    return HloProgram(computations, entry)


def _instruction(line: str) -> Instruction | None:
    head = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if head is None:
        return None
    start = head.end()
    end = _closing(line, start) if line[start] == "(" else line.index(" ", start)
    opcode = re.match(r"\s*([\w\-]+)\(", line[end:])
    if opcode is None:
        return None
    opened = end + opcode.end() - 1
    closed = _closing(line, opened)
    inside = line[opened + 1 : closed - 1]
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    rest = line[closed:]
    return Instruction(head[2], opcode[1], _arrays(line[start:end]), operands, inside, rest, head[1] is not None)


def _closing(line: str, start: int) -> int:
    """Returns the index behind the bracket that closes the one at ``start``."""
    depth = 0
    for at in range(start, len(line)):
        depth += (line[at] == "(") - (line[at] == ")")
        if depth == 0:
            return at + 1
    return len(line)


def _arrays(text: str) -> tuple[Array, ...]:
    found = []
    for dtype, dims, layout in re.findall(r"\b([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?", text):
        space = re.search(r"S\((\d+)\)", layout)
        sizes = tuple(int(n.lstrip("<=")) for n in dims.split(",") if n)
        found.append(Array(dtype, sizes, int(space[1]) if space else 0))
    return tuple(found)
