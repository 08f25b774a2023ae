"""Runtime choices change how a model is computed and not what: numbers, compile time, memory of nothing."""

import dataclasses
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.ad_checkpoint import print_saved_residuals

from deberta_jax.config import DebertaConfig
from deberta_jax.errors import InputError
from deberta_jax.models import HEADS, DebertaEncoder, DebertaForMaskedLM, abstract_params, init_params
from deberta_jax.ops import losses
from deberta_jax.ops.attention import IMPLEMENTATIONS
from deberta_jax.presets import PRESETS
from tests.cases import BASE, Case, apply, draw_params, execute, make_batch

CASE = Case("runtime", "xl", "masked-lm", {"legacy": False, "mask_decoder": True, "num_hidden_layers": 3})


def loss_and_gradients(drop: bool = False, **runtime):
    model, batch = CASE.model(**runtime), make_batch(CASE)
    params = draw_params(model)
    rngs = {"dropout": jax.random.key(3)} if drop else None

    def loss(params, batch):
        out = model.apply(
            {"params": params},
            batch["input_ids"],
            attention_mask=batch["attention_mask"],
            deterministic=not drop,
            rngs=rngs,
        )
        return losses.weighted_mean(*losses.cross_entropy(out.logits, batch["labels"])), out.logits

    return execute(jax.value_and_grad(loss, has_aux=True), params, batch), batch["attention_mask"] != 0


@pytest.fixture(scope="module")
def plain():
    return loss_and_gradients()


CHOICES = [
    {"scan": False, "remat": "dots", "attention": "xla"},
    *(
        pytest.param(c, marks=pytest.mark.long)
        for c in (
            {"scan": False},
            {"remat": "dots"},
            {"remat": "full"},
            {"attention": "xla"},
            {"attention": "reference"},
            {"remat": "full", "scan": False},
        )
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_choices_give_the_same_numbers(choice, plain):
    ((loss, logits), gradients), mask = plain
    ((other, other_logits), other_gradients), _ = loss_and_gradients(**choice)
    assert other == pytest.approx(float(loss), abs=1e-5)
    np.testing.assert_allclose(other_logits[mask], logits[mask], rtol=0, atol=1e-5)
    largest = max(np.linalg.norm(g) for g in jax.tree.leaves(gradients))

    def compare(found, expected):
        assert np.linalg.norm(found - expected) <= 1e-4 * np.linalg.norm(expected) + 1e-6 * largest

    jax.tree.map(compare, other_gradients, gradients)


@pytest.mark.long
@pytest.mark.parametrize("choice", [{"scan": False}, {"remat": "full"}, {"remat": "dots", "scan": False}], ids=str)
def test_choices_draw_the_same_dropout(choice):
    ((loss, _), gradients), _ = loss_and_gradients(drop=True, attention="xla")
    ((other, _), other_gradients), _ = loss_and_gradients(drop=True, attention="xla", **choice)
    assert other == pytest.approx(float(loss), abs=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), other_gradients, gradients)


def test_a_choice_that_does_not_exist_is_refused():
    for choice, message in (({"remat": "some"}, "remat='some'"), ({"attention": "flash"}, "attention='flash'")):
        with pytest.raises(InputError, match=message):
            abstract_params(CASE.model(**choice))


def test_no_choice_is_part_of_the_parameters_or_the_configuration():
    shapes = lambda **choice: jax.tree.map(lambda a: (a.shape, a.dtype), abstract_params(CASE.model(**choice)))
    for choice in ({"scan": False}, {"remat": "full"}, {"attention": "reference"}, {"dtype": jnp.bfloat16}):
        assert shapes(**choice) == shapes()
    half = abstract_params(CASE.model(param_dtype=jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype(jnp.bfloat16)}
    assert not {"dtype", "scan", "remat", "attention"} & set(CASE.config.to_hf())


def train_step(model, length: int = 16, scored: int = 4):
    """One step of masked-LM training over abstract arrays, and those arrays."""
    optimizer = optax.adamw(1e-4)
    params = abstract_params(model)
    integers = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)
    batch = {
        "ids": integers(2, length),
        "mask": integers(2, length),
        "positions": integers(2, scored),
        "labels": integers(2, scored),
    }

    def step(params, state, batch, key):
        def loss(params):
            out = model.apply(
                {"params": params},
                batch["ids"],
                positions=batch["positions"],
                attention_mask=batch["mask"],
                deterministic=False,
                rngs={"dropout": key},
            )
            return losses.weighted_mean(*losses.cross_entropy(out.logits, batch["labels"]))

        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.jit(step, donate_argnums=(0, 1)), (params, jax.eval_shape(optimizer.init, params), batch, key)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n == "deberta-v2-xxlarge" else pytest.mark.long) for n in PRESETS if "mnli" not in n],
)
def test_train_step_of_every_preset_compiles_without_weights(name):
    """In bfloat16, rematerialised; the program has no array of vocabulary times text, and no copy of the stack."""
    model = DebertaForMaskedLM(PRESETS[name], dtype=jnp.bfloat16, remat="full")
    step, arguments = train_step(model)
    lowered = step.lower(*arguments)
    config = model.config
    assert f"tensor<2x16x{config.vocab_size}x" not in lowered.as_text()
    assert f"tensor<2x4x{config.vocab_size}xf32>" in lowered.as_text()
    compiled = lowered.compile()
    weights = sum(leaf.size * 4 for leaf in jax.tree.leaves(arguments[0]))
    memory = compiled.memory_analysis()
    assert memory.argument_size_in_bytes == pytest.approx(3 * weights, rel=0.01)
    # The gradients and what XLA copies of the word table; never a second copy of everything.
    assert memory.temp_size_in_bytes < 2.5 * weights


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_layer_keeps_few_arrays_for_its_backward_and_none_wider_than_the_dtype(dtype, capsys):
    """Of the feed-forward's width what goes into the activation and what comes out; of the model's, four.

    JAX itself lists what it saves: lines such as ``bf16[7,2,16,96] output of scan from ...``.
    """
    config = dataclasses.replace(DebertaConfig.from_hf({**BASE["v3"], "num_hidden_layers": 7}), intermediate_size=96)
    model = DebertaForMaskedLM(config, dtype=dtype, attention="blocked")
    ids = jnp.ones((2, 16), jnp.int32)

    def loss(params):
        rngs = {"dropout": jax.random.key(0)}
        return model.apply({"params": params}, ids, deterministic=False, rngs=rngs).logits.sum()

    print_saved_residuals(loss, abstract_params(model))
    kept = re.findall(r"^(\w+)\[([\d,]*)\] output of scan", capsys.readouterr().out, re.MULTILINE)
    assert len(kept) > 8
    short = {jnp.float32: "f32", jnp.bfloat16: "bf16"}[dtype]
    of_width = lambda width: [kind for kind, dims in kept if dims == f"7,2,16,{width}" and kind != "bool"]
    assert of_width(96) == [short] * 2
    assert of_width(config.hidden_size) == [short] * 4


def depth(layers: int):
    config = DebertaConfig.from_hf({**BASE["xl"], "num_hidden_layers": layers, "legacy": False})
    return train_step(DebertaForMaskedLM(config, remat="full"))


def test_the_program_does_not_grow_with_layers():
    texts = [step.lower(*arguments).as_text() for step, arguments in (depth(12), depth(48))]
    assert texts[0].count("\n") == texts[1].count("\n")


@pytest.mark.long
def test_compile_time_does_not_grow_with_layers():
    """48 layers against 12: the median ratio of processor seconds to trace, lower and compile, alternating."""

    def seconds(layers: int) -> float:
        jax.clear_caches()
        start = time.process_time()
        step, arguments = depth(layers)
        step.lower(*arguments).compile()
        return time.process_time() - start

    seconds(12)
    ratios = [seconds(48) / seconds(12) for _ in range(3)]
    print("compile time, 48 layers over 12:", sorted(ratios))
    assert np.median(ratios) <= 1.3


def test_fresh_parameters_are_drawn_as_the_originals_draw_them():
    config = DebertaConfig.from_hf({**BASE["xl"], "vocab_size": 800, "hidden_size": 64, "pad_token_id": 3})
    draw = lambda: execute(lambda key: init_params(DebertaForMaskedLM(config), key), jax.random.key(0))
    params = draw()
    words = params["deberta"]["embeddings"]["word_embeddings"]["embedding"]
    assert (words[3] == 0).all()

    def check(path, a):
        name = path[-1].key
        a = np.asarray(a)
        if name == "scale":
            assert (a == 1).all()
        elif name == "bias":
            assert (a == 0).all()
        else:
            assert abs(a.mean()) < 5 * 0.02 / np.sqrt(a.size)
            assert a.std() == pytest.approx(0.02, rel=5 / np.sqrt(a.size) + 2e-3)

    jax.tree_util.tree_map_with_path(check, params)
    kernel = params["deberta"]["encoder"]["layers"]["intermediate"]["dense"]["kernel"]
    assert np.abs(kernel[0] - kernel[1]).max() > 0.01  # every layer its own draw
    assert all((a == b).all() for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(draw()), strict=True))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_stays_near_float32(dtype):
    case = Case("half", "xl", length=20)
    params, batch = draw_params(case.model()), make_batch(case)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    run = lambda dtype: apply(case.model(dtype=dtype), params, inputs).last_hidden_state
    exact, half = run(jnp.float32), run(dtype)
    mask = batch["attention_mask"] != 0
    assert half.dtype == dtype
    error = np.sqrt(np.mean((np.float32(half[mask]) - exact[mask]) ** 2))
    assert 1e-5 < error < {jnp.bfloat16: 0.02, jnp.float16: 0.003}[dtype]


DEFAULT_HALF = (jnp.bfloat16, "blocked", 40)
HALVES = [
    pytest.param(dtype, attention, length, marks=[] if (dtype, attention, length) == DEFAULT_HALF else pytest.mark.long)
    for dtype in (jnp.bfloat16, jnp.float16)
    for attention in IMPLEMENTATIONS
    if attention != "pallas"  # a kernel of TPUs and GPUs
    for length in (8, 40)
]


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "attention", "length"), HALVES)
def test_every_attention_implementation_trains_in_half_precision(dtype, attention, length):
    """Gradients near those of float32; a CPU lacks some half-precision products, which it says only when they run."""
    case = Case("half-gradients", "v3", "sequence-classification", length=length)
    batch, params = make_batch(case), draw_params(case.model())

    def gradients(dtype):
        def loss(params, batch):
            out = case.model(dtype=dtype, attention=attention).apply(
                {"params": params}, batch["input_ids"], attention_mask=batch["attention_mask"]
            )
            return losses.weighted_mean(*losses.cross_entropy(out.logits, batch["labels"]))

        return jax.tree.map(np.asarray, jax.jit(jax.grad(loss))(params, batch))

    norm = lambda tree: np.sqrt(sum(np.sum(np.square(a, dtype=np.float64)) for a in jax.tree.leaves(tree)))
    exact, half = gradients(jnp.float32), gradients(dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {np.dtype(np.float32)}
    error = norm(jax.tree.map(lambda a, b: a - b, half, exact)) / norm(exact)
    assert 1e-5 < error < {jnp.bfloat16: 0.03, jnp.float16: 0.004}[dtype]


def test_float16_is_finite_when_raw_scores_exceed_its_range():
    """Query and key projections scaled until q.k passes 65504; outputs and gradients of every layer are finite."""
    case = Case("overflow", "v3", "token-classification", length=20)
    params, batch = draw_params(case.model()), make_batch(case)
    attention = params["deberta"]["encoder"]["layers"]["attention"]["self"]
    for name in ("query_proj", "key_proj"):
        attention[name] = jax.tree.map(lambda a: 120 * a, attention[name])
    states = jnp.float32(batch["attention_mask"][..., None]) * np.random.RandomState(0).standard_normal((4, 20, 32))
    project = lambda p: jnp.einsum("BTD,DNH->BTNH", states, p["kernel"][0]) + p["bias"][0][None, None]
    raw = jnp.einsum("BTNH,BSNH->BNTS", project(attention["query_proj"]), project(attention["key_proj"]))
    assert np.abs(raw).max() > 65504

    def loss(params, batch):
        out = case.model(dtype=jnp.float16).apply(
            {"params": params}, batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True
        )
        return losses.weighted_mean(*losses.cross_entropy(out.logits, batch["labels"])), vars(out)

    (value, out), gradients = execute(jax.value_and_grad(loss, has_aux=True), params, batch)
    assert all(np.isfinite(np.float32(a)).all() for a in jax.tree.leaves((value, out, gradients)))


OUTPUTS = {
    "encoder": {"last_hidden_state": (4, 11, 32)},
    "masked-lm": {"logits": (4, 11, 96)},
    "sequence-classification": {"logits": (4, 3)},
    "token-classification": {"logits": (4, 11, 5)},
    "question-answering": {"start_logits": (4, 11), "end_logits": (4, 11)},
    "multiple-choice": {"logits": (4, 3)},
    "replaced-token-detection": {"logits": (4, 11)},
}


@pytest.mark.parametrize("head", HEADS)
def test_outputs_are_frozen_and_hold_what_was_asked_for(head):
    case = Case("outputs", "v3", head)
    params, ids = abstract_params(case.model()), make_batch(case)["input_ids"]
    rows, length = ids.size // ids.shape[-1], ids.shape[-1]

    def call(**options):
        def run(params, ids):
            out = case.model().apply({"params": params}, ids, **options)
            with pytest.raises(dataclasses.FrozenInstanceError):
                out.hidden_states = None
            return vars(out)

        return jax.eval_shape(run, params, ids)

    out, plain = call(output_hidden_states=True, output_attentions=True), call()
    assert (plain.pop("hidden_states"), plain.pop("attentions")) == (None, None)
    assert [a.shape for a in out["hidden_states"]] == [(rows, length, 32)] * 3
    assert [(a.shape, a.dtype) for a in out["attentions"]] == [((rows, 4, length, length), jnp.float32)] * 2
    assert {name: a.shape for name, a in plain.items()} == OUTPUTS[head]


def test_every_model_names_its_task():
    assert list(HEADS) == [
        "encoder",
        "masked-lm",
        "sequence-classification",
        "token-classification",
        "question-answering",
        "multiple-choice",
        "replaced-token-detection",
    ]
    assert HEADS["encoder"].model is DebertaEncoder
