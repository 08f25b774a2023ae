"""Texts looked up word by word have the ids that they have as a whole."""

import io
import random

import numpy as np
import pytest
import sentencepiece

from deberta_jax.text import load_tokenizer
from deberta_jax.text.bulk import BulkEncoder

ODD = [
    "",
    " ",
    "a",
    " a",
    "a ",
    "a\tb\nc",
    "a  b   c",
    "\n\n a",
    "a\x0bb",
    "a\x1cb.\x1cc",
    "a\x85b",
    "a\u00a0b",
    "a\u3000b",
    "a [MASK] b",
    "x[SEP]y",
    "it's [CLS",
    "a\u200bb \u200b c",
    "\u0301a \u0301b",
    "a \u2581b\u2581",
    "\ufeffa",
    "´a ´",
    "a" * 300,
    "don't  we'll\n\n\n'tis",
    "1 000,000.5",
    "日本語 テキスト",
    "\ud800 a",
    "a \x00 b",
    "ſt ﬁ ½",
]


@pytest.mark.parametrize("lower", [False, True])
def test_odd_texts(small, lower):
    for tokenizer in small.values():
        encoder = BulkEncoder(tokenizer)
        assert encoder.by_words
        texts = [text.lower() for text in ODD] if lower else ODD
        for batch in (texts, [*reversed(texts)], []):
            for found, expected in zip(encoder(batch), tokenizer.encode_flat(batch), strict=True):
                np.testing.assert_array_equal(found, expected)


def test_all_of_unicode(small, unicode_lines):
    lines = [" ".join(unicode_lines(3, seed)) for seed in range(500)]
    for tokenizer in small.values():
        for found, expected in zip(BulkEncoder(tokenizer)(lines), tokenizer.encode_flat(lines), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_words_are_forgotten_when_there_are_many(small, monkeypatch):
    monkeypatch.setattr("deberta_jax.text.bulk.MOST_KEPT", 100)
    for tokenizer in small.values():
        encoder = BulkEncoder(tokenizer)
        for i in range(30):
            texts = [f"word{i} and {j}" for j in range(5)]
            np.testing.assert_array_equal(encoder(texts)[0], tokenizer.encode_flat(texts)[0])
            assert encoder.known.characters < 200


def test_a_vocabulary_with_pieces_of_several_words_is_not_looked_up(tmp_path):
    draw = random.Random(0)
    lines = [" ".join(draw.choice(["of the", "in a", "king", "house"]) for _ in range(8)) for _ in range(300)]
    tokenizer = trained(tmp_path, lines, split_by_whitespace=False)
    encoder = BulkEncoder(tokenizer)
    assert not encoder.by_words
    texts = ["of the king", "house of the house"]
    np.testing.assert_array_equal(encoder(texts)[0], tokenizer.encode_flat(texts)[0])


def trained(folder, lines, **options):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=60,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        pad_piece="[PAD]",
        bos_piece="[CLS]",
        eos_piece="[SEP]",
        unk_piece="[UNK]",
        minloglevel=2,
        hard_vocab_limit=False,
        **options,
    )
    (folder / "spm.model").write_bytes(model.getvalue())
    return load_tokenizer(folder)


@pytest.mark.parametrize(("kind", "by_words"), [("unigram", True), ("char", True), ("word", False), ("bpe", None)])
@pytest.mark.parametrize("rule", ["nmt_nfkc", "nfkc_cf", "identity"])
def test_other_kinds_of_models(kind, by_words, rule, tmp_path):
    """Unknown words that are neighbours become one piece in models of words; "\u2581" is not always a space."""
    lines = [f"{a} {b}" for a in ("of", "the", "king", "house") for b in ("in", "tower", "garden")] * 5
    tokenizer = trained(tmp_path, lines, model_type=kind, normalization_rule_name=rule)
    encoder = BulkEncoder(tokenizer)
    assert by_words is None or encoder.by_words == by_words
    for text in [*ODD, "of the king", "unknown words here", "\u9f98 \u9f98", "of \u2581 the\u2581", "the\u2581king"]:
        np.testing.assert_array_equal(encoder([text])[0], tokenizer.encode_flat([text])[0], err_msg=repr(text))


@pytest.mark.long
def test_all_the_texts(released, text_lines):
    for tokenizer in released.values():
        for found, expected in zip(BulkEncoder(tokenizer)(text_lines), tokenizer.encode_flat(text_lines), strict=True):
            np.testing.assert_array_equal(found, expected)
