"""Carries out step plans: build the batch, run the model, sample, and hand back plain values.

`launch` queues the work on the device and returns at once where the device allows it; `Launched.result` waits. Sampled ids are
written to the future-token buffer before `launch` returns, so the next plan can be launched before this one's result is read.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from sglang.srt.distributed import get_tp_group
from sglang.srt.environ import envs
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.layers.sampler import SampleOutput, Sampler
from sglang.srt.managers.step_plan import RowLogprobs, StepError, StepPlan, StepResult
from sglang.srt.model_executor.model_runner import ModelRunner
from sglang.srt.platforms import Platform
from sglang.srt.platforms.device_errors import STEP_FLAGS, is_out_of_memory, tried_to_allocate
from sglang.srt.sampling.sampling_batch import SamplingTable


class TpWorker:
    """The worker of rank 0, the only one that samples. The ids it hands out are those of every rank."""

    def __init__(self, runner: ModelRunner, *, seed: int, check_nan: bool = False) -> None:
        self._runner = runner
        self._builder = runner.builder
        self._group = get_tp_group()
        self._table = SamplingTable(
            runner.max_running_requests, runner.model_config.vocab_size, runner.device
        )
        self._sampler = Sampler(
            seed,
            return_original_logprob=envs.SGLANG_RETURN_ORIGINAL_LOGPROB.get(),
            check_nan=check_nan,
        )

    def launch(self, plan: StepPlan) -> LaunchedStep:
        """Queue `plan` on the device. Raises StepError when memory runs out; other plans may follow."""
        try:
            return self._launch(plan)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = _out_of_memory_reason(plan, error)
        # Not in the handler, whose traceback holds the tensors of the step.
        self._runner.platform.release_memory()
        raise StepError(reason)

    @torch.inference_mode()
    def _launch(self, plan: StepPlan) -> LaunchedStep:
        for setup in plan.setups:
            self._table.set_row(setup)
        batch = self._builder.build(plan)
        output = self._runner.forward(batch)
        indices = [index for index, work in enumerate(plan.works) if work.sample]
        if not indices:
            return LaunchedStep(plan, indices, output, None, None)
        works = [plan.works[index] for index in indices]
        logits, rows = output.next_token_logits, batch.req_pool_indices
        if len(indices) < len(plan.works):
            picked = upload_indices(indices, self._runner.platform)
            logits, rows = logits[picked], rows[picked]
        sampling = self._table.batch([work.row for work in works], works, plan.grammar_masks)
        sampled = self._sampler(logits, sampling)
        self._group.broadcast(sampled.next_ids)
        self._builder.next_token_ids[rows] = sampled.next_ids
        # Queued now: a copy asked for later would wait for the step after this one too.
        flags = [sampled.bad] if sampled.nan is None else [sampled.bad, sampled.nan]
        download = self._runner.platform.download(sampled.next_ids, *flags)
        return LaunchedStep(plan, indices, output, sampled, download)

    def close(self) -> None:
        """No step may follow."""
        self._runner.release_graphs()


def upload_indices(indices: list[int], platform: Platform) -> torch.Tensor:
    """int64 indices on the device, without waiting for it."""
    host = platform.empty_pinned((len(indices),), torch.int64)
    host.copy_(torch.tensor(indices, dtype=torch.int64))
    return platform.upload(host)


class LaunchedStep:
    """A step on its way."""

    def __init__(
        self,
        plan: StepPlan,
        indices: list[int],
        output: LogitsProcessorOutput,
        sampled: SampleOutput | None,
        download: Callable[[], tuple[torch.Tensor, ...]] | None,
    ) -> None:
        self._plan = plan
        self._indices = indices
        self._output = output
        self._sampled = sampled
        self._download = download  # ids, bad rows, and NaN rows where they are looked for

    @property
    def logits(self) -> torch.Tensor:
        """Logits of each work's last position, float32 [B, V]. Valid until the next step is launched."""
        return self._output.next_token_logits

    def result(self) -> StepResult:
        """Waits for the device."""
        plan = self._plan
        result = StepResult(step_id=plan.step_id, next_ids=[-1] * len(plan.works))
        if self._download is not None:
            next_ids, *flags = (tensor.tolist() for tensor in self._download())
            for index, next_id in zip(self._indices, next_ids, strict=True):
                result.next_ids[index] = next_id
            result.bad_rows, *nan_rows = (self._flagged(column) for column in flags)
            result.nan_rows = nan_rows[0] if nan_rows else []
        if any(work.return_logprob for work in plan.works):
            result.logprobs = self._logprobs(result)
        return result

    def _flagged(self, column: list[bool]) -> list[int]:
        return [index for index, is_set in zip(self._indices, column, strict=True) if is_set]

    def _logprobs(self, result: StepResult) -> dict[int, RowLogprobs]:
        rows = _input_logprobs(self._plan, self._output)
        if self._sampled is None or self._sampled.logprobs is None:
            return rows
        for line, sampled in self._sampled.logprobs.to_host().items():
            index = self._indices[line]
            row = rows.setdefault(index, RowLogprobs())
            row.output, row.output_token = sampled.output, result.next_ids[index]
            row.output_top, row.output_ids = sampled.output_top, sampled.output_ids
        return rows


def _out_of_memory_reason(plan: StepPlan, error: Exception) -> str:
    return (
        f"The server ran out of memory in a step of {len(plan.works)} requests and {plan.num_tokens} tokens "
        f"({tried_to_allocate(error)}). Try again with less at a time; if this happens often, start the server with a lower "
        f"{STEP_FLAGS}."
    )


def _input_logprobs(plan: StepPlan, output: LogitsProcessorOutput) -> dict[int, RowLogprobs]:
    """Prompt logprobs of the step, by index of the work."""
    rows: dict[int, RowLogprobs] = {}
    if output.input_token_logprobs is None:
        return rows
    flat = output.input_token_logprobs.tolist()
    offset = 0
    for index, work in enumerate(plan.works):
        count = work.num_tokens - work.input_logprob_start if work.return_logprob else 0
        if count <= 0:
            continue
        row = RowLogprobs(input=flat[offset : offset + count])
        offset += count
        if work.top_logprobs:
            values, ids = output.input_top_logprobs_val[index], output.input_top_logprobs_idx[index]
            row.input_top = list(zip(values, ids, strict=True))
        if work.token_ids_logprob:
            row.input_ids = output.input_token_ids_logprobs_val[index]
        rows[index] = row
    return rows
