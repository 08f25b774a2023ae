"""Exported directories in Optimum's classes for ONNX Runtime, beside transformers with the same weights.

    python benchmarks/optimum_classes.py make DIR           # where deberta_jax is installed
    python benchmarks/optimum_classes.py check DIR [--record benchmarks/results/optimum.json]

The second command runs in an environment of its own, since Optimum needs an older transformers than this package
allows: ``pip install torch==2.13.0 'optimum-onnx[onnxruntime]' 'transformers<4.58'``. It imports no deberta_jax. Small
random models of all generations and heads; printed is the largest difference of their outputs.
"""

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np

ROWS, LENGTH, VOCABULARY = 3, 13, 96
GENERATIONS = {
    "v1": {"model_type": "deberta"},
    "v2": {"model_type": "deberta-v2", "conv_kernel_size": 3, "conv_act": "gelu", "position_buckets": 8},
    "v3": {"model_type": "deberta-v2", "share_att_key": True, "norm_rel_ebd": "layer_norm", "position_buckets": 8},
}
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "position_biased_input": False,
}
# Head -> Optimum's class and that of transformers, which has none for one head.
CLASSES = {
    "encoder": ("ORTModelForFeatureExtraction", "AutoModel"),
    "masked-lm": ("ORTModelForMaskedLM", "AutoModelForMaskedLM"),
    "sequence-classification": ("ORTModelForSequenceClassification", "AutoModelForSequenceClassification"),
    "token-classification": ("ORTModelForTokenClassification", "AutoModelForTokenClassification"),
    "question-answering": ("ORTModelForQuestionAnswering", "AutoModelForQuestionAnswering"),
    "multiple-choice": ("ORTModelForMultipleChoice", "AutoModelForMultipleChoice"),
    "replaced-token-detection": ("ORTModelForCustomTasks", None),
}


def make(directory: Path) -> None:
    """Writes each model as ONNX and for transformers, with inputs and our outputs."""
    import jax

    import deberta_jax

    random = np.random.default_rng(0)
    for generation, fields in GENERATIONS.items():
        config = deberta_jax.DebertaConfig.from_hf({**SIZES, **fields, "initializer_range": 0.2})
        for head, spec in deberta_jax.models.HEADS.items():
            model = spec.model(config)
            params = deberta_jax.init_params(model, jax.random.key(1))
            name = f"{generation}_{head}"
            deberta_jax.export_onnx((model, params), directory / name)
            if not (generation == "v1" and head == "multiple-choice"):  # transformers has no such class
                deberta_jax.save_pretrained(directory / f"{name}-transformers", model, params)
            shape = (ROWS, 2, LENGTH) if head == "multiple-choice" else (ROWS, LENGTH)
            mask = np.ones(shape, np.int64)
            mask[1, ..., 7:] = 0
            inputs = {"input_ids": random.integers(1, VOCABULARY, shape), "attention_mask": mask}
            output = model(params, **{key: array.astype(np.int32) for key, array in inputs.items()})
            fields_of = {key: np.asarray(value) for key, value in vars(output).items() if value is not None}
            np.savez(directory / f"{name}.npz", **inputs, **fields_of)


def check(directory: Path) -> list[dict]:
    """Runs every directory in Optimum and in transformers."""
    import torch

    optimum, transformers = importlib.import_module("optimum.onnxruntime"), importlib.import_module("transformers")
    rows = []
    for file in sorted(directory.glob("*.npz")):
        head = file.stem.partition("_")[2]
        recorded = dict(np.load(file))
        inputs = {name: torch.from_numpy(recorded.pop(name)) for name in ("input_ids", "attention_mask")}
        ours, theirs = CLASSES[head]
        output = getattr(optimum, ours).from_pretrained(directory / file.stem)(**inputs)
        found = {name: output[name].numpy() for name in recorded}
        row = {"model": file.stem, "class": ours, "difference from ours": largest_difference(found, recorded)}
        saved = directory / f"{file.stem}-transformers"
        if theirs and saved.is_dir():
            model = getattr(transformers, theirs).from_pretrained(saved).eval()
            with torch.no_grad():
                expected = model(**inputs)
            # transformers gives padded tokens other vectors, which nobody reads.
            pooled = head in ("sequence-classification", "multiple-choice")
            only = ... if pooled else inputs["attention_mask"].numpy() != 0
            row["difference from transformers"] = largest_difference(found, expected, only)
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def largest_difference(found: dict, expected: Any, only: Any = ...) -> float:
    """Of all outputs, at the tokens ``only``."""
    return max(float(np.abs(value[only] - np.asarray(expected[name])[only]).max()) for name, value in found.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["make", "check"])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--record", type=Path)
    args = parser.parse_args()
    if args.what == "make":
        args.directory.mkdir(exist_ok=True)
        make(args.directory)
        return
    rows = check(args.directory)
    if args.record:
        args.record.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
