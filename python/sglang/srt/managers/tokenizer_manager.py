"""The front's half of a request's way: validate, tokenize, hand to the scheduler, turn its replies into response dicts.

It knows neither HTTP nor processes; `entrypoints/launch.py` builds it. Belongs to one event loop at a time, the one of the latest call.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import msgspec

import sglang
from sglang.srt.environ import envs
from sglang.srt.managers.detokenizer import Detokenizer
from sglang.srt.managers.input_expansion import ExpandedInput, PromptInput, expand_input
from sglang.srt.managers.io_struct import (
    AbortReq,
    BatchTokenOutput,
    EmbeddingReqInput,
    FlushCacheReply,
    GenerateReqInput,
    ProfileOptions,
    TokenizedGenerateReq,
    TokenOutput,
)
from sglang.srt.managers.request_state import (
    DisconnectWatch,
    PendingCall,
    RenderOptions,
    RequestState,
    ServiceError,
)
from sglang.srt.managers.request_validation import ModelLimits, RequestValidator
from sglang.srt.managers.scheduler_client import SchedulerClient
from sglang.srt.utils.errors import RequestError

if TYPE_CHECKING:
    from sglang.srt.managers.media_front import MediaFront
    from sglang.srt.observability.metrics import FrontMetrics
    from sglang.srt.observability.request_logger import RequestLogger

logger = logging.getLogger(__name__)

# Longer texts (in characters, over all prompts of a call) are tokenized in a thread, so that streams go on meanwhile.
MAX_INLINE_CHARS = 16384
_INT64 = 2**63

Item = dict[str, Any]


class TokenizerManager:
    """Serves generation requests of one scheduler.

    Args:
        server_args: the flags.
        client: connected to a scheduler that is ready.
        scheduler_info: what it said about itself (`SchedulerReady.info`).
        tokenizer: a Hugging Face tokenizer, or None: token ids in, token ids out.
        model_config: the model's config.json, for `model_info`.
        metrics, request_logger: told about every request; None when they are off.
        media: prepares images, videos and audio; None for a model that takes text only.
    """

    def __init__(
        self,
        server_args: Any,
        client: SchedulerClient,
        scheduler_info: Mapping[str, Any],
        tokenizer: Any = None,
        model_config: Mapping[str, Any] | None = None,
        metrics: FrontMetrics | None = None,
        request_logger: RequestLogger | None = None,
        media: MediaFront | None = None,
    ) -> None:
        self.server_args = server_args
        self.tokenizer = tokenizer
        self.scheduler_info = dict(scheduler_info)
        self.limits = ModelLimits.from_info(scheduler_info)
        self.preferred_sampling_params = parse_preferred(server_args.preferred_sampling_params)
        self.media = media
        self.model_info = _model_info(
            server_args,
            self.preferred_sampling_params,
            model_config or {},
            () if media is None else media.modalities,
        )
        self.metrics = metrics
        self.request_logger = request_logger
        self.detokenizer = Detokenizer(tokenizer) if tokenizer is not None else None
        self._validator = RequestValidator(self.limits, tokenizer, server_args.allow_auto_truncate)
        self._client = client
        self._client.on_output = self._on_output
        self._client.on_failure = self._on_failure
        self._active: dict[str, tuple[RequestState, PendingCall]] = {}
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="tokenize")

    # --- facts

    @property
    def context_len(self) -> int:
        return self.limits.context_len

    @property
    def last_receive_ts(self) -> float:
        """`time.monotonic` of the last message of the scheduler."""
        return self._client.last_receive_ts

    @property
    def num_in_flight(self) -> int:
        """Samples that have not ended."""
        return len(self._active)

    @property
    def is_alive(self) -> bool:
        """The scheduler still runs, as far as is known."""
        return self._client.is_alive

    # --- requests

    async def generate_request(
        self, obj: GenerateReqInput | EmbeddingReqInput, request: Any = None
    ) -> AsyncGenerator[Item | list[Item], None]:
        """Yield responses: single requests dicts; batches one list, or when streaming dicts with an `index`.

        Args:
            request: has `async is_disconnected() -> bool`; the request is aborted once that is true.

        Raises RequestError (400) for a request that is refused and ServiceError for one the server failed. Closing the generator
        aborts what has not ended.
        """
        if isinstance(obj, EmbeddingReqInput):
            raise RequestError(
                "this server generates text and gives no embeddings or scores; models that do, and --is-embedding, are not implemented"
            )
        self._bind_loop()
        expanded = expand_input(obj, self.preferred_sampling_params)
        prompts = await self._tokenize(expanded, obj.stream)
        call = self._open_call(obj, expanded, prompts)
        watch = None
        try:
            self._send(call, prompts, expanded.n)
            if self.request_logger is not None:
                self.request_logger.log_received(obj, [state.rid for state in call.states])
            if request is not None:
                interval = envs.SGLANG_REQUEST_STATE_WAIT_TIMEOUT.get()
                watch = DisconnectWatch(call, request.is_disconnected, interval)
            respond = self._stream if obj.stream else self._collect
            async with contextlib.aclosing(respond(obj, call, watch, expanded.is_batch)) as items:
                async for item in items:
                    yield item
        finally:
            if watch is not None:
                watch.close()
            self._close_call(call)

    def abort_request(self, rid: str = "", abort_all: bool = False) -> None:
        """End the requests whose id starts with `rid`, or all; they answer with what they have and `type: abort`."""
        if rid or abort_all:
            self._client.send(AbortReq(rid=rid, abort_all=abort_all))

    async def flush_cache(self) -> FlushCacheReply:
        """Empty the prefix cache; refused (`success` False) while requests run or wait."""
        self._bind_loop()
        return await self._client.flush_cache()

    async def start_profile(self, options: Mapping[str, Any]) -> str:
        """Record the operators of the next steps; `options` are the fields of `ProfileOptions`. Returns where the trace goes.

        Raises RequestError for options that are unknown or cannot be met, and while another recording runs.
        """
        try:
            checked = msgspec.convert(dict(options), ProfileOptions)
        except msgspec.ValidationError as error:
            raise RequestError(f"profile options: {error}") from error
        return await self._profile(checked)

    async def stop_profile(self) -> str:
        """Write the trace and return where it is. Raises RequestError when nothing is being recorded."""
        return await self._profile(None)

    async def _profile(self, options: ProfileOptions | None) -> str:
        self._bind_loop()
        reply = await self._client.profile(options)
        if not reply.success:
            raise RequestError(reply.message)
        return reply.message

    async def get_internal_state(self) -> dict[str, Any]:
        """Numbers of the scheduler as they are now."""
        self._bind_loop()
        return await self._client.get_internal_state()

    async def get_server_info(self) -> dict[str, Any]:
        """Flags and scheduler facts in one flat dict, with `internal_states` and `version`; flags that were left open as they were settled."""
        state = await self.get_internal_state()
        facts = dict(self.scheduler_info)
        return {
            **self.server_args.public_dict(),
            **facts.pop("settled_flags", {}),
            **facts,
            "internal_states": [state],
            "version": sglang.__version__,
        }

    async def render_metrics(self) -> bytes:
        """The Prometheus text. Raises ServiceError (404) when metrics are off."""
        if self.metrics is None:
            raise ServiceError("metrics are off; start the server with --enable-metrics", 404)
        if self.is_alive:
            self.metrics.update_scheduler(await self.get_internal_state())
        return self.metrics.render()

    def close(self) -> None:
        """Stop the scheduler and end every call."""
        self._client.close()
        self._threads.shutdown(wait=False)
        if self.media is not None:
            self.media.close()

    # --- the way down

    def _bind_loop(self) -> None:
        loop = asyncio.get_running_loop()
        for state, call in list(self._active.values()):
            if call.loop is loop:
                continue
            if call.loop.is_running():
                raise RuntimeError(
                    "the engine is in use by another running event loop; use it from one loop at a time"
                )
            # Its loop ended, or stands still between two items of a synchronous stream.
            call.fail(
                ServiceError("The request was given up: its engine moved to another event loop.")
            )
            self._forget(state)
        self._client.bind_loop(loop)

    async def _tokenize(self, expanded: ExpandedInput, stream: bool) -> list[TokenizedGenerateReq]:
        received_ts = time.monotonic()
        texts = [prompt.text for prompt in expanded.prompts if prompt.text is not None]
        encoded = iter(await self._encode(texts) if texts else ())
        ids = [_given_ids(prompt, encoded) for prompt in expanded.prompts]
        packed = await self._prepare_media(expanded.prompts, ids)
        build = self._validator.build
        return [
            build(prompt, ids[i], stream, received_ts, packed[i])
            for i, prompt in enumerate(expanded.prompts)
        ]

    async def _prepare_media(
        self, prompts: Sequence[PromptInput], ids: list[list[int]]
    ) -> list[bytes | None]:
        """The packed media of every prompt; `ids` are expanded in place."""
        packed: list[bytes | None] = [None] * len(prompts)
        waiting = []
        for i, prompt in enumerate(prompts):
            if prompt.media is not None:
                waiting.append(self._prepare_one(i, prompt, ids, packed))
            elif self.media is not None:
                self.media.check_without_media(ids[i])
        if waiting:
            await asyncio.gather(*waiting)
        return packed

    async def _prepare_one(
        self, i: int, prompt: PromptInput, ids: list[list[int]], packed: list[bytes | None]
    ) -> None:
        if self.media is None:
            raise RequestError("media were given, but the model being served takes text only")
        self._validator.check_ids(ids[i])
        prepared = await self.media.prepare(prompt, ids[i], self._validator.max_input_len)
        ids[i], packed[i] = prepared.input_ids, prepared.mm_inputs

    async def _encode(self, texts: list[str]) -> list[list[int]]:
        if self.tokenizer is None:
            raise RequestError(
                "the server runs without a tokenizer; give input_ids instead of text"
            )
        if any(not text for text in texts):
            raise RequestError("the prompt is empty; give at least one character")
        try:
            if sum(map(len, texts)) <= MAX_INLINE_CHARS:
                return self._encode_now(texts)
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, self._encode_now, texts)
        except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON lets through
            raise RequestError(f"the prompt is not valid Unicode: {error.reason}") from error

    def _encode_now(self, texts: list[str]) -> list[list[int]]:
        for text in texts:
            text.encode()
        if len(texts) == 1:
            return [self.tokenizer.encode(texts[0])]
        return self.tokenizer(texts)["input_ids"]

    def _open_call(
        self,
        obj: GenerateReqInput,
        expanded: ExpandedInput,
        prompts: Sequence[TokenizedGenerateReq],
    ) -> PendingCall:
        """States of all samples, registered under their request ids. Nothing is registered when one is in use."""
        options = RenderOptions(
            stream=obj.stream,
            incremental_ids=self.server_args.stream_output,
            text_in_logprobs=obj.return_text_in_logprobs,
            weight_version=self.server_args.weight_version,
            with_timings=self.server_args.enable_metrics,
        )
        states: dict[str, RequestState] = {}
        for prompt in prompts:
            for rid in _sample_rids(prompt.rid, expanded.n):
                if rid in states or rid in self._active:
                    raise RequestError(f"request id {ascii(rid)[:80]} is already in use")
                index = len(states) if expanded.is_batch else None
                states[rid] = RequestState(rid, prompt, index, options, self.detokenizer)
        call = PendingCall(list(states.values()), obj.stream, obj.log_metrics)
        self._active.update((rid, (state, call)) for rid, state in states.items())
        return call

    def _send(self, call: PendingCall, prompts: Sequence[TokenizedGenerateReq], n: int) -> None:
        for i, state in enumerate(call.states):
            prompt, sample = prompts[i // n], i % n
            self._client.send(prompt if n == 1 else _sample(prompt, state.rid, sample))

    def _close_call(self, call: PendingCall) -> None:
        """Abort what has not ended; its answers find nobody any more."""
        for rid in call.unfinished_rids:
            entry = self._active.get(rid)
            if entry is not None and entry[1] is call:
                self._forget(entry[0])

    def _forget(self, state: RequestState) -> None:
        del self._active[state.rid]
        if self._client.is_alive:
            logger.debug("Abort request %s: nobody waits for it", state.rid)
            self._client.send(AbortReq(rid=state.rid, exact=True))

    # --- the way up

    def _on_output(self, batch: BatchTokenOutput) -> None:
        for output in batch.outputs:
            entry = self._active.get(output.rid)
            if entry is None:  # its caller has left
                continue
            state, call = entry
            if self.metrics is not None and call.log_metrics:
                self._count(self.metrics, state, output, call.stream)
            state.apply(output)
            if state.is_finished:
                del self._active[output.rid]
            call.notify(state)

    @staticmethod
    def _count(
        metrics: FrontMetrics, state: RequestState, output: TokenOutput, stream: bool
    ) -> None:
        now, num_new = time.monotonic(), len(output.new_ids)
        metrics.count_tokens(num_new)
        if (
            stream and num_new
        ):  # without streaming all tokens come at once, which says nothing of their pace
            if state.output_ids:
                metrics.observe_inter_token((now - state.last_token_ts) / num_new)
            else:
                metrics.observe_first_token(now - state.created_ts)
        if output.finish_reason is not None:
            metrics.observe_finished(
                prompt_tokens=output.prompt_tokens,
                cached_tokens=output.cached_tokens,
                e2e_seconds=now - state.created_ts,
                queue_seconds=output.queue_time,
                is_abort=output.finish_reason.type == "abort",
            )

    def _on_failure(self, reason: str) -> None:
        """Called in the bound loop, whose calls are the only ones that somebody waits for."""
        active, self._active = self._active, {}
        for call in {id(call): call for _, call in active.values()}.values():
            call.fail(ServiceError(reason, 500))

    async def _collect(
        self,
        obj: GenerateReqInput,
        call: PendingCall,
        watch: DisconnectWatch | None,
        is_batch: bool,
    ) -> AsyncGenerator[Item | list[Item], None]:
        while call.num_unfinished:
            await call.wait()
            if watch is not None:
                await watch.check()
        for state in call.states:
            state.raise_if_refused()
        items = [self._finished_item(obj, state) for state in call.states]
        yield items if is_batch else items[0]

    async def _stream(
        self,
        obj: GenerateReqInput,
        call: PendingCall,
        watch: DisconnectWatch | None,
        is_batch: bool,
    ) -> AsyncGenerator[Item, None]:
        num_open = len(call.states)
        while num_open:
            await call.wait()
            if watch is not None:
                await watch.check()
            while (state := call.next_fresh()) is not None:
                if state.is_finished:
                    num_open -= 1
                    yield self._finished_item(obj, state)
                else:
                    yield state.render()

    def _finished_item(self, obj: GenerateReqInput, state: RequestState) -> Item:
        item = state.render()
        if self.request_logger is not None:
            self.request_logger.log_finished(obj, item)
        return item


def parse_preferred(value: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """`--preferred-sampling-params`: a JSON object, or already a mapping."""
    if value is None:
        return {}
    return dict(msgspec.json.decode(value) if isinstance(value, str) else value)


def _given_ids(prompt: PromptInput, encoded: Iterator[list[int]]) -> list[int]:
    return next(encoded) if prompt.input_ids is None else prompt.input_ids


def _sample_rids(rid: str, n: int) -> list[str]:
    return [rid] if n == 1 else [f"{rid}_{i}" for i in range(n)]


def _sample(prompt: TokenizedGenerateReq, rid: str, sample: int) -> TokenizedGenerateReq:
    """One of several samples of a prompt. With a seed each gets its own, or all would be the same."""
    params = prompt.sampling_params
    if params.sampling_seed is not None:
        seed = (params.sampling_seed + sample + _INT64) % (2 * _INT64) - _INT64
        params = msgspec.structs.replace(params, sampling_seed=seed)
    return msgspec.structs.replace(prompt, rid=rid, sampling_params=params)


def _model_info(
    server_args: Any,
    preferred: Mapping[str, Any],
    config: Mapping[str, Any],
    modalities: Sequence[str],
) -> dict[str, Any]:
    """The answer of `/model_info`."""
    return {
        "model_path": server_args.model_path,
        "tokenizer_path": server_args.tokenizer_path or server_args.model_path,
        "is_generation": True,
        "preferred_sampling_params": dict(preferred) or None,
        "weight_version": server_args.weight_version,
        "has_image_understanding": "image" in modalities,
        "has_audio_understanding": "audio" in modalities,
        "model_type": config.get("model_type"),
        "architectures": config.get("architectures"),
    }
