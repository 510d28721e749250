"""The configs of Step3-VL: a vision tower, a mixture-of-experts language model, and both together."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


class Step3VisionEncoderConfig(PretrainedConfig):
    """Keys and defaults of the published vision tower."""

    model_type = "step3_vision_encoder"

    def __init__(
        self,
        hidden_size: int = 1792,
        intermediate_size: int = 3072,
        output_hidden_size: int = 4096,
        num_hidden_layers: int = 63,
        num_attention_heads: int = 16,
        num_channels: int = 3,
        image_size: int = 728,
        patch_size: int = 14,
        hidden_act: str = "quick_gelu",
        layer_norm_eps: float = 1e-5,
        **kwargs: Any,
    ) -> None:
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.output_hidden_size = output_hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_channels = num_channels
        self.image_size = image_size
        self.patch_size = patch_size
        self.hidden_act = hidden_act
        self.layer_norm_eps = layer_norm_eps
        super().__init__(**kwargs)


class Step3TextConfig(PretrainedConfig):
    """Keys and defaults of the published language model; the first layers are dense."""

    model_type = "step3_text"
    architectures = ["Step3TextForCausalLM"]

    def __init__(
        self,
        hidden_size: int = 7168,
        intermediate_size: int = 18432,
        num_attention_heads: int = 64,
        num_attention_groups: int = 1,
        num_hidden_layers: int = 61,
        max_seq_len: int = 65536,
        vocab_size: int = 128815,
        rms_norm_eps: float = 1e-5,
        moe_intermediate_size: int = 5120,
        moe_num_experts: int = 48,
        moe_top_k: int = 3,
        rope_theta: float = 500000,
        rope_scaling: dict[str, Any] | None = None,
        max_position_embedding: int = 65536,
        share_expert_dim: int = 5120,
        share_q_dim: int = 2048,
        head_dim: int = 256,
        norm_expert_weight: bool = False,
        moe_layers_enum: tuple[int, ...] = tuple(range(4, 60)),
        **kwargs: Any,
    ) -> None:
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_attention_heads = num_attention_heads
        self.num_attention_groups = num_attention_groups
        self.num_hidden_layers = num_hidden_layers
        self.max_seq_len = max_seq_len
        self.vocab_size = vocab_size
        self.rms_norm_eps = rms_norm_eps
        self.moe_intermediate_size = moe_intermediate_size
        self.moe_num_experts = moe_num_experts
        self.moe_top_k = moe_top_k
        self.rope_theta = rope_theta
        self.rope_parameters = {
            "rope_theta": rope_theta,
            **(rope_scaling or {"rope_type": "default"}),
        }
        self.max_position_embedding = max_position_embedding
        self.share_expert_dim = share_expert_dim
        self.share_q_dim = share_q_dim
        self.head_dim = head_dim
        self.norm_expert_weight = norm_expert_weight
        self.moe_layers_enum = moe_layers_enum
        super().__init__(**kwargs)


class Step3VLConfig(PretrainedConfig):
    """The whole model: `vision_config` and `text_config`, each an object or its keys."""

    model_type = "step3_vl"

    def __init__(
        self,
        vision_config: dict[str, Any] | Step3VisionEncoderConfig | None = None,
        text_config: dict[str, Any] | Step3TextConfig | None = None,
        understand_projector_stride: int = 1,
        projector_bias: bool = True,
        image_token_id: int = 128001,
        **kwargs: Any,
    ) -> None:
        self.vision_config = _build(Step3VisionEncoderConfig, vision_config)
        self.text_config = _build(Step3TextConfig, text_config)
        self.understand_projector_stride = understand_projector_stride
        self.projector_bias = projector_bias
        self.image_token_id = image_token_id
        self.hidden_size = self.text_config.hidden_size
        super().__init__(**kwargs)


def _build(cls: type[PretrainedConfig], value: Any) -> Any:
    return value if isinstance(value, PretrainedConfig) else cls(**(value or {}))
