"""Which class loads a model, and the small context helpers of loading."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.models.registry import FALLBACK_ARCH, ModelRegistry, unsupported_message
from sglang.srt.utils.errors import ConfigError


@contextlib.contextmanager
def set_default_torch_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Create tensors in `dtype` inside the block."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def get_model_architecture(model_config: ModelConfig) -> tuple[type, str]:
    """The class that serves a model, and its name in the registry.

    `model_impl` "sglang" takes only model files of our own, "transformers" only the fallback class, "auto" the
    first that exists. Raises ValueError naming the architectures when there is none.
    """
    asked = list(model_config.architectures)
    supported = ModelRegistry.get_supported_archs()
    is_native = any(name in supported for name in asked)
    if model_config.model_impl == "sglang" and not is_native:
        raise ConfigError(unsupported_message(asked) + " (--model-impl sglang allows no fallback)")
    if model_config.model_impl == "transformers" or not is_native:
        _check_transformers_can(model_config, asked)
        return ModelRegistry.resolve_model_cls([FALLBACK_ARCH])
    return ModelRegistry.resolve_model_cls(asked)


def _check_transformers_can(model_config: ModelConfig, asked: list[str]) -> None:
    """Refuse what the fallback cannot serve: unknown to transformers, not a text generator, own attention."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    generators = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    known = [name for name in asked if name in generators]
    if not known or FALLBACK_ARCH not in ModelRegistry.get_supported_archs():
        raise ConfigError(unsupported_message(asked))
    cls = getattr(transformers, known[0])
    if not cls.is_backend_compatible():
        raise ConfigError(
            f"{unsupported_message(asked)} The transformers class {known[0]} computes attention in a way "
            "that cannot be routed to the paged KV cache."
        )


def maybe_executor_submit(
    *,
    executor: ThreadPoolExecutor,
    futures: list[Future[Any]],
    use_async: bool,
    func: Callable[..., Any],
    func_args: tuple[Any, ...] = (),
    func_kwargs: dict[str, Any] | None = None,
) -> None:
    """Run a weight-placing call now, or hand it to the executor and append its future."""
    kwargs = func_kwargs or {}
    if use_async:
        futures.append(executor.submit(func, *func_args, **kwargs))
    else:
        func(*func_args, **kwargs)


def should_async_load(weight: torch.Tensor) -> bool:
    """Whether placing this tensor is worth a thread: only copies from the host to a device are."""
    return False


def should_deepgemm_weight_requant_ue8m0(weight_block_size: list[int] | None) -> bool:
    """Always False: DeepGEMM kernels are not used."""
    return False
