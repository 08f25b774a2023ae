"""StableHLO programs: run without this package they give what the model gives, on every platform they are lowered."""

import json
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
from jax import export
from safetensors.numpy import load_file

import deberta_jax
from deberta_jax.export import export_stablehlo
from deberta_jax.export.stablehlo import exporting
from deberta_jax.export.stablehlo.programs import export_program
from deberta_jax.models import HEADS, HeadOutput, HeadSpec, Model
from deberta_jax.weights.trees import leaves_by_path
from tests.cases import Case, apply, draw_params
from tests.made import refused, weighted_model

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "run_stablehlo.py"
TOLERANCE = {"rtol": 0, "atol": 1e-6}


def inputs_of(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    mask = np.arange(shape[-1]) < random.integers(1, shape[-1] + 1, (*shape[:-1], 1))
    return {"input_ids": random.integers(1, 96, shape, np.int32), "attention_mask": mask.astype(np.int32)}


QUICK = [("xl", "masked-lm")]
ALL = [(base, head) for base in ("v1", "v2", "v3", "xl") for head in HEADS]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "head"), [pytest.param(*pair, marks=() if pair in QUICK else pytest.mark.long) for pair in ALL]
)
def test_one_program_serves_any_batch(base, head, tmp_path):
    case = Case(f"stablehlo-{base}-{head}", base, head)
    model, params, length = case.model(), draw_params(case.model()), 12
    done = export_stablehlo((model, params), tmp_path / "out", lengths=(length,))
    assert (done.head, done.lengths) == (head, (length,))
    folder = tmp_path / "out" / "stablehlo"
    program = export.deserialize(bytearray((folder / f"length_{length}.bin").read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    weights = load_file(folder / "weights.safetensors")
    # The export itself has run it for three rows.
    inputs = inputs_of((5, 3, length) if head == "multiple-choice" else (5, length))
    expected = apply(model.clone(attention="xla"), params, inputs)
    found = program.call(weights, inputs)
    assert set(found) == {name for name, value in vars(expected).items() if value is not None}
    for name, value in found.items():
        scale = max(1.0, float(np.abs(getattr(expected, name)).max()))
        np.testing.assert_allclose(value / scale, getattr(expected, name) / scale, **TOLERANCE)


class MeanPooling(Model[HeadOutput]):
    """A head from outside the package."""

    @nn.compact
    def forward(self, input_ids=None, **inputs) -> HeadOutput:
        return HeadOutput(nn.Dense(2, name="own")(self.backbone(input_ids, inputs).states.mean(1)))


def test_a_head_from_outside_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(HEADS, "mean-pooling", HeadSpec(model=MeanPooling, parts=("own",)))
    model = MeanPooling(Case("stablehlo-own", "v3").config)
    params, inputs = draw_params(model), inputs_of((2, 4))
    done = export_stablehlo((model, params), tmp_path / "out", lengths=(4,))
    assert done.head == "mean-pooling"
    folder = tmp_path / "out" / "stablehlo"
    program = export.deserialize(bytearray((folder / "length_4.bin").read_bytes()))
    found = program.call(load_file(folder / "weights.safetensors"), inputs)
    np.testing.assert_allclose(found["logits"], apply(model, params, inputs).logits, rtol=0, atol=2e-6)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_programs_lower_for_accelerators_that_are_not_here(platform):
    case = Case("stablehlo-lower", "v3", "sequence-classification")
    model = case.model(attention="xla")
    exported = export_program(model, leaves_by_path(draw_params(model)), 16)
    assert platform in exported.platforms
    assert "stablehlo" in exported.mlir_module()
    assert [str(size) for size in exported.out_avals[0].shape] == ["batch", "3"]


@pytest.mark.system
def test_a_process_without_this_package_computes_the_same(tmp_path):
    """The example's code reads weights and program with JAX and NumPy, where deberta_jax cannot be imported."""
    case = Case("stablehlo-alone", "v3", "token-classification")
    model, params = case.model(), draw_params(case.model())
    export_stablehlo((model, params), tmp_path / "out", lengths=(8, 16))
    inputs = inputs_of((2, 7))
    np.savez(tmp_path / "inputs.npz", **inputs)
    script = (
        "import importlib.util, sys, numpy as np\n"
        "sys.modules['deberta_jax'] = None\n"
        f"spec = importlib.util.spec_from_file_location('example', {str(EXAMPLE)!r})\n"
        "example = importlib.util.module_from_spec(spec); spec.loader.exec_module(example)\n"
        "run = example.load('out')\n"
        "outputs = run(dict(np.load('inputs.npz')))\n"
        "np.savez('outputs.npz', **outputs)\n"
        "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "assert not loaded & {'flax', 'safetensors', 'optax', 'orbax'}\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "outputs.npz")["logits"]
    expected = apply(model.clone(attention="xla"), params, inputs).logits
    np.testing.assert_allclose(found[:, :7], expected, rtol=0, atol=1e-6)


def test_the_directory_describes_itself_and_bfloat16_is_half(tmp_path):
    case = Case("stablehlo-half", "v3", "sequence-classification")
    pair = case.model(), draw_params(case.model())
    export_stablehlo(pair, tmp_path / "half", lengths=(4,), dtype="bfloat16")
    folder = tmp_path / "half" / "stablehlo"
    manifest = json.loads((folder / "programs.json").read_text())
    assert manifest == {
        "programs": {"4": "length_4.bin"},
        "weights": "weights.safetensors",
        "inputs": {"input_ids": "int32[batch,length]", "attention_mask": "int32[batch,length]"},
        "outputs": {"logits": "float32"},
        "platforms": ["cpu", "cuda", "tpu"],
        "jax": jax.__version__,
    }
    raw = (folder / "weights.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert {entry["dtype"] for name, entry in header.items() if name != "__metadata__"} == {"BF16"}
    assert deberta_jax.DebertaConfig.from_hf(tmp_path / "half" / "config.json").num_labels == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "stablehlo", "--dtype", "int8"], "dtype='int8': expected one of 'float32', 'bfloat16'"),
        (["--to", "stablehlo", "--keep-embeddings"], "--keep-embeddings is for --to onnx --dtype int8"),
        (["--to", "stablehlo", "--lengths", "16", "16"], "lengths=[16, 16]: give one or more different numbers"),
        (["--to", "stablehlo", "--lengths", "0"], "lengths: 0 is no number of tokens"),
        (["--to", "stablehlo", "--lengths", "1000000"], "lengths: 1000000 tokens are too many; give at most 65536"),
        (["--to", "onnx", "--lengths", "16"], "--lengths is for --to stablehlo"),
        (["--to", "onnx", "--dtype", "bfloat16"], "dtype='bfloat16': expected one of 'float32', 'float16', 'int8'"),
    ],
)
def test_what_a_format_does_not_have_is_one_line(task, tmp_path, capsys, arguments, message):
    source = weighted_model(tmp_path / "model")
    assert message in refused(["export", source, tmp_path / "out", *arguments], capsys)
    assert not (tmp_path / "out").exists()


def test_a_length_beyond_the_absolute_positions_is_refused(tmp_path):
    case = Case("stablehlo-long", "v2", options={"position_biased_input": True})
    with pytest.raises(deberta_jax.InputError, match="65 tokens, but this model has absolute positions for 64"):
        export_stablehlo((case.model(), draw_params(case.model())), tmp_path / "out", lengths=(65,))


@pytest.mark.parametrize("lengths", [None, 128, "128", {128: 1}, []])
def test_lengths_that_are_no_list_of_numbers(lengths, tmp_path, unchecked):
    case = Case("stablehlo-lengths", "v3")
    with pytest.raises(deberta_jax.InputError, match=r"lengths=.*: give (a list|one or more)"):
        export_stablehlo((case.model(), {}), tmp_path / "out", lengths=lengths)


@pytest.mark.parametrize("error", [MemoryError(), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")])
def test_a_length_that_needs_too_much_memory_is_one_line(error, tmp_path, monkeypatch):
    case = Case("stablehlo-memory", "v3")

    def too_large(*arguments):
        raise error

    monkeypatch.setattr(exporting, "export_program", too_large)
    with pytest.raises(deberta_jax.InputError, match="lengths: 16 tokens need more memory than there is here"):
        export_stablehlo((case.model(), draw_params(case.model())), tmp_path / "out", lengths=(16,))
    assert list(tmp_path.iterdir()) == []
