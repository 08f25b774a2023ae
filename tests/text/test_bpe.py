"""v1: the `tokenizers` library, a second spelling of the algorithm and the published sequences are the references."""

from __future__ import annotations

import json
import pickle
import random
import shutil
import zipfile

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from deberta_jax.errors import InputError
from deberta_jax.text import load_tokenizer
from deberta_jax.text.bpe import BYTES, WORDS

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def read_files(v1_dir):
    vocab = json.loads((v1_dir / "vocab.json").read_text(encoding="utf-8"))
    lines = (v1_dir / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    return vocab, [tuple(line.split()) for line in lines if line]


@pytest.fixture(scope="module")
def reference(v1_dir):
    """line -> DeBERTa ids, through the library with other ids (alphabetical) and a renumbering by spelling."""
    vocab, merges = read_files(v1_dir)
    other = {piece: index for index, piece in enumerate(sorted(vocab))}
    renumber = [vocab[piece] for piece in sorted(vocab)]
    library = tokenizers.Tokenizer(models.BPE(vocab=other, merges=merges))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)

    def encode(lines):
        return [[renumber[i] for i in row.ids] for row in library.encode_batch_fast(lines)]

    return encode


def bare(tok, lines):
    return [ids.tolist() for ids in tok(lines, add_special_tokens=False).input_ids]


@pytest.mark.slow
def test_ids_equal_the_renumbered_library_on_all_texts(v1, reference, text_lines):
    assert bare(v1, text_lines) == reference(text_lines)


def test_ids_equal_the_renumbered_library_on_100_000_unicode_lines(v1, reference, unicode_lines):
    lines = unicode_lines(100_000)
    assert bare(v1, lines) == reference(lines)


def test_ids_equal_an_independent_implementation(v1, v1_dir, text_lines, unicode_lines):
    regex = pytest.importorskip("regex")
    vocab, merges = read_files(v1_dir)
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    spelling = {byte: character for character, byte in BYTES.items()}

    def encode(text):
        for word in regex.findall(GPT2, text):
            parts = [spelling[byte] for byte in word.encode()]
            while len(parts) > 1:
                rank, at = min((ranks.get(pair, len(ranks)), i) for i, pair in enumerate(zip(parts, parts[1:])))  # noqa: B905, RUF007
                if rank == len(ranks):
                    break
                parts[at : at + 2] = [parts[at] + parts[at + 1]]
            yield from (vocab[part] for part in parts)

    lines = text_lines[::97] + unicode_lines(1000, seed=5)
    assert bare(v1, lines) == [list(encode(line)) for line in lines]


def test_short_ascii_texts_are_looked_up_and_equal_the_library(v1, reference):
    """Few characters take the table of words, many the library: both must be the same function."""
    draw = random.Random(0)
    alphabet = "ab'sStrevmld  \t\n\r\x0b\x0c\x1c\x1f01!?._"
    lines = ["".join(draw.choices(alphabet, k=draw.randint(0, 12))) for _ in range(4_000)]
    lines += ["".join(chr(draw.randrange(128)) for _ in range(draw.randint(0, 30))) for _ in range(2_000)]
    expected = reference(lines)
    assert [v1(line, add_special_tokens=False).input_ids[0].tolist() for line in lines] == expected
    assert v1._known.keys() >= {" ab"}
    assert bare(v1, lines) == expected


def test_the_table_of_words_stays_small(v1_dir):
    tok = load_tokenizer(v1_dir)
    long_word = "x" * 65
    assert tok(long_word).input_ids.shape[1] > 3
    assert not tok._known
    for start in range(0, 70_000, 500):
        tok(" ".join(f"q{i}" for i in range(start, start + 500)))
    assert len(tok._known) <= 1 << 16


def test_the_words_of_ascii_are_those_of_gpt2():
    regex = pytest.importorskip("regex")
    draw = random.Random(1)
    for _ in range(20_000):
        text = "".join(chr(draw.choice([32, 32, 39, 9, 10, draw.randrange(128)])) for _ in range(draw.randint(0, 10)))
        if not set(text) & set("\x1c\x1d\x1e\x1f"):  # white space to `regex` and Python, not to the library
            assert WORDS.findall(text) == regex.findall(GPT2, text), repr(text)


def test_published_sequences(v1, data_dir):
    fixture = json.loads((data_dir / "fixtures" / "tokenization_v1_hf.json").read_text(encoding="utf-8"))
    assert len(fixture["cases"]) == 3
    for case in fixture["cases"]:
        assert v1(case["text"]).input_ids[0].tolist() == case["ids"]
    special = fixture["special"]
    assert special == {name: v1.token_to_id(name) for name in special}


def test_v1_pairs_have_one_separator_and_token_types(v1):
    """Transformers 5 writes [SEP] twice and gives every token type 0."""
    enc = v1("Hello world", "Hello")
    assert enc.input_ids.tolist() == [[1, 31414, 232, 2, 31414, 2]]
    assert enc.token_type_ids.tolist() == [[0, 0, 0, 0, 1, 1]]


def test_the_mask_token_takes_the_space_before_it(v1):
    """With transformers 5 a lone Ġ stays before [MASK]."""
    fox, the = v1.token_to_id("Ġfox"), v1.token_to_id("ĠThe")
    assert v1("A fox [MASK] The", add_special_tokens=False).input_ids[0].tolist() == [250, fox, 50264, the]
    assert v1("A fox \n [MASK][MASK]", add_special_tokens=False).input_ids[0].tolist() == [250, fox, 50264, 50264]
    # Only [MASK] does so.
    assert v1("A fox [SEP]", add_special_tokens=False).input_ids[0].tolist() == [250, fox, v1.token_to_id("Ġ"), 2]


def test_decode_gives_the_text_back(v1, unicode_lines):
    lines = unicode_lines(3000)
    for line, ids in zip(lines, v1(lines).input_ids, strict=True):
        assert v1.decode(ids) == line
    assert v1.decode(v1("A [MASK]").input_ids[0], skip_special_tokens=False) == "[CLS]A[MASK][SEP]"


def test_ids_between_pieces(v1):
    assert v1.token_to_id("no such piece") == v1.unk_id == 3
    assert v1.id_to_token(232) == "Ġworld"
    with pytest.raises(InputError, match="50265 is no token of this vocabulary of 50265"):
        v1.id_to_token(50265)


class TestMicrosoftFile:
    """bpe_encoder.bin in the forms that torch has written, without torch."""

    @pytest.fixture
    def content(self, v1_dir):
        vocab, merges = read_files(v1_dir)
        ordinary = [p for p in vocab if vocab[p] > 3 and p != "[MASK]" and not p.startswith("madeupword")]
        assert len(ordinary) == 50257
        encoder = {piece: index for index, piece in enumerate(sorted(ordinary))}
        in_order = sorted(ordinary + [f"madeupword000{i}" for i in range(3)], key=vocab.__getitem__)
        return {
            "encoder": encoder,
            "vocab": merges,
            "dict_map": [(str(encoder[p]) if p in encoder else p, 1) for p in in_order],
        }

    def legacy(self, content):
        parts = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, content, []]
        return b"".join(pickle.dumps(part, protocol=2) for part in parts)

    @pytest.mark.slow
    def test_both_forms_give_the_released_ids(self, tmp_path, content, v1, text_lines):
        for form in ("legacy", "zip"):
            directory = tmp_path / form
            directory.mkdir()
            if form == "legacy":
                (directory / "bpe_encoder.bin").write_bytes(self.legacy(content))
            else:
                with zipfile.ZipFile(directory / "bpe_encoder.bin", "w") as archive:
                    archive.writestr("archive/data.pkl", pickle.dumps(content, protocol=2))
                    archive.writestr("archive/version", "3\n")
            tok = load_tokenizer(directory)
            assert "bpe_encoder.bin" in tok.rule
            assert (tok.mask_id, tok.vocab_size) == (50264, 50265)
            assert bare(tok, text_lines[:3000]) == bare(v1, text_lines[:3000])
            assert tok.id_to_token(50261) == "madeupword0000"
            tok.save(directory / "saved")
            assert load_tokenizer(directory / "saved").fingerprint() == tok.fingerprint() == v1.fingerprint()

    @pytest.mark.slow
    def test_a_file_that_would_run_code_is_refused(self, tmp_path, content):
        content["encoder"] = print
        (tmp_path / "bpe_encoder.bin").write_bytes(self.legacy(content))
        with pytest.raises(InputError, match="print is not a plain container"):
            load_tokenizer(tmp_path)

    def test_another_file_is_refused(self, tmp_path):
        for raw in (b"", b"PK nothing", b"text", pickle.dumps({"a": 1})):
            (tmp_path / "bpe_encoder.bin").write_bytes(raw)
            with pytest.raises(InputError, match="is not the bpe_encoder"):
                load_tokenizer(tmp_path)


def test_add_prefix_space_of_the_directory_is_kept(tmp_path, v1, v1_dir):
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(v1_dir / name, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_prefix_space": True}))
    tok = load_tokenizer(tmp_path)
    for text in ("Hello", " Hello", "Hello [MASK]it", ""):
        if "[MASK]" not in text:
            expected = v1(f" {text.lstrip()}" if text else "").input_ids.tolist()
            assert tok(text).input_ids.tolist() == expected
        for i, j in tok(text, return_offsets_mapping=True).offset_mapping[0]:
            assert text[i:j].strip() == text[i:j]
    assert tok.decode(tok("Hello [MASK]it").input_ids[0]) == "Hello it"


def test_a_vocabulary_that_lacks_bytes_gives_unk(tmp_path):
    vocab = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *"loer", "\u0120", "\u0120l", "\u0120lo", "er", "[MASK]"]
    (tmp_path / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(vocab)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n\u0120 l\n\u0120l o\ne r\n")
    tok = load_tokenizer(tmp_path)
    enc = tok("er loXé", return_offsets_mapping=True)
    assert [tok.id_to_token(int(i)) for i in enc.input_ids[0]] == ["[CLS]", "er", "Ġlo", *["[UNK]"] * 3, "[SEP]"]
    assert enc.offset_mapping[0, 1:-1].tolist() == [[0, 2], [3, 5], [5, 6], [6, 7], [7, 7]]


def test_files_that_do_not_belong_together(tmp_path, v1_dir):
    (tmp_path / "vocab.json").write_text(json.dumps({"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, "a": 4}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    with pytest.raises(InputError, match="do not belong together"):
        load_tokenizer(tmp_path)
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b c\n")
    with pytest.raises(InputError, match="is not a pair"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps({"[PAD]": 0, "[CLS]": 1, "a": 4, "b": 5, "ab": 6}))
    (tmp_path / "merges.txt").write_text("a b\n")
    with pytest.raises(InputError, match=r"no id for \[SEP\], \[UNK\]"):
        load_tokenizer(tmp_path)
