"""The table against the models' own trees, and its transforms against the mapping of tests.cases."""

from pathlib import Path

import jax
import numpy as np
import pytest

from deberta_jax.config import DebertaConfig
from deberta_jax.errors import InputError
from deberta_jax.models import HEADS, abstract_params, all_parts, head_spec
from deberta_jax.weights import names
from deberta_jax.weights.source import Checkpoint, Tensor
from deberta_jax.weights.wrappers import unwrap
from tests.cases import BASE, to_tree
from tests.weights.files import raw_config, state_of

OPTIONS = {
    "v1": [{}, {"talking_head": True, "embedding_size": 4, "type_vocab_size": 2, "position_biased_input": True}],
    "v2": [{}, {"pos_att_type": "p2c"}, {"relative_attention": False}, {"legacy": False, "mask_decoder": True}],
    "v3": [{}, {"legacy": False, "mask_decoder": True}, {"tie_word_embeddings": False}],
    "xl": [{}, {"conv_groups": 2, "classifier_proj": True}],
}
CASES = [(base, head, options) for base in BASE for head in HEADS for options in OPTIONS[base]]


@pytest.mark.parametrize(("base", "head", "options"), CASES)
def test_table_describes_every_leaf_of_every_model(base, head, options):
    config = DebertaConfig.from_hf(raw_config(base, **options))
    expected = abstract_params(HEADS[head].model(config))
    expected = {"deberta": expected} if head == "encoder" else expected
    paths, _ = jax.tree_util.tree_flatten_with_path(expected)
    shapes = {"/".join(key.key for key in path): leaf.shape for path, leaf in paths}
    found = {}
    sizes = names.sizes(config, HEADS[head].num_outputs(config))
    for row in names.table(config, HEADS[head].parts_in(config)):
        for path, shape in zip(row.tree, row.leaf_shapes(sizes), strict=True):
            assert path not in found
            found[path] = (config.num_hidden_layers, *shape) if row.layered else shape
    assert found == shapes


@pytest.mark.parametrize(("base", "options"), [(b, o) for b in BASE for o in OPTIONS[b] if "mask_decoder" not in o])
def test_transforms_agree_with_an_independent_mapping_and_invert(base, options):
    parts = ("pooler", "classifier")
    config = DebertaConfig.from_hf(raw_config(base, **options))
    state = state_of(base, parts, **options)
    paths, _ = jax.tree_util.tree_flatten_with_path(to_tree(config, state))
    expected = {"/".join(key.key for key in path): leaf for path, leaf in paths}
    sizes = names.sizes(config, 3)
    for row in names.table(config, parts):
        for i, name in enumerate(row.names(config)):
            leaves = row.transform.to_tree(state[name], sizes)
            for path, leaf in zip(row.tree, leaves, strict=True):
                assert np.array_equal(leaf, expected[path][i] if row.layered else expected[path]), name
            assert np.array_equal(row.transform.to_torch(leaves, sizes), state[name]), name


@pytest.mark.parametrize(
    ("found", "known"),
    [
        ("module.bert.embeddings.LayerNorm.gamma", "deberta.embeddings.LayerNorm.weight"),
        (
            "module.module.deberta.encoder.layer.3.output.LayerNorm.beta",
            "deberta.encoder.layer.3.output.LayerNorm.bias",
        ),
        ("encoder.rel_embeddings.weight", "deberta.encoder.rel_embeddings.weight"),
        ("embeddings.word_embeddings._weight", "deberta.embeddings.word_embeddings._weight"),
        ("classifier.weight", "classifier.weight"),
    ],
)
def test_spellings_of_old_files(found, known):
    tensor = Tensor(found, (1,), np.dtype(np.float32), lambda: np.zeros(1, np.float32))
    assert list(unwrap(Checkpoint(Path("x"), (), {found: tensor})).tensors) == [known]


def test_names_of_layers_collapse_for_people():
    listed = ["a.layer.0.x", "a.layer.1.x", "b", "a.layer.2.x", "a.layer.4.y", "a.layer.1.y"]
    assert names.collapse(listed) == ["a.layer.{0-2}.x", "b", "a.layer.{1,4}.y"]


def test_the_table_has_rows_for_the_parts_of_every_head_and_for_no_others():
    assert set(names._PART_ROWS) == set(all_parts())


def test_unknown_head_is_refused():
    with pytest.raises(InputError, match="choose one of encoder, masked-lm"):
        head_spec("fill-mask")


def test_untied_head_exists_only_under_its_legacy_name():
    config = DebertaConfig.from_hf(raw_config("v3", tie_word_embeddings=False))
    with pytest.raises(InputError, match="legacy=True"):
        names.table(config, ("cls",), "microsoft")
