"""The demo model with faults: some prompt tokens make its forward pass fail as a device would."""

from __future__ import annotations

import os
import time

import torch

from sglang.srt.models.qwen3 import Qwen3ForCausalLM

# Ids of the demo vocabulary that the tests use for nothing else.
OUT_OF_MEMORY, LOST, HANG, NAN, LATE = 901, 902, 903, 904, 905
# A prompt with LATE runs out of memory in the decode step at this length.
LATE_LEN = 12
OUT_OF_MEMORY_TEXT = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of"
LOST_TEXT = "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be"


class FaultyForCausalLM(Qwen3ForCausalLM):
    """With FAULTY_LOAD set it does not even load."""

    def __init__(self, *args, **kwargs) -> None:
        if os.environ.get("FAULTY_LOAD"):
            raise torch.OutOfMemoryError(OUT_OF_MEMORY_TEXT)
        super().__init__(*args, **kwargs)
        self.late_rows: set[int] = set()

    def forward(self, input_ids, positions, forward_batch, **kwargs):
        prompts = []
        if forward_batch.forward_mode.is_extend():
            prompts = [
                set(part.tolist())
                for part in input_ids.split(list(forward_batch.extend_seq_lens_cpu))
            ]
        tokens = set().union(*prompts)
        if OUT_OF_MEMORY in tokens:
            raise torch.OutOfMemoryError(OUT_OF_MEMORY_TEXT)
        self.fail_late(forward_batch, prompts)
        if LOST in tokens:
            raise RuntimeError(LOST_TEXT)
        if HANG in tokens:
            time.sleep(3600)
        output = super().forward(input_ids, positions, forward_batch, **kwargs)
        for row, prompt in enumerate(prompts):
            if NAN in prompt:
                output.next_token_logits[row, 17] = torch.nan
        return output

    def fail_late(self, forward_batch, prompts: list[set[int]]) -> None:
        rows = forward_batch.req_pool_indices.tolist()
        lengths = forward_batch.seq_lens.tolist()
        for row, length, prompt in zip(rows, lengths, prompts or [None] * len(rows), strict=True):
            if prompt is not None:
                self.late_rows -= {row}
                self.late_rows |= {row} if LATE in prompt else set()
            elif row in self.late_rows and length >= LATE_LEN:
                raise torch.OutOfMemoryError(OUT_OF_MEMORY_TEXT)


EntryClass = FaultyForCausalLM
