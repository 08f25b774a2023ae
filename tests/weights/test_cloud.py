"""``gs://``: written and read back through tensorstore's and Orbax's own clients, against a bucket in this process."""

import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from deberta_jax.cli.main import main
from deberta_jax.errors import InputError
from deberta_jax.models import abstract_params, logical_axes
from deberta_jax.sharding import make_mesh, tree_shardings
from deberta_jax.weights import convert, load, load_config
from tests.weights import bucket
from tests.weights.files import raw_config, state_of

PLACE = "gs://bucket/models/mine"
WIDE = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 4, "vocab_size": 2048}


@pytest.fixture
def cloud(monkeypatch):
    with bucket.served(monkeypatch) as served:
        yield served


@pytest.fixture
def source(write):
    directory = write(
        "source", state_of("v3", ("pooler", "classifier"), **WIDE), raw_config("v3", num_labels=3, **WIDE)
    )
    (directory / "spm.model").write_bytes(b"words")
    return directory


def test_orbax_to_a_bucket_and_from_it_into_shards(cloud, source, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["convert", str(source), PLACE, "--to", "orbax"])
    assert f"wrote {PLACE}" in capsys.readouterr().out
    assert {name.split("/")[3] for name in cloud.objects} == {"config.json", "spm.model", "params"}
    assert all(name.startswith("bucket/models/mine/") for name in cloud.objects)
    assert (
        max(generation for _, generation in cloud.objects.values())
        == cloud.objects["bucket/models/mine/config.json"][1]
    )
    assert not list(tmp_path.glob("gs*"))  # nothing in a local directory of that name

    model, expected, _ = load(source, "sequence-classification")
    shardings = tree_shardings(logical_axes(model), make_mesh(data=1, fsdp=8))
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract_params(model),
        shardings,
    )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        arguments = ocp.checkpoint_utils.construct_restore_args(abstract)
        restored = checkpointer.restore(
            f"{PLACE}/params", args=ocp.args.PyTreeRestore(item=abstract, restore_args=arguments)
        )
    assert jax.tree.all(jax.tree.map(np.array_equal, restored, expected))
    for leaf, sharding in zip(jax.tree.leaves(restored), jax.tree.leaves(shardings), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)

    loaded, params, report = load(PLACE, "sequence-classification", shardings=shardings)
    assert loaded.config == model.config == load_config(PLACE)
    assert report.count("loaded") == len(report.tensors)
    assert jax.tree.all(jax.tree.map(np.array_equal, params, expected))


def test_back_from_a_bucket_with_the_tokenizer(cloud, source, tmp_path):
    convert(source, PLACE, to="orbax", dtype="bf16")
    convert(PLACE, tmp_path / "back", to="hf")
    assert (tmp_path / "back" / "spm.model").read_bytes() == b"words"
    convert(source, tmp_path / "direct", to="hf", dtype="bf16")
    files = (tmp_path / name / "model.safetensors" for name in ("back", "direct"))
    assert next(files).read_bytes() == next(files).read_bytes()


def test_what_a_bucket_cannot_be_is_said_in_one_line(cloud, source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cases = {
        "give it as text, gs://bucket/models": lambda: convert(source, Path("gs://bucket/models"), to="orbax"),
        "only gs://bucket/directory": lambda: convert(source, "s3://bucket/models", to="orbax"),
        "gs://bucket/empty: there is nothing of that name": lambda: load("gs://bucket/empty"),
    }
    for message, call in cases.items():
        with pytest.raises(InputError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert not cloud.objects
    assert {path.name for path in tmp_path.iterdir()} == {"source"}
    convert(source, PLACE, to="orbax")
    with pytest.raises(InputError, match="holds a model already"):
        convert(source, PLACE, to="orbax")


def test_a_broken_source_leaves_no_model_in_the_bucket(cloud, write):
    state = state_of("v3")
    state["deberta.embeddings.LayerNorm.bias"][0] = np.nan
    with pytest.raises(InputError, match="NaN or infinity"):
        convert(write("broken", state, raw_config("v3")), PLACE, to="orbax", strict=True)
    assert "bucket/models/mine/config.json" not in cloud.objects
    with pytest.raises(InputError):
        load(PLACE)


def test_without_the_client_the_error_names_it(source, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    bucket.forget_file_systems()
    with pytest.raises(InputError, match="install gcsfs") as caught:
        convert(source, PLACE, to="orbax")
    assert "\n" not in str(caught.value)
