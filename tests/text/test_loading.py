"""Which files decide, what is written, and that a second load gives the same ids."""

from __future__ import annotations

import json
import shutil

import pytest

from deberta_jax.errors import InputError
from deberta_jax.text import load_tokenizer, train_tokenizer

LINES = ["When one and two met, two said: it isn't three's turn.", "one [MASK] two", "x\u200bﬁ… 🤗 [SEP] é", ""]


def ids(tok, **options):
    return [row.tolist() for row in tok(LINES, **options).input_ids]


def unigram_json(tok, directory):
    """tokenizer.json as transformers 4 wrote it for v2 and v3: Unigram behind Metaspace, with its own template."""
    pieces = [[tok.id_to_token(i), 0.0 if i < 4 else tok._processor.get_score(i)] for i in range(tok.vocab_size - 1)]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    content = {
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
        "padding": None,
        "added_tokens": [{"id": t.id, "content": t.content, **flags} for t in tok.added.tokens],
        "normalizer": {"type": "Strip", "strip_left": True, "strip_right": True},
        "pre_tokenizer": space,
        "post_processor": None,
        "decoder": space,
        "model": {"type": "Unigram", "unk_id": 3, "vocab": pieces, "byte_fallback": True},
    }
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return directory


@pytest.mark.parametrize("kind", ["spm", "bpe"])
def test_saved_and_loaded_again_is_the_same(kind, small, tmp_path):
    tok = small[kind]
    tok.save(tmp_path / "new" / "folder")
    again = load_tokenizer(tmp_path / "new" / "folder")
    assert again.fingerprint() == tok.fingerprint()
    assert (again.kind, again.vocab_size, again.mask_id) == (tok.kind, tok.vocab_size, tok.mask_id)
    assert ids(again) == ids(tok)
    assert {p.name: p.read_bytes() for p in (tmp_path / "new" / "folder").iterdir()} == _saved(again, tmp_path / "b")


def _saved(tok, directory):
    tok.save(directory)
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_released_files_are_written_as_they_were(v3, v3_dir, v1, v1_dir, tmp_path):
    v3.save(tmp_path / "v3")
    assert (tmp_path / "v3" / "spm.model").read_bytes() == (v3_dir / "spm.model").read_bytes()
    assert json.loads((tmp_path / "v3" / "added_tokens.json").read_text()) == {"[MASK]": 128000}
    v1.save(tmp_path / "v1")
    for name in ("vocab.json", "merges.txt"):
        old, new = ((d / name).read_text(encoding="utf-8") for d in (v1_dir, tmp_path / "v1"))
        assert json.loads(old) == json.loads(new) if name == "vocab.json" else old.split() == new.split()


def test_fingerprints_tell_tokenizers_apart(small, v1, v3, tmp_path):
    small["spm"].save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    lower = load_tokenizer(tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"[MASK]": 371}))
    moved = load_tokenizer(tmp_path)
    prints = [tok.fingerprint() for tok in (small["spm"], small["bpe"], v1, v3, lower, moved)]
    assert len(set(prints)) == 6
    assert all(len(text) == 64 and int(text, 16) for text in prints)


class TestRule:
    """spm.model, else vocab.json and merges.txt, else bpe_encoder.bin, else tokenizer.json; a word chooses."""

    @pytest.fixture
    def full(self, small, tmp_path):
        small["spm"].save(tmp_path)
        small["bpe"].save(tmp_path)
        unigram_json(small["spm"], tmp_path)
        (tmp_path / "tokenizer_config.json").unlink()
        (tmp_path / "added_tokens.json").unlink()
        content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
        content["added_tokens"][-1]["id"] = small["spm"].mask_id
        return tmp_path

    def test_order(self, full, small):
        assert load_tokenizer(full).rule.startswith("sentencepiece: spm.model decides")
        assert ids(load_tokenizer(full)) == ids(small["spm"])
        (full / "spm.model").unlink()
        tokenizer_json = (full / "tokenizer.json").read_text(encoding="utf-8")
        (full / "tokenizer.json").unlink()
        assert load_tokenizer(full).rule == "byte-level BPE: vocab.json and merges.txt decide"
        assert ids(load_tokenizer(full)) == ids(small["bpe"])
        (full / "merges.txt").unlink()
        (full / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
        assert load_tokenizer(full).rule == "tokenizer.json: the tokenizers library decides (Unigram)"

    def test_choice(self, full):
        rules = {name: load_tokenizer(full, rule=name).rule for name in ("sentencepiece", "tokenizer.json")}
        assert rules["sentencepiece"].startswith("sentencepiece")
        assert rules["tokenizer.json"].startswith("tokenizer.json")

    def test_two_files_with_different_masks_are_not_mixed(self, full):
        # The BPE files put [MASK] at 310, the tokenizer.json beside them at 370.
        with pytest.raises(InputError, match="the vocabulary"):
            load_tokenizer(full, rule="bpe")


def test_tokenizer_json_alone(small, tmp_path):
    tok = small["spm"]
    by_json = load_tokenizer(unigram_json(tok, tmp_path))
    assert (by_json.kind, by_json.vocab_size, by_json.mask_id) == ("spm", tok.vocab_size, tok.mask_id)
    text = "When one and two met, two said: it isn't three's turn."
    # The truncation to 3 tokens that the file asks for is not in force, nor its missing template.
    a, b = (t(text, text, return_offsets_mapping=True) for t in (tok, by_json))
    assert a.input_ids.tolist() == b.input_ids.tolist()
    assert a.token_type_ids.tolist() == b.token_type_ids.tolist()
    assert a.offset_mapping.tolist() == b.offset_mapping.tolist()
    assert by_json.decode(b.input_ids[0]) == tok.decode(a.input_ids[0])
    assert by_json("one [MASK] two").input_ids.tolist() == tok("one [MASK] two").input_ids.tolist()
    by_json.save(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again").fingerprint() == by_json.fingerprint()


def test_tokenizer_json_of_v1_as_transformers_5_saves_it(v1, tmp_path):
    """Its template has [SEP] twice and its [MASK] leaves the space before it; DeBERTa's is neither."""
    content = json.loads(v1._library.to_str())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content["added_tokens"] = [{"id": t.id, "content": t.content, **flags} for t in v1.added.tokens]
    content["decoder"] = content["pre_tokenizer"]
    special = {n: {"id": n, "ids": [i], "tokens": [n]} for n, i in (("[CLS]", 1), ("[SEP]", 2))}
    piece = [{"SpecialToken": {"id": n, "type_id": 0}} for n in ("[CLS]", "[SEP]")]
    a, b = ({"Sequence": {"id": n, "type_id": 0}} for n in "AB")
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [piece[0], a, piece[1]],
        "pair": [piece[0], a, piece[1], piece[1], b, piece[1]],
        "special_tokens": special,
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    tok = load_tokenizer(tmp_path)
    assert tok.kind == "bpe"
    for texts in (("A fox [MASK] The", "Hello"), ("Hello world", "Hello  [MASK]")):
        ours, theirs = v1(*texts), tok(*texts)
        assert ours.input_ids.tolist() == theirs.input_ids.tolist()
        assert ours.token_type_ids.tolist() == theirs.token_type_ids.tolist()
    assert tok.decode(tok("A fox [MASK] The").input_ids[0]) == v1.decode(v1("A fox [MASK] The").input_ids[0])


def test_tokenizer_json_without_mask(small, tmp_path):
    unigram_json(small["spm"], tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    content["added_tokens"].pop()
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match=r"no id for \[MASK\]"):
        load_tokenizer(tmp_path)
    (tmp_path / "added_tokens.json").write_text('{"[MASK]": 370}')
    with pytest.raises(InputError, match=r"\[MASK\] is 370 in the other tokenizer files, None in tokenizer.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no tokenizer: spm.model or vocab.json . merges.txt or bpe_encoder.bin or tokenizer.json"),
        ({"spm.model": b"not a model"}, "spm.model is not a SentencePiece model"),
        ({"spm.model": b""}, "spm.model is not a SentencePiece model"),
        ({"vocab.json": b"{}"}, "holds no tokenizer"),
        ({"vocab.json": b"[]", "merges.txt": b""}, "vocab.json: expected a JSON object, found list"),
        ({"vocab.json": b"{", "merges.txt": b""}, "vocab.json: not readable as JSON"),
        ({"vocab.json": b'{"a": "b"}', "merges.txt": b""}, "not an object of piece: id"),
        ({"tokenizer.json": b"{}"}, "neither a BPE nor a Unigram"),
        ({"tokenizer.json": b"\xff"}, "not UTF-8 at byte 0"),
    ],
)
def test_directories_that_are_no_tokenizer(files, message, tmp_path):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_what_is_no_directory(tmp_path, small):
    with pytest.raises(InputError, match="is not a directory"):
        load_tokenizer(tmp_path / "missing")
    small["spm"].save(tmp_path)
    with pytest.raises(InputError, match="holds no tokenizer: vocab"):
        load_tokenizer(tmp_path, rule="bpe")
    with pytest.raises(InputError, match="it is one of sentencepiece, bpe"):
        load_tokenizer(tmp_path, rule="fast")


def test_a_released_v3_directory_with_config_and_model_only(v3, v3_dir, tmp_path):
    shutil.copy(v3_dir / "spm.model", tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "deberta-v2"}')
    tok = load_tokenizer(tmp_path)
    assert tok.mask_id == 128000
    assert tok.fingerprint() == v3.fingerprint()


def test_training_twice_gives_the_same_files(small_lines, small, tmp_path):
    for kind, size in (("spm", 370), ("bpe", 310)):
        again = train_tokenizer(iter(small_lines), size, tmp_path / kind, kind=kind)
        assert again.fingerprint() == small[kind].fingerprint()
