"""A fixed set of sequences run step by step on a worker, without a scheduler: for benchmarks and correctness tools.

Row i owns the slots `page_size + i * max_len` onward, so positions and slots need no bookkeeping.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sglang.srt.managers.step_plan import RowSetup, RowWork, SamplingSpec, StepMode, StepPlan
from sglang.srt.model_executor.worker import LaunchedStep, TpWorker

GREEDY = SamplingSpec(top_k=1)


class StaticBatch:
    """`batch_size` sequences of at most `max_len` tokens, each in its own row.

    `sampling`: of every sequence. `asked`: further fields of every work, such as `return_logprob`.
    """

    def __init__(
        self,
        worker: TpWorker,
        batch_size: int,
        max_len: int,
        page_size: int = 1,
        sampling: SamplingSpec = GREEDY,
        asked: Mapping[str, Any] | None = None,
    ) -> None:
        self._worker = worker
        self._sampling = sampling
        self._asked = dict(asked or {})
        self._stride = -(-max_len // page_size) * page_size
        self._first_slot = page_size  # page 0 is padding
        self.lengths = [0] * batch_size
        self._step_id = 0

    def extend(self, token_ids: list[list[int]]) -> LaunchedStep:
        """Append tokens to every sequence in one prefill step and sample the next ones."""
        setups = [
            RowSetup(row=row, sampling=self._sampling, prompt_ids=ids, output_ids=[])
            for row, ids in enumerate(token_ids)
        ]
        works = [self._work(row, len(ids), ids) for row, ids in enumerate(token_ids)]
        return self._launch("extend", works, setups)

    def decode(self) -> LaunchedStep:
        """Feed every sequence its last sampled token."""
        works = [self._work(row, 1, None) for row in range(len(self.lengths))]
        return self._launch("decode", works, [])

    def _launch(self, mode: StepMode, works: list[RowWork], setups: list[RowSetup]) -> LaunchedStep:
        self._step_id += 1
        return self._worker.launch(
            StepPlan(step_id=self._step_id, mode=mode, works=works, setups=setups)
        )

    def _work(self, row: int, num_tokens: int, token_ids: list[int] | None) -> RowWork:
        start = self.lengths[row]
        base = self._first_slot + row * self._stride + start
        self.lengths[row] = start + num_tokens
        return RowWork(
            row=row,
            start=start,
            num_tokens=num_tokens,
            token_ids=token_ids,
            prefix_slots=None,
            new_slots=np.arange(base, base + num_tokens, dtype=np.int32).tobytes(),
            sample=True,
            num_outputs=start,
            **self._asked,
        )
