"""Models of transformers with weights drawn from one seed, of every generation and head."""

import torch
import transformers

from tests.cases import BASE

GENERATIONS = {
    **BASE,
    "v1 with options": {
        **BASE["v1"],
        "talking_head": True,
        "embedding_size": 16,
        "type_vocab_size": 2,
        "position_biased_input": True,
    },
    "v2 c2p": {**BASE["v2"], "pos_att_type": "c2p", "norm_rel_ebd": "layer_norm"},
    "xl grouped": {**BASE["xl"], "conv_groups": 2, "type_vocab_size": 2},
    "plain": {**BASE["v2"], "relative_attention": False, "position_biased_input": True},
}
CLASSES = {
    "encoder": "Model",
    "masked-lm": "ForMaskedLM",
    "sequence-classification": "ForSequenceClassification",
    "token-classification": "ForTokenClassification",
    "question-answering": "ForQuestionAnswering",
    "multiple-choice": "ForMultipleChoice",
}


def network(generation: str, head: str, dtype: torch.dtype, **options):
    raw = {**GENERATIONS[generation], **options}
    family = "Deberta" if raw.pop("model_type") == "deberta" else "DebertaV2"
    config = getattr(transformers, f"{family}Config")(**raw)
    net = getattr(transformers, family + CLASSES[head])(config).to(dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in net.parameters():
            value.copy_(torch.randn(value.shape, generator=generator))
    return net
