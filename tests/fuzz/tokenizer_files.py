"""Damages the files of tokenizers, loads them, and uses what loads.

It runs as a process of its own (see ``test_tokenizers``), because a damaged file might stop a native library's process:
``python tokenizer_files.py FOLDER WORK KIND SEED FIRST COUNT`` prints one line of JSON for each damaged file.
"""

import base64
import io
import json
import os
import resource
import shutil
import signal
import sys
import time
import types
from pathlib import Path

import numpy as np

SECONDS = 5
NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
LINES = [f"When {a} and {b} met, {b} said: it isn't {a}'s turn." for a in NUMBERS for b in NUMBERS]
SPECIALS = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]")
TEXTS = [
    "When one and two met, two said: it isn't three's turn.",
    "",
    "one [MASK]two  [SEP]",
    "  \t é … ﬁne ½ 🤗 漢字 \u200b\u00a0 e\u0301 ",
    "x\x00y" + "a" * 50,
    "<0x41> \u2581 ▁one Ġone <unk> </s>",
]
KINDS = ("spm.model", "vocab and merges", "tokenizer.json BPE", "tokenizer.json Unigram", "added tokens")


def write_bases(root: Path) -> None:
    """Writes the undamaged directories of tokenizers: ``spm``, ``spm-bpe``, ``bpe``, ``json-bpe``, ``json-unigram``."""
    import sentencepiece

    from deberta_jax.text import load_tokenizer, train_tokenizer

    spm = train_tokenizer(LINES, 370, root / "spm")
    bpe = train_tokenizer(LINES, 310, root / "bpe", kind="bpe")
    model = io.BytesIO()
    names = dict(zip(("pad_piece", "bos_piece", "eos_piece", "unk_piece"), SPECIALS, strict=False))
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(LINES),
        model_writer=model,
        model_type="bpe",
        vocab_size=120,
        normalization_rule_name="nfkc_cf",
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        user_defined_symbols=["<sep>"],
        minloglevel=2,
        **names,
    )
    (root / "spm-bpe").mkdir()
    (root / "spm-bpe" / "spm.model").write_bytes(model.getvalue())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = {
        tok.kind: [{"id": t.id, "content": t.content, **flags} for t in tok.added.tokens]
        + [{"id": tok.mask_id + 1, "content": "<sep>", **flags, "special": False, "single_word": True}]
        for tok in (spm, bpe)
    }
    content = json.loads(bpe._library.to_str())
    content |= {"added_tokens": added["bpe"], "decoder": content["pre_tokenizer"]}
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    (root / "json-bpe").mkdir()
    (root / "json-bpe" / "tokenizer.json").write_text(json.dumps(content))
    pieces = [[spm.id_to_token(i), 0.0 if i < 4 else spm._processor.get_score(i)] for i in range(spm.vocab_size - 1)]
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    normalizers = [
        {"type": "Strip", "strip_left": True, "strip_right": True},
        {
            "type": "Precompiled",
            "precompiled_charsmap": base64.b64encode(_charsmap(root / "spm" / "spm.model")).decode(),
        },
        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
    ]
    content = {
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
        "padding": None,
        "added_tokens": added["spm"],
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": space,
        "post_processor": None,
        "decoder": space,
        "model": {"type": "Unigram", "unk_id": 3, "vocab": pieces, "byte_fallback": True},
    }
    (root / "json-unigram").mkdir()
    (root / "json-unigram" / "tokenizer.json").write_text(json.dumps(content))
    for name in ("spm", "bpe"):
        decoder = {str(entry["id"]): {k: v for k, v in entry.items() if k != "id"} for entry in added[name]}
        config = json.loads((root / name / "tokenizer_config.json").read_text())
        folder = shutil.copytree(root / name, root / f"{name}-added")
        (folder / "tokenizer_config.json").write_text(json.dumps(config | {"added_tokens_decoder": decoder}))
        (folder / "added_tokens.json").write_text(json.dumps({e["content"]: e["id"] for e in added[name]}))
        (folder / "special_tokens_map.json").write_text(json.dumps({"mask_token": decoder[str(added[name][4]["id"])]}))
    for folder in root.iterdir():
        load_tokenizer(folder)


def _charsmap(path: Path) -> bytes:
    from tests.fuzz.mutations import protobuf_fields

    spec = next(value for number, _, value in protobuf_fields(path.read_bytes()) if number == 3)
    return next(value for number, _, value in protobuf_fields(spec) if number == 2)


def damaged(kind: str, root: Path, work: Path, rng: np.random.Generator) -> Path:
    """Writes a damaged copy of a tokenizer's directory."""
    from tests.fuzz.mutations import mutated_bytes, mutated_json, mutated_protobuf

    pick = lambda *items: items[int(rng.integers(len(items)))]
    base, file = {
        "spm.model": lambda: (pick("spm", "spm-bpe"), "spm.model"),
        "vocab and merges": lambda: ("bpe", pick("vocab.json", "merges.txt")),
        "tokenizer.json BPE": lambda: ("json-bpe", "tokenizer.json"),
        "tokenizer.json Unigram": lambda: ("json-unigram", "tokenizer.json"),
        "added tokens": lambda: (
            pick("spm-added", "bpe-added"),
            pick("added_tokens.json", "tokenizer_config.json", "special_tokens_map.json"),
        ),
    }[kind]()
    shutil.copytree(root / base, work)
    path = work / file
    content = path.read_bytes()
    structured = rng.random() < 0.8
    if file.endswith(".model"):
        content = mutated_protobuf(content, rng) if structured else mutated_bytes(content, rng)
    elif file.endswith(".json") and structured:
        content = mutated_json(json.loads(content), rng)
    else:
        content = mutated_bytes(content, rng)
    path.write_bytes(content)
    return work


def outcome(folder: Path) -> tuple[str, str]:
    """Loads a tokenizer and uses it. Returns "used", or "refused" and the message; raises if anything is wrong."""
    from deberta_jax.errors import InputError
    from deberta_jax.text import load_tokenizer

    try:
        tok = load_tokenizer(folder)
    except InputError as error:
        line = str(error)
        assert line.isprintable(), line
        assert 20 < len(line) < 1000, line
        return "refused", line
    use(tok)
    saved = folder.with_name("saved")
    tok.save(saved)
    again = load_tokenizer(saved)
    assert again.fingerprint() == tok.fingerprint()
    assert again.vocab_size == tok.vocab_size
    for text in TEXTS:
        assert again(text).input_ids.tolist() == tok(text).input_ids.tolist(), text
    return "used", ""


def use(tok) -> None:
    """Encodes and decodes, and checks what every tokenizer must hold."""
    from deberta_jax.text.bulk import BulkEncoder

    special = [tok.pad_id, tok.cls_id, tok.sep_id, tok.unk_id, tok.mask_id]
    assert len(set(special)) == 5
    assert all(type(index) is int and 0 <= index < tok.vocab_size for index in special)
    assert [tok.token_to_id(name) for name in SPECIALS] == special
    assert [tok.id_to_token(index) for index in special] == list(SPECIALS)
    flat = [row.tolist() for row in tok(TEXTS, add_special_tokens=False).input_ids]
    assert (np.concatenate([[], *flat]) < tok.vocab_size).all()
    assert (np.concatenate([[], *flat]) >= 0).all()
    assert flat[2].count(tok.mask_id) == flat[2].count(tok.sep_id) == 1
    assert [row.tolist() for row in tok(TEXTS, add_special_tokens=False).input_ids] == flat, "no chance"
    enc = tok(TEXTS, return_offsets_mapping=True, padding="longest", add_special_tokens=False)
    for text, row, spans, mask in zip(TEXTS, flat, enc.offset_mapping, enc.attention_mask, strict=True):
        spans = spans[mask == 1]
        assert len(spans) == len(row)
        assert ((spans >= 0) & (spans <= len(text))).all()
        assert (spans[:, 0] <= spans[:, 1]).all()
        assert (np.diff(spans[:, 0]) >= 0).all(), "in order"
        assert isinstance(tok.decode(row), str)
        assert isinstance(tok.decode(row, skip_special_tokens=False), str)
        assert all(isinstance(tok.id_to_token(index), str) for index in row)
    many = BulkEncoder(tok)(TEXTS)
    assert many[0].tolist() == [index for row in flat for index in row]
    words = tok(
        [text.split(" ") for text in TEXTS], is_split_into_words=True, padding="longest", return_offsets_mapping=True
    )
    assert words.word_ids.max() < 20


def limit_memory(mebibytes: int) -> None:
    """Limits the memory of this process to what it has now and so much more."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = used + (mebibytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main(folder: str, work: str, kind: str, seed: int, first: int, count: int) -> None:
    """Tries ``count`` damaged files and prints what became of each."""
    from deberta_jax.text import load_tokenizer

    bases = Path(folder)
    for base in bases.iterdir():
        use(load_tokenizer(base))
    limit_memory(1000)
    for index in range(first, first + count):
        target = Path(work) / "mutant"
        for path in (target, Path(work) / "saved"):
            shutil.rmtree(path, ignore_errors=True)
        rng = np.random.default_rng([seed, KINDS.index(kind), index])
        print(json.dumps({"index": index}), flush=True)
        damaged(kind, bases, target, rng)
        begin = time.monotonic()
        signal.alarm(SECONDS)  # ends the process, whatever native code it is in
        try:
            what, line = outcome(target)
        except BaseException as error:
            import traceback

            what, line = "failed", "".join(traceback.format_exception(error))
        signal.alarm(0)
        print(json.dumps({"index": index, "what": what, "line": line, "seconds": time.monotonic() - begin}), flush=True)


if __name__ == "__main__":
    root = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(root)]
    # The package itself imports jax, which tokenizers do not need and which takes seconds.
    sys.modules["deberta_jax"] = types.ModuleType("deberta_jax")
    sys.modules["deberta_jax"].__path__ = [str(root / "deberta_jax")]
    os.environ["RAYON_NUM_THREADS"] = "1"
    main(sys.argv[1], sys.argv[2], sys.argv[3], *map(int, sys.argv[4:]))
