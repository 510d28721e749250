"""Numbers of eight bits (float8_e4m3fn): rounding to them with scales, and products of them.

A value is `code * scale`. Weights [N, K] have a scale per row, [N, 1], or per block; activations [T, K] one per token, [T, 1], or one
for all. Products of codes are exact in float32, so every device computes the same sums up to their order.
"""

from __future__ import annotations

import functools

import torch

from sglang.srt.layers.matmul import linear
from sglang.srt.layers.quantization.block_scales import fp8_dtype, scale_blocks
from sglang.srt.layers.triton_ops import has_triton

FP8_MAX = torch.finfo(fp8_dtype).max
# Of rows that are all zero, whose scale would be zero.
_LEAST_MAGNITUDE = 1e-12
# What torch's scaled matrix product wants both sides of a weight to be a multiple of.
ALIGNMENT = 16


def round_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [T, K] and scales float32 [T, 1] of rows [T, K]; the largest magnitude of a row becomes the largest code."""
    largest = x.abs().amax(dim=-1, keepdim=True).float().clamp(min=_LEAST_MAGNITUDE)
    scale = _scale_of(largest)
    return round_with(x, scale), scale


def round_with(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Codes of `x` for a given scale; what is out of range becomes the largest code."""
    return (x.float() / scale).clamp(-FP8_MAX, FP8_MAX).to(fp8_dtype)


def round_weight(weight: torch.Tensor, scheme: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [N, K] and scales float32 [N, 1] of a weight: of its rows ("channel"), or the same for all of them ("tensor")."""
    if scheme == "channel":
        return round_rows(weight)
    largest = weight.abs().max().float().clamp(min=_LEAST_MAGNITUDE)
    scale = _scale_of(largest).expand(weight.shape[0], 1).contiguous()
    return round_with(weight, scale), scale


def _scale_of(largest: torch.Tensor) -> torch.Tensor:
    """A magnitude over the largest code."""
    # By a number, torch multiplies with its inverse on a GPU, which rounds otherwise.
    return largest / torch.full_like(largest, FP8_MAX)


def channel_linear(
    x: torch.Tensor,  # [..., K]
    weight: torch.Tensor,  # codes [N, K]
    weight_scale: torch.Tensor,  # float32 [N, 1]
    input_scale: torch.Tensor | None,  # float32 [1]; None: computed for each token
    bias: torch.Tensor | None,  # [N]
) -> torch.Tensor:  # [..., N] in the dtype of x
    """Round the activations, multiply codes with codes, scale the sums."""
    rows = x.reshape(-1, x.shape[-1])
    codes, scale = round_activations(rows, input_scale)
    product = _device_product if _can_multiply_codes(codes, weight) else _plain_product
    out = product(codes, scale, weight, weight_scale, bias, x.dtype)
    return out.view(*x.shape[:-1], weight.shape[0])


def block_linear(
    x: torch.Tensor,  # [..., K]
    weight: torch.Tensor,  # codes [N, K]
    scales: torch.Tensor,  # float32 [ceil(N / rows), ceil(K / columns)]
    block_size: list[int],  # rows, columns
    bias: torch.Tensor | None,  # [N]
) -> torch.Tensor:  # [..., N] in the dtype of x
    """The weight as ordinary numbers of the dtype of `x`, then an ordinary product: activations are not rounded."""
    return linear(x, expand_blocks(weight, scales, block_size, x.dtype), bias)


def expand_blocks(
    weight: torch.Tensor, scales: torch.Tensor, block_size: list[int], dtype: torch.dtype
) -> torch.Tensor:
    """`code * scale`, rounded once to `dtype`, [N, K]."""
    if weight.is_cuda and has_triton():
        from sglang.srt.layers.triton_ops.fp8 import expand_blocks_kernel

        return expand_blocks_kernel(weight, scales, block_size, dtype)
    return scale_blocks(weight, scales, block_size, dtype)


def round_activations(
    rows: torch.Tensor, scale: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [T, K] and scales, [T, 1], or [1, 1] of the given `scale` [1]."""
    if rows.is_cuda and rows.stride(-1) == 1 and has_triton():
        from sglang.srt.layers.triton_ops.fp8 import round_rows_kernel

        return round_rows_kernel(rows, fp8_dtype, scale)
    if scale is None:
        return round_rows(rows)
    return round_with(rows, scale), scale.view(1, 1)


def _plain_product(
    codes: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """In float32, whatever the device: the reference."""
    sums = torch.mm(codes.float(), weight.float().t())
    return _scale_sums(sums, scale, weight_scale, bias, dtype)


def _device_product(
    codes: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """On units for eight bits. Scales of rows and columns are applied inside only where the result is bfloat16."""
    if dtype == torch.bfloat16:
        return torch._scaled_mm(
            codes,
            weight.t(),
            scale_a=scale.expand(codes.shape[0], 1).contiguous(),
            scale_b=weight_scale.view(1, -1),
            bias=bias,
            out_dtype=dtype,
        )
    one = torch.ones((), dtype=torch.float32, device=codes.device)
    sums = torch._scaled_mm(
        codes, weight.t(), scale_a=one, scale_b=one, out_dtype=torch.float32, use_fast_accum=False
    )
    return _scale_sums(sums, scale, weight_scale, bias, dtype)


def _scale_sums(
    sums: torch.Tensor,
    scale: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    out = sums * scale * weight_scale.view(1, -1)
    if bias is not None:
        out += bias
    return out.to(dtype)


def _can_multiply_codes(codes: torch.Tensor, weight: torch.Tensor) -> bool:
    """Has the device units for eight-bit numbers, and does the product have a shape that they take?"""
    is_aligned = weight.shape[0] % ALIGNMENT == 0 and weight.shape[1] % ALIGNMENT == 0
    return codes.is_cuda and len(codes) > 0 and is_aligned and _has_fp8_units(codes.device.index)


@functools.cache
def _has_fp8_units(index: int) -> bool:
    return torch.version.hip is None and torch.cuda.get_device_capability(index) >= (9, 0)
