"""Vision attention against transformers' Qwen2-VL and a plain formula; dummy heads."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import VisionAttention as HFVisionAttention

from sglang.srt import server_args
from sglang.srt.layers.attention import vision_utils
from sglang.srt.layers.attention.vision import SingletonCache, VisionAttention
from sglang.srt.layers.rotary_embedding import apply_rotary_pos_emb
from sglang.srt.multimodal.mm_utils import run_dp_sharded_mrope_vision_model
from sglang.srt.utils.errors import ConfigError

E, H, d = 24, 3, 8


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def make(**kwargs) -> VisionAttention:
    attention = VisionAttention(E, H, E, use_qkv_parallel=True, prefix="attn", **kwargs)
    for param in attention.parameters():
        torch.nn.init.normal_(param, std=0.3)
    return attention


@torch.no_grad()
def test_qwen2_vl_attention() -> None:
    config = Qwen2VLVisionConfig(embed_dim=E, num_heads=H)
    config._attn_implementation = "eager"
    reference = HFVisionAttention(config).eval()
    mine = make()
    for name, param in (("qkv", mine.qkv_proj), ("proj", mine.proj)):
        source = getattr(reference, name)
        param.weight.weight_loader(param.weight, source.weight)
        param.bias.weight_loader(param.bias, source.bias)
    x, angles = torch.randn(10, E), torch.randn(10, d // 2)
    cu_seqlens = torch.tensor([0, 4, 10], dtype=torch.int32)
    cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
    expected = reference(x, cu_seqlens=cu_seqlens, position_embeddings=(cos, sin))
    got = mine(x, cu_seqlens=cu_seqlens, position_embeddings=(cos, sin))
    assert got.shape == (1, 10, E)
    torch.testing.assert_close(got[0], expected, rtol=1e-5, atol=1e-5)
    halves = mine(x, cu_seqlens, rotary_pos_emb_cos=angles.cos(), rotary_pos_emb_sin=angles.sin())
    torch.testing.assert_close(halves, got)


@torch.no_grad()
def test_rows_of_a_batch_are_sequences() -> None:
    attention, x = make(), torch.randn(2, 5, E)
    apart = torch.cat([attention(row) for row in x])
    torch.testing.assert_close(attention(x), apart)
    cache = SingletonCache()
    torch.testing.assert_close(attention(x, cache), apart)
    assert cache.get_data().tolist() == [0, 5, 10]
    mask = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    torch.testing.assert_close(attention(x, attention_mask=mask), apart, rtol=1e-5, atol=1e-5)
    mask[..., 3:] = False
    kept = attention(x, attention_mask=mask)
    moved = x.clone()
    moved[:, 3:] = 7.0
    torch.testing.assert_close(attention(moved, attention_mask=mask)[:, :3], kept[:, :3])


@torch.no_grad()
def test_norms_of_q_and_k() -> None:
    x = torch.randn(5, E)
    for kwargs, width in (
        ({"qk_normalization": True}, E),
        ({"qk_normalization_by_head_size": True}, d),
    ):
        attention = make(layer_norm_eps=1e-5, **kwargs)
        qkv = F.linear(x, attention.qkv_proj.weight, attention.qkv_proj.bias)
        q, k, v = qkv.chunk(3, dim=-1)
        norm = (width,)
        q = F.rms_norm(q.reshape(-1, width), norm, attention.q_norm.weight, 1e-5).view(5, H, d)
        k = F.rms_norm(k.reshape(-1, width), norm, attention.k_norm.weight, 1e-5).view(5, H, d)
        scores = torch.einsum("qhd,khd->hqk", q, k) * d**-0.5
        out = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v.view(5, H, d)).reshape(5, E)
        expected = F.linear(out, attention.proj.weight, attention.proj.bias)
        torch.testing.assert_close(attention(x)[0], expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_own_position_applier() -> None:
    def applier(q, k, positions, shape):
        assert shape == (1, 5, E)
        return apply_rotary_pos_emb(q, k, *positions)

    x, angles = torch.randn(5, E), torch.randn(5, d)
    positions = (angles.cos(), angles.sin())
    plain = make()
    own = make(customized_position_embedding_applier=applier)
    own.load_state_dict(plain.state_dict())
    torch.testing.assert_close(
        own(x, position_embeddings=positions), plain(x, position_embeddings=positions)
    )


@torch.no_grad()
def test_the_flag_wins_over_the_backend_of_a_model_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU all of them are torch's attention."""
    x, cu_seqlens = torch.randn(10, E), torch.tensor([0, 4, 10])
    monkeypatch.setattr(server_args, "_global_server_args", None)
    plain, asked = make(), make(qkv_backend="triton_attn")
    assert (plain.backend, asked.backend) == ("sdpa", "triton_attn")
    asked.load_state_dict(plain.state_dict())
    torch.testing.assert_close(asked(x, cu_seqlens), plain(x, cu_seqlens))
    flags = server_args.ServerArgs(mm_attention_backend="triton_attn")
    monkeypatch.setattr(server_args, "_global_server_args", flags)
    assert make(qkv_backend="sdpa").backend == "triton_attn"


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="use_qkv_parallel"):
        VisionAttention(E, H, E, use_qkv_parallel=False)
    with pytest.raises(ValueError, match="cu_seqlens"):
        make()(torch.randn(5, E), torch.tensor([0, 4]))


@torch.no_grad()
def test_dummy_heads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three heads over two ranks need a fourth of zeros."""
    vision = SimpleNamespace(hidden_size=E, num_heads=H)
    config = SimpleNamespace(vision_config=vision)
    monkeypatch.setattr(vision_utils, "get_attention_tp_size", lambda: 2)
    vision_utils.update_vit_attn_dummy_heads_config(config)
    assert (vision.head_dim, vision.num_dummy_heads) == (d, 1)
    plain, padded = make(qk_normalization=True), make(qk_normalization=True, num_dummy_heads=1)
    for name, param in plain.named_parameters():
        value = vision_utils.pad_vit_attn_dummy_heads(config, f"blocks.0.attn.{name}", param)
        target = padded.get_parameter(name)
        assert value.shape == target.shape
        target.copy_(value)
    x = torch.randn(5, E)
    torch.testing.assert_close(padded(x), plain(x), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="qkv_proj"):
        vision_utils.pad_vit_attn_dummy_heads(config, "attn.qkv_proj.scale", torch.ones(1))
    other = torch.ones(2)
    assert vision_utils.pad_vit_attn_dummy_heads(config, "mlp.fc1.weight", other) is other


def test_vision_tower_on_one_rank() -> None:
    def tower(pixels, grid):
        return pixels * grid.sum()

    out = run_dp_sharded_mrope_vision_model(
        tower, torch.ones(2), [[1, 2, 2], [1, 2, 4]], rope_type="rope_3d"
    )
    assert out.tolist() == [12, 12]
    with pytest.raises(ConfigError, match="rope_type"):
        run_dp_sharded_mrope_vision_model(tower, torch.ones(2), [], rope_type="rope_9d")
