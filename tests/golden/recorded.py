"""Which cases have recorded outputs, and where."""

from pathlib import Path

from tests.cases import Case

_DECODER = {"legacy": False, "mask_decoder": True}

HUGGING_FACE = (
    Case("golden-v1-encoder", "v1", options={"talking_head": False, "type_vocab_size": 2}, inputs=("token_type_ids",)),
    Case("golden-v1-masked-lm", "v1", "masked-lm"),
    Case("golden-v1-question-answering", "v1", "question-answering", padding="none"),
    Case("golden-v2-unshared", "v2", options={"position_buckets": 8, "position_biased_input": True}, length=30),
    Case("golden-v2-multiple-choice", "v2", "multiple-choice", length=7),
    Case("golden-v3-sequence-classification", "v3", "sequence-classification"),
    Case("golden-v3-left", "v3", padding="left", options={"embedding_size": 20}),
    Case("golden-v3-long", "v3", options={"num_hidden_layers": 1, "max_relative_positions": 24}, length=40),
    # Distances beyond the relative table's range, by the default rule: the index alone is clamped.
    Case("golden-v1-short-range", "v1", options={"max_relative_positions": 12, "num_hidden_layers": 1}, length=45),
    Case("golden-v2-short-range", "v2", options={"max_relative_positions": 20, "num_hidden_layers": 1}, length=45),
    Case("golden-xl-token-classification", "xl", "token-classification"),
)
MICROSOFT = (
    Case("golden-v1-mask-decoder", "v1", "masked-lm", _DECODER),
    Case("golden-v3-mask-decoder", "v3", "masked-lm", _DECODER),
    Case("golden-xl-mask-decoder", "xl", "masked-lm", {**_DECODER, "num_hidden_layers": 3}),
    Case("golden-v3-replaced-token", "v3", "replaced-token-detection"),
    Case("golden-xl-replaced-token", "xl", "replaced-token-detection"),
    Case("golden-v3-microsoft-classifier", "v3", "token-classification", {"classifier_proj": True}),
)
GRADIENTS = (
    "golden-v1-masked-lm",
    "golden-v3-sequence-classification",
    "golden-xl-token-classification",
    "golden-xl-mask-decoder",
)


def file_of(case: Case) -> Path:
    return Path(__file__).parent / f"{case.name.removeprefix('golden-')}.npz"
