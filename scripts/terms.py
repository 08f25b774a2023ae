"""Checks that code, messages and documentation use the standard terms of the field.

    python scripts/terms.py [FILE ...]

Reads the given files, or every Python, Markdown, TOML and YAML file and the Makefile that git tracks. Prints a line for
each word of `TERMS` that it finds, with the term to use instead, and ends with exit code 1 if there are any.

A term is found as a whole word in any case: in prose, in `snake_case` and in `CamelCase`, in the singular and in the
plural, and across a line break inside a comment or a docstring.
"""

import itertools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

TERMS = {
    "turned": "transposed (of an array), switched (of an option)",
    "turning": "transposing (of an array), switching (of an option)",
    "turn right": "roll",
    "upright": "transposed, or not transposed",
    "way round": "transposed, or the order of the axes",
    "slide": "relative shift (rel_shift), or move (of a window)",
    "slide back": "rel_unshift",
    "slope": "gradient, cotangent, or d_x for the derivative with respect to x",
    "log total": "logsumexp",
    "logsum": "logsumexp",
    "settle": "resolve",
    "settled": "resolved",
    "wish": "request (HeadRequest for a head)",
    "drawn anew": "reinitialized",
    "floors": "layers",
    "is told of": "logs, warns or raises",
    "written down": "stored, or recorded",
}
"""Word or phrase -> what to write instead. A space stands for white space, an underscore, or nothing in CamelCase."""

EXCEPTIONS = {
    "CHANGELOG.md": "describes past releases in the words that they used",
    "scripts/terms.py": "lists the terms",
    "tests/test_terms.py": "contains them as test input",
}
"""Path in the repository -> why the file is not checked."""

PATTERNS = ("*.py", "*.md", "*.toml", "*.yml", "*.yaml", "Makefile")

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_GAP = re.compile(r"[\s_#]*")


def find_terms(text: str) -> Iterator[tuple[int, str, str]]:
    """Yields the line number, counted from 1, the term and its replacement for every term in a text, in order.

    Where one term begins with another, only the longer one is reported.
    """
    words = list(_WORD.finditer(text))
    longest_first = sorted((term.split() for term in TERMS), key=len, reverse=True)
    first_words = {word for term in longest_first for word in (term[0], f"{term[0]}s")}
    end = 0
    for index, word in enumerate(words):
        if index < end or word.group().lower() not in first_words:
            continue
        term = next((term for term in longest_first if _matches(text, words[index : index + len(term)], term)), None)
        if term:
            yield text.count("\n", 0, word.start()) + 1, " ".join(term), TERMS[" ".join(term)]
            end = index + len(term)


def _matches(text: str, words: list[re.Match[str]], term: list[str]) -> bool:
    """Returns whether consecutive words are a term, with nothing between them but white space, `_` or `#`."""
    if len(words) < len(term):
        return False
    singular = [word.group().lower() for word in words]
    singular[-1] = singular[-1] if singular[-1] == term[-1] else singular[-1].removesuffix("s")
    gaps = (text[left.end() : right.start()] for left, right in itertools.pairwise(words))
    return singular == term and all(_GAP.fullmatch(gap) for gap in gaps)


def main(arguments: list[str]) -> int:
    """Prints the terms found in the given files, or in all that git tracks. Returns the exit code, 0 or 1."""
    root = Path(__file__).resolve().parent.parent
    if arguments:
        paths = [Path(name).resolve() for name in arguments]
    else:
        listed = subprocess.run(["git", "ls-files", "-z", *PATTERNS], cwd=root, stdout=subprocess.PIPE, check=True)
        paths = [root / name for name in listed.stdout.decode().split("\0") if name]
    found = 0
    for path in paths:
        name = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
        if name in EXCEPTIONS or not path.is_file():
            continue
        for line, term, instead in find_terms(path.read_text(encoding="utf-8")):
            print(f"{name}:{line}: {term} -> {instead}")
            found += 1
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
