"""Makes a `ForwardBatch` out of a `StepPlan`: every index tensor of a step is built here, on the host, and uploaded once.

Legend: T tokens in the step, B requests (works) in the step, R rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from sglang.srt.managers.step_plan import RowMedia, RowWork, StepPlan
from sglang.srt.model_executor.encoder_rows import EncoderRows
from sglang.srt.model_executor.forward_batch_info import (
    CaptureHiddenMode,
    ForwardBatch,
    ForwardMode,
)
from sglang.srt.model_executor.media_rows import MediaRows
from sglang.srt.utils.upload import upload

if TYPE_CHECKING:
    from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
    from sglang.srt.mem_cache.memory_pool import KVPool, ReqToTokenPool

_MODES = {
    "extend": ForwardMode.EXTEND,
    "decode": ForwardMode.DECODE,
    "mixed": ForwardMode.MIXED,
}


class BatchBuilder:
    """Owns the future-token buffer of the rows and writes the device's row table."""

    def __init__(
        self,
        req_to_token_pool: ReqToTokenPool,
        token_to_kv_pool: KVPool,
        attn_backend: AttentionBackend,
        device: torch.device,
        has_mrope: bool = False,
    ) -> None:
        self._req_to_token_pool = req_to_token_pool
        self._kv_pool = token_to_kv_pool
        self._attn_backend = attn_backend
        self._device = device
        rows, self._table_width = req_to_token_pool.req_to_token.shape
        self._table = req_to_token_pool.req_to_token.view(-1)
        self._media = MediaRows(rows, has_mrope)
        self._encoder = EncoderRows(rows)
        # The last sampled id of every row: what its next decode step reads. int64 [R]
        self.next_token_ids = torch.zeros(rows, dtype=torch.int64, device=device)

    def build(self, plan: StepPlan) -> ForwardBatch:
        """The batch of `plan`; the row table already holds the new slots when it returns."""
        works = plan.works
        if plan.media:
            self._take_media(plan.media)
        rows = np.fromiter((work.row for work in works), np.int64, len(works))
        starts = np.fromiter((work.start for work in works), np.int64, len(works))
        lens = np.fromiter((work.num_tokens for work in works), np.int64, len(works))
        if plan.mode == "decode":
            positions, token_rows, ids = starts, rows, None
        else:
            token_rows = np.repeat(rows, lens)
            first = np.cumsum(lens) - lens
            positions = np.arange(lens.sum()) - np.repeat(first - starts, lens)
            ids = self._media.overlay(works, _token_ids(works))
        slots = np.frombuffer(b"".join(work.new_slots for work in works), np.int32).astype(np.int64)
        self._write_prefixes(works)
        seq_lens = starts + lens
        # The slots of a request's encoder tokens precede those of its own.
        cells = token_rows * self._table_width + self._encoder.lens[token_rows] + positions
        pieces = [rows, seq_lens, positions, slots, cells]
        if ids is not None:
            pieces.append(ids)
        d_rows, d_seq_lens, d_positions, d_slots, d_cells, *d_ids = self._upload(pieces)
        self._table[d_cells] = d_slots.to(torch.int32)
        batch = ForwardBatch(
            forward_mode=_MODES[plan.mode],
            batch_size=len(works),
            input_ids=self._input_ids(plan, d_rows, d_ids),
            req_pool_indices=d_rows,
            seq_lens=d_seq_lens,
            seq_lens_cpu=torch.from_numpy(seq_lens),
            seq_lens_sum=int(seq_lens.sum()),
            out_cache_loc=d_slots,
            positions=d_positions,
            req_to_token_pool=self._req_to_token_pool,
            token_to_kv_pool=self._kv_pool,
            attn_backend=self._attn_backend,
            capture_hidden_mode=CaptureHiddenMode.NULL,
            return_logprob=any(work.return_logprob for work in works),
        )
        if self._media.has_mrope:
            (flat,) = self._upload([self._media.mrope_positions(works, positions).reshape(-1)])
            batch.mrope_positions = flat.view(3, -1)
        self._add_encoder_fields(batch, works)
        if plan.mode != "decode":
            batch.mm_inputs = self._media.inputs_of(works)
            self._add_extend_fields(batch, works, starts, lens)
        return batch

    def _input_ids(
        self, plan: StepPlan, d_rows: torch.Tensor, d_ids: list[torch.Tensor]
    ) -> torch.Tensor:
        """int64 [T]; decode rows read the future-token buffer, which never passes through the host."""
        if plan.mode == "decode":
            return self.next_token_ids[d_rows]
        ids = d_ids[0]
        if plan.mode == "mixed":  # decode works come last, one token each
            num_decode = sum(1 for work in plan.works if work.token_ids is None)
            if num_decode:
                ids[-num_decode:] = self.next_token_ids[d_rows[-num_decode:]]
        return ids

    def _take_media(self, media: dict[int, RowMedia | None]) -> None:
        self._media.update(media)
        for row, slots in self._encoder.update(media).items():
            self._write_table(row, 0, slots)

    def _write_prefixes(self, works: list[RowWork]) -> None:
        """Lay the slots of cached prefixes into the row table."""
        for work in works:
            if work.prefix_slots is not None:
                slots = np.frombuffer(work.prefix_slots, np.int32)
                self._write_table(work.row, int(self._encoder.lens[work.row]), slots)

    def _write_table(self, row: int, start: int, slots: np.ndarray) -> None:
        table = self._req_to_token_pool.req_to_token
        values = torch.from_numpy(slots.copy())
        table[row, start : start + len(slots)] = upload(values, torch.int32, self._device)

    def _upload(self, pieces: list[np.ndarray]) -> list[torch.Tensor]:
        """Device views of int64 arrays, sent in one copy."""
        flat = upload(torch.from_numpy(np.concatenate(pieces)), torch.int64, self._device)
        return list(flat.split([len(piece) for piece in pieces]))

    def _add_extend_fields(
        self, batch: ForwardBatch, works: list[RowWork], starts: np.ndarray, lens: np.ndarray
    ) -> None:
        num_tokens = int(lens.sum())
        first = np.cumsum(lens) - lens
        d_lens, d_prefix, d_first = self._upload([lens, starts, first])
        batch.extend_num_tokens = num_tokens
        batch.extend_seq_lens = d_lens.to(torch.int32)
        batch.extend_prefix_lens = d_prefix.to(torch.int32)
        batch.extend_start_loc = d_first.to(torch.int32)
        batch.extend_seq_lens_cpu = lens.tolist()
        batch.extend_prefix_lens_cpu = starts.tolist()
        if batch.return_logprob:
            self._add_logprob_fields(batch, works)

    def _add_encoder_fields(self, batch: ForwardBatch, works: list[RowWork]) -> None:
        step = self._encoder.step(works)
        if step is None:
            return
        lens = np.asarray(step.lens, np.int64)
        batch.encoder_lens, loc, visible = self._upload([lens, step.new_slots, step.visible])
        batch.encoder_out_cache_loc, batch.encoder_visible = loc, visible.bool()
        batch.encoder_lens_cpu, batch.encoder_cached = step.lens, step.cached
        batch.encoder_views = step.views

    def _add_logprob_fields(self, batch: ForwardBatch, works: list[RowWork]) -> None:
        batch.extend_logprob_start_lens_cpu = [
            work.input_logprob_start if work.return_logprob else work.num_tokens for work in works
        ]
        targets: list[int] = []
        for work, start in zip(works, batch.extend_logprob_start_lens_cpu, strict=True):
            if start < work.num_tokens:
                # The row of the last prompt token predicts an output: its target is a stand-in.
                targets += work.token_ids[start + 1 :] + [max(work.next_prompt_token, 0)]
        (batch.extend_input_logprob_token_ids_gpu,) = self._upload([np.asarray(targets, np.int64)])
        batch.top_logprobs_nums = [work.top_logprobs for work in works]
        batch.token_ids_logprobs = [work.token_ids_logprob for work in works]


def _token_ids(works: list[RowWork]) -> np.ndarray:
    """int64 [T]; decode works contribute a zero that is overwritten on the device."""
    ids: list[int] = []
    for work in works:
        ids += work.token_ids if work.token_ids is not None else [0]
    return np.asarray(ids, np.int64)
