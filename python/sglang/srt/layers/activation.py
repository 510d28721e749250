"""Activation functions, plain and gated. Gated ones take [..., 2d] = [gate | up] and return [...,
d]."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from sglang.srt.distributed import (
    divide,
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
)
from sglang.srt.layers.parameter import mark_filled
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.layers.triton_ops import has_triton
from sglang.srt.layers.utils import MultiPlatformOp
from sglang.srt.layers.weight_placement import copy_into, slice_for_rank
from sglang.srt.utils import set_weight_attrs


class SiluAndMul(MultiPlatformOp):
    """`silu(gate) * up`."""

    kernel_name = "silu"

    def forward_native(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    def forward_cuda(self, x: torch.Tensor) -> torch.Tensor:
        """The same in one kernel."""
        return _run_gated(x, self.kernel_name) if _suits_kernel(x) else self.forward_native(x)


class GeluAndMul(MultiPlatformOp):
    """`gelu(gate) * up`; `approximate` is "tanh" or "none"."""

    def __init__(self, approximate: str = "tanh") -> None:
        super().__init__()
        if approximate not in ("tanh", "none"):
            raise ValueError(f"approximate={approximate!r} is not supported; allowed: tanh, none")
        self.approximate = approximate
        self.kernel_name = "gelu_tanh" if approximate == "tanh" else "gelu"

    def forward_native(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = x.chunk(2, dim=-1)
        return F.gelu(gate, approximate=self.approximate).mul_(up)

    def forward_cuda(self, x: torch.Tensor) -> torch.Tensor:
        """The same in one kernel."""
        return _run_gated(x, self.kernel_name) if _suits_kernel(x) else self.forward_native(x)


class NewGELU(MultiPlatformOp):
    """The tanh form of GELU, as GPT-2 has it."""

    def forward_native(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(x, approximate="tanh")


class QuickGELU(MultiPlatformOp):
    """`x * sigmoid(1.702 x)`."""

    def forward_native(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


class ReLU2(MultiPlatformOp):
    """`relu(x)^2`."""

    def forward_native(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x).square_()


class XIELU(MultiPlatformOp):
    """The expanded integral of ELU (arXiv 2411.13010) with two learned slopes.

    `x > 0`: `a_p x^2 + beta x`; else `a_n (expm1(min(x, eps)) - x) + beta x`, where `a_p =
    softplus(alpha_p)` and `a_n = beta + softplus(alpha_n)`. The slopes have `dtype`, or the default
    dtype where that is float32 or wider, so that a float32 model is not rounded.
    `with_vector_loads` is a hint to kernels.
    """

    def __init__(
        self,
        alpha_p_init: float = 0.8,
        alpha_n_init: float = 0.8,
        beta: float = 0.5,
        eps: float = -1e-6,
        dtype: torch.dtype = torch.bfloat16,
        with_vector_loads: bool = False,
    ) -> None:
        super().__init__()
        if torch.finfo(torch.get_default_dtype()).bits > torch.finfo(dtype).bits:
            dtype = torch.get_default_dtype()
        self.alpha_p = _slope(alpha_p_init, dtype)
        self.alpha_n = _slope(alpha_n_init - beta, dtype)
        # Checkpoints hold these two as well.
        self.beta: torch.Tensor
        self.eps: torch.Tensor
        self.register_buffer("beta", torch.tensor(beta, dtype=dtype))
        self.register_buffer("eps", torch.tensor(eps, dtype=dtype))
        self.with_vector_loads = with_vector_loads

    def forward_native(self, x: torch.Tensor) -> torch.Tensor:
        alpha_p = F.softplus(self.alpha_p)
        alpha_n = self.beta + F.softplus(self.alpha_n)
        positive = alpha_p * x * x
        negative = (torch.expm1(torch.minimum(x, self.eps)) - x) * alpha_n
        return torch.where(x > 0, positive, negative) + self.beta * x


class ScaledActivation(nn.Module):
    """`act(x) / scales`, with one scale per channel, cut over ranks like the activation's input."""

    def __init__(
        self,
        act_module: nn.Module,
        intermediate_size: int,
        input_is_parallel: bool = True,
        params_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.act = act_module
        self.input_is_parallel = input_is_parallel
        size = intermediate_size
        if input_is_parallel:
            size = divide(intermediate_size, get_tensor_model_parallel_world_size())
        self.scales = nn.Parameter(torch.empty(size, dtype=params_dtype), requires_grad=False)
        set_weight_attrs(self.scales, {"weight_loader": self.weight_loader})

    def weight_loader(self, param: nn.Parameter, loaded_weight: torch.Tensor) -> None:
        """Copy this rank's scales. Raises ValueError when the size is wrong."""
        name = f"{type(self).__name__}.scales"
        if self.input_is_parallel:
            rank, size = get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size()
            loaded_weight = slice_for_rank(loaded_weight, 0, param.shape[0], rank, size, name)
        copy_into(param.data, loaded_weight, name)
        mark_filled(param)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(x) / self.scales


_ACTIVATIONS: dict[str, nn.Module] = {}
_FACTORIES = {
    "gelu": nn.GELU,
    "gelu_pytorch_tanh": lambda: nn.GELU(approximate="tanh"),
    "gelu_new": NewGELU,
    "quick_gelu": QuickGELU,
    "relu2": ReLU2,
}


def get_act_fn(
    act_fn_name: str,
    quant_config: QuantizationConfig | None = None,
    intermediate_size: int | None = None,
    input_is_parallel: bool = True,
    params_dtype: torch.dtype | None = None,
) -> nn.Module:
    """The activation of that name. Instances without parameters are shared.

    Raises ValueError for an unknown name, and when the quantization scales it but no
    `intermediate_size` is given.
    """
    act = _find_activation(act_fn_name.lower())
    if quant_config is None or act_fn_name not in quant_config.get_scaled_act_names():
        return act
    if intermediate_size is None:
        raise ValueError(
            f"activation {act_fn_name!r} is scaled by quantization {quant_config.get_name()!r}: "
            "intermediate_size must be given"
        )
    return ScaledActivation(act, intermediate_size, input_is_parallel, params_dtype)


def _find_activation(name: str) -> nn.Module:
    if name == "xielu":  # has parameters of its own
        return XIELU()
    if name not in _FACTORIES:
        allowed = ", ".join(sorted([*_FACTORIES, "xielu"]))
        raise ValueError(f"activation {name!r} is not supported; supported: {allowed}")
    if name not in _ACTIVATIONS:
        _ACTIVATIONS[name] = _FACTORIES[name]()
    return _ACTIVATIONS[name]


def _suits_kernel(x: torch.Tensor) -> bool:
    return x.is_cuda and has_triton()


def _run_gated(x: torch.Tensor, name: str) -> torch.Tensor:
    from sglang.srt.layers.triton_ops.gated import gated_activation

    return gated_activation(x, name)


def _slope(value: float, dtype: torch.dtype) -> nn.Parameter:
    """The parameter [1] whose softplus is `value`."""
    raw = math.log(math.expm1(value))
    return nn.Parameter(torch.tensor([raw], dtype=dtype), requires_grad=False)
