"""Steps with media on a worker, without a scheduler: pictures or a video of chosen sizes, in a prompt of which a step computes a chunk."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sglang.srt.managers.step_plan import RowMedia, RowSetup, RowWork, SamplingSpec, StepPlan
from sglang.srt.multimodal.inputs import Modality, MultimodalDataItem
from sglang.srt.multimodal.transport import pack


@dataclasses.dataclass(frozen=True)
class MediaPrompt:
    """A prompt of a Qwen2-VL or Qwen2.5-VL that begins with media and ends with a token of text."""

    token_ids: list[int]
    media: RowMedia | None


def make_prompt(
    runner: Any,
    grids: Sequence[tuple[int, int, int]],
    modality: Modality = Modality.IMAGE,
    length: int = 1,
) -> MediaPrompt:
    """Of media with these (frames, rows, columns) of patches, all of them zeros; `length` tokens of text stand in front."""
    config = runner.model_config.hf_config
    is_video = modality is Modality.VIDEO
    token_id = config.video_token_id if is_video else config.image_token_id
    merged = config.vision_config.spatial_merge_size**2
    ids, offsets = [1] * length, []
    for grid in grids:
        count = math.prod(grid) // merged
        offsets.append((len(ids), len(ids) + count - 1))
        ids += [token_id] * count + [1]
    if not grids:
        return MediaPrompt(ids, None)
    width = runner.model.visual.patch_embed.proj.weight[0].numel()
    key = "video_grid_thw" if is_video else "image_grid_thw"
    item = MultimodalDataItem(
        modality,
        feature=torch.zeros(sum(map(math.prod, grids)), width),
        offsets=offsets,
        model_specific_data={key: torch.tensor([list(grid) for grid in grids])},
    )
    inputs = {
        "mm_items": [item],
        "im_token_id": config.image_token_id,
        "video_token_id": config.video_token_id,
        # How they turn changes no size.
        "mrope_positions": torch.arange(len(ids)).expand(3, -1),
        "mrope_position_delta": torch.zeros(1, 1, dtype=torch.int64),
    }
    return MediaPrompt(ids, runner.media_intake().take(pack(inputs), ids).sent)


def first_chunk(prompt: MediaPrompt, num_tokens: int, page_size: int = 1) -> StepPlan:
    """A step that computes so many tokens of the prompt, from its beginning, in row 0."""
    ids = prompt.token_ids[:num_tokens]
    slots = np.arange(page_size, page_size + len(ids), dtype=np.int32)
    sampling = SamplingSpec(top_k=1)
    work = RowWork(
        row=0,
        start=0,
        num_tokens=len(ids),
        token_ids=ids,
        prefix_slots=None,
        new_slots=slots.tobytes(),
        sample=True,
    )
    setup = RowSetup(row=0, sampling=sampling, prompt_ids=prompt.token_ids, output_ids=[])
    return StepPlan(step_id=1, mode="extend", works=[work], setups=[setup], media={0: prompt.media})
