"""One plain decoder with experts and switches: every token of one sequence, each expert applied to every token, nothing cached.

Its modules carry the names of the checkpoint (`MoENames`), so that it loads a published file as it is. Checked against GraniteMoeShared,
Glm4Moe, DeepseekOcr2Text and Gemma2 of transformers. Legend: T tokens, D width, H query heads, K kv heads, d head dim, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from sglang.verify.references import OwnReference
from sglang.verify.references.decoder import place, rotate


@dataclass(frozen=True)
class MoENames:
    """Where a checkpoint keeps its tensors; from `attn` on below `layers.<number>`, from `q` on below `attn`, from `router` on below
    `mlp`. `qkv` set: one matrix, all q, all k, all v. `after_attn`, `after_mlp`: norms of what a branch gives."""

    embed: str = "model.embed_tokens"
    layers: str = "model.layers"
    norm: str = "model.norm"
    head: str = "lm_head"
    attn: str = "self_attn"
    mlp: str = "mlp"
    attn_norm: str = "input_layernorm"
    mlp_norm: str = "post_attention_layernorm"
    after_attn: str = ""
    after_mlp: str = ""
    q: str = "q_proj"
    k: str = "k_proj"
    v: str = "v_proj"
    qkv: str = ""
    o: str = "o_proj"
    q_norm: str = "q_norm"
    k_norm: str = "k_norm"
    router: str = "gate"
    correction: str = "e_score_correction_bias"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    norm_weight: str = "weight"


@dataclass(frozen=True)
class MoESpec:
    """What a model computes. Layers before `first_dense`, and those that are no multiple of `expert_period`, have one MLP of
    `mlp_width`; the others `num_experts` of `expert_width`, beside one of `shared_width` (0: none).

    `scores`: "softmax" or "sigmoid" of the router's logits, themselves capped by `router_cap`. `has_correction`: a bias of the choice.
    `num_groups`: only experts of the best `top_groups` groups count, a group by the sum of its two best. Caps of 0 cap nothing.
    """

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_width: int
    num_experts: int
    top_k: int
    expert_width: int
    names: MoENames = field(default_factory=MoENames)
    eps: float = 1e-6
    theta: float = 10000.0
    rotary_dim: int | None = None
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: bool = False
    tied: bool = False
    normed_head: bool = False
    first_dense: int = 0
    expert_period: int = 1
    shared_width: int = 0
    scores: str = "softmax"
    router_cap: float = 0.0
    has_correction: bool = False
    num_groups: int = 1
    top_groups: int = 1
    renormalize: bool = False
    routed_scale: float = 1.0
    act: Callable[[torch.Tensor], torch.Tensor] = F.silu
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    score_scale: float | None = None
    score_cap: float = 0.0
    logit_scale: float = 1.0
    logit_cap: float = 0.0


class MoEDecoder(OwnReference):
    """`forward`: int64 [1, T] -> logits [1, T, V]."""

    def __init__(self, spec: MoESpec) -> None:
        super().__init__()
        self.spec, names = spec, spec.names
        place(self, names.embed, nn.Embedding(spec.vocab_size, spec.width))
        for number in range(spec.num_layers):
            place(self, f"{names.layers}.{number}", MoELayer(spec, number))
        place(self, names.norm, Norm(spec.width, spec))
        if not spec.tied:
            place(self, names.head, nn.Linear(spec.width, spec.vocab_size, bias=False))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        spec, names = self.spec, self.spec.names
        x = apply(self, names.embed, input_ids) * spec.embed_scale  # [1, T, D]
        for number in range(spec.num_layers):
            x = apply(self, f"{names.layers}.{number}", x)
        x = apply(self, names.norm, x)
        weight = self.get_parameter(f"{names.embed if spec.tied else names.head}.weight")
        if spec.normed_head:
            weight = weight / weight.norm(dim=0, keepdim=True)  # over the vocabulary
        return soft_cap(F.linear(x, weight) * spec.logit_scale, spec.logit_cap)


class MoELayer(nn.Module):
    """Attention, then one MLP or experts, around one residual stream."""

    def __init__(self, spec: MoESpec, number: int) -> None:
        super().__init__()
        self.spec, names = spec, spec.names
        place(self, names.attn, Attention(spec))
        has_experts = number >= spec.first_dense and number % spec.expert_period == 0
        place(self, names.mlp, Experts(spec) if has_experts else MLP(spec, spec.mlp_width))
        for norm in (names.attn_norm, names.mlp_norm, names.after_attn, names.after_mlp):
            if norm:
                place(self, norm, Norm(spec.width, spec))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [1, T, D] -> [1, T, D]
        names, scale = self.spec.names, self.spec.residual_scale
        for before, branch, after in (
            (names.attn_norm, names.attn, names.after_attn),
            (names.mlp_norm, names.mlp, names.after_mlp),
        ):
            out = apply(self, branch, apply(self, before, x))
            x = x + scale * (apply(self, after, out) if after else out)
        return x


class Attention(nn.Module):
    def __init__(self, spec: MoESpec) -> None:
        super().__init__()
        self.spec, names = spec, spec.names
        wide, narrow = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        parts = [(names.q, wide), (names.k, narrow), (names.v, narrow)]
        if names.qkv:
            parts = [(names.qkv, wide + 2 * narrow)]
        self._inputs = [name for name, _ in parts]
        for name, size in parts:
            place(self, name, nn.Linear(spec.width, size, bias=spec.qkv_bias))
        place(self, names.o, nn.Linear(wide, spec.width, bias=spec.o_bias))
        for name in (names.q_norm, names.k_norm) if spec.qk_norm else ():
            place(self, name, Norm(spec.head_dim, spec))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        spec, names = self.spec, self.spec.names
        heads = [spec.num_heads, spec.num_kv_heads, spec.num_kv_heads]
        joined = torch.cat([apply(self, name, x) for name in self._inputs], dim=-1)
        by_head = joined.unflatten(-1, (-1, spec.head_dim)).transpose(1, 2)  # [1, H + 2K, T, d]
        q, k, v = by_head.split(heads, dim=1)
        if spec.qk_norm:
            q, k = apply(self, names.q_norm, q), apply(self, names.k_norm, k)
        angles = self._angles(x.shape[1])
        q, k = rotate(q, angles, False), rotate(k, angles, False)
        scale = spec.head_dim**-0.5 if spec.score_scale is None else spec.score_scale
        out = eager_attention_forward(self, q, k, v, None, scale, cap=spec.score_cap)
        return apply(self, names.o, out.transpose(1, 2).flatten(2))

    def _angles(self, length: int) -> torch.Tensor:
        """Cosines and sines [2, T, r / 2] of the r rotated dims."""
        rotated = self.spec.rotary_dim or self.spec.head_dim
        inverse = self.spec.theta ** -(torch.arange(0, rotated, 2) / rotated)
        angles = torch.outer(torch.arange(length).float(), inverse)
        return torch.stack([angles.cos(), angles.sin()])


class MLP(nn.Module):
    def __init__(self, spec: MoESpec, inner: int) -> None:
        super().__init__()
        self.spec, names = spec, spec.names
        place(self, names.gate, nn.Linear(spec.width, inner, bias=False))
        place(self, names.up, nn.Linear(spec.width, inner, bias=False))
        place(self, names.down, nn.Linear(inner, spec.width, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        names = self.spec.names
        inner = self.spec.act(apply(self, names.gate, x)) * apply(self, names.up, x)
        return apply(self, names.down, inner)


class Experts(nn.Module):
    """Every expert sees every token; all but the chosen ones get the weight 0."""

    def __init__(self, spec: MoESpec) -> None:
        super().__init__()
        self.spec = spec
        router = nn.Linear(spec.width, spec.num_experts, bias=False)
        if spec.has_correction:
            router.register_parameter(
                spec.names.correction, nn.Parameter(torch.zeros(spec.num_experts))
            )
        place(self, spec.names.router, router)
        self.experts = nn.ModuleList(MLP(spec, spec.expert_width) for _ in range(spec.num_experts))
        self.shared_experts = MLP(spec, spec.shared_width) if spec.shared_width else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = self.weights(x)  # [1, T, E]
        out = self.spec.routed_scale * sum(
            weights[..., e, None] * expert(x) for e, expert in enumerate(self.experts)
        )
        return out if self.shared_experts is None else out + self.shared_experts(x)

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """The weight of every expert for every token, [1, T, E]."""
        spec, names = self.spec, self.spec.names
        logits = soft_cap(apply(self, names.router, x), spec.router_cap)
        scores = logits.sigmoid() if spec.scores == "sigmoid" else logits.softmax(dim=-1)
        worth = scores
        if spec.has_correction:
            worth = worth + self.get_parameter(f"{names.router}.{names.correction}")
        if spec.num_groups > 1:
            groups = worth.unflatten(-1, (spec.num_groups, -1))  # [1, T, G, E / G]
            rank = groups.sort(dim=-1, descending=True).values[..., :2].sum(dim=-1)
            is_out = rank < rank.topk(spec.top_groups, dim=-1).values[..., -1:]
            worth = groups.masked_fill(is_out[..., None], -math.inf).flatten(-2)
        chosen = torch.zeros_like(scores).scatter(-1, worth.topk(spec.top_k, dim=-1).indices, 1.0)
        weights = scores * chosen
        return weights / weights.sum(dim=-1, keepdim=True) if spec.renormalize else weights


class Norm(nn.Module):
    """RMS norm whose weight has the checkpoint's name for it."""

    def __init__(self, width: int, spec: MoESpec) -> None:
        super().__init__()
        self._name, self._eps = spec.names.norm_weight, spec.eps
        self.register_parameter(self._name, nn.Parameter(torch.ones(width)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        root_mean_square = (x.square().mean(dim=-1, keepdim=True) + self._eps).sqrt()
        return x / root_mean_square * self.get_parameter(self._name)


def eager_attention_forward(
    module: nn.Module,
    q: torch.Tensor,  # [1, H, T, d]
    k: torch.Tensor,  # [1, K, T, d]
    v: torch.Tensor,
    mask: None,
    scaling: float,
    *,
    cap: float,
) -> torch.Tensor:
    """Causal softmax attention [1, H, T, d]. The name and the arguments are transformers', where the comparison of modules listens."""
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    scores = soft_cap(q @ k.transpose(2, 3) * scaling, cap)
    is_future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
    return scores.masked_fill(is_future, -math.inf).softmax(dim=-1) @ v


def apply(root: nn.Module, path: str, x: torch.Tensor) -> torch.Tensor:
    return root.get_submodule(path)(x)


def soft_cap(x: torch.Tensor, cap: float) -> torch.Tensor:
    return cap * (x / cap).tanh() if cap else x
