"""Orbax checkpoints against Orbax itself, on eight simulated devices."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts

from deberta_jax.config import DebertaConfig
from deberta_jax.errors import InputError
from deberta_jax.models import HEADS, Runtime, abstract_params, logical_axes
from deberta_jax.sharding import make_mesh, tree_shardings
from deberta_jax.weights import convert, load, save_pretrained
from deberta_jax.weights.orbax_files import PARAMS
from tests.cases import to_tree
from tests.weights.files import raw_config, state_of

BF16 = Runtime(param_dtype=jnp.bfloat16)
WIDE = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "vocab_size": 4096,
    "num_hidden_layers": 3,
}
CHUNKED = {**WIDE, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 1, "vocab_size": 1024}


def convert_one(tmp_path, write, sizes):
    raw = raw_config("xl", num_labels=3, **sizes)
    state = state_of("xl", ("pooler", "classifier"), **sizes)
    source = write("source", state, raw)
    target = tmp_path / "100% of orbax #1"  # in a URL both signs would mean something else
    convert(source, target, to="orbax")
    model, params, _ = load(source, "sequence-classification")
    return target, model, params


@pytest.fixture
def converted(tmp_path, write):
    return convert_one(tmp_path, write, WIDE)


@pytest.fixture
def chunked(tmp_path, write):
    """Wide enough that every kernel has a chunk for each of eight shards.

    One chunk for eight shards, as in a narrow model, is read up to eight times: tensorstore joins only those reads that
    happen to overlap.
    """
    return convert_one(tmp_path, write, CHUNKED)


def restore(directory, model, shardings):
    """By Orbax alone, as a training program would."""
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract_params(model),
        shardings,
    )
    arguments = ocp.checkpoint_utils.construct_restore_args(abstract)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        return checkpointer.restore(
            directory / PARAMS, args=ocp.args.PyTreeRestore(item=abstract, restore_args=arguments)
        )


def decoded_bytes() -> int:
    """Bytes that tensorstore has read from chunks since the process began."""
    metrics = ts.experimental_collect_matching_metrics("/tensorstore/kvstore/file/bytes_read")
    return sum(value["value"] for metric in metrics for value in metric["values"])


def test_orbax_restores_into_fsdp_shards_and_reads_each_chunk_once(chunked):
    directory, model, params = chunked
    mesh = make_mesh(data=1, fsdp=8)
    shardings = tree_shardings(logical_axes(model), mesh)
    stored = sum(file.stat().st_size for file in (directory / PARAMS).rglob("*") if file.is_file())
    before = decoded_bytes()
    restored = restore(directory, model, shardings)
    read = decoded_bytes() - before
    assert read > 0.5 * stored  # the metric counts
    assert read < 1.1 * stored
    for leaf, sharding in zip(jax.tree.leaves(restored), jax.tree.leaves(shardings), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    assert jax.tree.all(jax.tree.map(np.array_equal, restored, params))
    words = restored["deberta"]["embeddings"]["word_embeddings"]["embedding"]
    assert {shard.data.shape for shard in words.addressable_shards} == {(1024, 64)}


def test_chunks_do_not_cross_the_shards_of_large_leaves(chunked):
    directory, model, _ = chunked
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        tree = checkpointer.metadata(directory / PARAMS).item_metadata.tree
    shardings = tree_shardings(logical_axes(model), make_mesh(data=1, fsdp=8))
    for leaf, sharding in zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True):
        if math.prod(leaf.shape) * 4 < 1 << 18:
            continue
        shard = sharding.shard_shape(tuple(leaf.shape))
        assert all(part % chunk == 0 for part, chunk in zip(shard, leaf.storage.chunk_shape, strict=True)), leaf


def test_load_places_shards_itself(converted):
    directory, model, params = converted
    shardings = tree_shardings(logical_axes(model), make_mesh(data=2, fsdp=4))
    _, placed, report = load(directory, "sequence-classification", BF16, shardings=shardings)
    assert report.count("loaded") == len(report.tensors)
    for leaf, sharding in zip(jax.tree.leaves(placed), jax.tree.leaves(shardings), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    same = jax.tree.map(lambda a, b: np.array_equal(a, np.asarray(b).astype(jnp.bfloat16)), placed, params)
    assert jax.tree.all(same)


def test_safetensors_are_placed_too(tmp_path, converted):
    _, model, params = converted
    save_pretrained(tmp_path / "saved", model, params)
    shardings = tree_shardings(logical_axes(model), make_mesh(data=2, fsdp=4))
    _, placed, _ = load(tmp_path / "saved", "sequence-classification", shardings=shardings)
    assert jax.tree.all(jax.tree.map(np.array_equal, placed, params))
    words = placed["deberta"]["embeddings"]["word_embeddings"]["embedding"]
    assert words.sharding.is_equivalent_to(shardings["deberta"]["embeddings"]["word_embeddings"]["embedding"], 2)
    save_pretrained(tmp_path / "again", model, placed)
    saved, again = (tmp_path / name / "model.safetensors" for name in ("saved", "again"))
    assert saved.read_bytes() == again.read_bytes()


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_training_state_is_a_source(wrapped, tmp_path):
    """Parameters beside an optimizer's, at the newest step of a run whose config.json is above."""
    config = DebertaConfig.from_hf(raw_config("v3"))
    model = HEADS["masked-lm"].model(config)
    run = tmp_path / "run"
    run.mkdir()
    drawn = to_tree(config, state_of("v3", ("cls",)))
    for step in (5, 40):
        params = jax.tree.map(lambda a, step=step: jnp.asarray(a * step), drawn)
        state = {"params": params, "opt_state": {"mu": params, "count": jnp.int32(3)}, "step": jnp.int32(step)}
        item = run / "state" / str(step) / "default" if wrapped else run / "state" / str(step)
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            checkpointer.save(item, args=ocp.args.PyTreeSave(state))
    save_pretrained(run, model, params, overwrite=True)
    (run / "model.safetensors").unlink()
    for source in (run, run / "state"):
        _, found, _ = load(source, "masked-lm")
        assert jax.tree.all(jax.tree.map(np.array_equal, found, params))


def test_bare_encoder_round_trip(tmp_path, write):
    raw = raw_config("v1")
    source = write("source", state_of("v1"), raw)
    convert(source, tmp_path / "orbax", to="orbax", dtype="bf16")
    _, params, _ = load(tmp_path / "orbax", "encoder", BF16)
    _, direct, _ = load(source, "encoder", BF16)
    assert jax.tree.all(jax.tree.map(np.array_equal, params, direct))
    assert jax.tree.structure(params) == jax.tree.structure(
        abstract_params(HEADS["encoder"].model(DebertaConfig.from_hf(raw)))
    )


@pytest.mark.parametrize("damage", ["metadata", "manifest", "data", "config"])
def test_damaged_checkpoints_are_refused_in_one_line(damage, converted):
    directory, _, _ = converted
    if damage == "config":
        (directory / "config.json").unlink()
    elif damage == "metadata":
        (directory / PARAMS / "_METADATA").write_text('{"tree_metadata": 3}')
    else:
        name = "manifest.ocdbt" if damage == "manifest" else "d"
        for path in (directory / PARAMS).rglob("*"):
            if path.is_file() and (path.name == name or path.parent.name == name):
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError) as error:
        load(directory, "sequence-classification")
    assert "\n" not in str(error.value)


def test_a_leaf_too_many_is_refused(tmp_path, converted):
    _, model, params = converted
    target = tmp_path / "odd"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(target / PARAMS, args=ocp.args.PyTreeSave({**params, "surprise": jnp.ones(3)}))
    save_pretrained(target, dataclasses.replace(model), params, overwrite=True)
    (target / "model.safetensors").unlink()
    with pytest.raises(InputError, match="not a DeBERTa model's: surprise"):
        load(target, "sequence-classification")
