"""Runs the model of one rank: loads it, sizes and owns the KV pool, chooses the attention backend, turns batches into logits."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import time
from typing import TYPE_CHECKING

import torch

from sglang.srt.configs.load_config import LoadConfig
from sglang.srt.distributed import get_tp_group
from sglang.srt.distributed.agreement import all_can
from sglang.srt.layers.attention.finite_values import launch_moves
from sglang.srt.layers.attention.long_prompt_plans import LongPromptPlans, shapes_of
from sglang.srt.layers.attention.registry import attention_memory, create_attention_backend
from sglang.srt.layers.moe.kernel_forms import launch_expert_forms
from sglang.srt.layers.rotary_embedding import SwitchedRotaryEmbedding
from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
from sglang.srt.model_executor.batch_builder import BatchBuilder
from sglang.srt.model_executor.cuda_graph_runner import (
    SMALL_DECODE,
    CudaGraphRunner,
    GraphConfig,
    may_rehearse,
    why_not_captured,
)
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.model_executor.graph_capture import check_alike
from sglang.srt.model_executor.kv_pool import create_kv_pool, kv_bytes_per_token
from sglang.srt.model_executor.memory_guard import (
    FOR_ATTENTION,
    FOR_CAPTURE,
    FOR_POOL,
    MemoryGuard,
)
from sglang.srt.model_executor.rank_sums import leave_sums_to_norms
from sglang.srt.model_loader.loader import get_model
from sglang.srt.model_loader.quantization import load_kv_cache_scales
from sglang.srt.multimodal.intake import DeepstackModel, MediaIntake
from sglang.srt.utils.errors import ConfigError
from sglang.srt.utils.start_clock import StartClock

if TYPE_CHECKING:
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
    from sglang.srt.layers.logits_processor import LogitsProcessorOutput
    from sglang.srt.platforms import Platform

logger = logging.getLogger(__name__)

# A CPU's memory is shared with everything else that runs on the machine.
CPU_POOL_SHARE = 0.5
MIN_POOL_TOKENS = 64
DEFAULT_ROWS = {"cpu": 256, "cuda": 4096}
# Of one step's prompts; kernels for more are compiled when they are needed.
MOST_STEP_TOKENS = 16384
# Without a limit from the user there is a row for so many tokens of the pool.
TOKENS_PER_ROW = 64


@dataclasses.dataclass(frozen=True)
class RunnerConfig:
    """What the runner needs to know; every value is resolved."""

    platform: Platform
    attention_backend: str
    page_size: int
    max_running_requests: int | None
    max_total_tokens: int | None
    mem_fraction_static: float
    kv_dtype: torch.dtype | None = None
    kv_scales_path: str | None = None  # JSON file with the scales of an fp8 cache
    ranks_per_node: int = 1  # ranks that share the memory of the host
    graph_batch_sizes: tuple[int, ...] = ()  # decode steps captured as graphs; () for none
    pad_graphs: bool = True
    longest_prefill: int = 0  # tokens that a step computes of a prompt at most; 0: not known


class ModelRunner:
    """One rank's model with its pools. `forward` is the only thing that touches the model."""

    def __init__(self, config: RunnerConfig, model_config: ModelConfig, load: LoadConfig) -> None:
        self.config = config
        self.model_config = model_config
        self.platform = config.platform
        self.device = self.platform.device
        self.dtype = model_config.torch_dtype(self.device.type)
        self.clock = StartClock.from_now()
        self.platform.activate()
        self.clock.lap("device")
        self._guard = guard = MemoryGuard(self.platform)
        num_ranks = get_tp_group().world_size
        with guard.phase(
            "loading the weights", lambda: guard.weights_advice(model_config, load, num_ranks)
        ):
            self._load_weights(load)
        self.clock.lap("weights")
        self._wants_pp_proxy = (
            "pp_proxy_tensors" in inspect.signature(self.model.forward).parameters
        )
        with guard.phase("allocating the KV cache pool", FOR_POOL):
            self._init_pools()
        self.clock.lap("KV cache")
        with guard.phase("preparing attention", FOR_ATTENTION):
            self.attn_backend = create_attention_backend(config.attention_backend, self)
        self.builder = BatchBuilder(
            self.req_to_token_pool,
            self.token_to_kv_pool,
            self.attn_backend,
            self.device,
            has_mrope=model_config.has_mrope,
        )
        self.clock.lap("attention")
        self._long_prompts = self._plan_long_prompts()
        self.graphs = self._capture_graphs()
        self.clock.lap("graphs")

    def _load_weights(self, load: LoadConfig) -> None:
        config, started = self.config, time.perf_counter()
        self.model = get_model(
            model_config=self.model_config, load_config=load, device_config=self.device
        )
        if config.kv_scales_path is not None:
            load_kv_cache_scales(self.model, config.kv_scales_path, self.model_config)
        self._fix_rope_tables()
        if get_tp_group().world_size > 1:
            leave_sums_to_norms(self.model)
        self.weight_bytes = _parameter_bytes(self.model)
        logger.info(
            "Load weight end. type=%s, dtype=%s, weights=%.3f GiB, %.2f s",
            type(self.model).__name__,
            self.dtype,
            self.weight_bytes / 2**30,
            time.perf_counter() - started,
        )

    @property
    def sliding_window_size(self) -> int | None:
        """Number of earlier tokens that a windowed layer sees, None without windows."""
        getter = getattr(self.model, "get_attention_sliding_window_size", None)
        return getter() if getter is not None else None

    def media_intake(self) -> MediaIntake | None:
        """What takes the media of requests; None for a model that takes text only."""
        if not self.model_config.is_multimodal:
            return None
        model, hidden_size = self.model, self.model_config.facts.hidden_size
        num_deep = len(model.deepstack_visual_indexes) if isinstance(model, DeepstackModel) else 0
        return MediaIntake(model.pad_input_ids, hidden_size, num_deep)

    def prepare(self) -> bool:
        """Do a little of what would make a later step wait; False when nothing is left. For idle moments, on all ranks alike."""
        return self._long_prompts is not None and self._long_prompts.make_next()

    def _plan_long_prompts(self) -> LongPromptPlans | None:
        if self.config.attention_backend.partition("+")[0] != "triton":
            return None
        longest = min(self.config.longest_prefill, self.max_total_num_tokens)
        shapes = shapes_of(self.model, self.dtype, self.device)
        return LongPromptPlans(shapes, longest, self.dtype, self.device)

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch) -> LogitsProcessorOutput:
        """Logits of the batch. `next_token_logits` is float32 [B, V], valid until the next call."""
        if self.graphs is not None and self.graphs.can_replay(batch):
            return self.graphs.replay(batch)
        self.attn_backend.init_forward_metadata(batch)
        return self._run_model(batch)

    def _run_model(self, batch: ForwardBatch) -> LogitsProcessorOutput:
        batch.rope_tables.clear()  # a batch of static buffers runs several times
        kwargs = {"pp_proxy_tensors": None} if self._wants_pp_proxy else {}
        return self.model.forward(batch.input_ids, batch.positions, batch, **kwargs)

    @torch.inference_mode()
    def _capture_graphs(self) -> CudaGraphRunner | None:
        """Graphs of the decode steps, None where there are none; then every step is launched kernel by kernel."""
        sizes = self.config.graph_batch_sizes
        if not sizes or not self.platform.is_cuda:
            return None
        reason = all_can(get_tp_group(), why_not_captured(self.model))
        if reason is not None:
            logger.warning(
                "Decode steps of %s are not captured: %s", type(self.model).__name__, reason
            )
            return None
        enough = [size for size in sizes if size < self.max_running_requests]
        sizes = (*enough, *sizes[len(enough) : len(enough) + 1])
        check_alike("the batch sizes of captured steps (--cuda-graph-bs)", sizes)
        doing = f"capturing graphs for up to {sizes[-1]} requests"
        try:
            with self._guard.phase(doing, FOR_CAPTURE):
                return CudaGraphRunner(
                    GraphConfig(
                        sizes,
                        self.config.pad_graphs,
                        self.model_config.has_mrope,
                        may_rehearse(self.model),
                    ),
                    self._run_model,
                    self.attn_backend,
                    {
                        "req_to_token_pool": self.req_to_token_pool,
                        "token_to_kv_pool": self.token_to_kv_pool,
                    },
                    self.platform,
                    self._small_backend(),
                    self._launch_more,
                )
        except (RuntimeError, NotImplementedError) as error:
            logger.warning(
                "Decode steps of %s are not captured: %s", type(self.model).__name__, error
            )
            return None

    def _launch_more(self) -> None:
        """Kernels of steps that are not captured, in every form that prompts of any length need."""
        launch_expert_forms(self.model, MOST_STEP_TOKENS)
        if not {"fa3", "flashinfer"}.isdisjoint(self.config.attention_backend.split("+")):
            launch_moves(self.model, self.dtype, self.device)

    def _small_backend(self) -> AttentionBackend | None:
        """What attends in captured prefills, which are short, and in the smallest captured decodes, whatever runs the others: triton.

        Its layout of a prefill fits any requests, and its kernels begin early. None where it cannot run.
        """
        name = self.config.attention_backend
        if "torch_native" in name.split("+"):
            return None
        if name == "triton":
            return self.attn_backend
        logger.info(
            "Attention of captured prefills and of captured decodes of up to %d requests is triton's; %s has the others",
            SMALL_DECODE,
            name,
        )
        return create_attention_backend("triton", self)

    def release_graphs(self) -> None:
        """Before this rank leaves its group; no step may follow."""
        if self.graphs is not None:
            self.platform.synchronize()
            self.graphs.release()
            self.graphs = None

    def _fix_rope_tables(self) -> None:
        """Settle tables that depend on the length of the sequence: cached keys must fit all later queries."""
        for module in self.model.modules():
            if isinstance(module, SwitchedRotaryEmbedding):
                module.fix_context_length(self.model_config.context_len)

    # --- pools

    def _init_pools(self) -> None:
        config, tp_size = self.config, get_tp_group().world_size
        kv_dtype = config.kv_dtype or self.dtype
        token_bytes = kv_bytes_per_token(self.model_config, tp_size, kv_dtype)
        self.max_total_num_tokens = self._pool_tokens(token_bytes)
        self.num_slots = self.max_total_num_tokens + config.page_size  # with the padding page
        self.max_running_requests = config.max_running_requests or self._default_rows()
        self.req_to_token_pool = ReqToTokenPool(
            self.max_running_requests, self.model_config.row_width, self.device
        )
        self.token_to_kv_pool = create_kv_pool(
            self.model_config, tp_size, self.num_slots, config.page_size, kv_dtype, self.device
        )
        self.platform.prepare_cache(self.token_to_kv_pool.buffers)
        self.kv_bytes = self.num_slots * token_bytes
        logger.info(
            "KV cache is allocated. max_total_num_tokens=%d, dtype=%s, size=%.3f GiB, weights=%.3f GiB",
            self.max_total_num_tokens,
            kv_dtype,
            self.kv_bytes / 2**30,
            self.weight_bytes / 2**30,
        )

    def _pool_tokens(self, token_bytes: int) -> int:
        """Size of the KV pool in tokens, a multiple of the page size and the same on every rank."""
        page = self.config.page_size
        room = get_tp_group().min_of_hosts(self._memory_for_kv() // token_bytes)
        rows = self.config.max_running_requests or DEFAULT_ROWS[self.platform.name]
        tokens = min(room, rows * self.model_config.row_width)  # more could never be filled
        if self.config.max_total_tokens is not None:
            tokens = self.config.max_total_tokens
            if tokens > room:
                raise ConfigError(
                    f"max_total_tokens={tokens} needs {tokens * token_bytes / 2**30:.2f} GiB of KV cache, "
                    f"but only {max(room, 0) * token_bytes / 2**30:.2f} GiB are free for it; lower it. {self._guard.account()}"
                )
        tokens = tokens // page * page
        least = max(MIN_POOL_TOKENS, page)
        if tokens < least and self.config.max_total_tokens is not None:
            raise ConfigError(
                f"max_total_tokens={self.config.max_total_tokens} is too few for one request; give at least {least}"
            )
        if tokens < least:
            fraction = self.config.mem_fraction_static
            raise self._guard.pool_too_small(
                tokens, least, token_bytes, self.weight_bytes, fraction
            )
        return tokens

    def _memory_for_kv(self) -> int:
        """Bytes that the KV pool may take."""
        platform, fraction = self.platform, self.config.mem_fraction_static
        if platform.is_cpu:
            share = CPU_POOL_SHARE / self.config.ranks_per_node
            return int(platform.free_memory() * share * fraction)
        kept = platform.total_memory() * (1.0 - fraction)
        return int(platform.free_memory() - kept) - attention_memory(
            self.config.attention_backend, self
        )

    def _default_rows(self) -> int:
        limit = DEFAULT_ROWS[self.platform.name]
        return max(1, min(limit, self.max_total_num_tokens // TOKENS_PER_ROW))


def _parameter_bytes(model: torch.nn.Module) -> int:
    seen = {p.data_ptr(): p.numel() * p.element_size() for p in model.parameters()}
    return sum(seen.values())
