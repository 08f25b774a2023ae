"""Embeddings against sentence-transformers on the same directories, and against transformers' hidden states."""

import json

import numpy as np
import pytest
import sentence_transformers
import torch
import transformers
from sentence_transformers.sentence_transformer import modules

import deberta_jax
from deberta_jax.errors import InputError
from deberta_jax.text import load_tokenizer

pytestmark = pytest.mark.parity

TEXTS = [
    "A short text.",
    "",
    "A text that is longer than the others and fills the most part of a row. " * 3,
    "déjà vu — café 🙂",
    "A text that is too long for the model and is cut. " * 20,
    *(f"Number {i} of several short ones." for i in range(9)),
]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory, data_dir):
    """A directory of transformers' with random weights."""
    directory = tmp_path_factory.mktemp("encoder")
    tokenizer = load_tokenizer(data_dir / "tokenizers" / "deberta-v3")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    raw = deberta_jax.PRESETS["deberta-v3-base"].replace(vocab_size=tokenizer.vocab_size, **sizes).to_hf()
    torch.manual_seed(0)
    config = transformers.DebertaV2Config(**raw | {"initializer_range": 0.3})
    transformers.DebertaV2Model(config).save_pretrained(directory)
    tokenizer.save(directory)
    return directory


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
@pytest.mark.parametrize("normalize", [False, True])
def test_embeddings_of_a_sentence_transformer(pooling, normalize, encoder, tmp_path):
    transformer = modules.Transformer(str(encoder), max_seq_length=64)
    parts = [transformer, modules.Pooling(32, pooling_mode=pooling), *([modules.Normalize()] if normalize else [])]
    theirs = sentence_transformers.SentenceTransformer(modules=parts, device="cpu")
    expected = theirs.encode(TEXTS, batch_size=4)
    found = deberta_jax.encode(encoder, TEXTS, pooling=pooling, normalize=normalize, max_length=64, batch_size=2)
    assert np.abs(expected - expected[0]).max() > 1e-2
    assert (found.dtype, found.shape) == (np.float32, expected.shape)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # What it saves says how embeddings are made.
    theirs.save(str(tmp_path / "saved"))
    embedder = deberta_jax.Embedder(tmp_path / "saved", max_length=64)
    assert (embedder.pooling, embedder.normalize) == (pooling, normalize)
    np.testing.assert_allclose(embedder.encode(TEXTS[3]), expected[3], atol=1e-5)


def test_older_settings_and_layers_that_are_not_known(encoder, tmp_path):
    for file in encoder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    layers = [{"path": "", "type": "sentence_transformers.models.Transformer"}]
    layers.append({"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"})
    (tmp_path / "modules.json").write_text(json.dumps(layers))
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 128, "do_lower_case": false}')
    (tmp_path / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    embedder = deberta_jax.Embedder(tmp_path)
    assert (embedder.pooling, embedder.normalize, embedder.max_length) == ("cls", False, 128)
    layers.append({"path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    (tmp_path / "modules.json").write_text(json.dumps(layers))
    with pytest.raises(InputError, match="has a layer Dense, which is not known here"):
        deberta_jax.Embedder(tmp_path)
    assert deberta_jax.Embedder(tmp_path, pooling="mean").pooling == "mean"
