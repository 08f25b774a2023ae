"""Real tokens a second on texts of mixed lengths: ours packed, PyTorch padding each batch to its longest.

    python benchmarks/mixed_lengths.py DATA [--jobs forward train] [--texts 256] [--max-length 512] [--turns 3]
                                       [--preset deberta-v3-base] [--record FILE.json]

DATA holds SST-2, QNLI and XQuAD and a DeBERTa-v3 tokenizer. Their texts are mixed into one file; PyTorch takes 32 at a
time in the file's order, as its users do. ``forward`` is the encoder alone; ``train`` a classifier's forward, backward
and AdamW, dropout 0.1, every batch of 32 one step on both sides. Same weights, float32, one process, in turn: the
medians' ratio is given, and how much of each side's places is padding. Absolute times mean nothing on a shared machine.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import torch
import transformers
from model import RATE
from timing import seconds
from torch_program import torch_program

import deberta_jax
from deberta_jax.data.features import Features, make_features
from deberta_jax.data.packing import Packing, pack, packed_batch
from deberta_jax.data.tables import read_table
from deberta_jax.inference.predict import model_inputs
from deberta_jax.ops.losses import cross_entropy, weighted_mean

BATCH = 32
# Rows of these lengths, each text in the shortest that holds it: long rows would cost short texts a long row's square.
ROW_LENGTHS = (128, 256, 512)


def read_texts(data: Path, count: int) -> tuple[list[str], list[str]]:
    """Texts and their partners, a third of each source, in one random order."""
    sst2 = read_table(data / "classification" / "sst2" / "train.tsv").texts("sentence")
    qnli = read_table(data / "pair" / "qnli" / "train.tsv")
    articles = json.loads((data / "qa" / "xquad_en_train.json").read_text(encoding="utf-8"))["data"]
    squad = [(q["question"], p["context"]) for a in articles for p in a["paragraphs"] for q in p["qas"]]
    sources = [
        [(text, "") for text in sst2],
        list(zip(qnli.texts("question"), qnli.texts("sentence"), strict=True)),
        squad,
    ]
    random = np.random.RandomState(0)
    chosen = [source[i] for source in sources for i in random.permutation(len(source))[: -(-count // 3)]]
    mixed = [chosen[i] for i in random.permutation(len(chosen))[:count]]
    return [a for a, _ in mixed], [b for _, b in mixed]


def packed_groups(features: Features, members: np.ndarray, pad_id: int, rows_at_once: int) -> Iterator[dict]:
    """The texts ``members`` packed into rows of a few lengths, a fixed number of tokens' rows a batch."""
    lengths, shorter = features.lengths[members], 0
    for length in ROW_LENGTHS:
        here = members[(lengths > shorter) & (lengths <= length)]
        shorter = length
        if not len(here):
            continue
        slots = 16
        row_of, count = pack(features.lengths[here], length, slots)
        at_once = max(1, rows_at_once * ROW_LENGTHS[-1] // length)
        for first in range(0, count, at_once):
            rows = np.arange(first, min(first + at_once, count))
            shape = Packing(length, slots, (at_once,))
            batch = packed_batch(features, here, row_of, rows, shape, pad_id)
            short = at_once - len(rows)
            yield {
                k: np.pad(a, ((0, short), *((0, 0),) * (a.ndim - 1)), constant_values=_fill(k))
                for k, a in batch.items()
            }


def _fill(name: str) -> int:
    return -1 if name == "positions" else -100 if name == "labels" else 0


class Programs:
    """A function compiled once a shape of its batch."""

    def __init__(self, function: Callable, **options: Any):
        self.function, self.options, self.made = function, options, {}

    def __call__(self, *args: Any) -> Any:
        shapes = jax.tree.map(lambda a: (a.shape, a.dtype), args[-1])
        key = str(shapes)
        if key not in self.made:
            self.made[key] = jax.jit(self.function, **self.options).lower(*args).compile()
        return self.made[key](*args)


def our_forward(config, params, features, pad_id) -> tuple[Callable[[], None], float]:
    model = deberta_jax.DebertaEncoder(config)
    model, params = deberta_jax.prepare_for_inference(model, params)
    run = Programs(lambda p, x: model.apply({"params": p}, **x).last_hidden_state)
    batches = list(packed_groups(features, np.arange(len(features)), pad_id, 4))
    inputs = [{k: v for k, v in model_inputs(b).items() if k != "positions"} for b in batches]

    def forward():
        for batch in inputs:
            found = run(params, batch)
        jax.block_until_ready(found)

    return forward, sum(b["input_ids"].size for b in batches)


def our_train(config, params, features, pad_id) -> tuple[Callable[[], None], float]:
    """A step takes 32 texts as the file has them, in rows of one length: the gradient is of all of them at once."""
    model, optimizer = deberta_jax.DebertaForSequenceClassification(config), optax.adamw(RATE, weight_decay=0.01)
    batches = []
    for first in range(0, len(features), BATCH):
        members = np.arange(first, min(first + BATCH, len(features)))
        length = -(-int(features.lengths.max()) // 8) * 8
        row_of, count = pack(features.lengths[members], length, 16)
        rows = -(-count // 2) * 2  # a few shapes
        batches.append(packed_batch(features, members, row_of, np.arange(rows), Packing(length, 16, (rows,)), pad_id))

    def step(params, state, key, batch):
        key, drop = jax.random.split(key)

        def loss(p):
            inputs = model_inputs(batch)
            out = model.apply({"params": p}, **inputs, deterministic=False, rngs={"dropout": drop})
            return weighted_mean(*cross_entropy(out.logits, batch["labels"]))

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state, key

    held = [(params, jax.jit(optimizer.init)(params), jax.random.key(0))]
    run = Programs(step, donate_argnums=(0, 1))

    def train():
        for batch in batches:
            held[0] = run(*held[0], batch)
        jax.block_until_ready(held[0])

    return train, sum(b["input_ids"].size for b in batches)


def torch_batches(features: Features, pad_id: int) -> list[dict[str, torch.Tensor]]:
    out = []
    for first in range(0, len(features), BATCH):
        part = [features.ids[features.starts[i] : features.starts[i + 1]] for i in range(first, first + BATCH)]
        longest = max(map(len, part))
        ids = np.stack([np.pad(ids, (0, longest - len(ids)), constant_values=pad_id) for ids in part])
        mask = np.stack([np.arange(longest) < len(ids) for ids in part])
        out.append({"input_ids": torch.tensor(ids).long(), "attention_mask": torch.tensor(mask).long()})
    return out


def theirs(job: str, directory: str, features: Features, pad_id: int) -> tuple[Callable[[], None], float]:
    batches = torch_batches(features, pad_id)
    places = sum(b["input_ids"].numel() for b in batches)
    heads = {"forward": transformers.AutoModel, "train": transformers.AutoModelForSequenceClassification}
    if job == "train":
        assert features.labels is not None
        labels = torch.tensor(features.labels).long()
        batches = [b | {"labels": labels[i * BATCH : (i + 1) * BATCH]} for i, b in enumerate(batches)]
    run = torch_program(job, heads[job].from_pretrained(directory), bfloat16=False, rate=RATE)

    def all_batches():
        for batch in batches:
            run(batch)

    return all_batches, places


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--jobs", nargs="+", default=["forward", "train"], choices=["forward", "train"])
    parser.add_argument("--preset", default="deberta-v3-base")
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--record", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    config, random = deberta_jax.PRESETS[args.preset], np.random.RandomState(0)
    tokenizer = deberta_jax.load_tokenizer(args.data / "tokenizers" / "deberta-v3")
    labels = random.randint(0, 2, args.texts // BATCH * BATCH).astype(np.int32)
    texts, pairs = read_texts(args.data, len(labels))
    features = make_features(tokenizer, texts, pairs, max_length=args.max_length, labels=labels)
    tokens, rows = int(features.lengths.sum()), []
    for job in args.jobs:
        kind = deberta_jax.DebertaEncoder if job == "forward" else deberta_jax.DebertaForSequenceClassification
        model = kind(config)
        params = jax.jit(lambda model=model: deberta_jax.init_params(model, jax.random.key(0)))()
        with tempfile.TemporaryDirectory() as directory:
            deberta_jax.save_pretrained(directory, model, params)
            their_run, their_places = theirs(job, directory, features, tokenizer.pad_id)
        our_run, our_places = (our_forward if job == "forward" else our_train)(
            config, params, features, tokenizer.pad_id
        )
        our_run()  # compiles
        their_run()
        times = [(seconds(our_run), seconds(their_run)) for _ in range(args.turns)]
        rows.append(
            {
                "job": job,
                "preset": args.preset,
                "texts": len(labels),
                "mean_length": round(tokens / len(labels), 1),
                "longest": int(features.lengths.max()),
                "padding": {"ours": round(1 - tokens / our_places, 3), "torch": round(1 - tokens / their_places, 3)},
                "real tokens a second over torch's": round(
                    statistics.median(b for _, b in times) / statistics.median(a for a, _ in times), 2
                ),
                "by turn": [round(b / a, 2) for a, b in times],
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    if args.record:
        args.record.write_text(json.dumps({"command": sys.argv[1:], "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
