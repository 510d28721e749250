"""Models in eight-bit floating point against plain torch on the same numbers."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models.forward import MAX_LEN, NUM_ROWS, HandRunner, Share, assert_close, load_model
from models.fp8_packer import Packing, cache_scale, input_scale, pack_checkpoint, round_to_codes
from models.tiny import write_checkpoint
from safetensors.torch import load_file, save_file

from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.environ import envs
from sglang.srt.layers.quantization.unquant import UnquantizedLinearMethod
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.model_executor.kv_pool import create_kv_pool
from sglang.srt.model_loader.quantization import load_kv_cache_scales
from sglang.srt.models.common.weights import WeightLoadError
from sglang.srt.utils.errors import ConfigError
from sglang.verify.forms import FORMS, Form
from sglang.verify.proof import Proof
from sglang.verify.reference import ReferenceModel

PROMPT = [7, 301, 44, 91, 2, 150, 333, 18, 260, 5, 77]
SPLIT = 6  # of the prompt, where it is cut into chunks


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)
    torch.set_num_threads(threads)


def make(name: str, folder: Path, packing: Packing) -> tuple[Path, Path]:
    """The packed checkpoint of a case and its twin."""
    plain, packed, twin = folder / "plain", folder / "packed", folder / "twin"
    pack_checkpoint(write_checkpoint(name, plain), packed, twin, packing)
    return packed, twin


# --- checkpoints with scales of blocks


class TwinProof(Proof):
    """The engine on a packed checkpoint, transformers on its twin."""

    def __init__(self, packed: Path, twin: Path) -> None:
        self._twin = twin
        super().__init__(str(packed))

    def _load_reference(self, context_len: int) -> ReferenceModel:
        return ReferenceModel(str(self._twin), rope_length=context_len)


BLOCKS = {"llama": (32, 16), "qwen3-moe": (16, 32), "deepseek-v3": (8, 16)}
CHOSEN = [form for form in FORMS if re.search("whole|chunks of 3|mixed|partial hit", form.name)]


@pytest.fixture(scope="module", params=BLOCKS)
def block_proof(request: Any, tmp_path_factory: pytest.TempPathFactory) -> TwinProof:
    folder = tmp_path_factory.mktemp(request.param)
    return TwinProof(*make(request.param, folder, Packing(blocks=BLOCKS[request.param])))


@pytest.mark.parametrize("form", CHOSEN, ids=[form.name for form in CHOSEN])
def test_blocks_equal_the_numbers_they_stand_for(block_proof: TwinProof, form: Form) -> None:
    result = block_proof.run(form)
    assert result.passed, result.detail


def test_enough_forms_are_chosen() -> None:
    assert len(CHOSEN) >= 4


def test_latent_attention_gets_its_up_projection_as_plain_numbers(tmp_path: Path) -> None:
    packed, twin = make("deepseek-v3", tmp_path, Packing(blocks=(8, 16)))
    attention = load_model(packed).model.layers[1].self_attn
    name = "model.layers.1.self_attn.kv_b_proj.weight"
    assert torch.equal(attention.kv_b_proj.weight, load_file(twin / "model.safetensors")[name])
    assert isinstance(attention.kv_b_proj.quant_method, UnquantizedLinearMethod)
    assert attention.o_proj.weight.dtype == torch.float8_e4m3fn


# --- scales of tensors and rows: activations are rounded too


class RoundedLinear(torch.nn.Module):
    """`F.linear` on rounded activations; `scale` None for that of each token."""

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, scale: float | None
    ) -> None:
        super().__init__()
        self.given, self.weight, self.bias = scale, weight, bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale: Any = self.given
        if scale is None:
            scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 448.0
        return F.linear(round_to_codes(x, scale).float() * scale, self.weight, self.bias)


def round_linears(model: torch.nn.Module, scale_of: Callable[[str], float | None]) -> None:
    """Give every projection of a transformers model rounded activations."""
    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear) and name.endswith("proj"):
            bias = None if module.bias is None else module.bias.data
            model.set_submodule(name, RoundedLinear(module.weight.data, bias, scale_of(name)))


def fused_input_scale(name: str) -> float:
    """Of the layer that a projection is fused into: the largest of its parts."""
    around, _, part = name.rpartition(".")
    for group in (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")):
        if part in group:
            return max(input_scale(f"{around}.{other}") for other in group)
    return input_scale(name)


def whole_logits(folder: Path, **flags: Any) -> torch.Tensor:
    runner = HandRunner(load_model(folder, **flags), folder)
    return runner.step(ForwardMode.EXTEND, [Share(0, 0, PROMPT)])[0]


@pytest.mark.parametrize("scales", ["tensor", "channel"])
@pytest.mark.parametrize("static", [False, True])
def test_scales_of_tensors_and_rows(tmp_path: Path, scales: str, static: bool) -> None:
    packed, twin = make("qwen2", tmp_path, Packing(scales=scales, static=static))
    reference = ReferenceModel(str(twin))
    plain = reference.logits(PROMPT)
    round_linears(reference.model, fused_input_scale if static else lambda name: None)
    expected = reference.logits(PROMPT)
    assert (expected - plain).abs().max() > 1e-2, "rounding activations must be seen"
    assert_close(whole_logits(packed), expected, scales)


@pytest.mark.parametrize("scheme", ["channel", "tensor"])
def test_weights_are_rounded_when_they_are_loaded(tmp_path: Path, scheme: str) -> None:
    folder = write_checkpoint("llama", tmp_path)
    reference = ReferenceModel(str(folder))
    for layer in reference.model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        # A fused weight is one tensor, so its parts share the scale of a tensor.
        round_weights([attention.q_proj, attention.k_proj, attention.v_proj], scheme)
        round_weights([mlp.gate_proj, mlp.up_proj], scheme)
        for alone in (attention.o_proj, mlp.down_proj):
            round_weights([alone], scheme)
    round_linears(reference.model, lambda name: None)
    with envs.SGLANG_FP8_WEIGHT_SCALES.override(scheme):
        ours = whole_logits(folder, quantization="fp8")
    assert_close(ours, reference.logits(PROMPT), scheme)
    model = load_model(folder, quantization="fp8")
    assert model.lm_head.weight.dtype == model.model.embed_tokens.weight.dtype == torch.float32
    assert model.model.layers[0].mlp.down_proj.weight.dtype == torch.float8_e4m3fn


def round_weights(parts: list[Any], scheme: str) -> None:
    fused = torch.cat([part.weight.data for part in parts])
    for part in parts:
        weight = part.weight.data
        largest = weight.abs().amax(1, keepdim=True) if scheme == "channel" else fused.abs().max()
        part.weight.data = round_to_codes(weight, largest / 448.0).float() * (largest / 448.0)


def test_moe_and_latent_models_are_rounded_when_they_are_loaded(tmp_path: Path) -> None:
    """Close to the plain model, which it would not be with a scale in the wrong place; what attention multiplies by itself stays plain."""
    folder = write_checkpoint("qwen3-moe", tmp_path / "moe")
    plain, rounded = whole_logits(folder), whole_logits(folder, quantization="fp8")
    assert 1e-3 < (plain - rounded).norm() / plain.norm() < 0.15
    model = load_model(write_checkpoint("deepseek-v3", tmp_path / "mla"), quantization="fp8")
    assert model.model.layers[1].mlp.experts.w13_weight.dtype == torch.float8_e4m3fn
    assert model.model.layers[1].self_attn.o_proj.weight.dtype == torch.float8_e4m3fn
    assert model.model.layers[1].self_attn.kv_b_proj.weight.dtype == torch.float32


# --- what is not quantized, and what does not fit


def test_modules_can_be_left_as_they_are(tmp_path: Path) -> None:
    plain = ("layers.0.self_attn", "down_proj")
    names = ["model.layers.0.self_attn", "down_proj", "lm_head"]
    packing = Packing(blocks=(32, 16), plain=plain, settings={"modules_to_not_convert": names})
    packed, twin = make("llama", tmp_path, packing)
    layers = load_model(packed).model.layers
    assert layers[0].self_attn.qkv_proj.weight.dtype == torch.float32
    assert layers[1].self_attn.qkv_proj.weight.dtype == torch.float8_e4m3fn
    assert layers[1].mlp.down_proj.weight.dtype == torch.float32
    assert_close(whole_logits(packed), ReferenceModel(str(twin)).logits(PROMPT), "parts")


def _edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


DOWN = "model.layers.1.mlp.down_proj"


@pytest.mark.parametrize(
    ("packing", "change", "words"),
    [
        (Packing(blocks=(32, 16)), lambda t: t.pop(f"{DOWN}.weight_scale_inv"), "weight_scale_inv"),
        (Packing(), lambda t: t.pop(f"{DOWN}.weight_scale"), "down_proj.weight_scale"),
        (Packing(static=True), lambda t: t.pop(f"{DOWN}.input_scale"), "down_proj.input_scale"),
        (
            Packing(static=True),
            lambda t: t.pop("model.layers.0.self_attn.k_proj.weight_scale"),
            "shard k of parameter model.layers.0.self_attn.qkv_proj.weight_scale",
        ),
        (
            Packing(),
            lambda t: t.update({f"{DOWN}.input_scale": torch.tensor(1.0)}),
            f"{DOWN}.input_scale.*belongs to no parameter",
        ),
        (
            Packing(),
            lambda t: t.update({f"{DOWN}.weight": t[f"{DOWN}.weight"].bfloat16()}),
            "is torch.bfloat16 where the config promises.*modules_to_not_convert",
        ),
        (
            Packing(blocks=(32, 16)),
            lambda t: t.update({f"{DOWN}.weight_scale_inv": torch.ones(3, 3)}),
            r"down_proj.weight_scale_inv \[3, 3\] does not fit",
        ),
        (
            Packing(scales="channel"),
            lambda t: t.update({f"{DOWN}.weight_scale": torch.ones(7, 1)}),
            r"down_proj.weight_scale \[7, 1\] does not fit",
        ),
    ],
)
def test_scales_that_miss_or_do_not_fit(
    tmp_path: Path, packing: Packing, change: Any, words: str
) -> None:
    packed, _ = make("llama", tmp_path, packing)
    _edit(packed, change)
    with pytest.raises(WeightLoadError, match=words):
        load_model(packed)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"activation_scheme": "sometimes"}, "activation_scheme='sometimes'"),
        ({"fmt": "e5m2"}, "fmt='e5m2'"),
        ({"weight_block_size": [128]}, r"weight_block_size=\[128\]"),
        ({"weight_block_size": [16, 16], "activation_scheme": "static"}, "'static'"),
        ({"modules_to_not_convert": ["k_proj"]}, "only .*k_proj is excluded"),
        ({"quant_method": "compressed-tensors"}, "quant_method='compressed-tensors'"),
    ],
)
def test_settings_that_are_not_implemented(
    tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    packed, _ = make("llama", tmp_path, Packing(settings=settings))
    with pytest.raises(ConfigError, match=words):
        load_model(packed)


def test_flags_that_contradict_the_checkpoint(tmp_path: Path) -> None:
    packed, _ = make("llama", tmp_path, Packing())
    assert ModelConfig(str(packed), quantization="fp8").quantization == "fp8"
    with pytest.raises(ConfigError, match="'awq' is not implemented"):
        ModelConfig(str(packed), quantization="awq")
    with pytest.raises(ConfigError, match="quantization 'fp8' is not implemented.*fallback"):
        load_model(packed, model_impl="transformers")


# --- the cache


class Fp8CacheRunner(HandRunner):
    """`HandRunner` with a cache of another dtype."""

    def __init__(self, model: Any, folder: Path, dtype: torch.dtype) -> None:
        super().__init__(model, folder)
        size = NUM_ROWS * MAX_LEN + 1
        self.kv = create_kv_pool(ModelConfig(str(folder)), 1, size, 1, dtype, "cpu")

    def in_pieces(self) -> torch.Tensor:
        """Logits of the prompt, computed as two chunks and a decode beside another request."""
        last = len(PROMPT) - 1
        pieces = self.step(ForwardMode.EXTEND, [Share(1, 0, PROMPT[:SPLIT])])
        shares = [Share(1, SPLIT, PROMPT[SPLIT:last]), Share(2, 0, PROMPT[:3])]
        pieces += self.step(ForwardMode.EXTEND, shares)[:1]
        decodes = [Share(1, last, PROMPT[last:]), Share(2, 3, PROMPT[3:4])]
        pieces += self.step(ForwardMode.DECODE, decodes)[:1]
        return torch.cat(pieces)


def reference_with_rounded_cache(
    folder: Path, dtype: torch.dtype, scale_of: Callable[[int, str], float]
) -> torch.Tensor:
    """Logits of transformers when every key and value is rounded as a cache would."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
    from transformers.models.llama.modeling_llama import eager_attention_forward

    largest = torch.finfo(dtype).max

    def rounded(x: torch.Tensor, scale: float) -> torch.Tensor:
        return (x / scale).clamp(-largest, largest).to(dtype).float() * scale

    def attend(module: Any, q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> Any:
        k, v = (rounded(x, scale_of(module.layer_idx, which)) for x, which in ((k, "k"), (v, "v")))
        return eager_attention_forward(module, q, k, v, *args, **kwargs)

    reference = ReferenceModel(str(folder))
    ALL_ATTENTION_FUNCTIONS.register("rounded_cache", attend)
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask

    ALL_MASK_ATTENTION_FUNCTIONS.register("rounded_cache", eager_mask)
    reference.model.config._attn_implementation = "rounded_cache"
    return reference.logits(PROMPT)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_rounded_cache(tmp_path: Path, dtype: torch.dtype) -> None:
    """Whole, or in pieces: the same as rounding every key and value."""
    folder = write_checkpoint("llama", tmp_path)
    runner = Fp8CacheRunner(load_model(folder), folder, dtype)
    expected = reference_with_rounded_cache(folder, dtype, lambda layer, which: 1.0)
    plain = ReferenceModel(str(folder)).logits(PROMPT)
    assert (expected - plain).abs().max() > 1e-3, "rounding must be seen"
    whole = runner.step(ForwardMode.EXTEND, [Share(0, 0, PROMPT)])[0]
    assert_close(whole, expected, "whole")
    assert_close(runner.in_pieces(), expected, "in pieces")


def test_scales_of_the_cache_from_the_checkpoint(tmp_path: Path) -> None:
    packed, twin = make("llama", tmp_path, Packing(blocks=(32, 16), cache_scales=True))
    dtype = torch.float8_e4m3fn
    runner = Fp8CacheRunner(load_model(packed), packed, dtype)
    expected = reference_with_rounded_cache(twin, dtype, cache_scale)
    assert_close(runner.in_pieces(), expected, "scaled")
    # A floating point cache has no use for them.
    assert_close(whole_logits(packed), ReferenceModel(str(twin)).logits(PROMPT), "unscaled")


def test_scales_of_the_cache_from_a_file(tmp_path: Path) -> None:
    folder = write_checkpoint("llama", tmp_path / "model")
    path = tmp_path / "scales.json"
    factors = {"0": {str(layer): 0.75 + layer for layer in range(2)}}
    content = {"model_type": "llama", "kv_cache": {"scaling_factor": factors}}
    path.write_text(json.dumps(content))
    model = load_model(folder)
    load_kv_cache_scales(model, str(path), ModelConfig(str(folder)))
    layers = [module for module in model.modules() if isinstance(module, RadixAttention)]
    assert [layer.k_scale_float for layer in layers] == [0.75, 1.75]
    dtype = torch.float8_e4m3fn
    expected = reference_with_rounded_cache(folder, dtype, lambda layer, which: 0.75 + layer)
    assert_close(Fp8CacheRunner(model, folder, dtype).in_pieces(), expected, "file")
    factors["0"]["1"] = -1.0
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="not positive"):
        load_kv_cache_scales(model, str(path), ModelConfig(str(folder)))


def test_latents_in_a_rounded_cache(tmp_path: Path) -> None:
    """Decodes read what was rounded: close to the plain model, and not equal to it."""
    folder = write_checkpoint("deepseek-v3", tmp_path)
    model = load_model(folder)
    plain = Fp8CacheRunner(model, folder, torch.float32).in_pieces()
    rounded = Fp8CacheRunner(model, folder, torch.float8_e4m3fn).in_pieces()
    difference = (plain - rounded).norm() / plain.norm()
    assert 1e-3 < difference < 0.1
