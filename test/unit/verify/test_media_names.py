"""What the tiny checkpoints of models with media have on disk: the published names, which transformers accepts beside its own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sglang.verify.media_published import as_transformers
from sglang.verify.media_tiny import write_media_config
from sglang.verify.tiny import tiny_config

CHAT = {
    "vision_model.embeddings.class_embedding",
    "vision_model.embeddings.patch_embedding.weight",
    "vision_model.embeddings.position_embedding",
    "vision_model.encoder.layers.0.attn.proj.weight",
    "vision_model.encoder.layers.0.attn.qkv.weight",
    "vision_model.encoder.layers.0.ls1",
    "vision_model.encoder.layers.0.mlp.fc1.weight",
    "vision_model.encoder.layers.0.norm2.weight",
    "mlp1.0.weight",
    "mlp1.1.weight",
    "mlp1.3.bias",
}
INTERNLM2 = {
    "language_model.model.tok_embeddings.weight",
    "language_model.model.layers.0.attention.wqkv.weight",
    "language_model.model.layers.0.attention.wo.weight",
    "language_model.model.layers.0.feed_forward.w1.weight",
    "language_model.model.layers.0.attention_norm.weight",
    "language_model.model.layers.0.ffn_norm.weight",
    "language_model.output.weight",
}
QWEN2 = {
    "language_model.model.layers.0.self_attn.q_proj.bias",
    "language_model.lm_head.weight",
}
AUDIO = {
    "audio_tower.conv1.weight",
    "audio_tower.embed_positions.weight",
    "audio_tower.layers.0.fc1.weight",
    "audio_tower.layers.0.self_attn.out_proj.bias",
    "multi_modal_projector.linear.weight",
}


def chat(model_type: str) -> dict[str, Any]:
    raw = copy.deepcopy(tiny_config("InternVLChatModel"))
    if model_type == "internlm2":
        raw["llm_config"] |= {"model_type": model_type, "bias": False}
    return raw


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (chat("qwen2"), CHAT | QWEN2),
        (chat("internlm2"), CHAT | INTERNLM2),
        (tiny_config("Qwen2AudioForConditionalGeneration"), AUDIO | QWEN2),
    ],
    ids=["internvl-chat", "internvl-chat-internlm2", "qwen2-audio"],
)
def test_published_names(raw: dict[str, Any], expected: set[str], tmp_path: Path) -> None:
    folder = write_media_config(raw, tmp_path)
    names = set(load_file(folder / "model.safetensors"))
    assert expected <= names
    parts = {name.split(".")[0] for name in names}
    assert parts == {name.split(".")[0] for name in expected}


def test_internlm2_is_fused_head_by_head(tmp_path: Path) -> None:
    """One kv head after the other: its two query heads, its key, its value."""
    folder = write_media_config(chat("internlm2"), tmp_path)
    fused = load_file(folder / "model.safetensors")[
        "language_model.model.layers.1.attention.wqkv.weight"
    ]
    with as_transformers(str(folder)) as copied:
        found = load_file(Path(copied) / "model.safetensors")
    layer = "language_model.model.layers.1.self_attn."
    q, k, v = (found[f"{layer}{letter}_proj.weight"] for letter in "qkv")
    assert torch.equal(fused[:32], q[:32])
    assert torch.equal(fused[32:48], k[:16])
    assert torch.equal(fused[48:64], v[:16])
    assert torch.equal(fused[64:96], q[32:])
