"""Activations, LayerNorm, products and the token convolution against plain numpy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax.config_json import ACTIVATIONS as NAMES
from deberta_jax.ops.activations import ACTIVATIONS, activate
from deberta_jax.ops.convolution import token_convolution
from deberta_jax.ops.normalization import layer_norm
from deberta_jax.ops.products import product

RANDOM = np.random.RandomState(0)


def draw(*shape):
    return jnp.float32(RANDOM.standard_normal(shape))


def test_configurations_name_exactly_the_activations_there_are():
    assert set(NAMES) == set(ACTIVATIONS)


def test_gelu_is_the_error_function_form():
    """JAX's own default is the tanh form, which differs by up to 5e-4."""
    x = np.linspace(-6, 6, 501)
    exact = np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x])
    assert np.abs(ACTIVATIONS["gelu"](jnp.asarray(x, jnp.float32)) - exact).max() < 1e-6
    assert np.abs(ACTIVATIONS["gelu_new"](jnp.asarray(x, jnp.float32)) - exact).max() > 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_automatic_differentiation(name):
    x = jnp.linspace(-6, 6, 480)  # without the kinks
    automatic = jax.vmap(jax.grad(ACTIVATIONS[name]))(x)
    np.testing.assert_allclose(jax.vmap(jax.grad(lambda x: activate(name, x)))(x), automatic, atol=1e-6)
    half = x.astype(jnp.bfloat16)
    assert activate(name, half).dtype == jnp.bfloat16
    gradients = jax.vmap(jax.grad(lambda x: activate(name, x)))(half)
    assert gradients.dtype == jnp.bfloat16
    exact = np.float32(jax.vmap(jax.grad(ACTIVATIONS[name]))(half.astype(jnp.float32)))
    np.testing.assert_allclose(np.float32(gradients), exact, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_layer_norm_gradients_are_those_of_its_definition(dtype):
    """In float64, by central differences."""
    x, scale, bias, cotangent = draw(2, 3, 8).astype(dtype), draw(8), draw(8), draw(2, 3, 8)

    def loss(x, scale, bias):
        centred = x - x.mean(-1, keepdims=True)
        normal = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-7)
        return ((normal * scale + bias) * np.float64(cotangent)).sum()

    arrays = [np.float64(x.astype(jnp.float32)), np.float64(scale), np.float64(bias)]
    ours = jax.grad(lambda *a: jnp.sum(layer_norm(*a, 1e-7) * cotangent), argnums=(0, 1, 2))(x, scale, bias)
    for n, found in enumerate(ours):
        assert found.dtype == (dtype if n == 0 else jnp.float32)
        expected = np.zeros(arrays[n].shape)
        for at in np.ndindex(*arrays[n].shape):
            up, down = ([a.copy() for a in arrays] for _ in range(2))
            up[n][at] += 1e-5
            down[n][at] -= 1e-5
            expected[at] = (loss(*up) - loss(*down)) / 2e-5
        np.testing.assert_allclose(np.float64(found), expected, rtol=2**-7 if found.dtype == dtype else 0, atol=1e-5)


def test_layer_norm_is_float32_with_its_epsilon_inside_the_root():
    x, scale, bias = draw(3, 4, 8), draw(8), draw(8)
    x = x.at[0, 0].multiply(1e-4)  # where epsilon matters, and float16 has no such number
    x64, scale64, bias64 = (np.float64(a) for a in (x, scale, bias))
    centred = x64 - x64.mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-7) * scale64 + bias64
    np.testing.assert_allclose(layer_norm(x, scale, bias, 1e-7), expected, atol=3e-6)
    half = layer_norm(jnp.asarray(1000 * x, jnp.float16), scale, bias, 1e-7)
    assert half.dtype == jnp.float32
    assert np.isfinite(half).all()
    constant = layer_norm(jnp.full((2, 8), 3.0, jnp.float16), scale, bias, 1e-7)
    np.testing.assert_allclose(constant, np.broadcast_to(bias, (2, 8)), atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_products_accumulate_in_float32(dtype):
    a, b = jnp.asarray(draw(6, 4096), dtype), jnp.asarray(draw(4096, 5), dtype)
    exact = np.float64(a) @ np.float64(b)
    found = product("AB,BC->AC", a, b)
    assert found.dtype == jnp.float32
    # A sum of 4096 terms kept in 8 or 11 bits would be off by whole units.
    np.testing.assert_allclose(found, exact, atol=2e-3)


@pytest.mark.parametrize("spec", ["BTD,DNH->BTNH", "BTNH,BSNH->BNTS", "BTNH,RNH->BNTR"])
def test_product_gradients_are_those_of_einsum(spec):
    left, right = spec.split("->")[0].split(",")
    sizes = dict(zip("BTSDNHR", (2, 3, 3, 4, 2, 5, 6), strict=True))
    a, b = draw(*(sizes[c] for c in left)), draw(*(sizes[c] for c in right))
    cotangent = draw(*(sizes[c] for c in spec.split("->")[1]))
    ours = jax.grad(lambda a, b: jnp.sum(product(spec, a, b) * cotangent), (0, 1))(a, b)
    plain = jax.grad(lambda a, b: jnp.sum(jnp.einsum(spec, a, b) * cotangent), (0, 1))(a, b)
    for found, expected in zip(ours, plain, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize(
    "spec",
    [
        "BTNH,BSNH->BNTS",
        "BTNH,RNH->BNTR",
        "BNTS,BSNH->BTNH",
        "BTS,BSH->BTH",
        "BTH,UH->BTU",
        "UVA,ABC->UVBC",
        "UVAB,ABC->UVC",
        "VC,VU->CU",
        "UVS,UVI->SI",
        "UVI,UVS->IS",
    ],
)
def test_half_precision_products_run_forward_and_backward(spec, dtype):
    """A CPU lacks some of them, and which depends on what stands around them: it says so only when a program runs."""
    sizes = dict(zip("BTSNHRU", (4, 8, 8, 4, 8, 11, 16), strict=True), V=8, A=4, C=7, I=1)
    left, right, out = spec.replace("->", ",").split(",")
    a, b = draw(*(sizes[c] for c in left)), draw(*(sizes[c] for c in right)).astype(dtype)

    def loss(a, b):
        return jnp.sum(jnp.square(product(spec, a.astype(dtype), b).astype(dtype).astype(jnp.float32))) / 2

    found = jax.jit(jax.grad(loss, argnums=(0, 1)))(a, b)
    a, b = np.float64(a.astype(dtype)), np.float64(b)
    cotangent = np.einsum(spec, a, b)
    expected = np.einsum(f"{out},{right}->{left}", cotangent, b), np.einsum(f"{left},{out}->{right}", a, cotangent)
    for mine, exact in zip(found, expected, strict=True):
        assert np.abs(np.float64(mine) - exact).max() < 0.01 * np.abs(exact).max()


@pytest.mark.parametrize(("taps", "groups"), [(1, 1), (3, 1), (3, 2), (5, 4), (7, 1)])
def test_convolution_is_cross_correlation_within_a_text(taps, groups):
    width, length = 8, 6
    x, kernel, bias = draw(2, length, width), draw(taps, width // groups, width), draw(width)
    segments = np.array([[1, 1, 1, 2, 2, 0], [4, 4, 4, 4, 4, 4]])
    expected = np.zeros((2, length, width))
    size = width // groups
    for b, t, o in np.ndindex(2, length, width):
        inputs = slice(o // size * size, o // size * size + size)
        expected[b, t, o] = bias[o]
        for tap in range(taps):
            s = t + tap - taps // 2
            if 0 <= s < length and segments[b, s] == segments[b, t]:
                expected[b, t, o] += x[b, s, inputs] @ kernel[tap, :, o]
    found = token_convolution(x, kernel, bias, groups=groups, segment_ids=jnp.asarray(segments))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    whole = token_convolution(x[1:], kernel, bias, groups=groups, segment_ids=None)
    np.testing.assert_allclose(whole[0], expected[1], atol=1e-5)
