"""Character offsets: what they promise, on random Unicode, on real answers and on real word labels."""

from __future__ import annotations

import json

import numpy as np
import pytest
import sentencepiece

from deberta_jax.text import load_tokenizer
from deberta_jax.text.bpe import BYTES


def assert_spans_in_order(text, spans):
    """Starts are monotone, spans never overlap, none begins with a space."""
    starts, ends = spans[:, 0], spans[:, 1]
    assert (starts <= ends).all(), repr(text)
    assert (ends[:-1] <= starts[1:]).all(), repr(text)
    assert not len(ends) or 0 <= starts[0] <= ends[-1] <= len(text)
    assert not any(text[i:j][:1] == " " for i, j in spans.tolist()), repr(text)


def test_v3_spans_are_what_the_pieces_stand_for(v3, v3_dir, unicode_lines):
    """Normalising the characters of the spans one after the other spells the pieces one after the other.

    A span may give more than its own piece only where one character makes several pieces: then the rest spells the
    pieces that follow, whose spans are empty or begin later.
    """
    own = sentencepiece.SentencePieceProcessor(model_file=str(v3_dir / "spm.model"))

    def normal(text):
        return own.normalize(text).replace("▁", "").encode()

    lines = unicode_lines(10_000, seed=3)
    enc = v3(lines, add_special_tokens=False, return_offsets_mapping=True)
    seen_shared = 0
    for text, ids, spans in zip(lines, enc.input_ids, enc.offset_mapping, strict=True):
        assert_spans_in_order(text, spans)
        ahead = b""
        for index, (start, end) in zip(ids.tolist(), spans.tolist(), strict=True):
            piece = own.id_to_piece(index)
            surface = bytes([int(piece[1:-1], 16)]) if own.is_byte(index) else piece.replace("▁", "").encode()
            if start < end:
                assert normal(text[start]), f"{text!r} {piece!r} begins with a character that is no part of a piece"
                last = len(normal(text[end - 1])) or 1
                ahead += normal(text[start:end])
                assert len(ahead) - len(surface) < max(last, 18 * 3), repr(text)
            assert ahead.startswith(surface), f"{text!r} {piece!r}"
            ahead = ahead[len(surface) :]
            seen_shared += bool(ahead)
        assert not ahead, repr(text)
    assert seen_shared > 1000


def test_v3_a_piece_alone_reencodes_to_itself(v3, text_lines):
    """The words of plain text: the span of a word's only piece, encoded again, is that piece."""
    lines = [line for line in text_lines[::200] if line.isascii()]
    enc = v3(lines, return_offsets_mapping=True, add_special_tokens=False)
    checked = 0
    for text, ids, spans in zip(lines, enc.input_ids, enc.offset_mapping, strict=True):
        for index, (start, end) in zip(ids.tolist(), spans.tolist(), strict=True):
            if v3.id_to_token(index).startswith("▁") and start < end:
                again = v3(text[start:end], add_special_tokens=False).input_ids[0].tolist()
                assert v3.decode(again) == v3.decode([index]) == text[start:end]
                checked += again == [index]
    assert checked > 1000


def test_v1_spans_are_what_the_pieces_stand_for(v1, unicode_lines):
    """A character belongs to the piece that holds its first byte; white space belongs to none at its head."""
    lines = unicode_lines(5_000, seed=4)
    enc = v1(lines, add_special_tokens=False, return_offsets_mapping=True)
    for text, ids, spans in zip(lines, enc.input_ids, enc.offset_mapping, strict=True):
        assert_spans_in_order(text, spans)
        first_byte = [len(text[:i].encode()) for i in range(len(text) + 1)]
        position = 0
        for index, (start, end) in zip(ids.tolist(), spans.tolist(), strict=True):
            size = len([BYTES[character] for character in v1.id_to_token(index)])
            mine = [i for i in range(len(text)) if position <= first_byte[i] < position + size]
            while mine and text[mine[0]].isspace():
                mine.pop(0)
            assert (list(range(start, end)) or []) == mine, repr(text)
            position += size
        assert position == first_byte[-1]


@pytest.mark.parametrize(
    ("text", "version", "expected"),
    [
        ("  Ｈello\u200bworld", "v3", ["Ｈello", "world"]),
        ("a…b", "v3", ["a", "…", "", "", "b"]),
        ("𓀀", "v3", ["", "𓀀", "", "", ""]),
        ("see [MASK]  now", "v3", ["see", "[MASK]", "now"]),
        ("see [MASK]  now", "v1", ["see", "[MASK]", "", "now"]),
        ("A 🤗", "v1", ["A", "🤗", "", ""]),
        ("one\n\ntwo", "v1", ["one", "", "", "two"]),
    ],
)
def test_by_hand(text, version, expected, released):
    spans = released[version](text, return_offsets_mapping=True, add_special_tokens=False).offset_mapping[0]
    assert [text[i:j] for i, j in spans] == expected


def test_offsets_do_not_change_ids_and_follow_truncation_and_windows(tok):
    text, pair = "When one and two met, two said", "it isn't three's turn."
    whole = tok(text, pair, return_offsets_mapping=True)
    assert (whole.input_ids == tok(text, pair).input_ids).all()
    for row in (
        tok(text, pair, max_length=12, return_offsets_mapping=True),
        tok([text], [pair], max_length=12, return_offsets_mapping=True),
    ):
        for index, kind, (i, j) in zip(row.input_ids[0], row.token_type_ids[0], row.offset_mapping[0], strict=True):
            if index not in tok.all_special_ids and i < j:
                source = pair if kind else text
                assert tok.decode([index]).strip() == source[i:j]
    windows = tok(text, max_length=8, stride=2, return_offsets_mapping=True)
    for ids, offsets in zip(windows.input_ids, windows.offset_mapping, strict=True):
        for index, (i, j) in zip(ids, offsets, strict=True):
            if i < j:
                assert tok.decode([index]).strip() == text[i:j]


@pytest.mark.parametrize(("version", "exact"), [("v1", 715), ("v3", 724)])
def test_all_answers_survive_the_way_through_tokens(version, exact, released, data_dir):
    """character -> token -> character on every answer.

    Each answer's first and last character are in exactly one token, and the characters of the tokens from one to the
    other are the answer, except where the annotator's end lies inside a token: `2,70` of `2,700` in v3, and ten ends
    before `",` or `).` in v1, where the vocabulary has these as one piece.
    """
    tok = released[version]
    found = same = 0
    articles = json.loads((data_dir / "qa" / "xquad_en_train.json").read_text(encoding="utf-8"))["data"]
    for paragraph in (p for article in articles for p in article["paragraphs"]):
        context = paragraph["context"]
        starts, ends = tok(context, return_offsets_mapping=True).offset_mapping[0].T
        for answer in (a for question in paragraph["qas"] for a in question["answers"]):
            start, end = answer["answer_start"], answer["answer_start"] + len(answer["text"])
            first = np.flatnonzero((starts <= start) & (start < ends))
            last = np.flatnonzero((starts < end) & (end <= ends))
            assert len(first) == len(last) == 1, answer
            back = context[starts[first[0]] : ends[last[0]]]
            found += 1
            same += back == answer["text"]
            assert starts[first[0]] == start, answer
            assert back.startswith(answer["text"]), answer
    assert (found, same) == (725, exact)


def sentences(path):
    """Lists of words of a CoNLL or CoNLL-U file."""
    found, words = [], []
    for line in [*path.read_text(encoding="utf-8").split("\n"), ""]:
        fields = line.split("\t")
        if not line.strip():
            found += [words] if words else []
            words = []
        elif path.suffix == ".conll":
            words.append(fields[0])
        elif fields[0].isdigit():
            words.append(fields[1])
    return found


@pytest.mark.parametrize("version", ["v1", "v3"])
@pytest.mark.parametrize(
    ("file", "count", "word_count"),
    [
        ("wnut17/train.conll", 3394, 62730),
        ("wnut17/dev.conll", 1009, 15733),
        ("ud_ewt/en_ewt-ud-dev.conllu", 2001, 25147),
    ],
)
def test_no_word_label_is_lost(file, count, word_count, version, released, data_dir):
    tok = released[version]
    batch = sentences(data_dir / "ner" / file)
    assert (len(batch), sum(map(len, batch))) == (count, word_count)
    enc = tok(batch, is_split_into_words=True, return_offsets_mapping=True)
    for words, ids, word_ids, offsets in zip(batch, enc.input_ids, enc.word_ids, enc.offset_mapping, strict=True):
        assert word_ids[0] == word_ids[-1] == -1
        inner = word_ids[1:-1]
        assert (np.diff(inner) >= 0).all()
        assert set(inner.tolist()) == set(range(len(words)))
        assert tok.unk_id not in ids
        for number, word in enumerate(words):
            spans = offsets[word_ids == number]
            # Zero-width spaces are spaces to SentencePiece, and so in no span.
            hidden = "\u200b\ufeff" if version == "v3" else ""
            visible = "".join(c for c in word if not c.isspace() and c not in hidden)
            assert "".join(word[i:j] for i, j in spans) == visible, word


def test_words_are_encoded_as_in_running_text(released, data_dir):
    """Words joined by spaces give the same ids, except where SentencePiece has ties between equal segmentations."""
    batch = sentences(data_dir / "ner" / "ud_ewt" / "en_ewt-ud-dev.conllu")
    for tok in released.values():
        split = tok(batch, is_split_into_words=True).input_ids
        joined = tok([" ".join(words) for words in batch]).input_ids
        assert all((a.tolist() == b.tolist()) for a, b in zip(split, joined, strict=True))


def test_every_word_has_a_token(tok):
    words = ["one", "", "two", "\u200b", "three"]
    enc = tok(words, is_split_into_words=True, return_offsets_mapping=True)
    assert enc.input_ids.shape[0] == 1
    assert set(enc.word_ids[0].tolist()) == {-1, 0, 1, 2, 3, 4}
    assert enc.input_ids[0, enc.word_ids[0] == 1].tolist() == [tok.unk_id]
    spans = enc.offset_mapping[0]
    for number in (0, 2, 4):
        assert "".join(words[number][i:j] for i, j in spans[enc.word_ids[0] == number]) == words[number]


def test_word_that_begins_with_a_space_keeps_its_offsets(v1):
    """The same characters as first word and as later word: only the later one is moved by the space put before it."""
    enc = v1([[" x", "x"]], is_split_into_words=True, return_offsets_mapping=True)
    assert enc.word_ids.tolist() == [[-1, 0, 1, -1]]
    assert enc.offset_mapping[0, 1:3].tolist() == [[1, 2], [0, 1]]


def test_words_in_pairs(tok):
    enc = tok([["one", "two"]], [["three", "isn't", "four"]], is_split_into_words=True)
    second = enc.word_ids[0][enc.token_type_ids[0] == 1]
    assert set(second.tolist()) == {0, 1, 2, -1}
    assert second[-1] == -1


def test_offsets_of_the_library_are_made_disjoint(v1, v3, tmp_path, v1_dir, unicode_lines):
    """tokenizer.json alone: the library gives parts of one character the same span; here the first part has it."""
    tok = load_tokenizer(v1_dir)
    tok._library.save(str(tmp_path / "tokenizer.json"))
    content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    content["added_tokens"] = [{"id": t.id, "content": t.content, "special": True, **flags} for t in tok.added.tokens]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    by_json = load_tokenizer(tmp_path)
    lines = [*unicode_lines(3000, seed=9), "A fox [MASK]  The [SEP] x", ""]
    ours, theirs = (t(lines, return_offsets_mapping=True) for t in (tok, by_json))
    for text, a, b, i, j in zip(
        lines, ours.input_ids, theirs.input_ids, ours.offset_mapping, theirs.offset_mapping, strict=True
    ):
        assert a.tolist() == b.tolist()
        assert i.tolist() == j.tolist(), repr(text)
