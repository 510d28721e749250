"""The model's forward pass for training: packed rows and pictures of one size, no cache.

transformers' own forward takes pictures one by one; this one has the same numbers
(test/unit/test_demo_vlm_data.py), has one shape at every step and never waits for the GPU.
B rows of T positions, N pictures of P patches; D is the hidden size, d a head's, E the tower's.
"""

from __future__ import annotations

import torch
from model import MROPE_SECTION
from pixels import normalise
from rows import Step
from torch.nn import functional
from transformers import Qwen2VLForConditionalGeneration

Rotation = tuple[torch.Tensor, torch.Tensor]
_FAR = -1e4  # added to the score of what must not be seen


def weighted_loss(model: Qwen2VLForConditionalGeneration, step: Step) -> torch.Tensor:
    """The mean of all labels' cross-entropies by their weights."""
    logits = all_logits(model, step).flatten(0, 1).float()
    each = functional.cross_entropy(logits, step["labels"].flatten(), reduction="none")
    weights = step["weights"].flatten()
    return (each * weights).sum() / weights.sum()


def all_logits(model: Qwen2VLForConditionalGeneration, step: Step) -> torch.Tensor:
    """[B, T, V]: the predictions at all places of a step as `rows.pack` makes it."""
    text = model.model.language_model
    hidden = _embed(text.embed_tokens.weight, step["ids"])  # [B, T, D]
    pictures = picture_rows(model.model.visual, step).to(hidden.dtype)
    flat = torch.cat((hidden.flatten(0, 1), hidden.new_zeros(1, hidden.shape[-1])))
    hidden = flat.index_copy(0, step["places"], pictures)[:-1].view_as(hidden)
    rotation = _rotation(_text_angles(text.rotary_emb.inv_freq, step["positions"]))
    mask = _text_mask(step["owners"])
    for layer in text.layers:
        hidden = _text_layer(hidden, layer, rotation, mask)
    return model.lm_head(text.norm(hidden))


def picture_rows(tower: torch.nn.Module, step: Step) -> torch.Tensor:
    """[N * P / 4, D]: the tower's rows for all pictures, those of their padding included."""
    weight = tower.patch_embed.proj.weight.flatten(1)
    hidden = functional.linear(normalise(step["patches"]), weight)  # [N, P, E]
    inverse = tower.rotary_pos_emb.inv_freq
    angles = (step["spots"][..., None] * inverse).flatten(-2)  # [N, P, d / 2]
    rotation = _rotation(angles)
    counts = torch.arange(hidden.shape[1], device=hidden.device) < step["sizes"][:, None]
    mask = _as_bias(counts[:, None, None].expand(-1, -1, hidden.shape[1], -1))
    for block in tower.blocks:
        hidden = _tower_block(hidden, block, rotation, mask)
    return tower.merger(hidden)


def _embed(weight: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Rows of the embedding as a product: with so few tokens its gradient is the cheaper one."""
    chosen = ids[..., None] == torch.arange(len(weight), device=ids.device)
    return (chosen.to(weight.dtype) @ weight).float()


def _text_angles(inverse: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """[B, T, d / 2]: the first frequencies turn with time, then height, then width."""
    axes = [positions[axis] for axis, n in enumerate(MROPE_SECTION) for _ in range(n)]
    return torch.stack(axes, -1) * inverse


def _rotation(angles: torch.Tensor) -> Rotation:
    """cos and sin [., 1, ., d] of angles [., ., d / 2]."""
    both = torch.cat((angles, angles), -1)[:, None]
    return both.cos(), both.sin()


def _text_mask(owners: torch.Tensor) -> torch.Tensor:
    """[B, 1, T, T]: a place sees what stands before it in its own conversation."""
    length = owners.shape[1]
    before = torch.ones(length, length, dtype=torch.bool, device=owners.device).tril()
    return _as_bias((owners[:, None, :, None] == owners[:, None, None, :]) & before)


def _as_bias(seen: torch.Tensor) -> torch.Tensor:
    dtype = torch.get_autocast_dtype(seen.device.type)
    dtype = dtype if torch.is_autocast_enabled(seen.device.type) else torch.float32
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, _FAR)


def _turn(x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    cos, sin = rotation
    first, second = x.float().chunk(2, -1)
    turned = x.float() * cos + torch.cat((-second, first), -1) * sin
    return turned.to(x.dtype)


def _text_layer(
    x: torch.Tensor, layer: torch.nn.Module, rotation: Rotation, mask: torch.Tensor
) -> torch.Tensor:
    """One decoder layer on [B, T, D]."""
    attention = layer.self_attn
    b, t, _ = x.shape
    h = layer.input_layernorm(x)
    q, k, v = (
        project(h).view(b, t, -1, attention.head_dim).transpose(1, 2)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    groups = q.shape[1] // k.shape[1]
    k, v = _turn(k, rotation).repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    mask = mask.expand(-1, q.shape[1], -1, -1)
    mixed = functional.scaled_dot_product_attention(_turn(q, rotation), k, v, attn_mask=mask)
    x = x + attention.o_proj(mixed.transpose(1, 2).reshape(b, t, -1))
    return x + layer.mlp(layer.post_attention_layernorm(x))


def _tower_block(
    x: torch.Tensor, block: torch.nn.Module, rotation: Rotation, mask: torch.Tensor
) -> torch.Tensor:
    """One block of the vision tower on [N, P, E]; every patch sees its whole picture."""
    n, p, width = x.shape
    attention = block.attn
    qkv = attention.qkv(block.norm1(x)).view(n, p, 3, attention.num_heads, -1)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    mask = mask.expand(-1, q.shape[1], -1, -1)
    mixed = functional.scaled_dot_product_attention(
        _turn(q, rotation), _turn(k, rotation), v, attn_mask=mask
    )
    x = x + attention.proj(mixed.transpose(1, 2).reshape(n, p, width))
    return x + block.mlp(block.norm2(x))
