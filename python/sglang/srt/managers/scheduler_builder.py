"""Assembles a scheduler from the flags: model, pools, cache, planner, worker. The one place that hands values to components."""

from __future__ import annotations

import dataclasses
import logging
import os
from typing import Any

from sglang.srt.arg_groups.rank_place import RankPlace
from sglang.srt.arg_groups.resolve import Facts, ResolvedArgs, collect_facts, resolve
from sglang.srt.configs.load_config import LoadConfig
from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.constrained.base import GrammarOptions
from sglang.srt.constrained.grammar_manager import COMPILE_TIMEOUT, GrammarManager
from sglang.srt.distributed.channel import FollowerChannel
from sglang.srt.environ import envs
from sglang.srt.layers.attention.registry import join_phases, why_no_kernels, why_not_imported
from sglang.srt.managers.output_processor import OutputProcessor
from sglang.srt.managers.planner import Planner, PlannerConfig
from sglang.srt.managers.scheduler import Mailbox, Scheduler, SchedulerConfig, Worker
from sglang.srt.managers.scheduler_stats import MemoryUsage, SchedulerStats
from sglang.srt.managers.step_profiler import ProfilerDefaults, StepProfiler
from sglang.srt.managers.stop_checker import StopChecker
from sglang.srt.mem_cache.kv_cache_manager import KVCacheManager
from sglang.srt.model_executor.kv_pool import choose_kv_dtype
from sglang.srt.model_executor.model_runner import ModelRunner, RunnerConfig
from sglang.srt.model_executor.parallel_worker import (
    FollowerWorker,
    LeaderWorker,
    join_ranks,
    open_follower_channel,
    open_leader_channel,
)
from sglang.srt.model_executor.worker import TpWorker
from sglang.srt.platforms import create_platform
from sglang.srt.platforms.cpu_cores import take_share
from sglang.srt.server_args import ServerArgs, set_global_server_args_for_scheduler
from sglang.srt.utils.errors import ConfigError
from sglang.srt.utils.hf_transformers_utils import get_tokenizer
from sglang.srt.utils.start_clock import StartClock

logger = logging.getLogger(__name__)


def build_scheduler(
    server_args: ServerArgs,
    mailbox: Mailbox,
    place: RankPlace | None = None,
    clock: StartClock | None = None,
) -> tuple[Scheduler, dict[str, Any]]:
    """The scheduler of rank 0, and the facts the front is told when it is ready. Returns when every rank has loaded its part.

    `clock` gets the phases of the work.
    """
    clock = clock or StartClock.from_now()
    server_args, resolved, model_config, runner = load_runner(server_args, place, clock)
    clock.take_over(runner.clock)
    tokenizer = load_tokenizer(server_args, resolved)
    eos_ids = end_ids(model_config, tokenizer)
    planner = Planner(_planner_config(server_args, resolved, runner), _cache(server_args, runner))
    stops = StopChecker(tokenizer=tokenizer, eos_ids=eos_ids, vocab_size=model_config.vocab_size)
    scheduler = Scheduler(
        SchedulerConfig(
            context_len=model_config.context_len,
            eos_ids=eos_ids,
            vocab_size=model_config.vocab_size,
            depth=resolved.overlap_depth,
            max_queued=server_args.max_queued_requests,
            decode_log_interval=server_args.decode_log_interval,
            grammar_poll_interval=envs.SGLANG_GRAMMAR_POLL_INTERVAL.get(),
            waiting_timeout=envs.SGLANG_REQ_WAITING_TIMEOUT.get(),
            running_timeout=envs.SGLANG_REQ_RUNNING_TIMEOUT.get(),
            retract_interval=_retract_interval(),
            is_audit_strict=envs.SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_IDLE.get(),
            audit_interval=envs.SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY.get(),
        ),
        planner,
        OutputProcessor(planner, stops, server_args.stream_interval),
        _leading_worker(runner, server_args, resolved, place),
        mailbox,
        _grammars(server_args, resolved, tokenizer, model_config.vocab_size, eos_ids),
        SchedulerStats(
            MemoryUsage(
                weight=runner.weight_bytes,
                kvcache=runner.kv_bytes,
                graph=0 if runner.graphs is None else runner.graphs.num_bytes,
            ),
            runner.max_running_requests,
        ),
        runner.media_intake(),
        StepProfiler(ProfilerDefaults.from_environment()),
    )
    clock.lap("rest")
    info = _info(model_config, runner)
    info["settled_flags"] = _settled_flags(server_args, resolved, runner)
    info["start_seconds"] = {phase: round(spent, 3) for phase, spent in clock.seconds.items()}
    return scheduler, info


def build_follower(
    server_args: ServerArgs, place: RankPlace
) -> tuple[FollowerWorker, FollowerChannel]:
    """The worker of another rank, and where its plans come from."""
    runner = load_runner(server_args, place)[-1]
    return FollowerWorker(runner), open_follower_channel(place)


def load_runner(
    server_args: ServerArgs, place: RankPlace | None = None, clock: StartClock | None = None
) -> tuple[ServerArgs, ResolvedArgs, ModelConfig, ModelRunner]:
    """Settle the flags and load this rank's part of the model; also for tools that run without a scheduler."""
    clock = clock or StartClock.from_now()
    facts = collect_facts(server_args)
    resolved = resolve(server_args, facts)
    model_config = build_model_config(server_args, resolved)
    clock.lap("flags")
    # Read now, so that the time it takes, mostly the import of transformers, is nobody else's.
    logger.debug("The config is a %s", type(model_config.hf_config).__name__)
    clock.lap("config")
    facts, resolved = with_media_reserve(server_args, facts, resolved, model_config)
    resolved = with_usable_attention(server_args, facts, resolved, model_config)
    resolved = whole_prompts(resolved, model_config)
    resolved.log_decisions()
    server_args = resolved.apply_to(server_args)
    set_global_server_args_for_scheduler(server_args)
    clock.lap("flags")
    return (
        server_args,
        resolved,
        model_config,
        build_runner(server_args, resolved, model_config, place),
    )


def with_media_reserve(
    server_args: ServerArgs, facts: Facts, resolved: ResolvedArgs, model_config: ModelConfig
) -> tuple[Facts, ResolvedArgs]:
    """Resolved again for a model that takes media on a GPU: its tower needs memory, too."""
    if facts.device == "cpu" or not model_config.is_multimodal:
        return facts, resolved
    facts = dataclasses.replace(facts, takes_media=True)
    return facts, resolve(server_args, facts)


def with_usable_attention(
    server_args: ServerArgs, facts: Facts, resolved: ResolvedArgs, model_config: ModelConfig
) -> ResolvedArgs:
    """Resolved again without an attention backend that nobody asked for and that cannot run, until one can.

    It may have no kernels for the model, or its package cannot be imported, for instance because it was built for another torch.
    """
    while server_args.attention_backend is None:
        name, error = resolved.attention_backend, None
        reason = why_no_kernels(name, model_config)
        if reason is None and (error := why_not_imported(name)) is not None:
            reason = f"{name} cannot be imported"
        if reason is None:
            break
        facts = facts.without_attention(name, reason)
        resolved = resolve(server_args, facts)
        if error is not None:
            other = resolved.attention_backend
            logger.warning(
                "Attention backend %s is not used, %s takes its place: %s", name, other, error
            )
    return resolved


def whole_prompts(resolved: ResolvedArgs, model_config: ModelConfig) -> ResolvedArgs:
    """Without chunks for a model with cross-attention, whatever the flag says."""
    if not model_config.is_encoder_decoder or resolved.chunked_prefill_size < 0:
        return resolved
    line = "chunked_prefill_size=-1 (models with cross-attention compute prompts as a whole)"
    return dataclasses.replace(
        resolved, chunked_prefill_size=-1, decisions=(*resolved.decisions, line)
    )


def load_tokenizer(server_args: ServerArgs, resolved: ResolvedArgs) -> Any:
    """The model's tokenizer, None with `skip_tokenizer_init`."""
    if server_args.skip_tokenizer_init:
        return None
    return get_tokenizer(
        resolved.tokenizer_path,
        tokenizer_mode=server_args.tokenizer_mode,
        trust_remote_code=server_args.trust_remote_code,
    )


def end_ids(model_config: ModelConfig, tokenizer: Any) -> frozenset[int]:
    """Every id that ends a text: of config.json, generation_config.json and the tokenizer. Checkpoints often fill in only one."""
    own = None if tokenizer is None else tokenizer.eos_token_id
    return frozenset(model_config.hf_eos_token_id) | ({own} if own is not None else set())


def _retract_interval() -> int:
    return envs.SGLANG_TEST_RETRACT_INTERVAL.get() if envs.SGLANG_TEST_RETRACT.get() else 0


def _leading_worker(
    runner: ModelRunner, server_args: ServerArgs, resolved: ResolvedArgs, place: RankPlace | None
) -> Worker:
    worker = TpWorker(runner, seed=resolved.random_seed, check_nan=server_args.enable_nan_detection)
    if place is None or place.tp_size == 1:
        return worker
    channel = open_leader_channel(place)
    channel.watch(_end_process)
    return LeaderWorker(worker, channel)


def _end_process(reason: str) -> None:
    """A step that waits for a lost rank never returns, so nothing gentler than this is certain."""
    logger.error("%s; the server ends", reason)
    os._exit(1)


def build_model_config(server_args: ServerArgs, resolved: ResolvedArgs) -> ModelConfig:
    """The model's side of the flags. Raises ConfigError when the model cannot be cut into so many ranks."""
    model_config = ModelConfig(
        model_path=resolved.model_path,
        trust_remote_code=server_args.trust_remote_code,
        revision=server_args.revision,
        context_length=server_args.context_length,
        dtype=server_args.dtype,
        model_override_args=server_args.json_model_override_args,
        is_embedding=server_args.is_embedding,
        enable_multimodal=server_args.enable_multimodal,
        model_impl=server_args.model_impl,
        quantization=server_args.quantization,
    )
    model_config.check_tp_size(server_args.tp_size)
    return model_config


def build_runner(
    server_args: ServerArgs,
    resolved: ResolvedArgs,
    model_config: ModelConfig,
    place: RankPlace | None = None,
) -> ModelRunner:
    """The model on its device with pools and attention backend; also used by tools that run without a scheduler.

    Raises ConfigError for several ranks without a `place`: such a tool has one process.
    """
    if place is None and server_args.tp_size > 1:
        raise ConfigError(
            f"--tp {server_args.tp_size} needs a server or an Engine; this tool runs one rank, leave the flag out"
        )
    place = place or RankPlace()
    platform = create_platform(resolved.device, place.gpu(server_args))
    if platform.is_cpu:
        take_share(place.local_rank, place.ranks_per_node, resolved.num_cpus)
    if place.tp_size > 1:
        join_ranks(place, platform, not server_args.disable_custom_all_reduce)
    config = RunnerConfig(
        platform=platform,
        ranks_per_node=place.ranks_per_node,
        attention_backend=join_phases(
            resolved.prefill_attention_backend, resolved.decode_attention_backend
        ),
        page_size=resolved.page_size,
        max_running_requests=server_args.max_running_requests,
        max_total_tokens=server_args.max_total_tokens,
        mem_fraction_static=resolved.mem_fraction_static,
        longest_prefill=(
            model_config.context_len
            if resolved.chunked_prefill_size < 0
            else min(resolved.chunked_prefill_size, model_config.context_len)
        ),
        graph_batch_sizes=() if resolved.disable_cuda_graph else resolved.cuda_graph_bs,
        pad_graphs=not server_args.disable_cuda_graph_padding,
        kv_dtype=choose_kv_dtype(
            server_args.kv_cache_dtype,
            {
                resolved.attention_backend,
                resolved.prefill_attention_backend,
                resolved.decode_attention_backend,
            },
            platform,
            server_args.quantization_param_path,
        ),
        kv_scales_path=server_args.quantization_param_path,
    )
    load = LoadConfig(
        load_format=server_args.load_format,
        download_dir=server_args.download_dir,
        use_mmap=not server_args.weight_loader_disable_mmap,
    )
    return ModelRunner(config, model_config, load)


def _planner_config(
    server_args: ServerArgs, resolved: ResolvedArgs, runner: ModelRunner
) -> PlannerConfig:
    chunk = resolved.chunked_prefill_size
    return PlannerConfig(
        max_running=runner.max_running_requests,
        chunk_size=chunk if chunk > 0 else None,
        max_prefill_tokens=server_args.max_prefill_tokens,
        max_prefill_requests=server_args.prefill_max_requests,
        policy=server_args.schedule_policy,
        mixed_chunk=server_args.enable_mixed_chunk,
        conservativeness=server_args.schedule_conservativeness,
    )


def _cache(server_args: ServerArgs, runner: ModelRunner) -> KVCacheManager:
    return KVCacheManager(
        num_slots=runner.num_slots,
        page_size=server_args.page_size,
        max_requests=runner.max_running_requests,
        enable_prefix_cache=not server_args.disable_radix_cache,
        eviction_policy=server_args.radix_eviction_policy,
    )


def _grammars(
    server_args: ServerArgs,
    resolved: ResolvedArgs,
    tokenizer: Any,
    vocab_size: int,
    eos_ids: frozenset[int],
) -> GrammarManager:
    """The variables give the patience of a request as a number of looks at the compiler, and the time between two of them."""
    patience = (
        envs.SGLANG_GRAMMAR_POLL_INTERVAL.get() * envs.SGLANG_GRAMMAR_MAX_POLL_ITERATIONS.get()
    )
    options = GrammarOptions(
        any_whitespace=not server_args.constrained_json_disable_any_whitespace,
        whitespace_pattern=server_args.constrained_json_whitespace_pattern,
    )
    return GrammarManager(
        tokenizer,
        vocab_size,
        sorted(eos_ids),
        resolved.grammar_backend,
        options=options,
        compile_timeout=min(patience, COMPILE_TIMEOUT),
        queue_timeout=patience,
    )


def _info(model_config: ModelConfig, runner: ModelRunner) -> dict[str, Any]:
    longest = min(model_config.context_len, runner.max_total_num_tokens)
    return {
        "max_total_num_tokens": runner.max_total_num_tokens,
        "max_req_input_len": longest - 1,
        "max_running_requests": runner.max_running_requests,
        "context_len": model_config.context_len,
        "vocab_size": model_config.vocab_size,
        "num_embeddings": model_config.num_embeddings,
        "pid": os.getpid(),
    }


def _settled_flags(
    server_args: ServerArgs, resolved: ResolvedArgs, runner: ModelRunner
) -> dict[str, Any]:
    """What holds for the flags that can be left open, by their names, now that the model is there."""
    dtype, kv_dtype = str(runner.dtype).removeprefix("torch."), server_args.kv_cache_dtype
    graphs = runner.graphs
    return {
        **resolved.settled_flags(),
        "dtype": dtype,
        "kv_cache_dtype": dtype if kv_dtype == "auto" else kv_dtype,
        "quantization": runner.model_config.quantization,
        "context_length": runner.model_config.context_len,
        "max_total_tokens": runner.max_total_num_tokens,
        "disable_cuda_graph": graphs is None,
        "cuda_graph_bs": [] if graphs is None else list(graphs.batch_sizes),
    }
