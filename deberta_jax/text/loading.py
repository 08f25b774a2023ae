"""Loads the tokenizer that the files of a model directory describe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from deberta_jax import hub, storage
from deberta_jax.errors import InputError, shown
from deberta_jax.text.added import SPECIALS
from deberta_jax.text.bpe import ByteLevelTokenizer
from deberta_jax.text.declared import added_tokens, check_not_pieces, check_vocabulary, read_flag, read_object
from deberta_jax.text.hf_json import JsonTokenizer
from deberta_jax.text.json_file import check_content, vocabulary_of
from deberta_jax.text.spm import SentencePieceTokenizer
from deberta_jax.text.spm_file import ordinary_piece, read_model, special_pieces
from deberta_jax.text.tokenizer import Tokenizer
from deberta_jax.text.torch_pickle import read_bpe_encoder

# One of the keys of FILES. It is not a Literal, because `load_tokenizer` checks it with a clearer message.
Rule = str
MOST_MERGES = 1 << 20

FILES: dict[str, tuple[tuple[str, ...], ...]] = {
    "sentencepiece": (("spm.model",),),
    "bpe": (("vocab.json", "merges.txt"), ("bpe_encoder.bin",)),
    "tokenizer.json": (("tokenizer.json",),),
}


def load_tokenizer(directory: str | Path, *, rule: Rule | None = None) -> Tokenizer:
    """Loads the tokenizer of a model directory.

    Args:
        directory: a directory, local or in a bucket.
        rule: which files to use: "sentencepiece" (spm.model), "bpe" (vocab.json with merges.txt, or bpe_encoder.bin) or
            "tokenizer.json". None uses the first of these, in this order, whose files exist.

    Returns:
        The tokenizer; its attribute `rule` names the files used.

    Raises:
        InputError: the files are missing, unreadable, or disagree about an id.
    """
    directory = hub.resolve(directory, files=hub.TEXT_FILES) if storage.is_remote(directory) else Path(directory)
    if not directory.is_dir():
        raise InputError(f"{directory} is not a directory; give one that holds spm.model, vocab.json or tokenizer.json")
    if rule is not None and rule not in FILES:
        raise InputError(f"rule={rule!r}; it is one of {', '.join(FILES)}")
    for name in FILES if rule is None else (rule,):
        for files in FILES[name]:
            if all((directory / file).exists() for file in files):
                return LOADERS[files](directory)
    wanted = " or ".join(" + ".join(files) for name in ([rule] if rule else FILES) for files in FILES[name])
    raise InputError(f"{directory} holds no tokenizer: {wanted} is missing")


def load_sentencepiece(directory: Path) -> Tokenizer:
    """Loads a tokenizer from spm.model and the files beside it. Raises InputError as `load_tokenizer`."""
    path, beside = directory / "spm.model", directory / "tokenizer_config.json"
    processor = read_model(path)
    config = read_object(beside)
    try:
        added = added_tokens(directory, special_pieces(processor), processor.get_piece_size())
        check_not_pieces(directory, added, lambda index: ordinary_piece(processor, index))
        return SentencePieceTokenizer(
            processor,
            added,
            do_lower_case=read_flag(config, beside, "do_lower_case"),
            split_by_punct=read_flag(config, beside, "split_by_punct"),
            rule="sentencepiece: spm.model decides pieces and normalisation",
        )
    except UnicodeDecodeError:
        raise InputError(f"{path} has a piece that is not UTF-8; fetch it again") from None


def load_vocab_and_merges(directory: Path) -> Tokenizer:
    """Loads a tokenizer from vocab.json and merges.txt. Raises InputError as `load_tokenizer`."""
    path = directory / "merges.txt"
    vocab = check_vocabulary(read_object(directory / "vocab.json"), str(directory / "vocab.json"))
    text = storage.read_text(path, storage.LARGE)
    if text.count("\n") > MOST_MERGES:
        raise InputError(f"{path}: has more than {MOST_MERGES} lines; it is no tokenizer's file")
    lines = text.split("\n")
    merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    if wrong := next((pair for pair in merges if len(pair) != 2), None):
        raise InputError(f"{path}: {shown(wrong)} is not a pair of pieces")
    return _byte_level(directory, vocab, merges, "vocab.json and merges.txt")


def load_bpe_encoder(directory: Path) -> Tokenizer:
    """Loads a tokenizer from Microsoft's bpe_encoder.bin. Raises InputError as `load_tokenizer`."""
    vocab, merges = read_bpe_encoder(directory / "bpe_encoder.bin")
    special = {name: index for index, name in enumerate(SPECIALS[:4])}
    vocab = check_vocabulary(special | vocab, str(directory / "bpe_encoder.bin"))
    return _byte_level(directory, vocab, merges, "bpe_encoder.bin")


def _byte_level(directory: Path, vocab: dict[str, int], merges: list, files: str) -> Tokenizer:
    path = directory / "tokenizer_config.json"
    known = {name: vocab[name] for name in SPECIALS if name in vocab}
    added = added_tokens(directory, known, max(vocab.values()) + 1, bpe=True)
    check_not_pieces(directory, added, {index: piece for piece, index in vocab.items()}.get)
    return ByteLevelTokenizer(
        vocab,
        merges,
        added,
        add_prefix_space=read_flag(read_object(path), path, "add_prefix_space"),
        rule=f"byte-level BPE: {files} decide",
    )


def load_tokenizer_json(directory: Path) -> Tokenizer:
    """Loads a tokenizer from tokenizer.json. Raises InputError as `load_tokenizer`."""
    path = directory / "tokenizer.json"
    content = check_content(read_object(path), str(path))
    pieces = vocabulary_of(content["model"])
    known = {name: pieces[name] for name in SPECIALS if name in pieces}
    return JsonTokenizer(content, added_tokens(directory, known, None), str(path))


LOADERS: dict[tuple[str, ...], Callable[[Path], Tokenizer]] = {
    ("spm.model",): load_sentencepiece,
    ("vocab.json", "merges.txt"): load_vocab_and_merges,
    ("bpe_encoder.bin",): load_bpe_encoder,
    ("tokenizer.json",): load_tokenizer_json,
}
