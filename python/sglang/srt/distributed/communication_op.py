"""Collectives over the tensor-parallel group; the identity on one rank."""

from __future__ import annotations

import torch

from sglang.srt.distributed.parallel_state import get_tp_group


def tensor_model_parallel_all_reduce(input_: torch.Tensor) -> torch.Tensor:
    """Sum over the tensor-parallel ranks. May overwrite its argument; use the returned tensor."""
    return get_tp_group().all_reduce(input_)


def tensor_model_parallel_all_gather(input_: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """Concatenate the ranks' tensors along `dim`."""
    return get_tp_group().all_gather(input_, dim)
