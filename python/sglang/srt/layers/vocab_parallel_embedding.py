"""Embedding tables and output heads whose rows are cut over tensor-parallel ranks.

The vocabulary is padded up so that ranks divide it. Each rank holds [its part of the base
vocabulary | its part of added tokens], each padded with zero rows at the end of the whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import Parameter

from sglang.srt.distributed import (
    divide,
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_reduce,
)
from sglang.srt.layers.dp_attention import (
    get_attention_tp_group,
    get_attention_tp_rank,
    get_attention_tp_size,
)
from sglang.srt.layers.parameter import mark_filled
from sglang.srt.layers.quantization.base_config import QuantizationConfig, QuantizeMethodBase
from sglang.srt.layers.quantization.unquant import UnquantizedEmbeddingMethod
from sglang.srt.layers.weight_placement import copy_into
from sglang.srt.utils import ceil_align, set_weight_attrs
from sglang.srt.utils.errors import ConfigError

DEFAULT_VOCAB_PADDING_SIZE = 64


def pad_vocab_size(vocab_size: int, pad_to: int = DEFAULT_VOCAB_PADDING_SIZE) -> int:
    """The vocabulary size rounded up to a multiple of `pad_to`."""
    return ceil_align(vocab_size, pad_to)


@dataclass(frozen=True)
class VocabShardIndices:
    """Token ids that one rank holds, end exclusive; padded sizes count the rows of this rank."""

    org_vocab_start_index: int
    org_vocab_end_index: int
    added_vocab_start_index: int
    added_vocab_end_index: int
    num_org_rows_padded: int
    num_added_rows_padded: int

    @property
    def num_org_elements(self) -> int:
        return self.org_vocab_end_index - self.org_vocab_start_index

    @property
    def num_added_elements(self) -> int:
        return self.added_vocab_end_index - self.added_vocab_start_index


class VocabParallelEmbedding(torch.nn.Module):
    """Token ids [...] -> embeddings [..., embedding_dim].

    `org_num_embeddings`: size of the base vocabulary in the checkpoint; the rest up to
    `num_embeddings` are added tokens. `enable_tp=False` keeps the whole table on every rank. Ids
    outside the vocabulary are an error of the caller.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        params_dtype: torch.dtype | None = None,
        org_num_embeddings: int | None = None,
        padding_size: int = DEFAULT_VOCAB_PADDING_SIZE,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
        enable_tp: bool = True,
        use_attn_tp_group: bool = False,
        use_presharded_weights: bool = False,
    ) -> None:
        super().__init__()
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.org_vocab_size = org_num_embeddings or num_embeddings
        self.padding_size = padding_size
        self.quant_config = quant_config
        self.prefix = prefix
        self.use_attn_tp_group = use_attn_tp_group
        self.use_presharded_weights = use_presharded_weights
        self.tp_rank, self.tp_size = _ranks(enable_tp, use_attn_tp_group)
        self._cut_vocabulary()
        self.quant_method: QuantizeMethodBase = (
            quant_config.get_quant_method(self, prefix) if quant_config is not None else None
        ) or UnquantizedEmbeddingMethod()
        self.quant_method.create_weights(
            self,
            embedding_dim,
            [self.num_embeddings_per_partition],
            embedding_dim,
            self.num_embeddings_padded,
            params_dtype=params_dtype or torch.get_default_dtype(),
            weight_loader=self.weight_loader,
        )

    def _cut_vocabulary(self) -> None:
        num_added = self.num_embeddings - self.org_vocab_size
        org_padded = pad_vocab_size(self.org_vocab_size, self.padding_size)
        added_padded = pad_vocab_size(num_added, self.padding_size)
        org_rows = divide(org_padded, self.tp_size)
        added_rows = divide(added_padded, self.tp_size)
        org_start, added_start = self.tp_rank * org_rows, self.tp_rank * added_rows
        self.org_vocab_size_padded = org_padded
        self.num_embeddings_padded = org_padded + added_padded
        self.num_embeddings_per_partition = org_rows + added_rows
        self.shard_indices = VocabShardIndices(
            org_vocab_start_index=min(org_start, self.org_vocab_size),
            org_vocab_end_index=min(org_start + org_rows, self.org_vocab_size),
            added_vocab_start_index=self.org_vocab_size + min(added_start, num_added),
            added_vocab_end_index=self.org_vocab_size + min(added_start + added_rows, num_added),
            num_org_rows_padded=org_rows,
            num_added_rows_padded=added_rows,
        )
        # On one rank without padding between base and added rows, ids are row numbers.
        no_gap = num_added == 0 or org_padded == self.org_vocab_size
        self._ids_are_rows = self.tp_size == 1 and no_gap

    def weight_loader(self, param: Parameter, loaded_weight: torch.Tensor) -> None:
        """Copy this rank's rows of the table [org_vocab_size, ...] and zero the padding."""
        name = f"{self.prefix}.weight" if self.prefix else type(self).__name__
        dim = param.__dict__.get("output_dim")
        if dim is None or self.use_presharded_weights:
            copy_into(param.data, loaded_weight, name)
            mark_filled(param)
            return
        if loaded_weight.dim() != param.dim() or loaded_weight.shape[dim] != self.org_vocab_size:
            raise ValueError(
                f"{name}: the vocabulary has {self.org_vocab_size} tokens, the checkpoint tensor has "
                f"shape {tuple(loaded_weight.shape)}; check vocab_size in the config"
            )
        shard = self.shard_indices
        rows = shard.num_org_elements
        part = loaded_weight.narrow(dim, shard.org_vocab_start_index, rows)
        copy_into(param.data.narrow(dim, 0, rows), part, name)
        param.data.narrow(dim, rows, param.shape[dim] - rows).zero_()
        mark_filled(param)

    def forward(self, input_: torch.Tensor) -> torch.Tensor:
        if self._ids_are_rows:
            return self.quant_method.embedding(self, input_)
        rows, is_elsewhere = self._rows_of(input_)
        output = self.quant_method.embedding(self, rows)
        output.masked_fill_(is_elsewhere.unsqueeze(-1), 0)
        if self.tp_size == 1:
            return output
        if self.use_attn_tp_group:
            return get_attention_tp_group().all_reduce(output)
        return tensor_model_parallel_all_reduce(output)

    def _rows_of(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Row of each id in this rank's table (0 when it is not here), and where it is not here."""
        shard = self.shard_indices
        in_org = (ids >= shard.org_vocab_start_index) & (ids < shard.org_vocab_end_index)
        in_added = (ids >= shard.added_vocab_start_index) & (ids < shard.added_vocab_end_index)
        added_shift = shard.num_org_rows_padded - shard.added_vocab_start_index
        rows = torch.where(in_added, ids + added_shift, ids - shard.org_vocab_start_index)
        is_elsewhere = ~(in_org | in_added)
        return rows.masked_fill(is_elsewhere, 0), is_elsewhere

    def extra_repr(self) -> str:
        return f"tokens={self.num_embeddings}, width={self.embedding_dim}, tp_size={self.tp_size}"


class ParallelLMHead(VocabParallelEmbedding):
    """An output head with the layout of the embedding. Only `LogitsProcessor` computes with it.

    Raises ConfigError for added tokens behind padding or on several ranks: logits are taken in the order of rows.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        bias: bool = False,
        params_dtype: torch.dtype | None = None,
        org_num_embeddings: int | None = None,
        padding_size: int = DEFAULT_VOCAB_PADDING_SIZE,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
        use_attn_tp_group: bool = False,
        use_presharded_weights: bool = False,
    ) -> None:
        super().__init__(
            num_embeddings,
            embedding_dim,
            params_dtype=params_dtype,
            org_num_embeddings=org_num_embeddings,
            padding_size=padding_size,
            quant_config=quant_config,
            prefix=prefix,
            use_attn_tp_group=use_attn_tp_group,
            use_presharded_weights=use_presharded_weights,
        )
        in_order = self.tp_size == 1 and self.org_vocab_size_padded == self.org_vocab_size
        if self.num_embeddings > self.org_vocab_size and not in_order:
            raise ConfigError(
                f"{prefix or 'the output head'}: num_embeddings={num_embeddings} with org_num_embeddings={org_num_embeddings} on "
                f"{self.tp_size} ranks is not implemented; give both the size of the whole vocabulary"
            )
        if bias:
            dtype = params_dtype or torch.get_default_dtype()
            rows = torch.empty(self.num_embeddings_per_partition, dtype=dtype)
            self.bias = Parameter(rows, requires_grad=False)
            set_weight_attrs(self.bias, {"output_dim": 0, "weight_loader": self.weight_loader})
        else:
            self.register_parameter("bias", None)

    def tie_weights(self, embed_tokens: VocabParallelEmbedding) -> ParallelLMHead:
        """Use the table of the embedding; returns self."""
        self.weight = embed_tokens.weight
        return self

    def forward(self, input_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("an LM head has no forward; pass the module to LogitsProcessor")


def _ranks(enable_tp: bool, use_attn_tp_group: bool) -> tuple[int, int]:
    if not enable_tp:
        return 0, 1
    if use_attn_tp_group:
        return get_attention_tp_rank(), get_attention_tp_size()
    return get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size()
