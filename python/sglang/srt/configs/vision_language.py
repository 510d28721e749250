"""Configs of published vision-language models that transformers has no class for.

Compatibility: so that files that annotate with them import. A nested config is kept as a config object under its published key;
other keys become attributes as they are.
"""

from __future__ import annotations

from typing import Any

from transformers import (
    DeepseekV2Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen2VLVisionConfig,
    SiglipVisionConfig,
)


class DotsVisionConfig(PretrainedConfig):
    """The vision tower of dots.vlm1 and dots.ocr; sizes in patches and channels."""

    model_type = "dots_vit"

    def __init__(
        self,
        embed_dim: int = 1536,
        hidden_size: int = 1536,
        intermediate_size: int = 4224,
        num_hidden_layers: int = 42,
        num_attention_heads: int = 12,
        num_channels: int = 3,
        patch_size: int = 14,
        spatial_merge_size: int = 2,
        temporal_patch_size: int = 1,
        rms_norm_eps: float = 1e-5,
        use_bias: bool = False,
        post_norm: bool = True,
        **kwargs: Any,
    ) -> None:
        self.embed_dim = embed_dim
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_channels = num_channels
        self.patch_size = patch_size
        self.spatial_merge_size = spatial_merge_size
        self.temporal_patch_size = temporal_patch_size
        self.rms_norm_eps = rms_norm_eps
        self.use_bias = use_bias
        self.post_norm = post_norm
        super().__init__(**kwargs)


class DotsVLMConfig(PretrainedConfig):
    """dots.vlm1; the language model's keys stand beside `vision_config`."""

    model_type = "dots_vlm"

    def __init__(self, **kwargs: Any) -> None:
        _read_parts(self, kwargs, {"vision_config": DotsVisionConfig})
        super().__init__(**kwargs)


class DotsOCRConfig(Qwen2Config):
    """dots.ocr: the keys of a Qwen2, and the vision tower."""

    model_type = "dots_ocr"

    def __init__(self, vision_config: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        is_config = isinstance(vision_config, PretrainedConfig)
        self.vision_config = (
            vision_config if is_config else DotsVisionConfig(**(vision_config or {}))
        )


class POINTSV15ChatConfig(PretrainedConfig):
    """POINTS 1.5: a Qwen2-VL tower and a Qwen2."""

    model_type = "points"

    def __init__(self, **kwargs: Any) -> None:
        _read_parts(
            self,
            kwargs,
            {
                "vision_config": Qwen2VLVisionConfig,
                "llm_config": Qwen2Config,
            },
        )
        super().__init__(**kwargs)


class JetNemotronConfig(Qwen2Config):
    """Jet-Nemotron: the keys of a Qwen2, `layer_types` and `efficient_attention_config`."""

    model_type = "jet_nemotron"


class JetVLMConfig(PretrainedConfig):
    """A SigLIP tower and a Jet-Nemotron."""

    model_type = "jet_vlm"

    def __init__(self, **kwargs: Any) -> None:
        _read_parts(
            self, kwargs, {"vision_config": SiglipVisionConfig, "text_config": JetNemotronConfig}
        )
        super().__init__(**kwargs)


class DeepseekVLV2Config(PretrainedConfig):
    """DeepSeek-OCR."""

    model_type = "deepseek_vl_v2"

    def __init__(self, **kwargs: Any) -> None:
        _read_parts(
            self,
            kwargs,
            {
                "vision_config": PretrainedConfig,
                "projector_config": PretrainedConfig,
                "language_config": PretrainedConfig,
            },
        )
        super().__init__(**kwargs)


class DeepseekVL2MlpProjectorConfig(PretrainedConfig):
    """The projector of DeepSeek-VL2."""

    model_type = "mlp_projector"


class DeepseekVL2Config(PretrainedConfig):
    """DeepSeek-VL2."""

    model_type = "deepseek_vl_v2"

    def __init__(self, **kwargs: Any) -> None:
        parts = {
            "vision_config": PretrainedConfig,
            "projector_config": DeepseekVL2MlpProjectorConfig,
            "language_config": DeepseekV2Config,
        }
        _read_parts(self, kwargs, parts)
        super().__init__(**kwargs)


class KimiK25VisionConfig(PretrainedConfig):
    """The vision tower of Kimi-K2.5."""

    model_type = "kimi_k25_vision"


class KimiK25Config(PretrainedConfig):
    """Kimi-K2.5."""

    model_type = "kimi_k25"

    def __init__(self, **kwargs: Any) -> None:
        _read_parts(
            self, kwargs, {"vision_config": KimiK25VisionConfig, "text_config": PretrainedConfig}
        )
        super().__init__(**kwargs)


def _read_parts(
    config: PretrainedConfig, kwargs: dict[str, Any], parts: dict[str, type[PretrainedConfig]]
) -> None:
    """Take the nested configs out of `kwargs`; a dict is read by the class given for its key."""
    for key, config_class in parts.items():
        value = kwargs.pop(key, None)
        is_config = isinstance(value, PretrainedConfig)
        setattr(config, key, value if is_config else config_class(**(value or {})))
