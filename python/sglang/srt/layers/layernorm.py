"""Normalisation layers. The mathematics is in float32 whatever the dtype of the input.

RMS norm: `y = x / sqrt(mean(x^2) + eps) * w`. With a residual the layer first adds it and also
returns the sum, which is the residual of the next layer; use the returned tensors only.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from sglang.srt.distributed import get_tp_group
from sglang.srt.layers.triton_ops import MAX_NORM_WIDTH, has_triton
from sglang.srt.layers.utils import MultiPlatformOp

NormOutput = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


class RMSNorm(MultiPlatformOp):
    """RMS norm over the last dimension.

    Args:
        var_hidden_size: the mean square is taken over the first so many columns only.
        cast_x_before_out_mul: round the normalised value to the input dtype before the weight
            multiplies it.
        fp32_residual: keep the residual stream in float32.
        has_weight: False makes the weight a constant one.
        weight_dtype: dtype of the weight, default the default dtype.
        override_orig_dtype: dtype of the result instead of the input's.

    With `sums_ranks`, which is set where a model is prepared for several ranks (`model_executor/rank_sums.py`), the input is this
    rank's part of a sum over the tensor-parallel ranks.
    """

    sums_ranks = False

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-6,
        var_hidden_size: int | None = None,
        cast_x_before_out_mul: bool = False,
        fp32_residual: bool = False,
        has_weight: bool = True,
        weight_dtype: torch.dtype | None = None,
        override_orig_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.variance_epsilon = eps
        self.var_hidden_size = var_hidden_size
        self.cast_x_before_out_mul = cast_x_before_out_mul
        self.fp32_residual = fp32_residual
        self.override_orig_dtype = override_orig_dtype
        self.has_weight = has_weight
        weight = torch.ones(hidden_size, dtype=weight_dtype)
        self.weight: torch.Tensor = (
            nn.Parameter(weight, requires_grad=False) if has_weight else weight
        )

    def forward(
        self,
        x: torch.Tensor,
        residual: torch.Tensor | None = None,
        post_residual_addition: torch.Tensor | None = None,
    ) -> NormOutput:
        if not self.sums_ranks:
            return self._forward_method(x, residual, post_residual_addition)
        group = get_tp_group()
        if residual is not None and self._is_plain(x, residual, post_residual_addition):
            weight = self.weight if self.has_weight else None
            fused = group.all_reduce_add_norm(
                x, residual, weight, self.variance_epsilon, self.cast_x_before_out_mul
            )
            if fused is not None:
                return fused
        return self._forward_method(group.all_reduce(x), residual, post_residual_addition)

    def forward_native(
        self,
        x: torch.Tensor,
        residual: torch.Tensor | None = None,
        post_residual_addition: torch.Tensor | None = None,
    ) -> NormOutput:
        """`norm(x)`, or `(norm(s), s)` with `s = x + residual [+ post_residual_addition]`."""
        dtype = self.override_orig_dtype or x.dtype
        if residual is None:
            return self._normalize(x, dtype)
        x, residual = _add_residual(x, residual, post_residual_addition, self.fp32_residual)
        return self._normalize(x, dtype), residual

    def forward_cuda(
        self,
        x: torch.Tensor,
        residual: torch.Tensor | None = None,
        post_residual_addition: torch.Tensor | None = None,
    ) -> NormOutput:
        """The same in one kernel; the rarer options go through plain torch."""
        is_plain = self._is_plain(x, residual, post_residual_addition)
        if not is_plain or not _suits_kernel(x, residual):
            return self.forward_native(x, residual, post_residual_addition)
        from sglang.srt.layers.triton_ops.norm import rms_norm

        weight = self.weight if self.has_weight else None
        return _as_output(
            rms_norm(
                x,
                weight,
                self.variance_epsilon,
                residual,
                round_before_weight=self.cast_x_before_out_mul,
            ),
            residual,
        )

    def _is_plain(
        self,
        x: torch.Tensor,
        residual: torch.Tensor | None,
        post_residual_addition: torch.Tensor | None,
    ) -> bool:
        """Is it none of the options that only plain torch knows?"""
        return (
            self.var_hidden_size is None
            and self.override_orig_dtype is None
            and post_residual_addition is None
            and not (self.fp32_residual and residual is not None)
            # torch widens a 16-bit value times a float32 weight
            and not (self.cast_x_before_out_mul and self.weight.dtype != x.dtype)
        )

    def forward_with_allreduce_fusion(
        self,
        x: torch.Tensor,
        residual: torch.Tensor | None = None,
        post_residual_addition: torch.Tensor | None = None,
    ) -> NormOutput:
        """The same as `forward`: nothing is fused, and `x` has been reduced already."""
        return self.forward(x, residual, post_residual_addition)

    def _normalize(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        y = rms_normalize(x, self.variance_epsilon, self.var_hidden_size)
        if not self.has_weight:
            return y.to(dtype)
        if self.cast_x_before_out_mul:
            return self.weight * y.to(dtype)
        return y.mul_(self.weight).to(dtype)

    def extra_repr(self) -> str:
        return f"hidden_size={self.hidden_size}, eps={self.variance_epsilon}"


class GemmaRMSNorm(MultiPlatformOp):
    """RMS norm whose weight is stored as a difference from one: multiplies by `1 + w`."""

    def __init__(self, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(hidden_size), requires_grad=False)
        self.variance_epsilon = eps

    def forward_native(
        self,
        x: torch.Tensor,
        residual: torch.Tensor | None = None,
        post_residual_addition: torch.Tensor | None = None,
    ) -> NormOutput:
        """`norm(x)`, or `(norm(s), s)` with `s = x + residual [+ post_residual_addition]`."""
        if residual is None:
            return _gemma_norm(x, self.weight, self.variance_epsilon)
        x, residual = _add_residual(x, residual, post_residual_addition, False)
        return _gemma_norm(x, self.weight, self.variance_epsilon), residual

    def forward_cuda(
        self,
        x: torch.Tensor,
        residual: torch.Tensor | None = None,
        post_residual_addition: torch.Tensor | None = None,
    ) -> NormOutput:
        """The same in one kernel."""
        if post_residual_addition is not None or not _suits_kernel(x, residual):
            return self.forward_native(x, residual, post_residual_addition)
        from sglang.srt.layers.triton_ops.norm import rms_norm

        normed = rms_norm(x, self.weight, self.variance_epsilon, residual, weight_offset=1.0)
        return _as_output(normed, residual)


class Gemma3RMSNorm(MultiPlatformOp):
    """Gemma's norm over any last dimension, without residual (heads of q and k too)."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(dim), requires_grad=False)

    def forward_native(self, x: torch.Tensor) -> torch.Tensor:
        return _gemma_norm(x, self.weight, self.eps)

    def forward_cuda(self, x: torch.Tensor) -> torch.Tensor:
        """The same in one kernel."""
        if not _suits_kernel(x, None):
            return self.forward_native(x)
        from sglang.srt.layers.triton_ops.norm import rms_norm

        return rms_norm(x, self.weight, self.eps, weight_offset=1.0)[0]


class LayerNorm(MultiPlatformOp):
    """Mean and variance norm with parameters of its own dtype, float32 by default."""

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-6,
        elementwise_affine: bool = True,
        bias: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.variance_epsilon = eps
        self.register_parameter("weight", None)
        self.register_parameter("bias", None)
        if elementwise_affine:
            self.weight = nn.Parameter(torch.ones(hidden_size, dtype=dtype), requires_grad=False)
            if bias:
                self.bias = nn.Parameter(torch.zeros(hidden_size, dtype=dtype), requires_grad=False)

    def forward_native(self, x: torch.Tensor) -> torch.Tensor:
        weight = None if self.weight is None else self.weight.float()
        bias = None if self.bias is None else self.bias.float()
        shape = (self.hidden_size,)
        return F.layer_norm(x.float(), shape, weight, bias, self.variance_epsilon).to(x.dtype)


def rms_normalize(x: torch.Tensor, eps: float, var_size: int | None = None) -> torch.Tensor:
    """`x / sqrt(mean(x^2) + eps)` as a new float32 tensor."""
    x = x.float()
    head = x if var_size is None else x[..., :var_size]
    # The norm squares and sums without materialising the squares.
    length = torch.linalg.vector_norm(head, dim=-1, keepdim=True)
    return x * length.square_().div_(head.shape[-1]).add_(eps).rsqrt_()


def _gemma_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return rms_normalize(x, eps).mul_(weight.float() + 1.0).to(x.dtype)


def _suits_kernel(x: torch.Tensor, residual: torch.Tensor | None) -> bool:
    """Can the kernel of a GPU norm these rows?"""
    if residual is not None and (residual.dtype != x.dtype or residual.shape != x.shape):
        return False
    return x.is_cuda and x.shape[-1] <= MAX_NORM_WIDTH and has_triton()


def _as_output(
    normed: tuple[torch.Tensor, torch.Tensor], residual: torch.Tensor | None
) -> NormOutput:
    return normed[0] if residual is None else normed


def _add_residual(
    x: torch.Tensor,
    residual: torch.Tensor,
    post_residual_addition: torch.Tensor | None,
    fp32_residual: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum to normalise and the sum to hand on."""
    if fp32_residual:
        residual = residual.float()
    total = x + residual
    if post_residual_addition is not None:
        total = total + post_residual_addition
    return total, total
