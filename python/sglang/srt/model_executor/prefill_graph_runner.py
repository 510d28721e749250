"""Short prefill steps as captured CUDA graphs.

A short prompt takes the device less time than the host needs to launch its kernels. A graph is captured for each of a few token counts; a
step is padded to the next one. The padding tokens form a request of their own behind the real ones, which writes to the padding page.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode
from sglang.srt.model_executor.graph_capture import capture_graph
from sglang.srt.utils.upload import upload_into

# Above these a step keeps the device busy for longer than launching it takes.
TOKEN_COUNTS = (64, 128, 256, 384, 512, 768, 1024)
# Real requests of a step.
MAX_REQUESTS = 8
# Lines of the tokens; behind them three of positions, for models that turn by time, height and width.
_INPUT_IDS, _POSITIONS, _SLOTS = range(3)
_NUM_LINES = 3


@dataclass
class _Captured:
    graph: torch.cuda.CUDAGraph
    output: LogitsProcessorOutput
    batch: ForwardBatch


class PrefillGraphRunner:
    """Buffers and graphs of prefill steps. The owner calls `capture` for every token count, inside its capture mode.

    Args:
        forward: runs the model on a batch whose attention metadata are ready.
        backend: an attention backend with `capture_extend` and `replay_extend`.
        pools: fields of a batch that name the pools.
        has_mrope: the model turns queries and keys by three positions.
    """

    def __init__(
        self,
        forward: Callable[[ForwardBatch], LogitsProcessorOutput],
        backend: Any,
        pools: dict[str, Any],
        device: torch.device,
        has_mrope: bool = False,
    ) -> None:
        self._forward = forward
        self.backend = backend
        self._pools = pools
        self._device = device
        self._has_mrope = has_mrope
        shape = (_NUM_LINES + 3 * has_mrope, TOKEN_COUNTS[-1])
        self._tokens = torch.zeros(shape, dtype=torch.int64, device=device)
        # Two more: the request of padding tokens and one without tokens.
        self._rows = torch.zeros(MAX_REQUESTS + 2, dtype=torch.int64, device=device)
        self._last = torch.zeros(MAX_REQUESTS, dtype=torch.int64, device=device)
        self._captured: dict[int, _Captured] = {}

    def can_replay(self, batch: ForwardBatch) -> bool:
        """Is it a small prefill of text without logprobs of the prompt?"""
        return (
            batch.forward_mode == ForwardMode.EXTEND
            and batch.extend_num_tokens is not None
            and batch.extend_num_tokens <= TOKEN_COUNTS[-1]
            and batch.batch_size <= MAX_REQUESTS
            and not batch.return_logprob
            and not batch.capture_hidden_mode.need_capture()
            and not any(batch.mm_inputs or ())
            and (batch.mrope_positions is not None) == self._has_mrope
            and batch.input_embeds is None
            and batch.encoder_lens_cpu is None
            and batch.bidirectional_spans is None
            and batch.spec_info is None
        )

    def replay(self, batch: ForwardBatch) -> LogitsProcessorOutput:
        """Logits of the last token of each request. Overwritten by the next replay."""
        num_tokens, size = batch.extend_num_tokens, batch.batch_size
        assert num_tokens is not None and batch.extend_seq_lens_cpu is not None
        count = TOKEN_COUNTS[bisect.bisect_left(TOKEN_COUNTS, num_tokens)]
        self._tokens[:, num_tokens:count] = 0
        self._tokens[_INPUT_IDS, :num_tokens] = batch.input_ids
        self._tokens[_POSITIONS, :num_tokens] = batch.positions
        self._tokens[_SLOTS, :num_tokens] = batch.out_cache_loc
        if self._has_mrope:
            self._tokens[_NUM_LINES:, :num_tokens] = batch.mrope_positions
        self._rows[:size] = batch.req_pool_indices
        last = np.zeros(MAX_REQUESTS, np.int64)
        last[:size] = np.cumsum(batch.extend_seq_lens_cpu) - 1
        upload_into(self._last, last)
        self.backend.replay_extend(count, batch.extend_seq_lens_cpu, batch.extend_prefix_lens_cpu)
        captured = self._captured[count]
        captured.graph.replay()
        logits = captured.output.next_token_logits
        assert logits is not None, "the captured model has no logits"
        return LogitsProcessorOutput(logits[:size])

    def release(self) -> None:
        """Give the graphs back."""
        for captured in self._captured.values():
            captured.graph.reset()
        self._captured.clear()

    def capture(self, count: int, pool: Any) -> None:
        """One graph for `count` tokens; call under the capture stream."""
        batch = self.lay_out(count)
        graph, output = capture_graph(
            f"capturing prefills of {count} tokens",
            pool,
            lambda: self._forward(batch),
            lambda: self._forward(batch),
        )
        self._captured[count] = _Captured(graph, output, batch)

    def lay_out(self, count: int) -> ForwardBatch:
        """The static batch of `count` tokens, and its attention metadata, made the current ones."""
        self.backend.capture_extend(count, self._rows)
        return self._static_batch(count)

    def _static_batch(self, count: int) -> ForwardBatch:
        lines = self._tokens[:, :count]
        ids, positions, slots = lines[:_NUM_LINES].unbind()
        return ForwardBatch(
            forward_mode=ForwardMode.EXTEND,
            batch_size=MAX_REQUESTS,
            input_ids=ids,
            positions=positions,
            mrope_positions=lines[_NUM_LINES:] if self._has_mrope else None,
            out_cache_loc=slots,
            req_pool_indices=self._rows[:MAX_REQUESTS],
            next_token_positions=self._last,
            extend_num_tokens=count,
            attn_backend=self.backend,
            **self._pools,
        )
