"""Attention of one set of queries over one set of keys, in plain torch.

`attend` chooses between torch's fused attention and an explicit softmax for what that cannot
express (logit cap, sinks). Legend: n query rows, m keys, H query heads in groups of G = H / K over
K kv heads, d head dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

# Scores of the explicit form that are held at once, in elements (float32).
_MAX_SCORES = 1 << 25


@dataclass(frozen=True)
class BlockSparse:
    """Which blocks of keys a query sees: the nearest `local_blocks`, its own included, and before them every `stride`-th. A head with
    offset o counts blocks from o. `head_offsets`: int64 [H].
    """

    block_size: int
    local_blocks: int
    stride: int
    head_offsets: torch.Tensor

    def visible(self, positions: torch.Tensor, num_keys: int) -> torch.Tensor:
        """Queries at `positions` [b, n], keys at 0 .. num_keys - 1: bool [b, H, n, m]. The causal rule is not in it."""
        keys = torch.arange(num_keys, device=positions.device) // self.block_size  # [m]
        is_near = positions[..., None] // self.block_size - keys < self.local_blocks  # [b, n, m]
        is_kept = (keys + self.head_offsets[:, None] + 1) % self.stride == 0  # [H, m]
        return is_near[:, None] | is_kept[:, None]


@dataclass(frozen=True)
class AttendOptions:
    """How scores become weights. `sinks` [H]: logits of an extra key without value. `alibi_slopes` [H]: what a score loses for every
    token between its query and its key."""

    scale: float
    logit_cap: float = 0.0
    sinks: torch.Tensor | None = None
    alibi_slopes: torch.Tensor | None = None
    block_sparse: BlockSparse | None = None

    @property
    def is_plain(self) -> bool:
        extras = (self.sinks, self.alibi_slopes, self.block_sparse)
        return self.logit_cap <= 0 and all(extra is None for extra in extras)


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    options: AttendOptions,
    mask: torch.Tensor | None = None,
    is_causal: bool = False,
) -> torch.Tensor:
    """q [b, n, H, d], k [b, m, K, d], v [b, m, K, d_v] -> [b, n, H, d_v].

    `mask` is boolean, True where a key is visible, [b or 1, n, m]. `is_causal` means that row i
    sees keys 0 .. i. Either, not both.
    """
    if not options.is_plain:
        return _attend_explicitly(q, k, v, options, mask, is_causal)
    if q.shape[1] == 1:
        return _attend_single(q, k, v, options.scale, mask)
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=None if mask is None else mask.unsqueeze(1),
        is_causal=is_causal,
        scale=options.scale,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return out.transpose(1, 2)


def _attend_single(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, mask: torch.Tensor | None
) -> torch.Tensor:
    """One query per sequence: the heads of a group are the rows of one small attention per kv head,
    so that keys are read once and not once per head."""
    batch, _, num_heads, dim = q.shape
    num_kv_heads = k.shape[2]
    out = F.scaled_dot_product_attention(
        q.reshape(batch, num_kv_heads, num_heads // num_kv_heads, dim),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=None if mask is None else mask.unsqueeze(1),
        scale=scale,
    )
    return out.reshape(batch, 1, num_heads, v.shape[-1])


def _attend_explicitly(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    options: AttendOptions,
    mask: torch.Tensor | None,
    is_causal: bool,
) -> torch.Tensor:
    """Softmax written out in float32, in blocks of query rows that bound the memory of the
    scores."""
    batch, num_rows, num_heads, _ = q.shape
    num_keys = k.shape[1]
    step = max(1, _MAX_SCORES // max(1, batch * num_heads * num_keys))
    blocks = []
    for start in range(0, num_rows, step):
        end = min(start + step, num_rows)
        if is_causal:
            rows = torch.arange(start, end, device=q.device)
            seen = (torch.arange(end, device=q.device) <= rows[:, None])[None]
            blocks.append(_softmax_block(q[:, start:end], k[:, :end], v[:, :end], options, seen))
        else:
            part = None if mask is None else mask[:, start:end]
            blocks.append(_softmax_block(q[:, start:end], k, v, options, part))
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)


def _softmax_block(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    options: AttendOptions,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    batch, num_rows, num_heads, dim = q.shape
    num_kv_heads = k.shape[2]
    group = num_heads // num_kv_heads
    # [b, K, G * n, d]: the heads of a group side by side, as rows over the same keys.
    rows = q.unflatten(2, (num_kv_heads, group)).permute(0, 2, 3, 1, 4)
    rows = rows.reshape(batch, num_kv_heads, group * num_rows, dim).float()
    scores = torch.matmul(rows, k.permute(0, 2, 3, 1).float()).mul_(options.scale)
    if options.logit_cap > 0:
        scores = scores.div_(options.logit_cap).tanh_().mul_(options.logit_cap)
    scores = scores.unflatten(2, (group, num_rows))  # [b, K, G, n, m]
    if options.alibi_slopes is not None:
        # Keys are consecutive positions. Where a row's query stands does not matter: softmax takes no notice of what all scores share.
        behind = torch.arange(1 - k.shape[1], 1, device=q.device)
        scores += options.alibi_slopes.float().view(num_kv_heads, group, 1, 1) * behind
    if options.block_sparse is not None:
        # Keys start at position 0, and a query stands at the last key that it sees.
        seen = torch.full((1, num_rows), k.shape[1], device=q.device)
        places = (seen if mask is None else mask.sum(dim=-1)) - 1  # [b, n]
        pattern = options.block_sparse.visible(places, k.shape[1])
        by_group = pattern.unflatten(1, (num_kv_heads, group))  # [b, K, G, n, m]
        scores = scores.masked_fill(~by_group, float("-inf"))
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None], float("-inf"))
    weights = _softmax(scores, options.sinks).flatten(2, 3)
    out = torch.matmul(weights, v.transpose(1, 2).float())  # [b, K, G * n, d_v]
    out = out.unflatten(2, (group, num_rows)).permute(0, 3, 1, 2, 4)
    return out.reshape(batch, num_rows, num_heads, v.shape[-1]).to(q.dtype)


def _softmax(scores: torch.Tensor, sinks: torch.Tensor | None) -> torch.Tensor:
    if sinks is None:
        return torch.softmax(scores, dim=-1)
    batch, num_kv_heads, group, num_rows, num_keys = scores.shape
    sink = sinks.float().view(1, num_kv_heads, group, 1, 1)
    sink = sink.expand(batch, num_kv_heads, group, num_rows, 1)
    return torch.softmax(torch.cat([scores, sink], dim=-1), dim=-1)[..., :num_keys]
