"""Distillation against scipy and numpy: the divergences, the terms of a run's loss, and the student's first weights."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, softmax
from scipy.stats import entropy

from deberta_jax import (
    DebertaForMultipleChoice,
    DebertaForQuestionAnswering,
    DebertaForSequenceClassification,
    InputError,
    from_pretrained,
)
from deberta_jax.models.outputs import HeadOutput, SpanOutput
from deberta_jax.training import Distillation, init_state, train_step
from deberta_jax.training.distillation import (
    Teacher,
    attention_loss,
    even_layers,
    output_loss,
    soft_binary_divergence,
    soft_divergence,
)
from deberta_jax.training.finetuning import plan_finetune
from deberta_jax.training.objective import prepare_step
from tests.made import TINY, make_tokenizer, refused, saved_model, stdout_of, without_dropout

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_divergences_are_those_of_scipy(temperature):
    student, teacher = (RNG.normal(size=(5, 3, 7)).astype(np.float32) * 3 for _ in range(2))
    expected = temperature**2 * entropy(softmax(teacher / temperature, -1), softmax(student / temperature, -1), axis=-1)
    np.testing.assert_allclose(soft_divergence(jnp.asarray(student), jnp.asarray(teacher), temperature), expected, 1e-4)
    p, q = expit(teacher / temperature), expit(student / temperature)
    expected = temperature**2 * entropy(np.stack([p, 1 - p]), np.stack([q, 1 - q]), axis=0).mean(-1)
    found = soft_binary_divergence(jnp.asarray(student), jnp.asarray(teacher), temperature)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_attention_of_masked_keys_and_of_padding_does_not_count():
    real = np.array([[True, True, False], [True, True, True]])
    scores = RNG.normal(size=(2, 2, 4, 3, 3)).astype(np.float32)
    weights = softmax(np.where(real[None, :, None, None, :], scores, -np.inf), -1)
    value, weight = attention_loss([(jnp.asarray(weights[0]), jnp.asarray(weights[1]))], jnp.asarray(real))
    expected = entropy(weights[1] + 1e-30, weights[0] + 1e-30, axis=-1).mean(1)
    np.testing.assert_allclose(value, np.where(real, expected, 0), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(weight, real)
    gradient = jax.grad(lambda a: attention_loss([(a, jnp.asarray(weights[1]))], jnp.asarray(real))[0].sum())
    assert np.isfinite(gradient(jnp.asarray(weights[0]))).all()


def test_layers_are_compared_at_even_distances():
    assert even_layers(3, 12) == (3, 7, 11)
    assert even_layers(6, 12) == (1, 3, 5, 7, 9, 11)
    assert even_layers(2, 2) == (0, 1)
    assert even_layers(4, 2) == (0, 0, 1, 1)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A trained classifier of three layers, whose labels have another order than the task's."""
    home = tmp_path_factory.mktemp("teacher")
    config = dataclasses.replace(without_dropout(), num_hidden_layers=3, id2label=("pos", "neg"))
    return saved_model(
        home / "teacher", DebertaForSequenceClassification(config), make_tokenizer(home / "tokenizer"), seed=5
    )


def experiment(task, output, **more):
    usual = {"model": "", "from_scratch": False, "max_length": 16, "epochs": 1, "dropout": 0.0}
    return task.experiment(output, **{**usual, **more})


def real_tokens(batch):
    return batch["segment_ids"] > 0 if "segment_ids" in batch else batch["attention_mask"]


@pytest.mark.slow
@pytest.mark.parametrize("batching", ["packed", pytest.param("buckets", marks=pytest.mark.system)])
def test_the_terms_are_those_of_numpy(task, teacher, tmp_path, one_device, batching):
    d = Distillation(teacher=str(teacher), temperature=3.0, hidden_weight=2.0, attention_weight=0.5)
    e = experiment(task, tmp_path / "run", model=str(task.blank), from_scratch=True, batching=batching, distillation=d)
    job = plan_finetune(e)[1]
    objective = job.objective
    assert objective.loss_weights == {"sift": 0.0, "task": 0.5, "teacher": 0.5, "hidden": 2.0, "attention": 0.5}
    prepared = prepare_step(objective, job.mesh, 10)
    params, batch = objective.initial_params(prepared.shardings.params), job.batches[0]
    found = jax.jit(objective.loss)(params, batch, jax.random.key(0))

    model, own = from_pretrained(teacher, "sequence-classification")
    student = type(model)(dataclasses.replace(TINY, id2label=("neg", "pos")))
    names = ("input_ids", "token_type_ids", "attention_mask", "segment_ids", "positions")
    inputs = {name: batch[name] for name in names if name in batch}
    run = lambda m, p: jax.jit(
        lambda p, i: m.apply({"params": p}, **i, output_hidden_states=True, output_attentions=True)
    )(p, inputs)
    ours, theirs = run(student, params["student"]), run(model, own)
    counts = batch["labels"] >= 0
    t, s = (np.asarray(logits, np.float64) for logits in (theirs.logits[..., ::-1], ours.logits))
    expected = 9 * entropy(softmax(t / 3, -1), softmax(s / 3, -1), axis=-1)
    np.testing.assert_allclose(np.asarray(found["teacher"][0])[counts], expected[counts], rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(found["teacher"][1], counts)
    real, layers = real_tokens(batch), ((0, 1), (1, 2))
    hidden = [np.square(ours.hidden_states[i + 1] - theirs.hidden_states[j + 1]).mean(-1) for i, j in layers]
    np.testing.assert_allclose(found["hidden"][0], np.where(real, np.mean(hidden, 0), 0), rtol=1e-4, atol=1e-5)
    pairs = [(np.asarray(theirs.attentions[j]) + 1e-30, np.asarray(ours.attentions[i]) + 1e-30) for i, j in layers]
    attention = np.mean([entropy(p, q, axis=-1).mean(1) for p, q in pairs], 0)
    np.testing.assert_allclose(np.asarray(found["attention"][0])[real], attention[real], rtol=1e-2, atol=1e-5)
    np.testing.assert_array_equal(found["attention"][1], real)


@pytest.mark.slow
def test_a_student_begins_with_layers_of_its_teacher_which_stays_as_it_is(task, teacher, tmp_path, one_device):
    d = Distillation(teacher=str(teacher), student_layers=(0, 2), hidden_weight=1.0)
    resolved, job = plan_finetune(experiment(task, tmp_path / "run", distillation=d))
    assert resolved.model == str(teacher)
    prepared = prepare_step(job.objective, job.mesh, 2)
    params = jax.tree.map(np.asarray, job.objective.initial_params(prepared.shardings.params))
    _, whole = from_pretrained(teacher, "sequence-classification")
    path = lambda tree: tree["deberta"]["encoder"]["layers"]["intermediate"]["dense"]["kernel"]
    np.testing.assert_array_equal(path(params["student"]), np.asarray(path(whole))[[0, 2]])
    np.testing.assert_array_equal(path(params["teacher"]), path(whole))
    np.testing.assert_array_equal(params["student"]["classifier"]["kernel"], whole["classifier"]["kernel"])

    frozen = job.objective.parameters.frozen
    state = init_state(params, prepared.optimizer, frozen=frozen)
    step = train_step(job.objective.loss, prepared.optimizer, loss_weights=job.objective.loss_weights, frozen=frozen)
    for i in range(2):  # the learning rate of the first step is 0
        state, metrics = step(state, job.batches[i])
    assert set(metrics) == {"loss", "gradient_norm", "task", "teacher", "hidden"}
    np.testing.assert_array_equal(path(state.params["teacher"]), path(whole))
    assert (np.asarray(path(state.params["student"])) != path(params["student"])).any()


@pytest.mark.slow
def test_what_does_not_go_together_is_refused(task, teacher, tmp_path, capsys, one_device):
    base = task.arguments(tmp_path / "run")
    with_teacher = [*base, "--teacher", str(teacher)]
    assert "go with --teacher" in refused([*base, "--temperature", "3"], capsys)
    assert "--sift: does not go with --teacher" in refused([*with_teacher, "--sift", "1"], capsys)
    assert "--temperature 0.0: must be above 0" in refused([*with_teacher, "--temperature", "0"], capsys)
    assert "with --from-scratch nothing is" in refused([*with_teacher, "--student-layers", "0"], capsys)
    scratch = [word for word in with_teacher if word != "--from-scratch"]
    scratch[scratch.index("--model") + 1] = str(teacher)
    assert "has 3 layers, 0 to 2" in refused([*scratch, "--student-layers", "1", "3"], capsys)
    assert "give ascending numbers" in refused([*scratch, "--student-layers", "2", "1"], capsys)
    wide = dataclasses.replace(TINY, hidden_size=16, num_hidden_layers=1)
    saved_model(tmp_path / "wide", DebertaForSequenceClassification(wide))
    line = refused([*base, "--teacher", str(tmp_path / "wide"), "--hidden-weight", "1"], capsys)
    assert "the hidden_size of the student is 32, that of" in line
    named = dataclasses.replace(TINY, id2label=("good", "bad"), num_hidden_layers=1)
    saved_model(tmp_path / "named", DebertaForSequenceClassification(named))
    line = refused([*base, "--teacher", str(tmp_path / "named")], capsys)
    assert "its labels are good, bad, those of the task neg, pos" in line
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="--teacher-weight 2"):
        Distillation(teacher="x", teacher_weight=2.0).check(sift=False, from_scratch=False)


def _teacher(kind):
    return Teacher("t", kind(TINY), None, ())


def test_answers_are_compared_within_their_text():
    """Two texts in a packed row, and one in a padded row: softmax over the tokens of each alone."""
    d = Distillation(teacher="t", temperature=2.0)
    logits = RNG.normal(size=(2, 2, 1, 6)).astype(np.float32)  # model, first or last token, row, token
    outs = [SpanOutput(jnp.asarray(a[0]), jnp.asarray(a[1])) for a in logits]
    packed = {"segment_ids": np.array([[1, 1, 1, 2, 2, 0]], np.int32), "labels": np.zeros((1, 2, 2), np.int32)}
    found = output_loss(d, _teacher(DebertaForQuestionAnswering), *outs, packed)
    soft = lambda model, end, part: softmax(logits[model, end, 0, part] / 2)
    expected = [
        [
            4 * np.mean([entropy(soft(1, end, part), soft(0, end, part)) for end in (0, 1)])
            for part in (slice(3), slice(3, 5))
        ]
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    padded = {"attention_mask": np.array([[1, 1, 1, 0, 0, 0]], bool), "labels": np.zeros((1, 2), np.int32)}
    found = output_loss(d, _teacher(DebertaForQuestionAnswering), *outs, padded)
    np.testing.assert_allclose(found, [expected[0][0]], rtol=1e-4)


def test_choices_are_compared_within_their_question():
    """Of the second question one choice is missing."""
    d = Distillation(teacher="t", temperature=1.0)
    student, teacher = RNG.normal(size=(2, 1, 6)).astype(np.float32)
    positions = np.array([[0, 3, 6, 9, 12, -1]], np.int32)
    batch = {"positions": positions, "labels": np.array([[0, 1]], np.int32)}
    outs = (HeadOutput(jnp.asarray(student)), HeadOutput(jnp.asarray(teacher)))
    found = output_loss(d, _teacher(DebertaForMultipleChoice), *outs, batch)
    expected = [[entropy(softmax(teacher[0, part]), softmax(student[0, part])) for part in (slice(3), slice(3, 5))]]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.system
def test_the_command_plans_and_writes_a_student(task, teacher, tmp_path, one_device, capsys):
    run = tmp_path / "run"
    words = [word for word in task.arguments(run, "--epochs", "1") if word != "--from-scratch"]
    at = words.index("--model")
    words[at : at + 2] = ["--teacher", str(teacher), "--student-layers", "0", "2", "--lora", "2"]
    printed = json.loads(stdout_of([*words, "--attention-weight", "0.1", "--plan", "here"]))
    assert printed["step"] == 6
    assert "no adapter for peft" in capsys.readouterr().err
    assert not (run / "adapter").exists()
    model, _ = from_pretrained(run, "sequence-classification")
    assert model.config.num_hidden_layers == 2
    logged = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert {"task", "teacher", "attention"} <= logged[0].keys()
