"""A processor class of one's own for a model type, announced by a decorator on its config class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from sglang.srt.multimodal.hf_processor import customize

C = TypeVar("C", bound=type)


def register_customized_processor(processor_class: Any) -> Callable[[C], C]:
    """Decorator of a config class: its `model_type` is served with `processor_class.from_pretrained(path)`."""

    def decorate(config_class: C) -> C:
        customize(config_class.model_type, processor_class)  # type: ignore[attr-defined]
        return config_class

    return decorate
