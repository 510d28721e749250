"""Model folders with a tiny tokenizer, an image processor and a config: all that a processor needs."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from sglang.srt.multimodal.hf_processor import load_processor
from sglang.srt.server_args import ServerArgs

QWEN_TOKENS = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]  # fmt: skip
QWEN_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{% if p.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif p.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ p.text }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer(
    specials: list[str], template: str | None = None, named: dict[str, str] | None = None
) -> Any:
    """Every byte is a token, and so are two and four newlines; then the special ones. `named` are attributes such as image_token."""
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ċ", "Ċ"), ("ĊĊ", "ĊĊ")]
    vocab = [*alphabet, *(a + b for a, b in merges)]
    backend = Tokenizer(models.BPE({text: i for i, text in enumerate(vocab)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True) for text in specials])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=specials[1], extra_special_tokens=named or {}
    )
    tokenizer.chat_template = template
    return tokenizer


def token_id(tokenizer: Any, text: str) -> int:
    return tokenizer.convert_tokens_to_ids(text)


def qwen_folder(folder: Path, model_type: str = "qwen2_vl") -> str:
    """A Qwen2-VL or Qwen2.5-VL without weights; images have at most 112 x 112 pixels."""
    import transformers

    tokenizer = make_tokenizer(QWEN_TOKENS, QWEN_TEMPLATE)
    tokenizer.save_pretrained(folder)
    ids = {name: token_id(tokenizer, token) for name, token in QWEN_IDS.items()}
    is_second = model_type == "qwen2_vl"
    vision = {"depth": 1, "num_heads": 2, "hidden_size": 32, "spatial_merge_size": 2}
    vision |= {"embed_dim": 32} if is_second else {"out_hidden_size": 32, "tokens_per_second": 2}
    config_class = transformers.Qwen2VLConfig if is_second else transformers.Qwen2_5_VLConfig
    name = "Qwen2VL" if is_second else "Qwen2_5_VL"
    text = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512}
    config = config_class(text_config=text, vision_config=vision, **ids)
    config.architectures = [f"{name}ForConditionalGeneration"]
    config.save_pretrained(folder)
    size = {"shortest_edge": 28 * 28, "longest_edge": 112 * 112}
    settings = {"image_processor_type": "Qwen2VLImageProcessor", "size": size, "patch_size": 14}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return str(folder)


QWEN_IDS = {
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
}


def build(folder: str, processor_class: type, **flags: Any) -> Any:
    """A processor over a model folder."""
    from transformers import AutoConfig, AutoTokenizer

    parts = load_processor(folder, AutoTokenizer.from_pretrained(folder))
    config = AutoConfig.from_pretrained(folder)
    return processor_class(config, ServerArgs(model_path=folder, **flags), parts)


def request(**media: Any) -> SimpleNamespace:
    values = {"image_data": None, "video_data": None, "audio_data": None, "rid": "r", **media}
    return SimpleNamespace(**values)
