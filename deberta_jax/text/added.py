"""Holds special and other added tokens, and finds them in texts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise

from deberta_jax import storage
from deberta_jax.errors import InputError, brief

SPECIALS = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]")
# Ids are below this: arrays have one entry for each id. The largest published vocabulary has a million pieces.
MOST_IDS = 1 << 22
# Compiling the expression that finds the added tokens of a text takes seconds for more tokens, or more characters.
MOST_ADDED = 1 << 15
MOST_CHARACTERS = 1 << 19


@dataclass(frozen=True)
class AddedToken:
    """Describes a token that is searched in the text before the rest is tokenized.

    Attributes:
        content: the text of the token.
        id: its token id.
        lstrip: whether white space before it belongs to it.
        rstrip: whether white space after it belongs to it.
        single_word: whether it is ignored inside a word.
        special: whether decoding can skip it, such as [CLS].
    """

    content: str
    id: int
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    special: bool = True


class AddedTokens:
    """Holds the added tokens of a tokenizer, including the five special tokens.

    Raises:
        InputError: one of the five is missing, two tokens share an id, there are more tokens than can be searched, or
            one has no text or an id that is not in [0, `MOST_IDS`).
    """

    def __init__(self, tokens: list[AddedToken]):
        for token in tokens:
            if not token.content or not 0 <= token.id < MOST_IDS:
                raise InputError(f"the added token {brief(token.content)!r} has the id {brief(token.id)}; correct it")
        if len(tokens) > MOST_ADDED or sum(len(token.content) for token in tokens) > MOST_CHARACTERS:
            raise InputError(f"the tokenizer files add more than {MOST_ADDED} tokens; put them into the vocabulary")
        self.tokens = tuple(sorted(tokens, key=lambda token: token.id))
        self.by_content = {token.content: token for token in self.tokens}
        self.by_id = {token.id: token for token in self.tokens}
        missing = [name for name in SPECIALS if name not in self.by_content]
        if missing:
            raise InputError(f"the tokenizer files give no id for {', '.join(missing)}; DeBERTa needs all five")
        if len(self.by_id) != len(self.by_content):
            other, token = next(pair for pair in pairwise(self.tokens) if pair[0].id == pair[1].id)
            both = f"{brief(other.content)} and {brief(token.content)}"
            raise InputError(f"two added tokens share the id {token.id}: {both}; correct the tokenizer files")
        self.special_ids = tuple(self.by_content[name].id for name in SPECIALS)
        self.all_special_ids = tuple(token.id for token in self.tokens if token.special)
        # Longest first: otherwise a token that is a prefix of another one would always match instead of it.
        longest_first = sorted(self.tokens, key=lambda token: -len(token.content))
        self.pattern = re.compile("|".join(map(_expression, longest_first)))

    def find(self, text: str) -> Iterator[tuple[int, int, int]]:
        """Splits a text at its added tokens.

        Yields:
            (start, end, id) in characters of the text; id is -1 for text between added tokens. White space that belongs
            to a token (`lstrip`, `rstrip`) is in no part.
        """
        position = 0
        for match in self.pattern.finditer(text):
            token = self.by_content[match.group()]
            left, right = match.span()
            while token.lstrip and left > position and text[left - 1].isspace():
                left -= 1
            while token.rstrip and right < len(text) and text[right].isspace():
                right += 1
            if position < left:
                yield position, left, -1
            yield match.start(), match.end(), token.id
            position = right
        if position < len(text):
            yield position, len(text), -1

    def config(self) -> dict:
        """Returns the `added_tokens_decoder` entry of tokenizer_config.json, or {} if there are only special tokens."""
        if {token.content for token in self.tokens} == set(SPECIALS) and not any(t.rstrip for t in self.tokens):
            return {}
        return {
            "added_tokens_decoder": {str(t.id): {k: v for k, v in asdict(t).items() if k != "id"} for t in self.tokens}
        }

    def identity(self) -> str:
        """Returns a text that is equal for equal added tokens."""
        return json.dumps([asdict(token) for token in self.tokens])


def write_tokenizer_json(path: storage.AnyPath, value: object) -> None:
    """Writes a value as indented JSON that keeps non-ASCII characters. Raises as `storage.writing`."""
    storage.write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def _expression(token: AddedToken) -> str:
    """Returns the regular expression that finds a token."""
    content = re.escape(token.content)
    return rf"(?<!\w){content}(?!\w)" if token.single_word else content
