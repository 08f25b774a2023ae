"""A hundred steps of every kind of task beside a PyTorch loop on transformers' models: the same losses.

Theirs are padded, an example a row; ours are packed, several in a row. Same initial weights, order, AdamW and schedule;
no dropout; float32.
"""

import dataclasses

import jax
import numpy as np
import pytest
import torch
import transformers

import deberta_jax
from deberta_jax.data.batches import ExampleOrder, TrainingBatches, pad_batch
from deberta_jax.data.labels import LabelSpec
from deberta_jax.data.tables import Table
from deberta_jax.inference.predict import model_inputs
from deberta_jax.models import HEADS
from deberta_jax.sharding import global_batch, make_mesh
from deberta_jax.tasks import ChoiceTask, SpanTask, TextTask, WordTask
from deberta_jax.training.experiment import Optimization
from deberta_jax.training.optimizers import make_optimizer
from deberta_jax.training.state import make_state, parameters_of, state_shardings
from deberta_jax.training.step import compile_step, make_step
from tests.made import LABELS, WORDS, make_tokenizer, text_of, without_dropout

pytestmark = [pytest.mark.parity, pytest.mark.slow]

STEPS, PEAK, WARMUP, DECAY, BATCH, LENGTH = 100, 1e-3, 10.0, 0.05, 8, 40
ROWS = 80  # ten batches, in another order in each of ten epochs


def texts(seed):
    rng = np.random.default_rng(seed)
    return [text_of(LABELS[i % 3], rng, 2, 9) for i in range(ROWS)]


def table_of(**columns):
    return Table("made", columns, range(1, ROWS + 1))


def classification():
    table = table_of(a=texts(0), b=texts(1), y=[LABELS[i % 3] for i in range(ROWS)])
    return TextTask(("a", "b"), ("y",), LabelSpec("single_label_classification", LABELS)), table


def regression():
    table = table_of(a=texts(0), y=[len(text) / 20 - 1 for text in texts(0)])
    return TextTask(("a",), ("y",), LabelSpec("regression", ("LABEL_0",))), table


def token_classification():
    words = [text.split() for text in texts(2)]
    tags = [[next(label for label in LABELS if word in WORDS[label]) for word in row] for row in words]
    return WordTask("w", "t", LABELS), table_of(w=words, t=tags)


def question_answering():
    contexts, answers = texts(3), []
    for i, text in enumerate(contexts):
        word = text.split()[-1]
        found = {"text": [word], "answer_start": [len(text) - len(word)]}
        answers.append(found if i % 5 else {"text": [], "answer_start": []})
    table = table_of(q=[text.split()[0] for text in texts(4)], c=contexts, a=answers)
    return SpanTask("q", "c", "a", True, 8, 30, 20, 0.0), table


def multiple_choice():
    rng = np.random.default_rng(5)
    choices = [[str(rng.choice(WORDS[label])) for label in LABELS] for _ in range(ROWS)]
    return ChoiceTask(("a",), ("c",), "y"), table_of(a=texts(6), c=choices, y=[i % 3 for i in range(ROWS)])


def torch_loss(model, batch, head):
    """The model's own loss; of answers that over the text's own tokens, where transformers takes padding in too."""
    inputs = {name: torch.tensor(np.asarray(batch[name])) for name in ("input_ids", "attention_mask", "token_type_ids")}
    inputs = {name: array.long() for name, array in inputs.items()}
    labels = torch.tensor(batch["labels"])
    if head != "question-answering":
        return model(**inputs, labels=labels if labels.dtype.is_floating_point else labels.long()).loss
    out = model(**inputs)
    hidden = inputs["attention_mask"] == 0
    parts = [
        torch.nn.functional.cross_entropy(logits.masked_fill(hidden, -1e30), labels[:, i].long())
        for i, logits in enumerate((out.start_logits, out.end_logits))
    ]
    return sum(parts) / 2


CLASSES = {
    "sequence-classification": transformers.AutoModelForSequenceClassification,
    "token-classification": transformers.AutoModelForTokenClassification,
    "question-answering": transformers.AutoModelForQuestionAnswering,
    "multiple-choice": transformers.AutoModelForMultipleChoice,
}


def torch_losses(directory, head, batches):
    model = CLASSES[head].from_pretrained(directory).float().train()
    plain = lambda name: "bias" in name or "LayerNorm.weight" in name
    groups = [
        {"params": [p for n, p in model.named_parameters() if not plain(n)], "weight_decay": DECAY},
        {"params": [p for n, p in model.named_parameters() if plain(n)], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.999), eps=1e-6)
    rate = lambda step: step / WARMUP if step < WARMUP else (STEPS - step) / (STEPS - WARMUP)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    losses = []
    for step in range(STEPS):
        loss = torch_loss(model, pad_batch(batches.features, batches.members(step), BATCH, LENGTH, 0), head)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    "make", [classification, regression, token_classification, question_answering, multiple_choice]
)
def test_a_hundred_steps_have_the_losses_of_a_torch_loop(make, tmp_path):
    task, table = make()
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    config = task.configure(dataclasses.replace(without_dropout(), num_hidden_layers=1))
    model = HEADS[task.head].model(config)
    params = jax.jit(lambda: deberta_jax.init_params(model, jax.random.key(3)))()
    deberta_jax.save_pretrained(tmp_path / "model", model, params, tokenizer)
    features = task.features(table, tokenizer, LENGTH, labelled=True)
    assert len(features) == ROWS
    batches = TrainingBatches(features, ExampleOrder(batch_size=BATCH, seed=7, epochs=10), 0)
    assert batches.packing is not None
    assert batches.packing.counts[-1] < BATCH, "several texts share a row"
    theirs = torch_losses(tmp_path / "model", task.head, batches)

    mesh = make_mesh(devices=jax.devices()[:1])
    optimizer = make_optimizer(Optimization(learning_rate=PEAK, warmup=WARMUP, weight_decay=DECAY), STEPS)
    shardings = state_shardings(parameters_of(model), optimizer, mesh)
    state = jax.jit(lambda p: make_state(p, optimizer, 0), out_shardings=shardings)(params)

    def loss(params, batch, key):
        out = model.apply({"params": params}, **model_inputs(batch), deterministic=False, rngs={"dropout": key})
        return {"task": task.loss(out, batch)}

    step = make_step(loss, optimizer)
    programs = {
        example["input_ids"].shape: compile_step(step, state, shardings, example, mesh)
        for example in batches.examples()
    }
    ours = []
    for i in range(STEPS):
        batch = batches[i]
        state, measured = programs[batch["input_ids"].shape](state, global_batch(batch, mesh))
        ours.append(float(measured["loss"]))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    assert np.mean(ours[-10:]) < 0.9 * np.mean(ours[:10]), "it has learned something"
