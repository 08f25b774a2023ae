"""Parts of JAX that disappear take the kernels written with them along, and nothing else."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).resolve().parents[2]
OLD_JAX = jax.__version_info__ < (0, 11, 2)  # without what the GPU kernels need

# Run in a process of its own: there the named modules cannot be imported, from the first moment on.
SCRIPT = """
import sys
for name in sys.argv[1].split(","):
    sys.modules[name] = None

import contextlib, logging
logging.basicConfig(level=logging.INFO, format="%(message)s")
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AbstractDevice, AbstractMesh
import deberta_jax
from deberta_jax.errors import InputError
from deberta_jax.ops import attention

config = deberta_jax.DebertaConfig(vocab_size=40, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                                   intermediate_size=8, relative_attention=True, pos_att_type=("c2p", "p2c"))
model = deberta_jax.DebertaForSequenceClassification(config)
params = jax.jit(lambda key: deberta_jax.init_params(model, key))(jax.random.key(0))
ids = np.arange(12).reshape(2, 6)

def loss(params, ids, model=model):
    return (model.apply({"params": params}, ids).logits ** 2).sum()

@jax.jit
def step(params, ids):
    value, gradients = jax.value_and_grad(loss)(params, ids)
    return value, jax.tree.map(lambda p, g: p - 0.01 * g, params, gradients)

before, params = step(params, ids)
print("trained", bool(step(params, ids)[0] < before))

named = deberta_jax.DebertaForSequenceClassification(config, attention="pallas", dtype=jnp.bfloat16)
gpu = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")
for platform in ("cuda", "tpu"):
    mesh = jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=gpu))
    try:
        with mesh if platform == "cuda" else contextlib.nullcontext():
            traced = jax.jit(lambda params, ids: loss(params, ids, named)).trace(params, ids)
            traced.lower(lowering_platforms=(platform,))
        print(platform, "lowered")
    except InputError as error:
        print(platform, "refused:", error)

for platform in ("gpu", "tpu"):
    print(platform, "auto would be", attention.expected_implementation(platform, jnp.bfloat16))
    jax.default_backend = lambda platform=platform: platform
    for _ in range(2):
        print(platform, "auto is", attention.choose_implementation("auto", jnp.bfloat16, whole_scores=False))
"""


def run(*missing: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    arguments = [sys.executable, "-W", "error::DeprecationWarning:deberta_jax", "-c", SCRIPT, ",".join(missing)]
    found = subprocess.run(arguments, cwd=ROOT, env=env, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("missing", "platforms"),
    [
        (("jax.experimental.pallas.mosaic_gpu",), {"cuda": "jax.experimental.pallas.mosaic_gpu"}),
        (("jax.experimental.pallas.tpu",), {"tpu": "jax.experimental.pallas.tpu"}),
        (
            ("jax.experimental.pallas",),
            {"cuda": "jax.experimental.pallas.mosaic_gpu", "tpu": "jax.experimental.pallas.tpu"},
        ),
    ],
)
def test_without_a_kernels_backend_all_else_works(missing, platforms):
    found = run(*missing)
    lines = found.stdout.splitlines()
    assert lines[0] == "trained True"
    for platform in ("cuda", "tpu"):
        (line,) = [line for line in lines if line.startswith((f"{platform} refused", f"{platform} lowered"))]
        if platform == "cuda" and OLD_JAX:  # whatever is missing
            platforms = platforms | {"cuda": "jax.experimental.pallas.mosaic_gpu"}
        if platform not in platforms:
            assert line == f"{platform} lowered"
            continue
        name = "GPU" if platform == "cuda" else "TPU"
        assert line.startswith(f"{platform} refused: attention='pallas' on a {name} needs {platforms[platform]}, which")
        tested = {"cuda": ">=0.11.2,<0.13", "tpu": "<0.13"}[platform]
        assert line.endswith(f"; install 'jax{tested}', or use attention='xla'")
        backend = name.lower()
        assert f"{backend} auto would be xla" in lines
        assert lines.count(f"{backend} auto is xla") == 2
        said = [line for line in found.stderr.splitlines() if f"attention on {backend}: 'xla'" in line]
        assert len(said) == 1, found.stderr
        assert (
            f"attention kernel for {backend} in bfloat16: not used: InputError: attention='pallas' on" in found.stderr
        )


def test_importing_the_package_imports_no_kernel_backend():
    script = "import sys, deberta_jax; print([m for m in sys.modules if m.startswith('jax.experimental.pallas')])"
    found = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_kernels_choose_by_the_name_that_a_platform_has_within_a_kernel():
    """There a TPU is "mosaic". "tpu" is accepted and never chosen; kernels for GPUs cannot choose at all."""
    names = {"tpu": {"mosaic", "default"}, "gpu": set()}
    calls = [
        (folder, {keyword.arg for keyword in node.keywords})
        for folder in names
        for path in (ROOT / "deberta_jax/ops/attention" / folder).glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("platform_dependent")
    ]
    assert calls
    assert all(keywords <= names[folder] for folder, keywords in calls), calls
