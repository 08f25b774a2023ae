"""Records the outputs that the torch-free tests compare with: ``python -m tests.golden.make_golden --microsoft DIR``.

DIR is a clone of github.com/microsoft/DeBERTa: its mask decoder and replaced-token head, never released to PyPI, run
here on the encoder of the PyPI package. Each file holds the case's name, the weights' names and shapes (their values
are drawn by name, see ``tests.cases``) and the outputs; four hold every gradient too.
"""

import argparse
import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.cases import Arrays, Case
from tests.golden.recorded import GRADIENTS, HUGGING_FACE, MICROSOFT, file_of
from tests.parity import hugging_face, microsoft
from tests.parity.microsoft import mlm, ops


def load_classes(clone: Path) -> tuple[Any, Any]:
    """Microsoft's own EnhancedMaskDecoder and LMMaskPredictionHead, over the PyPI package's parts."""
    parts = sys.modules["DeBERTa.deberta"]
    names = {"BertLMPredictionHead": mlm.MLMPredictionHead, "NNModule": torch.nn.Module, "ACT2FN": ops.ACT2FN}
    vars(parts).update(names, LayerNorm=ops.LayerNorm, __all__=[*names, "LayerNorm"])
    for package in ("DeBERTa.apps", "DeBERTa.apps.models"):
        sys.modules[package] = types.ModuleType(package)
    modules = []
    for name in ("masked_language_model", "replaced_token_detection_model"):
        path = clone / "DeBERTa" / "apps" / "models" / f"{name}.py"
        spec: Any = importlib.util.spec_from_file_location(f"DeBERTa.apps.models.{name}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        modules.append(module)
    return modules[0].EnhancedMaskDecoder, modules[1].LMMaskPredictionHead


def run_published(case: Case, model: microsoft.Microsoft, batch: Arrays, decoder: Any, head: Any) -> Arrays:
    """The head's logits from the repository's classes, with the model's weights in them."""
    ids, mask = (torch.from_numpy(batch[name]).long() for name in ("input_ids", "attention_mask"))
    embedded = model.deberta.embeddings(ids, torch.zeros_like(ids), None, mask)
    states = [embedded, *model.deberta.encoder(embedded, mask)]
    if case.head == "replaced-token-detection":
        published = head(model.config)
        ours = model.mask_predictions.state_dict()
        published.load_state_dict({name.replace("classifier", "classifer"): a for name, a in ours.items()})
        return {"logits": published(states[-1], ids, mask)[0].detach().numpy()}
    published = decoder(model.config, model.config.vocab_size)
    published.lm_head = model.lm_predictions.lm_head
    positions = model.deberta.embeddings.position_embeddings.weight[None, : ids.shape[1]].repeat(len(ids), 1, 1)
    words = model.deberta.embeddings.word_embeddings.weight
    # It scores positive labels alone: every position is given one.
    logits, _, _ = published(states, words, torch.ones_like(ids), ids, mask, positions, mask, model.deberta.encoder)
    return {"logits": logits.reshape(*ids.shape, -1).detach().numpy()}


def record(case: Case, state: Arrays, outputs: Arrays, gradients: Arrays) -> int:
    shapes = json.dumps({name: list(a.shape) for name, a in state.items()})
    named = {f"gradient {name}": a for name, a in gradients.items()} if case.name in GRADIENTS else {}
    outputs = {name: np.float32(a) for name, a in outputs.items()}
    np.savez_compressed(file_of(case), shapes=np.array(shapes), **outputs, **named)
    return file_of(case).stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--microsoft", type=Path, required=True, help="a clone of github.com/microsoft/DeBERTa")
    classes = load_classes(parser.parse_args().microsoft)
    total = 0
    for case in HUGGING_FACE:
        model, state = hugging_face.build(case)
        total += record(case, state, *hugging_face.run(case, model, case.batch()))
    for case in MICROSOFT:
        model, state = microsoft.build(case)
        batch = case.batch()
        outputs, gradients = microsoft.run(case, model, batch)
        if case.head != "token-classification":
            published = run_published(case, model, batch, *classes)
            print(case.name, "published - composed:", np.abs(published["logits"] - outputs["logits"]).max())
            outputs |= published
        total += record(case, state, outputs, gradients)
    print(f"{len(HUGGING_FACE) + len(MICROSOFT)} files, {total / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
