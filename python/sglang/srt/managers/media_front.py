"""Prepares the media of requests off the event loop: fetched, decoded, turned into tensors, the prompt expanded, all packed.

Bounded in number, in time and in count per request. Whatever goes wrong is a refusal of that request alone.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import inspect
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sglang.srt.managers.input_expansion import PromptInput
from sglang.srt.managers.io_struct import GenerateReqInput
from sglang.srt.managers.media_input import PromptMedia
from sglang.srt.multimodal.media.budget import RequestBudget, budget_of_request, using_budget
from sglang.srt.multimodal.media.data import ImageData
from sglang.srt.multimodal.media.decode_pool import DecodePool
from sglang.srt.multimodal.media.sources import SourcePolicy, read_source
from sglang.srt.utils.errors import ConfigError, RequestError

if TYPE_CHECKING:
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.multimodal.processors.base_processor import BaseMultimodalProcessor
    from sglang.srt.server_args import ServerArgs

logger = logging.getLogger(__name__)

# Without --limit-mm-data-per-request; a prompt has no room for more anyway.
_MAX_ITEMS = 256
# Beyond the deadline of a request, after which its thread should be free: a decoder or a host that hangs is given up by then.
_STUCK_SECONDS = 60.0


@dataclasses.dataclass(frozen=True)
class PreparedPrompt:
    """Ids with placeholders expanded, and the processor's result for the scheduler."""

    # Hundreds of MiB for a large picture, which a printed task would write out.
    input_ids: list[int] = dataclasses.field(repr=False)
    mm_inputs: bytes = dataclasses.field(repr=False)


class MediaFront:
    """Runs one processor for many requests. Safe to use from one event loop at a time."""

    def __init__(
        self,
        processor: BaseMultimodalProcessor,
        server_args: Any,
        policy: SourcePolicy | None = None,
    ) -> None:
        self.processor = processor
        self._policy = policy or SourcePolicy.from_environment()
        self._limits: Mapping[str, int] = server_args.limit_mm_data_per_request or {}
        self._timeout: float = server_args.mm_per_request_timeout
        self._num_done = 0  # requests that left a thread
        self._threads = concurrent.futures.ThreadPoolExecutor(
            server_args.mm_max_concurrent_calls, thread_name_prefix="media"
        )

    @classmethod
    def build(
        cls, server_args: ServerArgs, config: ModelConfig, tokenizer: Any
    ) -> MediaFront | None:
        """For a model that takes media; None for others. Imports torch, transformers and model files.

        Raises ConfigError when the model has no processor or what it needs is not installed.
        """
        if not config.is_multimodal:
            return None
        from sglang.srt.managers.multimodal_processor import get_mm_processor, load_all_processors
        from sglang.srt.multimodal.hf_processor import load_processor

        load_all_processors()
        parts = load_processor(
            config.model_path,
            tokenizer,
            model_type=config.config_dict.get("model_type"),
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
        )
        try:
            processor = get_mm_processor(config.hf_config, server_args, parts)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        processor.decode_pool = DecodePool(server_args.mm_per_request_timeout)
        return cls(processor, server_args)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Kinds of media that the model takes: "image", "video", "audio"."""
        return tuple(modality.name.lower() for modality in self.processor.modalities)

    def check_without_media(self, input_ids: list[int]) -> None:
        """Raises RequestError for placeholders in a prompt that brings no media."""
        tokens = self.processor.mm_tokens
        if tokens is None:
            return
        modalities = self.processor.modalities
        ids = {tokens.get_token_id_by_modality(modality) for modality in modalities}
        ids |= {self.processor.placeholder_id(modality) for modality in modalities}
        found = sum(input_ids.count(token) for token in ids if token is not None)
        if found:
            raise RequestError(
                f"the prompt has {found} placeholders for media, and the request brings no media"
            )

    async def prepare(
        self, prompt: PromptInput, input_ids: list[int], max_len: int
    ) -> PreparedPrompt:
        """Media and ids of a prompt -> what the scheduler needs.

        Args:
            max_len: tokens that an expanded prompt may have.

        Raises RequestError for media that are too many, cannot be loaded, do not fit the prompt, or take too long (408); and when the media of
        others have every thread and none of them gets on (503).
        """
        media = prompt.media
        assert media is not None
        self._check_counts(media)
        loop = asyncio.get_running_loop()
        started: asyncio.Future[None] = loop.create_future()
        budget = RequestBudget()

        def work() -> PreparedPrompt:
            loop.call_soon_threadsafe(_set_done, started)
            try:
                with using_budget(budget):
                    return self._prepare_now(prompt, media, input_ids, max_len)
            finally:
                self._num_done += 1

        future = self._threads.submit(work)
        try:
            await self._wait_for_thread(started)
            return await asyncio.wait_for(asyncio.wrap_future(future), self._timeout)
        except asyncio.TimeoutError as error:
            raise RequestError(
                f"the media of the request were not ready within {self._timeout:g} seconds", 408
            ) from error
        finally:
            future.cancel()
            budget.end()  # a thread cannot be stopped; what it has not begun yet, it leaves

    async def _wait_for_thread(self, started: asyncio.Future[None]) -> None:
        """Waiting for a thread is not counted, unless every thread is stuck in a processor that never comes back."""
        while not started.done():
            num_done = self._num_done
            await asyncio.wait([started], timeout=self._timeout + _STUCK_SECONDS)
            if not started.done() and self._num_done == num_done:
                raise RequestError(
                    "the server is busy with media of other requests that do not get ready", 503
                )

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self.processor.close()

    def _check_counts(self, media: PromptMedia) -> None:
        for kind, count in media.counts().items():
            if not count:
                continue
            if kind not in self.modalities:
                allowed = ", ".join(self.modalities)
                raise RequestError(
                    f"the model being served takes no {kind} input; it takes: {allowed}"
                )
            limit = self._limits.get(kind, _MAX_ITEMS)
            if count > limit:
                raise RequestError(
                    f"the request has {count} {kind} items; this server allows {limit} per request"
                )

    def _prepare_now(
        self, prompt: PromptInput, media: PromptMedia, input_ids: list[int], max_len: int
    ) -> PreparedPrompt:
        """In a thread of the pool, which has no event loop of its own."""
        from sglang.srt.multimodal.transport import pack  # imports torch, as the processor has done

        try:
            policy = dataclasses.replace(self._policy, any_path=media.is_local)
            request = self._fetched(prompt, media, policy)
            work: Any = self.processor.process_mm_data_async(
                image_data=request.image_data,
                audio_data=request.audio_data,
                input_text=input_ids,
                request_obj=request,
                max_req_input_len=max_len,
            )
            result = asyncio.run(_awaited(work)) if inspect.isawaitable(work) else work
            if result is None:
                raise RequestError("the model's processor made nothing of the media")
            expanded = [int(token) for token in result["input_ids"]]
            _check_length(len(expanded), max_len)
            return PreparedPrompt(expanded, pack(result))
        except RequestError:
            raise
        except Exception as error:  # the boundary of a request: media and processors are foreign
            logger.warning("The media of request %s were refused", prompt.rid, exc_info=True)
            raise RequestError("the media of the request could not be prepared") from error

    def _fetched(
        self, prompt: PromptInput, media: PromptMedia, policy: SourcePolicy
    ) -> GenerateReqInput:
        """The request as the processor sees it: every source is bytes by now, in one place and under one policy."""
        pool = self.processor.io_executor
        budget = budget_of_request()
        read: dict[str, list[Any]] = {}
        for kind in ("image", "video", "audio"):
            items = getattr(media, f"{kind}_data")
            read[kind] = [pool.submit(_read, item, kind, policy, budget) for item in items]
        ready = {kind: [task.result() for task in tasks] or None for kind, tasks in read.items()}
        return GenerateReqInput(
            text=prompt.text,
            input_ids=prompt.input_ids,
            rid=prompt.rid,
            image_data=ready["image"],
            video_data=ready["video"],
            audio_data=ready["audio"],
        )


def _read(item: Any, kind: str, policy: SourcePolicy, budget: RequestBudget) -> Any:
    """Sources become bytes; what is loaded or prepared already stays."""
    if isinstance(item, ImageData):
        return dataclasses.replace(item, url=_read(item.url, kind, policy, budget))
    if isinstance(item, (list, tuple)) and kind == "video":
        policy.limits.check_frames(len(item))
        return [_read(frame, "image", policy, budget) for frame in item]
    if isinstance(item, (str, bytes, bytearray, Path)) or not _is_object(item):
        budget.take()
        content = read_source(item, kind, policy)
        budget.take(len(content))
        return content
    return item


def _is_object(item: Any) -> bool:
    """Whether an item is more than JSON has: an image, an array. A mapping is prepared data."""
    return not isinstance(item, (bool, int, float, list, tuple)) and item is not None


def _check_length(length: int, max_len: int) -> None:
    if length > max_len:
        raise RequestError(
            "Multimodal prompt is too long after expanding multimodal tokens. "
            f"It has {length} tokens; at most {max_len} fit. Send fewer or smaller media."
        )


async def _awaited(work: Any) -> Any:
    return await work


def _set_done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
