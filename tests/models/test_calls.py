"""Calls of models with their parameters first, and the messages for inputs that a model cannot take."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deberta_jax
from deberta_jax.errors import InputError
from deberta_jax.models import HeadOutput, Model, logical_axes
from tests.cases import Case, draw_params, make_batch

IDS = np.arange(8, dtype=np.int64).reshape(2, 4)


@pytest.fixture(scope="module")
def model():
    return Case("calls", "v3", "question-answering", {"num_hidden_layers": 1}).model()


@pytest.fixture(scope="module")
def params(model):
    return draw_params(model)


@pytest.mark.slow
def test_a_call_is_apply_with_the_parameters_first():
    case = Case("calls", "v3", "sequence-classification", {"num_hidden_layers": 1})
    model, batch = case.model(), make_batch(case)
    params = draw_params(model)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    expected = model.apply({"params": params}, ids, attention_mask=mask).logits
    assert np.array_equal(model(params, np.asarray(ids), attention_mask=np.asarray(mask)).logits, expected)
    assert np.array_equal(model(params, attention_mask=mask, input_ids=ids).logits, expected)
    options = {"deterministic": False, "rngs": {"dropout": jax.random.key(3)}}
    dropped = model(params, ids, attention_mask=mask, **options).logits
    assert np.array_equal(dropped, model.apply({"params": params}, ids, attention_mask=mask, **options).logits)
    assert not np.allclose(dropped, expected)
    assert np.array_equal(
        dropped, model(params, ids, attention_mask=mask, deterministic=False, rngs=jax.random.key(3)).logits
    )


def test_a_model_inside_another_module_is_called_without_parameters(params, model):
    class Doubled(nn.Module):
        @nn.compact
        def __call__(self, ids):
            return 2 * deberta_jax.DebertaForQuestionAnswering(model.config, name="inner")(ids).start_logits

    doubled = Doubled().apply({"params": {"inner": params}}, IDS)
    np.testing.assert_allclose(doubled, 2 * model(params, IDS).start_logits, rtol=1e-6)


@pytest.mark.slow
def test_a_class_with_inputs_of_its_own(model):
    class Scaled(Model[HeadOutput]):
        @nn.compact
        def forward(self, input_ids=None, *, scale, **inputs) -> HeadOutput:
            return HeadOutput(self.backbone(input_ids, inputs).states * scale)

    scaled = Scaled(model.config)
    params = deberta_jax.init_params(deberta_jax.DebertaForQuestionAnswering(model.config), jax.random.key(0))
    one, three = (scaled(params, IDS, scale=scale).logits for scale in (1.0, 3.0))
    np.testing.assert_allclose(three, 3 * one, rtol=1e-6)
    with pytest.raises(InputError, match="scales: Scaled takes no such input; did you mean 'scale'"):
        scaled(params, IDS, scale=1.0, scales=1.0)


def test_init_returns_the_plain_tree_of_init_params(model):
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    plain = jax.eval_shape(lambda: deberta_jax.init_params(model, jax.random.key(0)))
    assert variables == {"params": plain}
    assert logical_axes(model)["qa_outputs"]["kernel"] == ("embed", None), "the names of axes are kept elsewhere"


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"attention_mask": np.ones((2, 7))}, r"attention_mask is \[2,7\], input_ids \[2,4\]; .* \[2,4\] or \[2,4,4\]"),
        ({"token_type_ids": IDS[0]}, r"token_type_ids is \[4\], input_ids \[2,4\]"),
        ({"segment_ids": np.ones((2, 5), int)}, r"segment_ids is \[2,5\], input_ids \[2,4\]"),
        ({"input_ids": IDS[0]}, r"input_ids is \[4\]: give \[B,T\]; .* input_ids\[None\]"),
        ({"input_ids": IDS[None]}, r"input_ids is \[1,2,4\]: give \[B,T\]"),
        ({"input_ids": IDS * 1.0}, "input_ids has dtype float32; ids are integers"),
        ({"input_ids": IDS.tolist()}, "input_ids is a list; give an array: tokenize with padding=True"),
        ({"input_ids": "text"}, "input_ids is a str; give an array"),
        ({"inputs_embeds": np.ones((2, 4, 32), np.float32)}, "give exactly one of input_ids and inputs_embeds"),
        (
            {"input_ids": None, "inputs_embeds": np.ones((2, 4, 5), np.float32)},
            r"inputs_embeds is \[2,4,5\]: .* \[2,4,32\]",
        ),
        ({"positions": np.zeros((2, 1), int)}, "positions: DebertaForQuestionAnswering takes no such input"),
        ({"offset_mapping": None}, "offset_mapping: is no input of a model; leave it out"),
        ({"attention_masks": None}, "attention_masks: .* did you mean 'attention_mask'"),
        ({"output_attentions": np.ones(2)}, "output_attentions is a ndarray; give True or False"),
        ({"deterministic": False}, r"deterministic=False needs rngs=jax.random.key"),
        ({"input_ids": IDS + 2**32}, r"input_ids has the value 4294967303; give 0 to \d+"),
        ({"input_ids": IDS - 1}, "input_ids has the value -1; give 0 to"),
        ({"token_type_ids": IDS + 2**31}, "token_type_ids has the value 2147483655"),
        ({"input_ids": IDS[:0]}, r"input_ids is \[0,4\]: give at least one row of at least one token"),
        ({"input_ids": IDS[:, :0]}, r"input_ids is \[2,0\]: give at least one row"),
        ({"input_ids": IDS.astype(object)}, "input_ids has dtype object"),
    ],
)
def test_inputs_that_are_refused(inputs, message, model, params):
    given = {"input_ids": IDS, **inputs}
    with pytest.raises(InputError, match=message):
        model(params, **given)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, p: m(IDS), "pass the parameters first"),
        (lambda m, p: m(), "pass the parameters first"),
        (lambda m, p: m({"params": p}, IDS), "pass the tree of parameters itself"),
        (lambda m, p: m.apply({"params": p}, p, IDS), "is called by apply, or in another module"),
        (lambda m, p: m(p, IDS, IDS), "takes one input by position, input_ids"),
        (lambda m, p: m({}, IDS), "the parameters are not those of this Deberta"),
        (lambda m, p: m.clone(dtype=jnp.int32), "dtype=int32: expected one of float32, bfloat16, float16"),
        (lambda m, p: m.clone(param_dtype="fp16"), "param_dtype='fp16': expected one of float32"),
        (lambda m, p: m.clone(dtype=None), "dtype=None: expected one of float32"),
        (lambda m, p: deberta_jax.DebertaForMaskedLM(m.config)(p, IDS), "the parameters are not those of this Deberta"),
        (lambda m, p: deberta_jax.DebertaEncoder(m.config)(p, IDS), "the parameters are not those of this Deberta"),
        (lambda m, p: m.clone(config=m.config.replace(num_hidden_layers=2))(p, IDS), "the parameters are not those of"),
    ],
)
def test_calls_that_are_refused(call, message, model, params):
    with pytest.raises(InputError, match=message):
        call(model, params)


def test_choices_have_an_axis_of_their_own(model):
    config = model.config
    choices = deberta_jax.DebertaForMultipleChoice(config)
    params = deberta_jax.init_params(choices, jax.random.key(0))
    assert choices(params, IDS[:, None], attention_mask=np.ones((2, 1, 4))).logits.shape == (2, 1)
    with pytest.raises(InputError, match=r"input_ids is \[2,4\]: give \[B,C,T\]; .* choices: input_ids\[:, None\]"):
        choices(params, IDS)
