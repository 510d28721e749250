"""Routing and experts against transformers' blocks and plain loops; loading; cutting over ranks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import transformers
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from sglang.srt.layers.moe.ep_moe.layer import get_moe_impl_class
from sglang.srt.layers.moe.fused_moe_triton import FusedMoE, fused_moe
from sglang.srt.layers.moe.fused_moe_triton import layer as layer_module
from sglang.srt.layers.moe.moe_runner import MoeRunnerConfig
from sglang.srt.layers.moe.topk import StandardTopKOutput, TopK
from sglang.srt.layers.moe.utils import filter_moe_weight_param_global_expert
from sglang.srt.layers.parameter import unfilled_shards
from sglang.srt.utils.errors import ConfigError

D, WIDTH, E, K, T = 16, 24, 6, 2, 9


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    for param in module.parameters():
        torch.nn.init.normal_(param, std=0.4)
    return module.eval()


def load_block(block: torch.nn.Module, **kwargs) -> FusedMoE:
    """A FusedMoE with the experts of a transformers block, through the per-expert loader."""
    experts = FusedMoE(E, D, WIDTH, layer_id=0, top_k=K, **kwargs)
    for expert in range(E):
        gate, up = block.experts.gate_up_proj[expert].chunk(2, dim=0)
        down = block.experts.down_proj[expert]
        for param, shard, value in (
            (experts.w13_weight, "w1", gate),
            (experts.w13_weight, "w3", up),
            (experts.w2_weight, "w2", down),
        ):
            param.weight_loader(param, value, f"experts.{expert}.weight", shard, expert)
    return experts


@torch.no_grad()
def test_mixtral_block() -> None:
    config = transformers.MixtralConfig(
        hidden_size=D, intermediate_size=WIDTH, num_local_experts=E, num_experts_per_tok=K
    )
    block = randomised(MixtralSparseMoeBlock(config))
    experts = load_block(block)
    assert not unfilled_shards(experts.w13_weight) and not unfilled_shards(experts.w2_weight)
    x = torch.randn(1, T, D)
    logits = x[0] @ block.gate.weight.T
    out = experts(x[0], TopK(K)(x[0], logits))
    reference = block(x)
    reference = reference[0] if isinstance(reference, tuple) else reference
    torch.testing.assert_close(out, reference.reshape(T, D), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm_topk_prob", [True, False])
@torch.no_grad()
def test_qwen3_block(norm_topk_prob: bool) -> None:
    config = transformers.Qwen3MoeConfig(
        hidden_size=D,
        moe_intermediate_size=WIDTH,
        num_experts=E,
        num_experts_per_tok=K,
        norm_topk_prob=norm_topk_prob,
    )
    block = randomised(Qwen3MoeSparseMoeBlock(config))
    experts = load_block(block)
    x = torch.randn(1, T, D)
    topk = TopK(K, renormalize=norm_topk_prob)
    out = experts(x[0], topk(x[0], x[0] @ block.gate.weight.T))
    reference = block(x)
    reference = reference[0] if isinstance(reference, tuple) else reference
    torch.testing.assert_close(out, reference.reshape(T, D), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_deepseek_v3_block() -> None:
    """Grouped routing with a bias, and the scaling factor in the layer or in the weights."""
    config = transformers.DeepseekV3Config(
        hidden_size=D,
        moe_intermediate_size=WIDTH,
        n_routed_experts=E,
        num_experts_per_tok=K,
        n_group=3,
        topk_group=2,
        routed_scaling_factor=2.5,
        n_shared_experts=1,
        norm_topk_prob=True,
    )
    block = randomised(DeepseekV3MoE(config))
    bias = torch.randn(E) * 0.3
    block.gate.e_score_correction_bias.copy_(bias)
    x = torch.randn(1, T, D)
    logits = x[0] @ block.gate.weight.T
    routing = dict(
        use_grouped_topk=True,
        num_expert_group=3,
        topk_group=2,
        scoring_func="sigmoid",
        correction_bias=bias,
        routed_scaling_factor=2.5,
    )
    reference = (block(x) - block.shared_experts(x)).reshape(T, D)
    scaled_outside = load_block(block, routed_scaling_factor=2.5)(
        x[0], TopK(K, **routing)(x[0], logits)
    )
    inside = TopK(K, apply_routed_scaling_factor_on_output=True, **routing)
    scaled_inside = load_block(block)(x[0], inside(x[0], logits))
    torch.testing.assert_close(scaled_outside, reference, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scaled_inside, reference, rtol=1e-4, atol=1e-5)


# --- routing


def test_bias_chooses_but_does_not_weigh() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    bias = torch.tensor([0.0, 0.0, 0.0, 10.0])
    out = TopK(2, renormalize=False, correction_bias=bias)(torch.zeros(1, D), logits)
    assert set(out.topk_ids[0].tolist()) == {0, 3}
    weight_of = dict(zip(out.topk_ids[0].tolist(), out.topk_weights[0].tolist(), strict=True))
    assert weight_of[3] == pytest.approx(logits.softmax(-1)[0, 3].item())
    assert out.topk_ids.dtype == torch.int32 and out.topk_weights.dtype == torch.float32
    assert out.format.is_standard()


def test_groups_exclude_the_best_expert_of_a_weak_group() -> None:
    """By the best of a group without a bias."""
    logits = torch.tensor([[1.0, 0.9, 5.0, -5.0, 4.0, 4.0]])
    topk = TopK(2, use_grouped_topk=True, num_expert_group=3, topk_group=1, renormalize=True)
    out = topk(torch.zeros(1, D), logits)
    assert set(out.topk_ids[0].tolist()) == {2, 3}
    assert out.topk_weights.sum().item() == pytest.approx(1.0)


def test_padding_rows_go_nowhere() -> None:
    out = TopK(K)(torch.zeros(T, D), torch.randn(T, E), num_token_non_padded=torch.tensor(4))
    assert (out.topk_ids[4:] == -1).all() and (out.topk_ids[:4] >= 0).all()
    experts = FusedMoE(E, D, WIDTH, layer_id=0)
    for param in experts.parameters():
        torch.nn.init.normal_(param)
    result = experts(torch.randn(T, D), out)
    assert not result[4:].any() and result[:4].any()


def test_fused_shared_experts() -> None:
    topk = TopK(3, num_fused_shared_experts=1, routed_scaling_factor=2.0)
    out = topk(torch.zeros(T, D), torch.randn(T, E))
    assert (out.topk_ids[:, -1] == E).all() and (out.topk_ids[:, :2] < E).all()
    torch.testing.assert_close(out.topk_weights[:, :2].sum(1), torch.ones(T))
    torch.testing.assert_close(out.topk_weights[:, 2], torch.full((T,), 0.5))


def test_custom_routing_gets_keywords() -> None:
    def routing(hidden_states, gating_output, topk, renormalize):
        assert renormalize is False
        scores, ids = gating_output.topk(topk, dim=-1)
        return scores.sigmoid(), ids

    logits = torch.randn(T, E)
    out = TopK(1, renormalize=False, custom_routing_function=routing)(torch.zeros(T, D), logits)
    torch.testing.assert_close(out.topk_weights, logits.max(1, keepdim=True).values.sigmoid())


def test_fused_shared_experts_count_their_factor_in_the_sum() -> None:
    """After the layer's own scaling by `routed_scaling_factor`, a shared expert counts the factor, 1 by default."""
    logits = torch.randn(T, E)
    options = dict(num_fused_shared_experts=1, routed_scaling_factor=2.5)
    for factor, counts in ((None, 1.0), (1, 1.0), (0.5, 0.5)):
        topk = TopK(K + 1, **options, fused_shared_experts_scaling_factor=factor)
        weights = topk(torch.zeros(T, D), logits).topk_weights * 2.5
        torch.testing.assert_close(weights[:, -1], torch.full((T,), counts))
        torch.testing.assert_close(weights[:, :-1].sum(1), torch.full((T,), 2.5))


def test_groups_by_a_bias_have_sigmoid_scores_whatever_is_said() -> None:
    logits, bias = torch.randn(T, E), torch.randn(E)
    options = dict(use_grouped_topk=True, num_expert_group=3, topk_group=2, correction_bias=bias)
    silent, said = (TopK(K, **options), TopK(K, scoring_func="sigmoid", **options))
    x = torch.zeros(T, D)
    assert torch.equal(silent(x, logits).topk_weights, said(x, logits).topk_weights)


def test_empty_and_refused_routing() -> None:
    assert TopK(K).empty_topk_output("cpu").topk_ids.shape == (0, K)
    for wrong in (
        {"scoring_func": "cosine"},
        {"use_grouped_topk": True},
    ):
        with pytest.raises(ConfigError):
            TopK(K, **wrong)


# --- experts


@pytest.mark.parametrize("top_k", [0, 5])
def test_more_choices_than_experts_are_refused(top_k: int) -> None:
    with pytest.raises(ConfigError, match=f"top_k={top_k} of the experts at 'mlp.experts'.*4"):
        FusedMoE(4, WIDTH, WIDTH, layer_id=0, top_k=top_k, prefix="mlp.experts")
    assert FusedMoE(4, WIDTH, WIDTH, layer_id=0, top_k=4).top_k == 4


def weights(rows: int = 2 * WIDTH) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(E, rows, D) * 0.3, torch.randn(E, D, WIDTH) * 0.3


def routing(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, StandardTopKOutput]:
    x = torch.randn(T, D, dtype=dtype)
    return x, TopK(K)(x, torch.randn(T, E))


def by_loop(x, w13, w2, out, activate, b13=None, b2=None) -> torch.Tensor:
    """Token by token, choice by choice."""
    result = torch.zeros(T, K, D)
    for t in range(T):
        for k in range(K):
            e = out.topk_ids[t, k]
            hidden = w13[e] @ x[t] + (0 if b13 is None else b13[e])
            result[t, k] = w2[e] @ activate(hidden) + (0 if b2 is None else b2[e])
    return result * out.topk_weights[..., None]


def gated(function):
    return lambda hidden: function(hidden[:WIDTH]) * hidden[WIDTH:]


@pytest.mark.parametrize(
    ("config", "rows", "activate"),
    [
        (MoeRunnerConfig(), 2 * WIDTH, gated(F.silu)),
        (MoeRunnerConfig(activation="gelu"), 2 * WIDTH, gated(F.gelu)),
        (MoeRunnerConfig(is_gated=False, activation="relu2"), WIDTH, lambda h: F.relu(h) ** 2),
        (
            MoeRunnerConfig(gemm1_alpha=1.7, gemm1_clamp_limit=0.5),
            2 * WIDTH,
            lambda h: (
                h[:WIDTH].clamp(max=0.5)
                * torch.sigmoid(1.7 * h[:WIDTH].clamp(max=0.5))
                * (h[WIDTH:].clamp(-0.5, 0.5) + 1)
            ),
        ),
    ],
)
def test_activations_biases_and_factors(config, rows, activate) -> None:
    (w13, w2), (x, out) = weights(rows), routing()
    b13, b2 = torch.randn(E, rows), torch.randn(E, D)
    expected = by_loop(x, w13, w2, out, activate, b13, b2)
    got = fused_moe(x, w13, w2, out, config, b13, b2)
    torch.testing.assert_close(got, expected.sum(1), rtol=1e-4, atol=1e-4)
    config.routed_scaling_factor, config.no_combine = 3.0, True
    got = fused_moe(x, w13, w2, out, config, b13, b2)
    torch.testing.assert_close(got, expected * 3, rtol=1e-4, atol=1e-4)


def test_weight_on_the_input() -> None:
    (w13, w2), (x, _) = weights(), routing()
    out = TopK(1, scoring_func="sigmoid", renormalize=False)(x, torch.randn(T, E))
    got = fused_moe(x, w13, w2, out, MoeRunnerConfig(apply_router_weight_on_input=True))
    ones = out._replace(topk_weights=torch.ones(T, 1))
    torch.testing.assert_close(got, fused_moe(x * out.topk_weights, w13, w2, ones))
    assert not torch.allclose(got, fused_moe(x, w13, w2, out))


def test_fused_moe_refuses_quantization_and_is_found_both_ways() -> None:
    (w13, w2), (x, out) = weights(), routing()
    with pytest.raises(ValueError, match="use_fp8_w8a8"):
        fused_moe(x, w13, w2, out, use_fp8_w8a8=True)
    assert fused_moe.fused_moe is fused_moe
    assert fused_moe(x, w13, w2, out, use_fp8_w8a8=False, w1_scale=None).shape == (T, D)


def test_no_tokens_and_half_precision() -> None:
    experts = FusedMoE(E, D, WIDTH, layer_id=0, params_dtype=torch.bfloat16)
    assert experts.w13_weight.dtype == torch.bfloat16
    x = torch.empty(0, D, dtype=torch.bfloat16)
    out = experts(x, TopK(K)(x, torch.empty(0, E)))
    assert out.shape == (0, D) and out.dtype == torch.bfloat16


# --- loading and ranks


def test_mapping_renames_checkpoint_tensors() -> None:
    mapping = FusedMoE.make_expert_params_mapping("gate_proj", "down_proj", "up_proj", 2)
    assert ("experts.w13_", "experts.1.up_proj.", 1, "w3") in mapping
    assert ("experts.w2_", "experts.0.down_proj.", 0, "w2") in mapping
    assert len(mapping) == 6
    names = FusedMoE.make_expert_params_mapping_fused("gate_up", "down", "gate_up_b", "down_b")
    assert ("experts.w13_weight_bias", "experts.gate_up_b", "w13") in names


def test_missing_expert_is_noticed() -> None:
    experts = FusedMoE(2, D, WIDTH, layer_id=0)
    param = experts.w13_weight
    param.weight_loader(param, torch.zeros(WIDTH, D), "w", "w1", 0)
    assert {str(shard) for shard in unfilled_shards(param)} == {"0.w3", "1.w1", "1.w3"}


def test_wrong_shape_and_shard_are_refused() -> None:
    experts = FusedMoE(2, D, WIDTH, layer_id=0)
    param = experts.w13_weight
    with pytest.raises(ValueError, match="experts.0.w"):
        param.weight_loader(param, torch.zeros(WIDTH + 1, D), "experts.0.w", "w1", 0)
    with pytest.raises(ValueError, match="shard_id='w9'"):
        param.weight_loader(param, torch.zeros(WIDTH, D), "experts.0.w", "w9", 0)


@pytest.mark.parametrize("transposed", [False, True])
def test_fused_checkpoint_tensors(transposed: bool) -> None:
    w13, w2 = weights()
    experts = FusedMoE(E, D, WIDTH, layer_id=0, use_weight_loader_fused=True, with_bias=True)
    b13, b2 = torch.randn(E, 2 * WIDTH), torch.randn(E, D)
    for name, value, shard in (
        ("w13_weight", w13.transpose(1, 2) if transposed else w13, "w13"),
        ("w2_weight", w2.transpose(1, 2) if transposed else w2, "w2"),
        ("w13_weight_bias", b13, "w13"),
        ("w2_weight_bias", b2, "w2"),
    ):
        param = getattr(experts, name)
        param.weight_loader(param, value, name, shard)
        assert not unfilled_shards(param)
    assert torch.equal(experts.w13_weight, w13) and torch.equal(experts.w2_weight, w2)
    assert torch.equal(experts.w13_weight_bias, b13) and torch.equal(experts.w2_weight_bias, b2)


def test_fused_rows_alternate_with_the_clamped_activation() -> None:
    w13, w2 = weights()
    b13 = torch.randn(E, 2 * WIDTH)
    experts = FusedMoE(
        E, D, WIDTH, 0, use_weight_loader_fused=True, with_bias=True, gemm1_alpha=1.7
    )
    for param, value in ((experts.w13_weight, w13), (experts.w13_weight_bias, b13)):
        alternating = torch.stack(value.chunk(2, dim=1), dim=2).flatten(1, 2)
        param.weight_loader(param, alternating, "w13", "w13")
        assert torch.equal(param, value)
    experts.w2_weight.weight_loader(experts.w2_weight, w2, "w2", "w2")
    assert torch.equal(experts.w2_weight, w2)


@pytest.mark.parametrize(("ep_size", "tp_size"), [(2, 1), (1, 2), (3, 2)])
def test_ranks_add_up(monkeypatch: pytest.MonkeyPatch, ep_size: int, tp_size: int) -> None:
    w13, w2 = weights()
    b13, b2 = torch.randn(E, 2 * WIDTH), torch.randn(E, D)
    x, out = routing()
    whole = fused_moe(x, w13, w2, out, None, b13, b2)
    total = torch.zeros_like(whole)
    for ep_rank in range(ep_size):
        for tp_rank in range(tp_size):
            for name, value in {
                "get_moe_expert_parallel_world_size": ep_size,
                "get_moe_expert_parallel_rank": ep_rank,
                "get_moe_tensor_parallel_world_size": tp_size,
                "get_moe_tensor_parallel_rank": tp_rank,
            }.items():
                monkeypatch.setattr(layer_module, name, lambda value=value: value)
            experts = get_moe_impl_class(None)(E, D, WIDTH, layer_id=0, with_bias=True)
            assert experts.num_local_experts == E // ep_size
            for e in range(E):
                for name, tensor in (("weight", (w13, w2)), ("weight_bias", (b13, b2))):
                    param13 = getattr(experts, f"w13_{name}")
                    param2 = getattr(experts, f"w2_{name}")
                    gate, up = tensor[0][e].chunk(2)
                    param13.weight_loader(param13, gate, "n", "w1", e)
                    param13.weight_loader(param13, up, "n", "w3", e)
                    param2.weight_loader(param2, tensor[1][e], "n", "w2", e)
            assert not any(unfilled_shards(param) for param in experts.parameters())
            total += experts(x, out)
    torch.testing.assert_close(total, whole, rtol=1e-4, atol=1e-4)


def test_filter_of_expert_parameters() -> None:
    experts = FusedMoE(E, D, WIDTH, layer_id=0)
    assert filter_moe_weight_param_global_expert("w13", experts.w13_weight, E)
    assert not filter_moe_weight_param_global_expert("w13", experts.w13_weight, E + 1)
    experts.w13_weight._sglang_require_global_experts = True
    assert not filter_moe_weight_param_global_expert("w13", experts.w13_weight, E)
