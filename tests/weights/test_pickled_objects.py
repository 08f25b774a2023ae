"""Objects that training programs pickle beside the weights: nothing is built, called or imported, the weights load."""

import argparse
import collections
import dataclasses
import datetime
import enum
import json
import pathlib
import pickle
import sys
import uuid
from fractions import Fraction

import numpy as np
import pytest

from deberta_jax.errors import InputError
from deberta_jax.pickles.machine import run
from deberta_jax.pickles.names import Global
from deberta_jax.pickles.values import Placeholder, StoredTensor
from deberta_jax.weights import load
from deberta_jax.weights.readers import read_weights
from tests.cases import to_tree
from tests.weights.files import Call, Name, dump, raw_config, same, state_of, tensor, torch_legacy, zip_bytes

PARTS = ("pooler", "classifier")
PLAIN = (dict, list, tuple, str, bytes, int, float, bool, type(None), StoredTensor, Global, Placeholder)


class Kind(enum.Enum):
    ONE = 1


@dataclasses.dataclass
class Settings:
    """A program's own class: pickled as an instance, without a call of anything else."""

    rate: float = 1e-5
    layers: tuple = (1, 2)


OBJECTS = {
    "argparse.Namespace": argparse.Namespace(lr=1e-5, tags=["a"], nested=argparse.Namespace(x=1)),
    "pathlib path": pathlib.Path("runs/1"),
    "pure windows path": pathlib.PureWindowsPath("c:/runs"),
    "numpy scalar": np.float64(0.25),
    "numpy bool": np.bool_(True),
    "numpy array": np.arange(6, dtype=np.int64).reshape(2, 3),
    "numpy array of objects": np.array([{"a": 1}], dtype=object),
    "numpy generator": np.random.RandomState(0).get_state(),
    "dtype": np.dtype(np.float16),
    "set": {1, 2},
    "frozenset": frozenset("ab"),
    "complex": 1j,
    "bytearray": bytearray(3),
    "slice": slice(1),
    "date": datetime.datetime(2024, 1, 1),
    "defaultdict": collections.defaultdict(list, a=[1]),
    "counter": collections.Counter("aab"),
    "fraction": Fraction(1, 3),
    "uuid": uuid.UUID(int=1),
    "a program's own class": Settings(),
    "bytes": b"abc",
    "keys of other kinds": {(1, 2): "a", None: "b", 2.5: "c", True: "d", ("x", ("y",)): 1},
}


def parts_of(value):
    yield value
    if isinstance(value, dict):
        inner = [*value, *value.values()]
    elif isinstance(value, Placeholder):
        inner = value.parts
    else:
        inner = value if isinstance(value, (list, tuple)) else []
    for item in inner:
        yield from parts_of(item)


@pytest.mark.parametrize("name", OBJECTS)
def test_an_object_becomes_a_placeholder_and_nothing_of_it_is_built(name):
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        raw = pickle.dumps({"beside": OBJECTS[name]}, protocol)
        found, end, _ = run(raw)
        assert end == len(raw)
        assert {type(part) for part in parts_of(found)} <= set(PLAIN)


def directory_with(tmp_path, content: bytes, file: str = "model.ckpt"):
    directory = tmp_path / "m"
    directory.mkdir(exist_ok=True)
    (directory / file).write_bytes(content)
    (directory / "config.json").write_text(json.dumps(raw_config("v3", num_labels=3)))
    return directory


def described(state, **storages):
    """A state dict as torch describes it, and the storages, with some more of them."""
    keys = {name: str(i) for i, name in enumerate(state)}
    pairs = {name: tensor(keys[name], array) for name, array in state.items()}
    return pairs, {keys[name]: array for name, array in state.items()} | storages


def training_state(state):
    """What Lightning keeps: weights of ``self.model``, an optimizer's state, settings of classes that are not here."""
    moment = np.ones((3, 4), np.float32)
    pairs, storages = described({f"model.{name}": a for name, a in state.items()}, moment=moment, step=np.ones(1))
    settings = Call(Name("pytorch_lightning.utilities.parsing", "AttributeDict"), [("lr", 1e-5)])
    device = Call(Name("torch", "device"), "cuda", 0)
    adam = {
        "state": {
            0: {"step": tensor("step", storages["step"]), "exp_avg": tensor("moment", moment)},
        },
        "param_groups": [{"lr": 1e-5, "betas": (0.9, 0.999), "params": [0], "device": device}],
    }
    callbacks = {
        "ModelCheckpoint{'monitor': 'loss'}": {
            "best_model_path": pathlib.Path("a/b.ckpt"),
            "best_model_score": np.float64(0.5),
        }
    }
    return {
        "epoch": 3,
        "global_step": 1200,
        "pytorch-lightning_version": "2.2.0",
        "state_dict": pairs,
        "optimizer_states": [adam],
        "lr_schedulers": [],
        "callbacks": callbacks,
        "hyper_parameters": settings,
        "args": argparse.Namespace(out=pathlib.PurePosixPath("out"), seeds=np.arange(3)),
        "module_class": Settings(),
    }, storages


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_a_lightning_checkpoint_with_hyper_parameters_and_optimizer_states(form, tmp_path):
    state = state_of("v3", PARTS)
    content, storages = training_state(state)
    if form == "zip":
        raw = zip_bytes(dump(content), {key: array.tobytes() for key, array in storages.items()})
    else:
        raw = torch_legacy(dump(content), storages)
    before = set(sys.modules)
    model, params, report = load(directory_with(tmp_path, raw), "sequence-classification")
    assert not {name for name in set(sys.modules) - before if name.split(".")[0] in ("pytorch_lightning", "torch")}
    assert same(params, to_tree(model.config, state))
    assert "taken off the names of tensors: model." in report.notes
    (left,) = (note for note in report.notes if note.startswith("not weights"))
    assert "epoch, global_step" in left
    assert "optimizer_states" in left


def test_arguments_beside_a_plain_state_dict(tmp_path):
    """``{"args": Namespace, "best": numpy scalar, "model": state_dict}``, as hand-written loops save."""
    state = state_of("v3", PARTS)
    pairs, storages = described(state)
    content = {"args": argparse.Namespace(lr=1), "path": pathlib.Path("x"), "best": np.float32(1), "model": pairs}
    raw = zip_bytes(dump(content), {key: array.tobytes() for key, array in storages.items()})
    model, params, report = load(directory_with(tmp_path, raw), "sequence-classification")
    assert same(params, to_tree(model.config, state))
    assert "not weights, not read: args, path, best" in report.notes


@pytest.mark.parametrize("keys", [("net",), ("checkpoint", "ema_model"), ("a", "b", "c")])
def test_a_state_dict_is_found_under_any_name(keys, tmp_path):
    state = state_of("v3", PARTS)
    pairs, storages = described(state)
    for key in reversed(keys):
        pairs = {"epoch": 1, key: pairs, "lr": {"x": 1}}
    raw = zip_bytes(dump(pairs), {key: array.tobytes() for key, array in storages.items()})
    model, params, _ = load(directory_with(tmp_path, raw), "sequence-classification")
    assert same(params, to_tree(model.config, state))


def test_of_two_models_in_a_file_the_one_under_the_usual_name_is_read_and_the_other_named(tmp_path):
    state = state_of("v3", PARTS)
    first, storages = described(state)
    second = {name: tensor("0", next(iter(state.values()))) for name in state}
    raw = lambda content: zip_bytes(dump(content), {key: array.tobytes() for key, array in storages.items()})
    model, params, report = load(
        directory_with(tmp_path, raw({"ema": second, "model": first})), "sequence-classification"
    )
    assert same(params, to_tree(model.config, state))
    assert "not weights, not read: ema" in report.notes
    with pytest.raises(InputError, match=r"holds several models \(ema, student\)"):
        load(directory_with(tmp_path, raw({"ema": second, "student": first})))


def test_a_whole_pickled_model_is_named_for_what_it_is(tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(zip_bytes(pickle.dumps(Settings(), 2), {}))
    with pytest.raises(InputError, match=r"holds a whole object, a Settings; save model\.state_dict\(\)"):
        read_weights(path)


@pytest.mark.parametrize(
    "name",
    [
        "os\nsystem",
        "posix\nsystem",
        "subprocess\nPopen",
        "builtins\nexec",
        "torch.hub\nload",
        "torch\nload",
        "x\x1b[31m\ny",
    ],
)
def test_a_call_that_makes_no_known_object_is_refused_and_its_name_is_escaped(name, tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(zip_bytes(b"\x80\x02c" + name.encode() + b"\n(X\x01\x00\x00\x00atR.", {}))
    with pytest.raises(InputError, match="refused: it names") as error:
        read_weights(path)
    assert str(error.value).isprintable()


def test_the_name_of_a_function_that_is_not_called_is_only_a_name(tmp_path):
    """A class among the settings, such as the optimizer's."""
    state = state_of("v3", PARTS)
    pairs, storages = described(state)
    content = {"state_dict": pairs, "optimizer_class": Name("torch.optim.adamw", "AdamW"), "f": Name("os", "system")}
    raw = zip_bytes(dump(content), {key: array.tobytes() for key, array in storages.items()})
    model, params, _ = load(directory_with(tmp_path, raw), "sequence-classification")
    assert same(params, to_tree(model.config, state))
