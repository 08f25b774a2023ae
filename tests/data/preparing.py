"""Makes text for ``prepare``, runs it, and reads the shards that it wrote."""

import gzip
import json
import random
from pathlib import Path

import numpy as np

from deberta_jax.data.corpus import open_corpus
from deberta_jax.data.documents import CorpusOptions
from deberta_jax.data.prepare import Prepare, prepare
from tests.made import WORDS

VOCABULARY = [word for words in WORDS.values() for word in words] + ["Ünß", "日本語", "x" * 40]


def texts(count, longest=60, seed=0):
    draw = random.Random(seed)
    return [" ".join(draw.choices(VOCABULARY, k=draw.randint(1, longest))) for _ in range(count)]


def write(path, lines):
    """The documents in the format that the ending names."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from backports import zstd

    if path.suffix == ".parquet":
        pq.write_table(pa.table({"body": lines}), path, row_group_size=50)
        return path
    body = "\n".join(json.dumps({"id": 1, "body": line}) if ".jsonl" in path.name else line for line in lines) + "\n"
    pack = {".gz": gzip.compress, ".zst": zstd.compress}.get(path.suffix, bytes)
    path.write_bytes(pack(body.encode()))
    return path


def run(inputs, output, tokenizer, shard_tokens=3000, **options):
    source = CorpusOptions(**{"text": "body"} | options)
    chosen = Prepare(
        inputs=tuple(map(str, inputs)), output=str(output), source=source, shard_tokens=shard_tokens, workers=1
    )
    return prepare(chosen, tokenizer)


def contents(directory):
    return {path.name: path.read_bytes() for path in Path(directory).iterdir()}


def assert_holds(directory, tokenizer, expected):
    """The directory's documents are those texts."""
    corpus = open_corpus([directory], tokenizer)
    ids, lengths = tokenizer.encode_flat(expected)
    np.testing.assert_array_equal(np.concatenate(corpus.parts), ids)
    np.testing.assert_array_equal(corpus.lengths, lengths)
    np.testing.assert_array_equal(corpus.unigrams, np.bincount(ids, minlength=tokenizer.vocab_size))
