"""A block of routed experts in the place of an MLP.

    w, ids = topk(softmax(Wg x));  w = w / sum(w) on request;  out = sum_k w_k expert_{ids_k}(x)

Legend: T tokens, D model width, E experts, k choices of each token.
"""

from __future__ import annotations

import torch
from torch import nn

from sglang.srt.distributed import tensor_model_parallel_all_reduce
from sglang.srt.layers.linear import ReplicatedLinear
from sglang.srt.layers.moe.ep_moe.layer import get_moe_impl_class
from sglang.srt.layers.moe.topk import TopK
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.utils import add_prefix
from sglang.srt.utils.errors import ConfigError


class SparseMoE(nn.Module):
    """Router and experts, each a silu-gated MLP of inner width `intermediate_size`.

    `renormalize`: the weights of a token's choices sum to one. A block with a part that every token uses overrides
    `partial_sum`. Raises ConfigError when a token has more choices than there are experts.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        num_experts: int,
        top_k: int,
        layer_id: int,
        *,
        renormalize: bool,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        if not 0 < top_k <= num_experts:
            raise ConfigError(
                f"num_experts_per_tok={top_k} must be between 1 and the number of experts, {num_experts}"
            )
        # Routers are never quantized: a small error in a score is another expert.
        self.gate = ReplicatedLinear(
            hidden_size, num_experts, bias=False, prefix=add_prefix("gate", prefix)
        )
        self.topk = TopK(top_k, layer_id=layer_id, renormalize=renormalize)
        self.experts = get_moe_impl_class(quant_config)(
            num_experts=num_experts,
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            layer_id=layer_id,
            top_k=top_k,
            quant_config=quant_config,
            prefix=add_prefix("experts", prefix),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [T, D] -> [T, D]
        return tensor_model_parallel_all_reduce(self.partial_sum(x))

    def partial_sum(self, x: torch.Tensor) -> torch.Tensor:
        """This rank's part of the output, `[T, D]`."""
        router_logits, _ = self.gate(x)  # [T, E]
        return self.experts(x, self.topk(x, router_logits))
