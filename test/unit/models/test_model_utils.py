"""Small helpers of model files, and the parts of `CausalLM` that a plain forward does not reach."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from models.forward import HandRunner, Share, load_model
from models.tiny import build_config, build_model, write_checkpoint

from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.models.common.mlp import GatedMLP
from sglang.srt.models.common.norm import add_norm
from sglang.srt.models.common.weights import GATE_UP, QKV, WeightMap
from sglang.srt.models.utils import (
    RotaryPosMixin,
    WeightsMapper,
    compute_cu_seqlens_from_grid_numpy,
    permute_inv,
)
from sglang.srt.utils.errors import ConfigError


def test_weights_mapper_takes_the_longest_match_once() -> None:
    mapper = WeightsMapper(
        orig_to_new_substr={".a.": ".x.", ".a.b.": ".y.", ".drop.": None},
        orig_to_new_prefix={"m.": "n.", "m.m.": "k."},
        orig_to_new_suffix={".w": ".weight"},
    )
    names = ["m.a.b.w", "m.m.a.c", "m.drop.w", "z.a.a.w"]
    assert mapper.apply_list(names) == ["n.y.weight", "k.x.c", "z.x.a.weight"]
    assert mapper.apply_dict({"m.w": 1}) == {"n.weight": 1}


def test_weight_map_order_is_skip_rename_convert_stack() -> None:
    weight_map = WeightMap(
        stacked=(*QKV, *GATE_UP),
        rename=WeightsMapper(orig_to_new_prefix={"transformer.": "model."}),
        skip=(r"\.masked_bias$",),
        convert=lambda name, tensor: [(f"{name}.left", tensor[:1]), (f"{name}.right", tensor[1:])],
    )
    weights = [("transformer.a", torch.arange(3)), ("transformer.h.masked_bias", torch.zeros(1))]
    mapped = list(weight_map.convert_all(weights))
    assert {rules for *_, rules in mapped} == {("rename", "convert")}
    got = [(disk, name, t.tolist()) for disk, name, t, _ in mapped]
    assert got == [
        ("transformer.a", "model.a.left", [0]),
        ("transformer.a", "model.a.right", [1, 2]),
    ]
    parameters: dict[str, Any] = {"l.self_attn.qkv_proj.bias": None, "l.q_proj.weight": None}
    place = weight_map.place
    assert place("l.self_attn.k_proj.bias", parameters) == ("l.self_attn.qkv_proj.bias", "k")
    assert place("l.q_proj.weight", parameters) == ("l.q_proj.weight", None)


def test_add_norm_starts_the_residual() -> None:
    def norm(x: torch.Tensor, residual: torch.Tensor | None = None) -> Any:
        return x * 2 if residual is None else ((x + residual) * 2, x + residual)

    x = torch.ones(2)
    normed, residual = add_norm(norm, x, None)
    assert (normed.tolist(), residual.tolist()) == ([2, 2], [1, 1])
    normed, residual = add_norm(norm, x, residual)
    assert (normed.tolist(), residual.tolist()) == ([4, 4], [2, 2])


def test_permute_inv() -> None:
    perm = torch.tensor([2, 0, 3, 1])
    assert perm[permute_inv(perm)].tolist() == [0, 1, 2, 3]


def test_cu_seqlens_of_grids() -> None:
    grid = torch.tensor([[2, 4, 6], [1, 2, 2]])
    result = compute_cu_seqlens_from_grid_numpy(grid)
    assert (result.tolist(), result.dtype) == ([0, 24, 48, 52], torch.int32)


def test_patch_positions_keep_merge_blocks_together() -> None:
    ids = RotaryPosMixin.rot_pos_ids(2, 4, 2)
    assert ids.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2], [0, 3], [1, 2], [1, 3]]


def test_gated_mlp_refuses_other_activations() -> None:
    with pytest.raises(ValueError, match="hidden_act='relu6'.*silu"):
        GatedMLP(8, 16, "relu6")


def test_llama_refuses_other_activations(tmp_path: Path) -> None:
    folder = write_checkpoint("llama", tmp_path, hidden_act="gelu")
    with pytest.raises(ConfigError, match="hidden_act='gelu'.*--model-impl transformers"):
        load_model(folder)


def test_embedding_is_the_normalised_last_hidden_state(tmp_path: Path) -> None:
    folder = write_checkpoint("llama", tmp_path)
    runner = HandRunner(load_model(folder), folder)
    tokens = [5, 9, 300, 17, 44]
    batch = runner.build(ForwardMode.EXTEND, [Share(0, 0, tokens)])
    runner.backend.init_forward_metadata(batch)
    with torch.inference_mode():
        got = runner.model.forward(batch.input_ids, batch.positions, batch, get_embedding=True)
        hidden = build_model("llama").model(torch.tensor([tokens])).last_hidden_state[0, -1]
    expected = torch.nn.functional.normalize(hidden, dim=-1)
    torch.testing.assert_close(got.embeddings[0], expected, rtol=1e-4, atol=1e-5)


def test_input_embeds_replace_the_lookup(tmp_path: Path) -> None:
    folder = write_checkpoint("llama", tmp_path)
    runner = HandRunner(load_model(folder), folder)
    batch = runner.build(ForwardMode.EXTEND, [Share(0, 0, [5, 9, 300])])
    runner.backend.init_forward_metadata(batch)
    with torch.inference_mode():
        expected = runner.model.forward(batch.input_ids, batch.positions, batch).full_logits
        embeds = runner.model.get_input_embeddings()(batch.input_ids)
        zeros = torch.zeros_like(batch.input_ids)
        got = runner.model.forward(zeros, batch.positions, batch, input_embeds=embeds).full_logits
    torch.testing.assert_close(got, expected)


def test_captured_layers_are_the_inputs_of_the_next(tmp_path: Path) -> None:
    folder = write_checkpoint("llama-head-dim", tmp_path)
    runner = HandRunner(load_model(folder), folder)
    runner.model.set_eagle3_layers_to_capture([0, 1])
    batch = runner.build(ForwardMode.EXTEND, [Share(0, 0, [5, 9, 300])])
    runner.backend.init_forward_metadata(batch)
    with torch.inference_mode():
        _, captured = runner.model.model(batch.input_ids, batch.positions, batch)
        reference = build_model("llama-head-dim").model(
            torch.tensor([[5, 9, 300]]), output_hidden_states=True
        )
    assert len(captured) == 2
    for ours, theirs in zip(captured, reference.hidden_states[1:3], strict=True):
        torch.testing.assert_close(ours, theirs[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "window"), [("llama", None), ("mistral-window", 7), ("qwen2-window", 7), ("gemma2", 7)]
)
def test_window_size_is_reported(name: str, window: int | None, tmp_path: Path) -> None:
    model = load_model(write_checkpoint(name, tmp_path))
    assert model.get_attention_sliding_window_size() == window


def test_draft_models_can_share_embedding_and_head(tmp_path: Path) -> None:
    target = load_model(write_checkpoint("llama", tmp_path / "a"))
    draft = load_model(write_checkpoint("llama", tmp_path / "b"))
    embed, head = target.get_embed_and_head()
    draft.set_embed_and_head(embed, head)
    assert draft.get_embed() is embed and draft.lm_head.weight is head


def test_fallback_reports_a_layer_that_is_not_what_the_config_said() -> None:
    from sglang.srt.models import transformers as fallback

    attention = SimpleNamespace(
        tp_q_head_num=4,
        tp_k_head_num=2,
        head_dim=16,
        v_head_dim=16,
        sliding_window_size=-1,
        layer_id=1,
    )
    q, k = torch.zeros(1, 4, 3, 16), torch.zeros(1, 2, 3, 16)
    fallback._check_call(torch.nn.Identity(), attention, q, k, k, None)
    with pytest.raises(ConfigError, match="layer 1 .*window"):
        fallback._check_call(torch.nn.Identity(), attention, q, k, k, 8)


def test_outsiders_can_supply_a_layer_and_a_model() -> None:
    from sglang.srt.models.llama import LlamaForCausalLM, LlamaModel
    from sglang.srt.models.qwen2 import Qwen2DecoderLayer, Qwen2Model

    class MyLayer(Qwen2DecoderLayer):
        pass

    class MyModel(LlamaModel):
        pass

    class MyLM(LlamaForCausalLM):
        def _init_model(self, config: Any, quant_config: Any = None, prefix: str = "") -> MyModel:
            return MyModel(config, quant_config=quant_config, prefix=prefix)

    inner = Qwen2Model(build_config("qwen2"), decoder_layer_type=MyLayer)
    assert all(type(layer) is MyLayer for layer in inner.layers)
    assert type(MyLM(build_config("llama")).model) is MyModel
