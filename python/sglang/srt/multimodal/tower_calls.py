"""Calls of a tower: media in groups of a bounded number of rows, each group's features sent to the device when its turn comes.

A step may have media of far more rows than it has tokens: a medium that it only begins is computed whole, and a video is as long as a
prompt may be. In groups, what a tower needs at once is that of a few thousand rows or of one picture, whatever the step brings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch

from sglang.srt.multimodal.inputs import MultimodalDataItem
from sglang.srt.utils.upload import upload_in_pieces

TowerFunction = Callable[[list[MultimodalDataItem]], torch.Tensor]

# Rows of one call, unless one picture or frame has more. A tower of 16,384 patches keeps a GPU busy, and takes some 1 GiB.
GROUP_ROWS = 4096


@runtime_checkable
class FramewiseModel(Protocol):
    """A model whose tower computes each entry of a video's first grid axis by itself, so that a video may be cut between them."""

    sees_frames_alone: bool


def call_in_groups(
    function: TowerFunction,
    device: torch.device,
    cuts_videos: bool,
    parts: list[MultimodalDataItem],  # one medium each, not empty
) -> torch.Tensor:
    """`function(parts)` [N, D], called for some of the media, or some frames of a video, at a time."""
    pieces = [piece for part in parts for piece in _pieces_of(part, cuts_videos)]
    found = []
    for group in _groups_of(pieces):
        rows = function([on_device(piece, device) for piece in group])
        found.append(rows.reshape(-1, rows.shape[-1]))
    return found[0] if len(found) == 1 else torch.cat(found)


def on_device(part: MultimodalDataItem, device: torch.device) -> MultimodalDataItem:
    """The medium with its feature on `device`, the upload queued and not waited for; the item itself is left as it is."""
    return dataclasses.replace(part, feature=_sent(part.feature, device))


def num_rows(part: MultimodalDataItem) -> int:
    """Places in the prompt, which are as many as rows."""
    return sum(last + 1 - first for first, last in part.offsets or [])


def cuts_videos(model: Any) -> bool:
    return isinstance(model, FramewiseModel) and model.sees_frames_alone


def _sent(feature: Any, device: torch.device) -> Any:
    if isinstance(feature, torch.Tensor):
        return upload_in_pieces(feature, device)
    if isinstance(feature, (list, tuple)):
        return [_sent(one, device) for one in feature]
    return feature


def _groups_of(pieces: list[MultimodalDataItem]) -> Iterator[list[MultimodalDataItem]]:
    """Neighbours of at most `GROUP_ROWS` rows together; one that has more stands alone."""
    group: list[MultimodalDataItem] = []
    size = 0
    for piece in pieces:
        count = num_rows(piece)
        if group and size + count > GROUP_ROWS:
            yield group
            group, size = [], 0
        group.append(piece)
        size += count
    yield group


def _pieces_of(part: MultimodalDataItem, cuts_videos: bool) -> list[MultimodalDataItem]:
    """The frames of a long video, as many together as a call takes; else the medium alone."""
    rows = num_rows(part)
    grid = part.model_specific_data.get("video_grid_thw")
    if not cuts_videos or rows <= GROUP_ROWS or grid is None or len(part.offsets or []) != 1:
        return [part]
    frames, height, width = torch.as_tensor(grid).reshape(-1).tolist()
    if rows % frames or len(part.feature) != frames * height * width:
        return [part]
    first = (part.offsets or [(0, 0)])[0][0]
    per_frame = rows // frames
    step = max(GROUP_ROWS // per_frame, 1)
    found = []
    for start in range(0, frames, step):
        end = min(start + step, frames)
        data = {**part.model_specific_data}
        data["video_grid_thw"] = torch.tensor([[end - start, height, width]])
        feature = part.feature[start * height * width : end * height * width]
        span = (first + start * per_frame, first + end * per_frame - 1)
        # A digest is that of a whole medium.
        found.append(
            dataclasses.replace(
                part, feature=feature, offsets=[span], digests=None, model_specific_data=data
            )
        )
    return found
