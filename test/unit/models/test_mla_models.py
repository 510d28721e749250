"""Families with latent attention: both forms agree, features show, published configs and checkpoints are read, ranks agree."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from models.configs import CASES
from models.configs_mla import MLA_CASES
from models.forward import HandRunner, Share, assert_close, load_model
from models.tiny import build_model, write_checkpoint
from models.two_ranks import assert_two_ranks_agree
from safetensors.torch import load_file, save_file

from sglang.srt.configs.hf_config import RopeFacts, read_facts
from sglang.srt.configs.mla import MLAFacts
from sglang.srt.configs.model_config import AttentionArch, ModelConfig
from sglang.srt.layers.quantization.base_config import LinearMethodBase
from sglang.srt.layers.quantization.unquant import UnquantizedLinearMethod
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, MLATokenToKVPool
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.model_executor.kv_pool import create_kv_pool, kv_bytes_per_token
from sglang.srt.models.common import mla
from sglang.srt.models.common.moe import Router, SparseMoE
from sglang.srt.models.deepseek_v2 import DeepseekV2DecoderLayer, prediction_layers
from sglang.srt.utils.errors import ConfigError

TOKENS = torch.randint(3, 512, (1, 40), generator=torch.Generator().manual_seed(0))

FEATURES: list[tuple[str, dict[str, Any]]] = [
    ("deepseek-v2-lite", {"routed_scaling_factor": 1.0}),
    ("deepseek-v2-lite", {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}),
    ("deepseek-v2", {"topk_method": "greedy"}),
    ("deepseek-v2", {"topk_group": 3}),
    ("deepseek-v2", {"routed_scaling_factor": 1.0}),
    ("deepseek-v3", {"n_group": 1, "topk_group": 1}),
    ("deepseek-v3", {"topk_group": 3}),
    ("deepseek-v3", {"rope_interleave": False}),
    ("deepseek-v3", {"norm_topk_prob": False}),
    ("deepseek-v3-halves", {"n_group": 1}),
    ("deepseek-v3-halves", {"norm_topk_prob": True}),
    ("kimi-k2", {"routed_scaling_factor": 1.0}),
    ("glm4-moe-lite-groups", {"n_group": 1, "topk_group": 1}),
    ("minicpm3-long", {"scale_depth": 1.0}),
    ("minicpm3-long", {"dim_model_base": 64}),
    ("minicpm3-long", {"scale_emb": 1}),
]


@torch.inference_mode()
def _logits(name: str, **overrides: Any) -> torch.Tensor:
    return build_model(name, **overrides)(TOKENS, use_cache=False).logits[0].float()


@pytest.mark.parametrize(("name", "without"), FEATURES)
def test_a_feature_left_out_would_be_noticed(name: str, without: dict[str, Any]) -> None:
    """The reference itself, with the same weights, moves by a hundred times what the comparison allows."""
    with_feature = _logits(name)
    allowed = 1e-4 * max(1.0, with_feature.abs().max().item())
    assert (_logits(name, **without) - with_feature).abs().max().item() > 100 * allowed


def test_every_case_is_among_the_tiny_models() -> None:
    assert MLA_CASES.items() <= CASES.items()


# --- the two forms


def _prefill(runner: HandRunner) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a whole prefill, and what it leaves in the last layer's cache."""
    (logits,) = runner.step(ForwardMode.EXTEND, [Share(0, 0, TOKENS[0].tolist())])
    keys = runner.kv.get_key_buffer(runner.kv.layer_num - 1)
    return logits, keys[runner.slots[0, : TOKENS.shape[1]]].clone()


@pytest.mark.parametrize("name", ["deepseek-v2-lite", "deepseek-v3", "minicpm3-q-whole"])
def test_absorbed_and_expanded_attention_agree(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_checkpoint(name, tmp_path)
    runner = HandRunner(load_model(folder), folder)
    expanded, cache = _prefill(runner)
    monkeypatch.setattr(mla.MLAttention, "attend_expanded", None)  # any use of it fails
    with pytest.raises(TypeError):
        _prefill(runner)
    monkeypatch.setattr(mla, "is_whole_prefill", lambda batch: False)
    absorbed, same_cache = _prefill(runner)
    assert_close(absorbed, expanded, "absorbed against expanded")
    torch.testing.assert_close(same_cache, cache, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("mode", "prefixes", "new", "is_whole"),
    [
        (ForwardMode.EXTEND, [0, 0], [5, 2], True),
        (ForwardMode.EXTEND, [0, 3], [5, 2], False),  # a prefix in the cache
        (ForwardMode.EXTEND, [0, 0], [5, 1], False),  # backends read the cache for it
        (ForwardMode.MIXED, [0, 9], [5, 1], False),
        (ForwardMode.DECODE, None, None, False),
        (ForwardMode.TARGET_VERIFY, [0], [5], False),
        (ForwardMode.EXTEND, None, None, False),
        (ForwardMode.EXTEND, [], [], False),
    ],
)
def test_only_prompts_without_a_cached_prefix_are_expanded(
    mode: ForwardMode, prefixes: list[int] | None, new: list[int] | None, is_whole: bool
) -> None:
    batch: Any = SimpleNamespace(
        forward_mode=mode, extend_prefix_lens_cpu=prefixes, extend_seq_lens_cpu=new
    )
    assert mla.is_whole_prefill(batch) is is_whole


@pytest.mark.parametrize("is_plain", [True, False])
def test_a_quantized_projection_from_the_latent_is_refused(is_plain: bool) -> None:
    def method_of(layer: torch.nn.Module, prefix: str) -> Any:
        if isinstance(layer, RadixAttention):
            return None
        keeps = is_plain or not prefix.endswith("kv_b_proj")
        if keeps:
            return UnquantizedLinearMethod()
        return Mock(spec=LinearMethodBase, leave_plain_weight=lambda layer: False)

    quant_config: Any = SimpleNamespace(get_quant_method=method_of, get_name=lambda: "odd8")

    def build() -> mla.MLAttention:
        sizes = MLAFacts(32, 24, 16, 8, 12)
        rotary: dict[str, Any] = {"rope_theta": 1e4, "rope_scaling": None}
        return mla.MLAttention(
            64,
            4,
            sizes,
            0,
            **rotary,
            max_position_embeddings=64,
            quant_config=quant_config,
            prefix="a",
        )

    if is_plain:
        assert build().o_proj.weight.shape == (64, 4 * 12)
        return
    with pytest.raises(ConfigError, match=r"a\.kv_b_proj quantized \(odd8\)"):
        build()


# --- configs


# DeepSeek-V3's config.json as published, without what does not matter here.
PUBLISHED: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_nextn_predict_layers": 1,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "max_position_embeddings": 163840,
    "vocab_size": 129280,
    "rope_theta": 10000,
    "rope_scaling": {
        "type": "yarn",
        "factor": 40,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
    },
}


def _write(folder: Path, **keys: Any) -> str:
    (folder / "config.json").write_text(json.dumps({**PUBLISHED, **keys}))
    return str(folder)


def test_sizes_of_a_published_config(tmp_path: Path) -> None:
    config = ModelConfig(_write(tmp_path))
    assert config.facts.mla == MLAFacts(512, 1536, 128, 64, 128)
    assert (config.facts.mla.qk_head_dim, config.facts.mla.cache_dim) == (192, 576)
    assert config.attention_arch is AttentionArch.MLA
    assert config.context_len == 163840
    assert [config.get_num_kv_heads(tp) for tp in (1, 8)] == [1, 1]
    # Every rank keeps the whole latent.
    for tp_size in (1, 8):
        assert kv_bytes_per_token(config, tp_size, torch.bfloat16) == 61 * 576 * 2
    factor = mla.yarn_score_factor(config.facts.rope)
    assert factor == pytest.approx((0.1 * math.log(40) + 1) ** 2)


def test_scores_have_no_factor_without_one_in_the_config() -> None:
    assert mla.yarn_score_factor(None) == 1.0
    assert mla.yarn_score_factor(RopeFacts("default", 1e4)) == 1.0
    assert mla.yarn_score_factor(RopeFacts("yarn", 1e4, params={"factor": 40.0})) == 1.0


def test_ranks_need_not_divide_the_kv_heads_of_the_config(tmp_path: Path) -> None:
    config = ModelConfig(_write(tmp_path, num_key_value_heads=5))
    config.check_tp_size(8)
    with pytest.raises(ConfigError, match="tp_size=3 does not divide the model's 128"):
        config.check_tp_size(3)
    plain = ModelConfig(_write(tmp_path, num_key_value_heads=5, kv_lora_rank=None))
    with pytest.raises(ConfigError, match="5 KV heads"):
        plain.check_tp_size(8)


def test_a_missing_size_is_named() -> None:
    with pytest.raises(ConfigError, match="'qk_rope_head_dim'"):
        read_facts({**PUBLISHED, "qk_rope_head_dim": None})
    # MiniCPM3 leaves the width of values out, and others the latent of queries.
    facts = read_facts({**PUBLISHED, "v_head_dim": None, "q_lora_rank": None}).mla
    assert facts is not None and (facts.v_head_dim, facts.q_lora_rank) == (7168 // 128, None)
    assert read_facts({**PUBLISHED, "kv_lora_rank": None}).mla is None


def test_pools_by_kind_of_attention(tmp_path: Path) -> None:
    for name, cls in (("minicpm3-long", MLATokenToKVPool), ("llama", MHATokenToKVPool)):
        config = ModelConfig(str(write_checkpoint(name, tmp_path / name)))
        for page_size in (1, 16):
            pool = create_kv_pool(config, 1, 32, page_size, torch.float32, "cpu")
            assert type(pool) is cls and (pool.size, pool.page_size) == (32, page_size)
            assert pool.total_bytes == 32 * kv_bytes_per_token(config, 1, torch.float32)  # type: ignore[attr-defined]


def test_block_fp8_is_known_and_others_are_refused_by_name(tmp_path: Path) -> None:
    blocks = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
    config = ModelConfig(_write(tmp_path, quantization_config=blocks))
    assert (config.quantization, config.quantization_config) == ("fp8", blocks)
    groups = {"quant_method": "compressed-tensors"}
    with pytest.raises(ConfigError, match="quant_method='compressed-tensors'"):
        ModelConfig(_write(tmp_path, quantization_config=groups))


def _edit_config(folder: Path, **keys: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **keys}))


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        (
            "deepseek-v2",
            {"topk_method": "noaux_tc"},
            "topk_method='noaux_tc'.*group_limited_greedy",
        ),
        ("deepseek-v2", {"norm_topk_prob": True}, "norm_topk_prob=True"),
        ("deepseek-v2", {"scoring_func": "sigmoid"}, "scoring_func='sigmoid'"),
        ("deepseek-v2", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ("deepseek-v2", {"kv_lora_rank": 0}, "without kv_lora_rank"),
        ("deepseek-v3", {"scoring_func": "softmax"}, "scoring_func='softmax'"),
        ("deepseek-v3", {"n_group": 3}, "n_group=3 must divide the number of experts, 8"),
        ("deepseek-v3", {"topk_group": 5}, "topk_group=5 must be between 1 and n_group"),
        ("deepseek-v3", {"topk_group": 1}, "num_experts_per_tok=3 .* in 1 of 4 groups, 2"),
        ("glm4-moe-lite", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary"),
    ],
)
def test_what_is_not_implemented_is_refused(
    name: str, keys: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = write_checkpoint(name, tmp_path)
    _edit_config(folder, **keys)
    with pytest.raises(ConfigError, match=message):
        load_model(folder)


def test_layers_with_experts() -> None:
    def layers(**keys: Any) -> list[int]:
        raw = {"n_routed_experts": 8, "first_k_dense_replace": 1, **keys}
        config = SimpleNamespace(**raw, to_dict=lambda: raw)
        return [i for i in range(6) if DeepseekV2DecoderLayer.has_experts(config, i)]

    assert layers() == [1, 2, 3, 4, 5]
    assert layers(first_k_dense_replace=3, moe_layer_freq=1) == [3, 4, 5]
    assert layers(moe_layer_freq=2) == [2, 4]
    assert layers(n_routed_experts=None) == []


# --- checkpoints


def test_kimi_k2_is_read_as_deepseek_v3(tmp_path: Path) -> None:
    folder = write_checkpoint("kimi-k2", tmp_path)
    published = {"topk_method": "noaux_tc", "scoring_func": "sigmoid", "moe_layer_freq": 1}
    _edit_config(folder, model_type="kimi_k2", **published)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "kimi_k2"
    runner = HandRunner(load_model(folder), folder)
    (got,) = runner.step(ForwardMode.EXTEND, [Share(0, 0, TOKENS[0].tolist())])
    assert_close(got, _logits("kimi-k2"), "kimi_k2")


# case, and the names on disk of a latent's projection, one expert's gate and all experts' down matrices
LAYOUTS = [
    ("deepseek-v2", "q_a_proj"),
    ("deepseek-v2-lite", "q_proj"),
    ("deepseek-v3", "kv_a_proj_with_mqa"),
    ("glm4-moe-lite-groups", "q_b_proj"),
]


@pytest.mark.parametrize(("name", "projection"), LAYOUTS)
def test_both_layouts_fill_the_same_parameters(name: str, projection: str, tmp_path: Path) -> None:
    classic = write_checkpoint(name, tmp_path / "classic")
    fused = tmp_path / "fused"
    build_model(name).save_pretrained(fused, save_original_format=False)
    on_disk = load_file(classic / "model.safetensors")
    assert f"model.layers.0.self_attn.{projection}.weight" in on_disk
    assert "model.layers.2.mlp.experts.7.gate_proj.weight" in on_disk
    assert "model.layers.2.mlp.shared_experts.up_proj.weight" in on_disk
    assert "model.layers.2.mlp.experts.down_proj" in load_file(fused / "model.safetensors")
    expected = dict(load_model(classic).named_parameters())
    for key, parameter in load_model(fused).named_parameters():
        assert torch.equal(parameter, expected.pop(key)), key
    assert not expected


def test_layers_of_multi_token_prediction_are_not_loaded(tmp_path: Path) -> None:
    folder = write_checkpoint("deepseek-v3", tmp_path)
    file = folder / "model.safetensors"
    extra = {
        "model.layers.3.eh_proj.weight": torch.zeros(64, 128),
        "model.layers.3.embed_tokens.weight": torch.zeros(512, 64),
        "model.layers.3.self_attn.kv_a_proj_with_mqa.weight": torch.zeros(40, 64),
    }
    save_file({**load_file(file), **extra}, file, metadata={"format": "pt"})
    _edit_config(folder, num_nextn_predict_layers=1)
    names = dict(load_model(folder).named_parameters())
    assert "model.layers.2.self_attn.kv_b_proj.weight" in names
    assert not any("layers.3." in name for name in names)


def test_pattern_of_multi_token_prediction() -> None:
    raw = {"num_hidden_layers": 61, "num_nextn_predict_layers": 2}
    (pattern,) = prediction_layers(SimpleNamespace(**raw, to_dict=lambda: raw))
    layers = {n: f"model.layers.{n}.eh_proj.weight" for n in (6, 60, 61, 62, 63, 610)}
    assert [n for n, name in layers.items() if re.search(pattern, name)] == [61, 62]
    raw = {"num_hidden_layers": 61}
    assert prediction_layers(SimpleNamespace(**raw, to_dict=lambda: raw)) == ()


def test_the_correction_bias_keeps_its_precision(tmp_path: Path) -> None:
    folder = write_checkpoint("deepseek-v3", tmp_path)
    name = "model.layers.1.mlp.gate.e_score_correction_bias"
    on_disk = load_file(folder / "model.safetensors")[name]
    parameters = dict(load_model(folder, dtype="bfloat16").named_parameters())
    assert parameters["model.layers.1.mlp.gate.weight"].dtype == torch.bfloat16
    assert torch.equal(parameters[name], on_disk) and on_disk.dtype == torch.float32
    assert not torch.equal(on_disk.bfloat16().float(), on_disk)


# --- experts


def test_router_in_float32() -> None:
    weight, x = torch.randn(4, 64).bfloat16(), torch.randn(3, 64).bfloat16()
    wide, narrow = (Router(64, 4, in_float32=flag).bfloat16() for flag in (True, False))
    for router in (wide, narrow):
        router.weight.data.copy_(weight)
    logits, bias = wide(x)
    assert bias is None and logits.dtype == torch.float32
    torch.testing.assert_close(logits, x.float() @ weight.float().T)
    assert narrow(x)[0].dtype == torch.bfloat16
    assert narrow.e_score_correction_bias is None


def test_shared_experts_are_added_unscaled() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 32)
    options: dict[str, Any] = {"renormalize": True, "shared_intermediate_size": 16}
    block = SparseMoE(32, 16, 4, 2, 0, routed_scaling_factor=2.5, **options)
    for param in block.parameters():
        param.data.normal_(std=0.3)
    assert block.shared_experts is not None
    with torch.no_grad():
        shared = block.shared_experts(x)
        scaled = block(x) - shared
        block.experts.moe_runner_config.routed_scaling_factor = None
        plain = block(x) - shared
    torch.testing.assert_close(scaled, 2.5 * plain)
    assert plain.abs().max() > 0.01 and shared.abs().max() > 0.01


# --- ranks: with and without a latent of queries, tied and not; experts cut or dealt out

TWO_RANKS = ("deepseek-v2-lite", "deepseek-v3", "glm4-moe-lite-groups", "minicpm3-long")


@pytest.mark.parametrize("ep_size", [1, 2])
def test_two_ranks_compute_what_the_reference_does(ep_size: int, tmp_path: Path) -> None:
    assert_two_ranks_agree(TWO_RANKS, TOKENS[0].tolist(), ep_size, tmp_path)
