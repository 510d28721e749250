"""What the engine knows about a model before any weight is read.

Built in the front process too, so construction reads JSON only: `hf_config` (a transformers object, which
imports torch) and `torch_dtype` are computed when somebody asks for them.
"""

from __future__ import annotations

import enum
import functools
import json
import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from sglang.srt.configs.aliases import ARCHITECTURE_ALIASES
from sglang.srt.configs.hf_config import ATTENTION_LAYER_TYPES, ModelFacts, read_facts
from sglang.srt.configs.rank_cut import check_cut, check_heads
from sglang.srt.configs.sparse_attention import get_nsa_index_head_dim as get_nsa_index_head_dim
from sglang.srt.configs.sparse_attention import get_nsa_index_n_heads as get_nsa_index_n_heads
from sglang.srt.configs.sparse_attention import get_nsa_index_topk as get_nsa_index_topk
from sglang.srt.configs.sparse_attention import is_deepseek_nsa as is_deepseek_nsa
from sglang.srt.environ import envs
from sglang.srt.plugins import PROCESSOR_GROUP, find_plugins
from sglang.srt.utils.errors import ConfigError
from sglang.srt.utils.hf_transformers_utils import (
    apply_overrides,
    get_config,
    get_generation_config,
    read_config_dict,
)

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_DTYPES = {
    "auto": None,
    "half": "float16",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "float": "float32",
    "float32": "float32",
}
MODEL_IMPLS = ("auto", "sglang", "transformers")

# Architecture and format of the quantized checkpoints whose model file turns the weights into ordinary ones.
_UNPACKED_WHEN_LOADED = frozenset({("GptOssForCausalLM", "mxfp4")})
# Formats of weights that layers can multiply with.
_QUANTIZATIONS = ("fp8",)
# Architectures that never generate; every other one does unless the server runs with --is-embedding.
_NON_GENERATION_ARCHS = frozenset(
    {
        "LlamaEmbeddingModel",
        "MistralModel",
        "LlamaForSequenceClassification",
        "LlamaForSequenceClassificationWithNormal_Weights",
        "InternLM2ForRewardModel",
        "Qwen2ForRewardModel",
        "Qwen3ForRewardModel",
        "Qwen2ForSequenceClassification",
        "Qwen3ForSequenceClassification",
        "CLIPModel",
        "BertModel",
        "Contriever",
        "BertForSequenceClassification",
        "XLMRobertaModel",
        "XLMRobertaForSequenceClassification",
        "Gemma2ForSequenceClassification",
    }
)


class AttentionArch(enum.Enum):
    """What the cache keeps of a token."""

    MLA = enum.auto()  # one latent for all heads
    MHA = enum.auto()  # keys and values of every kv head


# Architectures that take media; `SGLANG_EXTERNAL_MM_MODEL_ARCH` adds to them.
multimodal_model_archs: list[str] = [
    "CLIPModel",
    "DeepseekOCRForCausalLM",
    "DeepseekVL2ForCausalLM",
    "DotsOCRForCausalLM",
    "DotsVLMForCausalLM",
    "Ernie4_5_VLMoeForConditionalGeneration",
    "Gemma3ForConditionalGeneration",
    "Gemma3nForConditionalGeneration",
    "Glm4vForConditionalGeneration",
    "Glm4vMoeForConditionalGeneration",
    "GlmOcrForConditionalGeneration",
    "InternS1ForConditionalGeneration",
    "InternVLChatModel",
    "InternVLForConditionalGeneration",
    "JetVLMForConditionalGeneration",
    "KimiVLForConditionalGeneration",
    "Llama4ForConditionalGeneration",
    "LlavaForConditionalGeneration",
    "LlavaLlamaForCausalLM",
    "LlavaMistralForCausalLM",
    "LlavaNextForConditionalGeneration",
    "LlavaOnevisionForConditionalGeneration",
    "LlavaQwenForCausalLM",
    "LlavaVidForCausalLM",
    "MiniCPMO",
    "MiniCPMV",
    "Mistral3ForConditionalGeneration",
    "MllamaForConditionalGeneration",
    "MultiModalityCausalLM",
    "NVILAForConditionalGeneration",
    "NVILALiteForConditionalGeneration",
    "NemotronH_Nano_VL_V2",
    "PaddleOCRVLForConditionalGeneration",
    "Phi4MMForCausalLM",
    "PixtralForConditionalGeneration",
    "PointsV15ChatModel",
    "Qwen2AudioForConditionalGeneration",
    "Qwen2VLForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration",
    "Qwen3OmniMoeForConditionalGeneration",
    "Qwen3VLForConditionalGeneration",
    "Qwen3VLMoeForConditionalGeneration",
    "Qwen3_5ForConditionalGeneration",
    "Qwen3_5MoeForConditionalGeneration",
    "Sarashina2VisionForCausalLM",
    "Step3VLForConditionalGeneration",
    "YiVLForCausalLM",
]
# Architectures with cross-attention. Their prompts are never cut into chunks.
_ENCODER_DECODER_ARCHS = frozenset({"MllamaForConditionalGeneration"})
# Rows of the embedding that the head does not have.
_EXTRA_EMBEDDINGS = {"MllamaForConditionalGeneration": 8}
# Serve text only until --enable-multimodal is given.
_TEXT_UNLESS_ASKED = frozenset(
    {
        "Gemma3ForConditionalGeneration",
        "Llama4ForConditionalGeneration",
        "Step3VLForConditionalGeneration",
    }
)


class ModelConfig:
    """A model path with its flags, resolved.

    Raises ConfigError for a path that is not a model, a config that cannot be served (quantized, unknown
    rotary embedding), an unknown dtype, and a `context_length` above what the model was made for.
    """

    def __init__(
        self,
        model_path: str,
        trust_remote_code: bool = False,
        revision: str | None = None,
        context_length: int | None = None,
        dtype: str = "auto",
        model_override_args: str = "{}",
        is_embedding: bool | None = None,
        enable_multimodal: bool | None = None,
        model_impl: str = "auto",
        quantization: str | None = None,
    ) -> None:
        self.model_path = model_path
        self.trust_remote_code = trust_remote_code
        self.revision = revision
        self.dtype = _checked_choice("dtype", dtype, tuple(_DTYPES))
        self.model_impl = _checked_choice("model_impl", model_impl, MODEL_IMPLS)
        self.enable_multimodal = enable_multimodal
        self.overrides = _parse_overrides(model_override_args)

        self.config_dict = apply_overrides(read_config_dict(model_path, revision), self.overrides)
        self.architectures = _read_architectures(model_path, self.config_dict)
        facts = self._early_facts()
        # Of the weights: a format, None for plain ones. `quantization_config` is the checkpoint's, None where weights are to be
        # quantized when they are loaded.
        self.quantization, self.quantization_config = _resolve_quantization(
            model_path, facts, self.architectures, quantization
        )
        self.vocab_size = facts.vocab_size
        self.derived_context_len = facts.derived_context_len
        self.context_len = _resolve_context_len(context_length, facts.derived_context_len)
        self.is_generation = is_generation_model(self.architectures, bool(is_embedding))
        self.is_multimodal = _takes_media(self.architectures, enable_multimodal)
        self.hf_eos_token_id = self._read_eos_token_ids(facts)

    @functools.cached_property
    def hf_config(self) -> Any:
        """The transformers config object that models are constructed with. Imports transformers."""
        config = self._read_hf_config()
        config.architectures = list(self.architectures)
        if self.context_len > self.derived_context_len:
            _lengthen_positions(config, self.context_len)
        return config

    @functools.cached_property
    def facts(self) -> ModelFacts:
        """Facts with the config class's own defaults filled in. Imports transformers."""
        return read_facts(self.hf_config)

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether media are attended to across: their keys take slots beside those of the tokens."""
        return bool(_ENCODER_DECODER_ARCHS.intersection(self.architectures))

    @property
    def row_width(self) -> int:
        """Slots that one request may have: those of its tokens, and as many for the encoder tokens of its media."""
        return self.context_len * (2 if self.is_encoder_decoder else 1)

    @property
    def num_embeddings(self) -> int:
        """Ids that a prompt may hold; more than the head has logits for where tokens for media come behind the vocabulary."""
        extra = max((_EXTRA_EMBEDDINGS.get(name, 0) for name in self.architectures), default=0)
        return self.vocab_size + extra

    @property
    def has_mrope(self) -> bool:
        """Whether keys are turned by three positions (time, height, width) instead of one."""
        rope = self.facts.rope
        return rope is not None and "mrope_section" in rope.params

    @property
    def num_attention_layers(self) -> int:
        """Layers that keep keys and values."""
        return sum(kind in ATTENTION_LAYER_TYPES for kind in self.facts.layer_types)

    @property
    def attention_arch(self) -> AttentionArch:
        """By the config's sizes: `facts.mla` has those of a latent."""
        return AttentionArch.MHA if self.facts.mla is None else AttentionArch.MLA

    def get_num_kv_heads(self, tp_size: int) -> int:
        """KV heads of one tensor-parallel rank; at least one, replicated when there are fewer than ranks. A latent is
        one head on every rank."""
        if self.facts.mla is not None:
            return 1
        return max(1, self.facts.num_key_value_heads // tp_size)

    def get_num_attention_heads(self, tp_size: int) -> int:
        """Query heads of one rank. Raises ConfigError when they do not divide."""
        check_heads(self.facts, tp_size)
        return self.facts.num_attention_heads // tp_size

    def check_tp_size(self, tp_size: int) -> None:
        """Raises ConfigError when heads, MLP or vocabulary cannot be dealt out to `tp_size` ranks; KV heads may be replicated.

        Cheap where the file names its heads, so that the front can ask before it starts a process.
        """
        written = self.config_dict.get("text_config") or self.config_dict
        is_written = {"num_attention_heads", "num_key_value_heads"} <= written.keys()
        facts = self._early_facts() if is_written else self.facts
        check_cut(facts, self.config_dict, tp_size)

    def torch_dtype(self, device_type: str) -> torch.dtype:
        """The dtype to run in. "auto" is the checkpoint's, except float32 on an accelerator: bfloat16."""
        import torch

        name = _DTYPES[self.dtype]
        if name is None:
            name = self.facts.dtype or "float32"
            if name == "float32" and device_type != "cpu":
                logger.info(
                    "The checkpoint is float32; running in bfloat16 (--dtype float32 keeps it)"
                )
                name = "bfloat16"
        return getattr(torch, name)

    def _read_hf_config(self) -> Any:
        return get_config(self.model_path, self.trust_remote_code, self.revision, self.overrides)

    def _early_facts(self) -> ModelFacts:
        """Facts from the JSON alone; through the config class when the file relies on its defaults."""
        written = self.config_dict.get("text_config") or self.config_dict
        if {"hidden_size", "vocab_size", "max_position_embeddings"} <= written.keys():
            return read_facts(self.config_dict)
        return read_facts(self._read_hf_config())

    def _read_eos_token_ids(self, facts: ModelFacts) -> set[int]:
        """Every id that ends a generation: the config's and the generation config's."""
        extra = get_generation_config(self.model_path, self.revision).get("eos_token_id")
        listed = extra if isinstance(extra, list) else [] if extra is None else [extra]
        return {*facts.eos_token_ids, *map(int, listed)}


def is_generation_model(architectures: Iterable[str], is_embedding: bool) -> bool:
    """Whether the server generates text (else it embeds, classifies or scores)."""
    return not is_embedding and not any(name in _NON_GENERATION_ARCHS for name in architectures)


def is_multimodal_model(architectures: Iterable[str]) -> bool:
    """Whether an architecture is one that can take images, video or audio."""
    names = set(architectures)
    known = {*multimodal_model_archs, *envs.SGLANG_EXTERNAL_MM_MODEL_ARCH.get()}
    return bool(names & known) or bool(names & _archs_of_plugins())


def _archs_of_plugins() -> frozenset[str]:
    """Architectures that installed processors are named after; nothing of the plug-ins is imported."""
    return frozenset(plugin.name for plugin in find_plugins(PROCESSOR_GROUP))


def _takes_media(architectures: tuple[str, ...], asked: bool | None) -> bool:
    """The flag where it is given, else what the architecture does by default."""
    if asked is None:
        asked = not any(name in _TEXT_UNLESS_ASKED for name in architectures)
    return asked and is_multimodal_model(architectures)


def _checked_choice(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ConfigError(f"{name}={value!r} is not supported; allowed: {', '.join(allowed)}")
    return value


def _parse_overrides(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"json_model_override_args={text!r} is not valid JSON: {error}"
        ) from error
    if not isinstance(value, dict):
        raise ConfigError(f"json_model_override_args={text!r} must be a JSON object")
    return value


def _read_architectures(model_path: str, config_dict: dict[str, Any]) -> tuple[str, ...]:
    names = config_dict.get("architectures")
    if not names:
        raise ConfigError(
            f"the config.json of {model_path!r} names no architectures; add "
            '"architectures": ["<class name>"] or pass it with --json-model-override-args'
        )
    return tuple(ARCHITECTURE_ALIASES.get(name, name) for name in names)


def _resolve_quantization(
    model_path: str, facts: ModelFacts, architectures: tuple[str, ...], asked: str | None
) -> tuple[str | None, Mapping[str, Any] | None]:
    """The format of the weights and the checkpoint's settings of it. Raises ConfigError naming a format that is not implemented."""
    if asked not in (None, *_QUANTIZATIONS):
        raise ConfigError(
            f"quantization={asked!r} is not implemented; implemented: {', '.join(_QUANTIZATIONS)}"
        )
    if not facts.quantization:
        return asked, None
    method = facts.quantization.get("quant_method", "unknown")
    if (architectures[0], method) in _UNPACKED_WHEN_LOADED and asked is None:
        return None, None
    if method not in _QUANTIZATIONS:
        raise ConfigError(
            f"model {model_path!r} is quantized (quantization_config.quant_method={method!r}), which is "
            f"not supported yet{f' with quantization={asked!r}' if asked else ''}; use an unquantized checkpoint, or one "
            f"of {', '.join(_QUANTIZATIONS)}"
        )
    if asked not in (None, method):
        raise ConfigError(
            f"quantization={asked!r} contradicts the checkpoint {model_path!r}, which is {method!r}; leave the flag out"
        )
    return method, facts.quantization


def _lengthen_positions(config: Any, context_len: int) -> None:
    """Let rotary tables reach a longer context than the model was made for.

    Not where the frequencies themselves are derived from the model's length.
    """
    rope = read_facts(config).rope
    if rope is not None and rope.kind not in ("dynamic", "longrope"):
        config.get_text_config().max_position_embeddings = context_len


def _resolve_context_len(asked: int | None, derived: int) -> int:
    """The user's length when it fits the model, else an error or, by environment variable, a warning."""
    if asked is None:
        return derived
    if asked < 1:
        raise ConfigError(f"context_length={asked} must be at least 1")
    if asked <= derived:
        return asked
    if not envs.SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN.get():
        raise ConfigError(
            f"context_length={asked} is longer than the {derived} tokens the model was made for; lower it, "
            "or set SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN=1 if you know that the model can"
        )
    logger.warning("context_length=%d is longer than the model's %d tokens", asked, derived)
    return asked
