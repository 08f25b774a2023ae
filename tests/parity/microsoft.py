"""Microsoft's own package (``deberta`` 0.1.12 on PyPI), made to run on current Python, numpy and torch.

It holds the encoder, the masked-LM head and the token classifier. The enhanced mask decoder and the replaced-token
head were never released to PyPI; here they are put together from the package's layers, as semantics of the published
training code: the decoder is the encoder's last layer with ``query_states``.
"""

import collections
import collections.abc
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.cases import Arrays, Case, draw_weights

# Names that current versions no longer have and the package still imports.
for _module, _name, _value in (
    (collections, "Sequence", collections.abc.Sequence),
    (np, "int", int),
):
    if not hasattr(_module, _name):
        setattr(_module, _name, _value)

# The package of the models without its __init__, which imports downloaders and tokenizers with needs of their own.
_package = types.ModuleType("DeBERTa.deberta")
_package.__path__ = [str(Path(str(importlib.util.find_spec("DeBERTa").origin)).parent / "deberta")]
sys.modules["DeBERTa.deberta"] = _package

from DeBERTa.deberta import bert, mlm, ops  # noqa: E402
from DeBERTa.deberta.config import ModelConfig  # noqa: E402

ops._softmax_backward_data = lambda grad, out, dim, like: torch._softmax_backward_data(grad, out, dim, like.dtype)
mlm.MaskedLayerNorm = ops.MaskedLayerNorm
mlm.PreLayerNorm = lambda config: (
    torch.nn.Identity()
)  # undefined in the package; the released files have no such weights


class ReplacedTokenHead(torch.nn.Module):
    """Every token joined by the first one, LayerNorm, dense, activation, one logit."""

    def __init__(self, config):
        super().__init__()
        self.dense = torch.nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = ops.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.classifier = torch.nn.Linear(config.hidden_size, 1)
        self.activation = ops.ACT2FN[config.hidden_act]

    def forward(self, states):
        return self.classifier(self.activation(self.dense(self.LayerNorm(states + states[:, :1]))))[..., 0]


class Microsoft(torch.nn.Module):
    """The encoder and one head, under the names of the released files."""

    def __init__(self, case: Case):
        super().__init__()
        terms = case.raw["pos_att_type"]
        config = ModelConfig.from_dict(
            {
                "hidden_act": "gelu",
                "hidden_dropout_prob": 0.1,
                "attention_probs_dropout_prob": 0.1,
                "type_vocab_size": 0,
                "initializer_range": 0.02,
                "layer_norm_eps": 1e-7,
                "max_relative_positions": -1,
                **case.raw,
                "pos_att_type": terms if isinstance(terms, str) else "|".join(terms),
                "padding_idx": case.raw.get("pad_token_id", 0),
            }
        )
        self.case, self.config = case, config
        self.deberta = torch.nn.Module()
        self.deberta.embeddings = bert.BertEmbeddings(config)
        self.deberta.encoder = bert.BertEncoder(config)
        if case.head == "masked-lm":
            width = self.deberta.embeddings.embedding_size
            self.deberta.embeddings.position_embeddings = torch.nn.Embedding(config.max_position_embeddings, width)
            self.lm_predictions = torch.nn.Module()
            self.lm_predictions.lm_head = mlm.MLMPredictionHead(config, config.vocab_size)
        elif case.head == "replaced-token-detection":
            self.mask_predictions = ReplacedTokenHead(config)
        elif case.head == "token-classification":
            self.proj = torch.nn.Linear(config.hidden_size, config.hidden_size)
            self.classifier = torch.nn.Linear(config.hidden_size, case.config.num_labels)
        self.eval()

    def forward(self, input_ids, attention_mask):
        embedded = self.deberta.embeddings(input_ids, torch.zeros_like(input_ids), None, attention_mask)
        states = self.deberta.encoder(embedded, attention_mask)
        if self.case.head == "masked-lm":
            return states, self.decode(input_ids, attention_mask, [embedded, *states])
        if self.case.head == "replaced-token-detection":
            return states, self.mask_predictions(states[-1])
        if self.case.head == "token-classification":
            return states, self.classifier(ops.ACT2FN["gelu"](self.proj(states[-1])))
        return states, None

    def decode(self, input_ids, attention_mask, states):
        encoder, source = self.deberta.encoder, states[-2]
        query = source + self.deberta.embeddings.position_embeddings.weight[: input_ids.shape[1]]
        for _ in range(2):
            query = encoder.layer[-1](
                source,
                encoder.get_attention_mask(attention_mask),
                query_states=query,
                relative_pos=encoder.get_rel_pos(source),
                rel_embeddings=encoder.get_rel_embedding(),
            )
        return self.lm_predictions.lm_head(query, self.deberta.embeddings.word_embeddings.weight)


# What a v1 model lacks: set to zero, they leave Microsoft's one module computing v1.
_NOT_IN_V1 = ("key_proj.bias", "pos_key_proj.bias")


def build(case: Case) -> tuple[Microsoft, Arrays]:
    """The model and its weights by name."""
    model = Microsoft(case)
    state = draw_weights({name: tuple(p.shape) for name, p in model.named_parameters()})
    if case.config.model_type == "deberta":
        state = {name: np.zeros_like(a) if name.endswith(_NOT_IN_V1) else a for name, a in state.items()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(state[name]))
    return model, v1_names(case, state)


def v1_names(case: Case, state: Arrays) -> Arrays:
    """Without the biases that a v1 model does not have."""
    if case.config.model_type != "deberta":
        return state
    return {name: a for name, a in state.items() if not name.endswith(_NOT_IN_V1)}


def run(case: Case, model: Microsoft, batch: Arrays) -> tuple[Arrays, Arrays]:
    """Outputs by name (logits, and every layer's states) and the gradients of the head's loss."""
    ids, mask = (torch.from_numpy(batch[name]).long() for name in ("input_ids", "attention_mask"))
    states, logits = model(ids, mask)
    values: dict[str, Any] = {"layer_states": torch.stack(states)}
    gradients: Arrays = {}
    if logits is not None:
        labels = torch.from_numpy(batch["labels"]).long()
        if case.head == "replaced-token-detection":
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                logits[labels >= 0], labels[labels >= 0].float()
            )
        else:
            loss = torch.nn.functional.cross_entropy(logits[labels >= 0], labels[labels >= 0])
        model.zero_grad()
        loss.backward()
        grads = {
            name: np.zeros(tuple(p.shape), np.float32) if p.grad is None else p.grad.numpy()
            for name, p in model.named_parameters()
        }
        gradients = v1_names(case, grads)
        values |= {"logits": logits, "loss": loss}
    return {name: a.detach().numpy() for name, a in values.items()}, gradients
