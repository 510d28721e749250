"""The communicator's steps equal the plain residual stream of a decoder layer."""

from __future__ import annotations

import pytest
import torch

from sglang.srt.layers import communicator as module
from sglang.srt.layers.communicator import LayerCommunicator, LayerScatterModes, ScatterMode
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode

BATCH = ForwardBatch(ForwardMode.EXTEND)


def make() -> LayerCommunicator:
    modes = LayerScatterModes.init_new(
        num_layers=2,
        layer_id=0,
        is_layer_sparse=True,
        is_previous_layer_sparse=False,
        is_next_layer_sparse=True,
    )
    assert modes.layer_output_mode is ScatterMode.model_input_output()
    norms = [RMSNorm(8), RMSNorm(8)]
    for norm in norms:
        norm.weight.data.normal_()
    return LayerCommunicator(modes, *norms)


def test_layer_is_the_plain_residual_stream() -> None:
    steps, x = make(), torch.randn(5, 8)
    normed, stream = steps.prepare_attn(x, None, BATCH)
    torch.testing.assert_close(normed, steps.input_layernorm(x))
    attention = normed * 2
    normed, stream = steps.prepare_mlp(attention, stream, BATCH)
    torch.testing.assert_close(stream, x + attention)
    torch.testing.assert_close(normed, steps.post_attention_layernorm(x + attention))
    hidden, stream = steps.postprocess_layer(normed * 3, stream, BATCH)
    extra, captured = torch.randn(5, 8), []
    after, stream_2 = steps.prepare_attn_and_capture_last_layer_outputs(
        hidden, stream, BATCH, captured, extra
    )
    torch.testing.assert_close(stream_2, stream + hidden + extra)
    torch.testing.assert_close(after, steps.input_layernorm(stream_2))
    torch.testing.assert_close(captured[0], stream_2)
    assert captured[0] is not stream_2
    assert not steps.should_use_reduce_scatter(BATCH)
    assert not steps.should_fuse_mlp_allreduce_with_next_layer(BATCH)


def test_attention_output_is_summed_over_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    class Group:
        def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2  # two ranks with equal parts

    monkeypatch.setattr(module, "get_attention_tp_group", Group)
    steps, x = make(), torch.randn(5, 8)
    _, stream = steps.prepare_mlp(x, torch.zeros(5, 8), BATCH)
    torch.testing.assert_close(stream, 2 * x)


def test_no_tokens() -> None:
    steps, x = make(), torch.empty(0, 8)
    assert steps.prepare_attn(x, None, BATCH)[0].shape == (0, 8)
    assert steps.prepare_mlp(x, x, BATCH)[1].shape == (0, 8)
