"""The model's shape, its tokenizer (the text demo's with four tokens more) and its chat template."""

from __future__ import annotations

from pathlib import Path

import torch
from pixels import MERGE, PATCH, TEMPORAL
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast, Qwen2VLConfig, Qwen2VLForConditionalGeneration

VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
VOCAB_ROWS = 1088  # 1028 tokens, rounded up to a multiple of 64
MAX_LEN = 2048
HIDDEN = 256
MROPE_SECTION = (4, 6, 6)

CHAT_TEMPLATE = """\
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['content'] is string %}
{{- message['content'] }}
{%- else %}
{%- for part in message['content'] %}
{%- if part['type'] == 'text' %}
{{- part['text'] }}
{%- elif part['type'] in ('image', 'image_url') %}
{{- '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif part['type'] in ('video', 'video_url') %}
{{- '<|vision_start|><|video_pad|><|vision_end|>' }}
{%- endif %}
{%- endfor %}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer in `folder` with the vision tokens behind its own, if they are not there yet."""
    fast = PreTrainedTokenizerFast.from_pretrained(folder).backend_tokenizer
    fast.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in VISION_TOKENS])
    if fast.get_vocab_size() > VOCAB_ROWS:
        raise ValueError(
            f"the tokenizer in {folder} has {fast.get_vocab_size()} tokens, the model {VOCAB_ROWS} rows"
        )
    start, end, image, video = VISION_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=fast,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={
            "im_start_token": "<|im_start|>",
            "image_token": image,
            "video_token": video,
            "vision_bos_token": start,
            "vision_eos_token": end,
        },
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_LEN,
        clean_up_tokenization_spaces=False,
    )


def build_config(tokenizer: PreTrainedTokenizerFast) -> Qwen2VLConfig:
    start, end, image, video = tokenizer.convert_tokens_to_ids(list(VISION_TOKENS))
    return Qwen2VLConfig(
        text_config={
            "vocab_size": VOCAB_ROWS,
            "hidden_size": HIDDEN,
            "intermediate_size": 512,
            "num_hidden_layers": 6,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "max_position_embeddings": MAX_LEN,
            "max_window_layers": 6,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": list(MROPE_SECTION),
            },
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "depth": 4,
            "embed_dim": 128,
            "hidden_size": HIDDEN,
            "num_heads": 4,
            "mlp_ratio": 2,
            "in_channels": 3,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": TEMPORAL,
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a finished model, in float32, as `build_model`'s model takes them."""
    model = Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    return model.state_dict()


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen2VLForConditionalGeneration:
    """The untrained model, in float32."""
    model = Qwen2VLForConditionalGeneration(build_config(tokenizer))
    model.tie_weights()
    return model
