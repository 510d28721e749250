"""Modes, proxies and the media questions of a batch."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from sglang.srt.model_executor.forward_batch_info import (
    CaptureHiddenMode,
    ForwardBatch,
    ForwardMode,
    PPProxyTensors,
)


def test_mode_values_and_predicates():
    names = (
        "EXTEND DECODE MIXED IDLE TARGET_VERIFY DRAFT_EXTEND DRAFT_EXTEND_V2 PREBUILT SPLIT_PREFILL "
        "DLLM_EXTEND"
    )
    assert [mode.name for mode in ForwardMode] == names.split()
    assert [mode.value for mode in ForwardMode] == list(range(1, 11))
    extends = "EXTEND MIXED TARGET_VERIFY DRAFT_EXTEND SPLIT_PREFILL DLLM_EXTEND".split()
    assert [mode.name for mode in ForwardMode if mode.is_extend()] == extends
    assert ForwardMode.DRAFT_EXTEND_V2.is_extend(include_draft_extend_v2=True)
    graphs = [mode.name for mode in ForwardMode if mode.is_cuda_graph()]
    assert graphs == ["DECODE", "IDLE", "TARGET_VERIFY", "DLLM_EXTEND"]
    assert ForwardMode.IDLE.is_decode_or_idle() and not ForwardMode.MIXED.is_decode_or_idle()
    assert not ForwardMode.TARGET_VERIFY.is_extend_without_speculative()


def test_capture_mode_is_ordered():
    assert CaptureHiddenMode.NULL < CaptureHiddenMode.LAST < CaptureHiddenMode.FULL
    assert not CaptureHiddenMode.NULL.need_capture() and CaptureHiddenMode.LAST.need_capture()


def test_proxy_tensors():
    proxy = PPProxyTensors({"hidden_states": torch.arange(6).view(3, 2)})
    proxy["residual"] = torch.zeros(3, 1)
    assert len(proxy) == 2 and set(proxy.tensors) == {"hidden_states", "residual"}
    assert proxy[1:]["hidden_states"].tolist() == [[2, 3], [4, 5]]
    assert proxy[1:]["residual"].shape == (2, 1)


class _Media:
    def __init__(self, mm_items):
        self.mm_items = mm_items

    def contains_image_inputs(self):
        return "image" in self.mm_items

    def contains_video_inputs(self):
        return "video" in self.mm_items

    def contains_audio_inputs(self):
        return False

    def merge(self, other):
        self.mm_items += other.mm_items


def test_media_of_a_batch():
    batch = ForwardBatch(ForwardMode.EXTEND)
    assert not batch.contains_mm_inputs() and batch.merge_mm_inputs() is None
    batch.mm_inputs = [None, _Media(["video"]), _Media(["image"])]
    assert batch.contains_image_inputs() and batch.contains_video_inputs()
    assert not batch.contains_audio_inputs() and batch.contains_mm_inputs()
    assert batch.merge_mm_inputs().mm_items == ["video", "image"]
    assert batch.mm_inputs[1].mm_items == ["video"]


def test_models_may_add_attributes():
    batch = ForwardBatch(ForwardMode.DECODE)
    batch.something_of_the_model = SimpleNamespace()
    assert batch.something_of_the_model is not None
