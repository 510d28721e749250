"""Small helpers that model files and the runtime share.

Nothing here imports torch when the module is loaded: the front process imports this package too.
"""

from __future__ import annotations

import functools
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("sglang.srt.utils")

T = TypeVar("T")

_TRUE_WORDS = ("true", "1", "yes", "y")
_FALSE_WORDS = ("false", "0", "no", "n")


# Names and layers


def add_prefix(name: str | int, prefix: str) -> str:
    """The dotted module name of a child: `prefix.name`, or `name` at the top."""
    return f"{prefix}.{name}" if prefix else str(name)


def make_layers(
    num_hidden_layers: int,
    layer_fn: Callable[..., torch.nn.Module],
    pp_rank: int | None = None,
    pp_size: int | None = None,
    prefix: str = "",
    return_tuple: bool = False,
    offloader_kwargs: dict[str, Any] | None = None,
) -> Any:
    """See `sglang.srt.utils.layer_list.make_layers`."""
    # Imported here because it needs torch.
    from sglang.srt.utils import layer_list

    return layer_list.make_layers(
        num_hidden_layers, layer_fn, pp_rank, pp_size, prefix, return_tuple, offloader_kwargs
    )


# What the machine is. Each answer is computed once per process.


@functools.cache
def is_cuda() -> bool:
    """True with an NVIDIA GPU that torch can use."""
    import torch  # late: this module must load without torch

    return torch.version.cuda is not None and torch.cuda.is_available()


@functools.cache
def is_hip() -> bool:
    """True with an AMD GPU that torch can use."""
    import torch

    return torch.version.hip is not None and torch.cuda.is_available()


@functools.cache
def is_xpu() -> bool:
    """True with an Intel GPU that torch can use."""
    import torch

    return torch.xpu.is_available()


def is_npu() -> bool:
    """Always False: Ascend devices are not supported."""
    return False


def is_cpu() -> bool:
    """True when there is no accelerator, so that everything runs on the host."""
    return not (is_cuda() or is_hip() or is_xpu())


def cpu_has_amx_support() -> bool:
    """Always False: no weight is packed for AMX tiles; torch's own matrix products use them as they see fit."""
    return False


def use_intel_amx_backend(layer: Any) -> bool:
    """Always False: linear layers use torch's own matrix products, which choose AMX themselves."""
    return False


@functools.cache
def get_device_capability() -> tuple[int, int]:
    """CUDA compute capability, e.g. (9, 0) for Hopper; (0, 0) without an NVIDIA GPU."""
    if not is_cuda():
        return (0, 0)
    import torch

    return torch.cuda.get_device_capability()


def get_device_sm() -> int:
    """Compute capability as one number: 90 for Hopper, 0 without an NVIDIA GPU."""
    major, minor = get_device_capability()
    return major * 10 + minor


def is_sm90_supported() -> bool:
    return get_device_capability()[0] == 9


def is_sm100_supported() -> bool:
    return get_device_capability()[0] == 10


def is_sm120_supported() -> bool:
    return get_device_capability()[0] == 12


def is_gfx95_supported() -> bool:
    """Always False: AMD's MI350 series is not supported."""
    return False


@functools.cache
def is_nvidia_cublas_version_ge_12_9() -> bool:
    """True when torch brings cuBLAS of CUDA 12.9 or newer."""
    import torch

    version = torch.version.cuda
    return version is not None and tuple(map(int, version.split(".")[:2])) >= (12, 9)


def is_flashinfer_available() -> bool:
    """Always False: layers use no FlashInfer kernels; its attention is a backend of its own."""
    return False


def get_compiler_backend() -> str:
    """Backend name for `torch.compile`."""
    return "inductor"


def get_current_device_stream_fast() -> Any:
    """The current CUDA stream, or None on the host."""
    if not (is_cuda() or is_hip()):
        return None
    import torch

    return torch.cuda.current_stream()


# Environment


def get_bool_env_var(name: str, default: str = "false") -> bool:
    """The variable as a truth value. Raises ValueError for a word that is neither."""
    word = os.environ.get(name, default).strip().lower()
    if word not in _TRUE_WORDS + _FALSE_WORDS:
        allowed = ", ".join(_TRUE_WORDS + _FALSE_WORDS)
        raise ValueError(f"environment variable {name}={word!r} is invalid; allowed: {allowed}")
    return word in _TRUE_WORDS


def get_int_env_var(name: str, default: int = 0) -> int:
    """The variable as an integer; unset or blank gives the default. Raises ValueError otherwise."""
    raw = os.environ.get(name, "").strip()
    if not raw:
        return default
    try:
        return int(raw)
    except ValueError as error:
        raise ValueError(
            f"environment variable {name}={raw!r} is invalid; it must be an integer"
        ) from error


# Values and tensors


class LazyValue(Generic[T]):
    """A value that is computed on the first read of `.value` and kept."""

    def __init__(self, creator: Callable[[], T]) -> None:
        self._creator: Callable[[], T] | None = creator
        self._value: T | None = None

    @property
    def value(self) -> T:
        if self._creator is not None:
            self._value = self._creator()
            self._creator = None  # frees what the creator holds on to
        return self._value  # type: ignore[return-value]


class BumpAllocator:
    """Hands out consecutive slices of one zeroed buffer; nothing is ever given back."""

    def __init__(self, buffer_size: int, dtype: torch.dtype, device: torch.device | str) -> None:
        import torch

        self._buffer = torch.zeros(buffer_size, dtype=dtype, device=device)
        self._used = 0

    def allocate(self, size: int) -> torch.Tensor:
        """A zeroed slice [size]. Raises ValueError when the buffer is exhausted."""
        start, end = self._used, self._used + size
        if end > self._buffer.numel():
            raise ValueError(
                f"cannot allocate {size} elements: {start} of {self._buffer.numel()} are in use"
            )
        self._used = end
        return self._buffer[start:end]


def bind_or_assign(target: torch.Tensor | None, source: torch.Tensor) -> torch.Tensor:
    """Copy `source` into `target` when there is one; return the tensor to keep."""
    if target is None:
        return source
    target.copy_(source)
    return target


def set_weight_attrs(weight: torch.Tensor, weight_attrs: dict[str, Any] | None) -> None:
    """Set attributes on a parameter. An attribute that exists already is a programming error."""
    for key, value in (weight_attrs or {}).items():
        assert key not in weight.__dict__, f"the weight already has an attribute {key!r}"
        setattr(weight, key, value)


def flatten_nested_list(nested_list: Any) -> list[Any]:
    """All leaves of nested lists, in order; something that is no list becomes `[it]`."""
    if not isinstance(nested_list, list):
        return [nested_list]
    return [leaf for item in nested_list for leaf in flatten_nested_list(item)]


def fast_topk(values: torch.Tensor, topk: int, dim: int = -1) -> tuple[torch.Tensor, torch.Tensor]:
    """`torch.topk` that uses the cheaper `max` for k = 1."""
    if topk == 1:
        return values.max(dim=dim, keepdim=True)
    return values.topk(topk, dim=dim)


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least `n`; 1 for n <= 1."""
    return 1 << (n - 1).bit_length() if n > 1 else 1


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def ceil_align(a: int, b: int) -> int:
    """`a` rounded up to a multiple of `b`."""
    return ceil_div(a, b) * b


def is_non_idle_and_non_empty(forward_mode: Any, hidden_states: torch.Tensor) -> bool:
    """True when a layer has real tokens to work on."""
    return forward_mode is not None and not forward_mode.is_idle() and hidden_states.shape[0] > 0


# Logging


@functools.cache
def print_warning_once(msg: str) -> None:
    """Log a warning the first time that this very text is given."""
    logger.warning(msg)


def print_info_once(msg: str) -> None:
    """Log an info line the first time that this very text is given."""
    _print_info_once(msg)


@functools.cache
def _print_info_once(msg: str) -> None:
    logger.info(msg)


def log_info_on_rank0(log: logging.Logger, msg: str) -> None:
    """Log an info line in the process with global rank 0 only."""
    if "torch" not in sys.modules:
        log.info(msg)
        return
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0:
        log.info(msg)


def rank0_log(msg: str) -> None:
    """Log an info line of this package in the process with global rank 0 only."""
    log_info_on_rank0(logger, msg)


# Processes


def kill_process_tree(
    parent_pid: int | None, include_parent: bool = True, skip_pid: int | None = None
) -> None:
    """Send SIGKILL to all descendants of a process, then to itself.

    `parent_pid=None` means the current process and spares it (only its descendants end).
    `skip_pid` spares one descendant. Processes that are gone already are no error.
    """
    if parent_pid is None:
        parent_pid, include_parent = os.getpid(), False
    for pid in list_descendants(parent_pid):
        if pid != skip_pid:
            _kill(pid)
    if include_parent:
        _kill(parent_pid)


def list_descendants(pid: int) -> list[int]:
    """Process ids of all children, grandchildren, ... of `pid`, deepest last."""
    children: dict[int, list[int]] = {}
    for child, parent in _list_process_parents():
        children.setdefault(parent, []).append(child)
    found: list[int] = []
    queue = [pid]
    while queue:
        below = children.get(queue.pop(0), [])
        found += below
        queue += below
    return found


def _list_process_parents() -> Iterable[tuple[int, int]]:
    if os.path.isdir("/proc/self"):
        return _read_proc_parents()
    command = ["ps", "-A", "-o", "pid=,ppid="]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [(int(a), int(b)) for a, b in map(str.split, output.splitlines())]


def _read_proc_parents() -> Iterable[tuple[int, int]]:
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as file:
                # The second field is the command in parentheses and may hold anything.
                fields = file.read().rpartition(")")[2].split()
        except OSError:  # the process ended while we looked
            continue
        yield int(entry), int(fields[1])


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
