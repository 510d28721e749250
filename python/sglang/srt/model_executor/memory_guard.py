"""Running out of memory at start, in words: how much there is, who holds it, what was needed and which flags help."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from sglang.srt.model_loader.weight_utils import find_checkpoint_files, local_checkpoint_folder
from sglang.srt.platforms.device_errors import is_out_of_memory, tried_to_allocate
from sglang.srt.utils.errors import ConfigError

if TYPE_CHECKING:
    from sglang.srt.configs.load_config import LoadConfig
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.platforms import Platform

FOR_POOL = "Lower --mem-fraction-static or --max-total-tokens."
FOR_ATTENTION = "Lower --mem-fraction-static or --max-running-requests."
FOR_CAPTURE = "Lower --mem-fraction-static or --cuda-graph-max-bs, or pass --disable-cuda-graph."


class MemoryGuard:
    """Turns running out of memory into a ConfigError. Make it before the first allocation: it notes what is free then."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._total = platform.total_memory()
        self._free_at_start = platform.free_memory()

    @contextlib.contextmanager
    def phase(self, doing: str, advice: str | Callable[[], str]) -> Iterator[None]:
        """Inside, an error for want of memory becomes a ConfigError that begins with `out of memory while {doing}`."""
        try:
            yield
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            words = advice if isinstance(advice, str) else advice()
            raise ConfigError(
                f"out of memory while {doing} ({tried_to_allocate(error)}). {self.account()} {words}"
            ) from error

    def account(self) -> str:
        """One or two sentences about the memory of the device."""
        free = self._platform.free_memory()
        text = f"{self._device} has {_gib(self._total)}, of which {_gib(free)} are free now."
        in_use = self._total - self._free_at_start
        if self._platform.is_cuda:
            text += f" {_gib(in_use)} were in use before the server allocated anything."
        return text

    def weights_advice(self, model_config: ModelConfig, load: LoadConfig, num_ranks: int) -> str:
        """What helps when the weights do not fit, and how large their files are."""
        size = _checkpoint_bytes(model_config, load)
        text = "" if size is None else f"The checkpoint's files hold {_gib(size)}"
        if text:
            text += f", spread over {num_ranks} ranks. " if num_ranks > 1 else ". "
        if not self._platform.is_cuda:
            return f"{text}Free memory, or take a smaller or quantised checkpoint."
        return (
            f"{text}Free the GPU, choose another with --base-gpu-id, cut the model into more ranks with --tp, or take a "
            "smaller or quantised checkpoint."
        )

    def pool_too_small(
        self, tokens: int, least: int, token_bytes: int, weight_bytes: int, fraction: float
    ) -> ConfigError:
        """The error for a pool of `tokens`, when one request needs `least`."""
        wanted = f"{least} tokens of {token_bytes / 2**10:.1f} KiB beside {_gib(weight_bytes)} of weights"
        text = f"the KV cache pool would hold {max(tokens, 0)} tokens, too few for one request, which needs {wanted}. "
        text += self.account()
        if not self._platform.is_cuda:
            return ConfigError(
                f"{text} Free memory or raise --mem-fraction-static (now {fraction:g})."
            )
        kept = _gib(int(self._total * (1.0 - fraction)))
        return ConfigError(
            f"{text} --mem-fraction-static {fraction:g} keeps {kept} back for activations. Free the GPU, choose another with "
            "--base-gpu-id, raise --mem-fraction-static, or cut the model into more ranks with --tp."
        )

    @property
    def _device(self) -> str:
        return f"GPU {self._platform.index}" if self._platform.is_cuda else "The host"


def _checkpoint_bytes(model_config: ModelConfig, load: LoadConfig) -> int | None:
    """Bytes of the weight files; None for random weights. The files are there: loading has begun."""
    if load.load_format == "dummy":
        return None
    folder = local_checkpoint_folder(
        model_config.model_path, model_config.revision, load.load_format, load.download_dir
    )
    files = find_checkpoint_files(folder, load.load_format, True)
    return sum(path.stat().st_size for path in files.paths)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"
