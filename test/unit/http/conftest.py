"""A server around a scripted engine: no scheduler, no model, a tokenizer built in memory."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
ANSWER = ["Hel", "lo", " wörld"]


def make_tokenizer(chat_template: Any = CHATML) -> PreTrainedTokenizerFast:
    """Every byte is a token; three special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True) for text in SPECIALS])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    tokenizer.chat_template = chat_template
    return tokenizer


class FakeManager:
    """Plays a script instead of a model. `requests` are what it was asked; `closed` counts abandoned generators."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.context_len = 2048
        self.model_info = {"model_path": "fake", "is_generation": True}
        self.metrics = None
        self.request_logger = None
        self.profile_calls: list[Any] = []
        self.is_alive = True
        self.num_in_flight = 0
        self.last_receive_ts = 0.0
        self.requests: list[Any] = []
        self.aborted: list[dict[str, Any]] = []
        self.closed = threading.Event()
        self.pieces = list(ANSWER)
        self.finish = {"type": "stop", "matched": 7}
        self.cached_tokens = 3
        self.error: Exception | None = None
        self.error_after: int | None = None  # items before `error`
        self.hang_after: int | None = None  # items before it waits for ever
        self.flush_reply = SimpleNamespace(success=True, message="")

    async def generate_request(self, obj: Any, request: Any = None) -> AsyncIterator[Any]:
        self.requests.append(obj)
        try:
            if self.error is not None and self.error_after is None:
                raise self.error
            prompts = self._prompts(obj)
            n = (obj.sampling_params or {}).get("n", 1)
            samples = [(i, prompt) for i, prompt in enumerate(p for p in prompts for _ in range(n))]
            is_batch = len(samples) > 1 or self._is_list(obj)
            if not obj.stream:
                if self.hang_after is not None:
                    await asyncio.Event().wait()
                items = [self.item(obj, i, prompt, len(self.pieces)) for i, prompt in samples]
                yield items if is_batch else items[0]
                return
            for step in range(1, len(self.pieces) + 1):
                for i, prompt in samples:
                    if self.error_after is not None and step > self.error_after:
                        raise self.error
                    if self.hang_after is not None and step > self.hang_after:
                        await asyncio.Event().wait()
                    item = self.item(obj, i, prompt, step)
                    yield {**item, "index": i} if is_batch else item
                    await asyncio.sleep(0)
        except (asyncio.CancelledError, GeneratorExit):
            self.closed.set()
            raise

    def item(self, obj: Any, index: int, prompt: Any, step: int) -> dict[str, Any]:
        """What the engine says after `step` tokens; the last step ends it."""
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        is_last = step == len(self.pieces)
        rid = obj.rid if isinstance(obj.rid, str) else obj.rid[0]
        meta = {
            "id": rid if index == 0 else f"{rid}_{index}",
            "finish_reason": self.finish if is_last else None,
            "prompt_tokens": len(ids),
            "completion_tokens": step,
            "cached_tokens": self.cached_tokens,
            "weight_version": "v1",
        }
        if obj.return_logprob:
            out = [(-0.5 * (i + 1), i, piece) for i, piece in enumerate(self.pieces[:step])]
            meta["output_token_logprobs"] = out
            if obj.top_logprobs_num:
                meta["output_top_logprobs"] = [[t, (-9.0, 99, "other")] for t in out]
            if obj.logprob_start_len == 0:
                texts = [self.tokenizer.decode([i]) for i in ids]
                inputs = [(None if i == 0 else -1.0, ids[i], text) for i, text in enumerate(texts)]
                meta["input_token_logprobs"] = inputs
                if obj.top_logprobs_num:
                    meta["input_top_logprobs"] = [None, *[[t] for t in inputs[1:]]]
        return {
            "text": "".join(self.pieces[:step]),
            "output_ids": list(range(step)),
            "meta_info": meta,
        }

    def abort_request(self, rid: str = "", abort_all: bool = False) -> None:
        self.aborted.append({"rid": rid, "abort_all": abort_all})

    async def flush_cache(self) -> Any:
        return self.flush_reply

    async def start_profile(self, options: Any) -> str:
        if self.error is not None:
            raise self.error
        self.profile_calls.append(options)
        return "Recording to x"

    async def stop_profile(self) -> str:
        self.profile_calls.append("stop")
        return "Recorded 1 steps to x"

    async def get_internal_state(self) -> dict[str, Any]:
        return {"num_running_reqs": 2, "num_queue_reqs": 1, "num_used_tokens": 40}

    async def get_server_info(self) -> dict[str, Any]:
        return {"model_path": "fake", "internal_states": [await self.get_internal_state()]}

    @staticmethod
    def _is_list(obj: Any) -> bool:
        if obj.text is not None:
            return isinstance(obj.text, list)
        return bool(obj.input_ids) and isinstance(obj.input_ids[0], list)

    def _prompts(self, obj: Any) -> list[Any]:
        value = obj.text if obj.text is not None else obj.input_ids
        return value if self._is_list(obj) else [value]


def make_args(**changes: Any) -> SimpleNamespace:
    values = {
        "model_path": "/nowhere/fake-model",
        "served_model_name": "fake",
        "revision": None,
        "host": "127.0.0.1",
        "port": 0,
        "api_key": None,
        "admin_api_key": None,
        "chat_template": None,
        "hf_chat_template_name": None,
        "sampling_defaults": "openai",
        "enable_cache_report": False,
        "weight_version": "default",
        "fastapi_root_path": "",
        "skip_server_warmup": False,
        "node_rank": 0,
        "log_level": "warning",
        "log_level_http": None,
        "log_requests_level": 2,
        "log_requests_format": "text",
        "log_requests_target": None,
    }
    return SimpleNamespace(**{**values, **changes})


class Server:
    """An application and a client that calls it in memory."""

    def __init__(self, chat_template: Any = CHATML, ready: bool = True, **args: Any) -> None:
        from sglang.srt.entrypoints.http.app import create_app
        from sglang.srt.entrypoints.http.state import ServerState, ServerStatus

        self.manager = FakeManager(make_tokenizer(chat_template))
        self.state = ServerState.build(self.manager, make_args(**args))
        if ready:
            self.state.status = ServerStatus.READY
        self.app = create_app(self.state)

    def request(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        async def call() -> httpx.Response:
            # Errors of the application come back as responses, as over a socket.
            transport = httpx.ASGITransport(
                self.app,
                raise_app_exceptions=False,
                root_path=self.state.server_args.fastapi_root_path,
            )
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, **kwargs)

        return asyncio.run(call())

    def get(self, path: str, **kwargs: Any) -> httpx.Response:
        return self.request("GET", path, **kwargs)

    def post(self, path: str, body: Any = None, **kwargs: Any) -> httpx.Response:
        if body is not None:
            # Escapes, so that a test can send what is no valid Unicode.
            kwargs["content"] = json.dumps(body)
            kwargs["headers"] = {"content-type": "application/json", **kwargs.get("headers", {})}
        return self.request("POST", path, **kwargs)

    def chat(self, content: Any = "hi", **fields: Any) -> httpx.Response:
        messages = fields.pop("messages", [{"role": "user", "content": content}])
        return self.post("/v1/chat/completions", {"messages": messages, **fields})

    @property
    def last(self) -> Any:
        """The last engine request."""
        return self.manager.requests[-1]

    @contextlib.contextmanager
    def listening(self) -> Iterator[str]:
        """Serve on a loopback port from a thread; yields the base URL."""
        import uvicorn

        config = uvicorn.Config(self.app, port=0, log_level="error", lifespan="off", ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            port = server.servers[0].sockets[0].getsockname()[1]
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join(10)


def parse_events(text: str) -> list[Any]:
    """JSON values of a stream that ends with the end mark."""
    events = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    return [json.loads(event) for event in events[:-1]]


@pytest.fixture
def make_server() -> Callable[..., Server]:
    return Server


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def events() -> Callable[[str], list[Any]]:
    return parse_events


@pytest.fixture
def tokenizer_of() -> Callable[..., Any]:
    return make_tokenizer


@pytest.fixture
def args_of() -> Callable[..., Any]:
    return make_args


@pytest.fixture
def fake_manager() -> FakeManager:
    return FakeManager(make_tokenizer())
