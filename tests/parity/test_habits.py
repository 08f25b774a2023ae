"""Arguments that users of transformers type: each gives what transformers' tokenizers and models give for it."""

import jax
import numpy as np
import pytest
import torch
import transformers

import deberta_jax
from deberta_jax.text import load_tokenizer

pytestmark = pytest.mark.parity

TEXTS = ["A short one.", "This text is longer than the first, by some words.", "Two  spaces (and brackets)", "naïve"]
PAIRS = ["its pair", "", "the second of a pair is longer here than the first", "x"]


@pytest.fixture(scope="module", params=["deberta-v1", "deberta-v3"])
def tokenizers(request, data_dir, tmp_path_factory):
    ours, directory = load_tokenizer(data_dir / "tokenizers" / request.param), tmp_path_factory.mktemp("tokenizer")
    ours.save(directory)
    return ours, transformers.AutoTokenizer.from_pretrained(directory)


@pytest.mark.parametrize(
    "options",
    [
        {"padding": True},
        {"padding": "longest"},
        {"padding": True, "truncation": True, "max_length": 8},
        {"padding": "max_length", "truncation": True, "max_length": 12},
        {"padding": "max_length", "truncation": "only_first", "max_length": 30},
        {"padding": True, "truncation": "longest_first", "max_length": 9},
        {"padding": True, "truncation": False},
        {"padding": True, "truncation": "do_not_truncate"},
        {"padding": True, "pad_to_multiple_of": 8},
    ],
)
@pytest.mark.parametrize("paired", [False, True])
def test_padding_and_truncation(options, paired, tokenizers):
    ours, theirs = tokenizers
    if paired and ours.kind == "bpe":
        pytest.skip("transformers 5 puts two [SEP] between the texts of a pair for v1, with which no model was trained")
    inputs = (list(zip(TEXTS, PAIRS, strict=True)),) if paired else (TEXTS,)
    got, expected = (tokenizer(*inputs, return_tensors="np", **options) for tokenizer in (ours, theirs))
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        assert np.array_equal(got[name], expected[name]), name
    if paired:
        separate = ours(TEXTS, PAIRS, **options)
        assert np.array_equal(separate.input_ids, got.input_ids)


@pytest.mark.parametrize("padding", [False, "do_not_pad"])
def test_rows_without_padding(padding, tokenizers):
    ours, theirs = tokenizers
    got, expected = (tokenizer(TEXTS, padding=padding) for tokenizer in (ours, theirs))
    assert [row.tolist() for row in got.input_ids] == expected["input_ids"]


def test_offset_mapping(tokenizers):
    """Theirs may begin with the space before a word, which ours leave out."""
    ours, theirs = tokenizers
    options = {"padding": True, "return_offsets_mapping": True, "return_tensors": "np"}
    got, expected = (tokenizer(TEXTS, **options) for tokenizer in (ours, theirs))
    assert got["offset_mapping"].shape == expected["offset_mapping"].shape
    for text, mine, other in zip(TEXTS, got["offset_mapping"], expected["offset_mapping"], strict=True):
        for (i, j), (first, last) in zip(mine.tolist(), other.tolist(), strict=True):
            assert text[i:j] == text[first:last].strip()


def test_an_encoding_is_the_input_of_a_model(data_dir, tmp_path):
    tokenizer = load_tokenizer(data_dir / "tokenizers" / "deberta-v3")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = deberta_jax.PRESETS["deberta-v3-base"].replace(vocab_size=tokenizer.vocab_size, **sizes).to_hf()
    torch.manual_seed(0)
    peer = transformers.DebertaV2ForSequenceClassification(transformers.DebertaV2Config(**config)).eval()
    peer.save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    model, params = deberta_jax.from_pretrained(tmp_path, head="sequence-classification")
    encoding = tokenizer(TEXTS, padding=True, truncation=True, max_length=16, return_tensors="np")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    batch = theirs(TEXTS, padding=True, truncation=True, max_length=16, return_tensors="pt")
    with torch.no_grad():
        expected = peer(**batch).logits.numpy()
    np.testing.assert_allclose(model(params, **encoding).logits, expected, atol=1e-5)
    # Their encodings as NumPy arrays are inputs too, by name, in one program with the parameters as its argument.
    arrays = dict(theirs(TEXTS, padding=True, truncation=True, max_length=16, return_tensors="np"))
    logits = jax.jit(lambda params, inputs: model(params, **inputs).logits)(params, arrays)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
