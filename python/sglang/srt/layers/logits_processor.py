"""From hidden states to logits, and the log probabilities of prompt tokens.

Only the rows that someone needs are multiplied with the head: the last token of each request, and
the prompt rows whose logprobs were asked for. Legend: T tokens, B requests, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from sglang.srt.distributed import (
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_gather,
)
from sglang.srt.layers.matmul import linear
from sglang.srt.layers.prompt_logprobs import PromptLogprobs
from sglang.srt.model_executor.forward_batch_info import (
    CaptureHiddenMode,
    ForwardBatch,
    ForwardMode,
)
from sglang.srt.utils.upload import upload

# Prompt rows whose logits are held at once: so many rows, and so many float32 elements.
_MAX_BLOCK_ROWS = 2048
_MAX_BLOCK_ELEMENTS = 1 << 26

TopLists = list[list[list[float]]]
IdLists = list[list[list[int]]]


@dataclass
class LogitsProcessorOutput:
    """What a generating model returns; wrappers may replace any field before sampling.

    Input logprobs cover, request after request, the rows from `extend_logprob_start_lens_cpu` on;
    each row predicts the next token. All are natural logarithms of the model's plain distribution.
    They stay on the device: `prompt_logprobs.download` brings them to the host. The fields that are
    lists are per request, then per such row; nothing here fills or reads them.
    """

    next_token_logits: torch.Tensor | None  # [B, V] float32
    hidden_states: torch.Tensor | None = None  # by capture_hidden_mode: [B, D] or [T, D]

    # Filled by the sampler.
    next_token_logprobs: torch.Tensor | None = None  # [B]
    next_token_top_logprobs_val: list[list[float]] | None = None
    next_token_top_logprobs_idx: list[list[int]] | None = None
    next_token_token_ids_logprobs_val: list[list[float]] | None = None
    next_token_token_ids_logprobs_idx: list[list[int]] | None = None

    # The first two are filled here when input logprobs are wanted.
    prompt_logprobs: PromptLogprobs | None = None
    input_token_logprobs: torch.Tensor | None = None  # [rows] float32
    input_top_logprobs_val: TopLists | None = None
    input_top_logprobs_idx: IdLists | None = None
    input_token_ids_logprobs_val: TopLists | None = None
    input_token_ids_logprobs_idx: IdLists | None = None

    full_logits: torch.Tensor | None = None  # [T, V] float32
    customized_info: dict[str, list[Any]] | None = None  # per request, returned to the client
    mm_input_embeds: torch.Tensor | None = None


@dataclass
class LogitsMetadata:
    """The fields of a ForwardBatch that the processor reads, for callers without one."""

    forward_mode: ForwardMode
    capture_hidden_mode: CaptureHiddenMode = CaptureHiddenMode.NULL
    extend_seq_lens: torch.Tensor | None = None
    extend_seq_lens_cpu: list[int] | None = None
    next_token_positions: torch.Tensor | None = None
    return_logprob: bool = False
    extend_logprob_start_lens_cpu: list[int] | None = None
    extend_input_logprob_token_ids_gpu: torch.Tensor | None = None
    top_logprobs_nums: list[int] | None = None
    token_ids_logprobs: list[list[int] | None] | None = None

    @classmethod
    def from_forward_batch(cls, batch: ForwardBatch) -> LogitsMetadata:
        return cls(**{name: getattr(batch, name) for name in cls.__dataclass_fields__})


class LogitsProcessor(torch.nn.Module):
    """Applies the head, the scale and the soft cap of a config.

    Args:
        config: `vocab_size` and, optionally, `final_logit_softcapping` are read.
        skip_all_gather: leave the logits of a sharded head as this rank's part.
        logit_scale: factor of the logits.
        return_full_logits: also return the logits of every row, `full_logits`.
    """

    def __init__(
        self,
        config: Any,
        skip_all_gather: bool = False,
        logit_scale: float | None = None,
        return_full_logits: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.vocab_size: int = config.vocab_size
        self.logit_scale = logit_scale
        self.return_full_logits = return_full_logits
        self.use_all_gather = not skip_all_gather and get_tensor_model_parallel_world_size() > 1
        # An optional key of many families' configs.
        cap = getattr(config, "final_logit_softcapping", None)
        self.final_logit_softcapping = cap if cap is not None and cap > 0 else None

    def forward(
        self,
        input_ids: torch.Tensor | None,
        hidden_states: torch.Tensor,
        lm_head: torch.nn.Module,
        logits_metadata: ForwardBatch | LogitsMetadata,
        aux_hidden_states: list[torch.Tensor] | None = None,
        hidden_states_before_norm: torch.Tensor | None = None,
    ) -> LogitsProcessorOutput:
        """hidden_states [T, D]; `aux_hidden_states` are captured instead of it when given."""
        rows = _sampled_rows(logits_metadata)
        last = hidden_states if rows is None else hidden_states.index_select(0, rows)
        output = LogitsProcessorOutput(self.compute_logits(last, lm_head))
        captured = _choose_captured(hidden_states, aux_hidden_states, hidden_states_before_norm)
        output.hidden_states = _capture(captured, rows, logits_metadata.capture_hidden_mode)
        if self.return_full_logits:
            output.full_logits = self.compute_logits(hidden_states, lm_head)
        if logits_metadata.return_logprob and logits_metadata.extend_logprob_start_lens_cpu:
            self._add_input_logprobs(output, hidden_states, lm_head, logits_metadata)
        return output

    def compute_logits(self, hidden_states: torch.Tensor, lm_head: torch.nn.Module) -> torch.Tensor:
        """[rows, D] -> float32 [rows, V], a tensor of its own."""
        logits = _apply_head(hidden_states, lm_head)
        if self.logit_scale is not None:
            logits = logits * self.logit_scale
        if self.use_all_gather:
            logits = tensor_model_parallel_all_gather(logits)
        logits = logits[:, : self.vocab_size].float()
        if self.final_logit_softcapping is not None:
            cap = self.final_logit_softcapping
            logits = torch.tanh(logits / cap).mul_(cap)
        return logits

    def _add_input_logprobs(
        self,
        output: LogitsProcessorOutput,
        hidden_states: torch.Tensor,
        lm_head: torch.nn.Module,
        metadata: ForwardBatch | LogitsMetadata,
    ) -> None:
        """Log probabilities of prompt tokens, in blocks of rows. Waits for nothing."""
        lens, starts = metadata.extend_seq_lens_cpu, metadata.extend_logprob_start_lens_cpu
        assert lens is not None and starts is not None
        rows, counts = _wanted_rows(lens, starts)
        index = upload(rows, torch.int64, hidden_states.device)
        targets = metadata.extend_input_logprob_token_ids_gpu
        assert targets is not None and len(targets) == len(rows), "one target token for each row"
        found = PromptLogprobs(
            counts,
            metadata.top_logprobs_nums or [0] * len(lens),
            metadata.token_ids_logprobs or [None] * len(lens),
            self.vocab_size,
            hidden_states.device,
        )
        block = max(1, min(_MAX_BLOCK_ROWS, _MAX_BLOCK_ELEMENTS // self.vocab_size))
        for start in range(0, len(rows), block):
            part = slice(start, min(start + block, len(rows)))
            logits = self.compute_logits(hidden_states.index_select(0, index[part]), lm_head)
            found.collect(torch.log_softmax(logits, dim=-1), start, targets[part])
        output.prompt_logprobs, output.input_token_logprobs = found, found.chosen


def _wanted_rows(lens: list[int], starts: list[int]) -> tuple[list[int], list[int]]:
    """Rows of T whose logprobs are wanted, and how many each request has of them."""
    rows: list[int] = []
    first = 0
    for length, start in zip(lens, starts, strict=True):
        rows += range(first + start, first + length)
        first += length
    return rows, [length - start for length, start in zip(lens, starts, strict=True)]


def _apply_head(hidden_states: torch.Tensor, lm_head: torch.nn.Module) -> torch.Tensor:
    """The product with the head, whatever kind of module a model uses as one."""
    # Heads are embeddings, linear layers, quantized layers or LoRA wrappers: foreign modules that
    # are told apart by what they have.
    if hasattr(lm_head, "set_lora") and hasattr(lm_head, "apply_lora"):
        return lm_head(hidden_states)
    bias = getattr(lm_head, "bias", None)
    weight = getattr(lm_head, "weight", None)
    if weight is None:
        return lm_head.quant_method.apply(lm_head, hidden_states, bias)
    return linear(hidden_states.to(weight.dtype), weight, bias)


def _sampled_rows(metadata: ForwardBatch | LogitsMetadata) -> torch.Tensor | None:
    """int64 rows of T that are sampled from; None for all of them."""
    mode = metadata.forward_mode
    if not mode.is_extend() or mode.is_target_verify():
        return None
    if metadata.next_token_positions is not None:
        return metadata.next_token_positions
    assert metadata.extend_seq_lens is not None, "an extend needs extend_seq_lens"
    return torch.cumsum(metadata.extend_seq_lens, dim=0, dtype=torch.int64) - 1


def _choose_captured(
    hidden_states: torch.Tensor,
    aux_hidden_states: list[torch.Tensor] | None,
    hidden_states_before_norm: torch.Tensor | None,
) -> list[torch.Tensor]:
    if hidden_states_before_norm is not None:
        return [hidden_states_before_norm]
    return aux_hidden_states or [hidden_states]


def _capture(
    captured: list[torch.Tensor], rows: torch.Tensor | None, mode: CaptureHiddenMode
) -> torch.Tensor | None:
    if not mode.need_capture():
        return None
    if mode.is_last() and rows is not None:
        captured = [tensor.index_select(0, rows) for tensor in captured]
    return captured[0] if len(captured) == 1 else torch.cat(captured, dim=-1)
