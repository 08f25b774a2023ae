"""DebertaConfig: what it reads, what it refuses, and that what it writes reads back equal."""

import dataclasses
import json

import pytest

from deberta_jax.config import DebertaConfig
from deberta_jax.errors import InputError
from deberta_jax.presets import PRESETS
from tests.cases import BASE

V1, V3 = BASE["v1"], BASE["v3"]


def read(raw, **changes):
    return DebertaConfig.from_hf({**raw, **changes})


@pytest.mark.parametrize("base", BASE)
def test_what_is_written_reads_back_equal(base, tmp_path):
    config = read(BASE[base], id2label={"0": "no", "1": "yes", "2": "maybe"}, type_vocab_size=2)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_hf()))
    assert DebertaConfig.from_hf(path) == config
    assert hash(DebertaConfig.from_hf(path)) == hash(config)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_the_released_configurations(name, data_dir):
    """Field by field but for the head: files say nothing about it, or say what the library's class would default to."""
    released = DebertaConfig.from_hf(data_dir / "configs" / "released" / f"{name}.json")
    assert released.head_size == PRESETS[name].head_size
    head = {"legacy": False, "id2label": PRESETS[name].id2label}
    released = dataclasses.replace(released, attention_head_size=None, **head)
    assert {**dataclasses.asdict(released), "pos_att_type": sorted(released.pos_att_type)} == {
        **dataclasses.asdict(PRESETS[name]),
        "pos_att_type": sorted(PRESETS[name].pos_att_type),
    }


def test_microsoft_pretraining_configurations_are_read(data_dir):
    folder = data_dir / "configs" / "microsoft_pretraining"
    base = DebertaConfig.from_hf({**json.loads((folder / "deberta_base.json").read_text()), "model_type": "deberta"})
    assert (base.hidden_size, base.relative_attention, base.position_biased_input) == (768, True, False)
    both = json.loads((folder / "rtd_base.json").read_text())
    with pytest.raises(InputError, match="generator"):
        DebertaConfig.from_hf(both)
    generator, discriminator = (DebertaConfig.from_hf(both[part]) for part in ("generator", "discriminator"))
    assert generator.num_hidden_layers * 2 == discriminator.num_hidden_layers == 12
    assert discriminator.share_att_key
    assert discriminator.normalizes_relative_table


@pytest.mark.parametrize("terms", ["p2c|c2p", "P2C | C2P", ["p2c", "c2p"], ("p2c", "c2p")])
def test_terms_are_read_from_text_and_lists(terms):
    assert read(V3, pos_att_type=terms).pos_att_type == ("p2c", "c2p")


@pytest.mark.parametrize("terms", ["none", "", [], None, ["none"]])
def test_pos_att_type_none_is_no_term(terms):
    """transformers counts "none" as a term of a v1 model's scale; no model was trained so."""
    for raw in (V1, V3):
        config = read(raw, pos_att_type=terms)
        assert config.pos_att_type == ()
        assert config.score_scale == pytest.approx(config.head_size**-0.5)


def test_the_score_scale_counts_terms_that_are_switched_off():
    config = read(V3, relative_attention=False)
    assert config.relative_terms == ()
    assert config.score_scale == pytest.approx((3 * config.head_size) ** -0.5)


def test_a_missing_pos_att_type_is_no_term():
    raw = {name: value for name, value in V3.items() if name != "pos_att_type"}
    assert DebertaConfig.from_hf(raw).pos_att_type == ()


def test_z_steps_is_ignored():
    assert read(V3, z_steps=2) == read(V3)


def test_another_pooler_width_is_refused():
    with pytest.raises(InputError, match="pooler_hidden_size 24"):
        read(V3, pooler_hidden_size=24)
    assert read(V3, pooler_hidden_size=32) == read(V3)


def test_a_v1_model_ignores_attention_head_size():
    assert read(V1, attention_head_size=16).head_size == 8
    assert read(V3, attention_head_size=16).head_size == 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pos_att_type": "c2p|p2p"}, "pos_att_type.*p2p runs in no published code"),
        ({"pos_att_type": "c2c"}, "pos_att_type"),
        ({"pos_att_type": "c2p|c2p"}, "pos_att_type.*twice"),
        ({"hidden_size": 30}, "num_attention_heads=4.*hidden_size=30"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"hidden_act": "gleu"}, "hidden_act='gleu'.*'gelu'"),
        ({"pooler_hidden_act": "prelu"}, "pooler_hidden_act"),
        ({"hidden_dropout_prob": 1.0}, "hidden_dropout_prob"),
        ({"pad_token_id": 96}, "pad_token_id"),
        ({"norm_rel_ebd": "batch_norm"}, "norm_rel_ebd"),
        ({"position_buckets": 1}, "position_buckets"),
        ({"position_buckets": 200}, "position_buckets"),
        ({"conv_kernel_size": 4}, "conv_kernel_size.*odd"),
        ({"conv_kernel_size": 3, "conv_groups": 5}, "conv_groups"),
        ({"problem_type": "ranking"}, "problem_type"),
        ({"long_positions": "wrap"}, "long_positions"),
        ({"mask_decoder": True}, "mask_decoder"),
        ({"mask_decoder": True, "legacy": False, "embedding_size": 8}, "mask_decoder.*embedding_size"),
        ({"tie_word_embeddings": False, "legacy": False}, "tie_word_embeddings"),
        ({"talking_head": True}, "talking_head.*v1"),
        ({"hidden_siz": 3}, "unknown key hidden_siz .did you mean hidden_size"),
        ({"model_type": "bert"}, "model_type 'bert' is not DeBERTa"),
        ({"num_labels": 3, "id2label": {"0": "a"}}, "num_labels is 3 but id2label has 1"),
        ({"id2label": {"0": "a", "2": "b"}}, "id2label must number"),
        ({"id2label": {"a": "0"}}, "id2label has a key"),
        ({"id2label": {}}, "id2label"),
        ({"pooling": {"kind": "mean"}}, "pooling.kind"),
    ],
)
def test_what_no_model_has_is_refused_by_name(changes, message):
    with pytest.raises(InputError, match=message) as caught:
        read(V3, **changes)
    assert "\n" not in str(caught.value)


def test_v2_fields_are_refused_in_a_v1_config_made_by_hand():
    with pytest.raises(InputError, match=r"position_buckets=8.*v1"):
        DebertaConfig(model_type="deberta", position_buckets=8)
    assert read(V1, position_buckets=8) == read(V1)  # transformers' v1 model ignores it, so its files may hold it


def test_files_that_are_no_config_are_named(tmp_path):
    with pytest.raises(InputError, match=r"config\.json: no such file"):
        DebertaConfig.from_hf(tmp_path / "config.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(InputError, match=r"broken\.json: not readable as JSON"):
        DebertaConfig.from_hf(tmp_path / "broken.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(InputError, match="expected a JSON object"):
        DebertaConfig.from_hf(tmp_path / "list.json")
    with pytest.raises(InputError, match="model_type is missing"):
        DebertaConfig.from_hf({"hidden_size": 8})


def test_labels_come_from_any_of_their_three_fields():
    assert read(V3, id2label={"1": "b", "0": "a"}).id2label == ("a", "b")
    assert read(V3, label2id={"b": 1, "a": 0}).label2id == {"a": 0, "b": 1}
    assert read(V3, num_labels=3).id2label == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert read(V3, num_labels=3).num_labels == 3


def test_microsoft_names_are_understood():
    config = read(V3, padding_idx=3, pooling={"dropout": 0.2, "hidden_act": "tanh", "hidden_size": 32})
    assert (config.pad_token_id, config.pooler_dropout, config.pooler_hidden_act) == (3, 0.2, "tanh")
