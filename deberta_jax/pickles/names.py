"""Lists the names that a pickle of ``torch.save`` may call: functions that make tensors, and classes of other objects.

Names in a pickle are only compared with these lists. Nothing is imported.
"""

from typing import NamedTuple


class Global(NamedTuple):
    """Holds the name of a function or class that a pickle mentions, without importing it."""

    module: str
    name: str


TENSORS = frozenset(
    {
        Global("torch._utils", "_rebuild_tensor"),
        Global("torch._utils", "_rebuild_tensor_v2"),
        Global("torch._utils", "_rebuild_parameter"),
        Global("torch._utils", "_rebuild_parameter_with_state"),
        Global("torch._tensor", "_rebuild_from_type_v2"),
        Global("torch", "Size"),
        Global("collections", "OrderedDict"),
    }
)

# Packages whose objects are stored with weights: arguments, paths, numpy values, settings of trainers and optimizers.
_PACKAGES = frozenset(
    {
        "accelerate",
        "argparse",
        "collections",
        "datasets",
        "datetime",
        "decimal",
        "enum",
        "fractions",
        "lightning",
        "lightning_fabric",
        "lightning_utilities",
        "numpy",
        "omegaconf",
        "pathlib",
        "peft",
        "pytorch_lightning",
        "torchmetrics",
        "transformers",
        "uuid",
    }
)
_BUILTINS = ("bool", "bytearray", "bytes", "complex", "float", "frozenset", "int", "range", "set", "slice", "str")
_SINGLE = frozenset(
    {
        *(Global(module, name) for module in ("builtins", "__builtin__") for name in _BUILTINS),
        Global("_codecs", "encode"),
        Global("copyreg", "_reconstructor"),
        Global("copy_reg", "_reconstructor"),
        Global("functools", "partial"),
        Global("torch", "device"),
    }
)


def is_harmless(name: Global) -> bool:
    """Returns whether a name belongs to objects that are commonly stored with weights and need not be built."""
    return name in _SINGLE or name.module.partition(".")[0] in _PACKAGES
