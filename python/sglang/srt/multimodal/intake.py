"""What the scheduler does with the media of a request: pad values, prefix-cache keys, and checks of what came with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import msgspec
import numpy as np
import torch

from sglang.srt.managers.step_plan import RowMedia
from sglang.srt.multimodal.content import cache_keys
from sglang.srt.multimodal.inputs import MultimodalDataItem, MultimodalInputs
from sglang.srt.multimodal.transport import unpack

PadInputIds = Callable[[list[int], MultimodalInputs], list[int]]


@dataclasses.dataclass(frozen=True)
class RequestMedia:
    """The scheduler's share: what the ranks are sent, one cache key per prompt position, and the position of the first output.

    `uncut_spans`: `[start, end)` places in the prompt whose tokens see each other in both directions. `num_encoder_tokens`: KV slots that
    the media take beside those of the tokens, in a model that attends to them across.
    """

    sent: RowMedia
    keys: list[int]
    next_position: int
    uncut_spans: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    num_encoder_tokens: int = 0

    def sent_with(self, encoder_slots: bytes) -> RowMedia:
        """What the ranks are sent when the encoder tokens have these slots."""
        if not encoder_slots:
            return self.sent
        return msgspec.structs.replace(self.sent, encoder_slots=encoder_slots)

    def chunk(self, start: int, wanted: int, left: int, page_size: int) -> int:
        """How many of the `left` tokens from `start` on to compute, where `wanted` were granted: a number of pages whose end cuts no span.

        At most `wanted` where there is such an end, else the least that goes beyond.
        """

        def is_end(count: int) -> bool:
            border = start + count
            is_cut = any(first < border < end for first, end in self.uncut_spans)
            return count == left or (count % page_size == 0 and not is_cut)

        shorter = (count for count in range(wanted, 0, -1) if is_end(count))
        longer = (count for count in range(wanted + 1, left + 1) if is_end(count))
        return next(shorter, None) or next(longer)


@runtime_checkable
class DeepstackModel(Protocol):
    """A model that also adds rows of its media to k later layers. Legend: N rows, D model width."""

    deepstack_visual_indexes: Sequence[int]  # k of them

    def separate_deepstack_embeds(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[N, D * (1 + k)] -> those of the first layer [N, D], those of the later ones [N, D * k]."""


class MediaIntake:
    """Takes media for one model.

    Args:
        pad_input_ids: the model's method of that name.
        hidden_size: width of the rows that a client may send in place of media.
        num_deep: later layers that get rows of media, too; a client may send theirs beside the first's.
    """

    def __init__(self, pad_input_ids: PadInputIds, hidden_size: int, num_deep: int = 0) -> None:
        self._pad_input_ids = pad_input_ids
        self._widths = sorted({hidden_size, hidden_size * (1 + num_deep)})

    def take(self, packed: bytes, input_ids: list[int]) -> RequestMedia:
        """Raises ValueError for media that do not fit the prompt or the model."""
        inputs = MultimodalInputs.from_dict(unpack(packed, with_features=False))
        for item in inputs.mm_items:
            _check_offsets(item, len(input_ids))
            self._check_rows(item)
        positions = inputs.mrope_positions
        next_position = _next_position(inputs, len(input_ids))
        padded = self._pad_input_ids(list(input_ids), inputs)
        if len(padded) != len(input_ids):
            raise ValueError(
                f"pad_input_ids made {len(padded)} ids of {len(input_ids)}; the processor must expand the prompt"
            )
        keys = cache_keys(padded, inputs.mm_items, positions)
        ids = np.asarray(padded, np.int64).tobytes()
        sent = RowMedia(inputs=packed, padded_ids=ids, encoder_views=inputs.encoder_views)
        return RequestMedia(
            sent, keys, next_position, inputs.uncut_spans, inputs.num_encoder_tokens
        )

    def _check_rows(self, item: MultimodalDataItem) -> None:
        rows = item.precomputed_embeddings
        if rows is None:
            return
        places = sum(last - first + 1 for first, last in item.offsets or [])
        if not isinstance(rows, torch.Tensor) or not rows.is_floating_point() or rows.dim() < 2:
            raise ValueError("precomputed embeddings must be a matrix of floating-point numbers")
        count = rows.numel() // max(rows.shape[-1], 1)
        if rows.shape[-1] not in self._widths or count != places:
            widths = " or ".join(map(str, self._widths))
            raise ValueError(
                f"precomputed embeddings of shape {list(rows.shape)} do not fit {places} places of "
                f"width {widths} in the prompt"
            )


def _next_position(inputs: MultimodalInputs, prompt_len: int) -> int:
    """The position behind the prompt, which a video may put far beyond its length."""
    positions, delta = inputs.mrope_positions, inputs.mrope_position_delta
    if positions is None:
        return prompt_len
    if tuple(positions.shape) != (3, prompt_len):
        raise ValueError(
            f"mrope_positions has the shape {list(positions.shape)} for a prompt of {prompt_len} tokens"
        )
    if prompt_len and int(positions.min()) < 0:
        raise ValueError("mrope_positions must not be negative")
    after = int(positions.max()) + 1 if prompt_len else 0
    return after if delta is None else max(after, prompt_len + int(delta))


def _check_offsets(item: MultimodalDataItem, prompt_len: int) -> None:
    end = -1
    for first, last in item.offsets or []:
        if not end < first <= last < prompt_len:
            raise ValueError(
                f"media offsets {item.offsets} are not ascending places in a prompt of {prompt_len} tokens"
            )
        end = last
