"""Every kind of rotary embedding against transformers' own modules and rotations."""

from __future__ import annotations

import pytest
import torch
from transformers import DeepseekV3Config, LlamaConfig, Phi3Config, Qwen2VLTextConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
    DeepseekV3RotaryEmbedding,
    apply_rotary_pos_emb_interleave,
)
from transformers.models.glm.modeling_glm import apply_rotary_pos_emb as apply_gptj
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as apply_neox
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding
from transformers.models.phi3.modeling_phi3 import apply_rotary_pos_emb as apply_partial
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLRotaryEmbedding
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRotaryEmbedding

from sglang.srt.layers.rotary_embedding import (
    MRotaryEmbedding,
    SwitchedRotaryEmbedding,
    apply_rotary_pos_emb,
    get_rope,
    get_rope_wrapper,
    yarn_get_mscale,
)

DIM, HEADS, KV_HEADS = 32, 4, 2
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}


def _inputs(num_tokens, dim=DIM):
    torch.manual_seed(num_tokens)
    return torch.randn(num_tokens, HEADS * dim), torch.randn(num_tokens, KV_HEADS * dim)


def _batched(x, dim=DIM):
    """[T, heads * d] as transformers has it, [1, heads, T, d]."""
    return x.view(len(x), -1, dim).transpose(0, 1)[None]


def _flat(x):
    return x[0].transpose(0, 1).flatten(1)


def _compare(rope, module, apply, positions):
    q, k = _inputs(positions.shape[-1])
    ids = positions[:, None] if positions.dim() == 2 else positions[None]
    cos, sin = module(q, ids)
    expected = [_flat(x) for x in apply(_batched(q), _batched(k), cos, sin)]
    actual = rope(positions, q.clone(), k.clone())
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape and a.dtype == e.dtype
        torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-5)


def _llama(scaling, max_position, **kwargs):
    parameters = {"rope_theta": 10000.0, **(scaling or {"rope_type": "default"}), **kwargs}
    return LlamaRotaryEmbedding(
        LlamaConfig(
            hidden_size=DIM * HEADS,
            num_attention_heads=HEADS,
            max_position_embeddings=max_position,
            rope_parameters=parameters,
        )
    )


@pytest.mark.parametrize(
    ("scaling", "max_position"),
    [
        (None, 512),
        ({"rope_type": "linear", "factor": 4.0}, 128),
        (
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
            512,
        ),
        (YARN, 512),
        ({**YARN, "beta_fast": 16.0, "beta_slow": 2.0, "truncate": False}, 512),
        ({**YARN, "attention_factor": 1.25}, 512),
        ({**YARN, "mscale": 1.0, "mscale_all_dim": 0.7}, 512),
    ],
)
def test_kinds_equal_transformers(scaling, max_position):
    positions = torch.tensor([0, 1, 7, 100, 255, 400, 511])
    rope = get_rope(DIM, DIM, max_position, 10000.0, rope_scaling=scaling)
    _compare(rope, _llama(scaling, max_position), apply_neox, positions)


@pytest.mark.parametrize("last", [120, 255])
def test_dynamic_equals_transformers_within_and_at_the_full_length(last):
    scaling = {"rope_type": "dynamic", "factor": 2.0}
    positions = torch.tensor([0, 5, 77, last])
    rope = get_rope(DIM, DIM, 128, 10000.0, rope_scaling=scaling)
    _compare(rope, _llama(scaling, 128), apply_neox, positions)


def test_dynamic_alpha_scales_the_base():
    rope = get_rope(DIM, DIM, 128, 10000.0, rope_scaling={"type": "dynamic", "alpha": 50.0})
    plain = get_rope(DIM, DIM, 128, 10000.0 * 50.0 ** (DIM / (DIM - 2)))
    torch.testing.assert_close(rope.cos_sin_cache, plain.cos_sin_cache)


@pytest.mark.parametrize("last", [60, 200])
@pytest.mark.parametrize("partial", [1.0, 0.5])
def test_longrope_equals_transformers(last, partial):
    half = int(DIM * partial) // 2
    scaling = {
        "rope_type": "longrope",
        "short_factor": [1.0 + 0.01 * i for i in range(half)],
        "long_factor": [2.0 + 0.5 * i for i in range(half)],
        "original_max_position_embeddings": 64,
    }
    module = Phi3RotaryEmbedding(
        Phi3Config(
            hidden_size=DIM * HEADS,
            num_attention_heads=HEADS,
            max_position_embeddings=256,
            original_max_position_embeddings=64,
            pad_token_id=0,
            rope_parameters={
                "rope_theta": 10000.0,
                "partial_rotary_factor": partial,
                **scaling,
            },
        )
    )
    rope = get_rope(DIM, DIM, 256, 10000.0, rope_scaling=scaling, partial_rotary_factor=partial)
    _compare(rope, module, apply_partial, torch.tensor([0, 1, 33, last]))


def test_switched_tables_can_be_fixed():
    scaling = {
        "rope_type": "longrope",
        "short_factor": [1.0] * 16,
        "long_factor": [3.0] * 16,
        "original_max_position_embeddings": 8,
    }
    rope = get_rope(DIM, DIM, 16, 500.0, rope_scaling=scaling)
    assert isinstance(rope, SwitchedRotaryEmbedding)
    q, k = _inputs(3)
    near, far = torch.tensor([0, 1, 2]), torch.tensor([0, 1, 8])
    free_near, free_far = rope(near, q, k)[0], rope(far, q, k)[0]
    rope.fix_context_length(16)
    assert torch.equal(rope(far, q, k)[0], free_far)
    assert not torch.allclose(rope(near, q, k)[0], free_near)
    rope.fix_context_length(8)
    assert torch.equal(rope(near, q, k)[0], free_near)


def test_deepseek_yarn_equals_transformers():
    scaling = {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5}
    config = DeepseekV3Config(
        qk_rope_head_dim=DIM,
        head_dim=DIM,
        max_position_embeddings=512,
        rope_parameters={"rope_theta": 10000.0, **scaling},
    )
    rope = get_rope(
        DIM, DIM, 512, 10000.0, False, rope_scaling={**scaling, "rope_type": "deepseek_yarn"}
    )
    positions = torch.tensor([0, 3, 200, 511])
    q, k = _inputs(4)
    cos, sin = DeepseekV3RotaryEmbedding(config)(q, positions[None])
    expected = apply_rotary_pos_emb_interleave(_batched(q), _batched(k), cos, sin)
    for actual, reference in zip(rope(positions, q, k), expected, strict=True):
        # transformers gathers the even dimensions before the odd ones; scores do not depend on it.
        pairs = actual.view(4, -1, DIM // 2, 2).transpose(2, 3).flatten(1)
        torch.testing.assert_close(pairs, _flat(reference), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("partial", [1.0, 0.5])
def test_gptj_style_equals_transformers(partial):
    rope = get_rope(DIM, DIM, 64, 10000.0, False, partial_rotary_factor=partial)
    positions = torch.tensor([0, 9, 63])
    q, k = _inputs(3)
    angles = torch.outer(
        positions.float(), rope.base ** -(torch.arange(0, DIM * partial, 2) / (DIM * partial))
    )
    angles = torch.cat([angles, angles], -1)[None]
    expected = apply_gptj(_batched(q), _batched(k), angles.cos(), angles.sin())
    for actual, reference in zip(rope(positions, q, k), expected, strict=True):
        torch.testing.assert_close(actual, _flat(reference), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("kind", ["default", "mrope", "yarn"])
def test_mrope_equals_transformers(interleaved, kind):
    scaling = {"rope_type": "default", "mrope_section": [6, 5, 5]}
    if kind == "yarn":
        scaling |= YARN
    parameters = {"rope_theta": 10000.0, **scaling}
    common = {
        "hidden_size": DIM * HEADS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": 512,
        "head_dim": DIM,
        "rope_parameters": parameters,
    }
    if interleaved:
        module = Qwen3VLTextRotaryEmbedding(Qwen3VLTextConfig(**common))
    else:
        module = Qwen2VLRotaryEmbedding(Qwen2VLTextConfig(**common))
    if kind == "mrope":
        scaling["rope_type"] = "mrope"
    rope = get_rope(
        DIM, DIM, 512, 10000.0, rope_scaling={**scaling, "mrope_interleaved": interleaved}
    )
    assert isinstance(rope, MRotaryEmbedding)
    positions = torch.tensor([[0, 5, 100, 300], [0, 9, 40, 301], [0, 2, 77, 310]])
    q, k = _inputs(4)
    cos, sin = module(q, positions[:, None])
    if cos.dim() == 4:  # the sections are joined by the caller
        sections = [6, 5, 5] * 2
        cos, sin = (
            torch.cat([part[i % 3] for i, part in enumerate(t.split(sections, dim=-1))], dim=-1)
            for t in (cos, sin)
        )
    expected = apply_neox(_batched(q), _batched(k), cos, sin)
    for actual, reference in zip(rope(positions, q, k), expected, strict=True):
        torch.testing.assert_close(actual, _flat(reference), rtol=1e-5, atol=1e-5)


def test_mrope_with_equal_positions_is_plain():
    sections = {"rope_type": "default", "mrope_section": [4, 6, 6]}
    rope = get_rope(DIM, DIM, 64, 100.0, rope_scaling=sections)
    positions, (q, k) = torch.tensor([1, 2, 40]), _inputs(3)
    plain = get_rope(DIM, DIM, 64, 100.0)(positions, q, k)
    for form in (positions, positions.expand(3, 3)):
        for actual, expected in zip(rope(form, q, k), plain, strict=True):
            torch.testing.assert_close(actual, expected)


def test_offsets_shapes_and_key_none():
    rope = get_rope(DIM, DIM, 64, 10000.0)
    q, k = _inputs(3)
    positions, offsets = torch.tensor([1, 2, 3]), torch.tensor([10, 20, 30])
    expected = rope(positions + offsets, q, k)
    shifted = rope(positions, q, k, offsets)
    assert torch.equal(shifted[0], expected[0]) and torch.equal(shifted[1], expected[1])
    q3, k3 = rope(positions + offsets, q.view(3, HEADS, DIM), k.view(3, KV_HEADS, DIM))
    assert q3.shape == (3, HEADS, DIM) and torch.equal(q3.flatten(1), expected[0])
    assert torch.equal(k3.flatten(1), expected[1])
    alone, none = rope(positions + offsets, q, None)
    assert none is None and torch.equal(alone, expected[0])


def test_slices_of_a_fused_projection_and_empty_batches():
    rope = get_rope(DIM, DIM, 64, 10000.0, partial_rotary_factor=0.25)
    fused = torch.randn(3, (HEADS + 2 * KV_HEADS) * DIM)
    q, k, _ = fused.split([HEADS * DIM, KV_HEADS * DIM, KV_HEADS * DIM], dim=-1)
    positions = torch.tensor([1, 2, 3])
    before = fused.clone()
    expected = rope(positions, q.contiguous(), k.contiguous())
    actual = rope(positions, q, k)
    assert torch.equal(actual[0], expected[0]) and torch.equal(actual[1], expected[1])
    assert torch.equal(fused, before)
    q, k = rope(positions[:0], q[:0], k[:0])
    assert q.shape == (0, HEADS * DIM) and k.shape == (0, KV_HEADS * DIM)


def test_bfloat16_rotates_in_float32():
    rope = get_rope(DIM, DIM, 512, 10000.0)
    q, k = (x.bfloat16() for x in _inputs(4))
    positions = torch.tensor([0, 1, 300, 511])
    exact = rope(positions, q.float(), k.float())
    actual = rope(positions, q, k)
    for a, e in zip(actual, exact, strict=True):
        assert torch.equal(a, e.bfloat16())


def test_modules_are_shared_by_their_arguments():
    scaling = {"rope_type": "linear", "factor": 2.0}
    first = get_rope(DIM, DIM, 64, 10000.0, rope_scaling=scaling)
    assert first is get_rope(DIM, DIM, 64, 10000.0, rope_scaling=dict(scaling))
    assert first is get_rope_wrapper(DIM, DIM, 64, 10000.0, rope_scaling=scaling, device="cpu")
    assert first is not get_rope(DIM, DIM, 64, 10000.0)
    assert first.cos_sin_cache.dtype == torch.float32
    assert not first.state_dict()


def test_tables_are_float32_under_another_default_dtype():
    torch.set_default_dtype(torch.bfloat16)
    try:
        rope = get_rope(DIM, DIM, 321, 10000.0)
    finally:
        torch.set_default_dtype(torch.float32)
    cos, sin = rope.get_cos_sin(321)
    angles = torch.outer(torch.arange(321.0), 10000.0 ** -(torch.arange(0, DIM, 2) / DIM))
    torch.testing.assert_close(cos, angles.cos(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sin, angles.sin(), rtol=1e-5, atol=1e-5)


def test_several_linear_factors_are_chosen_by_offset():
    rope = get_rope(DIM, DIM, 16, 77.0, rope_scaling={"rope_type": "linear", "factor": [1.0, 4.0]})
    assert rope.scaling_factor_to_offset == {1.0: 0, 4.0: 16}
    single = get_rope(DIM, DIM, 16, 77.0, rope_scaling={"rope_type": "linear", "factor": 4.0})
    positions, (q, k) = torch.tensor([0, 3, 15]), _inputs(3)
    expected = single(positions, q, k)[0]
    assert torch.equal(rope(positions, q, k, torch.full((3,), 16))[0], expected)


def test_helpers():
    assert yarn_get_mscale(0.5) == 1.0 and yarn_get_mscale(torch.e) == pytest.approx(1.1)
    rope = get_rope(DIM, DIM, 64, 10000.0)
    q, k = _inputs(3)
    positions = torch.tensor([4, 5, 6])
    cos, sin = (torch.cat([t[positions]] * 2, -1) for t in rope.get_cos_sin(64))
    q2, k2 = apply_rotary_pos_emb(q.view(3, HEADS, DIM), k.view(3, KV_HEADS, DIM), cos, sin)
    expected = rope(positions, q, k)
    torch.testing.assert_close(q2.flatten(1), expected[0])
    torch.testing.assert_close(k2.flatten(1), expected[1])


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        (
            {"rope_scaling": {"rope_type": "spiral"}},
            "'spiral' is not supported; supported: deepseek",
        ),
        ({"rope_scaling": {"type": "linear"}}, "'linear' needs 'factor'"),
        ({"rope_scaling": {"rope_type": "default", "use_fope": True}}, "use_fope"),
        ({"dual_chunk_attention_config": {}}, "dual_chunk"),
        ({"partial_rotary_factor": 0.1}, "rotary_dim=3"),
        (
            {"rope_scaling": {"rope_type": "default", "mrope_section": [1, 2, 3]}},
            "add up to 16",
        ),
    ],
)
def test_what_is_refused(kwargs, words):
    with pytest.raises(ValueError, match=words):
        get_rope(DIM, DIM, 64, 10000.0, **kwargs)
