"""Decode steps (and short prefills) as captured CUDA graphs: one launch in place of several hundred.

A graph is captured for each of a few batch sizes. A step of B requests is copied into static buffers, padded to the next captured
size, and replayed. Padding requests read one slot and write to the padding page; nothing reads what they compute. Captures share
one memory pool, so that together they take what the largest needs.
"""

from __future__ import annotations

import bisect
import contextlib
import gc
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.layers.moe.fused_moe_triton import FusedMoE
from sglang.srt.layers.triton_ops import has_triton
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode
from sglang.srt.model_executor.graph_capture import capture_graph
from sglang.srt.model_executor.kernel_rehearsal import OURS, KernelRehearsal
from sglang.srt.model_executor.prefill_graph_runner import TOKEN_COUNTS, PrefillGraphRunner
from sglang.srt.platforms import Platform
from sglang.srt.platforms.device_errors import is_out_of_memory
from sglang.srt.utils.errors import ConfigError
from sglang.srt.utils.start_clock import StartClock

logger = logging.getLogger(__name__)

# Decodes of up to so many requests are a chain of short kernels, in which ours begin while the one before still runs.
SMALL_DECODE = 4

_is_capturing = False


def get_is_capture_mode() -> bool:
    """True while graphs are being captured, their warm-up included."""
    return _is_capturing


@dataclass(frozen=True)
class GraphConfig:
    """Which batch sizes to capture, ascending. Without `pad` a step runs in a graph only at its exact size.

    `has_mrope`: the model turns queries and keys by three positions (time, height, width). `rehearse`: see `may_rehearse`.
    """

    batch_sizes: tuple[int, ...]
    pad: bool = True
    has_mrope: bool = False
    rehearse: bool = False


@dataclass
class _Captured:
    graph: torch.cuda.CUDAGraph
    batch: ForwardBatch  # over the static buffers
    output: LogitsProcessorOutput


class CudaGraphRunner:
    """Captures at construction, replays afterwards.

    Args:
        config: the batch sizes.
        forward: runs the model on a batch whose attention metadata are ready; returns its output.
        backend: attends in decodes of more than SMALL_DECODE requests.
        pools: the fields of a batch that name the pools.
        platform: the device, and its memory figures.
        small_backend: attends in smaller decodes and in prefills; None: `backend` attends in all decodes, prefills are not captured.
        launch_more: launches kernels of steps that are not captured, to be compiled with the others in a rehearsal.

    Raises RuntimeError when the model does something that cannot be captured, torch.OutOfMemoryError when memory runs out.
    """

    def __init__(
        self,
        config: GraphConfig,
        forward: Callable[[ForwardBatch], LogitsProcessorOutput],
        backend: AttentionBackend,
        pools: dict[str, Any],
        platform: Platform,
        small_backend: AttentionBackend | None = None,
        launch_more: Callable[[], None] | None = None,
    ) -> None:
        self._sizes = list(config.batch_sizes)
        self._pad = config.pad
        self._has_mrope = config.has_mrope
        self._rehearse = config.rehearse
        self._forward = forward
        self._backend = backend
        self._small_backend = small_backend
        self._launch_more = launch_more
        self._pools = pools
        self._platform = platform
        self._padding_len = backend.get_cuda_graph_seq_len_fill_value()
        from sglang.srt.layers.triton_ops import graph_inputs

        self._lines = graph_inputs
        largest = self._sizes[-1]
        num_lines = graph_inputs.AXES.stop if config.has_mrope else graph_inputs.NUM_LINES
        shape = (num_lines, -(-largest // 16) * 16)  # lines start at whole 128 bytes
        self._buffer = torch.zeros(shape, dtype=torch.int64, device=platform.device)
        self._buffer[graph_inputs.SEQ_LENS] = self._padding_len
        self._captured: dict[int, _Captured] = {}
        self._prefill: PrefillGraphRunner | None = None
        self.num_bytes = 0
        self._capture_all()

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Numbers of requests that decode steps are captured for, ascending."""
        return tuple(self._sizes)

    # --- replay

    def can_replay(self, batch: ForwardBatch) -> bool:
        """Is it a plain decode of a captured size, or a small prefill?"""
        if batch.forward_mode.is_extend():
            return self._prefill is not None and self._prefill.can_replay(batch)
        return (
            batch.forward_mode.is_decode()
            and self._size_for(batch.batch_size) is not None
            and batch.spec_info is None
            and batch.encoder_lens_cpu is None
            and batch.encoder_lens is None
            and batch.input_embeds is None
            and batch.mm_input_embeds is None
            and (batch.mrope_positions is not None) == self._has_mrope
            and not batch.capture_hidden_mode.need_capture()
        )

    def replay(self, batch: ForwardBatch) -> LogitsProcessorOutput:
        """The output of the model for the real requests. Its tensors are overwritten by the next replay."""
        if batch.forward_mode.is_extend():
            assert self._prefill is not None, "prefills are not captured"
            return self._prefill.replay(batch)
        size = self._size_for(batch.batch_size)
        assert size is not None, f"no graph for a batch of {batch.batch_size}"
        captured = self._captured[size]
        static = captured.batch
        self._fill(batch, size)
        self._backend_for(size).init_forward_metadata_replay_cuda_graph(
            size,
            static.req_pool_indices,
            static.seq_lens,
            batch.seq_lens_sum,
            None,
            ForwardMode.DECODE,
            None,
            batch.seq_lens_cpu,
        )
        captured.graph.replay()
        logits = captured.output.next_token_logits
        assert logits is not None, "the captured model has no logits"
        return LogitsProcessorOutput(logits[: batch.batch_size])

    def _fill(self, batch: ForwardBatch, size: int) -> None:
        """Copy `batch` into the static buffers, padded to `size`."""
        self._lines.fill_graph_inputs(
            self._buffer,
            batch.input_ids,
            batch.req_pool_indices,
            batch.seq_lens,
            batch.positions,
            batch.out_cache_loc,
            size,
            self._padding_len,
            batch.mrope_positions,
        )

    def release(self) -> None:
        """Give the graphs back, before the communication library ends: it waits for those that hold its collectives."""
        for captured in self._captured.values():
            captured.graph.reset()
        self._captured.clear()
        if self._prefill is not None:
            self._prefill.release()

    def _size_for(self, batch_size: int) -> int | None:
        index = bisect.bisect_left(self._sizes, batch_size)
        if index == len(self._sizes):
            return None
        size = self._sizes[index]
        return size if self._pad or size == batch_size else None

    # --- capture

    def _capture_all(self) -> None:
        """Largest first: the later ones fit into its memory."""
        started, free = time.perf_counter(), self._platform.free_memory()
        sizes = self._sizes
        logger.info("Capture cuda graph begin. bs=%s, avail mem=%.2f GiB", sizes, free / 2**30)
        for backend in {self._backend_for(size) for size in sizes}:
            backend.init_cuda_graph_state(sizes[-1], sizes[-1])
        pool = torch.cuda.graph_pool_handle()
        stream = torch.cuda.Stream(self._platform.device)
        stream.wait_stream(torch.cuda.current_stream())
        clock = StartClock.from_now()
        with _capture_mode(), torch.cuda.stream(stream):
            prefill = self._create_prefill_runner()
            if self._rehearse and prefill is not None:
                self._compile_ahead(prefill)
                clock.lap("kernels")
            for size in reversed(sizes):
                self._captured[size] = self._capture(size, pool)
            clock.lap("decode")
            if prefill is not None and self._capture_prefills(prefill, pool):
                self._prefill = prefill
            clock.lap("prefill")
        torch.cuda.current_stream().wait_stream(stream)
        self.num_bytes = max(0, free - self._platform.free_memory())
        logger.info(
            "Capture cuda graph end. Time elapsed: %.2f s: %s. mem usage=%.2f GiB. avail mem=%.2f GiB",
            time.perf_counter() - started,
            clock,
            self.num_bytes / 2**30,
            self._platform.free_memory() / 2**30,
        )

    def _create_prefill_runner(self) -> PrefillGraphRunner | None:
        """None where no backend can capture prefills."""
        if self._small_backend is None:
            return None
        return PrefillGraphRunner(
            self._forward,
            self._small_backend,
            self._pools,
            self._platform.device,
            self._has_mrope,
        )

    def _compile_ahead(self, prefill: PrefillGraphRunner) -> None:
        """Compile together what the captures and a replay need. Sizes between these have the kernels of a neighbour.

        Triton attends in all of them: a package's kernels would run, on pages that ours had not listed.
        """
        rehearsal = KernelRehearsal()
        try:
            with rehearsal.pretend():
                self._rehearse_steps(prefill)
            num_kernels = len(rehearsal)
            spent = rehearsal.compile(self._platform.device)
        except Exception as error:  # boundary of a shortcut: what matters comes up again
            reason = f"{type(error).__name__}: {error}"
            logger.warning("Kernels are compiled one by one, not together: %s", reason)
            return
        logger.info("Compiled or read %d kernels in %.2f s", num_kernels, spent)

    def _rehearse_steps(self, prefill: PrefillGraphRunner) -> None:
        """What takes the longest to compile comes first: attention, that of prefills before that of decodes."""
        # Whatever a model file cannot do comes up again at the capture, which says so and goes on without prefills.
        with contextlib.suppress(Exception):
            for count in (TOKEN_COUNTS[-1], TOKEN_COUNTS[0]):
                self._forward(prefill.lay_out(count))
        for size in _sizes_that_differ(self._sizes):
            self._forward(self._lay_out(size, prefill.backend))
        self._fill(self._static_batch(self._sizes[0], prefill.backend), self._sizes[0])
        if self._launch_more is not None:
            self._launch_more()

    def _capture_prefills(self, runner: PrefillGraphRunner, pool: Any) -> bool:
        """False where the model cannot."""
        try:
            for count in reversed(TOKEN_COUNTS):
                runner.capture(count, pool)
        except Exception as error:  # a model file may read what a captured prefill does not have
            if is_out_of_memory(error) or isinstance(error, ConfigError):
                raise
            logger.warning("Short prefills are not captured: %s: %s", type(error).__name__, error)
            return False
        return True

    def _lay_out(self, size: int, backend: AttentionBackend) -> ForwardBatch:
        """The static batch of `size` requests, and its attention metadata, made the current ones."""
        batch = self._static_batch(size, backend)
        backend.init_forward_metadata_capture_cuda_graph(
            size, size, batch.req_pool_indices, batch.seq_lens, None, ForwardMode.DECODE, None
        )
        return batch

    def _capture(self, size: int, pool: Any) -> _Captured:
        batch = self._lay_out(size, self._backend_for(size))

        def warm_up() -> None:
            self._forward(batch)
            if not self._captured:
                with _no_synchronisation():
                    self._forward(batch)

        graph, output = capture_graph(
            f"capturing decode steps of {size} requests",
            pool,
            warm_up,
            lambda: self._forward(batch),
        )
        return _Captured(graph, batch, output)

    def _static_batch(self, size: int, backend: AttentionBackend) -> ForwardBatch:
        lines = self._buffer[:, :size]
        ids, rows, lens, positions, slots = lines[: self._lines.NUM_LINES].unbind()
        return ForwardBatch(
            forward_mode=ForwardMode.DECODE,
            batch_size=size,
            input_ids=ids,
            req_pool_indices=rows,
            seq_lens=lens,
            seq_lens_cpu=torch.full((size,), self._padding_len, dtype=torch.int64),
            seq_lens_sum=size * self._padding_len,
            out_cache_loc=slots,
            positions=positions,
            mrope_positions=lines[self._lines.AXES] if self._has_mrope else None,
            attn_backend=backend,
            **self._pools,
        )

    def _backend_for(self, size: int) -> AttentionBackend:
        """What attends in a captured decode of `size` requests."""
        small = self._small_backend
        return small if small is not None and size <= SMALL_DECODE else self._backend


def _sizes_that_differ(sizes: list[int]) -> list[int]:
    """Of the ascending `sizes` the largest up to each power of two: tiles are chosen for these."""
    return list({(size - 1).bit_length(): size for size in sizes}.values())


def may_rehearse(model: nn.Module) -> bool:
    """Whether steps may run with our kernels left out.

    The choices of experts' routers, which are not written then, are indices. Our kernels that read them are left out as well; a model
    file of others may read them itself.
    """
    has_experts = any(isinstance(module, FusedMoE) for module in model.modules())
    return not has_experts or type(model).__module__.startswith(OURS)


def why_not_captured(model: nn.Module) -> str | None:
    """What in `model` keeps its decode steps out of graphs; None when nothing is known to."""
    if not has_triton():
        return "the package triton is not installed"
    layers = (module for module in model.modules() if isinstance(module, FusedMoE))
    reasons = ((layer.prefix or "experts", layer.why_waits_for_host()) for layer in layers)
    return next(
        (
            f"its experts ({name}) read the router's choices on the host: {reason}"
            for name, reason in reasons
            if reason is not None
        ),
        None,
    )


@contextlib.contextmanager
def _capture_mode() -> Iterator[None]:
    """Inside, `get_is_capture_mode` is true and no garbage is collected: freed memory would be part of a graph."""
    global _is_capturing
    was_collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    _is_capturing = True
    try:
        yield
    finally:
        _is_capturing = False
        if was_collecting:
            gc.enable()


@contextlib.contextmanager
def _no_synchronisation() -> Iterator[None]:
    """Makes a hidden wait for the device an error here, where it is still harmless."""
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)
