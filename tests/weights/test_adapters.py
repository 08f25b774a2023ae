"""LoRA adapters of peft, and its models that were not merged: loaded as the merged model, by the formula in numpy."""

import json
import math

import jax
import numpy as np
import pytest
import safetensors.numpy

from deberta_jax.cli.main import main
from deberta_jax.errors import InputError
from deberta_jax.weights import convert, from_pretrained, inspect, load, load_config, verify
from deberta_jax.weights.opening import tokenizer_directory
from tests.cases import draw_weights, to_tree
from tests.weights.adapters import PARTS, SETTINGS, adapter_in, merged, updates
from tests.weights.files import raw_config, same, state_of

HEAD = "sequence-classification"
QUERY = "deberta.encoder.layer.{}.attention.self.query_proj"
DENSE = "deberta.encoder.layer.{}.output.dense"


def close(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), found, expected)
    assert jax.tree.structure(found) == jax.tree.structure(expected)


@pytest.fixture
def parts(write, tmp_path):
    """(state of the base, its directory, the updates, the trained head): a pre-trained base without a head."""
    state = state_of("v3")
    base = write("base", state, raw_config("v3"))
    found = updates(state, [QUERY.format(0), QUERY.format(1), DENSE.format(1)])
    head = {name: value for name, value in state_of("v3", PARTS).items() if not name.startswith("deberta.")}
    return state, base, found, head


def test_an_adapter_directory_with_the_base_that_it_names(parts, tmp_path):
    state, base, found, head = parts
    directory = adapter_in(tmp_path, found, head, base)
    model, params, report = load(directory, HEAD)
    expected = merged(state, found, 6 / 2) | head
    close(params, to_tree(model.config, expected))
    assert model.config.num_labels == 3
    assert load_config(directory) == load_config(base)
    assert report.count("folded") == len(found) * 3
    assert any("LoRA's updates of 3 weights" in note for note in report.notes)
    rows = {row.name: row for row in report.tensors}
    assert rows[f"{QUERY.format(0)}.weight"].reason == "with LoRA's update of rank 2, scaled by 3"
    assert "folded" in inspect(directory).report.text()


def test_the_base_can_be_given(parts, tmp_path, capsys):
    state, base, found, head = parts
    directory = adapter_in(tmp_path, found, head, "org/unknown model")
    with pytest.raises(
        InputError, match=r"a peft adapter of the base model org/unknown model: no such.*base_model=\.\.\."
    ):
        load(directory, HEAD)
    model, params = from_pretrained(directory, HEAD, base_model=base)
    expected = to_tree(model.config, merged(state, found, 3) | head)
    close(params, expected)
    out = tmp_path / "out"
    main(["convert", str(directory), str(out), "--to", "hf", "--base-model", str(base)])
    assert "3 weights are added to them" in capsys.readouterr().out
    close(from_pretrained(out, HEAD)[1], expected)
    assert verify(directory, out, base_model=base, tolerance=1e-6).passed
    with pytest.raises(InputError, match="is no peft adapter"):
        load(base, base_model=base)


@pytest.mark.parametrize("named", [None, ""])
def test_an_adapter_that_names_no_base(named, parts, tmp_path):
    directory = adapter_in(tmp_path, parts[2], parts[3], named or "", base_model_name_or_path=named)
    with pytest.raises(InputError, match="names no base model; give it"):
        load(directory, HEAD)


def test_a_base_beside_the_adapter_is_found(parts, tmp_path, monkeypatch):
    state, base, found, head = parts
    monkeypatch.chdir(tmp_path)  # ../base may exist beside the directory that tests run in
    directory = adapter_in(tmp_path, found, head, "../base")
    close(load(directory, HEAD)[1], to_tree(load(base)[0].config, merged(state, found, 3) | head))


def test_an_adapter_over_a_base_with_a_head_of_its_own_replaces_it(write, tmp_path):
    state = state_of("v1", PARTS)
    base = write("base", state, raw_config("v1", num_labels=3))
    found = updates(state, ["deberta.encoder.layer.0.attention.self.in_proj"])
    head = {"classifier.weight": np.full((3, 8), 0.5, np.float32), "classifier.bias": np.ones(3, np.float32)}
    model, params, report = load(adapter_in(tmp_path, found, head, base, use_rslora=True), HEAD)
    close(params, to_tree(model.config, merged(state, found, 6 / math.sqrt(2)) | head))
    dropped = {row.name: row.reason for row in report.tensors if row.fate == "dropped"}
    assert dropped == dict.fromkeys(head, "the adapter has its own")


def test_alpha_by_module_dora_and_the_word_table(parts, tmp_path):
    state, base, found, head = parts
    words = "deberta.embeddings.word_embeddings"
    drawn = draw_weights({"A": (2, 20), "B": (8, 2)})
    length = np.linspace(0.5, 2, 8).astype(np.float32)
    directory = adapter_in(
        tmp_path, found, head, base, alpha_pattern={"layer.1.attention.self.query_proj": 10}, use_dora=True
    )
    path = directory / "adapter_model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    tensors |= {
        f"base_model.model.{words}.lora_embedding_A": drawn["A"],
        f"base_model.model.{words}.lora_embedding_B": drawn["B"],
        f"base_model.model.{DENSE.format(1)}.lora_magnitude_vector": length,
    }
    safetensors.numpy.save_file(tensors, path)
    expected = merged(state, found, 3) | head
    one = QUERY.format(1)
    expected |= {f"{one}.weight": merged(state, {one: found[one]}, 5)[f"{one}.weight"]}
    expected[f"{words}.weight"] = state[f"{words}.weight"] + 3 * (drawn["B"] @ drawn["A"]).T
    whole = expected[f"{DENSE.format(1)}.weight"]
    expected[f"{DENSE.format(1)}.weight"] = whole * (length / np.linalg.norm(whole, axis=1))[:, None]
    model, params, _ = load(directory, HEAD)
    close(params, to_tree(model.config, expected))


def test_a_kernel_of_the_convolution(write, tmp_path):
    state = state_of("xl", PARTS)
    base = write("base", state, raw_config("xl", num_labels=3))
    name = "deberta.encoder.conv.conv"
    drawn = draw_weights({"A": (2, 8, 3), "B": (8, 2, 1)})
    directory = adapter_in(tmp_path, {name: (drawn["A"], drawn["B"])}, {}, base)
    expected = dict(state)
    expected[f"{name}.weight"] = state[f"{name}.weight"] + 3 * np.einsum("or,rik->oik", drawn["B"][..., 0], drawn["A"])
    model, params, _ = load(directory, HEAD)
    close(params, to_tree(model.config, expected))


def unmerged(state, found, head):
    """The whole state dict of a peft model: base_layer, lora_A.default, original_module, modules_to_save.default."""
    out = {}
    for name, value in state.items():
        module = name.removesuffix(".weight").removesuffix(".bias")
        out[name.replace(module, f"{module}.base_layer") if module in found else name] = value
    for module, (a, b) in found.items():
        out |= {f"{module}.lora_A.default.weight": a, f"{module}.lora_B.default.weight": b}
    for name, value in head.items():
        part, _, rest = name.partition(".")
        out[f"{part}.original_module.{rest}"] = np.zeros_like(value)
        out[f"{part}.modules_to_save.default.{rest}"] = value
    return {f"base_model.model.{name}": value for name, value in out.items()}


def test_an_unmerged_model(parts, write):
    state, _, found, head = parts
    directory = write("whole", unmerged(state, found, head), raw_config("v3", num_labels=3))
    with pytest.raises(InputError, match=r"updates but not their scale; put peft's adapter_config\.json beside it"):
        load(directory, HEAD)
    (directory / "adapter_config.json").write_text(json.dumps(SETTINGS | {"init_lora_weights": "pissa"}))
    model, params, report = load(directory, HEAD)
    close(params, to_tree(model.config, merged(state, found, 3) | head))
    dropped = [row.name for row in report.tensors if row.fate == "dropped"]
    assert len(dropped) == len(head)
    assert all("original_module" in name for name in dropped)


def test_several_adapters_in_a_file(parts, write):
    state, _, found, head = parts
    tensors = unmerged(state, found, head)
    more = {name.replace(".default.", ".other."): value * 2 for name, value in tensors.items() if ".default." in name}
    directory = write("whole", tensors | more, raw_config("v3", num_labels=3))
    (directory / "adapter_config.json").write_text(json.dumps(SETTINGS))
    with pytest.raises(InputError, match=r"several adapters \(default, other\).*--ignore '\*\.default\*'"):
        load(directory, HEAD)
    model, params, _ = load(directory, HEAD, ignore=["*.other*"])
    close(params, to_tree(model.config, merged(state, found, 3) | head))


def test_an_adapter_that_trained_a_head_alone(write, tmp_path):
    state = state_of("v3", PARTS)
    base = write("base", state, raw_config("v3", num_labels=3))
    head = {name: value + 1 for name, value in state.items() if not name.startswith("deberta.")}
    model, params, _ = load(adapter_in(tmp_path, {}, head, base), HEAD)
    assert same(params, to_tree(model.config, state | head))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"peft_type": "IA3"}, "is a IA3 adapter, which cannot be added"),
        ({"peft_type": "PROMPT_TUNING"}, "is a PROMPT_TUNING adapter"),
        ({"use_qalora": True}, "LoRA adapter with use_qalora"),
        ({"layer_replication": [[0, 1]]}, "LoRA adapter with layer_replication"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' changed the base's weights"),
        ({"lora_alpha": "x"}, "lora_alpha is 'x'"),
        ({"alpha_pattern": {".*query": 3}}, "alpha_pattern '.*query' is a regular expression"),
    ],
)
def test_what_is_not_a_plain_update_is_refused_with_what_to_do(settings, says, parts, tmp_path):
    _, base, found, head = parts
    with pytest.raises(InputError, match=says):
        load(adapter_in(tmp_path, found, head, base, **settings), HEAD)


def test_updates_that_do_not_fit_are_refused_by_name(parts, tmp_path):
    _, base, found, head = parts
    a, b = found[QUERY.format(0)]
    wide = {QUERY.format(0): (np.zeros((2, 9), np.float32), b)}
    with pytest.raises(InputError, match=r"query_proj\.weight has shape \[8, 9\], the weight \[8, 8\]"):
        load(adapter_in(tmp_path, wide, head, base, "wide"), HEAD)
    with pytest.raises(InputError, match=r"layer\.7.*which the base model does not have"):
        load(adapter_in(tmp_path, {QUERY.format(7): (a, b)}, head, base, "deep"), HEAD)
    lone = adapter_in(tmp_path, {}, head | {f"{QUERY.format(0)}.lora_A.weight": a}, base, "lone")
    with pytest.raises(InputError, match="lacks lora_A or lora_B"):
        load(lone, HEAD)


def test_a_directory_with_a_whole_model_and_an_adapter_must_be_told_which(parts, tmp_path):
    state, base, found, head = parts
    adapter = adapter_in(tmp_path, found, head, base)
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        (base / file).write_bytes((adapter / file).read_bytes())
    with pytest.raises(InputError, match="holds a whole model and an adapter; name the file"):
        load(base, HEAD)
    assert same({"deberta": load(base / "model.safetensors")[1]}, to_tree(load_config(base), state))
    close(load(base / "adapter_model.safetensors", HEAD)[1], to_tree(load_config(base), merged(state, found, 3) | head))


def test_labels_and_tokenizer_are_the_adapters_where_it_has_them(parts, tmp_path):
    _, base, found, head = parts
    directory = adapter_in(tmp_path, found, head, base)
    (base / "spm.model").write_bytes(b"base")
    assert tokenizer_directory(directory) == base
    convert(directory, tmp_path / "out", to="hf")
    assert (tmp_path / "out" / "spm.model").read_bytes() == b"base"
    (directory / "spm.model").write_bytes(b"own")
    (directory / "config.json").write_text(json.dumps(raw_config("v3", id2label={0: "x", 1: "y", 2: "z"}, tool=1)))
    assert tokenizer_directory(directory) == directory
    convert(directory, tmp_path / "out", to="hf")
    assert (tmp_path / "out" / "spm.model").read_bytes() == b"own"
    config = load(directory, HEAD)[0].config
    assert config.id2label == ("x", "y", "z")
    assert dict(config.extra) == {"tool": 1}


def test_an_adapter_over_an_orbax_base(parts, tmp_path):
    state, base, found, head = parts
    convert(base, tmp_path / "orbax", to="orbax")
    directory = adapter_in(tmp_path, found, head, tmp_path / "orbax")
    model, params, _ = load(directory, HEAD)
    close(params, to_tree(model.config, merged(state, found, 3) | head))
