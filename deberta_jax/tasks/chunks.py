"""Named spans in sequences of tags, by the rules of conlleval and seqeval (its default mode), and their F1.

Tags are ``O`` or a prefix of IOB1, IOB2, IOE, IOBES or BILOU, a hyphen, and a type; a sequence that breaks its own
scheme is read leniently, as conlleval does.
"""

from collections.abc import Sequence

Chunk = tuple[str, int, int]  # type, first word, last word


def is_chunk_tag(tag: str) -> bool:
    return tag == "O" or (len(tag) > 2 and tag[1] == "-" and tag[0] in "BIESLU")


def chunks(tags: Sequence[str]) -> list[Chunk]:
    """The spans of one sentence, in order."""
    found: list[Chunk] = []
    begin = 0
    before, kind_before = "O", ""
    for i, tag in enumerate([*tags, "O"]):
        prefix, _, kind = tag.partition("-")
        if _ends(before, prefix, kind_before, kind):
            found.append((kind_before, begin, i - 1))
        if _begins(before, prefix, kind_before, kind):
            begin = i
        before, kind_before = prefix, kind
    return found


def _ends(before: str, prefix: str, kind_before: str, kind: str) -> bool:
    if before in ("E", "S", "L", "U"):
        return True
    return before in ("B", "I") and (prefix in ("B", "S", "O", "U") or kind_before != kind)


def _begins(before: str, prefix: str, kind_before: str, kind: str) -> bool:
    if prefix == "O":
        return False
    return prefix in ("B", "S", "U") or before in ("E", "S", "L", "U", "O") or kind_before != kind


def chunk_metrics(truth: Sequence[Sequence[str]], guess: Sequence[Sequence[str]]) -> dict[str, float]:
    """precision, recall and f1 of spans that agree in type and both ends, over all sentences (micro)."""
    return span_metrics([chunks(tags) for tags in truth], [chunks(tags) for tags in guess])


def span_metrics(truth: Sequence[Sequence[Chunk]], guess: Sequence[Sequence[Chunk]]) -> dict[str, float]:
    """precision, recall and f1 of equal spans, over all sentences or texts (micro)."""
    right = guessed = there = 0
    for ours, theirs in zip(guess, truth, strict=True):
        a, b = set(ours), set(theirs)
        right, guessed, there = right + len(a & b), guessed + len(a), there + len(b)
    precision = right / guessed if guessed else 0.0
    recall = right / there if there else 0.0
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    return {"precision": precision, "recall": recall, "f1": f1}
