"""The dtype in which devices add up gradients, read from the compiled step: the same whatever the mesh."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax import DebertaForSequenceClassification
from deberta_jax.errors import InputError
from deberta_jax.ops.embedding_lookup import take_sharded_rows
from deberta_jax.ops.linear_cross_entropy import linear_cross_entropy
from deberta_jax.ops.products import product
from deberta_jax.planning.hlo import parse_hlo
from deberta_jax.planning.programs import make_program, objective_of
from deberta_jax.planning.request import make_request
from deberta_jax.planning.targets import target_of
from deberta_jax.sharding import make_mesh
from deberta_jax.training.experiment import RunOptions
from tests.made import TINY
from tests.planning.exchanges import added_up
from tests.planning.small import CONFIG

MESHES = [(8, 1, 1), pytest.param((2, 4, 1), marks=pytest.mark.slow), pytest.param((2, 2, 2), marks=pytest.mark.slow)]


@pytest.mark.parametrize("mesh", MESHES)
def test_gradients_of_a_bfloat16_computation_are_added_up_in_float32(mesh):
    names = ("mesh_data", "mesh_fsdp", "mesh_tensor")
    runtime = RunOptions(**dict(zip(names, mesh, strict=True)), attention="xla")
    request = make_request(
        "finetune", CONFIG, target_of("cpu:8"), batch_size=16, length=24, dtype="bfloat16", runtime=runtime
    )
    sums = added_up(parse_hlo(make_program(request, jax.devices()).compiled.as_text()), request)
    assert {a.dtype for a in sums} == {"f32"}
    parameters = sum(leaf.size for leaf in jax.tree.leaves(objective_of(request).parameters.shapes))
    _, fsdp, tensor = mesh
    assert sum(math.prod(a.dims) for a in sums) >= 0.9 * parameters / fsdp / tensor / CONFIG.num_hidden_layers


def gradient(loss, *arrays):
    """Of the last array on eight devices that share the first axis of the others, and the lowered program."""
    mesh = make_mesh(8)
    with jax.set_mesh(mesh):
        lowered = jax.jit(jax.grad(loss, argnums=len(arrays) - 1)).lower(*arrays)
        return np.asarray(lowered.compile()(*arrays)), lowered.as_text()


def test_tables_and_kernels_are_added_up_in_bfloat16_on_request():
    random = np.random.default_rng(0)
    table = jnp.float32(random.normal(size=(16, 8)))
    ids = jnp.asarray(random.integers(0, 16, (8, 4)), jnp.int32)
    cotangent = jnp.float32(random.normal(size=(8, 4, 8)))

    def lookup(dtype):
        loss = lambda ids, table: jnp.sum(
            cotangent * take_sharded_rows(table, ids, jnp.bfloat16, gradient_dtype=dtype).astype(jnp.float32)
        )
        return gradient(lambda table: loss(ids, table), table)

    def output_layer(dtype):
        states = cotangent.astype(jnp.bfloat16)
        return gradient(
            lambda table: linear_cross_entropy(states, table, jnp.zeros(16), ids, gradient_dtype=dtype).value.sum(),
            table,
        )

    for found in (lookup, output_layer):
        (exact, whole), (near, half) = found(jnp.float32), found(jnp.bfloat16)
        assert near.dtype == exact.dtype == np.float32
        np.testing.assert_allclose(near, exact, rtol=0.03, atol=0.03)
        assert not np.array_equal(near, exact)
        sums = lambda text: [line for line in text.split('"stablehlo.all_reduce"')[1:] if "16x8x" in line[:2000]]
        assert "tensor<16x8xbf16>" in "".join(sums(half))
        assert "tensor<16x8xbf16>" not in "".join(part[:400] for part in sums(whole))


def test_the_gradient_of_a_kernel_is_not_rounded_unless_asked():
    random = np.random.default_rng(1)
    x, kernel, cotangent = (jnp.float32(random.normal(size=size)) for size in ((64, 8), (8, 4), (64, 4)))
    half = x.astype(jnp.bfloat16)
    found = {
        dtype: jax.grad(lambda k, d=dtype: jnp.sum(cotangent * product("AB,BC->AC", half, k, gradient_dtype=d)))(kernel)
        for dtype in (jnp.float32, jnp.bfloat16)
    }
    exact = np.float64(half.astype(jnp.float32)).T @ np.float64(cotangent.astype(jnp.bfloat16).astype(jnp.float32))
    np.testing.assert_allclose(found[jnp.float32], exact, rtol=1e-5, atol=1e-5)
    rounded = found[jnp.bfloat16]
    assert rounded.dtype == jnp.float32
    np.testing.assert_array_equal(rounded, rounded.astype(jnp.bfloat16).astype(jnp.float32))
    np.testing.assert_allclose(rounded, exact, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": jnp.float32}, "gradient_dtype=bfloat16: the computation has dtype float32"),
        ({"dtype": jnp.bfloat16, "attention": "reference"}, "with attention='reference' JAX derives the gradients"),
    ],
)
def test_what_does_not_go_together_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        DebertaForSequenceClassification(TINY, gradient_dtype=jnp.bfloat16, **options)
