"""`sglang.Engine`: the engine as a Python object, without HTTP.

Synchronous methods run on a loop of the engine's own; `async_*` methods run in whatever loop awaits them.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from types import TracebackType
from typing import Any, TypeVar

from sglang.srt.entrypoints.launch import launch_front
from sglang.srt.entrypoints.scheduler_processes import SchedulerTarget
from sglang.srt.environ import warn_of_variables
from sglang.srt.managers.io_struct import EmbeddingReqInput, FlushCacheReply, GenerateReqInput
from sglang.srt.managers.request_state import ServiceError
from sglang.srt.server_args import ServerArgs

T = TypeVar("T")
Item = dict[str, Any]


class Engine:
    """An engine with its own scheduler processes; keywords are the fields of `ServerArgs`.

    Blocks until the model is loaded. Raises ConfigError for wrong arguments and RuntimeError with the reason when the model cannot be
    loaded. Because workers are spawned, a script must create it under `if __name__ == "__main__":`.

    Args:
        server_args: ready arguments; keywords are then ignored.
        kwargs: fields of `ServerArgs`; `log_level` defaults to "error".
    """

    server_args_class: type[ServerArgs] = ServerArgs
    # Replace these in a subclass to run another manager class or scheduler process; functions must be module-level.
    init_tokenizer_manager_func: Callable[..., Any] | None = None
    run_scheduler_process_func: SchedulerTarget | None = None

    def __init__(self, *, server_args: ServerArgs | None = None, **kwargs: Any) -> None:
        if server_args is None:
            kwargs.setdefault("log_level", "error")
            server_args = self.server_args_class(**kwargs)
        self.server_args = server_args
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_shut_down = False
        warn_of_variables()
        hooks = type(self)
        self._front = launch_front(
            server_args,
            scheduler_target=hooks.run_scheduler_process_func,
            manager_class=hooks.init_tokenizer_manager_func,
        )
        self.tokenizer_manager = self._front.tokenizer_manager
        self.scheduler_info = self._front.scheduler_info
        self._adopt_loop()

    # --- generation

    def generate(
        self,
        prompt: str | list[str] | None = None,
        sampling_params: dict[str, Any] | list[dict[str, Any]] | None = None,
        input_ids: list[int] | list[list[int]] | None = None,
        image_data: Any = None,
        audio_data: Any = None,
        video_data: Any = None,
        return_logprob: bool | list[bool] | None = False,
        logprob_start_len: int | list[int] | None = None,
        top_logprobs_num: int | list[int] | None = None,
        token_ids_logprob: list[int] | list[list[int] | None] | None = None,
        lora_path: Any = None,
        custom_logit_processor: Any = None,
        return_hidden_states: bool | list[bool] = False,
        return_routed_experts: bool = False,
        stream: bool = False,
        bootstrap_host: Any = None,
        bootstrap_port: Any = None,
        bootstrap_room: Any = None,
        data_parallel_rank: int | None = None,
        external_trace_header: Any = None,
        rid: str | list[str] | None = None,
        session_params: Any = None,
        priority: int | None = None,
        *,
        return_text_in_logprobs: bool = False,
    ) -> Item | list[Item] | Iterator[Item]:
        """Generate text for one prompt (a dict) or several (a list); with `stream`, an iterator of dicts with cumulative text.

        Raises ValueError for a request that is refused, ServiceError for one the engine failed, RuntimeError inside a running loop.
        """
        arguments = locals()
        self._check_usable()
        items = self._request(arguments)
        return self._iterate(items) if stream else self._run(_only(items))

    async def async_generate(
        self,
        prompt: str | list[str] | None = None,
        sampling_params: dict[str, Any] | list[dict[str, Any]] | None = None,
        input_ids: list[int] | list[list[int]] | None = None,
        image_data: Any = None,
        audio_data: Any = None,
        video_data: Any = None,
        return_logprob: bool | list[bool] | None = False,
        logprob_start_len: int | list[int] | None = None,
        top_logprobs_num: int | list[int] | None = None,
        token_ids_logprob: list[int] | list[list[int] | None] | None = None,
        lora_path: Any = None,
        custom_logit_processor: Any = None,
        return_hidden_states: bool | list[bool] = False,
        return_routed_experts: bool = False,
        stream: bool = False,
        bootstrap_host: Any = None,
        bootstrap_port: Any = None,
        bootstrap_room: Any = None,
        data_parallel_rank: int | None = None,
        external_trace_header: Any = None,
        rid: str | list[str] | None = None,
        session_params: Any = None,
        priority: int | None = None,
        *,
        return_text_in_logprobs: bool = False,
    ) -> Item | list[Item] | AsyncGenerator[Item, None]:
        """Like `generate`, for use inside a running loop; with `stream`, awaiting it gives an async iterator."""
        items = self._request(locals())
        return items if stream else await _only(items)

    def encode(
        self,
        prompt: Any = None,
        image_data: Any = None,
        audio_data: Any = None,
        video_data: Any = None,
        dimensions: int | None = None,
        lora_path: Any = None,
        external_trace_header: Any = None,
        rid: str | list[str] | None = None,
    ) -> Item | list[Item]:
        """Embed one prompt or several. Raises ValueError when the model generates text."""
        self._check_usable()
        return self._run(
            self.async_encode(
                prompt, image_data, audio_data, video_data, dimensions, lora_path, external_trace_header, rid
            )
        )  # fmt: skip

    async def async_encode(
        self,
        prompt: Any = None,
        image_data: Any = None,
        audio_data: Any = None,
        video_data: Any = None,
        dimensions: int | None = None,
        lora_path: Any = None,
        external_trace_header: Any = None,
        rid: str | list[str] | None = None,
    ) -> Item | list[Item]:
        """Like `encode`, for use inside a running loop."""
        obj = EmbeddingReqInput(
            text=prompt,
            image_data=image_data,
            audio_data=audio_data,
            video_data=video_data,
            dimensions=dimensions,
            lora_path=lora_path,
            rid=rid,
        )
        return await _only(self.tokenizer_manager.generate_request(obj))

    # --- management

    def flush_cache(self) -> FlushCacheReply:
        """Empty the prefix cache; `success` is False while requests run or wait."""
        self._check_usable()
        return self._run(self.tokenizer_manager.flush_cache())

    def get_server_info(self) -> dict[str, Any]:
        """Flags and scheduler facts in one flat dict, with `internal_states` and `version`."""
        self._check_usable()
        return self._run(self.tokenizer_manager.get_server_info())

    def start_profile(self, **options: Any) -> str:
        """Record the operators of the next steps; takes what `/start_profile` takes. Returns where the trace goes.

        Raises ValueError for options that cannot be met and while another recording runs.
        """
        self._check_usable()
        return self._run(self.tokenizer_manager.start_profile(options))

    def stop_profile(self) -> str:
        """Write the trace and return where it is. Raises ValueError when nothing is being recorded."""
        self._check_usable()
        return self._run(self.tokenizer_manager.stop_profile())

    def shutdown(self) -> None:
        """End the processes; safe to call twice. Another engine may be created afterwards."""
        self._is_shut_down = True
        self._front.close()
        if self._loop is not None and not self._loop.is_running() and not self._loop.is_closed():
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.shutdown()

    # --- loops

    def _adopt_loop(self) -> None:
        """Outside any loop, make one and set it, so that `asyncio.get_event_loop()` finds the engine's."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            self._loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self._loop)

    def _check_usable(self) -> None:
        """Called before any coroutine is made, so that none is left unawaited."""
        if self._is_shut_down:
            raise ServiceError("The engine has been shut down.")
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return
        raise RuntimeError(
            "a synchronous method of Engine was called inside a running event loop; await the async_ method instead"
        )

    def _run(self, work: Awaitable[T]) -> T:
        if self._loop is None or self._loop.is_closed():
            self._loop = asyncio.new_event_loop()  # made inside a running loop, which is not ours
        return self._loop.run_until_complete(work)

    def _iterate(self, items: AsyncGenerator[Item, None]) -> Iterator[Item]:
        try:
            while (item := self._run(_next(items))) is not None:
                yield item
        finally:
            if not self._is_shut_down:
                self._run(items.aclose())

    # --- arguments

    def _request(self, arguments: dict[str, Any]) -> AsyncGenerator[Any, None]:
        _refuse_unsupported(arguments)
        values = {field.name: arguments[field.name] for field in _REQUEST_FIELDS}
        return self.tokenizer_manager.generate_request(
            GenerateReqInput(text=arguments["prompt"], media_is_local=True, **values)
        )


_UNSUPPORTED = (
    "lora_path",
    "custom_logit_processor",
    "return_hidden_states",
    "return_routed_experts",
    "bootstrap_host",
    "bootstrap_port",
    "bootstrap_room",
    "session_params",
)
_NOT_ARGUMENTS = ("text", "input_embeds", "extra_key", "log_metrics", "media_is_local")
_REQUEST_FIELDS = [f for f in dataclasses.fields(GenerateReqInput) if f.name not in _NOT_ARGUMENTS]


def _refuse_unsupported(arguments: dict[str, Any]) -> None:
    for name in _UNSUPPORTED:
        value = arguments[name]
        values = value if isinstance(value, list) else [value]
        if any(item is not None and item is not False for item in values):
            raise ValueError(f"{name} is not supported yet; leave it out")
    rank = arguments["data_parallel_rank"]
    if rank not in (None, 0):
        raise ValueError(f"data_parallel_rank={rank!r} is out of range; the only rank is 0")


async def _only(items: AsyncGenerator[T, None]) -> T:
    """The one item of a generator; the caller's cancellation closes it."""
    try:
        return await anext(items)
    finally:
        await items.aclose()


async def _next(items: AsyncGenerator[T, None]) -> T | None:
    """The next item, None at the end."""
    async for item in items:
        return item
    return None
