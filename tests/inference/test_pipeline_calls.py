"""What every pipeline takes and refuses: tasks, arguments, lists, iterators, devices; tests/parity has the scores."""

import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deberta_jax
from deberta_jax import InputError
from deberta_jax.inference.devices import devices_of
from deberta_jax.inference.question_answering import best_spans
from tests.made import TINY, make_tokenizer, saved_model

SMALL = dataclasses.replace(TINY, num_hidden_layers=1, initializer_range=0.3)
NLI = ("contradiction", "neutral", "entailment")
CONTEXT = "ban tell kost. Mull  ban rirk teck"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("calls")
    tokenizer = make_tokenizer(home / "tokenizer")
    for kind, config in (
        (deberta_jax.DebertaForSequenceClassification, dataclasses.replace(SMALL, id2label=NLI)),
        (deberta_jax.DebertaForQuestionAnswering, SMALL),
        (deberta_jax.DebertaForMultipleChoice, SMALL),
    ):
        saved_model(home / kind.__name__, kind(config), tokenizer, seed=1)
    return home


@pytest.fixture(scope="module")
def classify(home):
    return deberta_jax.pipeline("sentiment-analysis", home / "DebertaForSequenceClassification", max_length=16)


@pytest.fixture(scope="module")
def zero_shot(home):
    return deberta_jax.pipeline("zero-shot-classification", model=str(home / "DebertaForSequenceClassification"))


@pytest.fixture(scope="module")
def answer(home):
    return deberta_jax.pipeline("question-answering", home / "DebertaForQuestionAnswering")


@pytest.fixture(scope="module")
def states(home):
    return deberta_jax.pipeline("feature-extraction", home / "DebertaForQuestionAnswering")


class Rows:
    """A data set as those of PyTorch: a length and items, no iterator of its own."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


def test_the_number_of_labels_and_the_form_of_answers(classify):
    (one,) = classify("ban")
    assert list(one) == ["label", "score"]
    every = classify("ban", top_k=None)
    assert [a["label"] for a in every] == sorted(NLI, key=lambda name: -{a["label"]: a["score"] for a in every}[name])
    assert sum(a["score"] for a in every) == pytest.approx(1)
    assert every[0] == pytest.approx(one)
    assert classify("ban", top_k=1) == [one]
    assert classify({"text": "ban"}) == pytest.approx(one)
    assert classify(["ban", "ko"], top_k=2)[0] == [pytest.approx(a) for a in every[:2]]
    logits = {a["label"]: a["score"] for a in classify("ban", top_k=None, function_to_apply="none")}
    sigmoid = {a["label"]: a["score"] for a in classify("ban", top_k=None, function_to_apply="SIGMOID")}
    assert [logits[name] for name in NLI] == pytest.approx(classify.logits(["ban"])[0].tolist())
    assert sigmoid == pytest.approx({name: 1 / (1 + np.exp(-value)) for name, value in logits.items()})


def test_arguments_given_once_hold_for_every_call(classify):
    pipe = dataclasses.replace(classify, settings={"top_k": 2})
    assert pipe("ban") == [classify("ban", top_k=2)], "as in transformers, the list of a text has a list of answers"
    assert pipe(["ban"]) == [classify("ban", top_k=2)]
    assert pipe("ban", top_k=1) == classify("ban", top_k=1)
    assert pickle.loads(pickle.dumps(pipe)).settings == {"top_k": 2}


def test_generators_and_data_sets_give_iterators(classify):
    texts = ["ban", "ko mu", "tell", "ban ban", "lo"]
    expected = [pytest.approx(answer) for answer in classify(texts)]
    read = []

    def generate():
        for text in texts:
            read.append(text)
            yield text

    answers = classify(generate(), batch_size=2)
    assert iter(answers) is answers
    assert read == []
    assert next(answers) == expected[0]
    assert len(read) == 2, "a batch at a time"
    assert list(answers) == expected[1:]
    for inputs in (Rows(texts), np.array(texts), dict.fromkeys(texts).keys()):
        assert list(classify(inputs)) == expected
    assert list(classify(iter([]))) == []
    assert classify([]) == []


@pytest.mark.parametrize("inputs", [np.array("ban"), np.array([["ban"]]), {"ban": 1}, {"text": None}, 0.5])
def test_what_is_no_data_set(classify, inputs):
    with pytest.raises(InputError, match=r"^the input(: cannot read| is an array without an axis; give a str)"):
        classify(inputs)


def test_texts_are_cut_unless_the_call_says_otherwise(classify, caplog):
    text = "ban tell " * 12
    cut = classify.logits([text])
    assert "longer than 16 tokens and were cut" in caplog.text
    caplog.clear()
    whole = classify.logits([text], truncation=False)
    assert caplog.text == ""
    apply = jax.jit(lambda p, ids: classify.model.apply({"params": p}, ids).logits)
    encoded = classify.tokenizer(text)
    np.testing.assert_allclose(whole, apply(classify.params, encoded.input_ids), atol=1e-5)
    assert np.abs(whole - cut).max() > 1e-3
    np.testing.assert_allclose(
        classify.logits([text], truncation=True, max_length=encoded.input_ids.size), whole, atol=1e-5
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k=0: give a whole number, 1 or more"),
        ({"top_k": 1.5}, "top_k=1.5"),
        ({"batch_size": True}, "batch_size=True"),
        ({"function_to_apply": "softmaks"}, "did you mean 'softmax'"),
        ({"truncation": "first"}, "truncation='first'"),
        ({"return_all_scores": True}, r"return_all_scores: is no argument .* give top_k=None"),
        ({"num_workers": 2}, "tokenizing uses all cores"),
        ({"topk": 2}, "give top_k"),
        ({"candidate_labels": ["a"]}, "candidate_labels: is no argument of text-classification"),
    ],
)
def test_arguments_of_a_call_that_cannot_be(classify, options, message):
    with pytest.raises(InputError, match=message):
        classify("ban", **options)


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("sentiment-analysis", {"top_k": 0}, "top_k=0"),
        ("sentiment-analysis", {"framework": "pt"}, "one framework, JAX"),
        ("sentiment-analysis", {"torch_dtype": "float32"}, "give dtype"),
        ("sentiment-analysis", {"dtype": "int8"}, "dtype='int8'"),
        ("sentiment-analysis", {"tokenizer": 3}, "tokenizer=3"),
        ("sentiment-analysis", {"device": "cuda:0"}, "device='cuda:0': this process computes on cpu"),
        ("zero-shot-classification", {"labels": ["a"]}, "labels: is no argument"),
        ("ner", {}, "classifier"),
        ("sentiment-analisis", {}, "did you mean 'sentiment-analysis'"),
    ],
)
def test_arguments_of_pipeline_that_cannot_be(home, task, options, message):
    model = home / ("DebertaForQuestionAnswering" if task == "ner" else "DebertaForSequenceClassification")
    with pytest.raises(InputError, match=message):
        deberta_jax.pipeline(task, model, **options)


def test_a_model_is_a_directory_or_a_hub_id(classify):
    with pytest.raises(InputError, match="model=<"):
        deberta_jax.pipeline("text-classification", classify.model)


def test_devices(home, classify):
    first = jax.devices()[0]
    for device in (-1, "cpu", "cpu:0", first):
        assert devices_of(device) == [first]
    assert devices_of(None) is None
    assert devices_of("cpu:2") == [jax.devices()[2]]
    for device in (0, "gpu", "tpu:1", "cpu:99", "a b", 1.5, True):
        with pytest.raises(InputError, match=r"^device="):
            devices_of(device)
    tokenizer = deberta_jax.load_tokenizer(str(home / "tokenizer"))
    directory = home / "DebertaForSequenceClassification"
    pipe = deberta_jax.pipeline("text-classification", directory, device="cpu:3", dtype="auto", tokenizer=tokenizer)
    assert {d for leaf in jax.tree.leaves(pipe.params) for d in leaf.devices()} == {jax.devices()[3]}
    assert pipe.model.dtype == jnp.float32
    assert pipe("ban")[0] == pytest.approx(classify("ban")[0], abs=1e-5)


@pytest.mark.slow
def test_zero_shot(zero_shot, caplog):
    text, labels = "ban tell ko", ["mull", "kost teck", "ri"]
    one = zero_shot(text, labels)
    assert list(one) == ["sequence", "labels", "scores"]
    assert one["sequence"] == text
    assert sorted(one["labels"]) == sorted(labels)
    assert one["scores"] == sorted(one["scores"], reverse=True)
    assert sum(one["scores"]) == pytest.approx(1)
    logits = {name: zero_shot_logits(zero_shot, text, f"It is {name}.") for name in labels}
    told = zero_shot(text, candidate_labels="mull, kost teck,ri", hypothesis_template="It is {}.")
    shares = np.exp([logits[name][2] for name in told["labels"]])
    np.testing.assert_allclose(told["scores"], shares / shares.sum(), atol=1e-5)
    several = zero_shot([text, "ko"], labels, hypothesis_template="It is {}.", multi_label=True)[0]
    both = np.exp([logits[name][[0, 2]] for name in several["labels"]])
    np.testing.assert_allclose(several["scores"], both[:, 1] / both.sum(-1), atol=1e-5)
    assert [a["sequence"] for a in zero_shot((t for t in (text, "ko")), labels, batch_size=4)] == [text, "ko"]
    assert caplog.text == ""


def zero_shot_logits(pipe, text, hypothesis):
    encoded = pipe.tokenizer(text, hypothesis)
    apply = jax.jit(lambda p, ids, types: pipe.model.apply({"params": p}, ids, token_type_ids=types).logits)
    return np.asarray(apply(pipe.params, encoded.input_ids, encoded.token_type_ids))[0].astype(np.float64)


@pytest.mark.parametrize(
    ("inputs", "labels", "options", "message"),
    [
        ("ban", None, {}, "candidate_labels=None"),
        ("ban", [], {}, r"candidate_labels=\[\]"),
        ("ban", " , ", {}, r"candidate_labels=\[\]"),
        ("ban", ["a", 3], {}, r"candidate_labels\[1\]: is 3"),
        ("ban", ["a"], {"hypothesis_template": "no place"}, "hypothesis_template='no place'"),
        ("ban", ["a"], {"hypothesis_template": "{label}"}, "hypothesis_template"),
        (["ban", ""], ["a"], {}, r"^inputs\[1\]: is an empty text"),
        (["ban", None], ["a"], {}, r"^inputs\[1\]: cannot read None"),
        ([["ban"]], ["a"], {}, r"^inputs\[0\]: cannot read"),
        ({"sequence": "ban"}, ["a"], {}, "^the input: cannot read"),
    ],
)
def test_zero_shot_refuses(zero_shot, inputs, labels, options, message):
    with pytest.raises(InputError, match=message):
        zero_shot(inputs, labels, **options)


def test_a_model_without_entailment_warns(zero_shot, caplog):
    config = dataclasses.replace(zero_shot.model.config, id2label=("a", "b", "c"))
    dataclasses.replace(zero_shot, model=type(zero_shot.model)(config))
    assert "no label of the model is named entailment; the last one, 'c'" in caplog.text


def test_questions(answer):
    one = answer(question="ban?", context=CONTEXT)
    assert list(one) == ["score", "start", "end", "answer"]
    assert CONTEXT[one["start"] : one["end"]] == one["answer"] == one["answer"].strip()
    assert answer({"question": "ban?", "context": CONTEXT}) == one
    assert answer("ban?", CONTEXT) == answer("ban?", context=CONTEXT) == one
    assert answer([{"question": "ban?", "context": CONTEXT}]) == one, "as in transformers"
    two = answer(question=["ban?", "ko?"], context=CONTEXT)
    assert two[0] == pytest.approx(one, abs=1e-5)
    assert answer(question=["ban?", "ko?"], context=[CONTEXT, CONTEXT]) == two
    assert list(answer(q for q in [{"question": "ban?", "context": CONTEXT}])) == [one]
    best = answer(question="ban?", context=CONTEXT, top_k=4, align_to_words=False, max_answer_len=2)
    assert [a["score"] for a in best] == sorted((a["score"] for a in best), reverse=True)
    assert len(best) == 4
    assert all(CONTEXT[a["start"] : a["end"]] == a["answer"] for a in best)
    none = answer(question="ban?", context=CONTEXT, top_k=50, handle_impossible_answer=True)
    assert sum(a["answer"] == "" and (a["start"], a["end"]) == (0, 0) for a in none) == 1
    assert len({a["answer"].lower() for a in none}) == len(none)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({}, "give question=... and context=..."),
        ({"question": "ban?"}, "^the input: context is None"),
        ({"context": "ban"}, "give question=... and context=..."),
        ({"question": "ban?", "context": ""}, "^the input: context is ''"),
        ({"question": "", "context": "ban"}, "^the input: question is ''"),
        ({"question": 3, "context": "ban"}, "^the input: question is 3"),
        ({"question": ["a", "b"], "context": ["c"]}, "2 questions but 1 contexts"),
        ({"question": ["a", None], "context": "c"}, r"^inputs\[1\]: question is None"),
        ({"inputs": [{"question": "a", "context": "b"}, {"question": "a"}]}, r"^inputs\[1\]: cannot read"),
        ({"inputs": ["a"]}, r"^inputs\[0\]: cannot read 'a'"),
        (
            {"question": "ban " * 400, "context": "ban", "max_question_len": 400},
            "^the input: the question has .* leaves no room",
        ),
        ({"question": "a", "context": "b", "max_question_len": 0}, "max_question_len=0"),
        ({"question": "a", "context": "b", "top_k": 0}, "top_k=0"),
        ({"question": "a", "context": "b", "max_answer_len": 0}, "max_answer_len=0"),
        ({"question": "a", "context": "b", "doc_stride": 500}, "doc_stride=500"),
        ({"question": "a", "context": "b", "max_query_len": 5}, "max_query_len: is no argument"),
    ],
)
def test_questions_refused(answer, call, message):
    with pytest.raises(InputError, match=message):
        answer(**call)


def test_the_end_of_a_long_question_is_cut(answer, caplog):
    """ "ban" is one token; 64 are read unless another number is given."""
    for count, options in ((64, {}), (3, {"max_question_len": 3})):
        caplog.clear()
        whole = answer(question="ban " * count, context=CONTEXT, **options)
        assert "cut" not in caplog.text
        assert answer(question="ban " * 400, context=CONTEXT, **options) == pytest.approx(whole, abs=1e-5)
        assert f"1 questions are longer than {count} tokens (max_question_len) and are cut" in caplog.text
    other = answer(question="ban " * 63, context=CONTEXT)
    assert other["score"] != pytest.approx(answer(question="ban " * 64, context=CONTEXT)["score"], abs=1e-7)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (b"ban", "the input is bytes; give a str"),
        (bytearray(b"ban"), "the input is bytearray; give a str"),
        ({"ban", "ko"}, "the input is a set, which has no order; give a list"),
        (frozenset({"ban"}), "the input is a frozenset, which has no order; give a list"),
        (np.array(3), "the input is an array without an axis; give a str"),
        (np.array("ban"), "the input is an array without an axis; give a str"),
    ],
)
def test_inputs_that_are_no_texts_in_an_order(classify, home, given, message):
    embedder = deberta_jax.Embedder(home / "DebertaForQuestionAnswering")
    for call in (classify, embedder.encode):
        with pytest.raises(InputError, match=message):
            call(given)


def test_the_best_spans_are_those_of_all_products():
    rng = np.random.default_rng(0)
    for count, longest in ((1, 3), (7, 2), (30, 15), (500, 4)):
        first, last = rng.random(20), rng.random(20)
        first[3] = last[5] = 0
        every = [(first[i] * last[j], i, j) for i in range(20) for j in range(i, min(20, i + longest))]
        expected = sorted((x for x in every if x[0] > 0), key=lambda x: -x[0])[:count]
        assert best_spans(first, last, count, longest) == [(i, j, score) for score, i, j in expected]


def test_hidden_states(states):
    text = "ban tell"
    one = states(text)
    encoded = states.tokenizer(text)
    apply = jax.jit(lambda p, ids: states.model.apply({"params": p}, ids).last_hidden_state)
    np.testing.assert_allclose(one, apply(states.params, encoded.input_ids), atol=1e-5)
    assert isinstance(one, list)
    arrays = states([text, "ban"], return_tensors=True)
    assert [a.shape for a in arrays] == [(1, encoded.input_ids.size, 32), (1, 3, 32)]
    assert arrays[0].dtype == np.float32
    np.testing.assert_allclose(arrays[0], one, atol=1e-5)
    assert len(states("ban " * 9, tokenize_kwargs={"truncation": True, "max_length": 8, "padding": True})[0]) == 8
    for options in ({"tokenize_kwargs": {"stride": 1}}, {"truncation": True, "tokenize_kwargs": {"truncation": True}}):
        with pytest.raises(InputError, match=r"stride|given twice"):
            states(text, **options)
    with pytest.raises(InputError, match=r"^inputs\[1\]: cannot read 4"):
        states([text, 4])


def test_choices(home):
    choose = deberta_jax.pipeline("multiple-choice", home / "DebertaForMultipleChoice", max_length=16)
    item = {"text": "ban", "choices": ["ko", "tell mu"]}
    one = choose(item)
    assert list(one) == ["choice", "text", "probabilities"]
    for two in (list(choose(item for _ in range(2))), choose([item, item])):
        assert [answer["text"] for answer in two] == [one["text"]] * 2
        np.testing.assert_allclose([answer["probabilities"] for answer in two], [one["probabilities"]] * 2, atol=1e-5)
    for bad in ({"text": "ban"}, {"text": "ban", "choices": ["a"]}, {"text": None, "choices": ["a", "b"]}, "ban"):
        with pytest.raises(InputError, match=r"^inputs\[1\]: cannot read"):
            choose([item, bad])
