"""Several texts in a row give each its own unpacked outputs, and no gradient flows from one to another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cases import Case, draw_params, execute

LENGTHS = (5, 3, 7, 1)
# (row, first column) of each text: two rows of ten, padding at an end and in the middle.
PLACES = ((0, 0), (0, 6), (1, 0), (1, 7))
ROWS, LENGTH = 2, 10
_DECODER = {"legacy": False, "mask_decoder": True}

CASES = [
    Case("packed-v1-encoder", "v1"),
    Case("packed-xl-encoder", "xl"),
    Case("packed-wide-kernel", "v2", options={"conv_kernel_size": 7, "conv_act": "tanh", "position_buckets": 8}),
    Case("packed-absolute", "v2", options={"position_biased_input": True}),
    Case("packed-xl-mask-decoder", "xl", "masked-lm", {**_DECODER, "num_hidden_layers": 3}),
    Case("packed-v1-mask-decoder", "v1", "masked-lm", _DECODER),
    Case("packed-xl-masked-lm", "xl", "masked-lm"),
    Case("packed-xl-sequence-classification", "xl", "sequence-classification"),
    Case("packed-xl-token-classification", "xl", "token-classification"),
    Case("packed-xl-question-answering", "xl", "question-answering"),
    Case("packed-xl-multiple-choice", "xl", "multiple-choice"),
    Case("packed-xl-replaced-token", "xl", "replaced-token-detection"),
    Case("packed-v1-replaced-token", "v1", "replaced-token-detection"),
]
_QUICK = ("xl-encoder", "absolute", "xl-mask-decoder", "xl-multiple-choice", "xl-replaced-token")
_QUICK_GRADIENTS = ("xl-mask-decoder",)


def marked(quick: tuple[str, ...]):
    slow = lambda case: not case.name.removeprefix("packed-").startswith(quick)
    return [pytest.param(c, id=c.name, marks=pytest.mark.long if slow(c) else ()) for c in CASES]


def texts(case: Case) -> list[np.ndarray]:
    random = np.random.RandomState(0)
    return [np.float32(random.standard_normal((n, case.config.hidden_size))) for n in LENGTHS]


def pack(embedded) -> dict[str, np.ndarray]:
    rows = np.zeros((ROWS, LENGTH, embedded[0].shape[-1]), np.float32)
    segments = np.zeros((ROWS, LENGTH), np.int32)
    for number, (text, (row, column)) in enumerate(zip(embedded, PLACES, strict=True), start=1):
        rows[row, column : column + len(text)] = text
        segments[row, column : column + len(text)] = number
    return {"inputs_embeds": rows, "segment_ids": segments}


def outputs(case: Case, model, params, inputs) -> dict[str, jax.Array]:
    """Every output of a head, by name, whose first two axes are row and token, or row and text."""
    pooled = case.head in ("sequence-classification", "multiple-choice")
    if pooled and "segment_ids" in inputs:
        starts = jnp.array([[c for r, c in PLACES if r == row] for row in range(ROWS)])
        inputs = {**inputs, "positions": starts}
    elif case.head == "multiple-choice":
        inputs = {name: a[:, None] for name, a in inputs.items()}
    out = model.apply({"params": params}, output_hidden_states=True, **inputs)
    values = {"states": jnp.stack(out.hidden_states, axis=2)}
    for name in ("logits", "start_logits", "end_logits"):
        if hasattr(out, name):
            value = getattr(out, name)
            values[name] = value[:, None] if pooled and value.ndim < 3 and "segment_ids" not in inputs else value
    return values


@pytest.mark.slow
@pytest.mark.parametrize("case", marked(_QUICK))
def test_packed_texts_are_themselves(case: Case):
    model, embedded = case.model(), texts(case)
    params = draw_params(model)
    alone = np.zeros((len(LENGTHS), max(LENGTHS), embedded[0].shape[-1]), np.float32)
    mask = np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]
    for i, text in enumerate(embedded):
        alone[i, : len(text)] = text
    run = lambda params, inputs: outputs(case, model, params, inputs)
    unpacked = execute(run, params, {"inputs_embeds": alone, "attention_mask": mask})
    packed = execute(run, params, pack(embedded))
    assert set(packed) == set(unpacked)
    for i, (length, (row, column)) in enumerate(zip(LENGTHS, PLACES, strict=True)):
        for name in packed:
            pooled = case.head in ("sequence-classification", "multiple-choice") and name == "logits"
            found = packed[name][row, int(column > 0)] if pooled else packed[name][row, column : column + length]
            expected = unpacked[name][i, 0] if pooled else unpacked[name][i, :length]
            assert np.abs(expected).max() > 0.01
            np.testing.assert_allclose(found, expected.reshape(found.shape), rtol=0, atol=1e-5, err_msg=f"{name} {i}")


@pytest.mark.slow
@pytest.mark.parametrize("case", marked(_QUICK_GRADIENTS))
@pytest.mark.parametrize(
    "attention", ["auto", *(pytest.param(name, marks=pytest.mark.long) for name in ("xla", "reference"))]
)
def test_no_gradient_crosses_a_border(case: Case, attention):
    """Exactly zero, not small: of every output of the second text with respect to all others' embeddings."""
    model, inputs = case.model(attention=attention), pack(texts(case))
    params, (row, column) = draw_params(model), PLACES[1]
    segments = jnp.asarray(inputs.pop("segment_ids"))
    here = np.asarray(segments == segments[row, column])

    def loss(embedded, params):
        values = outputs(case, model, params, {"inputs_embeds": embedded, "segment_ids": segments})
        total = 0.0
        for value in values.values():
            pooled = value.shape[1] != LENGTH
            mine = value[row, 1] if pooled else jnp.where(here[row].reshape(-1, *[1] * (value.ndim - 2)), value[row], 0)
            total += jnp.sum(mine * jnp.cos(jnp.arange(mine.size)).reshape(mine.shape))
        return total

    gradient = execute(jax.grad(loss), inputs["inputs_embeds"], params)
    assert (gradient[~here] == 0).all()
    assert np.abs(gradient[here]).min(axis=-1).max() > 0
    assert (np.abs(gradient[here]).max(axis=-1) > 1e-3).all()
