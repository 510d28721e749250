"""States of media that a model attends to across: made once per medium, for requests whose keys are not in the pool yet.

Legend: N encoder tokens of all such requests, D model width.
"""

from __future__ import annotations

from typing import Protocol

import torch

from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.multimodal.content import digests_of, split_item
from sglang.srt.multimodal.dealing import compute_dealt
from sglang.srt.multimodal.embedding_cache import EmbeddingCache
from sglang.srt.multimodal.inputs import MultimodalDataItem, MultimodalInputs
from sglang.srt.multimodal.tower_calls import on_device


class EncoderModel(Protocol):
    """What a model with cross-attention says of its media."""

    deals_media: bool  # every rank computes a share of the media

    def get_image_feature(self, items: list[MultimodalDataItem]) -> torch.Tensor:
        """The states of pictures, [N, D]."""

    def count_rows(self, item: MultimodalDataItem) -> int:
        """How many these are for one picture."""


def new_encoder_states(
    batch: ForwardBatch, model: EncoderModel, cache: EmbeddingCache
) -> torch.Tensor | None:
    """[N, D], in the order of `encoder_out_cache_loc`; None when the step writes no encoder tokens.

    A medium that several requests of the step have is made once, and `cache` remembers it for later ones. Raises RuntimeError when a
    request has not as many rows as slots.
    """
    parts: list[MultimodalDataItem] = []
    for mm_inputs, length, is_cached in zip(
        batch.mm_inputs or [None] * batch.batch_size,
        batch.encoder_lens_cpu or [],
        batch.encoder_cached or [],
        strict=True,
    ):
        if is_cached:
            continue
        assert mm_inputs is not None, "encoder tokens come with the first step of a prompt"
        mine = media_in_order(mm_inputs)
        count = sum(model.count_rows(part) for part in mine)
        if count != length:
            raise RuntimeError(f"media of a request have {count} rows for {length} encoder slots")
        parts += mine
    if not parts:
        return None
    device = batch.input_ids.device
    keys = [_key(part) for part in parts]
    known = {key: cache.get(key) for key in keys}
    missing = {key: part for key, part in zip(keys, parts, strict=True) if known[key] is None}
    for key, rows in zip(missing, _compute(list(missing.values()), model, device), strict=True):
        cache.put(key, rows)
        known[key] = rows
    return torch.cat([rows for rows in map(known.get, keys) if rows is not None])


def media_in_order(mm_inputs: MultimodalInputs) -> list[MultimodalDataItem]:
    """One item per medium, as they come in the prompt."""
    parts = [part for item in mm_inputs.mm_items for part in split_item(item)]
    return sorted(parts, key=lambda part: (part.offsets or [(0, 0)])[0])


def _compute(
    parts: list[MultimodalDataItem], model: EncoderModel, device: torch.device
) -> list[torch.Tensor]:
    """The rows of every part, one call of the model for each."""

    def rows_of(part: MultimodalDataItem) -> torch.Tensor:
        return model.get_image_feature([on_device(part, device)])

    if not parts:
        return []
    if not model.deals_media:
        return [rows_of(part) for part in parts]
    sizes = [model.count_rows(part) for part in parts]
    rows = compute_dealt(lambda mine: torch.cat([rows_of(parts[i]) for i in mine]), sizes)
    return list(rows.split(sizes))


def _key(part: MultimodalDataItem) -> bytes:
    """All that the rows depend on."""
    return b"encoder" + b"".join(digests_of(part))
