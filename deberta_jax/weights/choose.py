"""Chooses the parts of a file that make a requested head, and adjusts the config to them.

The tensors of a file decide, because config.json often does not say: the masked-LM head has two spellings and may have
absolute positions, the masked-LM head in a discriminator's file is unusable, and a classifier may read tokens or a
pooled text.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from deberta_jax.config import DebertaConfig
from deberta_jax.config_json import MOST_LABELS
from deberta_jax.errors import InputError, listed, shown
from deberta_jax.models import HEADS, HeadSpec, head_spec
from deberta_jax.storage import AnyPath
from deberta_jax.weights.account import parts_present
from deberta_jax.weights.names import part_of
from deberta_jax.weights.source import Tensor

_POSITIONS = "deberta.embeddings.position_embeddings.weight"


@dataclasses.dataclass
class Choice:
    """Holds what is loaded for a head.

    Attributes:
      config: the file's config, adjusted to the head.
      parts: the parts of the head.
      labels: the number of rows of the classifier.
      new: parts that are initialized though the file may have them, with the reason.
      notes: remarks for the report.
    """

    config: DebertaConfig
    parts: tuple[str, ...] = ()
    labels: int = 0
    new: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class HeadRequest:
    """Holds the head that the caller asks for.

    Attributes:
      head: a key of ``HEADS``.
      num_labels, id2label: the labels; None: those of the file.
      new_head: parts that the file lacks may be initialized.
    """

    head: str
    num_labels: int | None = None
    id2label: Sequence[str] | Mapping[int, str] | None = None
    new_head: bool = False


def choose_head(
    request: HeadRequest, config: DebertaConfig, file_tensors: Mapping[str, Tensor], *, labelled: bool, where: AnyPath
) -> Choice:
    """Returns the choice for one head.

    Args:
      file_tensors: the tensors of the file by canonical name.
      labelled: config.json gives the labels, so that their number is not a default.
      where: the path of the file, for messages.

    Raises:
      InputError: the file has no such head, or its classifier differs from the one asked for.
    """
    spec = head_spec(request.head)
    choice = Choice(dataclasses.replace(config, mask_decoder=False))
    if request.head == "masked-lm":
        _masked_lm(choice, request, config, file_tensors, where)
    elif spec.classifier:
        if "proj" in spec.parts:
            choice.config = dataclasses.replace(choice.config, classifier_proj="proj" in parts_present(file_tensors))
        _classifier(choice, request, spec, file_tensors, labelled, where=where)
    elif spec.fixed_labels and config.num_labels != len(spec.fixed_labels):
        choice.config = dataclasses.replace(choice.config, id2label=spec.fixed_labels)
    choice.parts = spec.parts_in(choice.config)
    choice.labels = spec.num_outputs(choice.config)
    return choice


def choose_all(config: DebertaConfig, file_tensors: Mapping[str, Tensor], *, labelled: bool) -> Choice:
    """Returns the choice for every head that the file has. ``file_tensors`` and ``labelled`` are as for one head."""
    present = parts_present(file_tensors)
    legacy = "lm_predictions" not in present if {"cls", "lm_predictions"} & set(present) else config.legacy
    decoder = "lm_predictions" in present and _POSITIONS in file_tensors and not config.position_biased_input
    config = dataclasses.replace(config, legacy=legacy, mask_decoder=decoder, classifier_proj="proj" in present)
    counts = (
        spec.num_labels_of(count)
        for spec in HEADS.values()
        if spec.classifier and (count := _classifier_rows(file_tensors, spec.classifier)) is not None
    )
    number = next(counts, None)
    if number is not None and number != config.num_labels and not labelled:
        config = dataclasses.replace(config, id2label=_generic(number))
    rows = _classifier_rows(file_tensors, "classifier.weight")
    # Multiple choice has one row whatever config.json says about labels.
    labels = 1 if rows == 1 else config.num_labels
    return Choice(config, present, labels)


def heads_in(file_tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Returns the heads whose tensors a file has, besides the encoder; ``file_tensors`` is as for ``choose_head``.

    Multiple choice and sequence classification with one label have the same tensors: both are returned.
    """
    present = parts_present(file_tensors)

    def fits(name: str, spec: HeadSpec) -> bool:
        if not spec.parts or spec.missing_parts(present):
            return False
        if name == "masked-lm":
            return "mask_predictions" not in present  # otherwise it is a left-over
        if "classifier" not in spec.parts:
            return True
        single = bool(spec.classifier) and not spec.named_labels
        rows = _classifier_rows(file_tensors, spec.classifier)
        return ("pooler" in spec.parts) == ("pooler" in present) and (not single or rows == 1)

    return tuple(name for name, spec in HEADS.items() if fits(name, spec))


def _masked_lm(
    choice: Choice, request: HeadRequest, config: DebertaConfig, file_tensors: Mapping[str, Tensor], where: AnyPath
) -> None:
    """Completes the choice for the masked-LM head, in the spelling that the file has."""
    present = parts_present(file_tensors)
    decoder = _POSITIONS in file_tensors and not config.position_biased_input
    if "cls" in present:
        choice.config = dataclasses.replace(config, legacy=True, mask_decoder=False)
    elif "mask_predictions" in present:
        if not request.new_head:
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
    choice: Choice,
    request: HeadRequest,
    spec: HeadSpec,
    file_tensors: Mapping[str, Tensor],
    labelled: bool,
    *,
    where: AnyPath,
) -> None:
    """Compares the labels asked for with the classifier in the file, and completes the choice's config."""
    config, present = choice.config, parts_present(file_tensors)
    rows = _classifier_rows(file_tensors, spec.classifier)
    single = not spec.named_labels
    asked = None if single else _requested_labels(request, config)
    if single and (request.num_labels is not None or request.id2label is not None):
        raise InputError(f"{request.head} has one score a choice; num_labels and id2label do not apply")
    pooled = "pooler" in spec.parts
    differs = None
    if rows is not None and "classifier" in spec.parts and pooled != ("pooler" in present):
        reads = ("single tokens", "a pooled text")
        differs = f"the file's classifier reads {reads['pooler' in present]}, {request.head} needs {reads[pooled]}"
    elif rows is not None and asked is not None:
        named = labelled and spec.num_outputs(config) == rows and config.id2label != _generic(config.num_labels)
        renamed = named and request.id2label is not None and config.id2label != asked
        if rows != spec.num_outputs(dataclasses.replace(config, id2label=asked)) or renamed:
            has = listed(config.id2label, 20) if named else f"{spec.num_labels_of(rows)} labels"
            differs = f"the file's classifier has {has}, asked for {listed(asked, 20)}"
    elif single and rows is not None and rows != 1:
        differs = f"the file's classifier has {rows} labels, {request.head} needs 1"
    if differs is not None:
        if not request.new_head:
            raise InputError(
                f"{where}: {differs}; train another one with finetune, or start one with from_pretrained(..., "
                "new_head=0) or convert --new-head 0"
            )
        choice.new[part_of(spec.classifier)] = differs
    if asked is not None:
        choice.config = dataclasses.replace(config, id2label=asked)
    elif not single and differs is None and rows is not None and not labelled:
        choice.config = dataclasses.replace(config, id2label=_generic(spec.num_labels_of(rows)))


def _requested_labels(request: HeadRequest, config: DebertaConfig) -> tuple[str, ...] | None:
    """Returns the names of the labels that a request asks for; None if it asks for none."""
    if request.id2label is not None:
        names = request.id2label
        if isinstance(names, Mapping):
            if set(names) != set(range(len(names))):
                raise InputError(f"id2label must number its labels 0 to {len(names) - 1}, found {listed(names)}")
            names = [names[i] for i in range(len(names))]
        if request.num_labels not in (None, len(names)):
            raise InputError(f"num_labels={request.num_labels} but id2label has {len(names)} entries")
        return tuple(str(name) for name in names)
    if request.num_labels is None:
        return None
    if type(request.num_labels) is not int or not 1 <= request.num_labels <= MOST_LABELS:
        raise InputError(f"num_labels={shown(request.num_labels)}: must be a number of labels up to {MOST_LABELS}")
    return config.id2label if request.num_labels == config.num_labels else _generic(request.num_labels)


def _generic(count: int) -> tuple[str, ...]:
    return tuple(f"LABEL_{i}" for i in range(count))


def _classifier_rows(file_tensors: Mapping[str, Tensor], classifier: str) -> int | None:
    """Returns the number of rows of the tensor named ``classifier``; None if the file has no such matrix.

    An empty matrix, or one of more rows than there are labels, is no classifier: its rows are not enumerated.
    """
    tensor = file_tensors.get(classifier)
    if tensor is None or len(tensor.shape) != 2 or 0 in tensor.shape or tensor.shape[0] > MOST_LABELS:
        return None
    return tensor.shape[0]
