"""LLaVA-OneVision; transformers class `LlavaOnevisionForConditionalGeneration` (arXiv 2408.03326).

    rows of a video = for every frame: tower(frame), scaled to half its height and width; then one newline

Differs from LLaVA-NeXT:
- pictures of many tiles are scaled down after the tower (`vision_aspect_ratio="anyres_max_9"`: to about nine);
- several pictures of one prompt are not cut into tiles;
- videos.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from sglang.srt.models.llava import LlavaTower, check_pixels, check_places
from sglang.srt.models.llava_next import LlavaNextForConditionalGeneration, LlavaNextTower
from sglang.srt.multimodal.inputs import MultimodalDataItem


class LlavaOnevisionTower(LlavaNextTower):
    """Adds frames to pictures."""

    @property
    def pooled_side(self) -> int:
        """Rows along a side of a frame: half of its patches, rounded up."""
        return (self.layout.side + 1) // 2

    def frame_rows(self, frames: torch.Tensor) -> torch.Tensor:
        """One video [frames, C, S, S] -> [frames * pooled_side^2 + 1, D]."""
        side, pooled = self.layout.side, self.pooled_side
        grid = self(frames).unflatten(1, (side, side)).permute(0, 3, 1, 2)
        small = F.interpolate(grid, size=(pooled, pooled), mode="bilinear")
        rows = small.permute(0, 2, 3, 1).flatten(0, 2)
        return torch.cat([rows, self.image_newline.to(rows.dtype)[None]])


class LlavaOnevisionForConditionalGeneration(LlavaNextForConditionalGeneration):
    tower_cls: type[LlavaTower] = LlavaOnevisionTower

    def check(self, item: MultimodalDataItem) -> None:
        if not item.is_video():
            super().check(item)
            return
        check_pixels(item, self.visual.vision_tower, num_dims=5)
        per_frame = self.visual.pooled_side**2
        check_places(item, [len(frames) * per_frame + 1 for frames in item.feature])

    def get_video_feature(self, items: list[MultimodalDataItem]) -> torch.Tensor:  # [N, D]
        videos = [self._tower_input(frames) for item in items for frames in item.feature]
        return torch.cat([self.visual.frame_rows(frames) for frames in videos])


EntryClass = LlavaOnevisionForConditionalGeneration
