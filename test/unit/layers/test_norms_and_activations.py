"""Norms and activations against transformers' modules and plain formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transformers import activations as hf_activations
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm as HFGemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from sglang.srt.layers.activation import (
    XIELU,
    GeluAndMul,
    NewGELU,
    QuickGELU,
    ReLU2,
    SiluAndMul,
    get_act_fn,
)
from sglang.srt.layers.layernorm import Gemma3RMSNorm, GemmaRMSNorm, LayerNorm, RMSNorm


def _norm(cls=RMSNorm, dim=32, **kwargs):
    norm = cls(dim, **kwargs)
    norm.weight.data.copy_(torch.randn(dim))
    return norm


def test_rms_norm_equals_transformers():
    norm, reference, x = _norm(eps=1e-5), LlamaRMSNorm(32, eps=1e-5), torch.randn(5, 32) * 7
    reference.weight.data.copy_(norm.weight)
    torch.testing.assert_close(norm(x), reference(x), rtol=1e-6, atol=1e-6)


def test_rms_norm_with_residual_returns_the_sum():
    norm, x, residual, extra = _norm(), torch.randn(5, 32), torch.randn(5, 32), torch.randn(5, 32)
    y, total = norm(x, residual)
    torch.testing.assert_close(total, x + residual)
    torch.testing.assert_close(y, norm(x + residual))
    y, total = norm(x, residual, extra)
    torch.testing.assert_close(total, x + residual + extra)
    torch.testing.assert_close(y, norm(total))


def test_rms_norm_computes_in_float32():
    norm = _norm(weight_dtype=torch.bfloat16)
    x = (torch.randn(5, 32) * 300).bfloat16()
    exact = F.rms_norm(x.double(), (32,), norm.weight.double(), 1e-6)
    assert torch.equal(norm(x), exact.bfloat16())


def test_rms_norm_casts_before_the_weight():
    norm = _norm(weight_dtype=torch.bfloat16, cast_x_before_out_mul=True)
    reference = LlamaRMSNorm(32, eps=1e-6).bfloat16()
    reference.weight.data.copy_(norm.weight)
    x = torch.randn(50, 32).bfloat16()
    assert torch.equal(norm(x), reference(x))


def test_rms_norm_options():
    x, residual = torch.randn(3, 32).bfloat16(), torch.randn(3, 32).bfloat16()
    plain = RMSNorm(32, has_weight=False)
    assert not list(plain.parameters())
    torch.testing.assert_close(plain(x.float()), F.rms_norm(x.float(), (32,), None, 1e-6))
    y, total = RMSNorm(32, fp32_residual=True)(x, residual)
    assert y.dtype == torch.bfloat16 and total.dtype == torch.float32
    assert torch.equal(total, x.float() + residual.float())
    half = _norm(var_hidden_size=16)
    expected = x.float() * torch.rsqrt(x.float()[:, :16].pow(2).mean(-1, keepdim=True) + 1e-6)
    torch.testing.assert_close(half(x.float()), expected * half.weight)
    assert RMSNorm(32, override_orig_dtype=torch.float32)(x).dtype == torch.float32


@pytest.mark.parametrize("cls", [RMSNorm, GemmaRMSNorm])
def test_norms_survive_empty_batches(cls):
    y, residual = cls(32)(torch.empty(0, 32), torch.empty(0, 32))
    assert y.shape == residual.shape == (0, 32)


def test_gemma_norms_add_one_to_the_weight():
    norm, reference = _norm(GemmaRMSNorm), HFGemmaRMSNorm(32, eps=1e-6)
    heads = _norm(Gemma3RMSNorm)
    reference.weight.data.copy_(norm.weight)
    heads.weight.data.copy_(norm.weight)
    x, residual = torch.randn(4, 3, 32), torch.randn(4, 3, 32)
    torch.testing.assert_close(norm(x), reference(x), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(heads(x), reference(x), rtol=1e-6, atol=1e-6)
    y, total = norm(x, residual)
    torch.testing.assert_close(total, x + residual)
    torch.testing.assert_close(y, reference(x + residual), rtol=1e-6, atol=1e-6)


def test_layer_norm_keeps_float32_parameters():
    norm = _norm(LayerNorm)
    assert norm.weight.dtype == norm.bias.dtype == torch.float32
    norm.bias.data.normal_()
    x = torch.randn(4, 32).bfloat16()
    exact = F.layer_norm(x.float(), (32,), norm.weight, norm.bias, 1e-6)
    assert torch.equal(norm(x), exact.bfloat16())
    assert LayerNorm(32, elementwise_affine=False).weight is None


def test_gated_activations():
    x = torch.randn(4, 20)
    gate, up = x[:, :10], x[:, 10:]
    torch.testing.assert_close(SiluAndMul()(x), F.silu(gate) * up)
    for form in ("tanh", "none"):
        torch.testing.assert_close(GeluAndMul(form)(x), F.gelu(gate, approximate=form) * up)
    with pytest.raises(ValueError, match="sigmoid"):
        GeluAndMul("sigmoid")


@pytest.mark.parametrize(
    ("ours", "name"),
    [
        (NewGELU(), "gelu_new"),
        (QuickGELU(), "quick_gelu"),
        (ReLU2(), "relu2"),
        (get_act_fn("gelu"), "gelu"),
        (get_act_fn("gelu_pytorch_tanh"), "gelu_pytorch_tanh"),
    ],
)
def test_activations_equal_transformers(ours, name):
    x = torch.randn(4, 20)
    expected = hf_activations.ACT2FN[name](x.clone())
    torch.testing.assert_close(ours(x), expected, rtol=1e-6, atol=1e-6)


def test_xielu_equals_its_formula():
    act = XIELU(alpha_p_init=0.7, alpha_n_init=0.9, dtype=torch.float32)
    x = torch.randn(100)
    positive = 0.7 * x * x + 0.5 * x
    negative = 0.9 * (torch.expm1(x.clamp(max=-1e-6)) - x) + 0.5 * x
    torch.testing.assert_close(act(x), torch.where(x > 0, positive, negative))
    assert {name for name, _ in act.named_parameters()} == {"alpha_p", "alpha_n"}


def test_get_act_fn_shares_and_refuses():
    assert get_act_fn("gelu") is get_act_fn("gelu")
    assert get_act_fn("xielu") is not get_act_fn("xielu")
    with pytest.raises(ValueError, match="'swiglu' is not supported; supported: gelu, "):
        get_act_fn("swiglu")
