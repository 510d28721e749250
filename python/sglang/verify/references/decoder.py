"""One plain decoder with switches: every token of one sequence, float32 as it comes, nothing cached, nothing fused.

Its modules carry the names of the checkpoint (`Names`), so that it loads a published file as it is. Checked against Llama, Qwen2, Glm,
Granite and StableLM of transformers. Legend: T tokens, D width, H query heads, K kv heads, d head dim, r rotated dims, I MLP width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from sglang.verify.references import OwnReference


@dataclass(frozen=True)
class Names:
    """Where a checkpoint keeps its matrices; those of a layer below `layers.<number>`. Fused names win where they are set."""

    embed: str = "model.embed_tokens"
    layers: str = "model.layers"
    norm: str = "model.norm"
    head: str = "lm_head"
    attn_norm: str = "input_layernorm"
    mlp_norm: str = "post_attention_layernorm"
    q: str = "self_attn.q_proj"
    k: str = "self_attn.k_proj"
    v: str = "self_attn.v_proj"
    qkv: str = ""
    o: str = "self_attn.o_proj"
    gate: str = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    gate_up: str = ""
    down: str = "mlp.down_proj"


@dataclass(frozen=True)
class Rope:
    """`width`: rotated dims, the first ones of a head. `interleaved`: pairs are neighbours, else d and d + r / 2.
    `scaling`: settings of another kind of transformers (`rope_type` and its parameters), made for `max_position`."""

    theta: float
    width: int
    interleaved: bool = False
    scaling: Mapping[str, Any] | None = None
    max_position: int = 2048


@dataclass(frozen=True)
class Spec:
    """What a model computes. `grouped_qkv`: a fused matrix holds, one kv head after the other, its query heads, its key, its value;
    else all q, all k, all v. `norm`: "rms" or "layer" (with bias). `gated`: of gate and up [.., I] each."""

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_width: int
    names: Names = field(default_factory=Names)
    eps: float = 1e-6
    norm: str = "rms"
    rope: Rope | None = None
    alibi: bool = False
    grouped_qkv: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    tied: bool = False
    normed_head: bool = False
    parallel: bool = False
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    score_scale: float | None = None
    logit_scale: float = 1.0
    # Beyond so many tokens queries grow with the logarithm of their position.
    logn_from: int | None = None
    interleaved_gate: bool = False
    gated: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = lambda gate, up: F.silu(gate) * up
    # layer -> what its input becomes, given the inputs of all layers so far.
    blend: Callable[[int, list[torch.Tensor]], torch.Tensor] = lambda layer, inputs: inputs[layer]
    # (layer, number of tokens) -> which keys a layer may see besides the causal rule, bool [H, T, T]; None for all.
    pattern: Callable[[int, int], torch.Tensor | None] = lambda layer, length: None
    banned_tokens: tuple[int, ...] = ()


class Decoder(OwnReference):
    """`forward`: int64 [1, T] -> logits [1, T, V]."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        names = spec.names
        place(self, names.embed, nn.Embedding(spec.vocab_size, spec.width))
        for number in range(spec.num_layers):
            place(self, f"{names.layers}.{number}", Layer(spec, number))
        place(self, names.norm, make_norm(spec))
        if not spec.tied:
            place(self, names.head, nn.Linear(spec.width, spec.vocab_size, bias=False))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        spec, part = self.spec, self.get_submodule
        names = spec.names
        x = part(names.embed)(input_ids) * spec.embed_scale  # [1, T, D]
        angles = None if spec.rope is None else rotary_angles(spec, input_ids.shape[1])
        inputs: list[torch.Tensor] = []
        for number in range(spec.num_layers):
            inputs.append(x)
            inputs[number] = spec.blend(number, inputs)
            x = part(f"{names.layers}.{number}")(inputs[number], angles)
        weight = self.get_parameter(f"{names.embed if spec.tied else names.head}.weight")
        if spec.normed_head:
            weight = weight / weight.norm(dim=1, keepdim=True)
        logits = F.linear(part(names.norm)(x), weight) * spec.logit_scale
        if spec.banned_tokens:
            logits[..., list(spec.banned_tokens)] = -math.inf
        return logits


class Layer(nn.Module):
    """Attention and MLP, in turn or side by side."""

    def __init__(self, spec: Spec, number: int) -> None:
        super().__init__()
        self.spec, self.number = spec, number
        names, width, head_dim = spec.names, spec.width, spec.head_dim
        place(self, names.attn_norm, make_norm(spec))
        if not spec.parallel:
            place(self, names.mlp_norm, make_norm(spec))
        sizes = [spec.num_heads * head_dim, *2 * [spec.num_kv_heads * head_dim]]
        self._place_inputs(names.qkv, (names.q, names.k, names.v), sizes, spec.qkv_bias)
        place(self, names.o, nn.Linear(sizes[0], width, bias=spec.o_bias))
        self._place_inputs(
            names.gate_up, (names.gate, names.up), 2 * [spec.mlp_width], spec.mlp_bias
        )
        place(self, names.down, nn.Linear(spec.mlp_width, width, bias=spec.mlp_bias))

    def _place_inputs(
        self, fused: str, apart: tuple[str, ...], sizes: list[int], bias: bool
    ) -> None:
        """The matrices over the same input: one when the checkpoint fuses them, else one each."""
        for name, size in [(fused, sum(sizes))] if fused else zip(apart, sizes, strict=True):
            place(self, name, nn.Linear(self.spec.width, size, bias=bias))

    def _apply_joined(self, fused: str, apart: tuple[str, ...], x: torch.Tensor) -> torch.Tensor:
        names = [fused] if fused else apart
        return torch.cat([self.get_submodule(name)(x) for name in names], dim=-1)

    def forward(self, x: torch.Tensor, angles: torch.Tensor | None) -> torch.Tensor:
        scale, names = self.spec.residual_scale, self.spec.names
        normed = self.get_submodule(names.attn_norm)(x)
        attended = self._attend(normed, angles)
        if self.spec.parallel:
            return x + scale * (attended + self._feed(normed))
        x = x + scale * attended
        return x + scale * self._feed(self.get_submodule(names.mlp_norm)(x))

    def _attend(self, x: torch.Tensor, angles: torch.Tensor | None) -> torch.Tensor:
        spec, length = self.spec, x.shape[1]
        q, k, v = (t.transpose(1, 2) for t in self._project(x))  # [1, H or K, T, d]
        if angles is not None and spec.rope is not None:
            q, k = (rotate(t, angles, spec.rope.interleaved) for t in (q, k))
        if spec.logn_from is not None:
            places = torch.arange(1, length + 1, device=x.device).float()
            q = q * (places.log() / math.log(spec.logn_from)).clamp(min=1.0)[:, None]
        scale = spec.head_dim**-0.5 if spec.score_scale is None else spec.score_scale
        bias = score_bias(spec, length, x)
        pattern = spec.pattern(self.number, length)
        if pattern is not None:
            bias = bias.masked_fill(~pattern, -math.inf)
        scope = self.get_submodule(spec.names.o.rpartition(".")[0])
        out = eager_attention_forward(scope, q, k, v, bias, scale)
        return self.get_submodule(spec.names.o)(out.transpose(1, 2).flatten(2))

    def _project(self, x: torch.Tensor) -> list[torch.Tensor]:
        """q [1, T, H, d], k and v [1, T, K, d]."""
        spec = self.spec
        heads, kv_heads = spec.num_heads, spec.num_kv_heads
        names = spec.names
        joined = self._apply_joined(names.qkv, (names.q, names.k, names.v), x)
        if not spec.grouped_qkv:
            by_head = joined.unflatten(-1, (-1, spec.head_dim))
            return list(by_head.split([heads, kv_heads, kv_heads], dim=2))
        group = heads // kv_heads
        by_group = joined.unflatten(-1, (kv_heads, group + 2, spec.head_dim))
        q, k, v = by_group.split([group, 1, 1], dim=3)
        return [part.flatten(2, 3) for part in (q, k, v)]

    def _feed(self, x: torch.Tensor) -> torch.Tensor:
        names = self.spec.names
        joined = self._apply_joined(names.gate_up, (names.gate, names.up), x)
        gate, up = joined.chunk(2, dim=-1)
        if self.spec.interleaved_gate:
            gate, up = joined[..., ::2], joined[..., 1::2]
        return self.get_submodule(names.down)(self.spec.gated(gate, up))


class Scope(nn.Module):
    """A name on the way to a matrix."""


def eager_attention_forward(
    module: nn.Module,
    q: torch.Tensor,  # [1, H, T, d]
    k: torch.Tensor,  # [1, K, T, d]
    v: torch.Tensor,
    bias: torch.Tensor,  # added to the scores, [H or 1, T, T]
    scaling: float,
) -> torch.Tensor:
    """Softmax attention [1, H, T, d]. The name and the arguments are transformers', where the comparison of modules listens."""
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    scores = q @ k.transpose(2, 3) * scaling + bias
    return scores.softmax(dim=-1) @ v


def score_bias(spec: Spec, length: int, like: torch.Tensor) -> torch.Tensor:
    """Causal mask, with ALiBi's penalty of the distance where the model has it."""
    shape = (length, length)
    mask = torch.full(shape, -math.inf, dtype=like.dtype, device=like.device).triu(1)
    if not spec.alibi:
        return mask[None]
    places = torch.arange(length, device=like.device)
    distance = (places[:, None] - places).to(like)
    slopes = torch.tensor(alibi_slopes(spec.num_heads)).to(like)
    return mask - slopes[:, None, None] * distance


def alibi_slopes(num_heads: int) -> list[float]:
    """ALiBi (arXiv 2108.12409): a geometric series; where heads are no power of two, every second slope of the next series follows."""
    power = 2 ** int(math.log2(num_heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    finer = [2 ** (-4 * (i + 1) / power) for i in range(0, 2 * power, 2)]
    return slopes + finer[: num_heads - power]


def rotary_angles(spec: Spec, length: int) -> torch.Tensor:
    """Cosines and sines [2, T, r / 2]. Kinds of transformers come from its own functions."""
    rope = spec.rope
    assert rope is not None
    factor = 1.0
    inverse = 1.0 / rope.theta ** (torch.arange(0, rope.width, 2) / rope.width)
    if rope.scaling is not None:
        from transformers import PretrainedConfig
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        keys: dict[str, Any] = {
            "rope_parameters": {**rope.scaling, "rope_theta": rope.theta},
            "head_dim": rope.width,
            "hidden_size": spec.width,
            "num_attention_heads": spec.num_heads,
            "max_position_embeddings": rope.max_position,
        }
        kind = ROPE_INIT_FUNCTIONS[rope.scaling["rope_type"]]
        inverse, factor = kind(PretrainedConfig(**keys), torch.device("cpu"), seq_len=length)
    angles = torch.outer(torch.arange(length).float(), inverse)
    return torch.stack([angles.cos(), angles.sin()]) * factor


def rotate(x: torch.Tensor, angles: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """x [1, H, T, d]: its first r dims turned, pair by pair."""
    cos, sin = angles.to(x)
    width = 2 * cos.shape[-1]
    turned, rest = x[..., :width], x[..., width:]
    if interleaved:
        a, b = turned[..., ::2], turned[..., 1::2]
        pairs = torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)
    else:
        a, b = turned.chunk(2, dim=-1)
        pairs = torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
    return torch.cat([pairs, rest], dim=-1)


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x / (x.square().mean(dim=-1, keepdim=True) + self.eps).sqrt()


def make_norm(spec: Spec) -> nn.Module:
    if spec.norm == "layer":
        return nn.LayerNorm(spec.width, eps=spec.eps)
    return RMSNorm(spec.width, spec.eps)


def place(root: nn.Module, path: str, module: Any) -> Any:
    """Register a module under a dotted path, with scopes on the way; returns it."""
    *parents, name = path.split(".")
    for parent in parents:
        if parent not in dict(root.named_children()):
            root.add_module(parent, Scope())
        root = root.get_submodule(parent)
    root.add_module(name, module)
    return module
