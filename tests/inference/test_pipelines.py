"""``deberta_jax.pipeline``: what people type, and what they get for typing something else."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deberta_jax
from deberta_jax import InputError
from tests.made import TINY, rows, weighted_model


@pytest.fixture(scope="module")
def pipe(trained):
    return deberta_jax.pipeline("text-classification", str(trained.directory))


def test_a_string_a_list_and_a_mapping(pipe):
    texts = [text for text, _ in rows(40, seed=5)]
    many = pipe(texts)
    assert [answer.keys() for answer in many] == [{"label", "score"}] * 40
    assert np.mean([a["label"] == kind for a, (_, kind) in zip(many, rows(40, seed=5), strict=True)]) > 0.85
    (one,) = pipe(texts[3])
    assert one["label"] == many[3]["label"]
    assert one["score"] == pytest.approx(many[3]["score"], abs=1e-5)
    assert pipe({"text": texts[3]}) == one
    assert pipe([texts[3]]) == [one]
    assert pipe([]) == []
    assert all(0.5 <= answer["score"] <= 1 for answer in many)


def test_the_order_is_that_of_the_inputs_whatever_their_lengths(pipe):
    texts = ["ban " * n for n in (1, 9, 3, 7, 2, 12, 5)] * 7
    together = pipe.logits(texts)
    for i in (0, 1, 5, 6):
        alone = pipe.logits([texts[i]])[0]
        np.testing.assert_allclose(together[i], alone, atol=1e-5)
        np.testing.assert_allclose(together[i + 7], alone, atol=1e-5)


def test_the_score_is_the_softmax_of_the_models_own_logits(pipe):
    text = rows(1, seed=6)[0][0]
    model, params = pipe.model, pipe.params
    encoded = pipe.tokenizer([text])
    logits = jax.jit(lambda p, i: model.apply({"params": p}, i).logits)(params, encoded.input_ids)
    logits = np.asarray(logits)[0].astype(np.float64)
    shares = np.exp(logits) / np.exp(logits).sum()
    (answer,) = pipe(text)
    assert answer["label"] == model.config.id2label[int(shares.argmax())]
    assert answer["score"] == pytest.approx(shares.max(), abs=1e-5)


def test_pairs_are_pairs(pipe):
    first, second = rows(2, seed=7)[0][0], "teck"
    encoded = pipe.tokenizer([first], [second], max_length=16)
    apply = jax.jit(lambda p, i, t: pipe.model.apply({"params": p}, i, token_type_ids=t).logits)
    logits = apply(pipe.params, encoded.input_ids, encoded.token_type_ids)
    np.testing.assert_allclose(pipe.logits([{"text": first, "text_pair": second}]), logits, atol=1e-5)
    assert pipe({"text": first, "text_pair": second}) == pipe([{"text": first, "text_pair": second}])[0]


@pytest.mark.parametrize(
    "bad",
    [
        3,
        None,
        float("nan"),
        b"a",
        ("a", "b", "c"),
        {"txt": "a"},
        {"text": 1},
        {"text": "a", "text_pair": 2},
        {"text": "a", "extra": "b"},
        [["a", "b"]],
        [b"a"],
    ],
)
def test_other_inputs_are_refused(pipe, bad):
    with pytest.raises(InputError, match=r"^((the input|inputs\[0\]): cannot read|the input is bytes; give a str)"):
        pipe(bad)


def test_the_index_of_an_input_that_cannot_be_read(pipe):
    with pytest.raises(InputError, match=r"^inputs\[2\]: cannot read None"):
        pipe(["a", {"text": "a", "text_pair": "b"}, None])
    answers = pipe((text for text in ["a", "b", "c", 4]), batch_size=2)
    assert [next(answers) and i for i in range(2)] == [0, 1], "what stands before it is answered"
    with pytest.raises(InputError, match=r"^inputs\[3\]: cannot read 4"):
        next(answers)


def test_pairs_and_texts_mix(pipe):
    pair = {"text": "a", "text_pair": "b"}
    both = pipe(["a", pair, "b"])
    assert both == [pytest.approx(pipe(one)[0] if isinstance(one, str) else pipe(one)) for one in ("a", pair, "b")]


def test_the_length_is_that_of_the_training_unless_given(pipe, trained, tmp_path):
    assert pipe.predictor.max_length == 16
    assert deberta_jax.pipeline("text-classification", trained.directory, max_length=24).predictor.max_length == 24
    copy = tmp_path / "copy"
    shutil.copytree(trained.directory, copy, ignore=shutil.ignore_patterns("state", "experiment.json"))
    assert deberta_jax.pipeline("text-classification", copy).predictor.max_length == 512
    (copy / "experiment.json").write_text('{"job": "somebody else\'s"}')
    with pytest.raises(InputError, match="records no max_length"):
        deberta_jax.pipeline("text-classification", copy)


def test_what_is_no_classifier_is_refused(trained, task, tmp_path):
    with pytest.raises(InputError, match=r"no pipeline for 'translation'; there is 'text-classification', "):
        deberta_jax.pipeline("translation", trained.directory)
    with pytest.raises(InputError):
        deberta_jax.pipeline("text-classification", task.blank)
    for sizes in ({"batch_size": 0}, {"max_length": 2}):
        with pytest.raises(InputError, match="must be at least"):
            deberta_jax.pipeline("text-classification", trained.directory, **sizes)
    encoder = tmp_path / "encoder"
    model, params = deberta_jax.from_pretrained(trained.directory)
    deberta_jax.save_pretrained(encoder, model, params, deberta_jax.load_tokenizer(str(trained.directory)))
    with pytest.raises(InputError, match="classifier"):
        deberta_jax.pipeline("text-classification", encoder)


def test_one_label_is_a_probability_and_a_regression_has_numbers(tmp_path):
    """As in transformers: without a problem type one label has the sigmoid."""
    one = weighted_model(tmp_path / "one", dataclasses.replace(TINY, id2label=("LABEL_0",)))
    config = json.loads((one / "config.json").read_text())
    assert config.get("problem_type") is None
    pipe = deberta_jax.pipeline("text-classification", one, max_length=16)
    logit = float(pipe.logits(["ban"])[0, 0])
    assert pipe("ban")[0]["score"] == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-6)
    assert pipe("ban", function_to_apply="none")[0]["score"] == pytest.approx(logit, abs=1e-6)
    (one / "config.json").write_text(
        json.dumps(config | {"problem_type": "regression", "id2label": {"0": "a"}, "num_labels": 1})
    )
    assert deberta_jax.pipeline("text-classification", one)("ban")[0]["score"] == pytest.approx(logit, abs=1e-6)
    (one / "config.json").write_text(json.dumps(config | {"id2label": {"0": "a", "1": "b"}, "num_labels": 2}))
    with pytest.raises(InputError):
        deberta_jax.pipeline("text-classification", one)


def test_bfloat16_is_close(trained, pipe):
    half = deberta_jax.pipeline("text-classification", trained.directory, dtype=jnp.bfloat16)
    texts = [text for text, _ in rows(8, seed=8)]
    assert half.logits(texts).dtype == np.float32
    np.testing.assert_allclose(half.logits(texts), pipe.logits(texts), atol=0.1)
    assert not np.array_equal(half.logits(texts), pipe.logits(texts))
