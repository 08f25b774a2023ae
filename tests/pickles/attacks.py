"""Pickles that take up time or memory: each is a file far smaller than what a careless reader makes of it."""

import pickle
from collections.abc import Callable

SIZE = b"ctorch\nSize\n"
ORDERED = b"ccollections\nOrderedDict\n"
NAMESPACE = b"cargparse\nNamespace\n"
START = b"\x80\x02"


def get(index: int) -> bytes:
    return pickle.LONG_BINGET + index.to_bytes(4, "little")


def put(index: int) -> bytes:
    return pickle.LONG_BINPUT + index.to_bytes(4, "little")


def text(value: str) -> bytes:
    raw = value.encode()
    return pickle.BINUNICODE + len(raw).to_bytes(4, "little") + raw


def number(value: int) -> bytes:
    return pickle.BININT + value.to_bytes(4, "little", signed=True)


def long(size: int) -> bytes:
    """An integer of ``size`` bytes."""
    return pickle.LONG4 + size.to_bytes(4, "little") + b"\x7f" * size


def program(value: bytes) -> bytes:
    return START + value + pickle.STOP


def mapping(*items: bytes) -> bytes:
    """A dictionary, given its keys and values by turns."""
    return pickle.EMPTY_DICT + pickle.MARK + b"".join(items) + pickle.SETITEMS


def shared(levels: int = 60, first: int = 0) -> bytes:
    """A tuple of a tuple twice, and so on: it has 2 ** ``levels`` parts when it is printed, hashed or compared."""
    return pickle.EMPTY_TUPLE + b"".join(put(i) + get(i) + pickle.TUPLE2 for i in range(first, first + levels))


def shared_lists(levels: int = 60) -> bytes:
    """The same of lists, which JSON has too."""
    out = b"".join(b"]" + get(i) + b"a" + get(i) + b"a" + put(i + 1) for i in range(levels))
    return b"(]" + put(0) + out + b"t"


def tensor(key: bytes = b"", shape: bytes = b")", numel: bytes = b"K\1") -> bytes:
    """A tensor of one float of the storage ``0``."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + (key or text("0")) + text("cpu") + numel + b"tQ"
    arguments = storage + number(0) + shape + shape + pickle.NEWFALSE + ORDERED + b")R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def state(*items: bytes) -> bytes:
    """A state dict of a tensor and of other items, keys and values by turns."""
    return program(mapping(text("deberta.embeddings.LayerNorm.bias"), tensor(), *items))


def copies(call: bytes, count: int = 300_000, length: int = 10_000) -> bytes:
    """Copies one list ``count`` times: 24 GB of a few megabytes."""
    items = text("x") + put(2) + b"]" + put(0) + b"(" + (get(2) + b"N\x86") * length + b"e"
    one = get(1) + get(0) + pickle.TUPLE1 + pickle.REDUCE + b"a"
    return program(b"(" + call + put(1) + items + b"]" + one * count + b"t")


def visited(slots: int) -> list[int]:
    """Half the slots of a dict's table, in the order in which Python looks for a number that is a multiple of it."""
    out, slot = [], 0
    for _ in range(slots // 2):
        slot = (5 * slot + 1) % slots
        out.append(slot)
    return [slot for slot in dict.fromkeys(out) if slot]


def colliding_keys(slots: int = 1 << 19, looks: int = 450_000) -> bytes:
    """A dict in which each look-up of one key visits all others, 100 billion times in all."""
    filled = b"".join(number(slot) + b"N" for slot in visited(slots))
    return program(b"}(" + filled + b"u(" + (number(slots) + b"N") * looks + b"u")


def colliding_memo(slots: int = 1 << 19, looks: int = 1_000_000) -> bytes:
    """The same in the memo of a program."""
    filled = b"".join(put(slot) for slot in visited(slots))
    return program(b"(N" + filled + put(slots) + get(slots) * looks + b"t")


def equal_keys(size: int = 20_000_000, looks: int = 600_000) -> bytes:
    """A long text is set again and again in one dict, by a text that is equal but not the same."""
    texts = text("x" * size) + put(0) + text("x" * size) + put(1)
    return program(b"(" + texts + b"}(" + get(0) + b"N" + (get(1) + b"N") * looks + b"ut")


def many_models(count: int = 150_000) -> bytes:
    """Dictionaries that all have a tensor under a long name with many dots."""
    inner = b"".join(text(f"{i}") + b"}" + get(0) + get(1) + b"s" for i in range(count))
    return program(mapping(text("a." * 150 + "x") + put(0), tensor() + put(1), inner))


def names_of_one(count: int = 600_000) -> bytes:
    return state(text("n"), tensor() + put(0), *(text(f"n{i}") + get(0) for i in range(count)))


def vocabulary(encoder: bytes = b"}", pairs: bytes = b"]", entries: bytes = b"]", more: bytes = b"N") -> bytes:
    """What Microsoft's bpe_encoder.bin holds, after something else."""
    items = text("encoder"), encoder, text("vocab"), pairs, text("dict_map"), entries
    return program(mapping(text("more"), more, *items))


_LONG_SHAPE = b"(" + b"".join(number(2**31 - 1) for _ in range(4)) + b"K\0t"

# A config inside the file is read if there is none beside it.
CONFIGS: dict[str, Callable[[], bytes]] = {
    "a shared tuple in the config": lambda: state(text("config"), mapping(text("x"), shared())),
    "shared lists in the config": lambda: state(
        text("config"), mapping(text("model_type"), text("deberta-v2"), text("x"), shared_lists())
    ),
    "shared lists as a field of the config": lambda: state(text("config"), mapping(text("model_type"), shared_lists())),
    "an integer of 50 MB in the config": lambda: state(
        text("config"), mapping(text("model_type"), text("deberta-v2"), text("hidden_size"), long(50_000_000))
    ),
}

WEIGHTS: dict[str, Callable[[], bytes]] = {
    "a shared tuple as the module of a name": lambda: program(shared() + text("x") + b"\x93"),
    "a shared tuple as a name": lambda: program(text("x") + shared() + b"\x93"),
    "a shared tuple as a key": lambda: program(mapping(shared(), b"N")),
    "a shared tuple as a persistent id": lambda: program(shared() + b"Q"),
    "a shared tuple as a storage": lambda: program(b"(" + text("storage") + shared() + text("0") * 3 + b"tQ"),
    "a shared tuple as the arguments of a call": lambda: program(SIZE + shared() + b"R"),
    "a shared tuple as the function of a call": lambda: program(shared() + b")R"),
    "a shared tuple as a shape": lambda: state(text("x"), tensor(shape=shared())),
    "a shared tuple as a number of elements": lambda: state(text("x"), tensor(numel=shared())),
    "a shared tuple as the whole file": lambda: program(shared()),
    "a shared tuple beside the tensors": lambda: state(text("x"), shared()),
    "a list copied by torch.Size": lambda: copies(SIZE),
    "a list copied by OrderedDict": lambda: copies(ORDERED),
    "an integer of 50 MB as a key": lambda: program(mapping(long(50_000_000), b"N")),
    "an integer of 50 MB as a number of elements": lambda: state(text("x"), tensor(numel=long(50_000_000))),
    "an integer of 50 MB as the whole file": lambda: program(long(50_000_000)),
    "bytes of 2**63": lambda: program(pickle.BINBYTES8 + (2**63).to_bytes(8, "little")),
    "a text of 2**40": lambda: program(pickle.BINUNICODE8 + (2**40).to_bytes(8, "little")),
    "a memo of 2**32 entries": lambda: program(b"}" + put(2**32 - 1)),
    "look-ups in a memo of chosen numbers": colliding_memo,
    "look-ups in a dict of chosen numbers": colliding_keys,
    "look-ups of a long text": equal_keys,
    "objects nested 300,000 deep": lambda: program(
        NAMESPACE + put(0) + get(0) * 299_999 + b"N" + pickle.NEWOBJ * 300_000
    ),
    "an empty tensor of a huge shape": lambda: state(text("x"), tensor(shape=_LONG_SHAPE)),
    "a key of a storage of 30 MB": lambda: state(text("x"), tensor(key=text("x" * 30_000_000))),
}

# As many instructions as a program may have.
LARGE: dict[str, Callable[[], bytes]] = {
    "a text of four bytes a letter": lambda: state(text("x"), text("\U0001f600" + "x" * 60_000_000)),
    "tuples nested 1,900,000 deep": lambda: program(b")" + pickle.TUPLE1 * 1_900_000),
    "lists nested 600,000 deep": lambda: program(b"](" * 600_000 + b"N" + b"e" * 600_000),
    "dicts nested 600,000 deep": lambda: program(b"}U\0" * 600_000 + b"N" + b"s" * 600_000),
    "only empty lists": lambda: program(b"(" + b"]" * 1_900_000 + b"t"),
    "only empty dicts": lambda: program(b"(" + b"}" * 1_900_000 + b"t"),
    "only sets": lambda: program(b"(" + pickle.EMPTY_SET * 390_000 + b"t"),
    "only names": lambda: program(b"(" + b"cx\ny\n" * 390_000 + b"t"),
    "only small texts": lambda: program(b"(" + b"\x8c\2ab" * 1_900_000 + b"t"),
    "only dicts of one item": lambda: program(b"(" + b"}U\0Ns" * 490_000 + b"t"),
    "many dictionaries of a tensor under a long name": many_models,
    "600,000 names of one tensor": names_of_one,
}

VOCABULARIES: dict[str, Callable[[], bytes]] = {
    "a shared tuple as the name of a class": lambda: vocabulary(shared() + text("x") + b"\x93"),
    "a shared tuple as a piece": lambda: vocabulary(mapping(shared(), number(1))),
    "a shared tuple as an id": lambda: vocabulary(mapping(text("x"), shared())),
    "a shared tuple as a pair": lambda: vocabulary(pairs=b"]" + shared() + b"a"),
    "a shared tuple as an entry": lambda: vocabulary(entries=b"]" + shared() + b"a"),
    "an integer of 50 MB as an id": lambda: vocabulary(mapping(text("x"), long(50_000_000))),
    "a piece of 20 MB in many pairs": lambda: vocabulary(
        pairs=b"](" + (get(0) + get(0) + b"\x86") * 400_000 + b"e", more=text("x" * 20_000_000) + put(0)
    ),
    "look-ups in a dict of chosen numbers": colliding_keys,
    "a list copied by OrderedDict": lambda: copies(ORDERED),
    "objects nested 300,000 deep": WEIGHTS["objects nested 300,000 deep"],
}
