"""Attention backends by name.

A backend registers a function from the model runner to the backend. The function takes out of the
runner the few values that the backend needs; backends do not keep the runner. Packages that a
backend needs are looked for here and imported when it is made. What a backend will hold on the
device is asked before the cache takes the rest.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sglang.srt.distributed import get_tensor_model_parallel_world_size
from sglang.srt.environ import envs
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.utils.errors import ConfigError

if TYPE_CHECKING:
    from sglang.srt.layers.attention.model_needs import ServedModel

BackendFactory = Callable[[Any], AttentionBackend]
BackendMemory = Callable[[Any], int]

ATTENTION_BACKENDS: dict[str, BackendFactory] = {}
_MEMORY: dict[str, BackendMemory] = {}
# Between the names of the backends of prefill and of decode.
_BOTH = "+"
# Of backends over packages: the name to install, and the module that is used.
_PACKAGES = {
    "flashinfer": ("flashinfer-python", "flashinfer"),
    "fa3": ("sglang-kernel", "sgl_kernel.flash_attn"),
}
_HALF_DTYPES = ("torch.float16", "torch.bfloat16")


def register_attention_backend(
    name: str, memory: BackendMemory | None = None
) -> Callable[[BackendFactory], BackendFactory]:
    """Decorator: makes a factory known as `name`, as in `--attention-backend`.

    `memory`: from a runner with its weights but without pools to the bytes that the backend will
    hold on the device; None for next to nothing.
    """

    def register(factory: BackendFactory) -> BackendFactory:
        ATTENTION_BACKENDS[name] = factory
        if memory is not None:
            _MEMORY[name] = memory
        return factory

    return register


def create_attention_backend(name: str, model_runner: Any) -> AttentionBackend:
    """The backend for a runner; `name` may be that of a pair, see `join_phases`.

    Raises ValueError for an unknown name, ConfigError where the backend cannot run.
    """
    if _BOTH in name:
        from sglang.srt.layers.attention.phase_backend import PhaseAttnBackend

        prefill, decode = name.split(_BOTH)
        return PhaseAttnBackend(
            create_attention_backend(prefill, model_runner),
            create_attention_backend(decode, model_runner),
        )
    if name not in ATTENTION_BACKENDS:
        allowed = ", ".join(sorted(ATTENTION_BACKENDS))
        raise ValueError(f"attention backend {name!r} is not supported; supported: {allowed}")
    return ATTENTION_BACKENDS[name](model_runner)


def attention_memory(name: str, model_runner: Any) -> int:
    """Bytes that the backend of this name, or both of a pair, will hold on the device."""
    names = dict.fromkeys(name.split(_BOTH))
    return sum(_MEMORY[one](model_runner) for one in names if one in _MEMORY)


def join_phases(prefill: str, decode: str) -> str:
    """The name of the backend that runs prefills by one and decodes by another backend."""
    return prefill if prefill == decode else f"{prefill}{_BOTH}{decode}"


@register_attention_backend("torch_native")
def _create_torch_native(model_runner: Any) -> AttentionBackend:
    from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend

    return TorchNativeAttnBackend(model_runner.model_config.facts.attention_chunk_size)


@register_attention_backend("triton")
def _create_triton(model_runner: Any) -> AttentionBackend:
    _check_triton(model_runner.device.type, str(model_runner.dtype))
    from sglang.srt.layers.attention.triton_backend import TritonAttnBackend

    tp_size = get_tensor_model_parallel_world_size()
    return TritonAttnBackend(
        num_kv_heads=model_runner.model_config.get_num_kv_heads(tp_size),
        max_context_len=model_runner.req_to_token_pool.max_context_len,
        device=model_runner.device,
        attention_chunk_size=model_runner.model_config.facts.attention_chunk_size,
    )


def _graph_page_bytes(model_runner: Any, page_size: int) -> int:
    """An int32 for every page that the requests of the largest captured decode can have."""
    config = model_runner.config
    pages = -(-model_runner.model_config.row_width // page_size)
    sizes, most = config.graph_batch_sizes, config.max_running_requests
    # The smallest that holds all requests there can be is the largest that is captured.
    enough = (size for size in sizes if most is not None and size >= most)
    return 4 * pages * next(enough, max(sizes, default=0))


def _flashinfer_memory(model_runner: Any) -> int:
    """Partial results, pages of graphs, and plans of a model whose layers are of one kind."""
    from sglang.srt.layers.attention.flashinfer_backend import (
        NUM_PLANS,
        PLAN_BYTES,
        WORKSPACE_BYTES,
    )

    pages = _graph_page_bytes(model_runner, model_runner.config.page_size)
    return WORKSPACE_BYTES + NUM_PLANS * PLAN_BYTES + pages


@register_attention_backend("flashinfer", memory=_flashinfer_memory)
def _create_flashinfer(model_runner: Any) -> AttentionBackend:
    _check_gpu("flashinfer", model_runner)
    is_hidden = not envs.SGLANG_IS_FLASHINFER_AVAILABLE.get()
    _check_package("flashinfer", "flashinfer-python", "flashinfer", is_hidden)
    _import_package("flashinfer")
    from sglang.srt.layers.attention.flashinfer_backend import FlashInferAttnBackend

    return FlashInferAttnBackend(
        model_runner.req_to_token_pool.req_to_token,
        model_runner.config.page_size,
        lambda: create_attention_backend("triton", model_runner),
    )


def _fa3_memory(model_runner: Any) -> int:
    from sglang.srt.layers.attention.fa3_backend import kernel_page_size

    return _graph_page_bytes(model_runner, kernel_page_size(model_runner.config.page_size))


@register_attention_backend("fa3", memory=_fa3_memory)
def _create_fa3(model_runner: Any) -> AttentionBackend:
    _check_gpu("fa3", model_runner)
    _check_hopper(model_runner.device)
    _check_package("fa3", "sglang-kernel", "sgl_kernel")
    _import_package("fa3")
    from sglang.srt.layers.attention.fa3_backend import Fa3AttnBackend

    return Fa3AttnBackend(
        model_runner.req_to_token_pool.req_to_token,
        model_runner.config.page_size,
        lambda: create_attention_backend("triton", model_runner),
    )


def why_no_kernels(name: str, model_config: ServedModel) -> str | None:
    """Why a backend would leave most layers of a model to another one, or could not run them; None if it has kernels for them."""
    from sglang.srt.layers.attention.model_needs import ModelNeeds

    reason = ModelNeeds.of(model_config).why_declined(name)
    return None if reason is None else f"{name} has no kernels for {reason}"


def _check_package(name: str, package: str, module: str, is_hidden: bool = False) -> None:
    """Raises ConfigError where the package of a backend is missing."""
    if is_hidden:
        raise ConfigError(
            f"attention backend {name!r} is hidden by SGLANG_IS_FLASHINFER_AVAILABLE=false; unset the "
            "variable or choose --attention-backend triton"
        )
    if importlib.util.find_spec(module) is None:
        raise ConfigError(
            f"attention backend {name!r} needs the package {package}, which is not installed; install it "
            f"(pip install {package}, or the extra sglang[cuda]) or choose --attention-backend triton"
        )


def why_not_imported(name: str) -> str | None:
    """Why the package of a backend, which is installed, cannot be imported; None if it can, or if the backend has none."""
    if name not in _PACKAGES:
        return None
    try:
        importlib.import_module(_PACKAGES[name][1])
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _import_package(name: str) -> None:
    """Raises ConfigError where the package of a backend is installed but was built for another torch or CUDA."""
    reason = why_not_imported(name)
    if reason is not None:
        raise ConfigError(
            f"attention backend {name!r} needs the package {_PACKAGES[name][0]}, which is installed but cannot be "
            f"imported ({reason}); install one that fits this torch, or choose --attention-backend triton"
        )


def _check_gpu(name: str, model_runner: Any) -> None:
    """Raises ConfigError on another device and for dtypes without kernels."""
    device_type, dtype = model_runner.device.type, str(model_runner.dtype)
    if device_type != "cuda":
        raise ConfigError(
            f"attention backend {name!r} needs device cuda, not {device_type}; choose --attention-backend torch_native"
        )
    if dtype not in _HALF_DTYPES:
        raise ConfigError(
            f"attention backend {name!r} computes in float16 and bfloat16, not {dtype}; choose --dtype bfloat16 or "
            "--attention-backend triton"
        )


def _check_hopper(device: Any) -> None:
    import torch

    capability = torch.cuda.get_device_capability(device)
    if capability[0] != 9:
        raise ConfigError(
            "attention backend 'fa3' needs a GPU of compute capability 9.0 (Hopper), this one has "
            f"{capability[0]}.{capability[1]}; choose --attention-backend flashinfer or triton"
        )


def _check_triton(device_type: str, dtype: str) -> None:
    """Raises ConfigError where Triton's kernels cannot run."""
    if importlib.util.find_spec("triton") is None:
        raise ConfigError(
            "attention backend 'triton' needs the package triton, which is not installed; install "
            "it or choose --attention-backend torch_native"
        )
    if device_type == "cuda":
        return
    import triton

    if device_type != "cpu" or not triton.knobs.runtime.interpret:
        raise ConfigError(
            f"attention backend 'triton' needs device cuda, not {device_type}; choose "
            "--attention-backend torch_native (to try the kernels on a cpu, very slowly, set "
            "TRITON_INTERPRET=1)"
        )
    if dtype == "torch.bfloat16":
        raise ConfigError(
            "Triton's interpreter computes bfloat16 products wrongly; choose --dtype float32 or "
            "float16, or --attention-backend torch_native"
        )
