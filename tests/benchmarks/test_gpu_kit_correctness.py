"""What the GPU kit calls correct: wrong attention of many kinds fails, right attention passes, in all dtypes."""

from collections.abc import Callable
from typing import Any

import correctness
import implementations
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from correctness import FULL, TINY, Setting, compare, inputs
from worker import Case, Request, run_case

from deberta_jax.errors import InputError
from deberta_jax.ops.attention import IMPLEMENTATIONS, disentangled_attention

ARRAYS = ["context", "query", "key", "value", "pos_key", "pos_query"]
Attend = Callable[..., jax.Array]


def by_xla(*arrays: Any, **options: Any) -> jax.Array:
    return disentangled_attention(*arrays, **options, implementation="xla")[0]


def mirrored(query, key, value, pos_key, pos_query, relative_index, **options):
    """Distances of the wrong sign."""
    return by_xla(query, key, value, pos_key, pos_query, relative_index[::-1].copy(), **options)


def off_by_one(query, key, value, pos_key, pos_query, relative_index, **options):
    return by_xla(query, key, value, pos_key, pos_query, np.append(relative_index[1:], relative_index[-1]), **options)


def exchanged(query, key, value, pos_key, pos_query, relative_index, **options):
    return by_xla(query, key, value, pos_query, pos_key, relative_index, **options)


def without_a_gradient(query, key, value, pos_key, pos_query, relative_index, **options):
    """The right context; only one of five gradients is wrong."""
    return by_xla(query, key, value, pos_key, jax.lax.stop_gradient(pos_query), relative_index, **options)


def sees_all(*arrays, attention_mask, segment_ids, **options):
    return by_xla(*arrays, attention_mask=None, segment_ids=None, **options)


def drops_others(*arrays, dropout_key, **options):
    """As many weights dropped, but not those that the key names."""
    return by_xla(*arrays, dropout_key=jax.random.fold_in(dropout_key, 1), **options)


def keeps_all(*arrays, dropout_rate, dropout_key, **options):
    return by_xla(*arrays, dropout_rate=0.0, dropout_key=None, **options)


def with_one_nan(*arrays, **options):
    return by_xla(*arrays, **options).at[0, 3, 0, 1].set(jnp.nan)


def with_wrong_scale(*arrays, scale, **options):
    return by_xla(*arrays, scale=1.05 * scale, **options)


def one_block_missing(query, *arrays, **options):
    """The last eight of 24 queries get nothing, as where a kernel's grid is too small."""
    return jnp.where(jnp.arange(24)[None, :, None, None] < 16, by_xla(query, *arrays, **options), 0)


WRONG = (
    mirrored,
    off_by_one,
    exchanged,
    without_a_gradient,
    sees_all,
    drops_others,
    keeps_all,
    with_one_nan,
    with_wrong_scale,
    one_block_missing,
)


def check(attend: Attend, dtype: str) -> dict[str, Any]:
    """Compares a function of this file as a user's file is with ``--extra``."""
    setting = Setting(24, dtype, "segments", 0.2, "v3", size=8)
    return compare(attend.__name__, setting, Request(tiny=True, extra=f"{__file__}:{attend.__name__}"))


@pytest.mark.slow
@pytest.mark.parametrize("attend", WRONG, ids=lambda attend: attend.__name__)
def test_wrong_attention_fails(attend):
    row = check(attend, "bfloat16")
    assert row["status"] == "failed"
    wrong = [name for name in ARRAYS if row["errors"][name] is None or row["errors"][name] > row["limits"][name]]
    if attend is without_a_gradient:
        assert wrong == ["pos_query"]
        assert row["errors"]["pos_query"] == 1.0
    elif attend is with_one_nan:
        assert row["errors"]["context"] is None
    else:
        assert "context" in wrong
        assert len(wrong) > 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_right_attention_passes_and_limits_are_near_its_error(dtype):
    row = check(by_xla, dtype)
    assert row["status"] == "ok", row
    assert sorted(row["errors"]) == sorted(ARRAYS)
    for name in ARRAYS:
        assert row["errors"][name] <= row["limits"][name]
        if dtype != "float32":
            assert row["definition's own"][name] > 0
            assert row["limits"][name] < 10 * row["definition's own"][name]
        else:
            assert row["limits"][name] <= 1e-4


def test_settings_cover_what_they_claim():
    """Every setting has something to see; together they have every mask, dtype, dropout, and lengths from 1 to 2048."""
    for setting in (*FULL, *TINY):
        arrays, masks, relative_index = inputs(setting)
        assert relative_index.shape == (2 * setting.length - 1,)
        seen = np.ones((setting.batch, setting.length, setting.length), bool)
        if masks["segment_ids"] is not None:
            ids = masks["segment_ids"]
            seen &= (ids[:, :, None] == ids[:, None]) & (ids > 0)[:, None]
        if masks["attention_mask"] is not None:
            seen &= masks["attention_mask"]
        assert seen.any()
        assert seen.all() == (setting.mask == "none" or setting.length == 1)
        for name in ("query", "pos_query"):
            exactly = np.float64(arrays[name])
            for dtype in ("float32", "bfloat16", "float16"):
                np.testing.assert_allclose(np.float64(exactly.astype(dtype)), exactly, rtol=1e-3, atol=3e-8)
    for field in ("mask", "dtype"):
        assert len({getattr(setting, field) for setting in FULL}) == (5 if field == "mask" else 3)
    lengths = [setting.length for setting in FULL]
    assert (min(lengths), max(lengths)) == (1, 2048)
    assert {(s.dtype, s.dropout > 0) for s in FULL} == {
        (d, on) for d in ("float32", "bfloat16", "float16") for on in (False, True)
    }
    assert any(setting.without for setting in FULL)


def broken(*arrays, **options):
    raise RuntimeError("PTXAS error: register allocation failed")


def refuses(*arrays, **options):
    raise InputError("it has no kernel for this machine")


@pytest.mark.parametrize(
    ("attend", "status", "reason"),
    [
        (broken, "error", "RuntimeError: PTXAS error: register allocation failed"),
        (refuses, "skipped", "it has no kernel for this machine"),
    ],
)
def test_what_cannot_run_is_an_error_and_what_refuses_is_skipped(attend, status, reason):
    row = run_case(Case("made", lambda: check(attend, "bfloat16")))
    assert (row["status"], row["reason"]) == (status, reason)


def test_every_implementation_of_the_registry_is_compared():
    names = implementations.names(Request(tiny=True, extra="some/file.py:mine"))
    assert sorted(names) == sorted([*IMPLEMENTATIONS, "mine"])
    cases = [case.name for case in correctness.cases(Request(tiny=False))]
    assert len(set(cases)) == len(cases)
    assert all(any(case.startswith(f"{name}, ") for case in cases) for name in IMPLEMENTATIONS)
