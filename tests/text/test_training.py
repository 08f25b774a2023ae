"""New vocabularies: DeBERTa's ids, nothing on the terminal, the same files each time, errors that say what to do."""

from __future__ import annotations

import json

import pytest

from deberta_jax.errors import InputError
from deberta_jax.text import train_tokenizer

SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]


def test_ids_are_deberta_s(tok):
    assert [tok.id_to_token(i) for i in range(4)] == SPECIAL
    assert (tok.pad_id, tok.cls_id, tok.sep_id, tok.unk_id) == (0, 1, 2, 3)
    assert tok.mask_id == tok.vocab_size - 1 == {"spm": 370, "bpe": 310}[tok.kind]
    assert tok.token_to_id("[MASK]") == tok.mask_id
    assert tok("one [MASK] two").input_ids[0].tolist().count(tok.mask_id) == 1


def test_files_are_those_of_the_releases(small_lines, tmp_path):
    train_tokenizer(small_lines, 370, tmp_path / "spm")
    assert sorted(p.name for p in (tmp_path / "spm").iterdir()) == [
        "added_tokens.json",
        "spm.model",
        "tokenizer_config.json",
    ]
    assert json.loads((tmp_path / "spm" / "added_tokens.json").read_text()) == {"[MASK]": 370}
    train_tokenizer(small_lines, 310, tmp_path / "bpe", kind="bpe")
    assert sorted(p.name for p in (tmp_path / "bpe").iterdir()) == ["merges.txt", "tokenizer_config.json", "vocab.json"]
    vocab = json.loads((tmp_path / "bpe" / "vocab.json").read_text(encoding="utf-8"))
    assert list(vocab.values()) == list(range(311))
    assert vocab["[MASK]"] == 310


def test_text_comes_back(tok, small_lines, unicode_lines):
    for line in small_lines[:20]:
        enc = tok(line)
        assert tok.unk_id not in enc.input_ids
        assert tok.decode(enc.input_ids[0]) == line
    # What has no piece of its own is spelt in bytes: no text is unknown.
    assert all(tok.unk_id not in ids for ids in tok(unicode_lines(500)).input_ids)


def test_every_printable_ascii_character_has_a_piece(small):
    for code in range(0x21, 0x7F):
        assert not small["spm"]._processor.is_byte(int(small["spm"](f"a{chr(code)}").input_ids[0, -2])), chr(code)


SCRIPT = """
import hashlib, pathlib
from deberta_jax.text import train_tokenizer
names = "one two three four five six seven eight nine ten".split()
for kind, size in (("spm", 360), ("bpe", 300)):
    lines = (f"When {a} and {b} met. {a}{b}" for a in names for b in names)
    train_tokenizer(lines, size, FOLDER + kind, kind=kind)
    for path in sorted(pathlib.Path(FOLDER + kind).iterdir()):
        print(path.name, hashlib.sha256(path.read_bytes()).hexdigest())
"""


def test_quiet_and_the_same_in_every_process(run_alone, tmp_path):
    """In fresh processes, so that neither hash seeds nor what ran before can matter; stderr must stay empty."""
    outputs = [run_alone(f"FOLDER = {str(tmp_path / name)!r}\n{SCRIPT}") for name in ("a", "b")]
    assert outputs[0] == outputs[1]
    assert len(outputs[0].splitlines()) == 6


@pytest.mark.parametrize(
    ("kind", "size", "message"),
    [
        ("spm", 100_000, "is more than this text supports; [0-9]+ is the most"),
        ("spm", 280, "raise it to at least [0-9]+"),
        ("spm", 10, "vocab_size=10|10 pieces"),
        ("bpe", 100_000, "is more than this text supports; [0-9]+ is the most"),
        ("bpe", 200, "raise it to 260"),
        ("wordpiece", 300, "kind='wordpiece'; it is 'spm' or 'bpe'"),
    ],
)
def test_sizes_that_cannot_be(kind, size, message, small_lines, tmp_path):
    with pytest.raises(InputError, match=message) as caught:
        train_tokenizer(small_lines, size, tmp_path / "x", kind=kind)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(("kind", "size"), [("spm", 370), ("bpe", 310)])
def test_the_named_limits_are_right(kind, size, small_lines, tmp_path):
    with pytest.raises(InputError) as caught:
        train_tokenizer(small_lines, 100_000, tmp_path, kind=kind)
    most = int(str(caught.value).split("; ")[1].split()[0])
    assert train_tokenizer(small_lines, most, tmp_path, kind=kind).vocab_size == most + 1
    with pytest.raises(InputError):
        train_tokenizer(small_lines, most + 1, tmp_path, kind=kind)


@pytest.mark.parametrize(("kind", "size"), [("spm", 360), ("bpe", 310)])
def test_lines_that_are_odd(kind, size, small_lines, tmp_path):
    odd = [*small_lines, "", "\x00", "lone \ud800 surrogate", "x" * 10_000, "tab\tand\nnewline", "▁"]
    tok = train_tokenizer(odd, size, tmp_path, kind=kind)
    assert tok.decode(tok("one").input_ids[0]) == "one"
    with pytest.raises(InputError, match="line 1 is int, not str"):
        train_tokenizer(["one", 2], size, tmp_path, kind=kind)
    with pytest.raises(InputError):
        train_tokenizer([], size, tmp_path, kind=kind)


def test_long_lines_are_not_left_out(small_lines, tmp_path):
    """SentencePiece's own default drops lines above 4192 bytes without a word."""
    one_line = " ".join(small_lines)
    assert len(one_line) > 4192
    # With its default there would be no text left, which is an error.
    assert train_tokenizer([one_line], 362, tmp_path).vocab_size == 363
