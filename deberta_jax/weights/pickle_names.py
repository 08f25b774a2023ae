"""The names that a program of ``torch.save`` may call, and what each stands for: a tensor, or an object beside weights.

A name on one of these lists is compared with, never looked up: nothing is imported.
"""

from typing import NamedTuple

import numpy as np

from deberta_jax.weights.source import BFLOAT16


class Global(NamedTuple):
    """A name that the program mentioned. Only a name."""

    module: str
    name: str


STORAGES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": BFLOAT16,
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}

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

# Packages whose objects stand beside weights: arguments, paths, numpy's values, settings of trainers and optimizers.
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
    """Tells whether a call of a name makes an object that is known to stand beside weights, and to do nothing."""
    return name in _SINGLE or name.module.split(".")[0] in _PACKAGES
