"""Real tokens a second of training: packed rows against padding to the longest in the batch, in one process.

    python benchmarks/finetune_packing.py FOLDER_WITH_SST2_TRAIN_TSV [--steps 40] [--batch-size 32]

The same examples in the same batches, the same model and optimizer; the two take turns. Prints one JSON object; the
result of this machine stands in ``benchmarks/results/finetune_packing.json``.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from deberta_jax import DebertaConfig, DebertaForSequenceClassification, init_params, train_tokenizer
from deberta_jax.data.batches import ExampleOrder, TrainingBatches, pad_batch
from deberta_jax.data.labels import LabelSpec
from deberta_jax.inference.predict import model_inputs
from deberta_jax.sharding import global_batch, make_mesh
from deberta_jax.tasks import TextTask
from deberta_jax.tasks.named import read_task
from deberta_jax.training.experiment import Optimization
from deberta_jax.training.optimizers import make_optimizer
from deberta_jax.training.state import abstract_state, make_state, parameters_of, state_shardings
from deberta_jax.training.step import compile_step, make_step

CONFIG = DebertaConfig(
    vocab_size=4008,
    hidden_size=256,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=1024,
    max_position_embeddings=512,
    relative_attention=True,
    pos_att_type=("p2c", "c2p"),
    position_biased_input=False,
    position_buckets=256,
    share_att_key=True,
    norm_rel_ebd="layer_norm",
    legacy=False,
)


class Trainer:
    """A step with its state, and a program for each shape it has met."""

    def __init__(self, task: TextTask):
        model = DebertaForSequenceClassification(CONFIG)
        self.mesh = make_mesh(devices=jax.devices()[:1])
        optimizer = make_optimizer(Optimization(), 1000)
        parameters = parameters_of(model)
        self.shardings = state_shardings(parameters, optimizer, self.mesh)
        self.abstract = abstract_state(parameters, optimizer, self.mesh)
        self.state = jax.jit(lambda: make_state(init_params(model, jax.random.key(0)), optimizer, 0))()

        def loss(params, batch, key):
            out = model.apply({"params": params}, **model_inputs(batch), deterministic=False, rngs={"dropout": key})
            return {"task": task.loss(out, batch)}

        self.step = make_step(loss, optimizer)
        self.programs = {}

    def compile(self, batch) -> None:
        shape = batch["input_ids"].shape
        if shape not in self.programs:
            self.programs[shape] = compile_step(self.step, self.abstract, self.shardings, batch, self.mesh)

    def run(self, batches) -> tuple[float, float]:
        """Seconds of these steps, and those of processors: where others use the machine too only the latter compare."""
        began, busy = time.perf_counter(), time.process_time()
        for batch in batches:
            program = self.programs[batch["input_ids"].shape]
            self.state, measured = program(self.state, global_batch(batch, self.mesh))
        jax.block_until_ready(measured)
        return time.perf_counter() - began, time.process_time() - busy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=32)
    args = parser.parse_args()
    table = read_task("sst2", [str(args.data / "train.tsv")])
    task = TextTask(("sentence",), ("label",), LabelSpec("single_label_classification", ("0", "1")))
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = train_tokenizer(table.texts("sentence"), 4000, Path(folder))
    features = task.features(table, tokenizer, 128, labelled=True)
    batches = TrainingBatches(features, ExampleOrder(batch_size=args.batch_size, seed=0, epochs=1), tokenizer.pad_id)
    packed = [batches[step] for step in range(args.steps)]
    padded = []
    for step in range(args.steps):
        members = batches.members(step)
        longest = -(-int(features.lengths[members].max()) // 8) * 8
        padded.append(pad_batch(features, members, args.batch_size, longest, tokenizer.pad_id))
    tokens = sum(batches.size(step).tokens for step in range(args.steps))
    trainer = Trainer(task)
    for batch in (*packed, *padded):
        trainer.compile(batch)
    seconds = {"packed": [], "padded": []}
    for _ in range(args.turns):
        seconds["packed"].append(trainer.run(packed))
        seconds["padded"].append(trainer.run(padded))
    middle = lambda name, i: statistics.median(values[i] for values in seconds[name])
    rates = {name: tokens / middle(name, 0) for name in seconds}
    places = {"packed": sum(b["input_ids"].size for b in packed), "padded": sum(b["input_ids"].size for b in padded)}
    print(
        json.dumps(
            {
                "device": jax.devices()[0].device_kind,
                "cores": os.cpu_count(),
                "batch_size": args.batch_size,
                "mean_length": round(float(np.mean(features.lengths)), 1),
                "row_length": batches.packing.row_length,
                "rows": list(batches.packing.counts),
                "padding": {name: round(1 - tokens / count, 3) for name, count in places.items()},
                "tokens_per_second": {name: round(rate, 1) for name, rate in rates.items()},
                "ratio": round(rates["packed"] / rates["padded"], 2),
                "ratio_of_processor_time": round(middle("padded", 1) / middle("packed", 1), 2),
                "ratio_by_turn": [
                    round(b[0] / a[0], 2) for a, b in zip(seconds["packed"], seconds["padded"], strict=True)
                ],
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
