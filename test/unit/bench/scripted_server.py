"""An HTTP server that answers like the real one, at once, and remembers what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Json = dict[str, Any]


class ScriptedServer:
    """Replies with "w7" as often as tokens are asked for."""

    def __init__(self, tokenizer_path: str) -> None:
        self.asked: list[tuple[str, Json]] = []  # path, body
        self.headers: list[dict[str, str]] = []
        self.fail: Callable[[int], bool] = lambda number: False  # number of the generation
        self.flush_refusals = 0
        self.num_connections = 0
        self.num_flushed = 0
        self._generations = 0
        self._running = self.peak_running = 0
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler(tokenizer_path))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> ScriptedServer:
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    @property
    def bodies(self) -> list[Json]:
        return [body for _, body in self.asked]

    def begin(self, path: str, body: Json, headers: Any) -> bool:
        """Note a generation; False when it shall fail."""
        with self._lock:
            self.asked.append((path, body))
            self.headers.append({name.lower(): value for name, value in headers.items()})
            self._generations += 1
            self._running += 1
            self.peak_running = max(self.peak_running, self._running)
            return not self.fail(self._generations - 1)

    def end(self) -> None:
        with self._lock:
            self._running -= 1

    def _handler(self, tokenizer_path: str) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                server.num_connections += 1

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                answers = {
                    "/v1/models": {"data": [{"id": "tiny"}]},
                    "/get_model_info": {"tokenizer_path": tokenizer_path},
                    "/get_server_info": {"internal_states": [{"avg_spec_accept_length": 2.5}]},
                }
                self.answer(200 if self.path in answers else 404, answers.get(self.path, {}))

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path == "/flush_cache":
                    self.flush()
                    return
                body = json.loads(raw)
                try:
                    if not server.begin(self.path, body, self.headers):
                        self.answer(500, {"error": {"message": "out of luck"}})
                    elif body["stream"]:
                        self.stream(EVENTS[self.path](body))
                    else:
                        *_, last = EVENTS[self.path](body)
                        self.answer(200, last)
                finally:
                    server.end()

            def flush(self) -> None:
                server.flush_refusals -= 1
                server.num_flushed += server.flush_refusals < 0
                self.answer(400 if server.flush_refusals >= 0 else 200, {})

            def answer(self, status: int, value: Any) -> None:
                data = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def stream(self, events: Iterator[Json]) -> None:
                self.send_response(200)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for event in events:
                    self.chunk(b"data: " + json.dumps(event).encode() + b"\n\n")
                self.chunk(b"data: [DONE]\n\n")
                self.chunk(b"")

            def chunk(self, data: bytes) -> None:
                self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

        return Handler


def _native(body: Json) -> Iterator[Json]:
    total = body["sampling_params"]["max_new_tokens"]
    for count in [*range(1, total, 2), total]:
        reason = {"type": "length", "length": total} if count == total else None
        info = {"completion_tokens": count, "finish_reason": reason}
        yield {"text": "w7 " * count, "meta_info": info}


def _completions(body: Json) -> Iterator[Json]:
    total = body["max_tokens"]
    if not body["stream"]:
        yield {"choices": [{"text": "w7 " * total}], "usage": {"completion_tokens": total}}
        return
    for _ in range(total):
        yield {"choices": [{"text": "w7 "}]}
    yield {"choices": [], "usage": {"completion_tokens": total}}


def _chat(body: Json) -> Iterator[Json]:
    total = body["max_completion_tokens"]
    usage = {"completion_tokens": 0}
    yield {"choices": [{"delta": {"role": "assistant", "content": ""}}], "usage": usage}
    for count in range(1, total + 1):
        key = "reasoning_content" if count == 1 else "content"
        usage = {"completion_tokens": count}
        yield {"choices": [{"delta": {key: "w7 "}}], "usage": usage}
    yield {"choices": [], "usage": {"completion_tokens": total}}


EVENTS: dict[str, Callable[[Json], Iterator[Json]]] = {
    "/generate": _native,
    "/v1/completions": _completions,
    "/v1/chat/completions": _chat,
}
