"""What a medium is before it is loaded (`ImageData`) and what a loaded video or sound is."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass
class ImageData:
    """The source of an image with the options that came with it."""

    url: Any
    detail: str = "auto"
    max_dynamic_patch: int | None = None


@dataclasses.dataclass
class VideoFrames:
    """Frames of a video, as sampled.

    `indices` are their places among the `total_num_frames` of the file, whose pace is `fps`.
    """

    frames: np.ndarray  # uint8 [frames, height, width, 3]
    indices: list[int]
    fps: float
    total_num_frames: int

    @property
    def sampled_fps(self) -> float:
        """Frames per second among the sampled ones."""
        return len(self.indices) / self.total_num_frames * self.fps
