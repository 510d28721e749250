"""The product of activations with a plain weight, in the form that the device does best."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from sglang.srt.layers.few_rows_tiles import few_rows_tile

_HALF = (torch.bfloat16, torch.float16)

# Where the weight is the left factor: rows, at most and as a share of the width (the result is transposed, which costs as
# much as reading that share of the weight), and elements of the weight, at least.
_MAX_ROWS = 64
_WIDTH_PER_ROW = 16
_MIN_WEIGHT = 1 << 20


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    needs_rows: bool = True,
) -> torch.Tensor:
    """x [T, in], weight [out, in] -> [T, out].

    Without `needs_rows` the result may be a transposed view, which elementwise operations and the next product take as gladly.

    On a CPU a few 16-bit rows are bound by reading the weight. Torch packs the right factor of a product anew on each call,
    which for `x @ weight.T` is the weight, and halves the rate. So one row goes through the matrix-vector product, and a few
    bfloat16 rows through `weight @ x.T`, whose right factor is small. All add up in float32. On a GPU a few rows go through our
    kernel where it was measured to be faster.
    """
    if (tile := few_rows_tile(x, weight)) is not None:
        from sglang.srt.layers.triton_ops.few_rows_linear import few_rows_linear

        return few_rows_linear(x, weight, bias, tile)
    if not x.is_cpu or x.dim() != 2 or weight.dtype not in _HALF or x.shape[0] > _MAX_ROWS:
        return F.linear(x, weight, bias)
    if x.shape[0] == 1:
        row = torch.mv(weight, x[0]) if bias is None else torch.addmv(bias, weight, x[0])
        return row.unsqueeze(0)
    is_narrow = x.shape[1] < _WIDTH_PER_ROW * x.shape[0]
    if weight.dtype != torch.bfloat16 or weight.numel() < _MIN_WEIGHT or is_narrow:
        return F.linear(x, weight, bias)
    out = torch.mm(weight, x.t())
    if bias is not None:
        out += bias.unsqueeze(1)
    return out.t().contiguous() if needs_rows else out.t()
