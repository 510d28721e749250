"""What the layers of one step share: the requests of a decode or an extend, laid out for the kernels.

Built from the host's copies of the lengths; uploads do not wait for the device. Legend: T tokens, B requests, N tiles.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from sglang.srt.layers.attention.triton_ops import plan
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.utils.upload import upload


@dataclass
class Splits:
    """How the keys of a decode are split. `split_len` int32 [1] on the device; graphs read it at every replay."""

    num_splits: int
    split_len: torch.Tensor


@dataclass
class DecodeMetadata:
    """The requests of a decode, or the decodes at the end of a mixed step.

    `splits` by window, chunk and whether the keys are an encoder's.
    """

    rows: torch.Tensor  # int64 [B]
    lens: torch.Tensor  # int64 [B]
    lens_cpu: np.ndarray  # upper bounds in a captured graph
    encoder_lens: torch.Tensor | None = None  # [B]
    encoder_lens_cpu: np.ndarray | None = None
    # Where a request sees a part of its encoder tokens only, the first of those; lengths above count that part for cross-attention.
    view_starts: torch.Tensor | None = None  # [B]
    view_lens: torch.Tensor | None = None  # [B]
    splits: dict[tuple[int, int, bool], Splits] = field(default_factory=dict)


@dataclass
class ExtendMetadata:
    """The requests of an extend. Tensors are int32 [B] on the device, arrays their host copies."""

    rows: torch.Tensor | None  # int64; None for a model without a cache
    starts: torch.Tensor
    new_lens: torch.Tensor
    prefix_lens: torch.Tensor
    seq_lens: torch.Tensor
    zeros: torch.Tensor
    encoder_lens: torch.Tensor | None
    new_lens_cpu: np.ndarray
    prefix_lens_cpu: np.ndarray
    # The last so many requests bring one token each and are decoded where the layer allows it.
    num_decodes: int = 0
    tiles: dict[tuple[int, bool], torch.Tensor] = field(default_factory=dict)
    spans: torch.Tensor | None = None  # int32 [T, 2]
    # Of a captured prefill: tiles are made for any lengths, and this request has no tokens.
    empty_request: int | None = None
    # The same for cross-attention: one "request" for each stretch of tokens that see the same encoder tokens.
    cross: ExtendMetadata | None = None


@dataclass
class StepMetadata:
    """What the layers of one step share.

    A model may set `custom_mask` (bool or uint8, see `ExtendOptions.mask`) and `mask_indptr` (int64, at least B) before
    its layers run.
    """

    decode: DecodeMetadata | None = None
    extend: ExtendMetadata | None = None
    custom_mask: torch.Tensor | None = None
    mask_indptr: torch.Tensor | None = None


def build_decode_metadata(batch: ForwardBatch, first: int = 0) -> DecodeMetadata:
    """The requests from `first` on, one token each."""
    assert batch.seq_lens is not None and batch.req_pool_indices is not None
    assert batch.seq_lens_cpu is not None, "a decode needs seq_lens_cpu"
    decode = DecodeMetadata(
        batch.req_pool_indices[first:], batch.seq_lens[first:], batch.seq_lens_cpu[first:].numpy()
    )
    if batch.encoder_lens_cpu is not None:
        decode.encoder_lens_cpu = np.asarray(batch.encoder_lens_cpu[first:], np.int64)
        lens = batch.encoder_lens
        decode.encoder_lens = (
            upload(decode.encoder_lens_cpu, torch.int64, batch.seq_lens.device)
            if lens is None
            else lens[first:]
        )
        if batch.encoder_views is not None:
            # A decode has one token, so one view.
            views = [view for [view] in batch.encoder_views[first:]]
            table = np.array([[low, high - low] for _, _, low, high in views], np.int64).T
            decode.view_starts, decode.view_lens = upload(
                np.ascontiguousarray(table), torch.int64, batch.seq_lens.device
            ).unbind()
    return decode


def build_cross_metadata(batch: ForwardBatch, extend: ExtendMetadata) -> ExtendMetadata:
    """What cross-attention attends with: tokens that see the same encoder tokens are a request of their own, with those as its keys.

    Of the result `seq_lens` counts the keys, `encoder_lens` is the place of the first one in the row table.
    """
    lens = batch.encoder_lens_cpu
    assert lens is not None, "cross-attention needs encoder_lens_cpu"
    assert extend.rows is not None, "cross-attention reads a cache"
    views = batch.encoder_views or [
        [(0, int(count), 0, length)]
        for count, length in zip(extend.new_lens_cpu, lens, strict=True)
    ]
    starts = np.cumsum(extend.new_lens_cpu) - extend.new_lens_cpu
    lines = np.array(
        [
            (index, starts[index] + first, end - first, low, high - low)
            for index, mine in enumerate(views)
            for first, end, low, high in mine
        ],
        np.int64,
    )
    count = len(lines)
    # As above: one upload, every line at a multiple of 16 bytes.
    table = np.zeros((6, plan.round_up(count, 4)), np.int32)
    table[:5, :count] = lines.T
    requests, firsts, news, lows, keys, zeros = upload(
        table, torch.int32, extend.starts.device
    ).unbind()
    return ExtendMetadata(
        rows=extend.rows[requests[:count].long()],
        starts=firsts,
        new_lens=news,
        prefix_lens=zeros,
        seq_lens=keys,
        zeros=zeros,
        encoder_lens=lows,
        new_lens_cpu=lines[:, 2],
        prefix_lens_cpu=np.zeros(count, np.int64),
    )


def build_extend_metadata(batch: ForwardBatch) -> ExtendMetadata:
    assert batch.seq_lens is not None and batch.seq_lens_cpu is not None
    assert batch.extend_seq_lens_cpu is not None, "an extend needs extend_seq_lens_cpu"
    size = batch.batch_size
    seq_lens = batch.seq_lens_cpu.numpy()
    new_lens = np.asarray(batch.extend_seq_lens_cpu, np.int64)
    prefix_lens = seq_lens - new_lens
    # One upload; every line of it starts at a multiple of 16 bytes.
    table = np.zeros((6, plan.round_up(size, 4)), np.int32)
    lines = [np.cumsum(new_lens) - new_lens, new_lens, prefix_lens, seq_lens]
    if batch.encoder_lens_cpu is not None:
        lines.append(np.asarray(batch.encoder_lens_cpu, np.int64))
    for line, values in zip(table[: len(lines)], lines, strict=True):
        line[:size] = values
    starts, news, prefixes, seqs, encoders, zeros = upload(
        table, torch.int32, batch.seq_lens.device
    ).unbind()
    return ExtendMetadata(
        rows=batch.req_pool_indices,
        starts=starts,
        new_lens=news,
        prefix_lens=prefixes,
        seq_lens=seqs,
        zeros=zeros,
        encoder_lens=None if batch.encoder_lens_cpu is None else encoders,
        new_lens_cpu=new_lens,
        prefix_lens_cpu=prefix_lens,
        num_decodes=_count_decodes(batch, new_lens),
    )


def _count_decodes(batch: ForwardBatch, new_lens: np.ndarray) -> int:
    """Requests with one token at the end of a mixed step."""
    if not batch.forward_mode.is_mixed():
        return 0
    longer = np.flatnonzero(new_lens != 1)
    return len(new_lens) - (int(longer[-1]) + 1 if len(longer) else 0)


def find_tiles(extend: ExtendMetadata, tokens_per_tile: int, with_decodes: bool) -> torch.Tensor:
    """Tiles int32 [N, 2] on the device; made once per step and tile size."""
    key = (tokens_per_tile, with_decodes)
    if key not in extend.tiles:
        end = len(extend.new_lens_cpu) - (0 if with_decodes else extend.num_decodes)
        tiles = plan.build_tiles(
            extend.new_lens_cpu[:end], extend.prefix_lens_cpu[:end], tokens_per_tile
        )
        if extend.empty_request is not None:
            # Every request but the first adds at most one tile that is not full.
            tiles = plan.pad_tiles(tiles, len(tiles) + extend.empty_request, extend.empty_request)
        extend.tiles[key] = upload(tiles, torch.int32, extend.starts.device)
    return extend.tiles[key]
