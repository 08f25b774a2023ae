"""Tagging raw texts and words: what counts as one text, what is given back, what is said of long ones."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import deberta_jax
from deberta_jax import DebertaForTokenClassification, InputError
from tests.made import TINY, make_tokenizer, saved_model, stdout_of

TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
TEXTS = ["Anna lives in Oslo", "Bob sleeps in Rome"]


@pytest.fixture(scope="module")
def tagger(tmp_path_factory):
    home = tmp_path_factory.mktemp("tagger")
    config = dataclasses.replace(TINY, num_hidden_layers=1, id2label=TAGS)
    saved_model(home / "model", DebertaForTokenClassification(config), make_tokenizer(home / "tokenizer"), seed=5)
    return home / "model"


@pytest.fixture(scope="module")
def pipe(tagger):
    return deberta_jax.pipeline("token-classification", tagger, max_length=16, batch_size=8)


def test_a_list_of_strings_is_a_list_of_texts(pipe):
    """As in transformers' pipeline: never one sentence of as many words."""
    answers = pipe(TEXTS)
    assert len(answers) == 2
    for text, answer in zip(TEXTS, answers, strict=True):
        assert [text[start:end] for start, end in answer["offsets"]] == text.split()
        assert len(answer["tags"]) == len(answer["scores"]) == 4
        for span in answer["spans"]:
            assert span["text"] == text[span["start"] : span["end"]]
    alone = pipe(TEXTS[1])
    assert alone["tags"] == answers[1]["tags"]
    np.testing.assert_allclose(alone["scores"], answers[1]["scores"], atol=1e-5)
    assert [answer["tags"] for answer in pipe(tuple(TEXTS))] == [answer["tags"] for answer in answers]


def test_the_tags_are_those_of_the_models_own_logits(pipe):
    """Word by word: the first token of each, of the text as the tokenizer has it."""
    encoded = pipe.tokenizer(TEXTS, return_offsets_mapping=True, padding="longest")
    apply = jax.jit(lambda p, ids, mask: pipe.model.apply({"params": p}, ids, attention_mask=mask).logits)
    logits = np.asarray(apply(pipe.params, encoded.input_ids, encoded.attention_mask))
    for row, answer in enumerate(pipe(TEXTS)):
        starts = encoded.offset_mapping[row, :, 0].tolist()
        there = [i for i, (start, end) in enumerate(encoded.offset_mapping[row].tolist()) if start < end]
        first = [next(i for i in there if starts[i] == start) for start, _ in answer["offsets"]]
        assert answer["tags"] == [TAGS[i] for i in logits[row, first].argmax(-1)]


def test_words_that_are_split_already_are_given_as_such(pipe):
    words = TEXTS[0].split()
    one = pipe(words, is_split_into_words=True)
    assert len(one["tags"]) == 4
    assert "offsets" not in one
    assert pipe([words])[0]["tags"] == pipe([words], is_split_into_words=True)[0]["tags"] == one["tags"]
    assert pipe([tuple(words)])[0]["tags"] == one["tags"]
    assert pipe([]) == pipe([], is_split_into_words=True) == []


@pytest.mark.parametrize(
    ("inputs", "split", "message"),
    [
        (["a", ["b"]], False, "some inputs are texts and some are lists of words"),
        (["a", ["b"]], True, "some inputs are texts and some are lists of words"),
        ("a b", True, "is_split_into_words takes a list of words"),
        ([[]], False, "cannot read the input"),
        ([[1]], False, "cannot read the input"),
        (3, False, "cannot read the input"),
        ({"text": "a"}, False, "cannot read the input"),
        (None, False, "cannot read the input"),
        ([b"a"], False, "cannot read the input"),
    ],
)
def test_what_stays_ambiguous_is_refused(pipe, inputs, split, message):
    with pytest.raises(InputError, match=message):
        pipe(inputs, is_split_into_words=split)


def test_a_text_of_no_word_has_no_tags(pipe):
    assert pipe(["", "Anna"])[0] == {"tags": [], "scores": [], "offsets": [], "spans": []}


def test_long_texts_are_read_in_parts_and_counted(pipe, caplog):
    caplog.set_level("INFO")
    text = "ban tell " * 30
    answer = pipe(text)
    assert len(answer["tags"]) == 60
    assert "the input: 1 of 1 texts are longer than 16 tokens and were read in parts" in caplog.text


def test_predict_gives_spans_of_characters_of_a_file_of_texts(tagger, pipe, tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(TEXTS)))
    out = stdout_of(["predict", "--model", str(tagger), "--input", str(path), "--output", "-", "--max-length", "16"])
    answers = [json.loads(line) for line in out.splitlines()]
    for ours, theirs in zip(answers, pipe(TEXTS), strict=True):
        assert ours["tags"] == theirs["tags"]
        assert ours["spans"] == [pytest.approx(span, abs=1e-5) for span in theirs["spans"]]


def test_evaluate_by_characters(tagger, pipe, tmp_path):
    """F1 of the spans that predict gives, counted here."""
    gold = [[[0, 4, "PER"], [14, 18, "LOC"]], [[0, 3, "PER"], [14, 18, "LOC"]]]
    guess = [{(s["start"], s["end"], s["label"]) for s in answer["spans"]} for answer in pipe(TEXTS)]
    gold[0] += [list(span) for span in guess[0] if span[0] > 4 and span[1] < 14]  # so that some are right
    path = tmp_path / "gold.jsonl"
    rows = [{"text": text, "label": spans} for text, spans in zip(TEXTS, gold, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["evaluate", "--model", str(tagger), "--data", str(path), "--max-length", "16"]
    metrics = json.loads(stdout_of(command))
    truth = [set(map(tuple, spans)) for spans in gold]
    right = sum(len(a & b) for a, b in zip(truth, guess, strict=True))
    assert metrics["precision"] == pytest.approx(right / max(1, sum(map(len, guess))))
    assert metrics["recall"] == pytest.approx(right / sum(map(len, truth)))
