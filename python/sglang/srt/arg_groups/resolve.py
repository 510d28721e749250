"""Settles every "auto" once, in one pass: `resolve(server_args, facts)` is pure and returns a frozen value.

Facts about the machine are collected apart, so that every decision can be tested without the hardware.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import random
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from sglang.srt.arg_groups.attention_choice import (
    default_attention_backend,
    installed_attention_packages,
)
from sglang.srt.utils.cuda_probe import why_no_cuda
from sglang.srt.utils.errors import ConfigError

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs

logger = logging.getLogger(__name__)
T = TypeVar("T")

GIB = 1024  # in MiB, the unit of memory here
_UNKNOWN_MEMORY_FRACTION = 0.88
# MiB for each prompt token of a step. A token of a picture stands for up to four patches; each keeps its pixels
# (1,176 float32 and a copy), about six vectors of the tower's width and two of its MLP's: some 40 KiB in bfloat16, 0.16 MiB
# a token. Media that a step only begins are computed whole, but 4,096 tokens or one picture at a time
# (`multimodal/tower_calls.py`): 0.6 GiB, or 2.6 GiB for the largest picture of Qwen2.5-VL, and the rows of the step's media beside
# it. `test/gpu/media_memory.py` measures that.
_MEDIA_RESERVE = 0.5
_WIDE_DTYPES = ("float", "float32")
_NO_GRAPH_BACKENDS = ("torch_native", "flex_attention")


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of the machine and, once it has been looked at, of the model: the only input of a decision besides the flags."""

    device: str  # cpu or cuda
    device_memory_mib: int | None  # of one device; None when unknown, as on CPU
    num_cpus: int
    random_seed: int  # drawn once, used when no seed is given
    device_reason: str = "auto"  # why an open --device became this one
    compute_capability: tuple[int, int] | None = None  # of the first GPU
    takes_media: bool = False  # the model, beside text; known once its config has been read
    # Attention backends that are installed but cannot run here or have no kernels for the model, and why.
    unusable_attention: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def without_attention(self, name: str, reason: str) -> Facts:
        """The same with one more backend that is not to be chosen."""
        unusable = {**self.unusable_attention, name: reason}
        return dataclasses.replace(self, unusable_attention=unusable)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResolvedArgs:
    """Every value that "auto" or an unset flag stands for. Names shared with ServerArgs mean the same."""

    model_path: str
    tokenizer_path: str
    served_model_name: str
    device: str
    random_seed: int
    page_size: int
    chunked_prefill_size: int  # -1: whole prompts
    mem_fraction_static: float
    attention_backend: str
    prefill_attention_backend: str
    decode_attention_backend: str
    sampling_backend: str
    grammar_backend: str
    disable_cuda_graph: bool
    cuda_graph_max_bs: int
    cuda_graph_bs: tuple[int, ...]
    overlap_depth: int  # steps launched before the last result is read
    num_cpus: int  # of each rank
    decisions: tuple[str, ...]  # one line each, for the log

    def apply_to(self, server_args: ServerArgs) -> ServerArgs:
        """A copy of the flags with every "auto" filled in, for the scheduler process and for model files."""
        return dataclasses.replace(server_args, **self.settled_flags())

    def settled_flags(self) -> dict[str, Any]:
        """The values that are flags, by the flag's name; ready for JSON, as the front shows them in `/server_info`."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name in ("overlap_depth", "num_cpus", "decisions"):
            del values[name]
        return {
            **values,
            "cuda_graph_bs": list(self.cuda_graph_bs),
            "disable_overlap_schedule": self.overlap_depth == 0,
        }

    def log_decisions(self) -> None:
        for line in self.decisions:
            logger.info(line)


def collect_facts(server_args: ServerArgs) -> Facts:
    """Look at the machine. Imports torch unless `--device cpu` makes that needless.

    Raises ConfigError when `--device cuda` is asked for and there is no usable GPU.
    """
    device, memory, reason = server_args.device, None, "auto"
    if device != "cpu":
        device, memory, reason = _probe_cuda(device, _gpu_ids(server_args))
    return Facts(
        device=device,
        device_memory_mib=memory,
        num_cpus=_num_cpus(),
        random_seed=random.SystemRandom().randrange(2**30),
        device_reason=reason,
        compute_capability=_capability(_gpu_ids(server_args)) if device == "cuda" else None,
    )


def resolve(server_args: ServerArgs, facts: Facts) -> ResolvedArgs:
    """Settle every open value. Pure: the same flags and facts give the same result."""
    log = _Decisions()
    args = server_args
    assert args.model_path is not None, "ServerArgs fills in the demo model"
    if args.uses_demo_model:
        log.note(f"model_path={args.model_path} (no --model-path given: the demo model)")
    device = log.choose(
        "device", None if args.device == "auto" else args.device, facts.device, facts.device_reason
    )
    memory = facts.device_memory_mib
    size = _memory_words(memory)
    chunk = log.choose(
        "chunked_prefill_size",
        args.chunked_prefill_size,
        chunk_for_memory(memory, args.page_size),
        size,
    )
    max_bs = log.choose(
        "cuda_graph_max_bs",
        args.cuda_graph_max_bs or max(args.cuda_graph_bs or (), default=None),
        graph_max_bs_for_memory(memory, args.tp_size),
        size,
    )
    fraction = log.choose(
        "mem_fraction_static",
        args.mem_fraction_static,
        args.mem_fraction_static
        or memory_fraction(memory, chunk, max_bs, args.tp_size * args.pp_size, facts.takes_media),
        f"{size}, the model takes media" if facts.takes_media else size,
    )
    attention = _resolve_attention(args, device, facts, log)
    prefill = _phase_attention(args.prefill_attention_backend, attention)
    decode = _phase_attention(args.decode_attention_backend, attention)
    return ResolvedArgs(
        model_path=args.model_path,
        tokenizer_path=args.tokenizer_path or args.model_path,
        served_model_name=args.served_model_name or args.model_path,
        device=device,
        random_seed=log.choose("random_seed", args.random_seed, facts.random_seed, "random"),
        page_size=args.page_size,
        chunked_prefill_size=chunk,
        mem_fraction_static=fraction,
        attention_backend=attention,
        prefill_attention_backend=prefill,
        decode_attention_backend=decode,
        sampling_backend=log.choose(
            "sampling_backend", args.sampling_backend, "pytorch", "always there"
        ),
        grammar_backend=args.grammar_backend,
        disable_cuda_graph=_resolve_no_graphs(args.disable_cuda_graph, device, decode, log),
        cuda_graph_max_bs=max_bs,
        cuda_graph_bs=tuple(sorted(set(args.cuda_graph_bs or graph_batch_sizes(max_bs)))),
        overlap_depth=_resolve_overlap(args.disable_overlap_schedule, device, log),
        num_cpus=max(facts.num_cpus // (args.tp_size // args.nnodes), 1),
        decisions=tuple(log.lines),
    )


class _Decisions:
    """Collects one line per value that the user left open."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def choose(self, name: str, given: T | None, computed: T, reason: str) -> T:
        if given is not None:
            return given
        self.note(f"{name}={computed} ({reason})")
        return computed

    def note(self, line: str) -> None:
        self.lines.append(line)


# Rules, each a function of plain numbers


def chunk_for_memory(memory_mib: int | None, page_size: int) -> int:
    """Prefill chunk in tokens for a device of this memory, rounded down to whole pages (at least one)."""
    if memory_mib is None:
        chunk = 4096
    elif memory_mib < 35 * GIB:
        chunk = 2048
    elif memory_mib < 60 * GIB:
        chunk = 4096
    elif memory_mib < 160 * GIB:
        chunk = 8192
    else:
        chunk = 16384
    return max(chunk // page_size, 1) * page_size


def graph_max_bs_for_memory(memory_mib: int | None, tp_size: int) -> int:
    """Largest batch worth capturing: several GPUs leave more memory per GPU for it."""
    if memory_mib is None:
        return 160
    bands = ((20, 8, 8), (35, 24, 80), (60, 32, 160), (160, 256, 512))
    for limit_gib, few_gpus, many_gpus in bands:
        if memory_mib < limit_gib * GIB:
            return few_gpus if tp_size < 4 else many_gpus
    return 512


def memory_fraction(
    memory_mib: int | None,
    chunked_prefill_size: int,
    cuda_graph_max_bs: int,
    num_ranks: int,
    takes_media: bool = False,
) -> float:
    """Share for weights and KV cache: what activations, graphs and the tower of media need is kept back."""
    if memory_mib is None:
        return _UNKNOWN_MEMORY_FRACTION
    tokens = max(chunked_prefill_size, 2048)
    reserve = 512 + 1.5 * tokens + 2 * cuda_graph_max_bs + 128 * num_ranks
    if memory_mib > 60 * GIB:
        reserve = max(reserve, 10 * GIB)
    if takes_media:
        reserve += _MEDIA_RESERVE * tokens
    if reserve >= memory_mib:
        raise ConfigError(
            f"a device with {memory_mib} MiB is too small for --chunked-prefill-size "
            f"{chunked_prefill_size} and --cuda-graph-max-bs {cuda_graph_max_bs}; "
            "lower them or set --mem-fraction-static"
        )
    return round((memory_mib - reserve) / memory_mib, 3)


def graph_batch_sizes(max_bs: int) -> list[int]:
    """Captured batch sizes up to `max_bs`: dense where padding costs most."""
    sizes = [1, 2, 4, 8, 12, *range(16, 129, 8), *range(144, 512, 16), *range(512, max_bs + 1, 32)]
    return [size for size in sizes if size <= max_bs]


def _resolve_attention(args: ServerArgs, device: str, facts: Facts, log: _Decisions) -> str:
    requested = args.attention_backend
    if requested == "intel_amx":
        logger.warning(
            "--attention-backend intel_amx is not implemented; torch_native takes its place"
        )
        return "torch_native"
    packages = installed_attention_packages()
    if args.dtype in _WIDE_DTYPES or args.kv_cache_dtype.startswith("fp8"):
        packages &= {"triton"}  # the others have no kernels for these
    found, reason = default_attention_backend(
        device, facts.compute_capability, packages, unusable=facts.unusable_attention
    )
    return log.choose("attention_backend", requested, found, reason)


def _phase_attention(requested: str | None, attention: str) -> str:
    if requested is None:
        return attention
    return "torch_native" if requested == "intel_amx" else requested


def _resolve_no_graphs(disabled: bool, device: str, backend: str, log: _Decisions) -> bool:
    if disabled:
        return True
    if device == "cpu" or backend in _NO_GRAPH_BACKENDS:
        log.note(f"disable_cuda_graph=True (no graphs with {backend} on {device})")
        return True
    return False


def _resolve_overlap(disabled: bool, device: str, log: _Decisions) -> int:
    if disabled:
        return 0
    # On CPU the model and the scheduler share the cores: there is nothing to overlap with.
    return log.choose("overlap_depth", None, 0 if device == "cpu" else 1, f"device {device}")


def _memory_words(memory_mib: int | None) -> str:
    return "device memory unknown" if memory_mib is None else f"device memory {memory_mib} MiB"


def _num_cpus() -> int:
    """Cores that this process may use, which a container may have narrowed."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpu_ids(args: ServerArgs) -> range:
    """The GPUs of this machine's ranks."""
    return range(
        args.base_gpu_id,
        args.base_gpu_id + args.tp_size // args.nnodes * args.gpu_id_step,
        args.gpu_id_step,
    )


def _capability(gpu_ids: range) -> tuple[int, int]:
    import torch

    return torch.cuda.get_device_capability(gpu_ids[0])


def _probe_cuda(requested: str, gpu_ids: range) -> tuple[str, int | None, str]:
    """The device, its memory in MiB, and why it is that one."""
    import torch  # late: the command line must answer without it

    if not torch.cuda.is_available():
        reason = why_no_cuda()
        if requested == "cuda":
            raise ConfigError(
                f"--device cuda: torch sees no usable GPU: {reason}. Mend that, or use --device cpu or auto"
            )
        return "cpu", None, f"torch sees no usable GPU: {reason}"
    found = torch.cuda.device_count()
    if gpu_ids[-1] >= found:
        ranks = f" and {len(gpu_ids)} ranks on this machine" if len(gpu_ids) > 1 else ""
        raise ConfigError(
            f"--base-gpu-id {gpu_ids[0]}{ranks}: torch sees {found} GPU(s), counted from 0"
        )
    memory = torch.cuda.get_device_properties(gpu_ids[0]).total_memory // 2**20
    return "cuda", memory, "torch sees a GPU"
