"""Named tasks: GLUE's own layouts, the hub's copies, and the order of labels that DeBERTa's checkpoints have."""

import json

import pytest

from deberta_jax.errors import InputError
from deberta_jax.presets import PRESETS
from deberta_jax.tasks import TASK_KINDS
from deberta_jax.tasks.named import NAMED_TASKS, NLI, find_file, read_task


def written(directory, name, lines):
    (directory / name).parent.mkdir(parents=True, exist_ok=True)
    (directory / name).write_text("\n".join(lines) + "\n")
    return str(directory / name)


def jsonl(directory, name, *rows):
    return written(directory, name, [json.dumps(row) for row in rows])


GLUE = {
    "cola": (['src\t0\t*\tBad sentence "this.'], {"sentence": ['Bad sentence "this.'], "label": ["0"]}),
    "sst2": (["sentence\tlabel", "fine film\t1"], {"sentence": ["fine film"], "label": ["1"]}),
    "mrpc": (
        ["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", "1\t7\t8\tA a\tB b"],
        {"sentence1": ["A a"], "sentence2": ["B b"], "label": ["1"]},
    ),
    "stsb": (
        ["index\tgenre\tfilename\tyear\told\ts1\ts2\tsentence1\tsentence2\tscore", "0\tg\tf\ty\to\t-\t-\tA\tB\t3.5"],
        {"sentence1": ["A"], "sentence2": ["B"], "label": ["3.5"]},
    ),
    "qqp": (
        ["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "1\t2\t3\tA\tB\t0", "torn\tline", "4\t5\t6\tC\tD\t1"],
        {"question1": ["A", "C"], "question2": ["B", "D"], "label": ["0", "1"]},
    ),
    "mnli": (
        [
            "index\tpromptID\tpairID\tgenre\tp1\tp2\tp3\tp4\tsentence1\tsentence2\tlabel1\tgold_label",
            "0\t1\t2\tg\t\t\t\t\tA\tB\tneutral\tentailment",
        ],
        {"premise": ["A"], "hypothesis": ["B"], "label": ["entailment"]},
    ),
    "qnli": (
        ["index\tquestion\tsentence\tlabel", "0\tQ?\tS.\tnot_entailment"],
        {"sentence": ["S."], "question": ["Q?"], "label": ["not_entailment"]},
    ),
    "rte": (
        ["index\tsentence1\tsentence2\tlabel", "0\tA\tB\tentailment"],
        {"sentence1": ["A"], "sentence2": ["B"], "label": ["entailment"]},
    ),
}


@pytest.mark.parametrize("task", GLUE)
def test_glues_files(tmp_path, task):
    lines, expected = GLUE[task]
    written(tmp_path, "dev_matched.tsv" if task == "mnli" else "dev.tsv", lines)
    table = read_task(task, [find_file(task, str(tmp_path), "dev")])
    assert {name: table.columns[name] for name in expected} == expected
    with pytest.raises(InputError, match=f"no file train of {task} there"):
        find_file(task, str(tmp_path), "train")


# The files to be labelled: other columns, and no label.
GLUE_TESTS = {
    "cola": (["sentence"], {"sentence": "A"}),
    "sst2": (["sentence"], {"sentence": "A"}),
    "mrpc": (["#1 ID", "#2 ID", "#1 String", "#2 String"], {"sentence1": "C", "sentence2": "D"}),
    "stsb": (
        ["genre", "filename", "year", "old_index", "source1", "source2", "sentence1", "sentence2"],
        {"sentence1": "G", "sentence2": "H"},
    ),
    "qqp": (["question1", "question2"], {"question1": "A", "question2": "B"}),
    "mnli": (
        ["promptID", "pairID", "genre", "b1", "b2", "p1", "p2", "sentence1", "sentence2"],
        {"premise": "H", "hypothesis": "I"},
    ),
    "qnli": (["question", "sentence"], {"question": "A", "sentence": "B"}),
    "rte": (["sentence1", "sentence2"], {"sentence1": "A", "sentence2": "B"}),
    "wnli": (["sentence1", "sentence2"], {"sentence1": "A", "sentence2": "B"}),
    "ax": (["sentence1", "sentence2"], {"premise": "A", "hypothesis": "B"}),
}


@pytest.mark.parametrize("task", GLUE_TESTS)
def test_glues_files_without_labels(tmp_path, task):
    columns, expected = GLUE_TESTS[task]
    lines = ["\t".join(["index", *columns]), "\t".join(["0", *"ABCDEFGHI"[: len(columns)]])]
    table = read_task(task, [written(tmp_path, "test.tsv", lines)])
    assert {name: table.texts(name) for name in expected} == {name: [text] for name, text in expected.items()}
    assert NAMED_TASKS[task].label not in table.columns
    with pytest.raises(InputError, match="line 3: 1 fields where the header names"):
        read_task(task, [written(tmp_path, "test.tsv", [*lines, "torn"])])


def test_the_diagnostic_set_with_its_labels(tmp_path):
    header = "Lexical Semantics\tPredicate-Argument Structure\tLogic\tKnowledge\tDomain\tPremise\tHypothesis\tLabel"
    lines = [header, "\tDatives\tNegation\t\tNews\tA\tB\tneutral"]
    path = written(tmp_path, "diagnostic-full.tsv", lines)
    written(tmp_path, "diagnostic.tsv", ["index\tsentence1\tsentence2", "0\tA\tB"])
    table = read_task("ax", [find_file("ax", str(tmp_path), "dev")])
    assert [table.columns[name] for name in ("premise", "hypothesis", "label")] == [["A"], ["B"], ["neutral"]]
    written(tmp_path, "diagnostic-full.tsv", ["Logic\tDomain\tLabel", "A\tB\tneutral"])
    with pytest.raises(InputError, match="no column 'premise'; its columns are 'Logic', 'Domain', 'label'"):
        read_task("ax", [path]).texts("premise")


def test_any_character_but_tab_and_line_feed_may_be_in_a_tsv(tmp_path):
    long = "x" * 200_000
    (tmp_path / "train.tsv").write_bytes(f"src\t1\t\ta\rb\r\nsrc\t0\t*\t{long}\n".encode())
    assert read_task("cola", [str(tmp_path / "train.tsv")]).columns["sentence"] == ["a\rb", long]
    (tmp_path / "dev.tsv").write_bytes("sentence\tlabel\n\xe9t\xe9\t1\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"dev\.tsv: not UTF-8 at byte 15"):
        read_task("sst2", [str(tmp_path / "dev.tsv")])


@pytest.mark.parametrize(
    ("task", "number", "name"),
    [
        ("mnli", 0, "entailment"),
        ("mnli", 2, "contradiction"),
        ("rte", 0, "entailment"),
        ("cb", 1, "contradiction"),
        ("boolq", True, "true"),
        ("boolq", 0, "false"),
        ("anli", 1, "neutral"),
    ],
)
def test_the_hubs_numbers_become_names(tmp_path, task, number, name):
    """The hub counts entailment first; DeBERTa's checkpoints do not."""
    row = dict.fromkeys(NAMED_TASKS[task].text, "x") | {"label": number}
    table = read_task(task, [jsonl(tmp_path, "validation.jsonl", row)])
    assert table.columns["label"] == [name]
    assert name in NAMED_TASKS[task].names


def test_labels_stand_in_the_order_of_the_released_checkpoints():
    assert tuple(label.lower() for label in PRESETS["deberta-large-mnli"].id2label) == NLI
    assert NAMED_TASKS["rte"].names == NAMED_TASKS["qnli"].names == ("not_entailment", "entailment")
    assert NAMED_TASKS["conll2003"].names[:3] == ("O", "B-MISC", "I-MISC")
    assert all(task.kind in TASK_KINDS for task in NAMED_TASKS.values())


def test_super_glue(tmp_path):
    copa = {"premise": "P", "choice1": "A", "choice2": "B"}
    path = jsonl(
        tmp_path, "copa.jsonl", copa | {"question": "cause", "label": 1}, copa | {"question": "effect", "label": 0}
    )
    table = read_task("copa", [path])
    assert table.columns["first"] == [["A", "B"], ["P", "P"]]
    assert table.columns["second"] == [["P", "P"], ["A", "B"]]

    multirc = {
        "idx": 3,
        "passage": {
            "text": "T",
            "questions": [
                {"idx": 0, "question": "Q?", "answers": [{"text": "a", "label": 1}, {"text": "b", "label": 0}]}
            ],
        },
    }
    table = read_task("multirc", [jsonl(tmp_path, "multirc.jsonl", multirc)])
    assert table.columns == {
        "paragraph": ["T", "T"],
        "answer": ["Q? a", "Q? b"],
        "group": ["3/0", "3/0"],
        "label": [1, 0],
    }

    record = {
        "passage": {"text": "Ann met Bo.", "entities": [{"start": 0, "end": 2}, {"start": 8, "end": 9}]},
        "qas": [{"query": "@placeholder was met", "answers": [{"text": "Bo"}]}],
    }
    table = read_task("record", [jsonl(tmp_path, "record.jsonl", record)])
    assert table.columns["queries"] == [["Ann was met", "Bo was met"]]
    assert table.columns["label"] == [1]
    assert table.columns["gold"] == [["Bo"]]

    wsc = {"text": "Ann saw her.", "target": {"span1_text": "Ann", "span2_text": "her"}, "label": False}
    table = read_task("wsc", [jsonl(tmp_path, "wsc.jsonl", wsc)])
    assert table.columns["claim"] == ["her refers to Ann"]
    assert table.columns["label"] == ["false"]


_ARC = {"stem": "S", "choices": [{"text": "a", "label": "A"}, {"text": "b", "label": "B"}]}
_COPA = {"premise": "P", "choice1": "a", "choice2": "b", "question": "why", "label": 0}
BAD_ROWS = [
    ("record", {"query": "@placeholder?"}, "'passage' is missing"),
    ("record", {"passage": {"text": "T", "entities": [{"start": 0}]}, "qas": []}, "'end' is missing"),
    ("multirc", {"idx": 0, "passage": "T"}, "string indices"),
    (
        "multirc",
        {"idx": 0, "passage": {"text": 3, "questions": [{"idx": 0, "question": "Q", "answers": [{}]}]}},
        "'text' is 3; a text is needed",
    ),
    ("wsc", {"text": "T", "target": {}}, "'span2_text' is missing"),
    ("arc", {"question": _ARC, "answerKey": "Z"}, r"'answerKey' is 'Z'; it must be one of \['A', 'B'\]"),
    ("anli", {"context": "C", "hypothesis": "H", "label": ["e"]}, "unhashable"),
    ("copa", _COPA, "'question' is 'why'; it must be 'cause' or 'effect'"),
    ("wic", {"word": None, "sentence1": "S", "sentence2": "S"}, "'word' is None"),
]


@pytest.mark.parametrize(("task", "row", "message"), BAD_ROWS)
def test_a_row_that_is_none_of_the_tasks_is_named(tmp_path, task, row, message):
    path = jsonl(tmp_path, "bad.jsonl", row)
    with pytest.raises(InputError, match=rf"bad\.jsonl, line 1: not as {task} has it \(.*{message}"):
        read_task(task, [path])


def test_rows_without_an_answer_have_no_label(tmp_path):
    """None, which no evaluation takes for a label."""
    passage = {"text": "Ann met Bo.", "entities": [{"start": 0, "end": 2}, {"start": 8, "end": 9}]}
    rows = {
        "arc": {"question": _ARC},
        "record": {"passage": passage, "qas": [{"query": "@placeholder?"}]},
        "multirc": {
            "idx": 0,
            "passage": {"text": "T", "questions": [{"idx": 0, "question": "Q?", "answers": [{"text": "a"}]}]},
        },
    }
    for task, row in rows.items():
        assert read_task(task, [jsonl(tmp_path, "test.jsonl", row)]).columns["label"] == [None], task
    xnli = {"sentence1": "A", "sentence2": "B", "gold_label": "contradictory"}
    table = read_task("xnli", [jsonl(tmp_path, "xnli.dev.jsonl", xnli)])
    assert [table.columns[name] for name in ("premise", "hypothesis", "label")] == [["A"], ["B"], ["contradiction"]]
    del xnli["gold_label"]
    assert "label" not in read_task("xnli", [jsonl(tmp_path, "xnli.dev.jsonl", xnli)]).columns


def test_other_sources(tmp_path):
    anli = {"context": "C", "hypothesis": "H", "label": "e"}
    jsonl(tmp_path, "R1/train.jsonl", anli)
    jsonl(tmp_path, "R3/train.jsonl", anli | {"label": "n"})
    table = read_task("anli", [str(tmp_path / "R1/train.jsonl"), str(tmp_path / "R3/train.jsonl")])
    assert table.columns["label"] == ["entailment", "neutral"]
    assert table.columns["premise"] == ["C", "C"]

    arc = {
        "question": {"stem": "S", "choices": [{"text": "a", "label": "1"}, {"text": "b", "label": "2"}]},
        "answerKey": "2",
    }
    table = read_task("arc", [jsonl(tmp_path, "ARC-Easy-Dev.jsonl", arc)])
    assert (table.columns["choices"], table.columns["label"]) == ([["a", "b"]], [1])
    assert find_file("arc", str(tmp_path), "dev").endswith("*-Dev.jsonl")

    written(tmp_path, "train.txt", ["-DOCSTART- -X- -X- O", "", "EU NNP B-NP B-ORG", "rejects VBZ B-VP O"])
    table = read_task("conll2003", [find_file("conll2003", str(tmp_path), "train")])
    assert table.columns["tags"] == [["B-ORG", "O"]]
    hub = jsonl(tmp_path, "ner.jsonl", {"tokens": ["EU", "x"], "ner_tags": [3, 0]})
    assert read_task("conll2003", [hub]).columns["tags"] == [["B-ORG", "O"]]
    assert read_task("wnut17", [hub]).columns["tags"] == [["B-creative-work", "O"]]


def test_the_archive_of_race_is_json_in_txt(tmp_path):
    article = {
        "article": "T",
        "questions": ["Q?", "R _ ."],
        "options": [list("abcd"), list("efgh")],
        "answers": ["B", "D"],
        "id": "high1.txt",
    }
    for name in ("train/high/1.txt", "train/middle/2.txt", "dev/high/3.txt"):
        written(tmp_path, name, [json.dumps(article)])
    table = read_task("race", [find_file("race", str(tmp_path), "train")])
    assert table.columns == {
        "article": ["T"] * 4,
        "question": ["Q?", "R _ ."] * 2,
        "options": [list("abcd"), list("efgh")] * 2,
        "answer": ["B", "D"] * 2,
    }
    assert table.where(3) == f"{tmp_path}/train/middle/2.txt, line 1"
    bad = written(tmp_path, "bad.txt", [json.dumps(article | {"answers": ["B"]})])
    with pytest.raises(InputError, match=r"bad\.txt, line 1: not as race has it \(zip\(\) argument 3 is shorter"):
        read_task("race", [bad])
    with pytest.raises(InputError, match=r"bad\.txt: not JSON"):
        read_task("race", [written(tmp_path, "bad.txt", ["EU B-ORG"])])
    with pytest.raises(InputError, match=r"ending '\.txt' is not known"):
        read_task("swag", [bad])


def test_real_files(data_dir):
    cola = read_task("cola", [str(data_dir / "classification" / "cola" / "train.tsv")])
    assert len(cola) == 8551
    assert set(cola.columns["label"]) == {"0", "1"}
    assert len(read_task("sst2", [str(data_dir / "classification" / "sst2" / "dev.tsv")])) == 872
    wnut = read_task("wnut17", [str(data_dir / "ner" / "wnut17" / "train.conll")])
    assert len(wnut) == 3394
    assert {tag for tags in wnut.columns["tags"] for tag in tags} <= set(NAMED_TASKS["wnut17"].names)
    xquad = read_task("squad", [str(data_dir / "qa" / "xquad_en_train.json")])
    assert len(xquad) == 725
