"""MXFP4, four-bit numbers in groups of 32 with a common exponent, as ordinary numbers."""

from __future__ import annotations

import torch
import torch.nn.functional as F

# What four bits mean in MXFP4: the sign, two bits of exponent, one of mantissa.
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_FP4 = (*_MAGNITUDES, *(-value for value in _MAGNITUDES))


def dequant_mxfp4(
    w_block: torch.Tensor, w_scale: torch.Tensor, out_dtype: torch.dtype = torch.bfloat16
) -> torch.Tensor:
    """MXFP4 (OCP Microscaling Formats 1.0) as ordinary numbers, exact in bfloat16 and float32.

    `w_block`: uint8 [..., groups, 16], two numbers a byte, the first in the low half. `w_scale`: uint8 [..., groups], exponents e
    of the factor 2^(e - 127) of a group of 32; 255 makes it NaN. Returns [..., groups * 32]. Raises ValueError for other shapes
    and dtypes.
    """
    if w_block.dtype != torch.uint8 or w_scale.dtype != torch.uint8:
        raise ValueError(f"MXFP4 is stored as uint8, not as {w_block.dtype} and {w_scale.dtype}")
    if w_block.shape[-1:] != (16,) or w_block.shape[:-1] != w_scale.shape:
        raise ValueError(
            f"MXFP4 blocks must be [..., groups, 16] and scales [..., groups]; they are {list(w_block.shape)} and "
            f"{list(w_scale.shape)}"
        )
    device = w_block.device
    pairs = torch.tensor(
        [[_FP4[byte & 15], _FP4[byte >> 4]] for byte in range(256)], dtype=out_dtype, device=device
    )
    out = torch.empty(*w_block.shape, 2, dtype=out_dtype, device=device)
    # One row of the first dimension at a time: indices are four times as large as the bytes.
    rows = (
        (w_block, w_scale, out) if w_block.dim() > 2 else (w_block[None], w_scale[None], out[None])
    )
    for block, scale, row in zip(*rows, strict=True):
        factor = scale.view(torch.float8_e8m0fnu).to(out_dtype)
        torch.mul(F.embedding(block.int(), pairs), factor[..., None, None], out=row)
    return out.flatten(-3)
