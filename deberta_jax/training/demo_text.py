"""Collects the text of the demonstration, which comes with every Python, and makes a labelled task from it.

The text is the standard library's docstrings and the topics of ``help()``. The task is to put articles back: each word
of a sentence without its articles has the tag ``B-THE`` or ``B-A`` (a, an) if one stood before it, else ``O``.
"""

import ast
import json
import logging
import re
import sysconfig
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from deberta_jax import storage

_log = logging.getLogger(__name__)

TRAIN, VALIDATION, TEST = 300, 300, 1000
"""Numbers of labelled sentences. Pre-training helps most with few to learn from; many measure precisely."""

_TASK_DOCSTRINGS = 1400  # those of the sentences; the other docstrings are for pre-training
_ARTICLES = {"the": "B-THE", "a": "B-A", "an": "B-A"}
_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib-dynload"}
_WORD = re.compile(r"[A-Za-z'-]+[.,;:!?]?")


def write_data(directory: Path) -> None:
    """Writes train.jsonl, validation.jsonl, test.jsonl, pretrain_held_out.txt and, as the last, pretrain.txt.

    The jsonl files have the columns words and tags. No sentence of theirs is in the text for pre-training.
    """
    if (directory / "pretrain.txt").is_file():
        return
    storage.make_directory(directory)
    _log.info("reading the standard library's docstrings")
    rng = np.random.default_rng(0)
    docstrings = [text for _, text in collect_docstrings()]
    docstrings = [docstrings[i] for i in rng.permutation(len(docstrings))]
    lines = [line for text in [*docstrings[_TASK_DOCSTRINGS:], *topics()] for line in paragraphs(text)]
    lines = [lines[i] for i in rng.permutation(len(lines))]
    unlabelled = "\n".join(lines)
    sentences = dict.fromkeys(s for text in docstrings[:_TASK_DOCSTRINGS] for s in english_sentences(text))
    rows = [without_articles(sentence.split()) for sentence in sentences if sentence not in unlabelled]
    rows = [(words, tags) for words, tags in rows if set(tags) != {"O"}]
    rows = [rows[i] for i in rng.permutation(len(rows))]
    ends = np.cumsum([TRAIN, VALIDATION, TEST])
    for name, first, end in zip(("train", "validation", "test"), (0, *ends), ends, strict=False):
        objects = ({"words": words, "tags": tags} for words, tags in rows[first:end])
        storage.write_text(directory / f"{name}.jsonl", "".join(json.dumps(item) + "\n" for item in objects))
    cut = len(lines) // 20
    storage.write_text(directory / "pretrain_held_out.txt", "\n".join(lines[:cut]) + "\n")
    storage.write_text(directory / "pretrain.txt", "\n".join(lines[cut:]) + "\n")


def paragraphs(text: str) -> list[str]:
    """Returns the paragraphs of a text, each as one line."""
    lines = [" ".join(part.split()) for part in text.split("\n\n")]
    return [line for line in lines if line]


def english_sentences(text: str) -> list[str]:
    """Returns the sentences of a text that have 6 to 32 words, of which most are made of letters alone."""
    parts = [part for line in paragraphs(text) for part in re.split(r"(?<=[.!?]) ", line)]
    return [part for part in parts if 6 <= len(part.split()) <= 32 and _is_english(part.split())]


def _is_english(words: Sequence[str]) -> bool:
    return sum(_WORD.fullmatch(word) is not None for word in words) > 0.85 * len(words)


def without_articles(words: Iterable[str]) -> tuple[list[str], list[str]]:
    """Returns the words that are no articles, and for each the tag of the article that stood before it."""
    kept, tags, tag = [], [], "O"
    for word in words:
        if word in _ARTICLES:
            tag = _ARTICLES[word]
        else:
            kept.append(word)
            tags.append(tag)
            tag = "O"
    return kept, tags


def with_articles(words: Iterable[str], tags: Iterable[str]) -> str:
    """Returns the sentence with the articles of its tags. Before a vowel's letter "a" is "an"."""
    out = []
    for word, tag in zip(words, tags, strict=True):
        indefinite = "an" if word[0].lower() in "aeiou" else "a"
        out += [{"B-THE": "the", "B-A": indefinite}[tag], word] if tag != "O" else [word]
    return " ".join(out)


def collect_docstrings() -> list[tuple[str, str]]:
    """Returns (top-level module or package, docstring) for the standard library, each text once.

    The sources are parsed, not imported.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    found: dict[str, str] = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if _SKIPPED & set(parts) or parts[0].startswith("config-"):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some files of the library hold invalid escapes on purpose
            try:
                tree = ast.parse(storage.read_bytes(path))
            except (SyntaxError, ValueError):
                continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                text = ast.get_docstring(node)
                if text and len(text.split()) >= 4:
                    found.setdefault(text, parts[0].removesuffix(".py"))
    return [(package, text) for text, package in found.items()]


def topics() -> list[str]:
    """Returns the topics of Python's ``help()``, which are parts of the language reference."""
    from pydoc_data.topics import topics as texts

    return list(texts.values())
