"""The public names are those that ``docs/api_stability.md`` lists, each exists, and misspelt ones are explained."""

import importlib
import re
from pathlib import Path

import flax.linen as nn
import pytest

import deberta_jax
from deberta_jax.errors import InputError
from deberta_jax.models import HeadOutput, Model, spec_of_model

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "api_stability.md").read_text(encoding="utf-8").partition("## Names")[2]
LISTED = {
    module: re.findall(r"`(\w+)`", names)
    for module, names in re.findall(r"### `([\w.]+)`\n(.*?)(?=\n### |\Z)", PAGE, re.S)
}


def test_the_page_lists_every_public_module():
    packages = {path.parent.name for path in (ROOT / "deberta_jax").glob("*/__init__.py")}
    modules = {path.stem for path in (ROOT / "deberta_jax").glob("[a-z]*.py")}
    public = {name for name in packages | modules if name in deberta_jax.__all__}
    assert {module.partition(".")[2] for module in LISTED} - {""} == public
    assert len(public) >= 9


@pytest.mark.parametrize("module", LISTED)
def test_the_names_of_a_module_are_those_on_the_page(module):
    found = importlib.import_module(module)
    assert sorted(found.__all__) == sorted(LISTED[module])
    assert [name for name in found.__all__ if getattr(found, name, None) is None] == []
    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        getattr(found, "nothing_of_this_name")  # noqa: B009


def test_submodules_are_attributes():
    assert deberta_jax.training.adamw is importlib.import_module("deberta_jax.training.optimizers").adamw
    assert deberta_jax.data.read_table is importlib.import_module("deberta_jax.data.tables").read_table


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: deberta_jax.PRESETS["debertav3-base"], "no preset 'debertav3-base'; did you mean 'deberta-v3-base'"),
        (lambda: deberta_jax.PRESETS["bert"], "no preset 'bert'"),
        (lambda: deberta_jax.from_pretrained("x", head="sequence-clasification"), "did you mean 'sequence-classific"),
        (lambda: deberta_jax.DebertaEncoder(deberta_jax.DebertaConfig(), attention="palas"), "did you mean 'pallas'"),
        (lambda: deberta_jax.pipeline("text-clasification", "x"), "did you mean 'text-classification'"),
        (lambda: deberta_jax.DebertaConfig().replace(hiden_size=3), "did you mean 'hidden_size'"),
        (lambda: deberta_jax.DebertaConfig().replace(num_labels=0), "num_labels=0: must be a number of labels"),
    ],
)
def test_misspelt_names_are_explained(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_replaced_fields():
    config = deberta_jax.PRESETS["deberta-v3-base"].replace(num_labels=3, hidden_act="relu")
    assert (config.id2label, config.hidden_act) == (("LABEL_0", "LABEL_1", "LABEL_2"), "relu")
    mnli = deberta_jax.PRESETS["deberta-base-mnli"]
    assert mnli.replace(num_labels=3) == mnli, "labels that fit keep their names"


def test_a_class_that_is_no_registered_model(tmp_path):
    class Unregistered(Model[HeadOutput]):
        pass

    with pytest.raises(InputError, match=r"Unregistered: is no entry of deberta_jax\.models\.HEADS"):
        deberta_jax.save_pretrained(tmp_path / "out", Unregistered(deberta_jax.DebertaConfig()), {})
    with pytest.raises(InputError, match="Dense: is no model of deberta_jax"):
        spec_of_model(nn.Dense(3))
    assert not (tmp_path / "out").exists()
