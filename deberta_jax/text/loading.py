"""Loads the tokenizer that the files of a model directory describe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from deberta_jax import storage
from deberta_jax.errors import InputError
from deberta_jax.text.added import SPECIALS, AddedToken, AddedTokens
from deberta_jax.text.bpe import ByteLevelTokenizer
from deberta_jax.text.hf_json import JsonTokenizer
from deberta_jax.text.spm import SentencePieceTokenizer, read_model, special_pieces
from deberta_jax.text.tokenizer import Tokenizer
from deberta_jax.text.torch_pickle import read_bpe_encoder

# One of the keys of FILES. It is not a Literal, because `load_tokenizer` checks it with a clearer message.
Rule = str

FILES: dict[str, tuple[tuple[str, ...], ...]] = {
    "sentencepiece": (("spm.model",),),
    "bpe": (("vocab.json", "merges.txt"), ("bpe_encoder.bin",)),
    "tokenizer.json": (("tokenizer.json",),),
}


def load_tokenizer(directory: str | Path, *, rule: Rule | None = None) -> Tokenizer:
    """Loads the tokenizer of a model directory.

    Args:
        directory: a local directory.
        rule: which files to use: "sentencepiece" (spm.model), "bpe" (vocab.json with merges.txt, or bpe_encoder.bin) or
            "tokenizer.json". None uses the first of these, in this order, whose files exist.

    Returns:
        The tokenizer; its attribute `rule` names the files used.

    Raises:
        InputError: the files are missing, unreadable, or disagree about an id.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"{directory} is not a directory; give one that holds spm.model, vocab.json or tokenizer.json")
    if rule is not None and rule not in FILES:
        raise InputError(f"rule={rule!r}; it is one of {', '.join(FILES)}")
    for name in FILES if rule is None else (rule,):
        for files in FILES[name]:
            if all((directory / file).is_file() for file in files):
                return LOADERS[files](directory)
    wanted = " or ".join(" + ".join(files) for name in ([rule] if rule else FILES) for files in FILES[name])
    raise InputError(f"{directory} holds no tokenizer: {wanted} is missing")


def load_sentencepiece(directory: Path) -> Tokenizer:
    """Loads a tokenizer from spm.model and the files beside it. Raises InputError as `load_tokenizer`."""
    processor = read_model(directory / "spm.model")
    config = read_object(directory / "tokenizer_config.json")
    return SentencePieceTokenizer(
        processor,
        added_tokens(directory, special_pieces(processor), processor.get_piece_size()),
        do_lower_case=bool(config.get("do_lower_case")),
        split_by_punct=bool(config.get("split_by_punct")),
        rule="sentencepiece: spm.model decides pieces and normalisation",
    )


def load_vocab_and_merges(directory: Path) -> Tokenizer:
    """Loads a tokenizer from vocab.json and merges.txt. Raises InputError as `load_tokenizer`."""
    vocab = read_object(directory / "vocab.json")
    if not vocab or not all(isinstance(index, int) for index in vocab.values()):
        raise InputError(f"{directory / 'vocab.json'} is not an object of piece: id")
    lines = storage.read_text(directory / "merges.txt", storage.LARGE).split("\n")
    merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    if any(len(pair) != 2 for pair in merges):
        raise InputError(
            f"{directory / 'merges.txt'}: {next(p for p in merges if len(p) != 2)} is not a pair of pieces"
        )
    return _byte_level(directory, vocab, merges, "vocab.json and merges.txt")


def load_bpe_encoder(directory: Path) -> Tokenizer:
    """Loads a tokenizer from Microsoft's bpe_encoder.bin. Raises InputError as `load_tokenizer`."""
    vocab, merges = read_bpe_encoder(directory / "bpe_encoder.bin")
    special = {name: index for index, name in enumerate(SPECIALS[:4])}
    return _byte_level(directory, special | vocab, merges, "bpe_encoder.bin")


def _byte_level(directory: Path, vocab: dict[str, int], merges: list, files: str) -> Tokenizer:
    known = {name: vocab[name] for name in SPECIALS if name in vocab}
    return ByteLevelTokenizer(
        vocab,
        merges,
        added_tokens(directory, known, max(vocab.values()) + 1, bpe=True),
        add_prefix_space=bool(read_object(directory / "tokenizer_config.json").get("add_prefix_space")),
        rule=f"byte-level BPE: {files} decide",
    )


def load_tokenizer_json(directory: Path) -> Tokenizer:
    """Loads a tokenizer from tokenizer.json. Raises InputError as `load_tokenizer`."""
    content = read_object(directory / "tokenizer.json")
    if content.get("model", {}).get("type") not in ("BPE", "Unigram"):
        raise InputError(f"{directory / 'tokenizer.json'} holds neither a BPE nor a Unigram model; it is not DeBERTa's")
    return JsonTokenizer(content, added_tokens(directory, _vocabulary(content["model"]), None))


def _vocabulary(model: dict[str, Any]) -> dict[str, int]:
    """Returns the ids of the special tokens that are in the vocabulary of a tokenizer.json model."""
    pieces = model["vocab"] if model["type"] == "BPE" else {entry[0]: i for i, entry in enumerate(model["vocab"])}
    return {name: pieces[name] for name in SPECIALS if name in pieces}


LOADERS: dict[tuple[str, ...], Callable[[Path], Tokenizer]] = {
    ("spm.model",): load_sentencepiece,
    ("vocab.json", "merges.txt"): load_vocab_and_merges,
    ("bpe_encoder.bin",): load_bpe_encoder,
    ("tokenizer.json",): load_tokenizer_json,
}


def read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON object; a file that does not exist gives {}.

    Raises:
        InputError: the file is not JSON, or not an object.
    """
    if not path.is_file():
        return {}
    return storage.read_json_object(path, storage.LARGE)


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
        InputError: two files give one token different ids.
    """
    tokens: dict[str, AddedToken] = {}
    origin: dict[str, str] = {}
    for file, token in _declared(directory):
        if token.content in tokens and tokens[token.content].id != token.id:
            raise InputError(
                f"{directory}: {token.content} is {tokens[token.content].id} in {origin[token.content]} and {token.id} "
                f"in {file}; remove the file that is wrong"
            )
        tokens[token.content], origin[token.content] = token, file
    for name, index in known.items():
        there = tokens.setdefault(name, AddedToken(name, index)).id
        # A SentencePiece model may contain a [MASK] that was never used; then the other files are right.
        if there != index and (bpe or name != "[MASK]"):
            raise InputError(f"{directory}: {name} is {index} in the vocabulary and {there} in {origin[name]}")
    if "[MASK]" not in tokens and count is not None:
        tokens["[MASK]"] = AddedToken("[MASK]", count)
    if "[MASK]" in tokens:
        tokens["[MASK]"] = AddedToken("[MASK]", tokens["[MASK]"].id, lstrip=bpe)
    return AddedTokens(list(tokens.values()))


def _declared(directory: Path) -> list[tuple[str, AddedToken]]:
    """Returns (file name, token) for every added token that a file declares.

    A later entry replaces an earlier one, so the files that declare flags come last.
    """
    found = [
        ("added_tokens.json", AddedToken(content, int(index), special=content in SPECIALS))
        for content, index in read_object(directory / "added_tokens.json").items()
    ]
    found += [
        ("tokenizer.json", declared_token(entry, entry["id"]))
        for entry in read_object(directory / "tokenizer.json").get("added_tokens", [])
    ]
    decoder = read_object(directory / "tokenizer_config.json").get("added_tokens_decoder", {})
    return found + [("tokenizer_config.json", declared_token(entry, index)) for index, entry in decoder.items()]


def declared_token(entry: dict[str, Any], index: Any) -> AddedToken:
    """Makes an added token of an entry of `added_tokens` or `added_tokens_decoder`."""
    flags = {name: bool(entry.get(name)) for name in ("lstrip", "rstrip", "single_word", "special")}
    return AddedToken(entry["content"], int(index), **flags)
