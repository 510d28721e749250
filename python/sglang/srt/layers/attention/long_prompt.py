"""Attention of one long prompt over itself, by cuDNN's fused kernel where the GPU has one.

On a Hopper GPU it runs at two thirds of the rate of a plain matrix product, half again as fast as the Triton kernel. It makes a plan
for every length, which takes far longer than to run it: prompts are therefore padded to a few lengths, and the common ones are planned
for in idle moments (`long_prompt_plans.py`). What is appended comes after every real token, so that no real token sees it.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F

# Shorter prompts gain too little.
MIN_TOKENS = 2048
# Lengths are multiples of this.
LENGTH_MULTIPLE = 1024
_MAX_HEAD_DIM = 128
_MIN_CAPABILITY = (9, 0)


def suits_long_prompt(q: torch.Tensor) -> bool:
    """Whether q [T, H, d] is a prompt for `attend_long_prompt`."""
    return (
        q.is_cuda
        and q.shape[0] >= MIN_TOKENS
        and q.element_size() == 2
        and q.shape[2] <= _MAX_HEAD_DIM
        and q.shape[2] % 8 == 0
        and _has_fused_kernel(q.device.index)
    )


def attend_long_prompt(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Causal attention of q [T, H, d] over k, v [T, K, d] -> [T, H, d]. For the thread that runs steps: torch's choice of a kernel is the process's."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    num_tokens = len(q)
    missing = -num_tokens % LENGTH_MULTIPLE
    if missing:
        q, k, v = (F.pad(x, (0, 0, 0, 0, 0, missing)) for x in (q, k, v))
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))  # [1, H, T, d]
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        out = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
    return out[0].transpose(0, 1)[:num_tokens]


@functools.cache
def _has_fused_kernel(device_index: int) -> bool:
    return (
        torch.cuda.get_device_capability(device_index) >= _MIN_CAPABILITY
        and torch.backends.cudnn.is_available()
        and torch.backends.cuda.cudnn_sdp_enabled()
    )
