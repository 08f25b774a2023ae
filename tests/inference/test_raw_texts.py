"""Tagging raw texts and words: what counts as one text, what is given back, what is said of long ones."""

import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest

import deberta_jax
from deberta_jax import DebertaForTokenClassification, InputError
from tests.made import TINY, make_tokenizer, saved_model, stdout_of

TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
TEXTS = ["Anna lives in Oslo", "Bob sleeps in Rome"]
# Words of the tokenizer's vocabulary, and some of several pieces, the first of which begins with the blank.
MADE = ["banst kost tell ban", "tell banrirk kost"]


@pytest.fixture(scope="module")
def tagger(tmp_path_factory):
    home = tmp_path_factory.mktemp("tagger")
    config = dataclasses.replace(TINY, num_hidden_layers=1, id2label=TAGS)
    saved_model(home / "model", DebertaForTokenClassification(config), make_tokenizer(home / "tokenizer"), seed=5)
    return home / "model"


@pytest.fixture(scope="module")
def pipe(tagger):
    return deberta_jax.pipeline("token-classification", tagger, max_length=16, batch_size=8)


@pytest.fixture(scope="module")
def tokens_of(pipe):
    """Returns the tokens of a text by the model's own logits: (label, probability, first and last character)."""
    apply = jax.jit(lambda p, ids: pipe.model.apply({"params": p}, ids).logits)

    def tokens(text):
        encoded = pipe.tokenizer(text, return_offsets_mapping=True)
        logits = np.asarray(apply(pipe.params, encoded.input_ids))[0].astype(np.float64)
        shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        spans = encoded.offset_mapping[0].tolist()
        return [(TAGS[p.argmax()], p.max(), *span) for p, span in zip(shares, spans, strict=True)][1:-1]

    return tokens


def test_a_list_of_strings_is_a_list_of_texts(pipe, tokens_of):
    """As in transformers' pipeline: never one sentence of as many words. ``start`` includes the blank before a word."""
    answers = pipe(MADE, ignore_labels=[])
    for text, answer in zip(MADE, answers, strict=True):
        expected = tokens_of(text)
        assert [list(token) for token in answer] == [["entity", "score", "index", "word", "start", "end"]] * len(answer)
        assert [(t["entity"], t["end"]) for t in answer] == [(label, end) for label, _, _, end in expected]
        assert [text[t["start"] : t["end"]].strip() for t in answer] == [text[i:j] for _, _, i, j in expected]
        assert [t["start"] for t in answer] == [i - (text[i - 1 : i] == " ") for _, _, i, _ in expected]
        np.testing.assert_allclose([t["score"] for t in answer], [p for _, p, _, _ in expected], atol=1e-5)
        assert [t["index"] for t in answer] == list(range(1, len(answer) + 1))
    kept = [[t for t in answer if t["entity"] != "O"] for answer in answers]
    assert pipe(MADE) == [[pytest.approx(t) for t in answer] for answer in kept], "O is left out by default"
    assert pipe(tuple(MADE)) == pipe(MADE)
    assert list(pipe(text for text in MADE)) == pipe(MADE)
    assert pipe(MADE[0]) == [pytest.approx(t, abs=1e-5) for t in kept[0]]


def test_a_word_has_the_label_of_its_first_or_best_token_or_of_the_mean(pipe, tokens_of):
    text = MADE[0]
    words = [
        [t for t in tokens_of(text) if start <= t[2] < end] for start, end in ((0, 5), (6, 10), (11, 15), (16, 19))
    ]
    assert any(len(word) > 1 for word in words)
    for strategy, choose in (("first", lambda word: word[0]), ("max", lambda word: max(word, key=lambda t: t[1]))):
        chosen = [choose(word) for word in words]
        found = pipe(text, aggregation_strategy=strategy, ignore_labels=[])
        ends = {entity["end"]: entity for entity in found}
        for (label, _, _, _), word in zip(chosen, words, strict=True):
            entity = next(ends[end] for end in sorted(ends) if end >= word[-1][3])
            assert entity["entity_group"] == label.split("-")[-1]
            assert list(entity) == ["entity_group", "score", "word", "start", "end"]
            assert entity["word"] == text[entity["start"] : entity["end"]].strip()


def test_words_that_are_split_already_are_given_as_such(pipe):
    words = MADE[0].split()
    one = pipe(words, is_split_into_words=True, ignore_labels=[])
    assert len(one) == 1, "as in transformers, a list with one answer"
    text = " ".join(words)
    assert [text[t["start"] : t["end"]] for t in one[0]] == [t["word"].lstrip("▁") for t in one[0]]
    assert pipe([words], is_split_into_words=True, ignore_labels=[]) == one
    joined = pipe(words, is_split_into_words=True, ignore_labels=[], delimiter="--")[0]
    assert [t["start"] for t in joined if t["word"].startswith("▁")] == [0, 7, 13, 19]
    assert pipe([]) == pipe([], is_split_into_words=True) == []


@pytest.mark.parametrize(
    ("inputs", "split", "message"),
    [
        (["a", ["b"]], False, r"^inputs\[1\]: is a list; .*is_split_into_words=True"),
        (["a", ["b"]], True, r"^inputs\[0\]: cannot read 'a'"),
        ("a b", True, "^the input: cannot read 'a b'; with is_split_into_words"),
        ([[]], True, r"^inputs\[0\]: cannot read"),
        ([[1]], True, r"^inputs\[0\]: cannot read"),
        ([["a"]], False, r"^inputs\[0\]: is a list"),
        (3, False, "^the input: cannot read 3"),
        ({"text": "a"}, False, "^the input: cannot read"),
        (None, False, "^the input: cannot read None"),
        (["a", float("nan")], False, r"^inputs\[1\]: cannot read nan"),
        ([b"a"], False, r"^inputs\[0\]: cannot read"),
    ],
)
def test_what_stays_ambiguous_is_refused(pipe, inputs, split, message):
    with pytest.raises(InputError, match=message):
        pipe(inputs, is_split_into_words=split)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"aggregation_strategy": "firsd"}, "did you mean 'first'"),
        ({"stride": 14, "aggregation_strategy": "simple"}, "stride=14: must be below 14"),
        ({"stride": 2, "aggregation_strategy": "none"}, "other than 'none'"),
        ({"stride": -1, "aggregation_strategy": "first"}, "stride=-1"),
        ({"ignore_labels": "O"}, "ignore_labels"),
        ({"grouped_entities": True}, "aggregation_strategy='simple'"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_arguments_that_cannot_be(pipe, options, message):
    with pytest.raises(InputError, match=message):
        pipe(TEXTS, **options)


def test_a_text_of_no_word_has_no_tags(pipe):
    assert pipe(["", "Anna"])[0] == []


def test_long_texts_are_cut_unless_there_is_a_stride(pipe, caplog):
    caplog.set_level("INFO")
    text = "ban tell " * 30
    options = {"ignore_labels": [], "aggregation_strategy": "simple"}
    assert pipe(text, **options)[-1]["end"] < 100
    assert "the input: 1 of 1 texts are longer than 16 tokens and were cut" in caplog.text
    whole = pipe(text, stride=4, **options)
    assert whole[-1]["end"] == len(text.rstrip())
    assert all(a["end"] <= b["start"] for a, b in itertools.pairwise(whole)), "no two overlap"
    assert "the input: 1 of 1 texts are longer than 16 tokens and were read in parts" in caplog.text


def spans_of(tagger, tmp_path, texts):
    """Returns what predict gives for texts."""
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts)))
    out = stdout_of(["predict", "--model", str(tagger), "--input", str(path), "--output", "-", "--max-length", "16"])
    return [json.loads(line) for line in out.splitlines()]


def test_predict_gives_spans_of_characters_of_a_file_of_texts(tagger, pipe, tokens_of, tmp_path):
    """The label of each word is that of its first token, and its spans are what the pipeline groups."""
    for text, answer in zip(MADE, spans_of(tagger, tmp_path, MADE), strict=True):
        starts = [0, *(i + 1 for i, character in enumerate(text) if character == " ")]
        first = [next(t for t in tokens_of(text) if t[3] > start) for start in starts]
        assert answer["tags"] == [label for label, _, _, _ in first]
        assert [text[i:j] for i, j in answer["offsets"]] == text.split()
        found = pipe(text, aggregation_strategy="first")
        named = [(e["entity_group"], e["end"], e["word"]) for e in found]
        assert named == [(s["label"], s["end"], s["text"]) for s in answer["spans"]]
        assert [e["score"] for e in found] == pytest.approx([s["score"] for s in answer["spans"]], abs=1e-5)


def test_evaluate_by_characters(tagger, tmp_path):
    """F1 of the spans that predict gives, counted here."""
    gold = [[[0, 4, "PER"], [14, 18, "LOC"]], [[0, 3, "PER"], [14, 18, "LOC"]]]
    guess = [{(s["start"], s["end"], s["label"]) for s in a["spans"]} for a in spans_of(tagger, tmp_path, TEXTS)]
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
