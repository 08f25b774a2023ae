"""One step of replaced-token detection is its definition: losses and every gradient, joint and decoupled. What a run
leaves is what transformers reads."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers

import deberta_jax
from deberta_jax.sharding import make_mesh
from deberta_jax.training.experiment import PretrainRTD
from deberta_jax.training.objective import prepare_step
from deberta_jax.training.optimizers import SeparateOptimizers
from deberta_jax.training.pretrain_objectives import generator_config, rtd_objective
from deberta_jax.training.state import make_state
from deberta_jax.training.step import StepOptions, make_step
from tests.made import TINY, blank_model, rows, stdout_of
from tests.parity import definition

pytestmark = [pytest.mark.parity, pytest.mark.slow]

WEIGHT, RATE = 50.0, 0.5
CONFIG = dataclasses.replace(
    TINY,
    vocab_size=61,
    hidden_size=16,
    num_attention_heads=2,
    intermediate_size=32,
    num_hidden_layers=3,
    max_position_embeddings=32,
    initializer_range=0.3,
)
GENERATOR = generator_config(CONFIG, 2)
# Absolute positions added to the input of both models, so that there are two tables to share.
BIASED = dataclasses.replace(CONFIG, position_biased_input=True)


def keep_gradient(rate):
    """Plain descent whose state is the gradient that it was last given."""
    init = lambda params: jax.tree.map(jnp.zeros_like, params)
    return optax.GradientTransformation(init, lambda g, s, p=None: (jax.tree.map(lambda a: -rate * a, g), g))


@pytest.fixture(scope="module", name="batch")
def batch_fixture():
    return made_batch()


def made_batch():
    rng = np.random.default_rng(3)
    segments = np.zeros((3, 14), np.int32)
    segments[0, :5], segments[0, 5:13] = 1, 2
    segments[1], segments[2, :9] = 1, 1
    ids = np.where(segments > 0, rng.integers(4, 60, segments.shape), 0).astype(np.int32)
    positions, labels = np.full((3, 3), -1, np.int32), np.full((3, 3), -100, np.int32)
    for row, places in enumerate(([1, 7, 11], [2, 9, 12], [4, 6])):
        positions[row, : len(places)] = places
        labels[row, : len(places)] = ids[row, places]
        ids[row, places] = 60
    draws = rng.integers(0, 2**32, (3, 2), np.uint32)
    return {"input_ids": ids, "segment_ids": segments, "positions": positions, "labels": labels, "draws": draws}


def begin(update, sharing="gdes", config=CONFIG):
    e = PretrainRTD(from_scratch=True, update=update, sharing=sharing, discriminator_weight=WEIGHT)
    pair, objective = rtd_objective(e, generator_config(config, 2), config)
    optimizer = keep_gradient(RATE)
    if update == "decoupled":
        optimizer = SeparateOptimizers({"generator": optimizer, "discriminator": optimizer})
    shapes = objective.parameters.shapes
    rng = np.random.default_rng(1)
    # Drawn wide, so that every gradient is far from zero; the difference too, as in the middle of a training.
    params = jax.tree.map(lambda a: jnp.asarray(rng.normal(0, 0.3, a.shape), jnp.float32), shapes)
    params = jax.tree_util.tree_map_with_path(lambda path, a: a + (path[-1].key == "scale"), params)
    step = make_step(objective.loss, optimizer, StepOptions(loss_weights=objective.loss_weights))
    return pair, params, jax.jit(step), make_state(params, optimizer, 0)


def drawn_by(pair, params, batch):
    arrays = {n: jnp.asarray(a) for n, a in batch.items()}
    return np.asarray(pair.generate(params, arrays, jax.random.key(0))[1])


def table(tree, model):
    return tree[model]["deberta"]["embeddings"]["word_embeddings"]["embedding"]


def assert_equal(ours, theirs, tolerance=1e-5):
    """To a part of each array's largest magnitude."""

    def compare(path, mine, other):
        assert np.abs(mine - other).max() <= tolerance * np.abs(other).max(), jax.tree_util.keystr(path)

    jax.tree_util.tree_map_with_path(compare, ours, theirs)


def check_step(batch, update, sharing, config, tolerance):
    pair, params, step, state = begin(update, sharing, config)
    drawn = drawn_by(pair, params, batch)
    assert (drawn != batch["labels"])[batch["labels"] >= 0].any()
    theirs = definition.tensors(params)
    generator = definition.generator_loss(generator_config(config, 2), theirs["generator"], batch)
    generator.backward()
    shared = definition.tables_of(theirs["generator"])
    tables = shared if sharing == "es" else definition.tables_of(theirs["discriminator"])
    if sharing == "gdes":
        for name, difference in tables.items():
            base = shared[name].detach()
            if update == "decoupled":  # the discriminator is trained after the generator has moved
                base = base - RATE * shared[name].grad
            tables[name] = base + difference
    discriminator = definition.discriminator_loss(config, theirs["discriminator"], tables, batch, drawn)
    (WEIGHT * discriminator).backward()

    new, measured = step(state, batch)
    assert float(measured["generator"]) == pytest.approx(generator.item(), rel=tolerance)
    assert float(measured["discriminator"]) == pytest.approx(discriminator.item(), rel=tolerance)
    assert float(measured["loss"]) == pytest.approx(generator.item() + WEIGHT * discriminator.item(), rel=tolerance)
    expected = definition.gradients(theirs)
    assert_equal(jax.device_get(new.opt_state), expected, tolerance)
    norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(expected)))
    assert float(measured["gradient_norm"]) == pytest.approx(norm, rel=1e-5)
    return new


CASES = [
    ("joint", "gdes", CONFIG),
    ("decoupled", "gdes", CONFIG),
    ("joint", "es", CONFIG),
    ("decoupled", "gdes", BIASED),
    ("joint", "es", BIASED),
]
NAMES = [f"{update}-{sharing}{'-positions' * config.position_biased_input}" for update, sharing, config in CASES]


@pytest.mark.parametrize(("update", "sharing", "config"), CASES, ids=NAMES)
def test_a_step_is_its_definition(batch, update, sharing, config):
    check_step(batch, update, sharing, config, 1e-5)


def test_a_step_is_its_definition_in_double_precision():
    """The package imported with every float32 of its own widened: what is left is the definition."""
    lines = [
        "import jax, jax.numpy as jnp",
        "jax.config.update('jax_enable_x64', True)",
        "jnp.float32 = jnp.float64",
        "from tests.parity.test_pretraining_truth import check_all",
        "check_all()",
    ]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def check_all():
    for update, sharing, config in CASES:
        new = check_step(made_batch(), update, sharing, config, 1e-6)
        assert {leaf.dtype for leaf in jax.tree.leaves(new.opt_state)} == {np.dtype(np.float64)}


@pytest.mark.parametrize("sharing", ["gdes", "es", "none"])
def test_what_the_discriminator_teaches_the_generators_table(batch, sharing):
    """Exactly nothing where its gradient is stopped, or the table is its own; and something where it is shared."""
    pair, params, _, _ = begin("joint", sharing)
    arrays = {n: jnp.asarray(a) for n, a in batch.items()}
    drawn = jnp.asarray(drawn_by(pair, params, batch))

    def loss(params):
        value, weight = pair.discriminate(params, arrays, drawn, jax.random.key(0))
        return (value * weight).sum()

    gradient = jax.jit(jax.grad(loss))(params)
    moved = [np.abs(g).max() for g in jax.tree.leaves(gradient["generator"])]
    if sharing == "es":
        assert np.abs(table(gradient, "generator")).max() > 0
        assert "word_embeddings" not in gradient["discriminator"]["deberta"]["embeddings"]
    else:
        assert max(moved) == 0.0
        assert np.abs(table(gradient, "discriminator")).max() > 0


def test_no_gradient_crosses_documents(batch):
    """The losses of one text of a packed row, by the embeddings of every other: exactly zero."""
    pair, params, _, _ = begin("joint", "gdes")
    arrays = {n: jnp.asarray(a) for n, a in batch.items()}
    first = batch["segment_ids"][0] == 1
    width = (3, 14, CONFIG.hidden_size)
    x = jnp.asarray(np.random.default_rng(0).normal(size=width), jnp.float32)
    common = {"segment_ids": arrays["segment_ids"]}

    def generator(x):
        out = pair.generator.apply({"params": params["generator"]}, inputs_embeds=x, **common)
        return out.logits[0, :5].sum()

    def discriminator(x):
        own = pair.discriminator_params(params)
        return pair.discriminator.apply({"params": own}, inputs_embeds=x, **common).logits[0, :5].sum()

    for loss in (generator, discriminator):
        gradient = np.asarray(jax.jit(jax.grad(loss))(x))
        assert (gradient[0][~first] == 0).all()
        assert (gradient[1:] == 0).all()
        assert (np.abs(gradient[0][first]).max(-1) > 0).all()


def test_the_step_of_a_run_is_this_step(batch):
    """``prepare_step`` gives what a run compiles; its optimizers are the two with rates of their own."""
    e = PretrainRTD(from_scratch=True, discriminator_learning_rate=1e-4)
    _, objective = rtd_objective(e, GENERATOR, CONFIG)
    prepared = prepare_step(objective, make_mesh(devices=jax.devices()[:1]), 10)
    assert {name: o.learning_rate for name, o in objective.separate.items()} == {
        "generator": 1e-3,
        "discriminator": 1e-4,
    }
    assert set(prepared.state.opt_state) == {"generator", "discriminator"}


def test_both_exported_directories_load_in_transformers(tmp_path):
    """Hidden states of the encoders that a run leaves; the generator, with its mask decoder, fills masks."""
    blank_model(tmp_path / "blank", dataclasses.replace(TINY, initializer_range=0.3))
    (tmp_path / "text.txt").write_text("\n".join(text for text, _ in rows(200, classes=3)))
    text, run = str(tmp_path / "text.txt"), tmp_path / "run"
    stdout_of(
        [
            "pretrain",
            "rtd",
            "--model",
            str(tmp_path / "blank"),
            "--from-scratch",
            "--train",
            text,
            "--eval",
            text,
            "--output",
            str(run),
            "--steps",
            "2",
            "--batch-size",
            "8",
            "--max-length",
            "32",
        ]
    )
    states = []
    for name in ("generator", "discriminator"):
        enc = deberta_jax.load_tokenizer(str(run / name))(["ban bast", "kon rist mull kon"], padding="longest")
        model, params = deberta_jax.from_pretrained(run / name, head="encoder")
        mask = enc.attention_mask.astype(bool)
        ours = model.apply({"params": params}, jnp.asarray(enc.input_ids), attention_mask=jnp.asarray(mask))
        network, told = transformers.AutoModel.from_pretrained(run / name, output_loading_info=True)
        assert not told["missing_keys"]
        with torch.no_grad():
            theirs = network.eval()(
                torch.tensor(enc.input_ids).long(), attention_mask=torch.tensor(enc.attention_mask).long()
            ).last_hidden_state.numpy()
        np.testing.assert_allclose(np.asarray(ours.last_hidden_state)[mask], theirs[mask], atol=1e-4)
        states.append(theirs)
    assert np.abs(states[0] - states[1]).max() > 0.1, "they are two models"
    found = deberta_jax.pipeline("fill-mask", str(run / "generator"))("ban [MASK] rist", top_k=3)
    assert [entry["score"] for entry in found] == sorted((entry["score"] for entry in found), reverse=True)
    assert all(0 < entry["score"] <= 1 for entry in found)
