"""Prompts of Qwen2-Audio: sounds in a window of fixed length, with the number of their frames."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sglang.srt.multimodal.inputs import Modality
from sglang.verify.media import MediaPrompt
from sglang.verify.media_prompts import (
    Medium,
    image_prompts,
    in_one_tensor,
    joined_data,
    lay_out,
    name_specials,
    random_text,
    write_settings,
)

_HOP, _RATE = 160, 16000


class QwenAudio:
    """The family. Its sounds have the names that forms know: "image" and so on."""

    def silent_ids(self, raw: Mapping[str, Any]) -> list[int]:
        return [raw["audio_token_index"]]

    def prompts(self, raw: Mapping[str, Any]) -> dict[str, MediaPrompt]:
        generator = torch.Generator().manual_seed(7)
        text = functools.partial(random_text, generator)
        window = _window(raw)
        # An odd number of steps leaves one out; the second sound fills the window.
        first, other = (_sound(raw, window * 3 // 5 + 1, generator) for _ in range(2))
        second = _sound(raw, window, generator)
        token_ids = {"audio_token_id": raw["audio_token_index"]}
        lay = functools.partial(lay_out, _arguments, token_ids)
        found = image_prompts(lay, text, first, other, second)
        return {name: in_one_tensor(prompt, torch.stack) for name, prompt in found.items()}

    def write_processor(self, raw: Mapping[str, Any], folder: str) -> None:
        settings = {
            "processor_class": "Qwen2AudioProcessor",
            "feature_extractor_type": "WhisperFeatureExtractor",
            "feature_size": raw["audio_config"]["num_mel_bins"],
            "sampling_rate": _RATE,
            "hop_length": _HOP,
            "chunk_length": _window(raw) * _HOP // _RATE,
            "n_fft": 400,
            "return_attention_mask": True,
        }
        write_settings(Path(folder), settings)
        name_specials(Path(folder), {raw["audio_token_index"]: "<|AUDIO|>"})


def _window(raw: Mapping[str, Any]) -> int:
    """Frames that a sound is filled up to."""
    return 2 * raw["audio_config"]["max_source_positions"]


def _sound(raw: Mapping[str, Any], frames: int, generator: torch.Generator) -> Medium:
    """Noise, behind the sound's end too: nobody may hear it there."""
    window, bins = _window(raw), raw["audio_config"]["num_mel_bins"]
    token_id = raw["audio_token_index"]
    mask = (torch.arange(window) < frames).long()
    data = {"feature_attention_mask": mask[None], "audio_feature_lens": torch.tensor([frames])}
    return Medium(
        Modality.AUDIO,
        [token_id] * ((frames + 1) // 2 // 2),
        token_id,
        torch.randn(bins, window, generator=generator),
        data,
    )


def _arguments(media: Sequence[Medium], ids: Sequence[int]) -> dict[str, Any]:
    mask = joined_data(media, Modality.AUDIO)["feature_attention_mask"]
    features = torch.stack([medium.feature for medium in media])
    return {"input_features": features, "feature_attention_mask": mask}
