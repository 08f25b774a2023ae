"""Finds the head that a saved model has, where the caller does not name one."""

from collections.abc import Sequence
from pathlib import Path

from deberta_jax import hub
from deberta_jax.models import HEADS
from deberta_jax.weights import adapters
from deberta_jax.weights.choose import heads_in
from deberta_jax.weights.opening import open_source


def heads_of(
    source: str | Path,
    *,
    revision: str | None = None,
    ignore: Sequence[str] = (),
    base_model: str | Path | None = None,
) -> tuple[str, ...]:
    """Returns the heads that a model may have, keys of ``HEADS``: one, unless nothing tells several apart.

    The class in config.json decides; for a peft adapter without one, its task type. transformers has no class for some
    heads, and config.json then names the encoder's: the weights decide. No weights are read.

    Args:
      source: a model directory, a file in one, or a hub id.
      revision, ignore, base_model: as for ``from_pretrained``.

    Raises:
      InputError: the model cannot be opened.
    """
    opened = open_source(source, revision=revision, ignore=ignore, base_model=base_model, check=None)
    directory = hub.resolve(source, revision=revision)
    if (directory / adapters.CONFIG).is_file() and not (directory / "config.json").is_file():
        task = adapters.read_adapter_config(directory).get("task_type")
        of_task = [name for name, spec in HEADS.items() if task is not None and spec.peft_task == task]
        if of_task:
            return (of_task[0],)
    for name, spec in HEADS.items():
        classes = {f"{prefix}{spec.transformers}" for prefix in ("Deberta", "DebertaV2")}
        if spec.transformers and spec.parts and classes & set(opened.architectures):
            return (name,)
    return heads_in(opened.found) or ("encoder",)
