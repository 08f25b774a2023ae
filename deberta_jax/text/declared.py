"""Reads which tokens the files of a directory add to a vocabulary, and checks pieces and ids that come from files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from deberta_jax import storage
from deberta_jax.errors import InputError, brief, shown
from deberta_jax.text.added import MOST_IDS, SPECIALS, AddedToken, AddedTokens

# A value of JSON needs up to 100 bytes of memory, its text as few as 2. A vocabulary of a million pieces has 2 million
# values.
MOST_VALUES = 1 << 21


def read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON object; a file that does not exist gives {}.

    Raises:
        InputError: the file cannot be read, is not JSON, not an object, or far larger than any tokenizer's.
    """
    if not path.exists():
        return {}
    text = storage.read_text(path, storage.LARGE)
    if text.count(",") > MOST_VALUES:
        raise InputError(f"{path}: has more than {MOST_VALUES} values; it is no tokenizer's file")
    value = storage.parse_json(text, str(path))
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def read_flag(config: Mapping[str, Any], path: Path, name: str) -> bool:
    """Returns an option of a config: false if it is missing or null. Raises InputError if it is not a boolean."""
    value = config.get(name)
    if value is not None and not isinstance(value, bool):
        raise InputError(f"{path}: {name} is {shown(value)}; it must be true or false")
    return bool(value)


def check_id(value: Any, where: str) -> int:
    """Returns a token id from a file.

    Args:
        value: what the file has.
        where: the file and the token, for messages.

    Raises:
        InputError: it is not an integer in [0, `MOST_IDS`).
    """
    if type(value) is not int or not 0 <= value < MOST_IDS:
        raise InputError(f"{where} has the id {shown(value)}; it must be an integer from 0 to {MOST_IDS - 1}")
    return value


def check_vocabulary(vocab: Any, where: str) -> dict[str, int]:
    """Returns a vocabulary from a file.

    Args:
        vocab: what the file has.
        where: the file, for messages.

    Raises:
        InputError: it is not an object of piece: id, a piece is empty or not Unicode, or two pieces share an id.
    """
    if not isinstance(vocab, dict) or not vocab:
        raise InputError(f"{where} is not an object of piece: id")
    pieces: dict[int, str] = {}
    for piece, index in vocab.items():
        if type(index) is not int or not 0 <= index < MOST_IDS:
            check_id(index, f"{where} is not an object of piece: id: {brief(piece)!r}")
        if index in pieces:
            raise InputError(f"{where}: {brief(pieces[index])!r} and {brief(piece)!r} share the id {index}")
        pieces[index] = piece
    _check_texts(vocab, where)
    return vocab


def check_pieces(pieces: Any, where: str) -> list[str]:
    """Returns the pieces of a Unigram model, whose `vocab` is a list of [piece, score].

    Raises:
        InputError: it is not, or a piece is empty or not Unicode.
    """
    if not isinstance(pieces, list) or not 0 < len(pieces) <= MOST_IDS:
        raise InputError(f"{where} is not a list of [piece, score]")
    for entry in pieces:
        if (
            type(entry) is not list
            or len(entry) != 2
            or type(entry[0]) is not str
            or type(entry[1]) not in (float, int)
        ):
            raise InputError(f"{where} is not a list of [piece, score]: {shown(entry)}")
    names = [entry[0] for entry in pieces]
    _check_texts(names, where)
    return names


def _check_texts(pieces: Any, where: str) -> None:
    """Raises InputError if a piece is empty or has a lone surrogate, which no text has when it is tokenized."""
    if "" in pieces:
        raise InputError(f"{where} has an empty piece; remove it")
    try:
        "".join(pieces).encode()
    except UnicodeEncodeError as error:
        around = brief(error.object[max(error.start - 20, 0) : error.end])
        raise InputError(f"{where} has a piece that is not Unicode: {around}") from None


def added_tokens(directory: Path, known: dict[str, int], count: int | None, *, bpe: bool = False) -> AddedTokens:
    """Reads the added tokens of a directory and completes the special ones from the vocabulary.

    The id of [MASK] comes from added_tokens.json, tokenizer_config.json or tokenizer.json; otherwise from `known`;
    otherwise it is `count`, as in the released models.

    Args:
        directory: the directory of the tokenizer files.
        known: ids of the special tokens that are in the vocabulary.
        count: number of entries of the vocabulary; None if [MASK] must be declared.
        bpe: byte-level BPE, where [MASK] includes the space before it.

    Raises:
        InputError: an entry is not a token with an id, or two files give one token different ids.
    """
    tokens: dict[str, AddedToken] = {}
    origin: dict[str, str] = {}
    for file, token in _declared(directory):
        name = token.content
        if name in tokens and tokens[name].id != token.id:
            raise InputError(
                f"{directory}: {brief(name)} is {tokens[name].id} in {origin[name]} and {token.id} in {file}; remove "
                "the file that is wrong"
            )
        tokens[name], origin[name] = token, file
    for name, index in known.items():
        there = tokens.setdefault(name, AddedToken(name, index)).id
        # A SentencePiece model may contain a [MASK] that was never used; then the other files are right.
        if there != index and (bpe or name != "[MASK]"):
            raise InputError(f"{directory}: {name} is {index} in the vocabulary and {there} in {origin[name]}")
    if "[MASK]" not in tokens and count is not None:
        tokens["[MASK]"] = AddedToken("[MASK]", count)
    if "[MASK]" in tokens:
        tokens["[MASK]"] = AddedToken("[MASK]", tokens["[MASK]"].id, lstrip=bpe)
    try:
        return AddedTokens(list(tokens.values()))
    except InputError as error:
        raise InputError(f"{directory}: {error}") from None


def check_not_pieces(directory: Path, added: AddedTokens, piece: Callable[[int], str | None]) -> None:
    """Checks that no added token has the id of an ordinary piece with another text.

    Args:
        directory: the directory of the tokenizer files, for messages.
        added: the added tokens.
        piece: gives the ordinary piece with an id, or None if there is none.

    Raises:
        InputError: one has.
    """
    for token in added.tokens:
        other = piece(token.id)
        if other is not None and other != token.content:
            both = f"{brief(token.content)!r} and the piece {brief(other)!r}"
            raise InputError(
                f"{directory}: the added token {both} share the id {token.id}; correct the tokenizer files"
            )


def _declared(directory: Path) -> Iterator[tuple[str, AddedToken]]:
    """Yields (file name, token) for every added token that a file declares.

    A later entry replaces an earlier one, so the files that declare flags come last.
    """
    path = directory / "added_tokens.json"
    for content, index in read_object(path).items():
        token = {"content": content, "special": content in SPECIALS}
        yield path.name, declared_token(token, index, str(path))
    path = directory / "tokenizer.json"
    for entry in listed_tokens(read_object(path), str(path)):
        yield path.name, declared_token(entry, entry.get("id"), str(path))
    path = directory / "tokenizer_config.json"
    decoder = read_object(path).get("added_tokens_decoder")
    if decoder is not None and not isinstance(decoder, dict):
        raise InputError(f"{path}: added_tokens_decoder is {shown(decoder)}; it must be an object of id: token")
    for key, entry in (decoder or {}).items():
        digits = key.isascii() and key.isdecimal() and len(key) < 10
        yield path.name, declared_token(entry, int(key) if digits else key, str(path))


def listed_tokens(content: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """Returns the `added_tokens` of a tokenizer.json. Raises InputError if they are not a list of objects."""
    tokens = content.get("added_tokens")
    if tokens is None:
        return []
    if not isinstance(tokens, list) or not all(isinstance(entry, dict) for entry in tokens):
        raise InputError(f"{where}: added_tokens is {shown(tokens)}; it must be a list of objects")
    return tokens


def declared_token(entry: Any, index: Any, where: str) -> AddedToken:
    """Makes an added token of an entry of `added_tokens` or `added_tokens_decoder`.

    Raises:
        InputError: it has no text, an id that is none, or a flag that is not a boolean.
    """
    content = entry.get("content") if isinstance(entry, dict) else None
    if not isinstance(content, str):
        raise InputError(f"{where}: the added token {shown(index)} is {shown(entry)}, without a content; correct it")
    named = f"{where}: the added token {brief(content)!r}"
    _check_texts([content], named)
    flags = {}
    for name in ("lstrip", "rstrip", "single_word", "special"):
        flags[name] = entry.get(name) or False
        if flags[name] is not True and flags[name] is not False:
            raise InputError(f"{named}: {name} is {shown(flags[name])}; it must be true or false")
    return AddedToken(content, check_id(index, named), **flags)
