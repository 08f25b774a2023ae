"""Named entities by characters, as annotation tools write them, and words with tags as spreadsheets hold them."""

import json
import re

import numpy as np
import pytest

from deberta_jax.data.entities import word_starts
from deberta_jax.data.spans import spans_of
from deberta_jax.errors import InputError
from deberta_jax.text import load_tokenizer
from tests.data.annotations import (
    LONG,
    SPANS,
    TEXTS,
    doccano_entities,
    doccano_label,
    label_studio,
    label_studio_min,
    lines,
    prodigy,
)
from tests.data.reading import read, recognised
from tests.made import make_tokenizer

NAMES = ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.mark.parametrize("form", [doccano_label, doccano_entities, label_studio, label_studio_min, prodigy])
def test_character_spans(tmp_path, tokenizer, form):
    ending, content = form()
    table = read(tmp_path, f"{form.__name__}.{ending}", content)
    options, task = recognised(table)
    assert options.task == "token-classification"
    assert task.names == NAMES
    assert task.metric == "f1"
    assert "spans" in task.describe()
    features = task.features(table, tokenizer, 64, labelled=True)
    # A model that is certain of every tag gives the file's spans back, character by character.
    found = np.where(features.labels[:, None] == np.arange(len(NAMES)), 9.0, 0.0).astype(np.float32)
    answers = task.answers(found, features, table)
    assert [[(s["start"], s["end"], s["label"]) for s in a["spans"]] for a in answers] == SPANS
    for text, answer in zip(TEXTS, answers, strict=True):
        assert all(text[s["start"] : s["end"]] == s["text"] for s in answer["spans"])
        assert [text[a:b] for a, b in answer["offsets"]] == text.replace(".", " .").split()
    metrics = task.metrics(found, features, table)
    assert metrics["f1"] == metrics["accuracy"] == 1.0
    # One that misses two spans of seven, and finds nothing else.
    wrong = found.copy()
    wrong[features.labels == NAMES.index("B-LOC")] = [9, 0, 0, 0, 0]
    metrics = task.metrics(wrong, features, table)
    assert metrics["precision"] == 1.0
    assert metrics["recall"] == pytest.approx(4 / 7)


def test_long_texts_go_on_in_windows(tmp_path, tokenizer):
    text = "ban tell Anna Berg ko " * 9
    spans = [(i, i + 9, "PER") for i in range(len(text)) if text.startswith("Anna Berg", i)]
    table = read(tmp_path, "a.jsonl", lines([{"text": text, "label": spans}, {"text": "", "label": []}]))
    _, task = recognised(table)
    features = task.features(table, tokenizer, 12, labelled=True)
    assert features.cut == 1
    assert features.lengths.max() <= 12
    found = np.where(features.labels[:, None] == np.arange(3), 9.0, 0.0).astype(np.float32)
    first, second = task.answers(found, features, table)
    assert [(s["start"], s["end"], s["label"]) for s in first["spans"]] == spans
    assert second == {"tags": [], "scores": [], "offsets": [], "spans": []}


def test_spans_that_are_no_whole_words_are_counted(tmp_path, tokenizer, caplog):
    rows = [{"text": "Oslofjord is deep", "label": [[0, 4, "LOC"]]}, {"text": " Oslo ", "label": [[0, 6, "LOC"]]}]
    table = read(tmp_path, "a.jsonl", lines(rows))
    _, task = recognised(table)
    task.features(table, tokenizer, 32, labelled=True)
    assert "1 of 2 spans do not begin and end with a word" in caplog.text
    assert spans_of(table, "text", "label", 1)[0][0].start == 1, "blanks at the ends of a span are none of it"


def test_every_character_of_chinese_is_a_word():
    assert np.flatnonzero(word_starts("我在北京 ok你")).tolist() == [0, 1, 2, 3, 5, 7]
    assert np.flatnonzero(word_starts("don't (it_is 5)")).tolist() == [0, 3, 4, 6, 7, 13, 14]


BAD = [
    ({"text": "Anna", "label": [[0, 5, "PER"]]}, r"is not within the 4 characters of 'text'"),
    ({"text": "Anna", "label": [[2, 2, "PER"]]}, "is not within"),
    ({"text": "Anna", "label": [[-1, 2, "PER"]]}, "is not within"),
    ({"text": "Anna Berg", "label": [[0, 9, "PER"], [5, 9, "LOC"]]}, "spans 'Anna Berg' and 'Berg' overlap"),
    ({"text": "Anna", "label": None}, "'label' is missing; .*--skip-unlabelled"),
    ({"text": "Anna", "label": [{"start": 0, "end": 4, "label": None}]}, "needs one label"),
    ({"text": "Anna", "label": [{"start": 0, "end": 4, "labels": ["A", "B"]}]}, "needs one label"),
    ({"text": "Anna", "label": [{"start": 0, "end": 3, "text": "Bob", "label": "A"}]}, "the text of .* is not in"),
]


@pytest.mark.parametrize(("row", "message"), BAD)
def test_spans_that_cannot_be_used_are_named(tmp_path, tokenizer, row, message):
    table = read(tmp_path, "a.jsonl", lines([{"text": "Bob", "label": [[0, 3, "PER"]]}, row]))
    with pytest.raises(InputError, match=rf"a\.jsonl, line 2: .*{message}"):
        recognised(table, text=("text",), label="label", task="token-classification")
    _, task = recognised(table, text=("text",), label="label", task="token-classification", skip_unlabelled=True)
    assert task.names == ("O", "B-PER", "I-PER")


def test_never_lists_as_class_names(tmp_path):
    table = read(tmp_path, "a.jsonl", doccano_label()[1])
    with pytest.raises(InputError, match="a list of names of labels is needed"):
        recognised(table, task="text-classification")


def test_spans_counted_as_javascript_does_are_found_by_their_text(tmp_path, tokenizer, caplog):
    text = TEXTS[1]
    units = lambda at: len(text[:at].encode("utf-16-le")) // 2
    spans = [{"start": units(a), "end": units(b), "text": text[a:b], "labels": [label]} for a, b, label in SPANS[1]]
    table = read(tmp_path, "a.json", json.dumps([{"text": text, "label": spans}]))
    _, task = recognised(table)
    task.features(table, tokenizer, 32, labelled=True)
    assert [(s.start, s.end, s.label) for s in spans_of(table, "text", "label", 0)[0]] == SPANS[1]
    assert "1 spans are not where the file says" in caplog.text


def test_tasks_that_were_not_accepted_or_are_cancelled_have_no_label(tmp_path, caplog):
    caplog.set_level("INFO")
    rows = [
        {"text": "Bob", "spans": [{"start": 0, "end": 3, "label": "PER"}], "answer": answer}
        for answer in ("accept", "reject", "ignore")
    ]
    table = read(tmp_path, "a.jsonl", lines(rows))
    assert [value is None for value in table.columns["spans"]] == [False, True, True]
    assert "2 of 3 tasks were not accepted" in caplog.text
    value = {"start": 0, "end": 3, "labels": ["PER"]}
    task = {
        "data": {"article": "Bob", "n": 3},
        "annotations": [
            {"was_cancelled": True, "result": []},
            {"result": [{"to_name": "article", "value": value}]},
            {"result": []},
        ],
    }
    table = read(tmp_path, "b.json", json.dumps([task, {"data": {"article": "Eva"}, "annotations": []}]))
    assert table.columns["text"] == ["Bob", "Eva"]
    assert [len(spans) if spans is not None else None for spans in table.columns["spans"]] == [1, None]
    assert "1 tasks have several annotations" in caplog.text


def test_choices_of_label_studio_are_classes(tmp_path):
    tasks = [
        {"data": {"text": t}, "annotations": [{"result": [{"value": {"choices": [c]}}]}]}
        for t, c in zip("abcd", ["pos", "neg"] * 2, strict=True)
    ]
    _, task = recognised(read(tmp_path, "a.json", json.dumps(tasks)))
    assert task.spec.names == ("neg", "pos")


def test_long(tmp_path, caplog):
    """A word a line, the sentence's number at its first word."""
    caplog.set_level("INFO")
    table = read(tmp_path, "long.csv", LONG)
    assert table.columns["Word"] == [["Anna", "Berg", "a, b"], ["Bob", "null"]]
    assert table.lines == [2, 5]
    options, task = recognised(table)
    assert (options.task, options.text, options.label) == ("token-classification", ("Word",), "Tag")
    assert task.names == ("O", "B-per")
    assert "a word a row, in 2 sentences by the column 'Sentence #'" in caplog.text
    every = LONG.replace("\r\n,", "\r\nSentence: 1,", 2).replace("\r\n,", "\r\nSentence: 2,")
    for name in ("Sentence #", "sentence_id", "sent_id", "Sentence"):
        table = read(tmp_path, "every.csv", every.replace("Sentence #", name))
        assert table.columns["Word"] == [["Anna", "Berg", "a, b"], ["Bob", "null"]]
    assert len(read(tmp_path, "long.csv", LONG, task="text-classification")) == 5
    pairs = "sentence,word,label\nThe 1 cat sat,cat,pos\nThe 1 cat sat,sat,neg\n"
    assert read(tmp_path, "pairs.csv", pairs).columns["word"] == ["cat", "sat"], "sentences are no numbers of sentences"


def test_hub(tmp_path):
    """Lists written as text, as a csv of the hub's rows has them."""
    rows = ('0,"[\'Anna\', ""O\'Neil"", \'Oslo.\']","[1, 2, 0]"', "1,\"['Nobody' 'here.']\",[0 0]")
    content = "id,tokens,ner_tags\r\n" + "".join(f"{row}\r\n" for row in rows)
    table = read(tmp_path, "hub.csv", content)
    assert table.columns["tokens"] == [["Anna", "O'Neil", "Oslo."], ["Nobody", "here."]]
    options, task = recognised(table)
    assert (options.task, options.text, options.label) == ("token-classification", ("tokens",), "ner_tags")
    assert task.names == ("LABEL_0", "LABEL_1", "LABEL_2")
    with pytest.raises(InputError, match="has the tag 9999999999; tags are numbered from 0"):
        recognised(read(tmp_path, "many.csv", content.replace("2, 0", "2, 9999999999")))


@pytest.mark.parametrize("kind", ["deberta-v1", "deberta-v3"])
def test_words_of_the_released_tokenizers_are_the_texts(tmp_path, data_dir, kind):
    """Each word's characters begin where the word does, whatever pieces the tokenizer makes of it."""
    tokenizer = load_tokenizer(data_dir / "tokenizers" / kind)
    texts = [
        "Anna O'Neil-Berg (born 1980) unquestionably lives\nin  Oslo.",
        "\U0001f642 Zoë, naïve antidisestablishmentarianism!",
        "Er wohnt in Köln-Mülheim; das kostet 12,50 €.",
    ]
    table = read(tmp_path, "a.jsonl", lines([{"text": text, "label": [[0, 1, "X"]]} for text in texts]))
    _, task = recognised(table)
    features = task.features(table, tokenizer, 128, labelled=True)
    begins = features.words >= 0
    owner = np.repeat(features.row, features.lengths)
    for row, text in enumerate(texts):
        found = features.offsets[begins & (owner == row)].tolist()
        words = [[match.start(), match.end()] for match in re.finditer(r"\w+|[^\w\s]", text)]
        # A piece such as ")." may hold two marks; no word may be lost, begin elsewhere, or run into the next.
        assert {start for start, _ in found} <= {start for start, _ in words}
        assert [a for a, _ in found] == sorted({a for a, _ in found})
        letters = [word for word in words if text[word[0]].isalnum()]
        assert all(word in found for word in letters)
