"""What is saved here loads in transformers, what it saves loads here, with equal ids on plain English.

On other text transformers 5 is no reference: it drops SentencePiece's normaliser and byte fallback, and its v1 template
and [MASK] are not DeBERTa's. tests/text holds the proofs for those.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
import transformers

from deberta_jax.text import Tokenizer, load_tokenizer, train_tokenizer

pytestmark = [pytest.mark.parity, pytest.mark.every_case]


def plain_english(data_dir: Path, count: int) -> list[str]:
    """ASCII lines with single spaces and without special tokens."""
    lines = (data_dir / "text" / "sherlock_holmes.txt").read_text(encoding="utf-8").split("\n")
    plain = [" ".join(line.split()) for line in lines if line.isascii() and line.strip()]
    return plain[:: max(len(plain) // count, 1)]


@pytest.fixture(scope="module", params=["v1", "v3", "trained spm", "trained bpe"])
def tok(request, data_dir, tmp_path_factory) -> Tokenizer:
    if request.param.startswith("trained"):
        kind = request.param.split()[1]
        lines = plain_english(data_dir, 4000)
        return train_tokenizer(lines, 3000, tmp_path_factory.mktemp(kind), kind=kind)
    return load_tokenizer(data_dir / "tokenizers" / f"deberta-{request.param}")


def test_transformers_loads_what_is_saved_here(tok, data_dir, tmp_path):
    tok.save(tmp_path)
    peer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert type(peer).__name__ == {"spm": "DebertaV2Tokenizer", "bpe": "DebertaTokenizer"}[tok.kind]
    names = ("pad", "cls", "sep", "unk", "mask")
    assert [getattr(peer, f"{name}_token_id") for name in names] == [getattr(tok, f"{name}_id") for name in names]
    assert len(peer) == tok.vocab_size
    lines = plain_english(data_dir, 2000)
    assert len(lines) >= 2000
    assert peer(lines)["input_ids"] == [ids.tolist() for ids in tok(lines).input_ids]
    texts = peer.batch_decode(peer(lines)["input_ids"], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert texts == [tok.decode(ids) for ids in tok(lines).input_ids]


def test_pairs_truncation_and_padding_equal_transformers(data_dir, tmp_path):
    """v2 and v3 only: the v1 template of transformers 5 has another layout."""
    tok = load_tokenizer(data_dir / "tokenizers" / "deberta-v3")
    tok.save(tmp_path)
    peer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    lines = plain_english(data_dir, 600)
    short = ["one two three"] * 300
    pairs = {
        "longest_first": (lines[:300], lines[300:600]),
        "only_first": (lines[:300], short),
        "only_second": (short, lines[:300]),
    }
    for truncation, (a, b) in pairs.items():
        for length in (12, 17, 24, 33):
            options = {"max_length": length, "truncation": truncation, "padding": "longest"}
            ours, theirs = tok(a, b, **options), peer(a, b, return_tensors="np", **options)
            for name in ("input_ids", "attention_mask", "token_type_ids"):
                assert (ours[name] == theirs[name]).all(), (truncation, length, name)


def test_windows_and_words_equal_transformers(data_dir, tmp_path):
    tok = load_tokenizer(data_dir / "tokenizers" / "deberta-v3")
    tok.save(tmp_path)
    peer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    lines = plain_english(data_dir, 60)
    context = [" ".join(lines[i : i + 12]) for i in range(0, 48, 12)]
    question = lines[48:52]
    options = {"max_length": 64, "truncation": "only_second", "stride": 16, "padding": "max_length"}
    ours = tok(question, context, return_offsets_mapping=True, **options)
    theirs = peer(question, context, return_overflowing_tokens=True, return_tensors="np", **options)
    assert (ours.input_ids == theirs["input_ids"]).all()
    assert ours.overflow_to_sample_mapping.tolist() == theirs["overflow_to_sample_mapping"].tolist()
    words = [line.split() for line in lines]
    ours, theirs = tok(words, is_split_into_words=True), peer(words, is_split_into_words=True)
    assert [ids.tolist() for ids in ours.input_ids] == theirs["input_ids"]
    for row, word_ids in enumerate(ours.word_ids):
        assert [None if w < 0 else w for w in word_ids.tolist()] == theirs.word_ids(row)


def test_what_transformers_saves_loads_here(tok, data_dir, tmp_path):
    """transformers 5 writes tokenizer.json alone; v1's wrong template and [MASK] in it are not followed."""
    tok.save(tmp_path / "ours")
    transformers.AutoTokenizer.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    again = load_tokenizer(tmp_path / "theirs")
    assert again.rule.startswith("tokenizer.json")
    assert (again.kind, again.vocab_size, again.mask_id) == (tok.kind, tok.vocab_size, tok.mask_id)
    lines = plain_english(data_dir, 1000)
    a, b = (t(lines, lines[::-1], return_offsets_mapping=True) for t in (tok, again))
    for name in ("input_ids", "token_type_ids", "offset_mapping"):
        assert all((x == y).all() for x, y in zip(a[name], b[name], strict=True)), name
    if tok.kind == "bpe":
        assert again("A fox [MASK] b").input_ids.tolist() == tok("A fox [MASK] b").input_ids.tolist()
    again.save(tmp_path / "back")
    peer = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    assert peer(lines)["input_ids"] == [ids.tolist() for ids in tok(lines).input_ids]


@pytest.mark.parametrize("zipped", [True, False])
def test_bpe_encoder_as_torch_writes_it(zipped, data_dir, tmp_path):
    released = load_tokenizer(data_dir / "tokenizers" / "deberta-v1")
    pieces = [released.id_to_token(i) for i in range(4, 50264)]
    ordinary = sorted(piece for piece in pieces if not piece.startswith("madeupword"))
    encoder = {piece: index for index, piece in enumerate(ordinary)}
    merges = (data_dir / "tokenizers" / "deberta-v1" / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    content = {
        "dict_map": [(str(encoder.get(piece, piece)), 1) for piece in pieces],
        "vocab": [tuple(line.split()) for line in merges],
        "encoder": encoder,
    }
    torch.save(content, tmp_path / "bpe_encoder.bin", _use_new_zipfile_serialization=zipped)
    tok = load_tokenizer(tmp_path)
    assert tok.fingerprint() == released.fingerprint()
    if not zipped:
        with (tmp_path / "bpe_encoder.bin").open("rb") as stream:
            assert pickle.load(stream) == 0x1950A86A20F9469CFC6C
    assert json.dumps(tok("Hello world").input_ids.tolist()) == "[[1, 31414, 232, 2]]"
