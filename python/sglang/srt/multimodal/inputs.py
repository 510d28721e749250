"""The media of a request, as values.

Positions of media in a prompt hold a pad value: a number beyond every vocabulary that is derived from the media's content, so that the prefix
cache shares equal media and nothing else.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, fields
from enum import Enum, auto
from typing import Any

import torch

PAD_VALUE_START = 1_000_000  # every vocabulary is smaller
_PAD_VALUE_RANGE = 2**30


class Modality(Enum):
    """Kind of media."""

    IMAGE = auto()
    MULTI_IMAGES = auto()
    VIDEO = auto()
    AUDIO = auto()

    @staticmethod
    def from_str(modality_str: str) -> Modality:
        """By name, in any case. Raises ValueError naming the allowed ones."""
        try:
            return Modality[modality_str.upper()]
        except KeyError:
            allowed = ", ".join(modality.name.lower() for modality in Modality)
            raise ValueError(
                f"modality {modality_str!r} is not supported; allowed: {allowed}"
            ) from None

    @staticmethod
    def all() -> list[Modality]:
        """The kinds that have an embedding function of their own."""
        return [Modality.IMAGE, Modality.VIDEO, Modality.AUDIO]


class MultimodalInputFormat(Enum):
    """What `feature` is."""

    NORMAL = auto()  # raw media that our processor prepared
    PROCESSOR_OUTPUT = auto()  # what the client's own processor returned
    PRECOMPUTED_EMBEDDING = auto()  # rows that go into the model as they are


@dataclass
class MultimodalDataItem:
    """The media of one modality in one request: all its images, say, concatenated.

    Names that are no field live in `model_specific_data` and read like attributes (`item.image_grid_thw`).
    """

    modality: Modality
    hash: int | None = None
    pad_value: int | None = None
    offsets: list[tuple[int, int]] | None = None  # in the expanded prompt, both ends inclusive
    format: MultimodalInputFormat = MultimodalInputFormat.NORMAL
    feature: Any = None  # pixel values, audio features: tensor, array or list
    precomputed_embeddings: torch.Tensor | None = None
    model_specific_data: dict[str, Any] = field(default_factory=dict)
    # SHA-256 of the content, one per offset pair; made by `multimodal.content.seal`, never by a client.
    digests: list[bytes] | None = None

    def __getattr__(self, name: str) -> Any:
        # Called for names that are not set, also while a copy has no `__dict__` entries yet.
        data = self.__dict__.get("model_specific_data", {})
        if name in data:
            return data[name]
        raise AttributeError(f"this {type(self).__name__} has no {name!r}; it has {sorted(data)}")

    def __setitem__(self, key: str, value: Any) -> None:
        self.set(key, value)

    def set(self, key: str, value: Any) -> None:
        """Store to a field, or to `model_specific_data`."""
        if key in _ITEM_FIELDS:
            setattr(self, key, value)
        else:
            self.model_specific_data[key] = value

    def is_modality(self, modality: Modality) -> bool:
        return self.modality == modality

    def is_image(self) -> bool:
        return self.modality in (Modality.IMAGE, Modality.MULTI_IMAGES)

    def is_video(self) -> bool:
        return self.modality == Modality.VIDEO

    def is_audio(self) -> bool:
        return self.modality == Modality.AUDIO

    def is_valid(self) -> bool:
        return self.is_image() or self.is_video() or self.is_audio()

    def is_precomputed_embedding(self) -> bool:
        return self.format == MultimodalInputFormat.PRECOMPUTED_EMBEDDING

    def set_pad_value(self) -> None:
        """Derive `hash` from the content, unless it is known, and `pad_value` from the hash. Reads tensors on the host."""
        if self.hash is None:
            known = self.precomputed_embeddings
            self.hash = hash_feature(self.feature if known is None else known)
        self.pad_value = PAD_VALUE_START + self.hash % _PAD_VALUE_RANGE

    @staticmethod
    def from_dict(obj: dict[str, Any]) -> MultimodalDataItem:
        """Build from keys; `modality` may be a name, keys that are no field go to `model_specific_data`."""
        values = dict(obj)
        modality = values.pop("modality")
        if isinstance(modality, str):
            modality = Modality.from_str(modality)
        item = MultimodalDataItem(modality=modality)
        for key, value in values.items():
            item.set(key, value)
        return item

    def merge(self, other: MultimodalDataItem) -> None:
        """Append the features and offsets of an item of the same kind; the pad value is derived anew."""
        self.feature = _joined(self.feature, other.feature)
        self.offsets = [*(self.offsets or []), *(other.offsets or [])]
        known = [value for value in (self.hash, other.hash) if value is not None]
        self.hash = hash_feature(known) if len(known) == 2 else None
        self.set_pad_value()


_ITEM_FIELDS = frozenset(f.name for f in fields(MultimodalDataItem))


@dataclass
class MultimodalInputs:
    """All media of one request, and the ids of the special tokens around them. Models may add attributes."""

    mm_items: list[MultimodalDataItem]
    image_pad_len: list[int] | None = None
    num_image_tokens: int | None = None
    im_token_id: int | None = None
    im_start_id: int | None = None
    im_end_id: int | None = None
    slice_start_id: int | None = None
    slice_end_id: int | None = None
    video_token_id: int | None = None
    audio_token_id: int | None = None
    audio_start_id: int | None = None
    audio_end_id: int | None = None
    mrope_positions: torch.Tensor | None = None  # int64 [3, prompt length]
    mrope_position_delta: torch.Tensor | None = None  # int64 [1, 1]
    # Set by a model's pad_input_ids: `[start, end)` places in the prompt that must be computed in one step.
    uncut_spans: list[tuple[int, int]] = field(default_factory=list)
    # Set by pad_input_ids of a model with cross-attention: keys that the media take in its layers, and which of them a token sees
    # (`RowMedia.encoder_views`).
    num_encoder_tokens: int = 0
    encoder_views: list[tuple[int, int, int]] = field(default_factory=list)
    # Rows `[n, D]` of media that a prompt chunk ends in, by digest, for the next chunk.
    unfinished: dict[bytes, torch.Tensor] = field(default_factory=dict, repr=False)

    @staticmethod
    def from_dict(obj: dict[str, Any]) -> MultimodalInputs:
        """Build from a processor's result: valid items with their pad values, token ids, positions; the rest is left out."""
        items = [item for item in obj["mm_items"] if item.is_valid()]
        for item in items:
            item.set_pad_value()
        known = {f.name for f in fields(MultimodalInputs)} - {
            "mm_items",
            "unfinished",
            "uncut_spans",
            "num_encoder_tokens",
            "encoder_views",
        }
        values = {key: value for key, value in obj.items() if key in known}
        return MultimodalInputs(mm_items=items, **values)

    def contains_image_inputs(self) -> bool:
        return any(item.is_image() for item in self.mm_items)

    def contains_video_inputs(self) -> bool:
        return any(item.is_video() for item in self.mm_items)

    def contains_audio_inputs(self) -> bool:
        return any(item.is_audio() for item in self.mm_items)

    def contains_mm_input(self) -> bool:
        return any(item.is_valid() for item in self.mm_items)

    def merge(self, other: MultimodalInputs) -> None:
        """Append the media of another request part. Token ids that are unknown here are taken over."""
        self.mm_items = [*self.mm_items, *other.mm_items]
        if other.mrope_positions is not None:
            mine = [] if self.mrope_positions is None else [self.mrope_positions]
            self.mrope_positions = torch.cat([*mine, other.mrope_positions], dim=1)
            self.mrope_position_delta = other.mrope_position_delta
        for name in (f.name for f in fields(self) if f.name.endswith("_id")):
            if getattr(self, name) is None:
                setattr(self, name, getattr(other, name))


def hash_feature(feature: Any) -> int:
    """64 bits of a digest of tensors, arrays, numbers, text and lists of them. Reads tensors on the host."""
    digest = hashlib.sha256()
    for part in content_parts(feature):
        digest.update(part)
    return int.from_bytes(digest.digest()[:8], "little")


def tensor_hash(tensor_list: torch.Tensor | list[torch.Tensor]) -> int:
    """`hash_feature` of a tensor or of several."""
    return hash_feature(tensor_list)


def content_parts(value: Any) -> list[Any]:
    """Buffers that tell two values apart, shapes and dtypes included. Views of tensors, not copies."""
    if isinstance(value, (list, tuple)):
        head = f"list {len(value)};".encode()
        return [head, *(part for item in value for part in content_parts(item))]
    if isinstance(value, dict):
        return content_parts(sorted(value.items()))
    if isinstance(value, torch.Tensor):
        flat = value.detach().cpu().contiguous().reshape(-1)
        head = f"tensor {value.dtype} {tuple(value.shape)};".encode()
        return [head, flat.view(torch.uint8).numpy()] if flat.numel() else [head]
    if isinstance(value, (bytes, bytearray)):
        return [f"bytes {len(value)};".encode(), bytes(value)]
    if isinstance(value, (str, int, float, bool)) or value is None:
        return [f"{type(value).__name__} {value!r};".encode()]
    return content_parts(torch.as_tensor(value))  # numpy arrays


def _joined(first: Any, second: Any) -> Any:
    if first is None or second is None:
        return second if first is None else first
    if isinstance(first, torch.Tensor):
        return torch.cat([first, second])
    return [*first, *second]
