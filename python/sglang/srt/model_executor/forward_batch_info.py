"""What one forward pass is about: the values that the batch builder makes and that layers read.

Shapes: T tokens of all requests one after the other, B requests. No batch dimension exists anywhere
else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, auto
from typing import Any

import torch


class ForwardMode(IntEnum):
    """What kind of step it is."""

    EXTEND = auto()  # new prompt tokens, with or without a cached prefix
    DECODE = auto()  # one token per request
    MIXED = auto()  # both in one batch, decodes being extends by one token
    IDLE = auto()  # no requests; this rank only takes part in collectives
    TARGET_VERIFY = auto()
    DRAFT_EXTEND = auto()
    DRAFT_EXTEND_V2 = auto()
    PREBUILT = auto()
    SPLIT_PREFILL = auto()
    DLLM_EXTEND = auto()

    def is_extend(self, include_draft_extend_v2: bool = False) -> bool:
        return self in _EXTEND_MODES or (include_draft_extend_v2 and self.is_draft_extend_v2())

    def is_prefill(self) -> bool:
        return self.is_extend()

    def is_decode(self) -> bool:
        return self == ForwardMode.DECODE

    def is_mixed(self) -> bool:
        return self == ForwardMode.MIXED

    def is_idle(self) -> bool:
        return self == ForwardMode.IDLE

    def is_decode_or_idle(self) -> bool:
        return self in (ForwardMode.DECODE, ForwardMode.IDLE)

    def is_target_verify(self) -> bool:
        return self == ForwardMode.TARGET_VERIFY

    def is_draft_extend(self, include_v2: bool = False) -> bool:
        return self == ForwardMode.DRAFT_EXTEND or (include_v2 and self.is_draft_extend_v2())

    def is_draft_extend_v2(self) -> bool:
        return self == ForwardMode.DRAFT_EXTEND_V2

    def is_prebuilt(self) -> bool:
        return self == ForwardMode.PREBUILT

    def is_split_prefill(self) -> bool:
        return self == ForwardMode.SPLIT_PREFILL

    def is_dllm_extend(self) -> bool:
        return self == ForwardMode.DLLM_EXTEND

    def is_extend_or_draft_extend_or_mixed(self) -> bool:
        return self in (
            ForwardMode.EXTEND,
            ForwardMode.DRAFT_EXTEND,
            ForwardMode.MIXED,
            ForwardMode.SPLIT_PREFILL,
        )

    def is_extend_without_speculative(self) -> bool:
        return self.is_extend() and not self.is_target_verify() and not self.is_draft_extend()

    def is_cuda_graph(self) -> bool:
        """May this kind of step be replayed from a captured graph?"""
        return self in _GRAPH_MODES


_EXTEND_MODES = frozenset(
    {
        ForwardMode.EXTEND,
        ForwardMode.MIXED,
        ForwardMode.DRAFT_EXTEND,
        ForwardMode.TARGET_VERIFY,
        ForwardMode.SPLIT_PREFILL,
        ForwardMode.DLLM_EXTEND,
    }
)
_GRAPH_MODES = frozenset(
    {
        ForwardMode.DECODE,
        ForwardMode.TARGET_VERIFY,
        ForwardMode.IDLE,
        ForwardMode.DLLM_EXTEND,
    }
)


class CaptureHiddenMode(IntEnum):
    """Which hidden states the logits processor hands out."""

    NULL = 0
    LAST = 1  # the rows that are sampled from
    FULL = 2  # every row

    def need_capture(self) -> bool:
        return self != CaptureHiddenMode.NULL

    def is_full(self) -> bool:
        return self == CaptureHiddenMode.FULL

    def is_last(self) -> bool:
        return self == CaptureHiddenMode.LAST


class PPProxyTensors:
    """The named tensors that one pipeline stage hands to the next."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.tensors = tensors

    def __getitem__(self, key: str | slice) -> Any:
        """`x["name"]` is a tensor; `x[slice]` slices the first dimension of every tensor."""
        if isinstance(key, slice):
            return PPProxyTensors({name: t[key] for name, t in self.tensors.items()})
        return self.tensors[key]

    def __setitem__(self, key: str, value: torch.Tensor) -> None:
        self.tensors[key] = value

    def __len__(self) -> int:
        return len(self.tensors)

    def __repr__(self) -> str:
        shapes = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        return f"PPProxyTensors({shapes})"


@dataclass
class ForwardBatch:
    """One forward pass. Layers read it; models may set fields and add attributes of their own.

    Tensors are on the model's device unless the name ends in `_cpu`. Fields that do not apply are
    None.
    """

    forward_mode: ForwardMode
    batch_size: int = 0  # B
    input_ids: torch.Tensor | None = None  # [T] int64; media positions hold pad values >= V
    positions: torch.Tensor | None = None  # [T] int64
    mrope_positions: torch.Tensor | None = None  # [3, T] int64
    # What rotary modules made of these positions, for all layers. Empty when a forward begins: a
    # captured one must make its own.
    rope_tables: dict[Any, tuple[torch.Tensor, ...]] = field(default_factory=dict)

    # Where each request keeps its keys and values.
    req_pool_indices: torch.Tensor | None = None  # [B] int64, rows of req_to_token
    seq_lens: torch.Tensor | None = None  # [B] int64, including the tokens of this step
    seq_lens_cpu: torch.Tensor | None = None  # [B] int64
    seq_lens_sum: int | None = None
    out_cache_loc: torch.Tensor | None = None  # [T] int64, KV slot of each new token

    # Extend only.
    extend_seq_lens: torch.Tensor | None = None  # [B] int32, new tokens of each request
    extend_prefix_lens: torch.Tensor | None = None  # [B] int32, tokens cached before this step
    extend_start_loc: torch.Tensor | None = None  # [B] int32, first row of each request
    extend_seq_lens_cpu: list[int] | None = None
    extend_prefix_lens_cpu: list[int] | None = None
    extend_num_tokens: int | None = None  # T

    # Log probabilities. `extend_logprob_start_lens_cpu` is an index within the request's new
    # tokens, equal to their number when no input logprobs are wanted. The id tensor has one entry
    # per wanted row, request after request: the prompt token that the row predicts (0 where it is
    # not known yet).
    return_logprob: bool = False
    extend_logprob_start_lens_cpu: list[int] | None = None
    extend_input_logprob_token_ids_gpu: torch.Tensor | None = None  # int64
    top_logprobs_nums: list[int] | None = None
    token_ids_logprobs: list[list[int] | None] | None = None
    next_token_positions: torch.Tensor | None = None  # [B] int64, rows of T that are sampled from

    # Media and embeddings.
    mm_inputs: list[Any] | None = None  # per request MultimodalInputs or None
    mm_input_embeds: torch.Tensor | None = None  # [T, D]
    input_embeds: torch.Tensor | None = None  # [T, D]
    token_type_ids: torch.Tensor | None = None  # [T]
    # Per request: [start, end) positions within which attention is not causal (images of Gemma 3).
    bidirectional_spans: list[list[tuple[int, int]]] | None = None

    # Cross-attention. The slots of a request's encoder tokens precede those of its own tokens in
    # req_to_token.
    encoder_lens: torch.Tensor | None = None  # [B]
    encoder_lens_cpu: list[int] | None = None
    encoder_cached: list[bool] | None = None  # written by an earlier step
    encoder_out_cache_loc: torch.Tensor | None = None  # [N] int64, slots written in this step
    # Per request: (first, end, low, high): its new tokens first .. end - 1 see encoder tokens low .. high - 1; every new token is in one.
    # None: all tokens of a request see all of its encoder tokens.
    encoder_views: list[list[tuple[int, int, int, int]]] | None = None
    encoder_visible: torch.Tensor | None = None  # [T] bool, whether a token sees any

    # What the requests ask for.
    sampling_info: Any = None
    lora_ids: list[str | None] | None = None
    dimensions: list[int] | None = None  # output width of Matryoshka embeddings per request
    capture_hidden_mode: CaptureHiddenMode = CaptureHiddenMode.NULL
    return_hidden_states_before_norm: bool = False

    # Runtime objects.
    attn_backend: Any = None
    req_to_token_pool: Any = None
    token_to_kv_pool: Any = None

    # Speculation.
    spec_info: Any = None
    spec_algorithm: Any = None

    # Padding, overlap and data-parallel attention.
    num_token_non_padded: torch.Tensor | None = None
    can_run_tbo: bool = False
    tbo_children: list[ForwardBatch] | None = None
    global_num_tokens_cpu: list[int] | None = None
    dp_padding_mode: Any = None
    global_dp_buffer_len: int | None = None

    # State carried between the parts of a split prefill.
    hidden_states: torch.Tensor | None = None
    residual: torch.Tensor | None = None
    model_specific_states: dict[str, Any] | None = None
    split_index: int = 0

    def contains_image_inputs(self) -> bool:
        return any(mm is not None and mm.contains_image_inputs() for mm in self.mm_inputs or [])

    def contains_video_inputs(self) -> bool:
        return any(mm is not None and mm.contains_video_inputs() for mm in self.mm_inputs or [])

    def contains_audio_inputs(self) -> bool:
        return any(mm is not None and mm.contains_audio_inputs() for mm in self.mm_inputs or [])

    def contains_mm_inputs(self) -> bool:
        return (
            self.contains_image_inputs()
            or self.contains_video_inputs()
            or self.contains_audio_inputs()
        )

    def merge_mm_inputs(self) -> Any:
        """All media of the batch in one new MultimodalInputs, or None without any."""
        present = [mm for mm in self.mm_inputs or [] if mm is not None]
        if not present:
            return None
        # A fresh object: `merge` writes to its receiver, which belongs to a request.
        merged = type(present[0])(mm_items=[])
        for mm in present:
            merged.merge(mm)
        return merged
