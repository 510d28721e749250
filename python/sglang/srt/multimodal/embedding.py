"""Puts the embeddings of media in the place of their pad values, and calls the language model.

Legend: T tokens in the batch, D model width, N embedding rows of one request's media.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch

from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.multimodal.content import digests_of, split_item
from sglang.srt.multimodal.dealing import embed_dealt
from sglang.srt.multimodal.embedding_cache import EmbeddingCache, cache_of
from sglang.srt.multimodal.inputs import Modality, MultimodalDataItem, MultimodalInputs
from sglang.srt.multimodal.tower_calls import call_in_groups, cuts_videos, num_rows
from sglang.srt.utils.upload import upload, upload_in_pieces

logger = logging.getLogger(__name__)

EmbeddingFunction = Callable[[list[MultimodalDataItem]], torch.Tensor]


def general_mm_embed_routine(
    input_ids: torch.Tensor,  # int64 [T]; media positions hold pad values; clamped to the vocabulary in place
    forward_batch: ForwardBatch,
    language_model: Any,
    multimodal_model: Any = None,
    data_embedding_funcs: dict[Modality, EmbeddingFunction] | None = None,
    placeholder_tokens: dict[Modality, list[int]] | None = None,
    use_deepstack: dict[Modality, bool] | None = None,
    **kwargs: Any,
) -> Any:
    """`language_model(input_ids=None, forward_batch=, input_embeds=[T, D], **kwargs)` with media embedded.

    Media of a modality are embedded by `data_embedding_funcs[modality]`, else by `get_image_feature` (`_video_`, `_audio_`) of
    `multimodal_model`, request by request. With `use_deepstack` the language model also gets `input_deepstack_embeds`.
    Raises RuntimeError when the function gives fewer rows than the prompt has places.
    """
    if _is_later_stage(language_model):
        return language_model(
            input_ids=None, forward_batch=forward_batch, input_embeds=None, **kwargs
        )
    embed_tokens = language_model.get_input_embeddings()
    mode = forward_batch.forward_mode
    has_media = (
        not mode.is_decode_or_idle()
        and not mode.is_target_verify()
        and forward_batch.contains_mm_inputs()
    )
    if has_media:
        embeds, extra = embed_mm_inputs(
            list(forward_batch.mm_inputs or []),
            list(forward_batch.extend_prefix_lens_cpu or []),
            list(forward_batch.extend_seq_lens_cpu or []),
            input_ids,
            embed_tokens,
            multimodal_model,
            data_embedding_funcs,
            placeholder_tokens,
            use_deepstack,
        )
        kwargs.update(extra)
        _release_features(forward_batch)
        forward_batch.mm_input_embeds = embeds
    else:
        embeds = embed_tokens(input_ids)
    if forward_batch.input_embeds is not None:  # a buffer that a recorded graph reads
        embeds = forward_batch.input_embeds.copy_(embeds)
    return language_model(
        input_ids=None, forward_batch=forward_batch, input_embeds=embeds, **kwargs
    )


def embed_mm_inputs(
    mm_inputs_list: list[MultimodalInputs | None],
    extend_prefix_lens: list[int],
    extend_seq_lens: list[int],
    input_ids: torch.Tensor,
    input_embedding: Any,  # the table, with `num_embeddings`
    multimodal_model: Any = None,
    data_embedding_func_mapping: dict[Modality, EmbeddingFunction] | None = None,
    placeholder_tokens: dict[Modality, list[int]] | None = None,
    use_deepstack: dict[Modality, bool] | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Embeddings `[T, D]` and further keywords for the language model. Clamps `input_ids` in place."""
    pieces = []
    for modality in Modality.all():
        function: EmbeddingFunction = functools.partial(
            _call_embedding_function, modality, multimodal_model, data_embedding_func_mapping
        )
        function = functools.partial(
            call_in_groups, function, input_ids.device, cuts_videos(multimodal_model)
        )
        if _deals_media(multimodal_model):
            function = functools.partial(embed_dealt, function)
        found = _embed_modality(
            modality,
            mm_inputs_list,
            extend_prefix_lens,
            extend_seq_lens,
            function,
            cache_of(multimodal_model),
            input_ids.device,
        )
        if found is not None:
            pieces.append((modality, *found))
    input_ids.clamp_(0, input_embedding.num_embeddings - 1)
    embeds = input_embedding(input_ids)
    extra: dict[str, torch.Tensor] = {}
    for modality, rows, places in pieces:
        where = upload(places, torch.int64, embeds.device)
        if (use_deepstack or {}).get(modality):
            rows, deep = multimodal_model.separate_deepstack_embeds(rows)
            if "input_deepstack_embeds" not in extra:
                extra["input_deepstack_embeds"] = embeds.new_zeros(len(embeds), deep.shape[-1])
            extra["input_deepstack_embeds"][where] = deep.to(embeds)
        embeds[where] = rows.to(embeds)
    return embeds, extra


def _embed_modality(
    modality: Modality,
    mm_inputs_list: list[MultimodalInputs | None],
    prefix_lens: list[int],
    extend_lens: list[int],
    function: EmbeddingFunction,
    cache: EmbeddingCache,
    device: torch.device,
) -> tuple[torch.Tensor, list[int]] | None:
    """Rows of all requests' media of one kind that lie in this step, and their places in the batch; None without any."""
    all_rows, all_places, start = [], [], 0
    for mm_inputs, prefix, count in zip(mm_inputs_list, prefix_lens, extend_lens, strict=True):
        if mm_inputs is not None:
            window = range(prefix, prefix + count)
            items = _items_of(modality, mm_inputs)
            for part, rows in _rows_in(window, items, mm_inputs, modality, function, cache):
                spots = _spots(part)
                chosen = [n for n, spot in enumerate(spots) if spot in window]
                rows = rows[upload(chosen, torch.int64, rows.device)]
                all_rows.append(upload_in_pieces(rows, device))  # those of a client are on the host
                all_places += [start + spots[n] - prefix for n in chosen]
        start += count
    return (torch.cat(all_rows), all_places) if all_rows else None


def _rows_in(
    window: range,  # positions of one request in this step
    items: list[MultimodalDataItem],
    mm_inputs: MultimodalInputs,
    modality: Modality,
    function: EmbeddingFunction,
    cache: EmbeddingCache,
) -> list[tuple[MultimodalDataItem, torch.Tensor]]:
    """The images (videos, sounds) that lie in the window in part, with all of their rows: known ones, then those that are computed."""
    parts = [part for item in items for part in split_item(item)]
    parts = [part for part in parts if _is_in(part, window)]
    found, missing = [], []
    for part in parts:
        rows = _known_rows(part, mm_inputs, modality, cache)
        found.append(rows)
        if rows is None:
            missing.append(part)
    if missing and len(missing) < len(parts):
        given = [part.precomputed_embeddings is not None for part in parts]
        if any(given):
            raise ValueError(
                "a request mixes media with precomputed embeddings and media without; give one kind"
            )
    computed = iter(_compute(missing, modality, function))
    result = []
    for part, rows in zip(parts, found, strict=True):
        if rows is None:
            rows = next(computed)
            cache.put(_key(part, modality), rows)
        _keep_unfinished(part, rows, mm_inputs, modality, window)
        result.append((part, rows))
    return result


def _known_rows(
    part: MultimodalDataItem, mm_inputs: MultimodalInputs, modality: Modality, cache: EmbeddingCache
) -> torch.Tensor | None:
    """Rows that came with the request, were computed for its last chunk, or are in the cache."""
    given = part.precomputed_embeddings
    if given is not None:
        return given.reshape(-1, given.shape[-1])
    rows = mm_inputs.unfinished.get(_key(part, modality))
    return cache.get(_key(part, modality)) if rows is None else rows


def _keep_unfinished(
    part: MultimodalDataItem,
    rows: torch.Tensor,
    mm_inputs: MultimodalInputs,
    modality: Modality,
    window: range,
) -> None:
    """Rows that the next chunk needs are not left to the cache, which may be too small."""
    if _spots(part)[-1] >= window.stop:
        mm_inputs.unfinished[_key(part, modality)] = rows
    else:
        mm_inputs.unfinished.pop(_key(part, modality), None)


def _compute(
    parts: list[MultimodalDataItem], modality: Modality, function: EmbeddingFunction
) -> list[torch.Tensor]:
    """The rows of every part."""
    if not parts:
        return []
    rows = function(parts)
    rows = rows.reshape(-1, rows.shape[-1])
    places = [num_rows(part) for part in parts]
    if len(rows) < sum(places):
        raise RuntimeError(
            f"{modality.name}: the prompt has {sum(places)} places for media, the model made {len(rows)} rows"
        )
    if len(rows) > sum(places):
        logger.warning(
            "%s: %d rows for %d places; the last ones are used",
            modality.name,
            len(rows),
            sum(places),
        )
        rows = rows[-sum(places) :]
    return list(rows.split(places))


def _spots(part: MultimodalDataItem) -> list[int]:
    """The positions in the prompt, in order."""
    return [i for first, last in part.offsets or [] for i in range(first, last + 1)]


def _is_in(part: MultimodalDataItem, window: range) -> bool:
    return any(first < window.stop and last >= window.start for first, last in part.offsets or [])


def _key(part: MultimodalDataItem, modality: Modality) -> bytes:
    """All that the rows depend on."""
    return modality.name.encode() + b"".join(digests_of(part))


def _items_of(modality: Modality, mm_inputs: MultimodalInputs) -> list[MultimodalDataItem]:
    if modality is Modality.IMAGE:
        return [item for item in mm_inputs.mm_items if item.is_image()]
    return [item for item in mm_inputs.mm_items if item.is_modality(modality)]


def _call_embedding_function(
    modality: Modality,
    multimodal_model: Any,
    mapping: dict[Modality, EmbeddingFunction] | None,
    items: list[MultimodalDataItem],
) -> torch.Tensor:
    """Rows of one request's media. Raises ValueError when the model has no function for the kind."""
    if mapping and modality in mapping:
        return mapping[modality](items)
    name = f"get_{modality.name.lower()}_feature"
    function = getattr(multimodal_model, name, None)
    if function is None:
        raise ValueError(
            f"{type(multimodal_model).__name__} has no {name}, so that it cannot take media of this kind"
        )
    return function(items)


def _deals_media(multimodal_model: Any) -> bool:
    """Whether every rank holds the whole tower and computes a share of the media."""
    is_module = isinstance(multimodal_model, torch.nn.Module)
    return is_module and bool(vars(multimodal_model).get("deals_media", False))


def _is_later_stage(language_model: Any) -> bool:
    group = vars(language_model).get("pp_group")
    return group is not None and not group.is_first_rank


def _release_features(forward_batch: ForwardBatch) -> None:
    """The device memory of media is not needed once they are embedded; later chunks read them from the host."""
    for mm_inputs in forward_batch.mm_inputs or []:
        for item in mm_inputs.mm_items if mm_inputs is not None else []:
            if isinstance(item.feature, torch.Tensor) and item.feature.device.type != "cpu":
                item.feature = item.feature.cpu()
    forward_batch.mm_inputs = None
