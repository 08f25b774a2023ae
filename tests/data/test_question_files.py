"""Questions about texts: one rule for "no answer", and answers that are where their text is."""

import json

import numpy as np
import pytest

from deberta_jax.data.questions import answer_lists, locate
from deberta_jax.errors import InputError
from deberta_jax.tasks import without_unlabelled
from deberta_jax.tasks.squad import squad_metrics
from tests.data.reading import read, recognised
from tests.made import make_tokenizer

CONTEXT = "Ada Lovelace \U0001f642 wrote notes in London in 1843. She knew Babbage."
LONDON = {"text": "London", "answer_start": 30}
OK = {"id": "1", "question": "Where?", "answers": [LONDON], "is_impossible": False}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def squad(*questions):
    paragraphs = [{"context": CONTEXT, "qas": list(questions)}]
    return json.dumps({"version": "v2.0", "data": [{"title": "t", "paragraphs": paragraphs}]})


def lines(*rows):
    return "".join(json.dumps({"context": CONTEXT, **row}) + "\n" for row in rows)


def answers(table, tokenizer):
    """Of each question the characters that it is taught, None for [CLS]; and the task."""
    options, task = recognised(table)
    assert options.task == "question-answering"
    features = task.features(table, tokenizer, 200, labelled=True)
    assert len(features) == len(table), "one window each"
    out = []
    for text, (first, last) in enumerate(features.labels.tolist()):
        at = features.starts[text]
        span = (int(features.offsets[at + first, 0]), int(features.offsets[at + last, 1]))
        out.append(None if (first, last) == (0, 0) else span)
    return out, task


NONE = {
    "ok": {"answers": [], "is_impossible": True, "plausible_answers": [{"text": "Babbage", "answer_start": 55}]},
    "empty_text": {"answers": [{"text": "", "answer_start": 0}], "is_impossible": True},
    "empty_text_alone": {"answers": [{"text": "", "answer_start": 0}]},
    "impossible_with_answer": {"answers": [{"text": "Babbage", "answer_start": 55}], "is_impossible": True},
    "null_answers": {"answers": None},
    "no_answers_field": {},
}


@pytest.mark.parametrize("case", NONE)
def test_no_answer(tmp_path, tokenizer, case):
    table = read(tmp_path, f"{case}.json", squad(OK, {"id": "2", "question": "Who?", **NONE[case]}))
    found, task = answers(table, tokenizer)
    assert found == [(30, 36), None]
    assert task.may_be_none
    assert task.describe().endswith("or none"), "the run says that questions may have no answer"
    truths = [answer_lists(table, "answers", row)[0] for row in range(2)]
    assert truths == [["London"], []]
    assert squad_metrics(["London", ""], truths)["no_answer_exact_match"] == 100.0


@pytest.mark.parametrize("start", ["30", 30.0, "30.0"])
def test_str_start(tmp_path, tokenizer, start):
    second = {"id": "2", "question": "Where?", "answers": [{"text": "London", "answer_start": start}]}
    found, task = answers(read(tmp_path, "str_start.json", squad(OK, second)), tokenizer)
    assert found == [(30, 36), (30, 36)]
    assert not task.may_be_none


def test_no_id(tmp_path, caplog):
    caplog.set_level("INFO")
    table = read(tmp_path, "no_id.json", squad({**OK, "id": None}, {"question": "Who?", "answers": []}, OK))
    assert table.columns["id"] == ["1", "2", "1"]
    assert "no_id.json: 2 questions have no id; theirs is their number" in caplog.text


def test_utf16(tmp_path, tokenizer, caplog):
    """A start that counts an emoji twice is found by its text; the nearest place counts."""
    second = {"id": "2", "question": "Where?", "answers": [{"text": "London", "answer_start": 31}]}
    found, _ = answers(read(tmp_path, "utf16.json", squad(OK, second)), tokenizer)
    assert found == [(30, 36), (30, 36)]
    assert "1 of 2 answers do not start where the file says" in caplog.text
    third = {"id": "3", "question": "Where?", "answers": [{"text": "Paris", "answer_start": 31}]}
    table = read(tmp_path, "bad.json", squad(OK, second, third))
    with pytest.raises(InputError, match=r"line 3: the answer 'Paris' is not in the context.*--skip-unlabelled"):
        answers(table, tokenizer)
    options, _ = recognised(table, skip_unlabelled=True)
    assert without_unlabelled(options, table).columns["id"] == ["1", "2"]


def test_the_nearest_place_and_javas_count():
    assert locate("a b a b a", "a", 3) in (2, 4)
    assert locate("a b a b a", "a", 5) == 4
    assert locate("a b a b a", "a", 99) == 8
    assert locate("a b", "c", 0) is None
    # JavaScript's count of the last x; the nearest x is another.
    text = "\U0001f642" * 6 + "x" * 3 + "y"
    units = len(text[:8].encode("utf-16-le")) // 2
    assert locate(text, "xy", units) == 8
    rng = np.random.default_rng(0)
    for _ in range(200):
        text = "".join(rng.choice(["x", "y", "\U0001f642"], 12))
        at = int(rng.integers(12))
        units = len(text[:at].encode("utf-16-le")) // 2
        found = locate(text, text[at:], units)
        assert found is not None
        assert text[found:].startswith(text[at:])


def test_answers_list(tmp_path, tokenizer):
    rows = [{"id": "1", "question": "Where?", "answers": [LONDON]}, {"id": "2", "question": "Who?", "answers": []}]
    assert answers(read(tmp_path, "answers_list.jsonl", lines(*rows)), tokenizer)[0] == [(30, 36), None]


def test_answer_string(tmp_path, tokenizer):
    rows = [
        {"question": "Where?", "answer": "London", "answer_start": 30},
        {"question": "Who?", "answer": "", "answer_start": None},
    ]
    table = read(tmp_path, "answer_string.jsonl", lines(*rows))
    assert answers(table, tokenizer)[0] == [(30, 36), None]
    csv = f'question,context,answer,answer_start\nWhere?,"{CONTEXT}",London,30.0\nWho?,"{CONTEXT}",,\n'
    assert answers(read(tmp_path, "answer_string.csv", csv), tokenizer)[0] == [(30, 36), None]


def test_hub(tmp_path, tokenizer):
    rows = [
        {"id": "1", "question": "Where?", "answers": {"text": ["London"], "answer_start": [30]}},
        {"id": "2", "question": "Who?", "answers": {"text": [], "answer_start": []}},
    ]
    assert answers(read(tmp_path, "hub.jsonl", lines(*rows)), tokenizer)[0] == [(30, 36), None]
    csv = "question,context,answers\nWhere?,\"{c}\",\"{{'text': ['London'], 'answer_start': [30]}}\"\n"
    assert answers(read(tmp_path, "hub.csv", csv.format(c=CONTEXT)), tokenizer)[0] == [(30, 36)]


@pytest.mark.parametrize(
    "value",
    [
        3,
        {"text": "a"},
        [{"text": "a"}],
        {"text": [1], "answer_start": [1]},
        {"text": ["a"], "answer_start": [-1]},
        {"text": ["a", "b"], "answer_start": [1]},
        "London",
    ],
)
def test_other_forms_are_named(tmp_path, tokenizer, value):
    table = read(
        tmp_path, "a.jsonl", lines({"question": "q", "answers": [LONDON]}, {"question": "q", "answers": value})
    )
    with pytest.raises(InputError, match=r"a\.jsonl, line 2: 'answers' is .*; it must be"):
        answers(table, tokenizer)


def test_is_impossible_is_true_or_false(tmp_path, tokenizer):
    for value, there in (("true", False), (1, False), ("False", True), (0.0, True), (None, True)):
        table = read(tmp_path, "a.jsonl", lines({"question": "q", "answers": [LONDON], "is_impossible": value}))
        assert (answers(table, tokenizer)[0] != [None]) == there
    table = read(tmp_path, "a.jsonl", lines({"question": "q", "answers": [LONDON], "is_impossible": "maybe"}))
    with pytest.raises(InputError, match="'is_impossible' is 'maybe'; it must be true or false"):
        answers(table, tokenizer)
