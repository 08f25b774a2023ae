"""config.json as other tools write it: what is not architecture is kept and named, a misspelt field is not."""

import dataclasses
import json
import logging

import jax
import jax.numpy as jnp
import pytest

from deberta_jax.config import DebertaConfig
from deberta_jax.errors import InputError, brief, listed, printable
from tests.cases import BASE

V1, V2, V3 = BASE["v1"], BASE["v2"], BASE["v3"]

# As cross-encoders of sentence-transformers, multi-task models, fine-tuning tools and older transformers write them.
HARMLESS = {
    "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity", "version": "4.0.1"},
    "sbert_ce_default_activation_function": "torch.nn.modules.activation.Sigmoid",
    "tasks": ["glue/mnli", "glue/qnli"],
    "classifiers_size": [3, 2],
    "max_length": 512,
    "model_max_length": 512,
    "top_k": 5,
    "quantization_config": {"load_in_8bit": True, "quant_method": "bitsandbytes"},
    "custom_pipelines": {"nli": {"impl": "nli.Pipeline"}},
    "widget": [{"text": "A text."}],
    "language": "en",
    "license": "mit",
    "tags": ["nli"],
    "pipeline_tag": "text-classification",
    "datasets": ["multi_nli"],
    "max_seq_length": 256,
    "vocab_file": "spm.model",
    "classifier_dropout": None,
    "hidden_dropout": 0.1,
    "attention_dropout": 0.1,
    "position_embedding_type": "absolute",
    "num_layers": 12,
    "num_heads": 12,
    "embedding_dim": 768,
    "loss_type": "ce",
    "label_names": ["labels"],
    "label_smoothing": 0.1,
    "temperature": 1.0,
    "do_sample": False,
    "num_beams": 1,
    "min_length": 0,
    "repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "early_stopping": False,
    "no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "num_return_sequences": 1,
    "diversity_penalty": 0.0,
    "encoder_no_repeat_ngram_size": 0,
    "forced_bos_token_id": None,
    "remove_invalid_values": False,
    "exponential_decay_length_penalty": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "typical_p": 1.0,
    "top_p": 1.0,
    "num_beam_groups": 1,
    "output_scores": False,
    "return_dict_in_generate": False,
    "tie_encoder_decoder": False,
    "tf_legacy_loss": False,
    "cls_token_id": 1,
    "mask_token_id": 128000,
    "unk_token_id": 3,
    "attn_implementation": "eager",
    "use_flash_attention": False,
    "entailment_id": 0,
    "train_batch_size": 16,
    "learning_rate": 1e-5,
    "seed": 0,
    "trainer": {"fp16": True},
    "wandb_run": "abc",
    "base_model": "microsoft/deberta-v3-base",
    "threshold": 0.5,
    "best_threshold": [0.4, 0.6],
    "regression": False,
    "extra": 1,
    "é": "é",
    "2": 2,
    "": 0,
    "summary_type": "first",
    "adapter_config": {},
    "onnx": None,
    "xla_device": None,
}


def read(raw, **changes):
    return DebertaConfig.from_hf({**raw, **changes})


@pytest.mark.parametrize("base", BASE)
@pytest.mark.parametrize("key", HARMLESS)
def test_a_key_that_no_model_reads_is_kept_and_changes_nothing(key, base):
    config = read(BASE[base], **{key: HARMLESS[key]})
    plain = read(BASE[base])
    assert config == plain
    assert hash(config) == hash(plain)
    assert config.unknown_keys == (() if key == "quantization_config" else (key,))
    kept = {} if key == "quantization_config" else {key: HARMLESS[key]}
    assert config.to_hf() == {**kept, **plain.to_hf()}


def test_unknown_keys_are_named_once_whatever_reads_the_file(tmp_path, caplog):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**V3, **HARMLESS}))
    with caplog.at_level(logging.INFO, "deberta_jax"):
        for _ in range(3):
            DebertaConfig.from_hf(path)
    (line,) = caplog.messages
    assert str(path) in line
    assert "sentence_transformers, sbert_ce_default_activation_function, tasks" in line
    assert f"and {len(HARMLESS) - 10} more" in line
    assert "quantization_config is not" in line


def test_what_transformers_itself_writes_is_kept_without_a_message(tmp_path, caplog):
    path = tmp_path / "config.json"
    path.write_text(
        json.dumps(
            {
                **V3,
                "architectures": ["DebertaV2ForMaskedLM"],
                "transformers_version": "4.40.0",
                "torch_dtype": "float16",
                "_name_or_path": "x",
                "auto_map": {"AutoModel": "code.Model"},
                "tokenizer_class": "DebertaV2Tokenizer",
                "eos_token_id": None,
                "finetuning_task": "mnli",
            }
        )
    )
    with caplog.at_level(logging.INFO, "deberta_jax"):
        config = DebertaConfig.from_hf(path)
    assert not caplog.messages
    assert dict(config.extra) == {
        "tokenizer_class": "DebertaV2Tokenizer",
        "eos_token_id": None,
        "finetuning_task": "mnli",
    }
    assert config.unknown_keys == ()


def test_kept_keys_are_immutable_and_travel_with_every_copy_of_the_config():
    value = {"list": [1, {"deep": None}], "text": "é"}
    config = read(V3, tool=value)
    value["list"].append(2)
    config.extra["tool"]["list"].clear()
    assert config.extra["tool"] == {"list": [1, {"deep": None}], "text": "é"}
    with pytest.raises(TypeError):
        config.extra["tool"] = 1  # pyright: ignore[reportIndexIssue]
    for other in (dataclasses.replace(config, id2label=("a", "b", "c")), DebertaConfig.from_hf(config.to_hf())):
        assert other.extra == config.extra
    assert dataclasses.asdict(config)["extra"] == config.extra
    assert "tool" not in repr(config)  # which names the cache of plans


def test_kept_keys_do_not_compile_a_program_again():
    traces = []

    @jax.jit
    def double(x):
        return x

    def body(config, x):
        traces.append(config)
        return double(x)

    jitted = jax.jit(body, static_argnums=0)
    for config in (read(V3), read(V3, tool=1), read(V3, tool=2)):
        jitted(config, jnp.ones(2))
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("hiden_size", "hidden_size"),
        ("hidden_sizes", "hidden_size"),
        ("hiddensize", "hidden_size"),
        ("hidden-size", "hidden_size"),
        ("hiddenSize", "hidden_size"),
        ("Hidden_Size", "hidden_size"),
        ("hiddne_size", "hidden_size"),
        ("max_relative_position", "max_relative_positions"),
        ("max_postion_embedings", "max_position_embeddings"),
        ("position_bucket", "position_buckets"),
        ("share_attn_key", "share_att_key"),
        ("pos_attn_type", "pos_att_type"),
        ("norm_rel_emb", "norm_rel_ebd"),
        ("conv_kernal_size", "conv_kernel_size"),
        ("relative_attn", None),
        ("layer_norm_epss", "layer_norm_eps"),
        ("num_label", "num_labels"),
        ("id2labels", "id2label"),
        ("padding_id", "padding_idx"),
        ("vocab_szie", "vocab_size"),
        ("model_types", "model_type"),
        ("vocab_file", None),
        ("num_layers", None),
    ],
)
def test_near_misspellings_of_fields_are_refused_with_the_field(key, meant):
    if meant is None:
        assert read(V3, **{key: 1}).extra[key] == 1
        return
    with pytest.raises(InputError, match=rf"unknown key {key} \(did you mean {meant}\?\)"):
        read(V3, **{key: 1})


@pytest.mark.timeout(60)
def test_very_many_unknown_keys_are_looked_at_once_each():
    """Comparing each with every field by difflib would take minutes."""
    raw = {**V3, **{f"hidden_{i:06d}": i for i in range(200_000)}}
    assert len(DebertaConfig.from_hf(raw).extra) == 200_000


def test_names_from_a_file_are_shown_escaped_and_short(tmp_path, caplog):
    names = {"red\x1b[31m": 1, "line\nbreak": 2, "right\u202eleft": 3, "long" * 500: 4, "\ud800": 5}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**V3, **names}))
    with caplog.at_level(logging.INFO, "deberta_jax"):
        config = DebertaConfig.from_hf(path)
    (line,) = caplog.messages
    assert line.isprintable()
    assert len(line) < 600
    assert r"red\x1b[31m, line\nbreak, right\u202eleft, longlong" in line
    assert json.loads(json.dumps(config.to_hf()))["red\x1b[31m"] == 1
    for changes in (
        {"hiden\x1b_size": 1},
        {"hidden_act": "ge\x1blu" * 999},
        {"pooling": {"a\x07" * 999: 1}},
        {"model_type": "\x1b" * 999},
        {"pos_att_type": ["\x1b" * 999]},
    ):
        with pytest.raises(InputError) as error:
            read(V3, **changes)
        assert str(error.value).isprintable()
        assert len(str(error.value)) < 1000


def test_texts_for_messages():
    assert printable("plain, é and 漢字") == "plain, é and 漢字"
    assert printable("a\tb\x00") == r"a\tb\x00"
    assert brief("x" * 61) == "x" * 60 + "..."
    assert listed(range(12)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"
    assert str(InputError("a\nb")) == r"a\nb"


@pytest.mark.parametrize(
    "changes",
    [
        {"num_labels": "3"},
        {"num_labels": 0},
        {"num_labels": True},
        {"id2label": 3},
        {"id2label": "abc"},
        {"id2label": {"0": "a", "x": "b"}},
        {"label2id": ["a"]},
        {"label2id": {"a": None}},
        {"label2id": {"a": [0]}},
        {"label2id": {"a": 0, "b": 0}},
        {"pooling": "mean"},
        {"pos_att_type": 3},
        {"pos_att_type": [1]},
        {"hidden_size": 32.5},
        {"hidden_size": True},
        {"layer_norm_eps": float("nan")},
        {"norm_rel_ebd": 3},
        {"embedding_size": "x"},
        {"attention_head_size": -4},
        {"cls_dropout": "0.1"},
        {"problem_type": 1},
        {"model_type": ["deberta"]},
        {"initializer_range": float("inf")},
    ],
)
def test_values_of_the_wrong_kind_are_refused_in_a_line_that_names_the_file(changes, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**V3, **changes}))
    with pytest.raises(InputError, match=r"config\.json: ") as error:
        DebertaConfig.from_hf(path)
    assert next(iter(changes)).split(".")[0][:5] in str(error.value).replace("id2label", "label2id id2label")


@pytest.mark.parametrize("text", ["", "{", "[1]", "nul", "[" * 100_000, "\xff"])
def test_a_file_that_is_no_object_is_named(text, tmp_path):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"config\.json: "):
        DebertaConfig.from_hf(tmp_path / "config.json")


def test_id2label_with_one_name_twice_is_numbered(tmp_path, caplog):
    path = tmp_path / "config.json"
    labels = {"0": "other", "1": "person", "2": "other", "3": "other_2", "4": "other"}
    path.write_text(json.dumps({**V3, "id2label": labels, "label2id": {"other": 4, "person": 1, "other_2": 3}}))
    with caplog.at_level(logging.INFO, "deberta_jax"):
        config = DebertaConfig.from_hf(path)
    assert config.id2label == ("other", "person", "other_2_", "other_2", "other_4")
    assert len(config.label2id) == 5
    (line,) = caplog.messages
    assert line == f"{path}: id2label has one name twice: other (id 2) is other_2_, other (id 4) is other_4"
    with pytest.raises(InputError, match=r"id2label=.*one name twice"):
        DebertaConfig(id2label=("a", "a"))


def test_fields_do_not_hide_among_the_kept_keys():
    with pytest.raises(InputError, match="extra: hidden_size is a field"):
        DebertaConfig(extra={"hidden_size": 3})
    with pytest.raises(InputError, match="extra: is no JSON object"):
        DebertaConfig(extra={"a": {1, 2}})


@pytest.mark.parametrize(
    ("base", "options", "clamps"),
    [
        ("v1", {}, False),  # no buckets
        ("v2", {}, False),
        ("v2", {"max_relative_positions": 20}, False),
        ("v3", {}, True),  # as released: the maximum distance is max_position_embeddings
        ("v3", {"max_relative_positions": 64}, True),
        ("v3", {"max_relative_positions": 100}, True),
        ("v3", {"max_relative_positions": 63}, False),  # row 0 was trained
        ("xl", {}, True),
        ("v1", {"long_positions": "clamp"}, True),
        ("v3", {"long_positions": "hf"}, False),
    ],
)
def test_distances_are_clamped_first_only_where_row_0_was_never_trained(base, options, clamps):
    config = read(BASE[base], **options)
    assert config.clamps_distances is clamps
    assert config.to_hf().get("long_positions") == options.get("long_positions")
    assert DebertaConfig.from_hf(config.to_hf()) == config
