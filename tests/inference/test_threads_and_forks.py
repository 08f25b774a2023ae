"""Pipelines in threads, in pickles and copies, and in processes that are forked or spawned."""

import copy
import dataclasses
import json
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deberta_jax
from tests.made import TINY, make_tokenizer, rows, saved_model, weighted_model

TEXTS = [text for text, _ in rows(6, seed=5)]
MASKED = ["ban [MASK] kost", "[MASK] mur [MASK]"]

# What a process without this package above it prints, in JSON. It must end within two minutes.
RUN = """
import json, multiprocessing, os, pickle, signal, sys, warnings
signal.alarm(120)
warnings.simplefilter("ignore")  # JAX warns of forks
classifier, filler, pickled, texts, masked = json.loads(sys.argv[1])

def forked(work):
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(60)
        try:
            answer = work()
        except deberta_jax.InputError as error:
            answer = "refused: " + str(error)
        os.write(writer, json.dumps(answer).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answers:
        text = answers.read()
    os.waitpid(child, 0)
    return json.loads(text or '"no answer"')
"""


def run(script: str, *arguments) -> dict:
    command = [sys.executable, "-c", RUN + script, json.dumps(arguments)]
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("models")
    weighted_model(home / "classifier")
    tokenizer = make_tokenizer(home / "tokenizer")
    config = dataclasses.replace(TINY, vocab_size=tokenizer.vocab_size)
    saved_model(home / "filler", deberta_jax.DebertaForMaskedLM(config), tokenizer)
    return home


@pytest.fixture(scope="module")
def classifier(home):
    return deberta_jax.pipeline("text-classification", home / "classifier")


@pytest.fixture(scope="module")
def filler(home):
    return deberta_jax.pipeline("fill-mask", home / "filler")


def same(answers, others):
    """Equal labels and tokens, scores to rounding: batches of other sizes are other programs."""
    flat = lambda value: [value] if isinstance(value, dict) else [one for inner in value for one in flat(inner)]
    for one, other in zip(flat(answers), flat(others), strict=True):
        assert {k: v for k, v in one.items() if k != "score"} == {k: v for k, v in other.items() if k != "score"}
        np.testing.assert_allclose(one["score"], other["score"], atol=1e-5)


@pytest.mark.slow
def test_eight_threads_share_one(classifier, filler):
    for pipe, inputs in ((classifier, TEXTS), (filler, MASKED)):
        alone = [pipe(one) for one in inputs]
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(pipe, inputs * 16))
        for i, answer in enumerate(together):
            same(answer, alone[i % len(inputs)])


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda pipe: pickle.loads(pickle.dumps(pipe))])
def test_copies_and_pickles_answer_the_same(again, classifier, filler):
    for pipe, inputs in ((classifier, TEXTS), (filler, MASKED)):
        other = again(pipe)
        assert type(other) is type(pipe)
        same(other(inputs), pipe(inputs))
    assert again(classifier).predictor.rows == classifier.predictor.rows


def test_models_and_tokenizers_can_be_pickled(home):
    model, params = deberta_jax.from_pretrained(home / "classifier", head="sequence-classification")
    model_again, params_again = pickle.loads(pickle.dumps((model, params)))
    ids = jnp.arange(1, 13).reshape(2, 6)
    apply = lambda model: jax.jit(lambda params: model.apply({"params": params}, ids).logits)
    np.testing.assert_array_equal(apply(model_again)(params_again), apply(model)(params))


@pytest.mark.slow
def test_a_pickle_in_another_process(home, classifier, filler, tmp_path):
    """Which has another number of devices, as a spawned worker may."""
    path = tmp_path / "pipelines"
    path.write_bytes(pickle.dumps((classifier, filler)))
    script = """
with open(pickled, "rb") as file:
    pipes = pickle.load(file)
import jax
print(json.dumps([jax.device_count(), pipes[0](texts), pipes[1](masked)]))
"""
    devices, labels, tokens = run(script, "", "", str(path), TEXTS, MASKED)
    assert devices == 2
    same(labels, classifier(TEXTS))
    same(tokens, filler(MASKED))


@pytest.mark.slow
def test_a_forked_process_is_told_and_its_tokenizer_works(home, classifier):
    """Its computations would wait for the threads of JAX, which a fork does not copy."""
    script = """
import deberta_jax, jax
before = forked(lambda: deberta_jax.pipeline("text-classification", classifier)(texts))
pipe, fill = deberta_jax.pipeline("text-classification", classifier), deberta_jax.pipeline("fill-mask", filler)
answers = pipe(texts)
many = texts * 1000
ids = lambda texts: [row.tolist() for row in pipe.tokenizer(texts).input_ids]
expected = ids(many)
found = {
    "forked before JAX was used": before,
    "pipeline": forked(lambda: pipe(texts)),
    "logits": forked(lambda: pipe.logits(texts).tolist()),
    "fill-mask": forked(lambda: fill(masked)),
    "new pipeline": forked(lambda: deberta_jax.pipeline("text-classification", classifier)),
    "new model": forked(lambda: deberta_jax.from_pretrained(classifier, head="sequence-classification")),
    "pickle": forked(lambda: pickle.loads(pickle.dumps(pipe.tokenizer)).vocab_size) == pipe.tokenizer.vocab_size,
    "tokenizer": forked(lambda: ids(many) == expected),
    "parent": pipe(texts) == answers,
}
with multiprocessing.get_context("fork").Pool(2) as pool:
    found["pool"] = pool.map(ids, [many[:10], many[10:20]]) == [expected[:10], expected[10:20]]
print(json.dumps(found))
"""
    script = script.replace("pool.map(ids", "pool.map(worker").replace(
        "with multi", "def worker(texts):\n    return ids(texts)\n\nwith multi"
    )
    found = run(script, str(home / "classifier"), str(home / "filler"), "", TEXTS, MASKED)
    same(found.pop("forked before JAX was used"), classifier(TEXTS))
    for name in ("pipeline", "logits", "fill-mask", "new pipeline", "new model"):
        assert found.pop(name).startswith("refused: this process was forked from one that uses JAX"), name
    assert found == dict.fromkeys(("pickle", "tokenizer", "parent", "pool"), True)
