"""Times of one attention in PyTorch: its plain attention, transformers' DeBERTa, flashdeberta and disentangled-flash.

The DeBERTa modules get query, key, value and both position tables in place of their projections, so that attention
alone is timed, as in JAX. Each is timed in turn with PyTorch's plain attention, and those that compute DeBERTa's are
compared with transformers' module in float32.
"""

import functools
from collections.abc import Callable
from typing import Any

from machine import load_torch
from timing import seconds_per_call
from worker import Case, Request, Skip, digits, times_row

FULL = ((32, 512), (256, 128), (4, 2048), (1, 8192)), (12, 64)
TINY = ((2, 16),), (2, 16)
JOBS = ("forward", "forward+backward")
PLAIN, TRANSFORMERS = "plain, torch", "transformers"
# Half the rows of the position tables.
SPAN = {False: 256, True: 8}
# Longer texts are not compared: transformers' float32 scores would need the memory.
_COMPARED_LENGTH = 2048
# Of the context's error in bfloat16; a wrong index or sign makes one of about 1.
_LIMIT = 3e-2
_ROUNDS = 5

Shape = tuple[int, int, int, int]


def cases(request: Request) -> list[Case]:
    """Returns the cases, shape by shape."""
    shapes, heads = TINY if request.tiny else FULL
    return [
        Case(
            f"{name}, {batch}x{length} {job}",
            functools.partial(measure, name, (batch, length, *heads), job, request),
            group=name,
        )
        for batch, length in shapes
        for name in (PLAIN, *MODULES)
        for job in JOBS
    ]


def measure(name: str, shape: Shape, job: str, request: Request) -> dict[str, Any]:
    """Returns the milliseconds of a call, their ratio to plain attention's, and the error where there is one."""
    torch = load_torch(request.tiny)
    arrays = make_arrays(shape, SPAN[request.tiny])
    attend = attention(name, arrays, request.tiny)
    plain = _job(job, attention(PLAIN, arrays, request.tiny), arrays)
    ours = _job(job, attend, arrays)
    nothing = torch.zeros(8, device=arrays["query"].device)
    wait = (lambda _: torch.cuda.synchronize()) if nothing.is_cuda else (lambda _: None)
    median = seconds_per_call({"plain": plain, "ours": ours, "dispatch": lambda: nothing + 1}, wait, _ROUNDS)
    batch, length, *_ = shape
    row = times_row(name, batch, length, job, median)
    if name != PLAIN and job == "forward" and length <= _COMPARED_LENGTH:
        first = {key: a if key.startswith("pos") else a[:1] for key, a in arrays.items()}
        exact = {key: a.detach().float() for key, a in first.items()}
        with torch.no_grad():
            expected = attention(TRANSFORMERS, exact, request.tiny)()
            error = (attention(name, first, request.tiny)().float() - expected).norm() / expected.norm()
        row |= {"error": digits(error.item(), 2), "status": "ok" if error.item() <= _LIMIT else "failed"}
    return row


def make_arrays(shape: Shape, span: int) -> dict[str, Any]:
    """Returns query, key, value [B,T,N,H] and tables [2 * span,N,H], bfloat16, on the GPU where there is one."""
    import torch
    from torch_program import torch_device

    batch, length, heads, size = shape
    generator = torch.Generator().manual_seed(0)
    rows = {"query": (batch, length), "key": (batch, length), "value": (batch, length)}
    rows |= {"pos_key": (2 * span,), "pos_query": (2 * span,)}
    draw = lambda lead: torch.randn(*lead, heads, size, generator=generator).to(torch_device(), torch.bfloat16)
    return {name: draw(lead).requires_grad_() for name, lead in rows.items()}


def attention(name: str, arrays: dict[str, Any], tiny: bool) -> Callable[[], Any]:
    """Returns a function that computes the context [B,T,N * H] from the arrays.

    Raises:
      Skip: a package cannot be imported.
    """
    import torch

    if name == PLAIN:
        query, key, value = (arrays[a].transpose(1, 2) for a in ("query", "key", "value"))
        run = functools.partial(torch.nn.functional.scaled_dot_product_attention, query, key, value)
        return lambda: run().transpose(1, 2).flatten(2)
    try:
        return MODULES[name](arrays)
    except ImportError as error:
        raise Skip(f"{name} is not importable: {error}") from error


def _config(arrays: dict[str, Any]) -> Any:
    """Returns a configuration of v3's attention whose tables have as many rows as those given; without dropout."""
    import transformers

    *_, heads, size = arrays["query"].shape
    span = arrays["pos_key"].shape[0] // 2
    return transformers.DebertaV2Config(
        hidden_size=heads * size,
        num_attention_heads=heads,
        position_buckets=span,
        max_position_embeddings=2 * span,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        share_att_key=True,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


def _without_projections(module: Any, arrays: dict[str, Any]) -> tuple[Any, Any]:
    """Replaces a module's projections: of the placeholder for hidden states by an array, of the table by another."""
    import torch

    flat = {name: a.flatten(-2) for name, a in arrays.items()}
    hidden = flat["query"]

    class Given(torch.nn.Module):
        def __init__(self, content: str, table: str):
            super().__init__()
            self.content, self.table = flat[content], flat[table][None]

        def forward(self, x: Any) -> Any:
            return self.content if x is hidden else self.table

    module.query_proj, module.key_proj = Given("query", "pos_query"), Given("key", "pos_key")
    module.value_proj = Given("value", "pos_key")
    return module.to(hidden.device), hidden


def _transformers(arrays: dict[str, Any]) -> Callable[[], Any]:
    import torch
    from transformers.models.deberta_v2 import modeling_deberta_v2 as deberta

    config = _config(arrays)
    module, hidden = _without_projections(deberta.DisentangledSelfAttention(config), arrays)
    # Both are made once a model, not once a layer.
    relative = deberta.build_relative_position(hidden, hidden, config.position_buckets, config.max_position_embeddings)
    batch, length, _ = hidden.shape
    mask = torch.ones(batch, 1, length, length, dtype=torch.bool, device=hidden.device)
    table = arrays["pos_key"].flatten(-2)
    return lambda: module(hidden, mask, relative_pos=relative, rel_embeddings=table)[0]


def _flashdeberta(arrays: dict[str, Any]) -> Callable[[], Any]:
    import flashdeberta

    module, hidden = _without_projections(flashdeberta.FlashDisentangledSelfAttention(_config(arrays)), arrays)
    table = arrays["pos_key"].flatten(-2)
    return lambda: module(hidden, None, rel_embeddings=table)[0]


def _disentangled_flash(arrays: dict[str, Any]) -> Callable[[], Any]:
    import disentangled_flash
    import torch

    hidden = arrays["query"].flatten(-2)
    batch, length, _ = hidden.shape

    class Attention(disentangled_flash.TritonTrainingDisentangledSelfAttention):
        """Its own forward; both methods that project give the arrays."""

        def _project_qkv(self, hidden_states: Any) -> Any:
            return tuple(arrays[name].flatten(-2) for name in ("query", "key", "value"))

        def _project_active_positions(self, rel_embeddings: Any, active_slots: Any) -> Any:
            by_head = lambda name: arrays[name].transpose(0, 1).index_select(1, active_slots)
            return by_head("pos_key"), by_head("pos_query")

    module = Attention(_config(arrays), assume_unpadded=True).to(hidden.device)
    mask = torch.ones(batch, length, dtype=torch.bool, device=hidden.device)
    return lambda: module(hidden, mask, rel_embeddings=hidden)[0]


# By name: from arrays to a function that computes DeBERTa's attention of them.
MODULES = {TRANSFORMERS: _transformers, "flashdeberta": _flashdeberta, "disentangled-flash": _disentangled_flash}


def _job(job: str, attend: Callable[[], Any], arrays: dict[str, Any]) -> Callable[[], Any]:
    import torch

    if job == "forward":

        def forward() -> Any:
            with torch.no_grad():
                return attend()

        return forward
    cotangent = torch.randn_like(attend().detach())

    def both() -> Any:
        return torch.autograd.grad(attend(), list(arrays.values()), cotangent, allow_unused=True)

    return both
