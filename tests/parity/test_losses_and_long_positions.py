"""Losses by kind of label, and distances beyond the trained range, compared with transformers."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

from deberta_jax.ops import losses
from tests.cases import BASE, Case, apply, to_tree
from tests.parity import hugging_face

pytestmark = pytest.mark.parity

RANDOM = np.random.RandomState(0)
IDS = torch.from_numpy(RANDOM.randint(1, 96, (4, 7)))
NUMBERS, TABLE = np.float32(RANDOM.standard_normal(4)), np.float32(RANDOM.standard_normal((4, 3)))
SOFT = np.float32(np.abs(TABLE) / np.abs(TABLE).sum(1, keepdims=True))
WORDS = np.where(RANDOM.random_sample((4, 7)) < 0.5, RANDOM.randint(0, 3, (4, 7)), -100)

# head, outputs, problem_type, labels, ours
SAME = {
    "one number": ("SequenceClassification", 1, None, NUMBERS, losses.mean_squared_error),
    "one number in a column": ("SequenceClassification", 1, None, NUMBERS[:, None], losses.mean_squared_error),
    "numbers by name": ("SequenceClassification", 1, "regression", NUMBERS, losses.mean_squared_error),
    "several numbers": ("SequenceClassification", 3, "regression", TABLE, losses.mean_squared_error),
    "classes, any negative": ("SequenceClassification", 3, None, np.array([2, -1, -100, 0]), losses.cross_entropy),
    "no class at all": ("SequenceClassification", 3, None, np.array([-1, -5, -100, -1]), losses.cross_entropy),
    "classes by name": (
        "SequenceClassification",
        3,
        "single_label_classification",
        np.array([2, 1, -100, 0]),
        losses.cross_entropy,
    ),
    "several labels": (
        "SequenceClassification",
        3,
        "multi_label_classification",
        np.float32(TABLE > 0),
        losses.binary_cross_entropy,
    ),
    "probabilities": ("SequenceClassification", 3, None, SOFT, losses.soft_cross_entropy),
    "tokens": ("TokenClassification", 3, None, WORDS, losses.cross_entropy),
    "words": ("MaskedLM", 2, None, WORDS, losses.cross_entropy),
}


def network(head: str, outputs: int, problem: str | None = None):
    raw = {name: value for name, value in BASE["v3"].items() if name != "model_type"}
    torch.manual_seed(0)
    kind = getattr(transformers, f"DebertaV2For{head}")
    return kind(transformers.DebertaV2Config(**raw, num_labels=outputs, problem_type=problem)).eval()


def logits_of(net) -> jnp.ndarray:
    with torch.no_grad():
        return jnp.asarray(10 * net(IDS).logits.numpy())  # sharper than a fresh model's: a wrong row shows


def loss_of(net, labels: np.ndarray) -> float:
    """transformers' loss of the same sharper logits."""
    last = {"MaskedLM": "cls"}.get(type(net).__name__.removeprefix("DebertaV2For"), "classifier")
    handle = getattr(net, last).register_forward_hook(lambda module, given, out: 10 * out)
    try:
        with torch.no_grad():
            return float(net(IDS, labels=torch.from_numpy(labels)).loss)
    finally:
        handle.remove()


@pytest.mark.parametrize("name", SAME)
def test_losses_are_those_of_transformers(name):
    head, outputs, problem, labels, ours = SAME[name]
    net = network(head, outputs, problem)
    found = losses.weighted_mean(*ours(logits_of(net), jnp.asarray(labels)))
    assert float(found) == pytest.approx(loss_of(net, labels), rel=2e-6, abs=1e-7)
    assert (float(found) == 0) == (name == "no class at all")


def test_multiple_choice_loss_is_that_of_transformers():
    net, labels = network("MultipleChoice", 2), np.array([1, 0])
    with torch.no_grad():
        out = net(IDS.reshape(2, 2, 7), labels=torch.from_numpy(labels))
    found = losses.weighted_mean(*losses.cross_entropy(jnp.asarray(out.logits.numpy()), jnp.asarray(labels)))
    assert float(found) == pytest.approx(float(out.loss), rel=2e-6)


@pytest.mark.parametrize(
    ("outputs", "problem", "labels", "ours", "same"),
    [
        (1, None, np.array([1, 0, 3, 2]), losses.mean_squared_error, lambda a: np.float32(a)),
        (3, None, np.array([[2], [0], [1], [1]]), losses.cross_entropy, lambda a: a[:, 0]),
        (2, None, np.array([[1], [0], [1], [1]]), losses.cross_entropy, lambda a: a[:, 0]),
        (
            3,
            "single_label_classification",
            np.array([2, -1, 1, 0]),
            losses.cross_entropy,
            lambda a: np.where(a < 0, -100, a),
        ),
    ],
    ids=["whole numbers", "a column of classes", "a column of two classes", "-1"],
)
def test_labels_that_transformers_refuses_give_the_loss_of_their_accepted_form(outputs, problem, labels, ours, same):
    """The loss is that of the same labels in a form that transformers takes."""
    net = network("SequenceClassification", outputs, problem)
    with pytest.raises((RuntimeError, IndexError, ValueError)):
        loss_of(net, labels)
    found = losses.weighted_mean(*ours(logits_of(net), jnp.asarray(labels)))
    assert float(found) == pytest.approx(loss_of(net, same(labels)), rel=2e-6)


def test_regression_logits_keep_their_shape_where_those_of_transformers_change():
    net = network("SequenceClassification", 1)
    with torch.no_grad():
        assert net(IDS).logits.shape == (4, 1)
        assert net(IDS, labels=torch.from_numpy(NUMBERS)).logits.shape == (4,)
    case = Case("one-output", "v3", "sequence-classification", labels="regression")
    model, state = hugging_face.build(case)
    batch = case.batch()
    theirs, _ = hugging_face.run(case, model, batch)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    ours = apply(case.model(), to_tree(case.config, state), inputs).logits
    assert (theirs["logits"].shape, ours.shape) == ((4,), (4, 1))


def test_answer_positions_outside_the_text_beside_transformers():
    """Beyond the end both ignore; before the start transformers counts position 0, and so does ours when told to."""
    net = network("QuestionAnswering", 2)
    starts, ends = np.array([0, 2, 7, 6]), np.array([3, 9, 50, 6])

    def both(starts, ends):
        with torch.no_grad():
            out = net(IDS, start_positions=torch.from_numpy(starts), end_positions=torch.from_numpy(ends))
        first, last = (jnp.asarray(a.numpy()) for a in (out.start_logits, out.end_logits))
        return float(out.loss), partial(losses.span_loss, first, last)

    theirs, ours = both(starts, ends)
    # transformers divides starts and ends each by their own number; ours, one number for both, needs equal ones.
    for side in (starts, ends):
        expected, span = both(side, side)
        assert float(losses.weighted_mean(*span(jnp.asarray(side), jnp.asarray(side)))) == pytest.approx(
            expected, rel=2e-6
        )
    _, weight = ours(jnp.asarray(starts), jnp.asarray(ends))
    np.testing.assert_array_equal(weight, [1, 0.5, 0, 1])
    assert np.isfinite(theirs)
    negative = np.array([-1, 2, -7, 6])
    expected, span = both(negative, negative)
    clamped = jnp.maximum(jnp.asarray(negative), 0)
    assert float(losses.weighted_mean(*span(clamped, clamped))) == pytest.approx(expected, rel=2e-6)
    _, weight = span(jnp.asarray(negative), jnp.asarray(negative))
    np.testing.assert_array_equal(weight, [0, 1, 0, 1])


@pytest.mark.parametrize("base", ["v3", "xl"])
def test_clamped_long_positions_equal_transformers_encoder_given_clamped_distances(base):
    """Its encoder takes ``relative_pos``; the default rule is then equal at every layer, twice beyond the range."""
    options = {"max_position_embeddings": 32, "position_buckets": 8}
    case = Case("clamped", base, options=options, length=70)
    model, state = hugging_face.build(case)
    batch = case.batch()
    mask = torch.from_numpy(batch["attention_mask"]).long()
    distance = (torch.arange(70)[:, None] - torch.arange(70)[None]).clamp(-31, 31)
    rows = make_log_bucket_position(distance, 8, 32).long()[None]
    with torch.no_grad():
        embedded = model.embeddings(input_ids=torch.from_numpy(batch["input_ids"]).long(), mask=mask)
        out = model.encoder(embedded, mask, output_hidden_states=True, relative_pos=rows, return_dict=True)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    ours = apply(case.model(), to_tree(case.config, state), inputs, output_hidden_states=True).hidden_states
    real = batch["attention_mask"] != 0
    for mine, theirs in zip(ours, out.hidden_states, strict=True):
        assert np.abs(mine[real] - theirs.numpy()[real]).max() <= 1e-5
    plain = hugging_face.run(case, model, batch)[0]["hidden_states"][-1]
    assert np.abs(ours[-1][real] - plain[real]).max() > 1e-3  # transformers' own rule differs


@pytest.mark.parametrize("options", [{}, {"position_buckets": 256, "max_position_embeddings": 512}], ids=["150", "600"])
def test_hf_long_positions_equal_transformers(options):
    """``long_positions="hf"`` on a model whose default is the clamp: equal to transformers beyond the trained range."""
    length = 600 if options else 150
    case = Case("hf rule", "v3", options={**options, "num_hidden_layers": 1}, length=length, long_positions="hf")
    model, state = hugging_face.build(case)
    batch = case.batch()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    ours = apply(case.model(), to_tree(case.config, state), inputs).last_hidden_state
    theirs = hugging_face.run(case, model, batch)[0]["last_hidden_state"]
    real = batch["attention_mask"] != 0
    assert np.abs(ours[real] - theirs[real]).max() <= 1e-5
