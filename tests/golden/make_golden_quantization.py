"""Records what bitsandbytes makes of a few matrices, in ``quantization.npz``. Needs torch and bitsandbytes.

python tests/golden/make_golden_quantization.py
"""

from pathlib import Path

import bitsandbytes
import bitsandbytes.functional as bnb
import numpy as np
import torch

SHAPE = (132, 128)  # 264 blocks of 64: two blocks of scales, of which the second is not full


def matrix() -> np.ndarray:
    """Returns a matrix with a block of zeros, tiny and huge rows, and values halfway between two levels."""
    values = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    values[0, :64] = 0
    values[1] *= 1e-30
    values[2] *= 1e4
    levels = bnb.get_4bit_type("nf4", "cpu").numpy()
    values[3, :16], values[3, 16:31] = levels, (levels[:-1] + levels[1:]) / 2
    values[3, 31:64] = 0
    return values


def main() -> None:
    values = matrix()
    out = {"version": np.array(bitsandbytes.__version__), "values": values}
    for name, scheme in (("nf4", "nf4"), ("nf4_double", "nf4"), ("fp4", "fp4")):
        double = name.endswith("double")
        codes, state = bnb.quantize_4bit(
            torch.tensor(values), blocksize=64, quant_type=scheme, compress_statistics=double
        )
        out[f"{name}_codes"], out[f"{name}_scales"] = codes.numpy().reshape(-1), state.absmax.numpy()
        if double:
            out[f"{name}_offset"] = state.offset.numpy()
            out[f"{name}_nested_scales"] = state.state2.absmax.numpy()
        out[f"{name}_values"] = bnb.dequantize_4bit(codes, state).numpy()
    codes, scales, _ = bnb.int8_vectorwise_quant(torch.tensor(values))
    out |= {"int8_codes": codes.numpy(), "int8_scales": scales.numpy()}
    out["int8_values"] = bnb.int8_vectorwise_dequant(codes, scales).numpy()
    np.savez_compressed(Path(__file__).with_name("quantization.npz"), **out)


if __name__ == "__main__":
    main()
