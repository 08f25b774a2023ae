"""Mutated configs: one clear line, or a config that says what the file says, and that is written and read again.

``-m long`` tries 5,000 and writes what became of them to ``benchmarks/results/fuzz_configs.json``.
"""

import collections
import dataclasses
import json
import re
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

from deberta_jax.config import DebertaConfig
from deberta_jax.errors import InputError
from deberta_jax.models import abstract_params, head_spec
from deberta_jax.weights import inspect, names
from tests.cases import BASE
from tests.fuzz.mutations import JSON_VALUES, mutated_json
from tests.weights.files import raw_config, state_of

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "fuzz_configs.json"
SECONDS = 5
MORE = {
    "id2label": {"0": "a", "1": "b"},
    "label2id": {"a": 0, "b": 1},
    "num_labels": 2,
    "architectures": ["DebertaV2ForSequenceClassification"],
    "torch_dtype": "float16",
    "pooler_dropout": 0,
    "padding_idx": 0,
    "tool": {"list": [1, {"deep": None}]},
    "pooling": {"dropout": 0.1, "hidden_act": "gelu"},
}
FIELDS = [field.name for field in dataclasses.fields(DebertaConfig) if field.name not in ("extra", "model_type")]
NUMBERS = ("0", "-1", "1", "2", "8", "12.0", "1e9", "1000000000", "1e-3", "9007199254740993", "true", "0.999999999")


def mutant(base: str, rng: np.random.Generator) -> bytes:
    """A mutated config; every other one also has a field set to a number or another value."""
    raw = {**raw_config(base), **MORE, "max_relative_positions": -1, "hidden_act": "gelu", "type_vocab_size": 0}
    content = mutated_json(raw, rng)
    if rng.random() < 0.5 and content.endswith(b"}") and len(content) > 2:
        values = NUMBERS if rng.random() < 0.7 else JSON_VALUES
        field, value = FIELDS[int(rng.integers(len(FIELDS)))], values[int(rng.integers(len(values)))]
        content = content[:-1] + f', "{field}": {value}}}'.encode()  # the last of two equal keys counts
    return content


def check_says(config: DebertaConfig, content: bytes) -> None:
    """Numbers, flags and texts are those of the file, as Python's own reader of JSON finds them."""
    raw = json.loads(content)
    ignored = {*MORE, "id2label", "pos_att_type", "pad_token_id", "extra"}
    if config.model_type == "deberta":
        ignored |= {
            name for name in raw if name.startswith(("conv_", "position_buckets", "share_", "norm_", "attention_head"))
        }
    for name in FIELDS:
        if name in raw and name not in ignored and raw[name] is not None:
            found = getattr(config, name)
            assert found == (float(raw[name]) if isinstance(found, float) else raw[name]), name
    again = DebertaConfig.from_hf(json.loads(json.dumps(config.to_hf())))
    assert again == config
    assert hash(again) == hash(config)
    assert json.dumps(again.to_hf(), sort_keys=True) == json.dumps(config.to_hf(), sort_keys=True)


def check_shapes(config: DebertaConfig, seen: set[DebertaConfig]) -> None:
    """The model of a small config can be described, with the shapes that the table of tensors gives."""
    sizes = names.sizes(config, config.num_labels)
    table = {
        path: shape
        for row in names.table(config, ())
        for path, shape in zip(row.tree, row.leaf_shapes(sizes), strict=True)
    }
    small = (
        config.num_hidden_layers < 10 and max(config.vocab_size, config.hidden_size, config.intermediate_size) < 1000
    )
    if not small or config in seen:
        return
    seen.add(config)
    spec = head_spec("encoder")
    leaves, _ = jax.tree_util.tree_flatten_with_path(abstract_params(spec.model(config)))
    found = {"deberta/" + "/".join(key.key for key in path): leaf.shape for path, leaf in leaves}
    assert found.keys() == table.keys()
    for path, shape in found.items():
        assert shape[-len(table[path]) :] == table[path], path


def attack(folder: Path, seed: int, count: int, shapes: int) -> dict:
    rng, seen = np.random.default_rng(seed), set()
    kinds, lines = collections.Counter(), collections.Counter()
    for base in BASE:
        (folder / base).mkdir()
        safetensors.numpy.save_file(state_of(base), folder / base / "model.safetensors")
    for i in range(count):
        base = list(BASE)[int(rng.integers(len(BASE)))]
        content = mutant(base, rng)
        (folder / base / "config.json").write_bytes(content)
        start, what, message = time.process_time(), "loaded", ""
        try:
            config = DebertaConfig.from_hf(folder / base / "config.json")
            what = "read, but not that of the weights"
            check_says(config, content)
            if len(seen) < shapes:
                check_shapes(config, seen)
            inspect(folder / base)
            what = "read, and that of the weights"
        except InputError as error:
            what, message = (what if what != "loaded" else "refused"), str(error)
            assert message.isprintable()
            assert len(message) < 4100
        except Exception as error:
            raise AssertionError(f"number {i} of seed {seed}, {base}: {error!r}: {content[:2000]!r}") from error
        kinds[what] += 1
        if what == "refused":
            lines[re.sub(r"\d+", "N", message.partition("config.json: ")[2])[:60]] += 1
        seconds = time.process_time() - start
        assert seconds < SECONDS + 5 * (len(seen) < shapes), f"number {i} of seed {seed}: {seconds} s"
    return {
        "files": count,
        "seed": seed,
        **kinds,
        "abstract models": len(seen),
        "most frequent messages": dict(lines.most_common(40)),
    }


@pytest.mark.slow
def test_one_line_or_a_config_that_says_what_the_file_says(tmp_path):
    found = attack(tmp_path, 1, 120, 8)
    assert min(found["refused"], found["read, and that of the weights"]) > 10


@pytest.mark.long
def test_five_thousand_configs(tmp_path):
    result = attack(tmp_path, 2, 5000, 500)
    result |= {"tracebacks": 0, "wrong values": 0, "slower than 5 s": 0}
    RESULTS.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
