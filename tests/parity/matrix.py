"""The configurations compared with transformers: generations x heads x options."""

from tests.cases import BASE, Case

_HEADS = ("encoder", "masked-lm", "sequence-classification", "token-classification", "question-answering")


def _heads() -> list[Case]:
    cases = [Case(f"{base}-{head}", base, head) for base in BASE for head in _HEADS]
    cases += [Case(f"{base}-multiple-choice", base, "multiple-choice", length=7) for base in ("v2", "v3", "xl")]
    cases += [Case(f"{base}-question-answering-full", base, "question-answering", padding="none") for base in BASE]
    for base in ("v1", "v3"):
        cases.append(Case(f"{base}-masked-lm-original", base, "masked-lm", {"legacy": False}))
        cases += [
            Case(f"{base}-classify-{labels}", base, "sequence-classification", labels=labels)
            for labels in ("regression", "multi_label", "soft", "single_label")
        ]
    cases.append(Case("v3-masked-lm-untied", "v3", "masked-lm", {"tie_word_embeddings": False}))
    cases.append(Case("v1-masked-lm-narrow", "v1", "masked-lm", {"embedding_size": 24}))
    cases.append(Case("v3-masked-lm-narrow", "v3", "masked-lm", {"embedding_size": 48}))
    return cases


def _options() -> list[Case]:
    cases = []
    common = {
        "c2p": {"pos_att_type": "c2p"},
        "p2c": {"pos_att_type": ["p2c"]},
        "content-only": {"pos_att_type": []},
        "absolute-only": {"relative_attention": False, "pos_att_type": [], "position_biased_input": True},
        "relative-off-scale-on": {"relative_attention": False},
        "positions-types": {"position_biased_input": True, "type_vocab_size": 2},
        "narrow": {"embedding_size": 20, "type_vocab_size": 2, "position_biased_input": True},
        "short-range": {"max_relative_positions": 6},
    }
    for base in ("v1", "v2", "v3"):
        for name, options in common.items():
            if base == "v3" and name == "short-range":
                options = {"max_relative_positions": 9}
            inputs = ("token_type_ids",) if "type_vocab_size" in options else ()
            cases.append(Case(f"{base}-{name}", base, options=options, inputs=inputs))
    cases += [
        Case("v1-talking-heads", "v1", options={"talking_head": True}),
        Case("v2-buckets", "v2", options={"position_buckets": 8}, length=40),
        Case("v2-table-norm", "v2", options={"norm_rel_ebd": "layer_norm"}),
        Case("v2-shared-key", "v2", options={"share_att_key": True}),
        Case("v3-unshared-key", "v3", options={"share_att_key": False}),
        Case("v3-shared-c2p-plain-table", "v3", options={"pos_att_type": "c2p", "norm_rel_ebd": "none"}),
        Case("v2-head-size", "v2", options={"attention_head_size": 6}),
        Case("v3-head-size", "v3", options={"attention_head_size": 12}),
        Case("xl-kernel-1", "xl", options={"conv_kernel_size": 1, "conv_act": "tanh"}),
        Case("xl-kernel-5-groups", "xl", options={"conv_kernel_size": 5, "conv_groups": 4, "conv_act": "tanh"}),
        Case("xl-kernel-7-long", "xl", options={"conv_kernel_size": 7, "conv_groups": 2}, length=23),
        Case("v2-conv", "v2", options={"conv_kernel_size": 3, "conv_act": "relu", "position_buckets": 8}),
        Case("v1-activations", "v1", "masked-lm", {"hidden_act": "gelu_new"}),
        Case("v3-activations", "v3", "sequence-classification", {"hidden_act": "silu", "pooler_hidden_act": "mish"}),
        Case("v3-norm-epsilon", "v3", options={"layer_norm_eps": 1e-3}),
        Case("v3-pad-id", "v3", "masked-lm", {"pad_token_id": 5}),
    ]
    return cases


def _inputs_and_shapes() -> list[Case]:
    absolute = {"position_biased_input": True}
    cases = [Case(f"{base}-left", base, padding="left") for base in BASE]
    cases += [Case(f"{base}-full", base, padding="none") for base in BASE]
    cases += [Case(f"{base}-one-token", base, length=1, padding="none") for base in ("v1", "v3", "xl")]
    cases += [
        Case("v3-two-tokens", "v3", length=2),
        Case("v1-embeds", "v1", inputs=("inputs_embeds",)),
        Case("v3-embeds-narrow", "v3", options={"embedding_size": 20}, inputs=("inputs_embeds",)),
        Case("v2-position-ids", "v2", options=absolute, inputs=("position_ids",)),
        Case("v1-position-ids-left", "v1", options=absolute, inputs=("position_ids",), padding="left"),
        # Beyond the trained range the default rule without buckets is that of transformers;
        # test_losses_and_long_positions compares models with buckets.
        Case("v1-long", "v1", options={"num_hidden_layers": 1}, length=150),
        Case("v2-long", "v2", options={"num_hidden_layers": 1}, length=150),
        Case("v3-short-range-long", "v3", options={"num_hidden_layers": 1, "max_relative_positions": 30}, length=150),
        Case("v1-600", "v1", options={"max_position_embeddings": 512, "num_hidden_layers": 1}, length=600),
        Case("v3-128-wide", "v3", options={"hidden_size": 128, "num_attention_heads": 2, "num_hidden_layers": 4}),
        Case(
            "v3-384-wide",
            "v3",
            "sequence-classification",
            {
                "hidden_size": 384,
                "num_attention_heads": 6,
                "intermediate_size": 1536,
                "num_hidden_layers": 3,
                "position_buckets": 256,
                "max_position_embeddings": 512,
            },
            length=64,
        ),
        Case(
            "v3-768-wide",
            "v3",
            "token-classification",
            {
                "hidden_size": 768,
                "num_attention_heads": 12,
                "intermediate_size": 3072,
                "position_buckets": 256,
                "max_position_embeddings": 512,
                "vocab_size": 1000,
            },
            length=48,
        ),
        Case(
            "v1-768-wide",
            "v1",
            "masked-lm",
            {
                "hidden_size": 768,
                "num_attention_heads": 12,
                "intermediate_size": 3072,
                "max_position_embeddings": 512,
                "vocab_size": 1000,
            },
            length=48,
        ),
    ]
    return cases


CASES = [*_heads(), *_options(), *_inputs_and_shapes()]

# Compared with their gradients in every run; those of all others take minutes more.
QUICK_GRADIENTS = (
    "v1-masked-lm",
    "v1-sequence-classification",
    "v1-talking-heads",
    "v1-position-ids-left",
    "v2-buckets",
    "v2-multiple-choice",
    "v2-positions-types",
    "v3-masked-lm-narrow",
    "v3-question-answering-full",
    "v3-classify-soft",
    "v3-masked-lm-untied",
    "v3-left",
    "xl-token-classification",
    "xl-kernel-5-groups",
)
