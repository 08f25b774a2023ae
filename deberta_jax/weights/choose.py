"""Which parts of a file make a requested head, and how its config must read for that.

Heads leave their marks in a file, and config.json often does not say: the masked-LM head comes in two spellings and
with or without absolute positions, a discriminator's is a left-over, a classifier may read tokens or a pooled text.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from deberta_jax.config import DebertaConfig
from deberta_jax.errors import InputError, listed
from deberta_jax.storage import AnyPath
from deberta_jax.weights.account import parts_present
from deberta_jax.weights.names import classifier_rows, head_parts
from deberta_jax.weights.source import Tensor

_POSITIONS = "deberta.embeddings.position_embeddings.weight"


@dataclasses.dataclass
class Choice:
    """A config fit for the head, its parts, the classifier's rows, and the parts to start anew with the reason."""

    config: DebertaConfig
    parts: tuple[str, ...] = ()
    labels: int = 0
    new: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Wish:
    """What the caller asked for."""

    head: str
    num_labels: int | None = None
    id2label: Sequence[str] | Mapping[int, str] | None = None
    new_head: bool = False


def choose_head(
    wish: Wish, config: DebertaConfig, found: Mapping[str, Tensor], *, labelled: bool, where: AnyPath
) -> Choice:
    """The choice for one head.

    Args:
      labelled: config.json names its labels (their number is no default).

    Raises:
      InputError: the file cannot serve this head, or its classifier is another than the one asked for.
    """
    head_parts(config, wish.head)  # refuses a head that does not exist before anything else is looked at
    choice = Choice(dataclasses.replace(config, mask_decoder=False))
    if wish.head == "masked-lm":
        _masked_lm(choice, wish, config, found, where)
    elif wish.head == "token-classification":
        present = parts_present(found)
        choice.config = dataclasses.replace(choice.config, classifier_proj="proj" in present)
        _classifier(choice, wish, found, labelled, pooled=False, where=where)
    elif wish.head in ("sequence-classification", "multiple-choice"):
        _classifier(choice, wish, found, labelled, pooled=True, where=where)
    elif wish.head == "question-answering" and config.num_labels != 2:
        choice.config = dataclasses.replace(choice.config, id2label=("LABEL_0", "LABEL_1"))
    choice.parts = head_parts(choice.config, wish.head)
    choice.labels = classifier_rows(choice.config, wish.head)
    return choice


def choose_all(config: DebertaConfig, found: Mapping[str, Tensor], *, labelled: bool) -> Choice:
    """Every head that the file has, as conversion keeps them; ``labelled`` as for one head."""
    present = parts_present(found)
    legacy = "lm_predictions" not in present if {"cls", "lm_predictions"} & set(present) else config.legacy
    decoder = "lm_predictions" in present and _POSITIONS in found and not config.position_biased_input
    config = dataclasses.replace(config, legacy=legacy, mask_decoder=decoder, classifier_proj="proj" in present)
    rows = _rows(found)
    if rows is not None and rows != config.num_labels and not labelled:
        config = dataclasses.replace(config, id2label=_generic(rows))
    # Multiple choice has one row whatever config.json says about labels.
    labels = 1 if rows == 1 else config.num_labels
    return Choice(config, present, labels)


def _masked_lm(choice: Choice, wish: Wish, config: DebertaConfig, found: Mapping[str, Tensor], where: AnyPath) -> None:
    present = parts_present(found)
    decoder = _POSITIONS in found and not config.position_biased_input
    if "cls" in present:
        choice.config = dataclasses.replace(config, legacy=True, mask_decoder=False)
    elif "mask_predictions" in present:
        if not wish.new_head:
            raise InputError(
                f"{where}: a discriminator (it has mask_predictions): its lm_predictions are a left-over and fill "
                "masks with nonsense; use the generator, pytorch_model.generator.bin with generator_config.json"
            )
        choice.config = dataclasses.replace(config, legacy=False, mask_decoder=decoder)
        choice.new["lm_predictions"] = "a discriminator's lm_predictions are a left-over"
    elif "lm_predictions" in present:
        choice.config = dataclasses.replace(config, legacy=False, mask_decoder=decoder)
        if not decoder and not config.position_biased_input:
            choice.notes.append(
                "no absolute positions in the file: the masked-lm head reads the last layer, as "
                "transformers' does, instead of the mask decoder"
            )
    else:
        choice.config = dataclasses.replace(config, mask_decoder=decoder and not config.legacy)


def _classifier(
    choice: Choice, wish: Wish, found: Mapping[str, Tensor], labelled: bool, *, pooled: bool, where: AnyPath
) -> None:
    config, rows, present = choice.config, _rows(found), parts_present(found)
    single = wish.head == "multiple-choice"
    asked = None if single else _asked(wish, config)
    if single and (wish.num_labels is not None or wish.id2label is not None):
        raise InputError("multiple-choice has one score a choice; num_labels and id2label do not apply")
    differs = None
    if rows is not None and pooled != ("pooler" in present):
        reads = ("single tokens", "a pooled text")
        differs = f"the file's classifier reads {reads['pooler' in present]}, {wish.head} needs {reads[pooled]}"
    elif rows is not None and asked is not None:
        named = labelled and config.num_labels == rows and config.id2label != _generic(rows)
        if rows != len(asked) or (named and wish.id2label is not None and config.id2label != asked):
            has = listed(config.id2label, 20) if named else f"{rows} labels"
            differs = f"the file's classifier has {has}, asked for {listed(asked, 20)}"
    elif single and rows is not None and rows != 1:
        differs = f"the file's classifier has {rows} labels, multiple-choice needs 1"
    if differs is not None:
        if not wish.new_head:
            raise InputError(
                f"{where}: {differs}; to start a new classifier, pass new_head=jax.random.key(0), or to convert "
                "--new-head 0"
            )
        choice.new["classifier"] = differs
    if asked is not None:
        choice.config = dataclasses.replace(config, id2label=asked)
    elif not single and differs is None and rows is not None and not labelled:
        choice.config = dataclasses.replace(config, id2label=_generic(rows))


def _asked(wish: Wish, config: DebertaConfig) -> tuple[str, ...] | None:
    """The label names asked for, or None."""
    if wish.id2label is not None:
        names = wish.id2label
        if isinstance(names, Mapping):
            if sorted(names) != list(range(len(names))):
                raise InputError(f"id2label must number its labels 0 to {len(names) - 1}, found {sorted(names)}")
            names = [names[i] for i in range(len(names))]
        if wish.num_labels not in (None, len(names)):
            raise InputError(f"num_labels={wish.num_labels} but id2label has {len(names)} entries")
        return tuple(str(name) for name in names)
    if wish.num_labels is None:
        return None
    return config.id2label if wish.num_labels == config.num_labels else _generic(wish.num_labels)


def _generic(count: int) -> tuple[str, ...]:
    return tuple(f"LABEL_{i}" for i in range(count))


def _rows(found: Mapping[str, Tensor]) -> int | None:
    """How many outputs the classifier in the file has; None where there is none."""
    tensor = found.get("classifier.weight")
    return tensor.shape[0] if tensor is not None and len(tensor.shape) == 2 else None
