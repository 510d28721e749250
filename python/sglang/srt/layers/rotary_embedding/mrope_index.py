"""Positions with three axes (time, height, width) for prompts with pictures and videos.

Text moves all three axes together. A picture of t x h x w rows has its index on each axis added to where it begins, and what follows
begins one behind the largest position so far.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

# How the time axis advances from frame to frame: by the seconds between them, or by one.
_BY_SECONDS = ("qwen2_5_vl", "paddleocr_vl")
_BY_FRAMES = ("qwen2_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
# Each frame is a block of its own in the prompt, with its time written between them.
_SEPARATE_FRAMES = ("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")


def get_rope_index(
    spatial_merge_size: int,
    image_token_id: int,
    video_token_id: int,
    vision_start_token_id: int,
    model_type: str,
    tokens_per_second: float | None = None,
    input_ids: torch.Tensor | None = None,  # int64 [b, n], media tokens expanded
    image_grid_thw: torch.Tensor | None = None,  # [images, 3] in patches
    video_grid_thw: torch.Tensor | None = None,  # [videos, 3]
    second_per_grid_ts: Sequence[float] | torch.Tensor | None = None,  # [videos]
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions int64 [3, b, n], and how far each sequence's next position is from its length, int64 [b, 1].

    The grids of all sequences follow each other. Raises RuntimeError for a model type whose rule is not known, ValueError when the
    media tokens and the grids do not fit.
    """
    if model_type not in (*_BY_SECONDS, *_BY_FRAMES):
        known = ", ".join((*_BY_SECONDS, *_BY_FRAMES))
        raise RuntimeError(f"model type {model_type!r} has no rule for positions; known: {known}")
    if input_ids is None:
        raise ValueError("get_rope_index needs input_ids")
    seconds = _as_list(second_per_grid_ts)
    scale = float(tokens_per_second or 1.0) if model_type in _BY_SECONDS else 0.0
    images = _blocks(image_grid_thw, spatial_merge_size, [])
    steps = [scale * s for s in seconds] if scale and seconds else []
    if scale and not seconds:
        steps = [scale] * (0 if video_grid_thw is None else len(video_grid_thw))
    videos = _blocks(
        video_grid_thw, spatial_merge_size, steps, frame_by_frame=model_type in _SEPARATE_FRAMES
    )
    sources = {image_token_id: images, video_token_id: videos}
    rows = [_positions(ids, sources) for ids in input_ids.tolist()]
    if any(next(left, None) is not None for left in sources.values()):
        raise ValueError("there are more image or video grids than media in the prompt")
    positions = torch.stack(rows, dim=1).to(input_ids.device)
    deltas = positions.amax(dim=(0, 2)) + 1 - input_ids.shape[1]
    return positions, deltas[:, None]


def extend_mrope_positions_for_retracted_request(
    mrope_positions: torch.Tensor,  # int64 [3, n]
    output_ids_len: int,
) -> torch.Tensor:
    """Positions [3, n + k] of a prompt and k outputs, which follow the largest position on all axes."""
    first = int(mrope_positions.max()) + 1 if mrope_positions.numel() else 0
    more = torch.arange(first, first + output_ids_len, device=mrope_positions.device)
    return torch.cat([mrope_positions, more.expand(3, -1)], dim=1)


def _positions(ids: list[int], sources: dict[int, Iterator[torch.Tensor]]) -> torch.Tensor:
    """int64 [3, n] of one sequence."""
    pieces, at, begin = [], 0, 0
    while at < len(ids):
        if ids[at] in sources:
            block = next(sources[ids[at]], None)
            end = at + (0 if block is None else block.shape[1])
            if block is None or ids[at:end] != [ids[at]] * (end - at):
                raise ValueError(
                    f"the media token {ids[at]} at position {at} does not fit the grids of the media"
                )
        else:
            end = next((i for i in range(at, len(ids)) if ids[i] in sources), len(ids))
            block = torch.arange(end - at).expand(3, -1)
        pieces.append(block + begin)
        begin = int(pieces[-1].max()) + 1
        at = end
    return torch.cat(pieces, dim=1) if pieces else torch.empty(3, 0, dtype=torch.int64)


def _blocks(
    grids: torch.Tensor | None, merge: int, steps: list[float], frame_by_frame: bool = False
) -> Iterator[torch.Tensor]:
    """Positions int64 [3, t * h * w] of every picture or video, beginning at zero."""
    for index, grid in enumerate([] if grids is None else torch.as_tensor(grids).tolist()):
        t, h, w = int(grid[0]), int(grid[1]) // merge, int(grid[2]) // merge
        if frame_by_frame:
            yield from (_block(torch.zeros(1, dtype=torch.int64), h, w) for _ in range(t))
            continue
        frames = torch.arange(t)
        yield _block((frames * steps[index]).long() if steps else frames, h, w)


def _block(frames: torch.Tensor, h: int, w: int) -> torch.Tensor:
    return torch.stack(
        torch.meshgrid(frames, torch.arange(h), torch.arange(w), indexing="ij")
    ).reshape(3, -1)


def _as_list(values: Sequence[float] | torch.Tensor | None) -> list[float]:
    if values is None:
        return []
    return [float(v) for v in (values.tolist() if isinstance(values, torch.Tensor) else values)]
