"""Finds named spans in sequences of tags by the rules of conlleval and seqeval (default mode), and computes their F1.

Tags are ``O``, or a prefix of IOB1, IOB2, IOE, IOBES or BILOU, a hyphen, and a type. A sequence that breaks its scheme
is accepted and read as conlleval reads it.
"""

from collections.abc import Sequence

Chunk = tuple[str, int, int]  # type, first word, last word


def is_chunk_tag(tag: str) -> bool:
    """Tells whether a tag is ``O`` or a prefix of one of the schemes with a type."""
    return tag == "O" or (len(tag) > 2 and tag[1] == "-" and tag[0] in "BIESLU")


def chunks(tags: Sequence[str]) -> list[Chunk]:
    """Returns the spans of one sentence, in order: (type, first word, last word)."""
    spans: list[Chunk] = []
    begin = 0
    before, kind_before = "O", ""
    for i, tag in enumerate([*tags, "O"]):
        prefix, _, kind = tag.partition("-")
        if _ends(before, prefix, kind_before, kind):
            spans.append((kind_before, begin, i - 1))
        if _begins(before, prefix, kind_before, kind):
            begin = i
        before, kind_before = prefix, kind
    return spans


def _ends(before: str, prefix: str, kind_before: str, kind: str) -> bool:
    """Tells whether a span ends between two words, given the prefix and type of the tag before and of the tag after."""
    if before in ("E", "S", "L", "U"):
        return True
    return before in ("B", "I") and (prefix in ("B", "S", "O", "U") or kind_before != kind)


def _begins(before: str, prefix: str, kind_before: str, kind: str) -> bool:
    """Tells whether a span begins between two words; the arguments are those of ``_ends``."""
    if prefix == "O":
        return False
    return prefix in ("B", "S", "U") or before in ("E", "S", "L", "U", "O") or kind_before != kind


def chunk_metrics(truth: Sequence[Sequence[str]], guess: Sequence[Sequence[str]]) -> dict[str, float]:
    """Returns precision, recall and f1 of spans that agree in type and both ends, over all sentences (micro)."""
    return span_metrics([chunks(tags) for tags in truth], [chunks(tags) for tags in guess])


def span_metrics(truth: Sequence[Sequence[Chunk]], guess: Sequence[Sequence[Chunk]]) -> dict[str, float]:
    """Returns precision, recall and f1 of equal spans, over all sentences or texts (micro)."""
    correct = predicted = expected = 0
    for guessed_spans, true_spans in zip(guess, truth, strict=True):
        a, b = set(guessed_spans), set(true_spans)
        correct, predicted, expected = correct + len(a & b), predicted + len(a), expected + len(b)
    precision = correct / predicted if predicted else 0.0
    recall = correct / expected if expected else 0.0
    f1 = 2 * precision * recall / (precision + recall) if correct else 0.0
    return {"precision": precision, "recall": recall, "f1": f1}
