"""Replaces media tokens of a prompt by pad values: what a model's `pad_input_ids` does."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from sglang.srt.environ import envs
from sglang.srt.multimodal.inputs import MultimodalDataItem, MultimodalInputs


class MultiModalityDataPaddingPattern(ABC):
    """A way in which a model marks media in its prompts."""

    @abstractmethod
    def pad_input_tokens(self, input_ids: list[int], mm_inputs: MultimodalInputs) -> list[int]:
        """The prompt with pad values; without media it is unchanged."""


class MultiModalityDataPaddingPatternMultimodalTokens(MultiModalityDataPaddingPattern):
    """One token id per modality stands for every embedding row, the prompt being expanded already."""

    def pad_input_tokens(self, input_ids: list[int], mm_inputs: MultimodalInputs) -> list[int]:
        """Raises ValueError when the media's token id is not known."""
        if mm_inputs is None or not mm_inputs.mm_items:
            return input_ids
        if envs.SGLANG_ENABLE_MM_SPLITTING.get():
            return _pad_by_offsets(input_ids, mm_inputs.mm_items)
        pad_values = {_token_id(item, mm_inputs): item.pad_value for item in mm_inputs.mm_items}
        return [_or_same(pad_values.get(token), token) for token in input_ids]


class MultiModalityDataPaddingPatternTokenPairs(MultiModalityDataPaddingPattern):
    """Media lie strictly between a start and an end token.

    A start token of `data_start_token_ids` (default: every start token) moves on to the next item; others continue the same one.
    """

    def __init__(
        self,
        data_token_pairs: list[tuple[int, int]] | None,
        data_start_token_ids: list[int] | None = None,
    ) -> None:
        self.data_token_id_pairs = data_token_pairs
        self.data_start_token_ids = data_start_token_ids

    def pad_input_tokens(self, input_ids: list[int], mm_inputs: MultimodalInputs) -> list[int]:
        """Starts and ends that do not match in number leave the prompt unchanged. Sets `mm_inputs.data_offsets`."""
        pad_values = [item.pad_value for item in mm_inputs.mm_items]
        pairs = self.data_token_id_pairs
        mm_inputs.data_offsets = []  # type: ignore[attr-defined]
        if not pairs or not pad_values:
            return input_ids
        starts = {start for start, _ in pairs}
        ends = {end for _, end in pairs}
        begin_at = [i for i, token in enumerate(input_ids) if token in starts]
        end_at = [i for i, token in enumerate(input_ids) if token in ends]
        if len(begin_at) != len(end_at):
            return input_ids
        advances = starts if self.data_start_token_ids is None else set(self.data_start_token_ids)
        padded = list(input_ids)
        index = -1
        for begin, end in zip(begin_at, end_at, strict=True):
            if input_ids[begin] in advances:
                index += 1
                mm_inputs.data_offsets += [begin]  # type: ignore[attr-defined]
            value = _or_same(pad_values[min(max(index, 0), len(pad_values) - 1)], 0)
            padded[begin + 1 : end] = [value] * max(end - begin - 1, 0)
        return padded


def get_multimodal_data_bounds(
    input_ids: torch.Tensor,  # int64 [T], media positions holding pad values
    pad_values: list[int],
    token_pairs: list[tuple[int, int]],
) -> torch.Tensor:
    """First and last place of the media between a start and an end token each, int64 [n, 2], both inclusive.

    Media whose start lies before `input_ids` (in a cached prefix) begin at place 0. What holds no pad value is left out.
    """
    starts = {start for start, _ in token_pairs}
    ends = {end for _, end in token_pairs}
    ids, known = input_ids.tolist(), set(pad_values)
    bounds: list[tuple[int, int]] = []
    begin = 0
    for place, token in enumerate(ids):
        if token in ends and place > begin and known.intersection(ids[begin:place]):
            bounds.append((begin, place - 1))
        if token in starts or token in ends:
            begin = place + 1
    found = torch.tensor(bounds, dtype=torch.int64, device=input_ids.device)
    return found.reshape(-1, 2)


def _token_id(item: MultimodalDataItem, mm_inputs: MultimodalInputs) -> int:
    """The token that stands for an item's rows."""
    if item.is_image():
        name, token_id = "im_token_id", mm_inputs.im_token_id
    elif item.is_video():
        name, token_id = "video_token_id", mm_inputs.video_token_id
    else:
        name, token_id = "audio_token_id", mm_inputs.audio_token_id
    if token_id is None:
        raise ValueError(
            f"the processor gave media of kind {item.modality.name} but no {name}; it must return it"
        )
    return token_id


def _pad_by_offsets(input_ids: list[int], items: list[MultimodalDataItem]) -> list[int]:
    padded = list(input_ids)
    for item in items:
        for first, last in item.offsets or []:
            padded[first : last + 1] = [_or_same(item.pad_value, 0)] * (last + 1 - first)
    return padded


def _or_same(value: int | None, other: int) -> int:
    return other if value is None else value
