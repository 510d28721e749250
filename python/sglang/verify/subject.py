"""The subject: this engine in process, with everything of serving but sockets and text.

A `Subject` holds a loaded model with its pools. A `Session` puts a fresh scheduler and an empty prefix cache on it, runs requests turn
by turn and records the logits of every position that is computed, as often as it is computed.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from sglang.srt.configs.load_config import LoadConfig
from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.constrained.grammar_manager import GrammarManager
from sglang.srt.layers.logits_processor import LogitsProcessor, LogitsProcessorOutput
from sglang.srt.managers.io_struct import BatchTokenOutput, LogprobChunk, TokenizedGenerateReq
from sglang.srt.managers.output_processor import OutputProcessor
from sglang.srt.managers.planner import Planner, PlannerConfig
from sglang.srt.managers.scheduler import Launched, Scheduler, SchedulerConfig
from sglang.srt.managers.scheduler_stats import MemoryUsage, SchedulerStats
from sglang.srt.managers.step_plan import StepPlan
from sglang.srt.managers.stop_checker import StopChecker
from sglang.srt.mem_cache.kv_cache_manager import KVCacheManager
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.model_executor.model_runner import ModelRunner, RunnerConfig
from sglang.srt.model_executor.worker import TpWorker
from sglang.srt.multimodal.embedding_cache import clear_mm_embedding_caches
from sglang.srt.platforms import create_platform
from sglang.srt.sampling.row_masks import RowMasks
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.server_args import ServerArgs, set_global_server_args_for_scheduler

# What lies in slots that nobody has written: large enough that reading one is seen, finite so that masking hides it.
_POISON = 1e4
_MAX_TURNS = 100_000


@dataclasses.dataclass(frozen=True)
class SubjectConfig:
    """How the model is loaded. `pool_tokens`: slots of the KV pool, shared by all sessions."""

    page_size: int = 1
    pool_tokens: int = 2048
    max_requests: int = 8
    device: str = "cpu"
    dtype: str = "float32"
    context_length: int | None = None
    attention_backend: str = "torch_native"
    model_impl: str = "auto"
    trust_remote_code: bool = False
    enable_multimodal: bool | None = None  # None: as a server without the flag


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How a session plans. `num_tokens`: slots it may use, None for the whole pool."""

    chunk_size: int | None = None
    mixed_chunk: bool = False
    depth: int = 0
    num_tokens: int | None = None
    prefix_cache: bool = True
    # 1.0 admits a request only when all of its outputs will fit; near 0 the pool is overbooked.
    conservativeness: float = 1.0


@dataclasses.dataclass(frozen=True)
class LogprobAsk:
    """The logprobs that a request wants; prompt positions from `start` on (-1: outputs only)."""

    start: int = 0
    top: int = 5
    token_ids: tuple[int, ...] = ()


@dataclasses.dataclass
class Piece:
    """Logits of one computed stretch of a request: float32 [n, V], row i at position `start + i`.

    `served` is the row [V] that the sampler was given, None when nothing was sampled.
    """

    start: int
    logits: torch.Tensor
    served: torch.Tensor | None


@dataclasses.dataclass
class Trace:
    """All that was seen of one request."""

    prompt_ids: list[int]
    output_ids: list[int] = dataclasses.field(default_factory=list)
    pieces: list[Piece] = dataclasses.field(default_factory=list)
    logprobs: LogprobChunk = dataclasses.field(default_factory=LogprobChunk)
    cached_tokens: int = 0
    retractions: int = 0
    finish_reason: str | None = None
    finish_message: str | None = None  # of a request that was refused


@dataclasses.dataclass
class StepRecord:
    """One launched step."""

    mode: str
    lens: list[int]  # tokens of each request
    chunks: int  # requests whose prefill does not end in this step
    resumed: int  # requests that come back from a retraction with outputs


class Subject:
    """A checkpoint loaded into the engine.

    Raises ConfigError, or WeightLoadError, for a folder that cannot be served.
    """

    def __init__(self, folder: str, config: SubjectConfig | None = None) -> None:
        config = config or SubjectConfig()
        self.config = config
        self.model_config = ModelConfig(
            folder,
            context_length=config.context_length,
            dtype=config.dtype,
            model_impl=config.model_impl,
            trust_remote_code=config.trust_remote_code,
            enable_multimodal=config.enable_multimodal,
        )
        # What model files of others may ask for when they are constructed.
        set_global_server_args_for_scheduler(
            ServerArgs(model_path=folder, device=config.device, page_size=config.page_size)
        )
        runner_config = RunnerConfig(
            platform=create_platform(config.device, 0),
            attention_backend=config.attention_backend,
            page_size=config.page_size,
            max_running_requests=config.max_requests,
            max_total_tokens=config.pool_tokens,
            mem_fraction_static=0.9,
        )
        self.runner = ModelRunner(runner_config, self.model_config, LoadConfig())
        for module in self.model.modules():
            if isinstance(module, LogitsProcessor):
                module.return_full_logits = True

    @property
    def model(self) -> torch.nn.Module:
        """The loaded model; controls may change it."""
        return self.runner.model

    @property
    def context_len(self) -> int:
        return self.model_config.context_len

    def session(self, schedule: Schedule | None = None) -> Session:
        """A scheduler with an empty cache. One session at a time: they share the pools."""
        self._poison()
        clear_mm_embedding_caches()
        return Session(self, schedule or Schedule())

    @torch.inference_mode()
    def _poison(self) -> None:
        """Nothing of an earlier session can help: neither what slots hold nor which slots rows name."""
        self.runner.req_to_token_pool.req_to_token.zero_()
        pool, page_size = self.runner.token_to_kv_pool, self.config.page_size
        for layer_id in range(pool.start_layer, pool.start_layer + pool.layer_num):
            for buffer in pool.get_kv_buffer(layer_id):
                buffer[page_size:] = _POISON


class Session:
    """Runs requests; made by `Subject.session`."""

    def __init__(self, subject: Subject, schedule: Schedule) -> None:
        config, model_config = subject.config, subject.model_config
        num_slots = subject.runner.num_slots
        if schedule.num_tokens is not None:
            num_slots = min(num_slots, schedule.num_tokens + config.page_size)
        self.cache = KVCacheManager(
            num_slots=num_slots,
            page_size=config.page_size,
            max_requests=config.max_requests,
            enable_prefix_cache=schedule.prefix_cache,
        )
        self.planner = Planner(_planner_config(config, schedule), self.cache)
        self._mailbox = _Mailbox()
        self._worker = _RecordingWorker(subject.runner, self.planner)
        self._scheduler = Scheduler(
            SchedulerConfig(
                context_len=model_config.context_len,
                vocab_size=model_config.vocab_size,
                eos_ids=frozenset(),
                depth=schedule.depth,
            ),
            self.planner,
            OutputProcessor(
                self.planner,
                StopChecker(None, frozenset(), model_config.vocab_size),
                stream_interval=1,
            ),
            self._worker,
            self._mailbox,
            GrammarManager(None, model_config.vocab_size, [], "none"),
            SchedulerStats(MemoryUsage(weight=0, kvcache=0), config.max_requests),
            subject.runner.media_intake(),
        )

    @property
    def traces(self) -> dict[str, Trace]:
        """By request, in order of submission."""
        return self._worker.traces

    @property
    def steps(self) -> list[StepRecord]:
        return self._worker.steps

    def submit(
        self,
        rid: str,
        prompt_ids: list[int],
        num_tokens: int,
        ask: LogprobAsk | None = None,
        mm_inputs: bytes | None = None,
    ) -> None:
        """Queue a greedy request of exactly `num_tokens` new tokens; `mm_inputs` are its packed media."""
        params = SamplingParams(temperature=0.0, max_new_tokens=num_tokens, ignore_eos=True)
        params.normalize(None)
        message = TokenizedGenerateReq(
            rid=rid, input_ids=prompt_ids, sampling_params=params, mm_inputs=mm_inputs
        )
        if ask is not None:
            message.return_logprob = True
            message.logprob_start_len = ask.start
            message.top_logprobs_num = ask.top
            message.token_ids_logprob = list(ask.token_ids) or None
        self.traces[rid] = Trace(prompt_ids=prompt_ids)
        self._mailbox.inbox.append(message)

    def run(self, max_turns: int | None = None) -> None:
        """Turns of the scheduler's loop, until nothing is left to do or `max_turns` are over."""
        for _ in range(_MAX_TURNS if max_turns is None else max_turns):
            self._scheduler.receive(0.0)
            worked = self._scheduler.step()
            self._collect()
            if not worked and not self._scheduler.has_work:
                self._scheduler.check()
                return
        if max_turns is None:
            raise RuntimeError(f"requests are still running after {_MAX_TURNS} turns")

    def _collect(self) -> None:
        for message in self._mailbox.take():
            for output in message.outputs:
                trace = self.traces[output.rid]
                trace.output_ids += output.new_ids
                trace.cached_tokens = output.cached_tokens
                trace.retractions = output.retractions
                if output.logprobs is not None:
                    _append_logprobs(trace.logprobs, output.logprobs)
                if output.finish_reason is not None:
                    trace.finish_reason = output.finish_reason.type
                    trace.finish_message = output.finish_reason.message


def _planner_config(config: SubjectConfig, schedule: Schedule) -> PlannerConfig:
    return PlannerConfig(
        max_running=config.max_requests,
        chunk_size=schedule.chunk_size,
        max_prefill_tokens=config.pool_tokens,
        mixed_chunk=schedule.mixed_chunk,
        conservativeness=schedule.conservativeness,
    )


def _append_logprobs(record: LogprobChunk, news: LogprobChunk) -> None:
    if news.input_token is not None:
        record.input_token = (record.input_token or []) + news.input_token
        record.input_top = (record.input_top or []) + (news.input_top or [])
        record.input_ids = (record.input_ids or []) + (news.input_ids or [])
    record.output_token = record.output_token + news.output_token
    record.output_top = record.output_top + news.output_top
    record.output_ids = record.output_ids + news.output_ids


class _Mailbox:
    """The scheduler's sockets, as two lists."""

    def __init__(self) -> None:
        self.inbox: list[Any] = []
        self._outbox: list[BatchTokenOutput] = []

    def receive(self, timeout: float) -> list[Any]:
        messages, self.inbox = self.inbox, []
        return messages

    def send(self, message: Any) -> None:
        self._outbox.append(message)

    def take(self) -> list[BatchTokenOutput]:
        messages, self._outbox = self._outbox, []
        return messages


class _RecordingWorker:
    """The real worker; notes the logits of each launched plan under the request they belong to."""

    def __init__(self, runner: ModelRunner, planner: Planner) -> None:
        self._runner = _ListeningRunner(runner)
        self._worker = TpWorker(self._runner, seed=0)  # type: ignore[arg-type]
        self._planner = planner
        self.traces: dict[str, Trace] = {}
        self.steps: list[StepRecord] = []

    def close(self) -> None:
        """Nothing to give back."""

    def forward(self, plan: StepPlan) -> None:
        holders = self._planner.running + self._planner.prefilling
        rids = {req.cache.row: req.rid for req in holders if req.cache is not None}
        self._worker.forward(plan)
        first = 0
        for index, work in enumerate(plan.works):
            rows = self._runner.full_logits[first : first + work.num_tokens]
            served = self._runner.next_token_logits[index] if work.sample else None
            self.traces[rids[work.row]].pieces.append(Piece(work.start, rows, served))
            first += work.num_tokens
        if first != len(self._runner.full_logits):
            raise RuntimeError(f"{len(self._runner.full_logits)} rows of logits for {first} tokens")
        self.steps.append(
            StepRecord(
                mode=plan.mode,
                lens=[work.num_tokens for work in plan.works],
                chunks=sum(not work.sample for work in plan.works),
                resumed=sum(bool(setup.output_ids) for setup in plan.setups),
            )
        )

    def sample(self, masks: RowMasks | None) -> Launched:
        return self._worker.sample(masks)


class _ListeningRunner:
    """A model runner that keeps a copy of the last logits, which the sampler overwrites."""

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self.next_token_logits = torch.empty(0)
        self.full_logits = torch.empty(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def forward(self, batch: ForwardBatch) -> LogitsProcessorOutput:
        output = self._runner.forward(batch)
        if output.next_token_logits is None or output.full_logits is None:
            raise RuntimeError("the model returned no logits; its logits_processor must make them")
        self.next_token_logits = output.next_token_logits.float().cpu().clone()
        self.full_logits = output.full_logits.float().cpu()
        return output
