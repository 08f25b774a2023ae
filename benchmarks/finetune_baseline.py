"""Fine-tuning beside a PyTorch loop on transformers' models: the same small model, budget and seeds, task by task.

    python benchmarks/finetune_baseline.py DATA [--tasks sst2 stsb upos cola xquad] [--seeds 5] [--examples 2000]
        [--epochs 3] [--record FILE.json]

DATA is a folder with ``classification/{sst2,cola}``, ``pair/stsb``, ``ner/ud_ewt`` and ``qa``. Each seed has its own
initial weights, written by us and read by both, and its own order of the examples; dropout is on and differs. Both are
scored by the same metrics on the same answers' form. We pack, PyTorch pads. Prints one JSON object a task: the medians,
their difference, and its standard error. Tasks that stand in the record are not run again;
``benchmarks/results/finetune_baseline.json`` is this machine's, xquad of it with ``--max-length 192 --epochs 1``, for
its questions are long. With a core for each of several jobs, ``OMP_NUM_THREADS=1`` is quicker.
"""

import argparse
import collections
import json
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import torch
import transformers

import deberta_jax
from deberta_jax.data.batches import ExampleOrder, TrainingBatches, pad_batch
from deberta_jax.data.tables import Table, read_table
from deberta_jax.data.text_batches import pad_texts
from deberta_jax.inference.predict import Predictor, model_inputs
from deberta_jax.models import HEADS
from deberta_jax.sharding import global_batch, make_mesh
from deberta_jax.tasks import TaskOptions, resolve_options, resolve_task
from deberta_jax.tasks.named import read_task
from deberta_jax.training.demo import small_config
from deberta_jax.training.experiment import Optimization
from deberta_jax.training.optimizers import make_optimizer
from deberta_jax.training.state import make_state, parameters_of, state_shardings
from deberta_jax.training.step import compile_step, make_step

VOCABULARY, BATCH, RATE, WARMUP, DECAY = 2000, 32, 1e-3, 0.1, 0.05
PADDED_TOO = "sst2"  # is also learned by us from padded rows, to show that packing costs no accuracy
CONFIG = small_config(VOCABULARY, max_position_embeddings=256)
CLASSES = {
    "sequence-classification": transformers.AutoModelForSequenceClassification,
    "token-classification": transformers.AutoModelForTokenClassification,
    "question-answering": transformers.AutoModelForQuestionAnswering,
}


def tables(data: Path, name: str) -> tuple[TaskOptions, Table, Table]:
    """What to learn, and the rows to learn from and to be scored on."""
    if name in ("sst2", "cola"):
        folder = data / "classification" / name
        options = TaskOptions(task=name)
        train, held_out = (read_task(name, [str(folder / f"{part}.tsv")]) for part in ("train", "dev"))
    elif name == "stsb":
        options = TaskOptions(task="regression", text=("sentence1", "sentence2"), label="score")
        train, held_out = (read_table(data / "pair" / "stsb" / f"{part}.tsv") for part in ("train", "dev"))
    elif name == "upos":
        options = TaskOptions(task="token-classification", text=("tokens",), label="upos")
        table = read_table(data / "ner" / "ud_ewt" / "en_ewt-ud-dev.conllu")
        cut = len(table) * 4 // 5
        train, held_out = table.select(range(cut)), table.select(range(cut, len(table)))
    else:
        options = TaskOptions(task="question-answering", doc_stride=64)
        table = read_table(data / "qa" / "xquad_en_train.json")
        cut = len(table) * 4 // 5
        train, held_out = table.select(range(cut)), table.select(range(cut, len(table)))
    return resolve_options(options, train), train, held_out


def texts_of(table: Table, options: TaskOptions) -> list[str]:
    columns = [table.column(name) for name in options.text]
    return [" ".join(value) if isinstance(value, list) else value for column in columns for value in column]


def padded(batches: TrainingBatches, pad_id: int) -> list[dict[str, np.ndarray]]:
    """The same examples in the same steps, each in a row of its own; few lengths, for each is a program."""
    out = []
    for i in range(len(batches)):
        members = batches.members(i)
        longest = -(-int(batches.features.lengths[members].max()) // 32) * 32
        out.append(pad_batch(batches.features, members, BATCH, longest, pad_id))
    return out


def ours(task, model, params, batches, held, held_out, pad_id, seed) -> float:
    mesh, steps = make_mesh(devices=jax.devices()[:1]), len(batches)
    optimizer = make_optimizer(Optimization(learning_rate=RATE, warmup=WARMUP, weight_decay=DECAY), steps)
    shardings = state_shardings(parameters_of(model), optimizer, mesh)
    state = jax.jit(lambda p: make_state(p, optimizer, seed), out_shardings=shardings)(params)

    def loss(params, batch, key):
        out = model.apply({"params": params}, **model_inputs(batch), deterministic=False, rngs={"dropout": key})
        return {"task": task.loss(out, batch)}

    step, programs = make_step(loss, optimizer), {}
    for i in range(steps):
        batch = batches[i]
        shape = batch["input_ids"].shape
        if shape not in programs:
            programs[shape] = compile_step(step, state, shardings, batch, mesh)
        state, _ = programs[shape](state, global_batch(batch, mesh))
    predictor = Predictor(model, pad_id, max_length=256, mesh=mesh)
    return task.metrics(predictor.logits(state.params, held), held, held_out)[task.metric]


def theirs(task, directory, batches, held, held_out, pad_id, seed) -> float:
    torch.manual_seed(seed)
    model = CLASSES[task.head].from_pretrained(directory).float().train()
    plain = lambda name: "bias" in name or "LayerNorm.weight" in name
    groups = [
        {"params": [p for n, p in model.named_parameters() if not plain(n)], "weight_decay": DECAY},
        {"params": [p for n, p in model.named_parameters() if plain(n)], "weight_decay": 0.0},
    ]
    steps = len(batches)
    up = round(WARMUP * steps)
    optimizer = torch.optim.AdamW(groups, lr=RATE, eps=1e-6)
    rate = lambda step: step / up if step < up else (steps - step) / (steps - up)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    for i in range(steps):
        members = batches.members(i)
        longest = int(batches.features.lengths[members].max())
        batch = pad_batch(batches.features, members, len(members), longest, pad_id)
        inputs = {name: torch.tensor(array).long() for name, array in model_inputs(batch).items()}
        labels = torch.tensor(batch["labels"])
        labels = labels if labels.dtype.is_floating_point else labels.long()
        if task.head == "question-answering":
            loss = model(**inputs, start_positions=labels[:, 0], end_positions=labels[:, 1]).loss
        else:
            loss = model(**inputs, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()
    found: list[np.ndarray] = []
    for first in range(0, len(held.lengths), 64):
        part = range(first, min(first + 64, len(held.lengths)))
        batch = pad_texts(held, part, len(part), int(held.lengths[first : first + 64].max()), pad_id)
        with torch.no_grad():
            out = model(**{name: torch.tensor(array).long() for name, array in batch.items()})
        if task.head == "question-answering":
            logits = torch.stack([out.start_logits, out.end_logits], -1).numpy()
        else:
            logits = out.logits.numpy()
        found += [
            row[: held.lengths[i]] if HEADS[task.head].per_token else row[None]
            for i, row in zip(part, logits, strict=True)
        ]
    return task.metrics(np.concatenate(found), held, held_out)[task.metric]


def compare(data: Path, name: str, args) -> dict:
    options, train, held_out = tables(data, name)
    train = train.select(np.random.default_rng(0).permutation(len(train))[: args.examples].tolist())
    task = resolve_task(options, train)
    found: collections.defaultdict[str, list[float]] = collections.defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = deberta_jax.train_tokenizer(texts_of(train, options), VOCABULARY, Path(folder) / "tokenizer")
        features, held = (task.features(t, tokenizer, args.max_length, labelled=True) for t in (train, held_out))
        model = HEADS[task.head].model(task.configure(CONFIG))
        for seed in range(args.seeds):
            params = jax.jit(lambda key: deberta_jax.init_params(model, key))(jax.random.key(seed))
            directory = Path(folder) / f"seed{seed}"
            deberta_jax.save_pretrained(directory, model, params, tokenizer)
            batches = TrainingBatches(features, ExampleOrder(batch_size=BATCH, seed=seed, epochs=args.epochs), 0)
            began = time.perf_counter()
            layouts = {"ours": batches}
            if name == PADDED_TOO:
                layouts["ours_padded"] = padded(batches, tokenizer.pad_id)
            for side, rows in layouts.items():
                found[side].append(ours(task, model, params, rows, held, held_out, tokenizer.pad_id, seed))
            between = time.perf_counter()
            found["torch"].append(theirs(task, directory, batches, held, held_out, tokenizer.pad_id, seed))
            seconds = (round(between - began, 1), round(time.perf_counter() - between, 1))
            print(name, seed, {k: round(v[-1], 4) for k, v in found.items()}, "seconds", seconds, file=sys.stderr)
    # Of a median of n about normal values: 1.2533 times that of the mean.
    error = math.sqrt(sum((1.2533**2) * statistics.variance(found[k]) / args.seeds for k in ("ours", "torch")))
    medians = {side: statistics.median(values) for side, values in found.items()}
    difference = medians["ours"] - medians["torch"]
    return {
        "metric": task.metric,
        "examples": len(train),
        "epochs": args.epochs,
        "max_length": args.max_length,
        "held_out": len(held_out),
        **found,
        "medians": medians,
        "difference": difference,
        "standard_error": error,
        "within_two_standard_errors": abs(difference) <= 2 * error,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--tasks", nargs="+", default=["sst2", "stsb", "upos", "cola", "xquad"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--max-length", type=int, default=96)
    parser.add_argument("--record", type=Path)
    args = parser.parse_args()
    found = json.loads(args.record.read_text()) if args.record and args.record.is_file() else {}
    for name in args.tasks:
        if name in found:
            continue
        found[name] = compare(args.data, name, args)
        print(json.dumps({name: found[name]}), flush=True)
        if args.record:
            args.record.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
