"""Values inside a model by path, read and changed, also in the loop over layers; and what Flax itself captures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax.errors import InputError
from deberta_jax.models import capture, patch
from tests.cases import Case, draw_params, execute

# The mask decoder runs the last layer twice, and the convolution is added to the output of the first layer.
CASE = Case("hooks", "xl", "masked-lm", {"legacy": False, "mask_decoder": True, "num_hidden_layers": 3}, length=7)
IDS = jnp.asarray(np.random.RandomState(0).randint(1, 90, (2, 7)), jnp.int32)


@pytest.fixture(scope="module")
def params():
    return draw_params(CASE.model())


@pytest.mark.parametrize("runtime", [{}, {"scan": False}, {"remat": "full"}], ids=str)
def test_layers_and_weights_are_those_of_the_output(params, runtime):
    model = CASE.model(**runtime)

    def run(params):
        whole = model.apply({"params": params}, IDS, output_hidden_states=True, output_attentions=True)
        output, values = capture(model, params, IDS, at=["layers/*", "layers/1/attention/self/weights"])
        assert (output.attentions, output.hidden_states) == (None, None)
        return (whole.hidden_states, whole.attentions), (whole.logits, output.logits), values

    (states, attentions), logits, values = execute(run, params)
    layers = [f"deberta/encoder/layers/{i}" for i in range(3)]
    assert sorted(values) == sorted([*layers, f"{layers[1]}/attention/self/weights"])
    np.testing.assert_allclose(*logits, atol=1e-5)
    for layer, state in zip(layers, states[1:], strict=True):
        np.testing.assert_allclose(values[layer], state, atol=1e-5)
    np.testing.assert_allclose(values[f"{layers[1]}/attention/self/weights"], attentions[1], atol=1e-6)


def test_all_paths_have_the_documented_shapes(params):
    _, values = capture(CASE.model(), params, IDS, at="*", output_attentions=True)
    layer = "deberta/encoder/layers/2"
    shapes = {
        "deberta/embeddings": (2, 7, 32),
        layer: (2, 7, 32),
        f"{layer}/attention": (2, 7, 32),
        f"{layer}/attention/self": (2, 7, 4, 8),
        f"{layer}/attention/self/query_proj": (2, 7, 4, 8),
        f"{layer}/attention/self/key_proj": (2, 7, 4, 8),
        f"{layer}/attention/self/pos_key": (11, 4, 8),
        f"{layer}/attention/self/pos_query": (11, 4, 8),
        f"{layer}/attention/self/weights": (2, 4, 7, 7),
        f"{layer}/intermediate": (2, 7, 48),
    }
    assert {path: values[path].shape for path in shapes} == shapes


@pytest.mark.slow
@pytest.mark.parametrize("scan", [True, False])
def test_the_state_of_another_text_put_into_a_layer_decides_what_follows(params, scan):
    model, other = CASE.model(scan=scan), IDS[::-1]

    def run(params):
        target, kept = capture(model, params, other, at="layers/0")
        (state,) = kept.values()
        edits = {"layers/0": lambda value, *, layer: state}
        changed, values = capture(model, params, IDS, at="layers/0", edits=edits)
        return target.logits, changed.logits, patch(model, params, IDS, edits=edits).logits, state, *values.values()

    target, changed, patched, state, kept = execute(run, params)
    np.testing.assert_allclose(changed, target, atol=1e-5)
    np.testing.assert_allclose(patched, target, atol=1e-5)
    np.testing.assert_array_equal(kept, state)


@pytest.mark.slow
def test_an_edit_knows_its_layer_and_has_a_gradient(params):
    model = CASE.model()

    def loss(factors, params):
        edits = {"layers/*/attention/self": lambda value, *, layer: value * factors[layer]}
        return patch(model, params, IDS, edits=edits).logits.sum()

    gradient = execute(jax.grad(loss), jnp.ones(3), params)
    step = 1e-2
    for layer in range(3):
        high, low = (execute(loss, jnp.ones(3).at[layer].add(sign * step), params) for sign in (1, -1))
        assert gradient[layer] == pytest.approx((high - low) / (2 * step), rel=2e-2, abs=1e-2)
    assert len({round(float(value), 4) for value in gradient}) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"at": "layers/3/attention"}, r"no module of the model matches 'layers/3/attention'; did you mean"),
        ({"at": ["layers/*", "attentoin"]}, r"'attentoin'; did you mean 'attention'"),
        ({"at": "zzz"}, r"'zzz'; capture\(..., at='\*'\) returns all"),
        *(({"at": at}, "is no pattern of paths; give a str such as") for at in ("", ".")),
        ({"at": (), "edits": {"layers/1": lambda x: x}}, r"edits: 'layers/1': give a function \(value, \*, layer\)"),
        ({"at": (), "edits": {"layers/*/attention/self/weights": lambda x, *, layer: x}}, "score_modifier"),
        ({"at": (), "edits": {"layers/1": lambda x, *, layer: x[:1]}}, r"returned float32\[1, 7, 32\]; the value is"),
        ({"at": (), "edits": {"embeddings": lambda x, *, layer: x.astype(int)}}, r"the edit of deberta/embeddings"),
    ],
)
def test_what_cannot_be_is_refused(params, options, message):
    with pytest.raises(InputError, match=message):
        capture(CASE.model(), params, IDS, **options)


@pytest.mark.parametrize("scan", [True, False])
def test_flax_captures_inside_layers_too(params, scan):
    model = CASE.model(scan=scan)

    def run(params):
        _, values = capture(model, params, IDS, at=["layers/*/attention", "layers/*/intermediate/dense"])
        _, flax = model.apply({"params": params}, IDS, capture_intermediates=True, mutable=["intermediates"])
        layers = flax["intermediates"]["deberta"]["encoder"]["layers"]
        return values, layers["attention"]["__call__"][0][0], layers["intermediate"]["dense"]["__call__"][0]

    values, attention, dense = execute(run, params)
    for layer in range(3):
        np.testing.assert_allclose(attention[layer], values[f"deberta/encoder/layers/{layer}/attention"], atol=1e-6)
        np.testing.assert_allclose(
            dense[layer], values[f"deberta/encoder/layers/{layer}/intermediate/dense"], atol=1e-6
        )
