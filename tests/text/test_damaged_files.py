"""Tokenizer files that are damaged or made to harm: one line that names the file, in little time and memory.

``tests/fuzz/test_tokenizer_mutants.py`` tries many more.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shutil

import pytest
import sentencepiece

from deberta_jax.errors import InputError
from deberta_jax.text import load_tokenizer
from tests.fuzz.mutations import protobuf_bytes, protobuf_fields
from tests.fuzz.tokenizer_files import LINES, use, write_bases

# Reading one of these files whole takes longer.
pytestmark = pytest.mark.timeout(120)

GIGABYTES = 100 << 30


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    write_bases(folder)
    return folder


@pytest.fixture
def copy(bases, tmp_path):
    """copy(name): a directory of tokenizer files that the test may change."""
    return lambda name: shutil.copytree(bases / name, tmp_path / name)


def edited(folder, name, change):
    """Changes the JSON value of a file in place and writes it back."""
    value = json.loads((folder / name).read_text())
    change(value)
    (folder / name).write_text(json.dumps(value))
    return folder


def refused(folder) -> str:
    with pytest.raises(InputError) as caught:
        load_tokenizer(folder)
    line = str(caught.value)
    assert line.isprintable()
    assert len(line) < 600
    return line


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (-1, r"added_tokens\.json: the added token '\[MASK\]' has the id -1; it must be an integer from 0 to"),
        (1 << 40, "has the id 1099511627776; it must be"),
        (1 << 22, "has the id 4194304; it must be"),
        (370.0, r"has the id 370\.0; it must be"),
        (True, "has the id True; it must be"),
        ("370", "has the id '370'; it must be"),
        (None, "has the id None; it must be"),
        ([370] * 1000, r"has the id \[370, 370, .*\.\.\.; it must be"),
        (4, r"the added token '\[MASK\]' and the piece '.+' share the id 4"),
    ],
)
def test_an_id_of_a_mask_that_is_none(copy, index, message):
    folder = copy("spm")
    (folder / "added_tokens.json").write_text(json.dumps({"[MASK]": index}))
    with pytest.raises(InputError, match=message):
        load_tokenizer(folder)


@pytest.mark.parametrize("key", ["-1", "+5", " 5", "5_0", "٣", "1e3", "0x5", "", "9" * 30, "4194304"])
def test_a_key_of_the_decoder_that_is_no_id(copy, key):
    folder = edited(
        copy("spm-added"),
        "tokenizer_config.json",
        lambda c: c["added_tokens_decoder"].update({key: c["added_tokens_decoder"].pop("370")}),
    )
    assert "the added token '[MASK]' has the id" in refused(folder)


@pytest.mark.parametrize(
    ("vocab", "message"),
    [
        ({"a": -1}, "not an object of piece: id: 'a' has the id -1"),
        ({"a": 1 << 40}, "'a' has the id 1099511627776"),
        ({"a": False}, "'a' has the id False"),
        ({"a": 5, "b": 5}, "'a' and 'b' share the id 5"),
        ({"": 5}, "has an empty piece"),
        ({"x\ud800": 5}, r"a piece that is not Unicode: x\ud800"),
    ],
)
def test_a_vocabulary_with_ids_that_are_none(tmp_path, vocab, message):
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    assert message in refused(tmp_path)


def test_flags_that_are_texts(copy):
    """ "false" is true in Python; a model would get lower-case texts that nobody asked for."""
    for name, option in (("spm", "do_lower_case"), ("spm", "split_by_punct"), ("bpe", "add_prefix_space")):
        folder = edited(
            copy(name), "tokenizer_config.json", lambda config, option=option: config.update({option: "false"})
        )
        assert f"{option} is 'false'; it must be true or false" in refused(folder)
        shutil.rmtree(folder)
    folder = edited(
        copy("spm-added"), "tokenizer_config.json", lambda c: c["added_tokens_decoder"]["371"].update(lstrip=1)
    )
    assert "the added token '<sep>': lstrip is 1; it must be" in refused(folder)


def test_metadata_that_does_no_harm_refuses_nothing(copy):
    folder = edited(
        copy("spm-added"),
        "tokenizer_config.json",
        lambda c: c.update(chat_template=["x"] * 100, do_lower_case=None, model_max_length=10**18),
    )
    (folder / "special_tokens_map.json").write_bytes(b"\xff" * 100)
    use(load_tokenizer(folder))


def test_pieces_that_are_not_utf_8(copy):
    folder = copy("spm")
    fields = protobuf_fields((folder / "spm.model").read_bytes())
    at = [i for i, (number, _, _) in enumerate(fields) if number == 1][300]
    fields[at] = (1, 2, protobuf_bytes([(1, 2, b"\xff\xfeab"), *protobuf_fields(fields[at][2])[1:]]))
    (folder / "spm.model").write_bytes(protobuf_bytes(fields))
    assert "spm.model has a piece that is not UTF-8" in refused(folder)


def with_charsmap(content: bytes, change) -> bytes:
    fields = protobuf_fields(content)
    at = next(i for i, field in enumerate(fields) if field[0] == 3)
    spec = [(n, kind, change(value) if n == 2 else value) for n, kind, value in protobuf_fields(fields[at][2])]
    fields[at] = (3, 2, protobuf_bytes(spec))
    return protobuf_bytes(fields)


def charsmap_damage():
    def grown(table):
        size = int.from_bytes(table[:4], "little")
        at = table.index(b"\0", 4 + size)
        return table[:at] + b"x" * 1000 + table[at:]

    return {
        "leads outside itself": lambda table: table[:4] + b"\x00\xfc\xff\x3f" + table[8:],
        "is damaged": lambda table: b"\xff\xff\xff\x7f" + table[4:],
        "is cut off": lambda table: table[:-1],
        "replaces a character by more than 256 bytes": grown,
        "is not UTF-8": lambda table: table[:-3] + b"\xff\xff\0",
    }


@pytest.mark.parametrize("message", charsmap_damage())
def test_a_table_of_characters_that_leads_elsewhere(copy, message):
    folder = copy("spm")
    path = folder / "spm.model"
    content = path.read_bytes()
    path.write_bytes(with_charsmap(content, charsmap_damage()[message]))
    assert message in refused(folder)

    folder = copy("json-unigram")

    def change(value):
        entry = value["normalizer"]["normalizers"][1]
        table = base64.b64decode(entry["precompiled_charsmap"])
        entry["precompiled_charsmap"] = base64.b64encode(charsmap_damage()[message](table)).decode()

    assert message in refused(edited(folder, "tokenizer.json", change))


@pytest.mark.parametrize("rule", ["nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf", "identity", "tsv"])
def test_tables_that_sentencepiece_makes_are_whole(rule, tmp_path):
    (tmp_path / "rules.tsv").write_text("41\t42 43 44\n")
    choice = (
        {"normalization_rule_tsv": str(tmp_path / "rules.tsv")} if rule == "tsv" else {"normalization_rule_name": rule}
    )
    model = io.BytesIO()
    names = {
        "pad_id": 0,
        "bos_id": 1,
        "eos_id": 2,
        "unk_id": 3,
        "pad_piece": "[PAD]",
        "bos_piece": "[CLS]",
        "eos_piece": "[SEP]",
        "unk_piece": "[UNK]",
    }
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(LINES),
        model_writer=model,
        vocab_size=45,
        hard_vocab_limit=False,
        minloglevel=2,
        **names,
        **choice,
    )
    (tmp_path / "spm.model").write_bytes(model.getvalue())
    use(load_tokenizer(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(model=[]), "holds neither a BPE nor a Unigram model"),
        (lambda c: c["model"].pop("vocab"), "the vocabulary is not an object of piece: id"),
        (lambda c: c["model"].update(vocab=["a"]), "the vocabulary is not an object of piece: id"),
        (lambda c: c["model"]["vocab"].update(zz=1 << 32), "'zz' has the id 4294967296"),
        (lambda c: c["model"].update(unk_token="none"), "unk_token is 'none', which is no piece"),
        (lambda c: c.update(added_tokens={}), "added_tokens is {}; it must be a list of objects"),
        (lambda c: c["added_tokens"].append({"id": 5}), r"the added token 5 is {'id': 5}, without a content"),
        (lambda c: c["added_tokens"][0].pop("id"), r"the added token '[PAD]' has the id None"),
        (lambda c: c.update(normalizer={"type": "Precompiled"}), "precompiled_charsmap is not base64"),
        (lambda c: c.update(normalizer={"type": "Nothing"}), "tokenizer.json cannot be read: "),
        (
            lambda c: c.update(
                normalizer={
                    "type": "Sequence",
                    "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 40,
                }
            ),
            "its normalizer makes a text more than 4096 times as long",
        ),
    ],
)
def test_a_tokenizer_json_of_another_form(copy, change, message):
    assert message in refused(edited(copy("json-bpe"), "tokenizer.json", change))


def test_an_expression_that_takes_for_ever_ends_with_a_line(copy, capfd):
    expression = {"type": "Replace", "pattern": {"Regex": "(x+x+)+y"}, "content": " "}
    tok = load_tokenizer(edited(copy("json-bpe"), "tokenizer.json", lambda c: c.update(normalizer=expression)))
    assert tok.decode(tok("one").input_ids[0]) == "one"
    with pytest.raises(InputError, match=r"tokenizer\.json fails on a text: .*retry-limit.*; fetch it again"):
        tok("x" * 60)
    capfd.readouterr()  # the library prints its own report


def test_special_tokens_that_are_only_pieces_are_found_in_texts(copy):
    tok = load_tokenizer(edited(copy("json-bpe"), "tokenizer.json", lambda content: content.pop("added_tokens")))
    use(tok)
    assert tok("a[MASK]", add_special_tokens=False).input_ids[0].tolist()[-1] == tok.mask_id


def test_ids_do_not_depend_on_chance(copy):
    tok = load_tokenizer(edited(copy("json-bpe"), "tokenizer.json", lambda c: c["model"].update(dropout=0.9)))
    assert len({tuple(tok(LINES[0]).input_ids[0].tolist()) for _ in range(20)}) == 1


def test_unknown_bytes_and_pieces_that_spell_none(copy):
    """Without its piece, "q" is [UNK], which added_tokens.json declares; "漢" spells no bytes and stands for itself."""
    folder = copy("bpe")
    vocab = json.loads((folder / "vocab.json").read_text())
    (folder / "added_tokens.json").write_text(json.dumps({"[UNK]": vocab.pop("[UNK]")}))
    vocab["漢"] = vocab.pop("q")
    (folder / "vocab.json").write_text(json.dumps(vocab))
    tok = load_tokenizer(folder)
    assert tok("q", add_special_tokens=False).input_ids.tolist() == [[tok.unk_id]]
    assert tok.decode([vocab["漢"]]) == "漢"


def test_attacks_on_memory(bases, tmp_path, run_alone):
    """Each is refused within 5 seconds and 500 MB more than the process had."""
    names = []

    def attack(name, base, file, content=None, size=0):
        folder = shutil.copytree(bases / base, tmp_path / name)
        path = folder / file
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        elif size:
            path.touch()
            os.truncate(path, size)
        else:
            os.mkfifo(path)
        names.append(name)

    for file in ("spm.model", "added_tokens.json", "tokenizer_config.json", "tokenizer.json"):
        attack(f"sparse {file}", "spm", file, size=GIGABYTES)
        attack(f"pipe {file}", "spm", file)
    attack("sparse merges", "bpe", "merges.txt", size=GIGABYTES)
    attack("empty pieces", "spm", "spm.model", b"\n\0" * (30 << 20))
    attack(
        "control symbols",
        "spm",
        "spm.model",
        (bases / "spm" / "spm.model").read_bytes() + protobuf_bytes([(2, 2, b"\xf2\1\0" * (20 << 20))]),
    )
    attack("lists", "spm", "tokenizer_config.json", b'{"a":[' + b"[]," * (20 << 20) + b"1]}")
    attack("deep", "spm", "tokenizer_config.json", b'{"a":' + b"[" * (30 << 20))
    attack("merges", "bpe", "merges.txt", b"a b\n" * (15 << 20))
    attack(
        "tokens",
        "spm",
        "added_tokens.json",
        json.dumps({"[MASK]": 370} | {f"<{i}>": 371 + i for i in range(200_000)}).encode(),
    )
    attack("long token", "spm", "added_tokens.json", json.dumps({"[MASK]": 370, "x" * (30 << 20): 371}).encode())
    script = f"""
import re
from deberta_jax.errors import InputError
from deberta_jax.text import load_tokenizer
from pathlib import Path

def peak(begin):
    if begin:  # sets the peak back to what is in use
        Path("/proc/self/clear_refs").write_text("5")
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) >> 10

load_tokenizer({str(bases / "spm")!r})
for name in {names!r}:
    before = peak(True)
    try:
        load_tokenizer(Path({str(tmp_path)!r}) / name)
        print(name, "was read")
    except InputError as error:
        assert peak(False) - before < 500, (name, peak(False) - before)
        assert len(str(error)) < 400, error
        print(name, "was refused")
"""
    assert run_alone(script).splitlines() == [f"{name} was refused" for name in names]
