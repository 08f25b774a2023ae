"""Rows of a divided table against numpy, with the gradient, on meshes of all kinds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax.ops.embedding_lookup import take_sharded_rows
from deberta_jax.sharding import RULES, batch_sharding, make_mesh

B, T, V, E = 8, 5, 12, 8


@pytest.mark.parametrize("sizes", [(2, 4, 1), (1, 2, 4), (2, 2, 2), (8, 1, 1)])
def test_rows_and_the_tables_gradient(sizes):
    rng = np.random.default_rng(0)
    table, weight = (rng.normal(size=shape).astype(np.float32) for shape in ((V, E), (B, T, E)))
    ids = rng.integers(0, V, (B, T)).astype(np.int32)
    mesh = make_mesh(*sizes)
    shardings = jax.NamedSharding(mesh, RULES.spec(("vocab", "embed"))), *(batch_sharding(mesh),) * 2

    def program(table, ids, weight):
        return jax.value_and_grad(lambda t: (r := take_sharded_rows(t, ids, jnp.float32), (r * weight).sum())[1])(table)

    with jax.set_mesh(mesh):
        placed = [jax.device_put(a, s) for a, s in zip((table, ids, weight), shardings, strict=True)]
        rows = jax.jit(lambda t, i: take_sharded_rows(t, i, jnp.float32))(*placed[:2])
        _, gradient = jax.jit(program)(*placed)
    by_hand = np.zeros((V, E))
    np.add.at(by_hand, ids, weight.astype(np.float64))
    np.testing.assert_array_equal(rows, table[ids])
    np.testing.assert_allclose(gradient, by_hand, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 2, 4)])
def test_an_id_outside_the_table_gives_nan(sizes):
    ids = np.zeros((B, T), np.int32)
    ids[1, 2], ids[3, 4] = V, -1
    with jax.set_mesh(make_mesh(*sizes)):
        rows = np.asarray(jax.jit(take_sharded_rows, static_argnums=2)(np.ones((V, E), np.float32), ids, jnp.float32))
    np.testing.assert_array_equal(np.isnan(rows).all(-1), (ids < 0) | (ids >= V))
    assert np.isnan(rows).any(-1).sum() == 2
