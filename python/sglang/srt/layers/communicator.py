"""What happens to the token tensors between the parts of a decoder layer: norms, residual, sums over ranks.

Model files of mixture-of-experts families are written against this interface. Plain tensor parallelism is what is implemented: every rank
holds all tokens, attention's output is a partial sum (its `o_proj` is built with `reduce_results=False`), the MLP's is complete.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from sglang.srt.layers.dp_attention import get_attention_tp_group
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.server_args import get_global_server_args


class ScatterMode(enum.Enum):
    """Which tokens a rank holds."""

    SCATTERED = enum.auto()  # its own part
    TP_ATTN_FULL = enum.auto()  # those of its attention group
    FULL = enum.auto()  # all

    @staticmethod
    def model_input_output() -> ScatterMode:
        return ScatterMode.TP_ATTN_FULL


@dataclass
class LayerScatterModes:
    """Which tokens a rank holds at the points of a layer. Without data-parallel attention they are the same everywhere."""

    layer_input_mode: ScatterMode
    attn_mode: ScatterMode
    mlp_mode: ScatterMode
    middle_residual_mode: ScatterMode
    layer_output_mode: ScatterMode

    @classmethod
    def init_new(
        cls,
        num_layers: int,
        layer_id: int,
        is_layer_sparse: bool,
        is_previous_layer_sparse: bool | None = None,
        is_next_layer_sparse: bool | None = None,
    ) -> LayerScatterModes:
        """`is_layer_sparse`: the layer's MLP is a mixture of experts."""
        mode = ScatterMode.TP_ATTN_FULL
        return cls(mode, mode, ScatterMode.FULL, mode, mode)


class LayerCommunicator:
    """The steps between attention and MLP of one layer. Use the returned tensors only."""

    def __init__(
        self,
        layer_scatter_modes: LayerScatterModes,
        input_layernorm: torch.nn.Module,
        post_attention_layernorm: torch.nn.Module,
        allow_reduce_scatter: bool = False,
        is_last_layer: bool = False,
        qkv_latent_func: Callable[..., Any] | None = None,
    ) -> None:
        self.layer_scatter_modes = layer_scatter_modes
        self.input_layernorm = input_layernorm
        self.post_attention_layernorm = post_attention_layernorm
        self.allow_reduce_scatter = allow_reduce_scatter
        self.is_last_layer = is_last_layer
        self.qkv_latent_func = qkv_latent_func

    def prepare_attn(
        self,
        hidden_states: torch.Tensor,  # [T, D]
        residual: torch.Tensor | None,  # [T, D]; None in the first layer
        forward_batch: ForwardBatch,
        quant_format: str = "",
        post_residual_addition: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The normed input of attention, and the residual stream with everything added so far."""
        if residual is None:
            normed = self.input_layernorm(hidden_states) if hidden_states.numel() else hidden_states
            return normed, hidden_states
        extra = () if post_residual_addition is None else (post_residual_addition,)
        return _add_norm(self.input_layernorm, hidden_states, residual, *extra)

    def prepare_attn_and_capture_last_layer_outputs(
        self,
        hidden_states: torch.Tensor,
        residual: torch.Tensor | None,
        forward_batch: ForwardBatch,
        captured_last_layer_outputs: list[torch.Tensor] | None = None,
        post_residual_addition: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `prepare_attn`; appends a copy of the residual stream to the list."""
        hidden_states, residual = self.prepare_attn(
            hidden_states,
            residual,
            forward_batch,
            post_residual_addition=post_residual_addition,
        )
        if captured_last_layer_outputs is not None:
            captured_last_layer_outputs.append(residual.clone())
        return hidden_states, residual

    def prepare_mlp(
        self,
        hidden_states: torch.Tensor,
        residual: torch.Tensor,
        forward_batch: ForwardBatch,
        cache: Any = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Sum attention's output over its ranks, add the residual, norm."""
        summed = get_attention_tp_group().all_reduce(hidden_states)
        return _add_norm(self.post_attention_layernorm, summed, residual)

    def postprocess_layer(
        self, hidden_states: torch.Tensor, residual: torch.Tensor, forward_batch: ForwardBatch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Nothing to do: the MLP has summed its own output."""
        return hidden_states, residual

    def should_use_reduce_scatter(self, forward_batch: ForwardBatch) -> bool:
        """Whether the MLP leaves its sum over ranks to `postprocess_layer`; it does not."""
        return False

    def should_fuse_mlp_allreduce_with_next_layer(self, forward_batch: ForwardBatch) -> bool:
        """Whether the MLP leaves its sum over ranks to the next layer; it does not."""
        return False


class AttnTpContext:
    """Whether the input of attention is scattered over its ranks. Compatibility: it never is, so nothing is kept here."""

    input_scattered = False

    def init_context(self, q_lora_rank: int | None, is_nsa: bool) -> None:
        """Nothing to set up."""

    @contextlib.contextmanager
    def maybe_input_scattered(self, forward_batch: ForwardBatch) -> Iterator[None]:
        """Around the layers of a model."""
        yield

    def fetch_qkv_latent(self) -> torch.Tensor:
        raise ValueError("there is no latent to fetch: the input of attention is not scattered")

    def fetch_hidden_states(self) -> torch.Tensor:
        raise ValueError("there is no input to fetch: the input of attention is not scattered")


_ATTN_TP_CONTEXT = AttnTpContext()


def get_attn_tp_context() -> AttnTpContext:
    return _ATTN_TP_CONTEXT


def enable_moe_dense_fully_dp() -> bool:
    """Whether the dense MLPs of a mixture-of-experts model are whole on every rank."""
    return get_global_server_args().moe_dense_tp_size == 1


def _add_norm(
    norm: torch.nn.Module, x: torch.Tensor, residual: torch.Tensor, *extra: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`(norm(sum), sum)`; norms answer an empty input with one tensor, so that is passed through."""
    return norm(x, residual, *extra) if x.numel() else (x, residual)
