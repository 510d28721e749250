"""Multi-head latent attention (arXiv 2405.04434): the cache keeps one latent c and one rotated key of a token, for all heads.

    c = norm(Wc x);  k_i = [Wk_i c | rope(Wr x)];  v_i = Wv_i c;  q_i = [qn_i | rope(qr_i)]
    expanded: out_i = softmax(q_i k_i^T * scale) v_i
    absorbed: out_i = Wv_i (softmax([Wk_i^T qn_i | rope(qr_i)] [c | rope(Wr x)]^T * scale) c)

Both are one function. Absorbed reads the cache as it is: decodes, and prompts with a cached prefix. Expanded is less work where no token
comes from the cache. Legend: T tokens, D model width, H heads of this rank, n, r, v widths of a head (not rotated, rotated, value), L
width of the latent.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sglang.srt.configs.hf_config import ModelFacts, RopeFacts
from sglang.srt.configs.mla import MLAFacts
from sglang.srt.distributed import get_tensor_model_parallel_world_size
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.layers.rotary_embedding import get_rope, yarn_get_mscale
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.models.common.attention import rope_arguments
from sglang.srt.models.common.weights import Stacked
from sglang.srt.utils import add_prefix
from sglang.srt.utils.errors import ConfigError

# The two projections of x to a latent, in one matrix where queries have a latent.
QKV_A: tuple[Stacked, ...] = (
    (".fused_qkv_a_proj_with_mqa", ".q_a_proj", 0),
    (".fused_qkv_a_proj_with_mqa", ".kv_a_proj_with_mqa", 1),
)
# Of the norms of the latents, in every published model, whatever the config says of the others.
_LATENT_NORM_EPS = 1e-6


class MLAttention(nn.Module):
    """One layer's attention. Heads are a total and are dealt out to the tensor-parallel ranks; latents are on every rank.

    `bias`: of the projections from x and of the output. `rope_is_neox_style`: how the checkpoint pairs rotated dimensions.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        sizes: MLAFacts,
        layer_id: int,
        *,
        rope_theta: float,
        rope_scaling: dict[str, Any] | None,
        max_position_embeddings: int,
        rope_is_neox_style: bool = False,
        scaling: float | None = None,
        bias: bool = False,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        self.sizes = sizes
        self.num_heads = num_heads // get_tensor_model_parallel_world_size()
        self._add_projections(hidden_size, num_heads, bias, quant_config, prefix)
        self.rotary_emb = get_rope(
            sizes.qk_rope_head_dim,
            rotary_dim=sizes.qk_rope_head_dim,
            max_position=max_position_embeddings,
            base=rope_theta,
            is_neox_style=rope_is_neox_style,
            rope_scaling=rope_scaling,
        )
        scaling = sizes.qk_head_dim**-0.5 if scaling is None else scaling
        self.attn_mqa = RadixAttention(
            self.num_heads,
            sizes.cache_dim,
            scaling,
            num_kv_heads=1,
            layer_id=layer_id,
            v_head_dim=sizes.kv_lora_rank,
            quant_config=quant_config,
            prefix=add_prefix("attn_mqa", prefix),
        )
        self.attn_mha = RadixAttention(
            self.num_heads,
            sizes.qk_head_dim,
            scaling,
            num_kv_heads=self.num_heads,
            layer_id=layer_id,
            v_head_dim=sizes.v_head_dim,
        )

    @classmethod
    def from_facts(
        cls,
        facts: ModelFacts,
        layer_id: int,
        quant_config: QuantizationConfig | None,
        prefix: str,
        *,
        rope_is_neox_style: bool = False,
    ) -> MLAttention:
        """One layer's attention with the config's sizes. Raises ConfigError for a config without a latent."""
        if facts.mla is None:
            raise ConfigError(
                f"model_type {facts.model_type!r} without kv_lora_rank in its config.json is not implemented"
            )
        rotary = rope_arguments(facts)
        if rotary.pop("partial_rotary_factor") != 1.0:
            raise ConfigError(
                "partial_rotary_factor in config.json is not implemented for latent attention, which "
                "rotates qk_rope_head_dim whole dimensions"
            )
        return cls(
            facts.hidden_size,
            facts.num_attention_heads,
            facts.mla,
            layer_id,
            rope_is_neox_style=rope_is_neox_style,
            scaling=facts.mla.qk_head_dim**-0.5 * yarn_score_factor(facts.rope),
            bias=facts.attention_bias,
            quant_config=quant_config,
            prefix=prefix,
            **rotary,
        )

    def forward(
        self, positions: torch.Tensor, hidden_states: torch.Tensor, forward_batch: ForwardBatch
    ) -> torch.Tensor:  # [T], [T, D] -> [T, D]
        q, latent, k_rope = self.project(hidden_states)
        q_nope, q_rope = q.split([self.sizes.qk_nope_head_dim, self.sizes.qk_rope_head_dim], dim=-1)
        q_rope, k_rope = self.rotary_emb(positions, q_rope, k_rope)
        attend = self.attend_expanded if is_whole_prefill(forward_batch) else self.attend_absorbed
        output, _ = self.o_proj(attend(q_nope, q_rope, latent, k_rope, forward_batch))
        return output

    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """x [T, D] -> q [T, H, n + r], latent [T, L] and shared key [T, r]; the rotated parts are not rotated yet."""
        sizes = self.sizes
        if sizes.q_lora_rank is None:
            q, _ = self.q_proj(x)
            kv, _ = self.kv_a_proj_with_mqa(x)
        else:
            both, _ = self.fused_qkv_a_proj_with_mqa(x)
            q_latent, kv = both.split([sizes.q_lora_rank, sizes.cache_dim], dim=-1)
            q, _ = self.q_b_proj(self.q_a_layernorm(q_latent))
        latent, k_rope = kv.split([sizes.kv_lora_rank, sizes.qk_rope_head_dim], dim=-1)
        q = q.unflatten(-1, (self.num_heads, sizes.qk_head_dim))
        return q, self.kv_a_layernorm(latent), k_rope

    def attend_absorbed(
        self,
        q_nope: torch.Tensor,  # [T, H, n]
        q_rope: torch.Tensor,  # [T, H, r]
        latent: torch.Tensor,  # [T, L]
        k_rope: torch.Tensor,  # [T, r]
        forward_batch: ForwardBatch,
    ) -> torch.Tensor:  # [T, H * v]
        rank = self.sizes.kv_lora_rank
        to_keys, to_values = self._up_projections()
        q_latent = torch.bmm(q_nope.transpose(0, 1), to_keys).transpose(0, 1)  # [T, H, L]
        q = torch.cat([q_latent, q_rope], dim=-1)
        k = torch.cat([latent, k_rope], dim=-1).unsqueeze(1)  # [T, 1, L + r]
        out = self.attn_mqa(q, k, k[..., :rank], forward_batch)
        out = out.unflatten(-1, (self.num_heads, rank)).transpose(0, 1)  # [H, T, L]
        return torch.bmm(out, to_values.transpose(1, 2)).transpose(0, 1).flatten(1)

    def attend_expanded(
        self,
        q_nope: torch.Tensor,  # [T, H, n]
        q_rope: torch.Tensor,  # [T, H, r]
        latent: torch.Tensor,  # [T, L]
        k_rope: torch.Tensor,  # [T, r]
        forward_batch: ForwardBatch,
    ) -> torch.Tensor:  # [T, H * v]
        forward_batch.token_to_kv_pool.set_mla_kv_buffer(
            self.attn_mqa, forward_batch.out_cache_loc, latent, k_rope
        )
        kv, _ = self.kv_b_proj(latent)
        kv = kv.unflatten(-1, (self.num_heads, -1))  # [T, H, n + v]
        k_nope, v = kv.split([self.sizes.qk_nope_head_dim, self.sizes.v_head_dim], dim=-1)
        k = torch.cat([k_nope, k_rope[:, None].expand(-1, self.num_heads, -1)], dim=-1)
        q = torch.cat([q_nope, q_rope], dim=-1)
        return self.attn_mha(q, k, v, forward_batch, save_kv_cache=False)

    def _up_projections(self) -> tuple[torch.Tensor, torch.Tensor]:
        """From the latent to keys [H, n, L] and to values [H, v, L]: views, so that new weights count at once."""
        per_head = self.kv_b_proj.weight.unflatten(0, (self.num_heads, -1))
        to_keys, to_values = per_head.split(
            [self.sizes.qk_nope_head_dim, self.sizes.v_head_dim], dim=1
        )
        return to_keys, to_values

    def _add_projections(
        self,
        hidden_size: int,
        num_heads: int,
        bias: bool,
        quant_config: QuantizationConfig | None,
        prefix: str,
    ) -> None:
        sizes = self.sizes
        q_input = hidden_size
        if sizes.q_lora_rank is None:
            q_name = "q_proj"
            self.kv_a_proj_with_mqa = ReplicatedLinear(
                hidden_size,
                sizes.cache_dim,
                bias=bias,
                quant_config=quant_config,
                prefix=add_prefix("kv_a_proj_with_mqa", prefix),
            )
        else:
            q_name, q_input = "q_b_proj", sizes.q_lora_rank
            self.fused_qkv_a_proj_with_mqa = MergedColumnParallelLinear(
                hidden_size,
                [sizes.q_lora_rank, sizes.cache_dim],
                bias=bias,
                quant_config=quant_config,
                prefix=add_prefix("fused_qkv_a_proj_with_mqa", prefix),
                tp_rank=0,  # whole on every rank
                tp_size=1,
            )
            self.q_a_layernorm = RMSNorm(sizes.q_lora_rank, eps=_LATENT_NORM_EPS)
        q_proj = _by_heads(q_input, num_heads * sizes.qk_head_dim, quant_config, q_name, prefix)
        self.add_module(q_name, q_proj)
        self.kv_a_layernorm = RMSNorm(sizes.kv_lora_rank, eps=_LATENT_NORM_EPS)
        kv_width = num_heads * (sizes.qk_nope_head_dim + sizes.v_head_dim)
        self.kv_b_proj = _by_heads(sizes.kv_lora_rank, kv_width, quant_config, "kv_b_proj", prefix)
        # Attention multiplies by parts of this weight without its layer.
        if not self.kv_b_proj.quant_method.leave_plain_weight(self.kv_b_proj):
            name = None if quant_config is None else quant_config.get_name()
            raise ConfigError(
                f"latent attention with {self.kv_b_proj.prefix} quantized ({name}) is not implemented; use a "
                "checkpoint that keeps it in 16 or 32 bits"
            )
        self.o_proj = RowParallelLinear(
            num_heads * sizes.v_head_dim,
            hidden_size,
            bias=bias,
            quant_config=quant_config,
            prefix=add_prefix("o_proj", prefix),
        )


def is_whole_prefill(batch: ForwardBatch) -> bool:
    """Whether no token of the batch looks at the cache: prompts from their start on, none of a single token (which attention
    backends treat as a decode). Looks at the host's copies only."""
    if not batch.forward_mode.is_extend() or batch.forward_mode.is_target_verify():
        return False
    new, prefixes = batch.extend_seq_lens_cpu, batch.extend_prefix_lens_cpu
    return bool(new) and bool(prefixes) and min(new) > 1 and max(prefixes) == 0


def yarn_score_factor(rope: RopeFacts | None) -> float:
    """What long contexts multiply the scores by: `mscale_all_dim` of the rotary settings, for q and for k."""
    if rope is None or rope.kind == "default" or not rope.params.get("mscale_all_dim"):
        return 1.0
    return yarn_get_mscale(rope.params["factor"], rope.params["mscale_all_dim"]) ** 2


def _by_heads(
    input_size: int, width: int, quant_config: QuantizationConfig | None, name: str, prefix: str
) -> ColumnParallelLinear:
    return ColumnParallelLinear(
        input_size,
        width,
        bias=False,
        quant_config=quant_config,
        prefix=add_prefix(name, prefix),
    )
