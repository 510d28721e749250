"""What model files written elsewhere take from the files of this tree, beside the shared layers: it is there, and it computes."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from models.forward import HandRunner, Share, load_model
from models.tiny import build_config, build_model, write_checkpoint
from torch import nn

from sglang.srt.configs.hf_config import read_facts
from sglang.srt.configs.published import usual_keys
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.models.common.causal_lm import CausalLM
from sglang.srt.models.common.mla import MLAttention
from sglang.srt.models.deepseek_v2 import DeepseekV2AttentionMLA, DeepseekV2MLP
from sglang.srt.models.llama import LlamaAttention
from sglang.srt.models.mixtral import MixtralForCausalLM
from sglang.srt.models.qwen2_moe import Qwen2MoeMLP
from sglang.srt.models.qwen3_moe import Qwen3MoeAttention, Qwen3MoeDecoderLayer
from sglang.srt.models.transformers import maybe_prefix
from sglang.srt.utils.errors import ConfigError


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("llama", "LlamaConfig LlamaMLP LlamaAttention"),
        ("qwen2", "Qwen2Config Qwen2MLP"),
        ("qwen3", "Qwen3Config"),
        ("ernie4", "Ernie4_5_ForCausalLM Ernie4DecoderLayer"),
        ("exaone_moe", "ExaoneMoEForCausalLM"),
        ("deepseek_v2", "DeepseekV2MoE DeepseekV3ForCausalLM"),
    ],
)
def test_names_are_there(module: str, names: str) -> None:
    model_file = importlib.import_module(f"sglang.srt.models.{module}")
    for name in names.split():
        assert isinstance(getattr(model_file, name), type), name
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = model_file.Nothing


def test_maybe_prefix() -> None:
    assert (maybe_prefix("a.b", "c"), maybe_prefix("", "c")) == ("a.b.c", "c")


@torch.no_grad()
@pytest.mark.parametrize("mlp_class", [Qwen2MoeMLP, DeepseekV2MLP])
def test_mlp_leaves_the_sum_to_a_communicator(mlp_class: type[nn.Module]) -> None:
    """The sixth argument is the prefix, the fifth whether ranks are added up; either switch of the call leaves them apart."""
    mlp = mlp_class(8, 12, "silu", None, False, "mlp")
    assert not mlp.down_proj.reduce_results and mlp.down_proj.prefix == "mlp.down_proj"
    seen = []
    mlp.down_proj.forward = lambda x, skip_all_reduce=False: (seen.append(skip_all_reduce), None)
    for switches in ({}, {"should_allreduce_fusion": True}, {"use_reduce_scatter": True}):
        mlp(torch.zeros(1, 8), **switches)
    assert seen == [False, True, True]


def _attend(attention: nn.Module, folder: Path, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """Logits of a model whose first layer attends with `attention`."""
    model = load_model(folder)
    own = model.model.layers[0].self_attn
    attention.load_state_dict(own.state_dict())
    monkeypatch.setattr(model.model.layers[0], "self_attn", attention)
    return _prefill(model, folder)


def _prefill(model: nn.Module, folder: Path) -> torch.Tensor:
    runner = HandRunner(model, folder)
    (logits,) = runner.step(ForwardMode.EXTEND, [Share(0, 0, list(range(5, 45)))])
    return logits


@torch.inference_mode()
@pytest.mark.parametrize("name", ["deepseek-v2-lite", "deepseek-v3"])
def test_latent_attention_by_its_sizes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_checkpoint(name, tmp_path)
    config = build_config(name)
    facts = read_facts(config)
    rope = config.to_dict()["rope_parameters"]
    sizes = [config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim]
    attention = DeepseekV2AttentionMLA(
        config,
        config.hidden_size,
        config.num_attention_heads,
        *sizes,
        config.q_lora_rank,
        config.kv_lora_rank,
        rope["rope_theta"],
        rope,
        facts.max_position_embeddings,
        layer_id=0,
    )
    assert isinstance(attention, MLAttention)
    same = _prefill(load_model(folder), folder)
    torch.testing.assert_close(_attend(attention, folder, monkeypatch), same, rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match="llama_4_scaling"):
        attention(None, None, None, None, torch.ones(1))


def test_latent_attention_without_rotation() -> None:
    config = build_config("deepseek-v3")
    attention = DeepseekV2AttentionMLA(config, 64, 4, 16, 8, 16, None, 32, skip_rope=True)
    q, k = torch.ones(1, 4, 8), torch.ones(1, 8)
    assert attention.rotary_emb(torch.tensor([7]), q, k) == (q, k)


@torch.inference_mode()
def test_normed_attention_by_its_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_checkpoint("qwen3-moe", tmp_path)
    config = build_config("qwen3-moe")
    attention = Qwen3MoeAttention(
        config.hidden_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        0,
        config.to_dict()["rope_parameters"]["rope_theta"],
        head_dim=config.head_dim,
        rms_norm_eps=config.rms_norm_eps,
    )
    same = _prefill(load_model(folder), folder)
    torch.testing.assert_close(_attend(attention, folder, monkeypatch), same, rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match="dual_chunk"):
        Qwen3MoeAttention(64, 4, 2, dual_chunk_attention_config={"chunk_size": 8})


def test_llama_attention_knows_its_context() -> None:
    attention = LlamaAttention(build_config("llama"), 64, 4, 2, max_position_embeddings=99)
    assert attention.max_position_embeddings == 99


def test_decoder_takes_another_kind_of_layer() -> None:
    class Layer(Qwen3MoeDecoderLayer):
        pass

    from sglang.srt.models.qwen2_moe import Qwen2MoeModel

    model = Qwen2MoeModel(build_config("qwen3-moe"), decoder_layer_type=Layer, alt_stream=None)
    assert all(type(layer) is Layer for layer in model.layers)


def test_an_inner_model_without_stages_has_every_layer() -> None:
    class Inner(nn.Module):
        def __init__(self, config: Any, quant_config: Any = None, prefix: str = "") -> None:
            super().__init__()

    class Plain(CausalLM):
        model_cls = Inner

    config = build_config("llama")
    model = Plain(config)
    assert (model.start_layer, model.end_layer) == (0, config.num_hidden_layers)


def test_weights_of_a_model_that_only_has_mixtral_names() -> None:
    tensors = dict(build_model("mixtral").state_dict())
    own = MixtralForCausalLM(build_config("mixtral"))
    other = nn.Module()
    other.config = SimpleNamespace(tie_word_embeddings=False)
    other.model, other.lm_head = own.model, own.lm_head
    touched = MixtralForCausalLM.load_weights(other, tensors.items())
    assert touched == {name for name, _ in own.named_parameters()}
    other.config.tie_word_embeddings = True
    assert "lm_head.weight" not in MixtralForCausalLM.load_weights(other, tensors.items())


@pytest.mark.parametrize(
    ("raw", "key", "value"),
    [
        ({"model_type": "exaone", "num_layers": 3}, "num_hidden_layers", 3),
        ({"model_type": "xverse"}, "hidden_act", "silu"),
        ({"model_type": "deepseek"}, "hidden_act", "silu"),
        (
            {"model_type": "bailing_moe", "hidden_size": 64, "num_attention_heads": 4},
            "head_dim",
            16,
        ),
        (
            {"model_type": "bailing_moe", "hidden_size": 64, "num_attention_heads": 4},
            "embedding_dropout",
            0.0,
        ),
        ({"model_type": "chatglm", "num_attention_heads": 4}, "hidden_dropout", 0.0),
    ],
)
def test_keys_that_published_files_leave_to_their_class(
    raw: dict[str, Any], key: str, value: Any
) -> None:
    assert usual_keys(raw)[key] == value
