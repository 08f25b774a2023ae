"""Our tokenizers against the libraries people use instead, in one process, on the same lines.

    python -m benchmarks.tokenization [--lines 20000] [--repeats 7]

Both sides return padded int32 numpy arrays of ids, mask and types. They take turns, and each ratio is the median of
the ratios of neighbouring turns (short turns, and thirty times as many, for single strings, which a busy machine
interrupts): above 1 we are faster. Peers: for v1 the `tokenizers` library with a template and
padding; for v3 the fast DebertaV2Tokenizer of transformers.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tokenizers
import transformers
from tokenizers import models, pre_tokenizers, processors

from deberta_jax.text import load_tokenizer

DATA = Path(os.environ.get("DEBERTA_JAX_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
SHORT = ["The quick brown fox jumps over the lazy dog.", "a nice little film", "What is the capital of France?"]


def library_v1(directory: Path) -> Callable[[list[str]], tuple[np.ndarray, ...]]:
    bpe = models.BPE.from_file(str(directory / "vocab.json"), str(directory / "merges.txt"))
    library = tokenizers.Tokenizer(bpe)
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    library.enable_padding(pad_id=0, pad_token="[PAD]")

    def encode(lines: list[str]) -> tuple[np.ndarray, ...]:
        # One text through the call for one, which is the library's faster one.
        rows = [library.encode(lines[0])] if len(lines) == 1 else library.encode_batch_fast(lines)
        return (
            np.array([row.ids for row in rows], np.int32),
            np.array([row.attention_mask for row in rows], np.int32),
            np.array([row.type_ids for row in rows], np.int32),
        )

    return encode


def transformers_v3(directory: Path) -> Callable[[list[str]], tuple[np.ndarray, ...]]:
    peer = transformers.DebertaV2Tokenizer.from_pretrained(directory)

    def encode(lines: list[str]) -> tuple[np.ndarray, ...]:
        out = peer(lines, padding=True, return_tensors="np")
        return tuple(out[name].astype(np.int32) for name in ("input_ids", "attention_mask", "token_type_ids"))

    return encode


def ours(directory: Path) -> Callable[[list[str]], tuple[np.ndarray, ...]]:
    tokenizer = load_tokenizer(directory)

    def encode(lines: list[str]) -> tuple[np.ndarray, ...]:
        out = tokenizer(lines, padding="longest")
        return out.input_ids, out.attention_mask, out.token_type_ids

    return encode


def ratio(peer: Callable, own: Callable, batches: list[list[str]], repeats: int) -> tuple[float, float]:
    """(median of peer time / own time, own lines per second)."""
    ratios, seconds = [], []
    for turn in range(repeats + 1):
        spent = []
        for encode in (peer, own):
            start = time.perf_counter()
            for batch in batches:
                encode(batch)
            spent.append(time.perf_counter() - start)
        if turn:  # the first turn fills caches on both sides
            ratios.append(spent[0] / spent[1])
            seconds.append(spent[1])
    return statistics.median(ratios), sum(map(len, batches)) / statistics.median(seconds)


def measure(line_count: int, repeats: int) -> dict[str, float]:
    """Name of the case -> ratio."""
    text = (DATA / "text" / "moby_dick.txt").read_text(encoding="utf-8")
    lines = [line for line in text.split("\n") if line.strip()][:line_count]
    cases = {
        f"batches of {len(lines)}": [lines],
        "batches of 32": [lines[i : i + 32] for i in range(0, min(len(lines), 3200), 32)],
        "single short strings": [[text] for text in SHORT * 20],
    }
    found = {}
    for version, peer_name, make in (
        ("v1", "tokenizers", library_v1),
        ("v3", "transformers fast", transformers_v3),
    ):
        directory = DATA / "tokenizers" / f"deberta-{version}"
        peer, own = make(directory), ours(directory)
        for name, batches in cases.items():
            for a, b in zip(peer(batches[0][:8]), own(batches[0][:8]), strict=True):
                np.testing.assert_array_equal(a, b)
            found[f"{version} {name}"], rate = ratio(peer, own, batches, repeats * (30 if len(batches[0]) == 1 else 1))
            label = f"{version}, {name}, against {peer_name}"
            print(f"{label:60s} {found[f'{version} {name}']:6.2f}x  ({rate:,.0f} lines/s)")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    measure(arguments.lines, arguments.repeats)
