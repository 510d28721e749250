"""Decoder layers that several families share: attention and an MLP around one residual stream, with norms before, behind or both.

A family's constructor makes the modules, under the checkpoint's names. T tokens, D model width.
"""

from __future__ import annotations

import torch
from torch import nn

from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.models.common.norm import add_norm, add_residual


class PreNormLayer(nn.Module):
    """h = h + attention(norm(h)); h = h + mlp(norm(h))."""

    input_layernorm: nn.Module
    self_attn: nn.Module
    post_attention_layernorm: nn.Module
    mlp: nn.Module

    def forward(
        self,
        positions: torch.Tensor,  # [T]
        hidden_states: torch.Tensor,  # [T, D]
        forward_batch: ForwardBatch,
        residual: torch.Tensor | None,  # [T, D]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x, residual = add_norm(self.input_layernorm, hidden_states, residual)
        x = self.self_attn(positions, x, forward_batch)
        x, residual = add_norm(self.post_attention_layernorm, x, residual)
        return self.mlp(x), residual


class PreNormExpertsLayer(nn.Module):
    """h = h + attention(norm(h)); h = h + experts(norm(h)), for checkpoints that call the experts `block_sparse_moe`."""

    input_layernorm: nn.Module
    self_attn: nn.Module
    post_attention_layernorm: nn.Module
    block_sparse_moe: nn.Module

    def forward(
        self,
        positions: torch.Tensor,  # [T]
        hidden_states: torch.Tensor,  # [T, D]
        forward_batch: ForwardBatch,
        residual: torch.Tensor | None,  # [T, D]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x, residual = add_norm(self.input_layernorm, hidden_states, residual)
        x = self.self_attn(positions, x, forward_batch)
        x, residual = add_norm(self.post_attention_layernorm, x, residual)
        return self.block_sparse_moe(x), residual


class PostNormLayer(nn.Module):
    """h = h + norm(attention(h)); h = h + norm(mlp(h))."""

    self_attn: nn.Module
    post_attention_layernorm: nn.Module
    mlp: nn.Module
    post_feedforward_layernorm: nn.Module

    def forward(
        self,
        positions: torch.Tensor,  # [T]
        hidden_states: torch.Tensor,  # [T, D]
        forward_batch: ForwardBatch,
        residual: torch.Tensor | None,  # [T, D]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        h = add_residual(hidden_states, residual)
        h = h + self.post_attention_layernorm(self.self_attn(positions, h, forward_batch))
        return self.post_feedforward_layernorm(self.mlp(h)), h


class SandwichLayer(nn.Module):
    """h = h + norm(attention(norm(h))); h = h + norm(mlp(norm(h)))."""

    input_layernorm: nn.Module
    self_attn: nn.Module
    post_attention_layernorm: nn.Module
    pre_feedforward_layernorm: nn.Module
    mlp: nn.Module
    post_feedforward_layernorm: nn.Module

    def forward(
        self,
        positions: torch.Tensor,  # [T]
        hidden_states: torch.Tensor,  # [T, D]
        forward_batch: ForwardBatch,
        residual: torch.Tensor | None,  # [T, D]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x, residual = add_norm(self.input_layernorm, hidden_states, residual)
        x = self.post_attention_layernorm(self.self_attn(positions, x, forward_batch))
        x, residual = add_norm(self.pre_feedforward_layernorm, x, residual)
        return self.post_feedforward_layernorm(self.mlp(x)), residual
