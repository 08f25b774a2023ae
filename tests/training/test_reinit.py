"""Layers initialised again before fine-tuning: which parameters are the file's, and which are not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from deberta_jax import DebertaForSequenceClassification, init_params
from deberta_jax.cli.main import main
from deberta_jax.models import reinitialize_layers
from tests.made import TINY, refused, rows, saved_model, weighted_model, write_table


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model no parameter of which is as it would be drawn, and a table."""
    home = tmp_path_factory.mktemp("reinit")
    file = weighted_model(home / "base") / "model.safetensors"
    save_file({name: 3 * value + 0.5 for name, value in load_file(file).items()}, file, metadata={"format": "pt"})
    write_table(home / "train.csv", ("text", "label"), rows(16, seed=1))
    return home


def arguments(home, output, *more):
    return [
        "finetune",
        "--model",
        str(home / "base"),
        "--train",
        str(home / "train.csv"),
        "--eval",
        str(home / "train.csv"),
        "--output",
        str(output),
        "--epochs",
        "1",
        "--batch-size",
        "16",
        "--max-length",
        "16",
        "--learning-rate",
        "1e-12",
        *more,
    ]


@pytest.mark.slow
def test_the_last_layers_are_initialised_again_and_all_else_is_the_files(home, tmp_path, capsys, one_device):
    main(arguments(home, tmp_path / "run", "--reinit-layers", "1"))
    assert "reinitialized: the last 1 of 2 layers" in capsys.readouterr().err
    before, after = (load_file(path / "model.safetensors") for path in (home / "base", tmp_path / "run"))
    assert before.keys() == after.keys()
    drawn = {name for name in before if ".encoder.layer.1." in name}
    assert 0 < len(drawn) < len(before) / 2
    for name in before.keys() - drawn:
        np.testing.assert_allclose(after[name], before[name], atol=1e-9, err_msg=name)
    # A pre-training from scratch with this seed began with key(seed): to draw with it again would only undo that.
    began = load_file(saved_model(tmp_path / "began", DebertaForSequenceClassification(TINY)) / "model.safetensors")
    for name in drawn:
        if name.endswith(".bias"):
            np.testing.assert_allclose(after[name], 0, atol=1e-9, err_msg=name)
        elif "LayerNorm" in name:
            np.testing.assert_allclose(after[name], 1, atol=1e-9, err_msg=name)
        else:
            assert abs(after[name].std() / TINY.initializer_range - 1) < 0.15, name
            assert abs(after[name].mean()) < 0.2 * TINY.initializer_range, name
            assert abs(np.corrcoef(after[name].ravel(), began[name].ravel())[0, 1]) < 0.2, name


def test_another_key_initialises_other_layers():
    model = DebertaForSequenceClassification(TINY)
    key = jax.random.key(0)
    first = jax.jit(lambda: init_params(model, key))()
    again = jax.jit(lambda p: reinitialize_layers(model, p, jax.random.fold_in(key, 2), 1))(first)
    kernel = lambda params: params["deberta"]["encoder"]["layers"]["intermediate"]["dense"]["kernel"]
    assert jnp.array_equal(kernel(first)[0], kernel(again)[0])
    assert abs(np.corrcoef(kernel(first)[1].ravel(), kernel(again)[1].ravel())[0, 1]) < 0.1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--reinit-layers", "3"), "--reinit-layers 3: the model has 2"),
        (("--reinit-layers", "2", "--freeze-layers", "1"), "--reinit-layers 2: the model has 2, 1 of them frozen"),
        (("--reinit-layers", "-1"), "--reinit-layers -1: must not be below 0"),
        (("--reinit-layers", "1", "--from-scratch"), "with --from-scratch all layers are initialized anyway"),
        (("--reinit-layers", "1", "--lora", "2"), "would never be trained"),
        (("--reinit-layers", "1", "--freeze", "*/query_proj/kernel"), "--freeze would leave layers as they are init"),
    ],
)
def test_what_does_not_go_together_is_refused(home, tmp_path, capsys, more, message):
    assert message in refused(arguments(home, tmp_path / "run", *more), capsys)
    assert not (tmp_path / "run").exists()
