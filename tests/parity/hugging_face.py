"""The same cases through PyTorch transformers."""

import warnings
from typing import Any

import numpy as np
import torch
import transformers

from tests.cases import Arrays, Case, draw_weights

torch.set_num_threads(2)
transformers.logging.set_verbosity_error()

_V1 = {
    "encoder": transformers.DebertaModel,
    "masked-lm": transformers.DebertaForMaskedLM,
    "sequence-classification": transformers.DebertaForSequenceClassification,
    "token-classification": transformers.DebertaForTokenClassification,
    "question-answering": transformers.DebertaForQuestionAnswering,
}
_V2 = {
    "encoder": transformers.DebertaV2Model,
    "masked-lm": transformers.DebertaV2ForMaskedLM,
    "sequence-classification": transformers.DebertaV2ForSequenceClassification,
    "token-classification": transformers.DebertaV2ForTokenClassification,
    "question-answering": transformers.DebertaV2ForQuestionAnswering,
    "multiple-choice": transformers.DebertaV2ForMultipleChoice,
}
_PROBLEM = {"multi_label": "multi_label_classification", "single_label": "single_label_classification"}


def build(case: Case) -> tuple[Any, Arrays]:
    """The model in evaluation mode and its weights by name, as ``draw_weights`` makes them."""
    v1 = case.raw["model_type"] == "deberta"
    kind = transformers.DebertaConfig if v1 else transformers.DebertaV2Config
    raw = {name: value for name, value in case.raw.items() if name != "model_type"}
    config = kind(**raw, problem_type=_PROBLEM.get(case.labels), attn_implementation="eager")
    model = (_V1 if v1 else _V2)[case.head](config).eval()
    joined = case.config.num_attention_heads * case.config.head_size
    if joined != config.hidden_size:
        # transformers reads attention_head_size and then crashes here, where it takes hidden_size for their product.
        for layer in getattr(model, "deberta", model).encoder.layer:
            layer.attention.output.dense = torch.nn.Linear(joined, config.hidden_size)
    state = draw_weights({name: tuple(p.shape) for name, p in model.named_parameters()})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(state[name]))
    return model, _used(state)


def _used(state: Arrays) -> Arrays:
    """An untied decoder has a bias of its own, and ``cls.predictions.bias`` is then read by nothing."""
    bias = state.get("cls.predictions.decoder.bias")
    kept = {name: a for name, a in state.items() if name != "cls.predictions.decoder.bias"}
    return kept if bias is None else kept | {"cls.predictions.bias": bias}


def run(case: Case, model: Any, batch: Arrays) -> tuple[Arrays, Arrays]:
    """Outputs by name and gradients by PyTorch's names, zero where a parameter takes no part."""
    inputs = {name: torch.from_numpy(a) for name, a in batch.items()}
    inputs = {name: a.long() if a.dtype == torch.int32 else a for name, a in inputs.items()}
    cotangent, mask = inputs.pop("cotangent", None), inputs["attention_mask"]
    given = dict(inputs)
    if case.head == "question-answering":
        given["start_positions"], given["end_positions"] = given.pop("starts"), given.pop("ends")
        if case.padding != "none":
            del given["start_positions"], given["end_positions"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = model(**given, output_hidden_states=True, output_attentions=True)
    if cotangent is not None:
        loss = (out.last_hidden_state * cotangent * mask[..., None]).sum() / mask.sum()
    elif out.get("loss") is None:  # transformers' loss would count the logits of padding
        ends = ((out.start_logits, inputs["starts"]), (out.end_logits, inputs["ends"]))
        masked = ((logits.masked_fill(mask == 0, -1e30), positions) for logits, positions in ends)
        loss = sum(torch.nn.functional.cross_entropy(a, p, ignore_index=case.length) for a, p in masked) / 2
    else:
        loss = out.loss
    model.zero_grad()
    loss.backward()
    values = {"loss": loss, "hidden_states": torch.stack(out.hidden_states), "attentions": torch.stack(out.attentions)}
    for name in ("last_hidden_state", "logits", "start_logits", "end_logits"):
        if name in out:
            values[name] = out[name]
    gradients = {
        name: np.zeros(tuple(p.shape), np.float32) if p.grad is None else p.grad.numpy()
        for name, p in model.named_parameters()
    }
    return {name: a.detach().numpy() for name, a in values.items()}, _used(gradients)
