"""Directories of this package are compared with their digests: damage is refused, other programs' files load."""

import json
import logging
import os
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy

from deberta_jax import init_params
from deberta_jax.config import DebertaConfig
from deberta_jax.errors import InputError
from deberta_jax.models import DebertaForSequenceClassification
from deberta_jax.weights import convert, from_pretrained, save_pretrained
from tests.weights.files import raw_config, same

HEAD = "sequence-classification"


class Words:
    def save(self, directory):
        (directory / "merges.txt").write_text("".join(f"{i} {i + 1}\n" for i in range(400)))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model directory of save_pretrained."""
    directory = tmp_path_factory.mktemp("checking") / "saved"
    # Wide enough that its blocks have 8 kB, as those of real weights that are cut short or zeroed.
    raw = raw_config("v3", hidden_size=32, intermediate_size=64, vocab_size=300)
    model = DebertaForSequenceClassification(DebertaConfig.from_hf(raw))
    save_pretrained(directory, model, init_params(model, jax.random.key(0)), Words())
    return directory


@pytest.fixture(scope="module")
def converted(saved):
    convert(saved, saved.parent / "converted", to="orbax")
    return saved.parent / "converted"


@pytest.fixture
def copy(saved, tmp_path):
    """A copy with other modification times, as from a download."""
    return shutil.copytree(saved, tmp_path / "copy", copy_function=shutil.copy)


def lines(caplog):
    ours = [record for record in caplog.records if record.name.startswith("deberta_jax")]
    return [record.getMessage() for record in ours if record.levelno >= logging.WARNING]


def rewrite(directory, change):
    """Writes the weights again, with the library of that name."""
    path = directory / "model.safetensors"
    tensors = {name: change(name, array) for name, array in safetensors.numpy.load_file(path).items()}
    safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})
    return tensors


def edit_config(directory, **values):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.slow
@pytest.mark.parametrize("check", ["sampled", "full"])
@pytest.mark.parametrize("where", ["saved", "converted"])
def test_what_was_written_loads_without_a_word(where, check, request, tmp_path, caplog):
    source = request.getfixturevalue(where)
    for directory in (source, shutil.copytree(source, tmp_path / "copy", copy_function=shutil.copy)):
        _, params = from_pretrained(directory, HEAD, check=check)
        assert jax.tree.leaves(params)
    assert lines(caplog) == []


def test_orbax_alone_restores_a_converted_checkpoint(converted, saved):
    assert (converted / "checksums.json").is_file()
    with ocp.StandardCheckpointer() as checkpointer:
        found = checkpointer.restore(converted / "params")
    assert same(jax.tree.map(np.asarray, found), jax.tree.map(np.asarray, from_pretrained(saved, HEAD)[1]))


@pytest.mark.parametrize("check", ["sampled", "full"])
def test_weights_of_another_program_are_loaded_and_the_stale_list_is_named(copy, check, caplog):
    new = rewrite(copy, lambda name, array: array + 1)
    _, params = from_pretrained(copy, HEAD, check=check)
    np.testing.assert_array_equal(params["classifier"]["bias"], new["classifier.bias"])
    (line,) = lines(caplog)
    assert str(copy / "checksums.json") in line
    assert "model.safetensors" in line


@pytest.mark.parametrize("check", ["sampled", "full"])
def test_a_trained_head_on_a_frozen_encoder_is_no_damage(copy, check, caplog):
    """As transformers' ``save_pretrained`` does: one tensor differs, and config.json is written in another form."""
    new = rewrite(copy, lambda name, array: array + (name == "classifier.bias"))
    edit_config(copy, transformers_version="5.0.0")
    _, params = from_pretrained(copy, HEAD, check=check)
    np.testing.assert_array_equal(params["classifier"]["bias"], new["classifier.bias"])
    assert len(lines(caplog)) == 1


@pytest.mark.parametrize("check", ["sampled", "full"])
def test_a_config_that_the_user_edits_is_used(copy, check, caplog):
    edit_config(copy, hidden_dropout_prob=0.25)
    model, _ = from_pretrained(copy, HEAD, check=check)
    assert model.config.hidden_dropout_prob == 0.25
    (line,) = lines(caplog)
    assert "config.json" in line
    assert "model.safetensors" not in line


def test_smaller_weights_of_another_program_are_no_cut_file(copy, caplog):
    rewrite(copy, lambda name, array: array.astype(jnp.bfloat16))
    from_pretrained(copy, HEAD, check="full")
    assert len(lines(caplog)) == 1


def zero_the_end(path):
    size = path.stat().st_size
    os.truncate(path, size // 2)
    os.truncate(path, size)


def flip_in_the_middle(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def keeping_its_time(change):
    def changed(path):
        status = path.stat()
        change(path)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    return changed


@pytest.mark.parametrize(
    ("file", "change", "noticed_by"),
    [
        ("model.safetensors", zero_the_end, {"sampled", "full"}),
        ("model.safetensors", flip_in_the_middle, {"full"}),
        ("merges.txt", lambda path: os.truncate(path, path.stat().st_size // 2), {"sampled", "full"}),
        ("merges.txt", flip_in_the_middle, {"full"}),
        ("merges.txt", os.remove, {"full"}),
        ("config.json", flip_in_the_middle, {"full"}),
        ("checksums.json", flip_in_the_middle, {"full"}),
    ],
)
def test_damage_is_refused_by_a_full_check_and_named_by_each(copy, file, change, noticed_by, caplog):
    change(copy / file)
    for check in ("full", "sampled"):
        caplog.clear()
        if check in noticed_by:
            with pytest.raises(InputError, match=file) as raised:
                from_pretrained(copy, HEAD, check=check)
            said = str(raised.value)
        elif file == "config.json":
            with pytest.raises(InputError):  # what the flip has made of it
                from_pretrained(copy, HEAD, check=check)
            (said,) = lines(caplog)
        else:
            from_pretrained(copy, HEAD, check=check)
            (said,) = lines(caplog)
        assert str(copy) in said
        assert file in said
        assert "checksums.json" in said
        assert "\n" not in said


def test_other_bytes_at_the_same_time_are_damage_even_for_a_sampled_check(saved, tmp_path):
    copy = shutil.copytree(saved, tmp_path / "copy")  # keeps modification times
    keeping_its_time(flip_in_the_middle)(copy / "model.safetensors")
    with pytest.raises(InputError, match=r"damaged: model\.safetensors has other bytes \(1 of 16 blocks\)"):
        from_pretrained(copy, HEAD)


def test_a_full_check_needs_a_list(copy):
    os.remove(copy / "checksums.json")
    from_pretrained(copy, HEAD)
    with pytest.raises(InputError, match=r"model\.safetensors: a full check is not possible"):
        from_pretrained(copy, HEAD, check="full")


def test_a_converted_source_is_compared_first(copy, tmp_path):
    flip_in_the_middle(copy / "model.safetensors")
    for to in ("hf", "orbax"):
        with pytest.raises(InputError, match="damaged"):
            convert(copy, tmp_path / "out", to=to)
        assert not (tmp_path / "out").exists()


def test_orbax_is_written_twice_to_a_relative_path(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    for _ in range(2):
        for out in ("new", "there", "deep/new"):
            convert(saved, out, to="orbax")
            assert same(from_pretrained(out, HEAD, check="full")[1], from_pretrained(saved, HEAD)[1])


def test_orbax_on_a_full_disk_is_one_line_and_leaves_nothing(saved, tmp_path, capfd):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(InputError, match=r"out: could not be written \(.*\); make room") as raised:
            convert(saved, tmp_path / "out", to="orbax")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(raised.value).startswith(f"{tmp_path / 'out'}: ")
    assert list(tmp_path.iterdir()) == []
    assert "Traceback" not in capfd.readouterr().err
