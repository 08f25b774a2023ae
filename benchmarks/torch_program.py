"""A PyTorch model's forward pass and train step on its own device: what the benchmarks compare with."""

from collections.abc import Callable, Mapping
from typing import Any

import torch


def torch_device() -> torch.device:
    """Returns the GPU if this PyTorch sees one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def torch_program(
    job: str, model: Any, *, bfloat16: bool, rate: float
) -> Callable[[*tuple[Mapping[str, torch.Tensor], ...]], None]:
    """Returns a function that runs ``job`` on one or several batches of the model's arguments, and waits for no GPU.

    Args:
      job: ``forward``, without gradients; or ``train``: forward and backward of the mean of the batches' losses, then
        one update by AdamW.
      bfloat16: compute under autocast; parameters stay as they are.
      rate: learning rate.
    """
    device = next(model.parameters()).device
    cast = lambda: torch.autocast(device.type, dtype=torch.bfloat16, enabled=bfloat16)
    if job == "forward":
        model.eval()

        def forward(*batches: Mapping[str, torch.Tensor]) -> None:
            with torch.no_grad(), cast():
                for batch in batches:
                    model(**batch)

        return forward
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01, fused=device.type == "cuda")

    def step(*batches: Mapping[str, torch.Tensor]) -> None:
        for batch in batches:
            with cast():
                loss = model(**batch).loss / len(batches)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
