"""Text to token shards: what is a document, the same bytes in every way of getting there, and what is refused."""

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from deberta_jax.cli.main import main
from deberta_jax.data import documents
from deberta_jax.data.corpus import open_corpus
from deberta_jax.data.documents import lone_space
from deberta_jax.data.rows import lay_out
from deberta_jax.errors import InputError
from tests.data.preparing import assert_holds, contents, run, texts, write
from tests.made import make_tokenizer
from tests.weights import bucket


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(directory)
    return directory


@pytest.fixture(scope="module")
def tokenizer(tokenizer_dir):
    from deberta_jax.text import load_tokenizer

    return load_tokenizer(tokenizer_dir)


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 2 KiB and pieces of 256 characters, so that little text is many of them."""
    monkeypatch.setattr(documents, "BLOCK", 1 << 11)
    monkeypatch.setattr(documents, "PIECE", 1 << 8)


KINDS = ["a.txt", "a.txt.gz", "a.txt.zst", "a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"]


@pytest.mark.parametrize("name", KINDS)
def test_every_format_gives_the_same_shards_and_goes_on_after_any_of_them(name, tokenizer, tmp_path, small_blocks):
    lines = texts(260)
    file = write(tmp_path / name, lines)
    manifest = run([file], tmp_path / "out", tokenizer)
    assert_holds(tmp_path / "out", tokenizer, lines)
    assert manifest["documents"] == 260
    assert len(manifest["shards"]) >= 3
    assert manifest["tokenizer"]["fingerprint"] == tokenizer.fingerprint()
    whole = contents(tmp_path / "out")
    for kept in (1, len(manifest["shards"]) - 1):
        # What a kill leaves: some shards, the beginning of another, no manifest.
        for path in (tmp_path / "out").glob("*"):
            if path.stem in ("manifest", "unigrams") or (path.stem.startswith("shard") and int(path.stem[6:]) >= kept):
                path.unlink()
        (tmp_path / "out" / f".shard-{kept:05d}.tokens.partial-0a1b2c3d").write_bytes(b"beginning")
        (tmp_path / "out" / f"shard-{kept:05d}.tokens").write_bytes(b"no record of it")
        run([file], tmp_path / "out", tokenizer)
        assert contents(tmp_path / "out") == whole


def test_many_files_and_patterns_and_what_pays_for_nothing(tokenizer, tmp_path, small_blocks):
    for i in range(3):
        write(tmp_path / f"part-{i}.txt", texts(50, seed=i))
    write(tmp_path / "more.jsonl", texts(50, seed=3))
    run([tmp_path / "part-*.txt", tmp_path / "more.jsonl"], tmp_path / "out", tokenizer, shard_tokens=10**6)
    assert_holds(tmp_path / "out", tokenizer, [line for i in range(4) for line in texts(50, seed=i)])
    before = contents(tmp_path / "out")
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    run([tmp_path / "part-*.txt", tmp_path / "more.jsonl"], tmp_path / "out", tokenizer, shard_tokens=10**6)
    assert contents(tmp_path / "out") == before
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == stamps


@pytest.mark.parametrize("cut", ["line", "paragraph", "file"])
@pytest.mark.parametrize("blank", ["\n\n", "\n \t\n\n", "\r\n\r\n"])
def test_documents_longer_than_blocks_and_pieces(cut, blank, tokenizer, tmp_path, small_blocks):
    # Lines without white space at their ends, of 10 to 30,000 characters.
    parts = [text for size in (3, 2000, 40, 900, 1, 2500, 400) for text in texts(3, size, seed=size)]
    body = blank.join(parts) + "\n"
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + body.encode())
    (tmp_path / "b.txt").write_text("ban")
    run([tmp_path / "a.txt", tmp_path / "b.txt"], tmp_path / "out", tokenizer, documents=cut)
    corpus = open_corpus([tmp_path / "out"], tokenizer)
    assert_holds(tmp_path / "out", tokenizer, [body, "ban"] if cut == "file" else [*parts, "ban"])
    assert len(corpus.lengths) == (2 if cut == "file" else len(parts) + 1)


def test_a_text_without_spaces_loses_no_character(tokenizer, tmp_path, small_blocks):
    line = "日本ü" * 3000
    for name, content in (("a.txt", line), ("a.jsonl", json.dumps({"body": line}, ensure_ascii=False))):
        (tmp_path / name).write_text(content, encoding="utf-8")
        run([tmp_path / name], tmp_path / f"out-{name}", tokenizer)
        corpus = open_corpus([tmp_path / f"out-{name}"], tokenizer)
        assert len(corpus.lengths) == 1
        assert tokenizer.decode(corpus.parts[0]).replace(" ", "") == line


@pytest.mark.parametrize("data", ["ab cd  ef", "ab cd", " ab", "a  b", "abc", "ab日", "日本", "aü"])
def test_where_a_long_text_is_cut(data):
    assert lone_space(data) == {"ab cd  ef": 2, "ab cd": 2}.get(data, len(data))
    raw = data.encode()
    for end in range(1, len(raw) + 1):
        cut = lone_space(raw[:end])
        if cut:
            raw[:cut].decode()
        assert end - cut < 4 or raw[cut : cut + 1] == b" "


def test_a_jsonl_line_that_is_too_long_is_refused(tokenizer, tmp_path, small_blocks, monkeypatch):
    monkeypatch.setattr(documents, "LONGEST_LINE", 1 << 13)
    write(tmp_path / "a.jsonl", ["ban", "bast " * 1000])
    run([tmp_path / "a.jsonl"], tmp_path / "out", tokenizer)
    write(tmp_path / "a.jsonl", ["ban", "bast " * 3000])
    with pytest.raises(InputError, match=r"a\.jsonl, line 2: longer than"):
        run([tmp_path / "a.jsonl"], tmp_path / "out2", tokenizer)


def test_files_in_a_bucket(tokenizer, tmp_path, small_blocks, monkeypatch):
    lines = texts(300)
    with bucket.served(monkeypatch) as served:
        for name in ("a.txt.gz", "b.parquet"):
            served.put(f"bucket/text/{name}", write(tmp_path / name, lines).read_bytes())
        run(["gs://bucket/text/*.gz", "gs://bucket/text/b.parquet"], tmp_path / "out", tokenizer)
    assert_holds(tmp_path / "out", tokenizer, lines + lines)


BAD = {
    "not UTF-8 at byte 2": ("a.txt", b"ab\xff"),
    "no text; nothing but blank lines": ("a.txt", b"\n  \n"),
    "'.csv' is not known": ("a.csv", b"text\n1\n"),
    r"a\.jsonl, line 3: not JSON": ("a.jsonl", b'{"body": "x"}\n\n{"body": \n'),
    r"a\.jsonl, line 1: no column 'body'; its columns are 'text'": ("a.jsonl", b'{"text": "x"}\n'),
    r"a\.jsonl, line 2: 'body' is None; a text is needed": ("a.jsonl", b'{"body": "x"}\n{"body": null}\n'),
    r"a\.jsonl, line 1: expected a JSON object": ("a.jsonl", b"[1]\n"),
    r"a\.txt\.gz: damaged": ("a.txt.gz", gzip.compress(b"ban " * 500)[:-9]),
    r"b\.txt\.gz: damaged": ("b.txt.gz", b"no gzip"),
    r"a\.txt\.zst: damaged": ("a.txt.zst", b"no zstd"),
    "not readable as parquet": ("a.parquet", b"no parquet"),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_refused_and_nothing_left(message, tokenizer, tmp_path):
    name, content = BAD[message]
    (tmp_path / name).write_bytes(content)
    (tmp_path / "empty").mkdir()
    for output in (tmp_path / "new" / "out", tmp_path / "empty"):
        with pytest.raises(InputError, match=message):
            run([tmp_path / name], output, tokenizer)
    assert not (tmp_path / "new").exists()
    assert not [*(tmp_path / "empty").iterdir()]


def test_missing_files_columns_and_libraries(tokenizer, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"none\.txt: no such file"):
        run([tmp_path / "none.txt"], tmp_path / "out", tokenizer)
    file = write(tmp_path / "a.parquet", ["ban"])
    with pytest.raises(InputError, match="no column 'text'; its columns are 'body'"):
        run([file], tmp_path / "out", tokenizer, text="text")
    with pytest.raises(InputError, match="given twice"):
        run([file, tmp_path / "*.parquet"], tmp_path / "out", tokenizer)
    file = write(tmp_path / "a.txt.zst", ["ban"])
    monkeypatch.setitem(sys.modules, "backports", None)
    monkeypatch.setitem(sys.modules, "compression", None)
    with pytest.raises(InputError, match=r"\.zst needs a library; pip install 'deberta_jax\[zstd\]'"):
        run([file], tmp_path / "out", tokenizer)


def test_another_tokenizer_other_input_or_other_options_are_refused(tokenizer, small_tokenizer, tmp_path, small_blocks):
    file, out = write(tmp_path / "a.txt", texts(100)), tmp_path / "out"
    run([file], out, tokenizer)
    with pytest.raises(InputError, match="was made with another tokenizer"):
        run([file], out, small_tokenizer)
    with pytest.raises(InputError, match="was made with another tokenizer"):
        open_corpus([out], small_tokenizer)
    with pytest.raises(InputError, match="--documents line, not file"):
        run([file], out, tokenizer, documents="file")
    with pytest.raises(InputError, match="--shard-tokens 3000, not 4000"):
        run([file], out, tokenizer, shard_tokens=4000)
    other = write(tmp_path / "b.txt", texts(100))
    with pytest.raises(InputError, match=r"other input \(2 files, not 1\)"):
        run([file, other], out, tokenizer)
    with pytest.raises(InputError, match=r"other input \(.*b\.txt\)"):
        run([other], out, tokenizer)
    write(file, texts(101))
    with pytest.raises(InputError, match=r"a\.txt has changed"):
        run([file], out, tokenizer)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty and holds no prepared text"):
        run([file], tmp_path / "full", tokenizer)
    with pytest.raises(InputError, match="one is taken"):
        open_corpus([out, file], tokenizer)


@pytest.fixture
def small_tokenizer(tmp_path):
    from deberta_jax.text import train_tokenizer

    return train_tokenizer([f"another text {i}" for i in range(50)], 358, tmp_path / "another")


def test_damage_is_found(tokenizer, tmp_path, small_blocks):
    file, out = write(tmp_path / "a.txt", texts(300)), tmp_path / "out"
    manifest = run([file], out, tokenizer)
    assert len(manifest["shards"]) > 2
    whole = contents(out)
    for name in ("shard-00001.tokens", "shard-00001.lengths", "unigrams.npy"):
        good = (out / name).read_bytes()
        (out / name).write_bytes(good[:-4])
        for torn in (lambda: open_corpus([out], tokenizer), lambda: run([file], out, tokenizer)):
            with pytest.raises(InputError, match=name):
                torn()
        (out / name).write_bytes(good[:-4] + bytes([good[-4] ^ 1]) + good[-3:])
        with pytest.raises(InputError, match=name):
            run([file], out, tokenizer)
        (out / name).unlink()
        with pytest.raises(InputError, match=f"{name}: missing"):
            open_corpus([out], tokenizer)
        # As the message says.
        for path in [*out.glob(f"{Path(name).stem}.*"), out / "manifest.json"]:
            path.unlink()
        with pytest.raises(InputError, match=r"holds no manifest\.json; run `deberta-jax prepare` to its end"):
            open_corpus([out], tokenizer)
        run([file], out, tokenizer)
        assert contents(out) == whole


RECORDS = ["inputs.json", "manifest.json", "shard-00001.json"]


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("content", ["", "{}", "[]", "null", '{"version": 1, "name": 3}', "half"])
def test_a_damaged_record_is_refused_and_its_advice_is_true(name, content, tokenizer, tmp_path, small_blocks):
    file, out = write(tmp_path / "a.txt", texts(300)), tmp_path / "out"
    run([file], out, tokenizer)
    whole = contents(out)
    (out / name).write_text((out / name).read_text()[:200] if content == "half" else content)
    with pytest.raises(
        InputError, match=rf"{name}: .*; delete .* and run the same `deberta-jax prepare` again"
    ) as told:
        run([file], out, tokenizer)
    if name == "manifest.json":
        with pytest.raises(InputError, match=name):
            open_corpus([out], tokenizer)
    advice = str(told.value)
    if name == "inputs.json":
        assert f"delete the directory {out} and run" in advice
        for path in out.iterdir():
            path.unlink()
    else:
        assert ("delete it and run" if name == "manifest.json" else "delete shard-00001.* and manifest.json") in advice
        for path in [*out.glob(f"{Path(name).stem}.*"), out / "manifest.json"]:
            path.unlink(missing_ok=True)
    run([file], out, tokenizer)
    assert contents(out) == whole


def test_every_field_that_is_read_is_looked_for(tokenizer, tmp_path, small_blocks):
    file, out = write(tmp_path / "a.txt", texts(100)), tmp_path / "out"
    run([file], out, tokenizer)
    manifest = json.loads((out / "manifest.json").read_text())
    for name in ("tokenizer", "shards", "tokens", "cut"):
        for odd in ({}, [], None, [{}], "x" if name != "cut" else 1):
            (out / "manifest.json").write_text(json.dumps(manifest | {name: odd}))
            with pytest.raises(InputError, match=r"manifest\.json: is not what was written"):
                open_corpus([out], tokenizer)
    (out / "manifest.json").write_text(json.dumps(manifest | {"version": 2}))
    with pytest.raises(InputError, match=r"manifest\.json: is of version 2, expected 1"):
        open_corpus([out], tokenizer)
    (out / "manifest.json").write_text(json.dumps(manifest))
    open_corpus([out], tokenizer)


@pytest.mark.parametrize("layout", ["packed", "contiguous"])
@pytest.mark.parametrize("wide", [False, True])
def test_an_id_beyond_the_vocabulary_is_refused_where_it_is_read(layout, wide, tokenizer, tmp_path, monkeypatch):
    from deberta_jax.data import prepare as preparing
    from deberta_jax.data import shards

    if wide:  # as of a vocabulary beyond 65536, of which an id may even have the sign of int32
        for module in (preparing, shards):
            monkeypatch.setattr(module, "token_dtype", lambda size: np.dtype("<u4"))
    file, out = write(tmp_path / "a.txt", texts(200)), tmp_path / "out"
    run([file], out, tokenizer, shard_tokens=10**6)
    ids = np.fromfile(out / "shard-00000.tokens", "<u4" if wide else "<u2")
    ids[0] = 2**32 - 5 if wide else tokenizer.vocab_size
    ids.tofile(out / "shard-00000.tokens")
    with pytest.raises(InputError, match=r"shard-00000\.tokens: is not what was written .its sha256 differs.; delete"):
        open_corpus([out], tokenizer)
    monkeypatch.setattr(shards, "_HASHED_BYTES", 0)  # as of a text that is too large to hash all of it at every start
    rows = lay_out(open_corpus([out], tokenizer), 32, layout)
    read = 0
    for row in range(len(rows)):
        try:
            rows.read(np.array([row]))
            read += 1
        except InputError as error:
            told = str(error)
    assert read == len(rows) - 1, "the rows without it are whole"
    assert told.startswith(f"{out}: is damaged, it holds the id {ids[0]} and the vocabulary ends at")
    assert "run the same `deberta-jax prepare` again" in told
    with pytest.raises(InputError, match=r"shard-00000\.tokens: .*; delete"):
        run([file], out, tokenizer, shard_tokens=10**6)


def test_the_command(tokenizer_dir, tokenizer, tmp_path, capsys):
    file = write(tmp_path / "a.txt", ["ban bast", "", "kon"])
    main(["prepare", "--model", str(tokenizer_dir), "--input", str(file), "--output", str(tmp_path / "out")])
    assert "2 documents" in capsys.readouterr().out
    assert_holds(tmp_path / "out", tokenizer, ["ban bast", "kon"])
    rows = lay_out(open_corpus([tmp_path / "out"], tokenizer), 16, "packed")
    assert len(rows) == 1
    with pytest.raises(SystemExit, match="2"):
        main(["prepare", "--tokenizer", str(tokenizer_dir), "--input", "none.txt", "--output", str(tmp_path / "out2")])
    assert capsys.readouterr().err.splitlines()[-1] == "error: none.txt: no such file"
    assert not (tmp_path / "out2").exists()


SCRIPT = """
    import multiprocessing, os, signal, sys
    from deberta_jax.data import documents, prepare as module
    from deberta_jax.text import load_tokenizer

    def progress(read, total, documents, tokens):
        if tokens > int(sys.argv[4]):
            print(*[process.pid for process in multiprocessing.active_children()], flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

    if __name__ == "__main__":
        documents.BLOCK, module._ALONE_BELOW = 1 << 11, 0
        source = documents.CorpusOptions(text="body")
        options = module.Prepare(
            inputs=(sys.argv[2],), output=sys.argv[3], source=source, shard_tokens=3000, workers=2
        )
        module.prepare(options, load_tokenizer(sys.argv[1]), progress)
"""


@pytest.mark.system
def test_killed_amid_its_processes_and_gone_on_with(tokenizer_dir, tokenizer, tmp_path, small_blocks):
    file = write(tmp_path / "a.txt", texts(700))
    run([file], tmp_path / "whole", tokenizer)
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    command = [sys.executable, str(script), str(tokenizer_dir), str(file), str(tmp_path / "out")]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "XLA_FLAGS": ""}
    first = subprocess.run([*command, "20000"], env=environment, capture_output=True, text=True)
    assert first.returncode == -signal.SIGKILL, first.stderr
    there = contents(tmp_path / "out")
    assert "manifest.json" not in there
    assert 3 <= sum(name.endswith(".json") for name in there) < len(list((tmp_path / "whole").glob("*.json")))
    workers = first.stdout.split()
    assert len(workers) == 2
    until = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers), "they end with the one that started them"
    run([file], tmp_path / "out", tokenizer)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_two_at_once_are_refused(tokenizer, tmp_path):
    import fcntl

    file = write(tmp_path / "a.txt", texts(10))
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process is writing there"):
            run([file], tmp_path / "out", tokenizer)
        assert (tmp_path / "out" / ".lock").exists(), "it is the other's"
    run([file], tmp_path / "out", tokenizer)
    assert not (tmp_path / "out" / ".lock").exists()


@pytest.mark.long
def test_a_large_run_killed_again_and_again(tokenizer_dir, tmp_path):
    draw = random.Random(0)
    with (tmp_path / "a.txt").open("w") as file:
        for _ in range(1200):
            file.write("\n".join(" ".join(draw.choices(VOCABULARY, k=150)) for _ in range(300)) + "\n")
    command = [sys.executable, "-m", "deberta_jax.cli.main", "prepare", "--tokenizer", str(tokenizer_dir), "--input"]
    command += [str(tmp_path / "a.txt"), "--shard-tokens", "1000000", "--output"]
    subprocess.run([*command, str(tmp_path / "whole"), "--workers", "1"], check=True)
    killed = 0
    for seconds in (6, 9, 7, 8):
        process = subprocess.Popen([*command, str(tmp_path / "out"), "--workers", "2"])
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            killed += process.wait() == -signal.SIGKILL
    assert killed >= 2
    subprocess.run([*command, str(tmp_path / "out")], check=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
