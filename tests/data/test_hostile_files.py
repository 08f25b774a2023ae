"""Data files that are made to fill the memory or to take for ever: each is refused with one line that names it.

A process of its own reads them all, and measures time and memory.
"""

import gzip
import hashlib
import json
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest

import deberta_jax
from deberta_jax.data import files, reading
from deberta_jax.data.documents import CorpusOptions, blocks, text_files, texts_of
from deberta_jax.data.hub_datasets import digest
from deberta_jax.data.tables import read_table
from deberta_jax.errors import InputError
from tests.data.reading import recognised
from tests.made import make_tokenizer

GIGABYTES = 100 << 30
SCRIPT = '''
import json, re, sys, types
sys.modules["deberta_jax"] = types.ModuleType("deberta_jax")
sys.modules["deberta_jax"].__path__ = [sys.argv[1]]
from deberta_jax.data.documents import CorpusOptions, blocks, texts_of
from deberta_jax.data.tables import read_table
from deberta_jax.errors import InputError
try:
    import pyarrow.parquet
except ImportError:
    pass

def documents(path):
    for block in blocks(path, CorpusOptions()):
        texts_of(block, CorpusOptions())

def peak(begin):
    """The largest memory since the peak was set back, in MB. A new process begins with the peak of its parent."""
    if begin:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    with open("/proc/self/status") as file:
        return int(re.search(r"VmHWM:\\s+(\\d+)", file.read())[1]) >> 10

for name, path, how in json.loads(sys.argv[2]):
    before = peak(True)
    try:
        (documents if how else read_table)(path)
        line = "was read"
    except InputError as error:
        line = str(error)
    print(json.dumps([name, line, peak(False) - before]), flush=True)
'''


class Attacks:
    """Writes files, and remembers what should be said of each."""

    def __init__(self, folder: Path):
        self.folder, self.known = folder, []

    def add(self, name: str, says: str, content: bytes = b"", *, size: int = 0, documents: bool = False) -> None:
        path = self.folder / name
        path.write_bytes(content)
        if size:
            os.truncate(path, size)
        self.known.append((name, says, documents))


def bomb(line: bytes) -> bytes:
    """10 GB in 10 MB: gzip members one after the other, each of 64 MiB."""
    return gzip.compress(line * ((64 << 20) // len(line)), 9) * 160


def write_attacks(folder: Path) -> Attacks:
    attacks = Attacks(folder)
    for ending in ("csv", "tsv", "json", "jsonl", "conll", "conllu"):
        attacks.add(f"sparse.{ending}", "has a NUL byte, at 0, which no text has", size=GIGABYTES)
    attacks.add("half.csv", "has a NUL byte, at 11, which no text has", b"text,label\n", size=GIGABYTES)
    for ending in ("txt", "jsonl"):
        attacks.add(f"hole.{ending}", "only NUL bytes from byte 0", size=GIGABYTES, documents=True)
    for ending in ("csv", "jsonl", "conll"):
        attacks.add(f"line.{ending}", "line 2: longer than 64 MiB", b"a,b\n" + b"x" * (70 << 20))
    attacks.add("line-documents.jsonl", "line 1: longer than 64 MiB", b"x" * (70 << 20), documents=True)
    attacks.add("zeros.csv.gz", "has a NUL byte, at 0", bomb(b"\0"))
    attacks.add("rows.csv.gz", "compressed bytes become", bomb(b"a,b\n"))
    attacks.add("zeros.txt.gz", "only NUL bytes", bomb(b"\0"), documents=True)
    with zipfile.ZipFile(folder / "rows.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("rows.csv", "a,b\n" * (20 << 20))
    attacks.known.append(("rows.zip/rows.csv", "compressed bytes become 83,886,080 or more", False))
    for depth in (100, 1000, 100_000):
        nested = b"[" * depth + b"]" * depth
        attacks.add(f"deep{depth}.jsonl", "line 1: ", b'{"text": "a", "label": %b}\n' % nested)
        attacks.add(f"deep{depth}.json", "cannot be read", b'[{"text": "a",\n "label": %b}]' % nested)
    attacks.add("lists.json", "line 1: expected a JSON object, found list", b"[" + b"[]," * (20 << 20) + b"1]")
    names = b"".join(b'"k%d": 1, ' % i for i in range(300_000))
    attacks.add("twice.jsonl", "an object names 'k299999' twice", b"{" + names + b'"k299999": 2}\n')
    keys = b"".join(b'{"k%d": 1}\n' % i for i in range(100_000))
    attacks.add("keys.jsonl", "its rows have 100000 different keys", keys)
    attacks.add(
        "digits.jsonl", "line 1: JSON that cannot be read", b'{"text": "a", "label": %b}\n' % (b"1" * 1_000_000)
    )
    return attacks


@pytest.mark.slow
def test_each_is_refused_in_little_memory(tmp_path):
    attacks = write_attacks(tmp_path)
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        pass
    else:
        attacks.add("sparse.parquet", "not readable as parquet", size=GIGABYTES)
        pq.write_table(pa.table({"text": pa.array([1] * 10_000_000, pa.int8())}), tmp_path / "values.parquet")
        pages = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int32()), pa.array(["x" * 2_000_000]))
        pq.write_table(pa.table({"text": pages}), tmp_path / "texts.parquet", store_schema=False)
        attacks.known.append(("values.parquet", "hold 10,000,000 values, unlike any text", False))
        attacks.known.append(("texts.parquet", "compressed bytes become", False))
    given = [(name, str(tmp_path / name), documents) for name, _, documents in attacks.known]
    command = [sys.executable, "-c", SCRIPT, str(Path(deberta_jax.__file__).parent), json.dumps(given)]
    # Reading one of these files whole takes longer.
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(attacks.known)
    for (name, line, grown), (_, says, _) in zip(found, attacks.known, strict=True):
        assert says in line, (name, line[:300])
        assert line.startswith(str(tmp_path / name)), (name, line[:300])
        assert len(line) < 1000, name
        assert grown < 500, (name, grown)


@pytest.mark.parametrize("value", ["1" * 5000, "-" + "1" * 5000, 10**30, 1e300, "x" * 1_000_000])
def test_labels_that_are_numbers_or_names_without_end(value, tmp_path):
    """Names, or one line; no label is infinite in float32."""
    path = tmp_path / "a.jsonl"
    for other in (0, 0.5, "a", value):
        rows = [{"text": "ban", "label": other}, {"text": "kost", "label": value}] * 2
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        said = ""
        try:
            _, task = recognised(read_table(path))
            labels = task.features(read_table(path), make_tokenizer(tmp_path / "tokenizer"), 24, labelled=True).labels
            assert np.isfinite(labels).all()
        except InputError as error:
            said = str(error)
        assert len(said) < 1000


def test_a_hole_ends_hashing_too(tmp_path):
    """A run hashes its files before it reads them; 100 GB would take minutes. Packed numbers may be zeros."""
    path = tmp_path / "a.txt"
    path.write_bytes(b"some text\n" * 500_000)
    assert digest(str(path)) == hashlib.sha256(path.read_bytes()).hexdigest()
    os.truncate(path, GIGABYTES)
    with pytest.raises(InputError, match=r"a\.txt: has only NUL bytes from byte 5242880 on; it is damaged"):
        digest(str(path))
    path = tmp_path / "a.parquet"
    path.write_bytes(bytes(3 << 20))
    assert digest(str(path)) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_limits_of_documents_and_lines(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"text": "x" * 1000, "label": "a"}] * 3000))
    assert len(read_table(path)) == 3000
    monkeypatch.setattr(reading, "LONGEST_LINE", 1 << 20)
    assert len(read_table(path)) == 3000, "a JSON document may be one line"
    monkeypatch.setattr(reading, "LARGEST_DOCUMENT", 1 << 20)
    with pytest.raises(InputError, match=r"a\.json: is JSON of more than 1 MiB; write one object per line, as \.jsonl"):
        read_table(path)
    lines = tmp_path / "a.jsonl"
    lines.write_text((json.dumps({"text": "x" * 1000, "label": "a"}) + "\n") * 3000)
    assert len(read_table(lines)) == 3000, "so may a file of many lines be as large as it is"
    for ends in ("\r", "\r\n"):
        table = tmp_path / "a.csv"
        table.write_text(ends.join(["text,label", *["x" * 1000 + ",a"] * 3000]), newline="")
        assert len(read_table(table)) == 3000


def test_text_that_compresses_well_is_read(tmp_path):
    rows = "text,label\n" + "the same text every time,a\n" * 100_000
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(rows.encode()))
    assert len(read_table(tmp_path / "a.csv.gz")) == 100_000


def test_a_character_across_two_blocks_and_the_byte_that_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "BLOCK", 3)
    monkeypatch.setattr(files, "BLOCK", 3)
    path = tmp_path / "a.csv"
    path.write_text("\ufefftext,label\n漢字é🤗,a\n", encoding="utf-8")
    assert read_table(path).columns == {"text": ["漢字é🤗"], "label": ["a"]}
    good = "text,label\n漢字".encode()
    for rest in (b"\xff\n", b"\xe6\xbc", b"\xe6\xbcx"):
        path.write_bytes(good + rest)
        with pytest.raises(InputError, match=f"not UTF-8 at byte {len(good)}; convert"):
            read_table(path)


def test_a_stray_nul_in_a_corpus_is_text(tmp_path):
    """A hole is refused; one odd byte in a corpus of 100 GB is none."""
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\0two\nthree\n")
    texts = [texts_of(block, CorpusOptions()) for block in blocks(str(path), CorpusOptions())]
    assert texts == [["one\0two", "three", ""]]


def test_pipes_are_read_where_they_are_given_and_refused_where_a_file_is_needed(tmp_path):
    path = tmp_path / "a.csv"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=("text,label\na,b\n",))
    writer.start()
    assert read_table(path).columns == {"text": ["a"], "label": ["b"]}
    writer.join()
    corpus = tmp_path / "a.txt"
    os.mkfifo(corpus)
    with pytest.raises(InputError, match=r"a\.txt: can be read only once, and is needed twice"):
        text_files([str(corpus)])
