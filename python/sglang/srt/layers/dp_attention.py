"""The ranks that share one attention layer.

Data-parallel attention is not implemented: attention is cut over the same ranks as everything else,
so the attention group is the tensor-parallel group and the gathers and scatters between groups do
not move anything. Model files may call all of it.
"""

from __future__ import annotations

import torch

from sglang.srt.distributed import (
    GroupCoordinator,
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
    get_tp_group,
)
from sglang.srt.model_executor.forward_batch_info import ForwardBatch


def is_dp_attention_enabled() -> bool:
    return False


def get_attention_tp_group() -> GroupCoordinator:
    return get_tp_group()


def get_attention_tp_rank() -> int:
    return get_tensor_model_parallel_rank()


def get_attention_tp_size() -> int:
    return get_tensor_model_parallel_world_size()


def get_attention_dp_rank() -> int:
    return 0


def get_attention_dp_size() -> int:
    return 1


def get_local_attention_dp_rank() -> int:
    return 0


def get_local_attention_dp_size() -> int:
    return 1


def get_attention_cp_rank() -> int:
    return 0


def get_attention_cp_size() -> int:
    return 1


def is_allocation_symmetric() -> bool:
    return True


def get_global_dp_buffer() -> torch.Tensor:
    raise ValueError("there is no global token buffer: data-parallel attention is off")


def get_local_dp_buffer() -> torch.Tensor:
    raise ValueError("there is no local token buffer: data-parallel attention is off")


def dp_gather_partial(
    global_tokens: torch.Tensor, local_tokens: torch.Tensor, forward_batch: ForwardBatch
) -> None:
    """Fill `global_tokens` with the tokens of all attention groups; here there is one."""
    global_tokens.copy_(local_tokens)


def dp_gather_replicate(
    global_tokens: torch.Tensor, local_tokens: torch.Tensor, forward_batch: ForwardBatch
) -> None:
    """As `dp_gather_partial`, for tokens that the ranks of a group hold alike."""
    global_tokens.copy_(local_tokens)


def dp_scatter(
    local_tokens: torch.Tensor, global_tokens: torch.Tensor, forward_batch: ForwardBatch
) -> None:
    """Take this group's tokens out of `global_tokens`; here all of them."""
    local_tokens.copy_(global_tokens)


def attn_tp_all_gather(output_list: list[torch.Tensor], input_: torch.Tensor) -> None:
    """Fill `output_list` with the tensors of the ranks of the attention group."""
    group = get_attention_tp_group()
    parts = group.all_gather(input_, dim=0).chunk(group.world_size, dim=0)
    for target, part in zip(output_list, parts, strict=True):
        target.copy_(part)


def attn_tp_reduce_scatter_tensor(output: torch.Tensor, input_: torch.Tensor) -> None:
    """Sum `input_` over the attention group and keep this rank's rows in `output`."""
    output.copy_(get_attention_tp_group().reduce_scatter(input_))
