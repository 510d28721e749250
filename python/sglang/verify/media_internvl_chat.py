"""InternVL as its authors publish it (`InternVLChatModel`) and as transformers writes it: configs, names, fused matrices."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

Raw = Mapping[str, Any]
Tensors = dict[str, torch.Tensor]

# The authors' configs leave the picture's token to the tokenizer; it is this one in the tiny tokenizer.
CHAT_IMAGE_ID = 400
# Whole words of a name, transformers' and the authors'.
_TOWER = {
    "vision_tower": "vision_model",
    "layer": "layers",
    "attention": "attn",
    "projection_layer": "proj",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "lambda_1": "ls1",
    "lambda_2": "ls2",
    "cls_token": "class_embedding",
    "patch_embeddings.projection": "patch_embedding",
    "position_embeddings": "position_embedding",
}
_PROJECTOR = {
    "multi_modal_projector.layer_norm": "mlp1.0",
    "multi_modal_projector.linear_1": "mlp1.1",
    "multi_modal_projector.linear_2": "mlp1.3",
}
_INTERNLM2 = {
    "language_model.lm_head": "language_model.output",
    "embed_tokens": "tok_embeddings",
    "self_attn": "attention",
    "o_proj": "wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}


class InternVLChatNames:
    """Both spellings."""

    def config(self, raw: Raw) -> dict[str, Any]:
        vision, text = dict(raw["vision_config"]), dict(raw["llm_config"])
        vision["model_type"] = "internvl_vision"
        vision["attention_bias"] = vision.pop("qkv_bias")
        vision["use_qk_norm"] = vision.pop("qk_normalization")
        if text["model_type"] == "internlm2":  # Llama in other words
            text |= {"model_type": "llama", "attention_bias": text.pop("bias")}
        del vision["architectures"], text["architectures"]
        return {
            "model_type": "internvl",
            "architectures": ["InternVLForConditionalGeneration"],
            "image_token_id": CHAT_IMAGE_ID,
            "downsample_ratio": raw["downsample_ratio"],
            "tie_word_embeddings": False,
            "text_config": text,
            "vision_config": vision,
        }

    def publish(self, raw: Raw, tensors: Tensors) -> Tensors:
        tensors = _fuse(tensors, r"vision_tower\..*\.attention\.", "{}_proj", "qkv", _side_by_side)
        if _is_internlm2(raw):
            text = r"language_model\..*\.self_attn\."
            tensors = _fuse(tensors, text, "{}_proj", "wqkv", lambda parts: _grouped(raw, parts))
        return {_renamed(name, _pairs(raw, name)): tensor for name, tensor in tensors.items()}

    def restore(self, raw: Raw, tensors: Tensors) -> Tensors:
        found: Tensors = {}
        for name, tensor in tensors.items():
            pairs = {ours: theirs for theirs, ours in _pairs(raw, name).items()}
            restored = _renamed(name, pairs)
            parts = {restored: tensor}
            if ".qkv." in name:
                parts = _split(restored, "qkv", list(tensor.chunk(3)))
            elif ".wqkv." in name:
                parts = _split(restored, "wqkv", _ungrouped(raw, tensor))
            found |= parts
        return found


def _pairs(raw: Raw, name: str) -> Mapping[str, str]:
    if name.startswith("language_model."):
        return _INTERNLM2 if _is_internlm2(raw) else {}
    return _TOWER if name.startswith("vision_") else _PROJECTOR


def _is_internlm2(raw: Raw) -> bool:
    return raw["llm_config"]["model_type"] == "internlm2"


def _renamed(name: str, pairs: Mapping[str, str]) -> str:
    for old, new in pairs.items():
        name = re.sub(rf"(?<![^.]){re.escape(old)}(?![^.])", new, name)
    return name


def _fuse(tensors: Tensors, where: str, part: str, whole: str, join: Any) -> Tensors:
    """q, k and v of each attention in one tensor."""
    found: Tensors = {}
    names = [part.format(letter) for letter in "qkv"]
    for name, tensor in tensors.items():
        match = re.fullmatch(rf"({where})({'|'.join(names)})(\..*)", name)
        if match is None:
            found[name] = tensor
        elif match[2] == names[0]:
            parts = [tensors[f"{match[1]}{other}{match[3]}"] for other in names]
            found[f"{match[1]}{whole}{match[3]}"] = join(parts)
    return found


def _split(name: str, whole: str, parts: list[torch.Tensor]) -> Tensors:
    pairs = zip("qkv", parts, strict=True)
    return {name.replace(f".{whole}.", f".{letter}_proj."): part for letter, part in pairs}


def _side_by_side(parts: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat(parts)


def _grouped(raw: Raw, parts: list[torch.Tensor]) -> torch.Tensor:
    """InternLM2: one kv head after the other, its query heads, its key, its value."""
    kv_heads = raw["llm_config"]["num_key_value_heads"]
    return torch.cat([part.unflatten(0, (kv_heads, -1)) for part in parts], dim=1).flatten(0, 1)


def _ungrouped(raw: Raw, tensor: torch.Tensor) -> list[torch.Tensor]:
    text = raw["llm_config"]
    kv_heads, heads = text["num_key_value_heads"], text["num_attention_heads"]
    width = text["hidden_size"] // heads
    sizes = [heads // kv_heads * width, width, width]
    pieces = tensor.unflatten(0, (kv_heads, -1)).split(sizes, dim=1)
    return [piece.flatten(0, 1) for piece in pieces]
