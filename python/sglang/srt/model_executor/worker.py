"""Carries out step plans: build the batch, run the model, sample, and hand back plain values.

`forward` and `sample` queue the work on the device, copies of its results included, and wait for nothing; `LaunchedStep.result` waits for
those copies. Sampled ids are written to the future-token buffer before `sample` returns, so the next plan can be launched before this
one's result is read. Between the two the caller may wait for earlier steps: masks of grammars need their tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeVar

import torch

from sglang.srt.distributed import get_tp_group
from sglang.srt.environ import envs
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.layers.prompt_logprobs import PromptRows
from sglang.srt.layers.sampler import Sampler
from sglang.srt.layers.sampling_forms import launch_sampling_forms
from sglang.srt.layers.triton_ops import has_triton
from sglang.srt.managers.step_plan import RowLogprobs, StepError, StepPlan, StepResult
from sglang.srt.model_executor.idle_compiling import IdleCompiling
from sglang.srt.model_executor.model_runner import ModelRunner
from sglang.srt.platforms.device_errors import STEP_FLAGS, is_out_of_memory, tried_to_allocate
from sglang.srt.sampling.row_masks import RowMasks
from sglang.srt.sampling.sampling_batch import SamplingTable
from sglang.srt.utils.upload import upload

_T = TypeVar("_T")


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
        self._begun: _ForwardPass | None = None
        self._idle_compiling = self._sampling_kernels()

    def launch(self, plan: StepPlan) -> LaunchedStep:
        """Both parts of a plan without grammars."""
        self.forward(plan)
        return self.sample()

    def forward(self, plan: StepPlan) -> None:
        """Queue the forward pass of `plan`. Raises StepError when memory runs out; other plans may follow."""
        self._survive(plan, lambda: self._forward(plan))

    def sample(self, masks: RowMasks | None = None) -> LaunchedStep:
        """Queue the sampling that belongs to the last forward pass. Raises StepError as `forward` does."""
        assert self._begun is not None, "sampling follows a forward pass"
        return self._survive(self._begun.plan, lambda: self._sample(masks))

    def _survive(self, plan: StepPlan, part: Callable[[], _T]) -> _T:
        try:
            return part()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = _out_of_memory_reason(plan, error)
        # Not in the handler, whose traceback holds the tensors of the step.
        self._runner.platform.release_memory()
        raise StepError(reason)

    @torch.inference_mode()
    def _forward(self, plan: StepPlan) -> None:
        for setup in plan.setups:
            self._table.set_row(setup)
        batch = self._builder.build(plan)
        output = self._runner.forward(batch)
        # Every copy is queued by the step that it belongs to: asked for later, it would wait for the next step too.
        prompt = output.prompt_logprobs
        read_prompt = None if prompt is None else prompt.download(self._runner.platform)
        self._begun = _ForwardPass(plan, batch.req_pool_indices, output, read_prompt)

    @torch.inference_mode()
    def _sample(self, masks: RowMasks | None) -> LaunchedStep:
        assert self._begun is not None, "sampling follows a forward pass"
        begun, self._begun = self._begun, None
        plan, output, platform = begun.plan, begun.output, self._runner.platform
        indices = [index for index, work in enumerate(plan.works) if work.sample]
        if not indices:
            return LaunchedStep(plan, indices, output, read_prompt=begun.read_prompt)
        works = [plan.works[index] for index in indices]
        logits, rows = output.next_token_logits, begun.rows
        if len(indices) < len(plan.works):
            picked = upload(indices, torch.int64, rows.device)
            logits, rows = logits[picked], rows[picked]
        sampling = self._table.batch([work.row for work in works], works, masks)
        sampled = self._sampler(logits, sampling)
        self._group.broadcast(sampled.next_ids)
        self._builder.next_token_ids[rows] = sampled.next_ids
        flags = [sampled.bad] if sampled.nan is None else [sampled.bad, sampled.nan]
        return LaunchedStep(
            plan,
            indices,
            output,
            read_ids=platform.download(sampled.next_ids, *flags),
            read_outputs=None if sampled.logprobs is None else sampled.logprobs.download(platform),
            read_prompt=begun.read_prompt,
        )

    def prepare(self) -> bool:
        """Make use of an idle moment; False when there is no more to prepare."""
        if self._runner.prepare():
            return True
        return self._idle_compiling is not None and self._idle_compiling.compile_next()

    def _sampling_kernels(self) -> IdleCompiling | None:
        if not self._runner.platform.is_cuda or not has_triton():
            return None
        device, vocab_size = self._runner.device, self._runner.model_config.vocab_size
        return IdleCompiling(lambda: launch_sampling_forms(vocab_size, device), device)

    def close(self) -> None:
        """No step may follow."""
        self._runner.release_graphs()


@dataclasses.dataclass(frozen=True)
class _ForwardPass:
    """A forward pass whose tokens have not been sampled."""

    plan: StepPlan
    rows: torch.Tensor  # int64 [B]
    output: LogitsProcessorOutput
    read_prompt: Callable[[], dict[int, PromptRows]] | None


class LaunchedStep:
    """A step on its way.

    Args:
        indices: the works that sample; a line of the sampled batch each.
        read_ids: waits for ids, bad rows, and NaN rows where they are looked for.
        read_outputs, read_prompt: wait for logprobs of sampled tokens, by line, and of prompt tokens, by work.
    """

    def __init__(
        self,
        plan: StepPlan,
        indices: list[int],
        output: LogitsProcessorOutput,
        *,
        read_ids: Callable[[], tuple[torch.Tensor, ...]] | None = None,
        read_outputs: Callable[[], dict[int, RowLogprobs]] | None = None,
        read_prompt: Callable[[], dict[int, PromptRows]] | None = None,
    ) -> None:
        self._plan = plan
        self._indices = indices
        self._output = output
        self._read_ids = read_ids
        self._read_outputs = read_outputs
        self._read_prompt = read_prompt

    @property
    def logits(self) -> torch.Tensor:
        """Logits of each work's last position, float32 [B, V]. Valid until the next step is launched."""
        return self._output.next_token_logits

    def result(self) -> StepResult:
        """Waits for the copies of this step."""
        plan = self._plan
        result = StepResult(step_id=plan.step_id, next_ids=[-1] * len(plan.works))
        if self._read_ids is not None:
            next_ids, *flags = (tensor.tolist() for tensor in self._read_ids())
            for index, next_id in zip(self._indices, next_ids, strict=True):
                result.next_ids[index] = next_id
            result.bad_rows, *nan_rows = (self._flagged(column) for column in flags)
            result.nan_rows = nan_rows[0] if nan_rows else []
        result.logprobs = self._logprobs(result)
        return result

    def _flagged(self, column: list[bool]) -> list[int]:
        return [index for index, is_set in zip(self._indices, column, strict=True) if is_set]

    def _logprobs(self, result: StepResult) -> dict[int, RowLogprobs]:
        prompts = {} if self._read_prompt is None else self._read_prompt()
        rows = {
            index: RowLogprobs(input=found.chosen, input_top=found.top, input_ids=found.given)
            for index, found in prompts.items()
        }
        outputs = {} if self._read_outputs is None else self._read_outputs()
        for line, sampled in outputs.items():
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
