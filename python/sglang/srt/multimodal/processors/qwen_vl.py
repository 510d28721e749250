"""Qwen2-VL and Qwen2.5-VL: images and videos of any size, positions with three axes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from sglang.srt.environ import envs
from sglang.srt.layers.rotary_embedding.mrope import MRotaryEmbedding
from sglang.srt.multimodal.inputs import Modality
from sglang.srt.multimodal.media.data import VideoFrames
from sglang.srt.multimodal.processors.base_processor import (
    BaseMultimodalProcessor,
    Features,
    MultimodalSpecialTokens,
)
from sglang.srt.utils.errors import RequestError

_FPS = 2.0
_MIN_FRAMES, _MAX_FRAMES = 4, 768


class QwenVLImageProcessor(BaseMultimodalProcessor):
    """`<|vision_start|><|image_pad|><|vision_end|>`: the pad becomes as many as there are blocks of merged patches."""

    models: list[Any] = ["Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration"]
    modalities = (Modality.IMAGE, Modality.VIDEO)
    joins_runs = True  # each medium has a start and an end token of its own

    def __init__(
        self, hf_config: Any, server_args: Any, _processor: Any, *args: Any, **kwargs: Any
    ) -> None:
        super().__init__(hf_config, server_args, _processor, *args, **kwargs)
        self.IM_START_TOKEN_ID = hf_config.vision_start_token_id
        self.IM_END_TOKEN_ID = hf_config.vision_end_token_id
        self.IM_TOKEN_ID = hf_config.image_token_id
        self.spatial_merge_size = hf_config.vision_config.spatial_merge_size
        self.temporal_patch_size = hf_config.vision_config.temporal_patch_size
        self.mm_tokens = MultimodalSpecialTokens(
            image_token_id=hf_config.image_token_id, video_token_id=hf_config.video_token_id
        ).build(_processor)

    async def process_mm_data_async(
        self,
        image_data: Any = None,
        audio_data: Any = None,
        input_text: Any = "",
        request_obj: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any] | None:
        result = self.prepare(image_data, audio_data, input_text, request_obj)
        items = result["mm_items"]
        extra = {
            key: value
            for item in items
            for key, value in item.model_specific_data.items()
            if key in ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
        }
        if any(item.model_specific_data.keys().isdisjoint(extra) for item in items):
            raise RequestError("prepared media of this model need image_grid_thw or video_grid_thw")
        positions, delta = self.rope_index(torch.tensor(result["input_ids"]), extra)
        return {
            **result,
            "im_start_id": self.IM_START_TOKEN_ID,
            "im_end_id": self.IM_END_TOKEN_ID,
            "mrope_positions": positions,
            "mrope_position_delta": delta,
        }

    def rope_index(
        self, input_ids: torch.Tensor, grids: Mapping[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions int64 [3, n] of an expanded prompt, and the delta [1, 1] of what follows it."""
        vision = self.hf_config.vision_config.to_dict()
        positions, delta = MRotaryEmbedding.get_rope_index(
            spatial_merge_size=self.spatial_merge_size,
            image_token_id=self.hf_config.image_token_id,
            video_token_id=self.hf_config.video_token_id,
            vision_start_token_id=self.hf_config.vision_start_token_id,
            model_type=self.hf_config.model_type,
            tokens_per_second=vision.get("tokens_per_second"),
            input_ids=input_ids[None],
            **grids,
        )
        return positions.squeeze(1), delta

    def replacements(
        self, modality: Modality, features: Mapping[str, Any]
    ) -> list[list[int]] | None:
        is_video = modality is Modality.VIDEO
        key = "video_grid_thw" if is_video else "image_grid_thw"
        config = self.hf_config
        token_id = config.video_token_id if is_video else config.image_token_id
        merged = self.spatial_merge_size**2
        return [[token_id] * (t * h * w // merged) for t, h, w in features[key].tolist()]

    def _options(self, kind: str) -> dict[str, Any]:
        """`min_pixels` and `max_pixels` as the size that the image processor wants."""
        options = super()._options(kind)
        if kind == "video":
            options = {
                k: v
                for k, v in options.items()
                if k not in ("fps", "num_frames", "min_frames", "max_frames")
            }
        size = _pixel_range(self._processor, kind)
        low, high = options.pop("min_pixels", size[0]), options.pop("max_pixels", size[1])
        if kind == "image" and envs.SGLANG_IMAGE_MAX_PIXELS.is_set():
            high = min(high, envs.SGLANG_IMAGE_MAX_PIXELS.get())
        elif kind == "video":
            high = min(high, envs.VIDEO_MAX_PIXELS.get() or high)
        if (low, high) != size or kind == "video":
            options.setdefault("size", {"shortest_edge": min(low, high), "longest_edge": high})
        return options

    # --- videos

    def sample_frames(self, num_frames: int, fps: float) -> list[int]:
        """`fps` frames a second of the `--mm-process-config`, else the model's, else 2; a multiple of what one patch spans."""
        wanted = {**self._processor.video_settings, **super()._options("video")}
        step = self.temporal_patch_size
        if wanted.get("num_frames"):
            count = min(round(wanted["num_frames"] / step) * step, num_frames)
        else:
            most = min(wanted.get("max_frames") or _MAX_FRAMES, num_frames)
            least = wanted.get("min_frames") or _MIN_FRAMES
            seconds = num_frames / fps
            count = int(min(max(seconds * (wanted.get("fps") or _FPS), least), most))
        count = count // step * step
        if count == 0:
            return list(range(num_frames))
        return torch.arange(0, num_frames, num_frames / count).int().tolist()

    def video_features(self, videos: list[VideoFrames]) -> Features:
        """Every frame goes through the image processor; two at a time make a patch. The seconds between patches come along."""
        pieces, grids = [], []
        for video in videos:
            patches, grid = self._video_patches(video)
            pieces.append(patches)
            grids.append(grid)
        return {
            "pixel_values_videos": torch.cat(pieces),
            "video_grid_thw": torch.tensor(grids),
            "second_per_grid_ts": torch.tensor(
                [self.temporal_patch_size / video.sampled_fps for video in videos]
            ),
        }

    def _video_patches(self, video: VideoFrames) -> tuple[torch.Tensor, list[int]]:
        """[patches, C * step * P * P] and (t, h, w)."""
        from PIL import Image  # heavy, and only videos need it here

        step = self.temporal_patch_size
        frames = [Image.fromarray(frame) for frame in video.frames]
        frames += [frames[-1]] * (-len(frames) % step)
        output = self._call(self._processor.image_processor, "video", images=frames)
        _, height, width = output["image_grid_thw"][0].tolist()
        pixels = output["pixel_values"]
        channels = len(self._processor.image_processor.image_mean)
        side = math.isqrt(pixels.shape[1] // (channels * step))
        # The image processor repeats each frame `step` times within a patch; one copy of each is what a video needs.
        single = pixels.view(len(frames), height * width, channels, step, side, side)[:, :, :, 0]
        joined = single.view(len(frames) // step, step, height * width, channels, side, side)
        patches = joined.permute(0, 2, 3, 1, 4, 5).reshape(-1, pixels.shape[1])
        return patches, [len(frames) // step, height, width]


def _pixel_range(processor: Any, kind: str) -> tuple[int, int]:
    """Fewest and most pixels of a resized image or frame, as the model's files say."""
    size = dict(processor.image_processor.size)
    low, high = size["shortest_edge"], size["longest_edge"]
    if kind == "video":
        settings = processor.video_settings
        given = settings.get("size") or {}
        low = settings.get("min_pixels") or given.get("shortest_edge") or low
        high = settings.get("max_pixels") or given.get("longest_edge") or high
    return low, high
