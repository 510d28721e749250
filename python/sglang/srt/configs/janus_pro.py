"""Configs of Janus-Pro: two vision towers, their aligners, a generation head and a Llama.

Compatibility: so that files that annotate with them import. Each part keeps its published keys `cls` and `params`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List  # noqa: UP035  (taken from here by others)

from transformers import LlamaConfig, PretrainedConfig

# Files take everything from here, the helpers included.
__all__ = [
    "AlignerConfig",
    "Dict",
    "GenAlignerConfig",
    "GenHeadConfig",
    "GenVisionConfig",
    "List",
    "MultiModalityConfig",
    "SigLIPVisionCfg",
    "VisionConfig",
    "dataclass",
]


class _Part(PretrainedConfig):
    """A part: the name of its class, and the keywords of the constructor."""

    cls: str = ""
    params: dict[str, Any] | None = None


class VisionConfig(_Part):
    """The tower that understands images."""

    model_type = "vision"


class AlignerConfig(_Part):
    """Its projection."""

    model_type = "aligner"


class GenVisionConfig(_Part):
    """The tower that draws images."""

    model_type = "gen_vision"


class GenAlignerConfig(_Part):
    """Its projection."""

    model_type = "gen_aligner"


class GenHeadConfig(_Part):
    """The head that predicts image tokens."""

    model_type = "gen_head"


class MultiModalityConfig(PretrainedConfig):
    """The whole model."""

    model_type = "multi_modality"
    _PARTS = {
        "vision_config": VisionConfig,
        "aligner_config": AlignerConfig,
        "gen_vision_config": GenVisionConfig,
        "gen_aligner_config": GenAlignerConfig,
        "gen_head_config": GenHeadConfig,
        "language_config": LlamaConfig,
    }

    def __init__(self, **kwargs: Any) -> None:
        for key, config_class in self._PARTS.items():
            value = kwargs.pop(key, None)
            is_config = isinstance(value, PretrainedConfig)
            setattr(self, key, value if is_config else config_class(**(value or {})))
        super().__init__(**kwargs)


@dataclass
class SigLIPVisionCfg:
    """Sizes of a SigLIP tower."""

    width: int = 1152
    layers: tuple[int, int, int, int] | int = 27
    heads: int = 16
    patch_size: int = 14
    image_size: tuple[int, int] | int = 336
    global_pool: str = "map"
    mlp_ratio: float = 3.7362
    class_token: bool = False
    num_classes: int = 0
    use_checkpoint: bool = False
