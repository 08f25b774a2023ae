"""Records small checkpoints as PyTorch and transformers write them. Run once, with both installed:

    python tests/weights/make_golden_weights.py

Every value is drawn by name (``tests.cases.draw_weights``), so that the tests need no second copy of them.
"""

from pathlib import Path

import torch
import transformers

from tests.cases import BASE, draw_weights

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "weights"
SMALL = {
    "vocab_size": 20,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 16,
}


def main() -> None:
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for base, family in (("v1", "Deberta"), ("xl", "DebertaV2")):
        raw = {**BASE[base], **SMALL}
        raw.pop("model_type")
        net = getattr(transformers, f"{family}ForSequenceClassification")(
            getattr(transformers, f"{family}Config")(**raw, num_labels=3)
        )
        state = {name: torch.from_numpy(value) for name, value in draw_weights(shapes(net)).items()}
        for kind, dtype in (("f32", torch.float32), ("f16", torch.float16), ("bf16", torch.bfloat16)):
            cast = {name: value.to(dtype) for name, value in state.items()}
            for form in ("zip", "legacy"):
                torch.save(cast, GOLDEN / f"{base}_{kind}_{form}.bin", _use_new_zipfile_serialization=form == "zip")


def shapes(net) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in net.state_dict().items()}


if __name__ == "__main__":
    main()
