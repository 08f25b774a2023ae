"""Forward passes and train steps of transformers' v3-base classifier in bfloat16 (autocast), eager, on one device.

The texts are those of model_times.py. Where they are of mixed lengths, batches of 32 in random order are padded to the
longest of each, and a train step makes one update from all of them, as the packed step does.
"""

import functools
from typing import Any

import numpy as np
from machine import load_torch
from model_times import describe, settings
from timing import seconds_per_call
from worker import Case, Request, Skip, digits

from deberta_jax.benchmarking.cases import Case as BenchCase
from deberta_jax.benchmarking.cases import make_batch

_RATE = 1e-5
_ROUNDS = 7
_PADDED_TOGETHER = 32


def cases(request: Request) -> list[Case]:
    """Returns all settings of model_times.py."""
    return [Case(describe(case), functools.partial(measure, case, request)) for case in settings(request)]


def measure(case: BenchCase, request: Request) -> dict[str, Any]:
    """Returns tokens a second, padding, milliseconds, and the highest memory of the case.

    Raises:
      Skip: torch or transformers cannot be imported, or torch sees no GPU.
    """
    torch = load_torch(request.tiny)
    try:
        import transformers
    except ImportError as error:
        raise Skip(f"transformers is not importable: {error}") from error
    from torch_program import torch_device, torch_program

    device = torch_device()
    wait = (lambda _: torch.cuda.synchronize()) if device.type == "cuda" else (lambda _: None)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with device:
        config = transformers.DebertaV2Config.from_dict(case.config.to_hf())
        model = transformers.DebertaV2ForSequenceClassification(config).to(device)
    batches = [
        {
            name: torch.from_numpy(a).long().to(device)
            for name, a in batch.items()
            if case.job == "train" or name != "labels"
        }
        for batch in padded_batches(case)
    ]
    run = torch_program(case.job, model, bfloat16=True, rate=_RATE)
    taken = seconds_per_call({"": lambda: run(*batches)}, wait, _ROUNDS)[""]
    tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
    return {
        "name": describe(case),
        "model": case.name,
        "job": case.job,
        "shape": f"{case.rows}x{case.length}",
        "texts": case.texts,
        "dtype": "bfloat16, autocast",
        "tokens_per_second": digits(tokens / taken, 6),
        "milliseconds": digits(1e3 * taken),
        "padding": digits(1 - tokens / sum(batch["attention_mask"].numel() for batch in batches)),
        "device_peak_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
    }


def padded_batches(case: BenchCase) -> list[dict[str, np.ndarray]]:
    """Returns the texts of ``make_batch(case)`` padded: input_ids, attention_mask and labels of each batch."""
    batch = make_batch(case)
    if "segment_ids" not in batch:
        return [{name: batch[name] for name in ("input_ids", "attention_mask", "labels")}]
    texts = [
        ids[segments == number]
        for ids, segments in zip(batch["input_ids"], batch["segment_ids"], strict=True)
        for number in range(1, segments.max() + 1)
    ]
    labels = batch["labels"][batch["labels"] >= 0]
    order = np.random.RandomState(0).permutation(len(texts))
    made = []
    for members in np.array_split(order, -(-len(texts) // _PADDED_TOGETHER)):
        longest = max(len(texts[i]) for i in members)
        ids = np.stack([np.pad(texts[i], (0, longest - len(texts[i]))) for i in members])
        mask = np.stack([np.arange(longest) < len(texts[i]) for i in members])
        made.append({"input_ids": ids, "attention_mask": mask.astype(np.int32), "labels": labels[members]})
    return made
