"""What every processor shares: loading media in parallel, features by the Hugging Face processors, placeholders expanded on token ids.

A family says which token stands for a medium (`mm_tokens`) and what takes its place (`replacements`). One that says nothing about
replacements runs through its whole Hugging Face processor, on text.
"""

from __future__ import annotations

import functools
import multiprocessing
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import torch

from sglang.srt.environ import envs
from sglang.srt.multimodal.inputs import Modality, MultimodalDataItem, MultimodalInputFormat
from sglang.srt.multimodal.media.data import VideoFrames
from sglang.srt.multimodal.media.decode_pool import DecodePool
from sglang.srt.multimodal.media.loader import LoadOptions, load_audio, load_image, load_video
from sglang.srt.multimodal.media.sources import SourcePolicy
from sglang.srt.multimodal.processors.client_items import (
    is_prepared,
    prepared_features,
    validate_mm_data,
)
from sglang.srt.multimodal.processors.placeholders import (
    MediaPlaces,
    expand_placeholders,
    runs_of,
)
from sglang.srt.multimodal.processors.special_tokens import (
    BaseMultiModalProcessorOutput,
    MultimodalSpecialTokens,
)
from sglang.srt.utils.errors import ConfigError, RequestError

__all__ = [
    "BaseMultiModalProcessorOutput",
    "BaseMultimodalProcessor",
    "MultimodalSpecialTokens",
]

Features = dict[str, Any]

_IMAGE_KEYS = """pixel_values image_sizes image_grid_thw image_attention_mask image_emb_mask images_spatial_crop images_crop tgt_size
    image_grid_hws aspect_ratio_ids aspect_ratio_mask num_patches patch_pixel_values block_sizes grid_thws""".split()
_AUDIO_KEYS = """audio_features audio_feature_lens input_features input_features_mask audio_attention_mask
    feature_attention_mask""".split()
_VIDEO_KEYS = ["pixel_values_videos", "second_per_grid_ts", "video_grid_thw"]
_LOADERS = {Modality.IMAGE: load_image, Modality.VIDEO: load_video, Modality.AUDIO: load_audio}


class BaseMultimodalProcessor(ABC):
    """Prepares the media of one family of models.

    Args:
        hf_config: the model's config.
        server_args: for `mm_process_config` and the like.
        _processor: the Hugging Face processor or its parts (`hf_processor.ProcessorParts`).

    `models` lists the model classes, or their names, that a processor is for.
    """

    models: list[Any] = []
    mm_tokens: MultimodalSpecialTokens | None = None
    modalities: tuple[Modality, ...] = tuple(Modality.all())  # that requests may bring
    joins_runs = False  # a run of placeholders stands for one medium

    def __init__(
        self,
        hf_config: Any,
        server_args: Any,
        _processor: Any,
        transport_mode: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        self.hf_config = hf_config
        self.server_args = server_args
        self._processor = _processor
        self.transport_mode = transport_mode
        self.arch = (hf_config.architectures or [""])[0]
        self.source_policy = SourcePolicy.from_environment()
        self.decode_pool: DecodePool | None = None  # a server sets it
        self.io_executor = ThreadPoolExecutor(
            envs.SGLANG_IO_WORKERS.get(), thread_name_prefix="media-io"
        )
        self.NUM_TOKEN_PER_FRAME = 330
        self.ATTR_NAME_TO_MODALITY: dict[str, Modality] = {
            **dict.fromkeys(_IMAGE_KEYS, Modality.IMAGE),
            **dict.fromkeys(_AUDIO_KEYS, Modality.AUDIO),
            **dict.fromkeys(_VIDEO_KEYS, Modality.VIDEO),
        }
        self.FEATURE_NAMES = [
            *("pixel_values", "pixel_values_videos", "audio_features", "input_features")
        ]

    # --- what a family says

    @abstractmethod
    async def process_mm_data_async(
        self, image_data: Any, audio_data: Any, input_text: Any, request_obj: Any, **kwargs: Any
    ) -> dict[str, Any] | None:
        """Media and prompt -> `{"input_ids", "mm_items", ...}`. Called by keyword; `request_obj` has `video_data`."""

    def replacements(
        self, modality: Modality, features: Mapping[str, Any]
    ) -> list[list[int]] | None:
        """For each medium the ids that take its placeholder's place; None: the Hugging Face processor writes the text.

        `features` are the tensors of an item; its pixels or sounds are under "feature". Raises KeyError for one that is missing.
        """
        return None

    def placeholder_id(self, modality: Modality) -> int | None:
        """The id that stands for a medium in a prompt, where it is not the one that stands at each embedding row."""
        return None if self.mm_tokens is None else self.mm_tokens.get_token_id_by_modality(modality)

    def sample_frames(self, num_frames: int, fps: float) -> list[int]:
        """Which frames of a video to use."""
        raise RequestError("the model being served takes no videos")

    def check_images(self, images: list[Any]) -> None:
        """Raises RequestError for images of which the image processor would make too large ones on its way.

        One that scales the shorter side to a size makes 22 GiB of a line of pixels.
        """
        if not images:
            return
        shortest, longest = _edges(self._processor.image_processor)
        if not shortest or longest:
            return
        for image in images:
            scale = shortest / min(image.size)
            self.check_way(image, int(image.width * scale), int(image.height * scale))

    def check_way(self, image: Any, width: int, height: int) -> None:
        """Raises RequestError when an image would become one of too many pixels."""
        most = self.source_policy.limits.max_pixels
        if width * height > most:
            raise RequestError(
                f"an image of {image.width} x {image.height} pixels is too long for this model, whose processor would make "
                f"{width} x {height} of it (at most {most} pixels are allowed); crop it"
            )

    def image_features(self, images: list[Any]) -> Features:
        """The image processor's tensors."""
        return self._call(self._processor.image_processor, "image", images=images)

    def video_features(self, videos: list[VideoFrames]) -> Features:
        raise RequestError("the model being served takes no videos")

    def audio_features(self, audios: list[Any]) -> Features:
        raise RequestError("the model being served takes no audio")

    # --- the way of a request

    def prepare(
        self,
        image_data: Any,
        audio_data: Any,
        input_text: str | Sequence[int],
        request_obj: Any,
        audio_sample_rate: int | None = None,
    ) -> dict[str, Any]:
        """All of `process_mm_data_async` for a family without positions of its own. Blocks."""
        assert self.mm_tokens is not None, "a family names its tokens in `mm_tokens`"
        output = self.load_mm_data(
            input_text,
            self.mm_tokens,
            image_data=image_data,
            video_data=request_obj.video_data if request_obj is not None else None,
            audio_data=audio_data,
            audio_sample_rate=audio_sample_rate,
        )
        items, input_ids, _ = self.process_and_combine_mm_data(output, self.mm_tokens)
        return {
            "input_ids": input_ids.tolist(),
            "mm_items": items,
            "im_token_id": self.mm_tokens.image_token_id,
            "video_token_id": self.mm_tokens.video_token_id,
            "audio_token_id": self.mm_tokens.audio_token_id,
        }

    def load_mm_data(
        self,
        prompt: str | Sequence[int],
        multimodal_tokens: MultimodalSpecialTokens,
        image_data: Sequence[Any] | None = None,
        video_data: Sequence[Any] | None = None,
        audio_data: Sequence[Any] | None = None,
        return_text: bool = True,
        discard_alpha_channel: bool = True,
        audio_sample_rate: int | None = None,
    ) -> BaseMultiModalProcessorOutput:
        """Load all media in parallel. Prepared media (dicts with a `format`) stay as they are. Blocks.

        Raises RequestError for a medium that cannot be loaded.
        """
        validate_mm_data(image_data, video_data, audio_data)
        options = LoadOptions(
            policy=self.source_policy,
            discard_alpha_channel=discard_alpha_channel,
            sampler=self.sample_frames,
            audio_sample_rate=audio_sample_rate or 16000,
            pool=self.decode_pool,
        )
        pending = {
            modality: self.submit_data_loading_tasks(modality, data, options)
            for modality, data in zip(
                Modality.all(), (image_data, video_data, audio_data), strict=True
            )
        }
        loaded = {k: [task.result() for task in tasks] for k, tasks in pending.items()}
        tokenizer = self._processor.tokenizer
        if isinstance(prompt, str):
            text, ids = prompt, tokenizer.encode(prompt)
        else:
            text, ids = tokenizer.decode(prompt) if return_text else "", list(prompt)
        return BaseMultiModalProcessorOutput(
            input_text=text,
            images=loaded[Modality.IMAGE],
            videos=loaded[Modality.VIDEO],
            audios=loaded[Modality.AUDIO],
            prompt_ids=ids,
        )

    fast_load_mm_data = load_mm_data
    legacy_load_mm_data = load_mm_data

    def submit_data_loading_tasks(
        self, modality: Modality, data: Sequence[Any] | None, options: LoadOptions
    ) -> list[Future[Any]]:
        """One task per medium, in order."""
        return [
            self.io_executor.submit(self._load_single_item, item, modality, options)
            for item in data or ()
        ]

    @staticmethod
    def _load_single_item(item: Any, modality: Modality, options: LoadOptions) -> Any:
        return item if is_prepared(item) else _LOADERS[modality](item, options)

    def process_and_combine_mm_data(
        self,
        base_output: BaseMultiModalProcessorOutput,
        mm_tokens: MultimodalSpecialTokens,
        **kwargs: Any,
    ) -> tuple[list[MultimodalDataItem], torch.Tensor, Any]:
        """(items with offsets, ids int64 [n] with placeholders expanded, features or None without raw media).

        Raises RequestError when placeholders and media do not agree in number.
        """
        media = base_output.organize_results()
        if not media:
            return [], torch.tensor(self._ids_of(base_output)), None
        items: list[MultimodalDataItem] = []
        raw: dict[Modality, list[Any]] = {}
        for modality, medium in media:
            if is_prepared(medium):
                features = prepared_features(medium, modality, self.ATTR_NAME_TO_MODALITY)
                items += self.collect_mm_items_from_processor_output(features, modality)
            else:
                raw.setdefault(modality, []).append(medium)
        self.check_images(raw.get(Modality.IMAGE, []))
        features = self._raw_features(raw, kwargs) if raw else {}
        if raw and self._writes_text(features):
            return self._combined_as_text(base_output, mm_tokens, raw, items, kwargs)
        items += self.collect_mm_items_from_processor_output(features) if raw else []
        ids = self._place(items, self._ids_of(base_output), mm_tokens)
        return items, torch.tensor(ids), features or None

    def process_mm_data(
        self,
        input_text: str,
        images: list[Any] | None = None,
        videos: list[Any] | None = None,
        audios: list[Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """The whole Hugging Face processor on a text and its media: a `BatchFeature`."""
        media = {"images": images, "videos": videos, "audio": audios}
        given = {key: value for key, value in media.items() if value}
        return self._call(
            self._processor, "media", text=[input_text], padding=True, **given, **kwargs
        )

    def collect_mm_items_from_processor_output(
        self, data_dict: Mapping[str, Any], modality: Modality | None = None
    ) -> list[MultimodalDataItem]:
        """One item per kind of media; keys that belong to no kind are dropped."""
        items: dict[Modality, MultimodalDataItem] = {}
        form = data_dict.get("format", MultimodalInputFormat.NORMAL)
        for name, value in data_dict.items():
            kind = self.ATTR_NAME_TO_MODALITY.get(name)
            if name == "precomputed_embeddings":
                kind = modality or Modality.from_str(str(data_dict.get("modality", "image")))
            if kind is None or value is None:
                continue
            item = items.setdefault(kind, MultimodalDataItem(modality=kind, format=form))
            item.set("feature" if name in self.FEATURE_NAMES else name, value)
        return list(items.values())

    @staticmethod
    def get_mm_items_offset(
        input_ids: torch.Tensor | Sequence[int], mm_token_id: int
    ) -> list[tuple[int, int]]:
        """Runs of a token, both ends inclusive."""
        return runs_of(_as_list(input_ids), mm_token_id)

    @staticmethod
    def get_mm_items_offset_by_pair(
        input_ids: torch.Tensor | Sequence[int], mm_start_id: int, mm_end_id: int
    ) -> list[tuple[int, int]]:
        """What lies between each start and end token, both ends inclusive."""
        ids = _as_list(input_ids)
        starts = [i + 1 for i, token in enumerate(ids) if token == mm_start_id]
        ends = [i - 1 for i, token in enumerate(ids) if token == mm_end_id]
        return list(zip(starts, ends, strict=False))

    validate_mm_data = staticmethod(validate_mm_data)

    @functools.cached_property
    def cpu_executor(self) -> Executor:
        """Processes for work that holds the interpreter's lock; started when somebody asks for them."""
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(envs.SGLANG_CPU_WORKERS.get(), mp_context=context)

    def close(self) -> None:
        self.io_executor.shutdown(wait=False, cancel_futures=True)
        if self.decode_pool is not None:
            self.decode_pool.close()

    # --- inside

    def _ids_of(self, output: BaseMultiModalProcessorOutput) -> list[int]:
        if output.prompt_ids is None:
            return list(self._processor.tokenizer.encode(output.input_text))
        return output.prompt_ids

    def _raw_features(
        self, raw: Mapping[Modality, list[Any]], kwargs: Mapping[str, Any]
    ) -> Features:
        """Tensors of all raw media, before anything is known about the prompt; empty when only a text says them."""
        if type(self).replacements is BaseMultimodalProcessor.replacements:
            return {}
        functions = {
            Modality.IMAGE: self.image_features,
            Modality.VIDEO: self.video_features,
            Modality.AUDIO: self.audio_features,
        }
        features: Features = {}
        for modality, media in raw.items():
            features |= dict(functions[modality](media))
        return features

    def _writes_text(self, features: Features) -> bool:
        return not features

    def _combined_as_text(
        self,
        output: BaseMultiModalProcessorOutput,
        mm_tokens: MultimodalSpecialTokens,
        raw: Mapping[Modality, list[Any]],
        items: list[MultimodalDataItem],
        kwargs: Mapping[str, Any],
    ) -> tuple[list[MultimodalDataItem], torch.Tensor, Any]:
        tokenizer = self._processor.tokenizer
        prompt = self._ids_of(output)
        text = tokenizer.decode(prompt)
        if list(tokenizer.encode(text, add_special_tokens=False)) != prompt:
            raise RequestError(
                "the prompt holds reserved special tokens of this model as text, which cannot be kept apart; remove them"
            )
        frames = [video.frames for video in raw.get(Modality.VIDEO, [])]
        result = self.process_mm_data(
            text,
            images=raw.get(Modality.IMAGE),
            videos=frames,
            audios=raw.get(Modality.AUDIO),
            add_special_tokens=False,
            **kwargs,
        )
        items += self.collect_mm_items_from_processor_output(result)
        ids = result["input_ids"].flatten()
        for item in items:
            token_id = mm_tokens.get_token_id_by_modality(item.modality)
            if token_id is not None:
                item.offsets = self.get_mm_items_offset(ids, token_id)
        return items, ids, result

    def _place(
        self, items: list[MultimodalDataItem], ids: list[int], mm_tokens: MultimodalSpecialTokens
    ) -> list[int]:
        """Expand the prompt for all items and set their offsets."""
        media = []
        for item in items:
            row_id = mm_tokens.get_token_id_by_modality(item.modality)
            token_id = self.placeholder_id(item.modality)
            if token_id is None or row_id is None:
                raise RequestError(
                    f"the model being served takes no {item.modality.name.lower()} input"
                )
            new = self._replacements_of(item, ids, row_id)
            if not new or not all(new):
                raise RequestError(
                    f"prepared {item.modality.name.lower()} data hold no media, or media without a row"
                )
            media.append(MediaPlaces(item.modality, token_id, row_id, new, self.joins_runs))
        prompt = expand_placeholders(ids, media)
        for item in items:
            item.offsets = prompt.offsets[item.modality]
        return prompt.input_ids

    def _replacements_of(
        self, item: MultimodalDataItem, ids: list[int], row_id: int
    ) -> list[list[int]]:
        features = dict(item.model_specific_data)
        if item.feature is not None:
            features["feature"] = item.feature
        try:
            new = self.replacements(item.modality, features)
        except KeyError:  # precomputed rows without the shapes of the media that they come from
            new = None
        rows = item.precomputed_embeddings
        if rows is None:
            if new is None:
                raise ConfigError(f"{type(self).__name__} does not say what stands for its media")
            return new
        num_rows = rows.reshape(-1, rows.shape[-1]).shape[0]
        if new is not None:
            places = sum(part.count(row_id) for part in new)
            if places != num_rows:
                raise RequestError(f"{num_rows} precomputed rows were given for {places} places")
            return new
        lengths = [last - first + 1 for first, last in runs_of(ids, row_id)]
        return [[row_id] * size for size in (lengths if sum(lengths) == num_rows else [num_rows])]

    def _options(self, kind: str) -> dict[str, Any]:
        """What `--mm-process-config` says about a kind of media."""
        return dict((self.server_args.mm_process_config or {}).get(kind) or {})

    def _call(self, function: Any, kind: str, **kwargs: Any) -> Any:
        """A Hugging Face processor's result as tensors. What it refuses is the request's fault."""
        if function is None:
            raise RequestError(f"the model being served takes no {kind} input")
        try:
            return function(**kwargs, **self._options(kind), return_tensors="pt")
        except (ValueError, IndexError, ZeroDivisionError) as error:
            sizes = [list(image.size) for image in kwargs.get("images") or []]
            detail = f" of sizes {sizes}" if sizes else ""
            raise RequestError(
                f"the model's processor cannot take this {kind} input{detail}"
            ) from error


def _edges(image_processor: Any) -> tuple[int | None, int | None]:
    """The sizes that an image processor scales the shorter and the longer side to, None where it has no such."""
    size = {} if image_processor is None else vars(image_processor).get("size")
    sides = dict(size) if size else {}
    return sides.get("shortest_edge"), sides.get("longest_edge")


def _as_list(ids: torch.Tensor | Sequence[int]) -> list[int]:
    return ids.flatten().tolist() if isinstance(ids, torch.Tensor) else list(ids)
