"""The metadata of a prefill that is captured in a graph: buffers for so many tokens, whatever requests they belong to.

Behind the real requests comes one of padding tokens, then one without any, to which unused tiles belong.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from sglang.srt.layers.attention.triton_ops import plan
from sglang.srt.layers.attention.triton_ops.metadata import ExtendMetadata
from sglang.srt.utils.upload import upload, upload_into

# Lines of the table.
_STARTS, _NEW, _PREFIX, _SEQ, _ZEROS = range(5)
_NUM_LINES = 5


@dataclass
class GraphExtend:
    """`table` int32 [5, requests] is what the tensors of the metadata are lines of."""

    metadata: ExtendMetadata
    table: torch.Tensor
    num_tokens: int


def build_graph_extend(num_tokens: int, rows: torch.Tensor) -> GraphExtend:
    """Metadata for up to len(rows) - 2 real requests; there are none to begin with."""
    num_requests = len(rows)
    lines = _table(num_tokens, num_requests, np.zeros(0, np.int64), np.zeros(0, np.int64))
    table = upload(lines, torch.int32, rows.device)
    starts, new_lens, prefix_lens, seq_lens, zeros = table[:, :num_requests].unbind()
    metadata = ExtendMetadata(
        # The padding request reads no cache, so that its row is any.
        rows=rows,
        starts=starts,
        new_lens=new_lens,
        prefix_lens=prefix_lens,
        seq_lens=seq_lens,
        zeros=zeros,
        encoder_lens=None,
        # One request with all tokens: the widest program that a step may need.
        new_lens_cpu=np.array([num_tokens]),
        prefix_lens_cpu=np.array([0]),
        empty_request=num_requests - 1,
    )
    return GraphExtend(metadata, table, num_tokens)


def update_graph_extend(extend: GraphExtend, new_lens: np.ndarray, prefix_lens: np.ndarray) -> None:
    """Make the buffers those of these requests; does not wait for the device."""
    metadata = extend.metadata
    empty = metadata.empty_request
    assert empty is not None
    table = _table(extend.num_tokens, empty + 1, new_lens, prefix_lens)
    upload_into(extend.table, table)
    all_new, all_prefix = table[_NEW, : empty + 1], table[_PREFIX, : empty + 1]
    for (tokens_per_tile, _), static in metadata.tiles.items():
        tiles = plan.build_tiles(all_new.astype(np.int64), all_prefix, tokens_per_tile)
        upload_into(static, plan.pad_tiles(tiles, len(static), empty))


def _table(
    num_tokens: int, num_requests: int, new_lens: np.ndarray, prefix_lens: np.ndarray
) -> np.ndarray:
    """Lines of the real requests, then of the padding one; the others have no tokens."""
    table = np.zeros((_NUM_LINES, plan.round_up(num_requests, 4)), np.int32)
    table[_STARTS] = 1  # of requests without tokens: kernels look one row back
    size, used = len(new_lens), int(new_lens.sum())
    table[_NEW, :size] = new_lens
    table[_PREFIX, :size] = prefix_lens
    table[_NEW, size] = num_tokens - used
    table[_STARTS, : size + 1] = np.cumsum(table[_NEW, : size + 1]) - table[_NEW, : size + 1]
    table[_STARTS, size] = max(used, 1) if used == num_tokens else used
    table[_SEQ] = table[_NEW] + table[_PREFIX]
    return table
