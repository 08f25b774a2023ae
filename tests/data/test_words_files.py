"""Files of a word a line: what is a word, what separates columns, what is a comment."""

import pytest

from deberta_jax.errors import InputError
from tests.data.reading import read, recognised
from tests.made import make_tokenizer

HEADER = "# id 7f3a-11\tdomain=train\n"


def test_comment_id(tmp_path, caplog):
    """Comments may have tabs where words have none."""
    caplog.set_level("INFO")
    conll = HEADER + "anna _ _ B-PER\nlives _ _ O\nin _ _ O\noslo _ _ B-LOC\n\n" + HEADER + "bob _ _ B-PER\n"
    table = read(tmp_path, "comment_id.conll", conll)
    assert table.columns["tokens"] == [["anna", "lives", "in", "oslo"], ["bob"]]
    assert table.columns["tags"] == [["B-PER", "O", "O", "B-LOC"], ["B-PER"]]
    assert table.lines == [2, 8]
    assert "2 lines that begin with # are comments" in caplog.text
    options, task = recognised(table)
    assert options.task == "token-classification"
    assert task.metric == "f1"
    assert set(task.names) == {"O", "B-PER", "B-LOC"}


def test_hash_token(tmp_path):
    assert read(tmp_path, "hash_token.conll", "We O\nare O\n# O\n1 O\n").columns == {
        "tokens": [["We", "are", "#", "1"]],
        "tags": [["O", "O", "O", "O"]],
    }
    first = read(tmp_path, "first.conll", "# O\n1 O\n\n# one comment\n# O\n# B-X\na B-X\n")
    assert first.columns["tokens"] == [["#", "1"], ["#", "#", "a"]], (
        "a # with a known tag and as many columns is a word"
    )


def test_space_in_word(tmp_path):
    table = read(tmp_path, "space_in_word.conll", "Anna\tB-PER\nvisited\tO\nNew York\tB-LOC\n.\tO\n\nLa Paz\tB-LOC\n")
    assert table.columns["tokens"] == [["Anna", "visited", "New York", "."], ["La Paz"]]
    assert table.columns["tags"] == [["B-PER", "O", "B-LOC", "O"], ["B-LOC"]]


@pytest.mark.parametrize("blank", ["\u00a0", "\u3000", "\u2009", "\x85", "\u2028"])
def test_white_space_that_is_no_ascii_blank_belongs_to_the_word(tmp_path, blank):
    table = read(tmp_path, "a.conll", f"New{blank}York  B-LOC\n{blank} O\n")
    assert table.columns == {"tokens": [[f"New{blank}York", blank]], "tags": [["B-LOC", "O"]]}


def test_empty_word(tmp_path, tmp_path_factory):
    table = read(tmp_path, "empty_word.conll", "Anna\tB-PER\n\tO\nsleeps\tO\n")
    assert table.columns["tokens"] == [["Anna", "", "sleeps"]]
    _, task = recognised(table)
    tokenizer = make_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    features = task.features(table, tokenizer, 32, labelled=True)
    begins = features.words >= 0
    assert features.words[begins].tolist() == [0, 1, 2]
    assert features.ids[begins][1] == tokenizer.unk_id
    assert [task.names[i] for i in features.labels[begins]] == ["B-PER", "O", "O"]


def test_docstart(tmp_path):
    table = read(tmp_path, "docstart.conll", "-DOCSTART- -X- -X- O\n\nAnna NNP B-NP B-PER\nsleeps VB B-VP O\n")
    assert table.columns == {"tokens": [["Anna", "sleeps"]], "tags": [["B-PER", "O"]]}
    assert read(tmp_path, "word.conll", "-DOCSTART-s O\n").columns["tokens"] == [["-DOCSTART-s"]]


def test_crlf(tmp_path):
    expected = {"tokens": [["Anna", "sleeps"], ["Bob"]], "tags": [["B-PER", "O"], ["B-PER"]]}
    text = "Anna B-PER\nsleeps O\n\nBob B-PER\n\n"
    for end in ("\r\n", "\r"):
        assert read(tmp_path, "crlf.conll", text.replace("\n", end)).columns == expected


@pytest.mark.parametrize("ending", ["conll", "bio", "iob", "iob2", "txt"])
def test_readable_by_their_names(tmp_path, ending):
    table = read(tmp_path, f"a.{ending}", "Anna B-PER\n", task="token-classification")
    assert table.columns == {"tokens": [["Anna"]], "tags": [["B-PER"]]}
    conllu = "1\tAnna\tAnna\tPROPN\t_\t_\t0\troot\t_\t_\n"
    assert read(tmp_path, "a.conllu", conllu, task="token-classification").columns["upos"] == [["PROPN"]]
    with pytest.raises(InputError, match=r"ending '\.txt' is not known; .*\.txt with --task token-classification"):
        read(tmp_path, "a.txt", "Anna B-PER\n")


def test_a_column_that_numbers_the_words_is_no_word(tmp_path, caplog):
    caplog.set_level("INFO")
    table = read(tmp_path, "germeval.bio", "#\tsource\n1\tAnna\tB-PER\n2\tschläft\tO\n\n1\tBob\tB-PER\n")
    assert table.columns == {"tokens": [["Anna", "schläft"], ["Bob"]], "tags": [["B-PER", "O"], ["B-PER"]]}
    assert "the first column numbers the words" in caplog.text


def test_words_are_not_cut(tmp_path):
    """A blank in a word makes more columns than other lines have."""
    with pytest.raises(InputError, match="line 3: 3 columns where other lines have 2; separate columns by tabs"):
        read(tmp_path, "a.conll", "Anna B-PER\nin O\nNew York B-LOC\n")
    with pytest.raises(InputError, match=r"line \d: .* (columns where|has no tag)"):
        read(tmp_path, "a.txt", "Anna lives in Oslo.\nBob sleeps.\nEva\n", task="token-classification")


def test_words_without_tags_are_words_to_predict(tmp_path):
    assert read(tmp_path, "a.conll", "Anna\nsleeps\n\nBob\n").columns == {"tokens": [["Anna", "sleeps"], ["Bob"]]}
