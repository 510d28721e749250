"""Media that clients get wrong, against a running server: a 4xx with a sentence each, and a good request beside them answered as before."""

from __future__ import annotations

import base64
import http.server
import io
import json
import struct
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

pytest.importorskip("PIL", reason="the front prepares images with Pillow")

from PIL import Image
from server import Server, running

from sglang.test.media_files import draw, encode_image, image_url, tone
from sglang.test.tiny_vlm import write_vlm_twin

PNG = encode_image(draw("circle", "red"))
PLACE = "<|vision_start|><|image_pad|><|vision_end|>"


def url(content: bytes, mime: str = "image/png") -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def declared(width: int, height: int, text: bytes = b"") -> bytes:
    """A PNG that says so, with hardly any pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + body))
        return struct.pack(">I", len(body)) + name + body + check

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    comment = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(text)) if text else b""
    body = chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + head + comment + body + chunk(b"IEND", b"")


def saved(kind: str, image: Any = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image or draw("square", "blue")).save(buffer, kind, **options)
    return buffer.getvalue()


class _Host(http.server.BaseHTTPRequestHandler):
    """One path redirects to an address that is not allowed, the other one never answers."""

    def do_GET(self) -> None:
        if self.path == "/slow":
            self.server.release.wait(30)
            return
        self.send_response(302)
        self.send_header("Location", f"http://localhost:{self.server.server_port}/picture.png")
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Host)
    server.daemon_threads, server.block_on_close = True, False
    server.release = threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.release.set()
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("bad-media")
    args = ["--model-path", write_vlm_twin(folder / "model"), "--device", "cpu"]
    env = {"SGLANG_MEDIA_ALLOW_PRIVATE_HOSTS": "127.0.0.1", "REQUEST_TIMEOUT": "1"}
    with running([*args, "--max-total-tokens", "2048"], folder / "log", env) as handle:
        yield handle


def chat(parts: list[dict[str, Any]], text: str = "what?") -> tuple[str, dict[str, Any]]:
    content = [*parts, {"type": "text", "text": text}]
    body = {"model": "default", "messages": [{"role": "user", "content": content}]}
    return "/v1/chat/completions", {**body, "max_tokens": 4, "temperature": 0}


def images(*urls: str) -> tuple[str, dict[str, Any]]:
    return chat([{"type": "image_url", "image_url": {"url": each}} for each in urls])


def native(text: str, **media: Any) -> tuple[str, dict[str, Any]]:
    return "/generate", {"text": text, "sampling_params": {"max_new_tokens": 4}, **media}


def part(kind: str, content: bytes, mime: str) -> tuple[str, dict[str, Any]]:
    return chat([{"type": kind, kind: {"url": url(content, mime)}}])


GOOD = images(image_url(draw("triangle", "green")))
REFUSED = {
    "not an image": (images(url(b"hello")), "known format"),
    "truncated": (images(url(PNG[: len(PNG) // 2])), "cut off or broken"),
    "50,000 x 50,000 declared": (images(url(declared(50_000, 50_000))), "pixels"),
    "zip bomb": (images(url(declared(9, 9, bytes(64 << 20)))), "known format"),
    "wrong MIME": (images(url(PNG, "text/html")), "which is no image"),
    "page as a picture": (images(url(b"<html></html>", "image/png")), "known format"),
    "500 images": (images(*[url(PNG)] * 500), "500 image items; this server allows"),
    "one image too many for a long prompt": (images(*[url(PNG)] * 200), "too long"),
    "fewer placeholders": (native(PLACE, image_data=[url(PNG)] * 2), "1 placeholders for 2"),
    "more placeholders": (native(PLACE * 2, image_data=url(PNG)), "2 placeholders for 1"),
    "placeholder without image": (native(PLACE), "brings no media"),
    "private URL": (images("http://10.0.0.1/a.png"), "not public"),
    "private URL by name": (images("http://localhost/a.png"), "not public"),
    "file": (images("file:///etc/passwd"), "reads no files"),
    "video without frames": (part("video_url", tone(440), "video/mp4"), "video"),
    "sound of no length": (part("audio_url", b"", "audio/wav"), "audio"),
    "sound for a model that hears nothing": (part("audio_url", tone(440), "audio/wav"), "audio"),
}
TAKEN = {
    "1x1": images(url(saved("PNG", Image.new("RGB", (1, 1))))),
    "animated": images(
        url(saved("GIF", save_all=True, append_images=[draw("circle", "red")]), "image/gif")
    ),
    "CMYK": images(url(saved("JPEG", draw("circle", "red").convert("CMYK")), "image/jpeg")),
    "16 bit": images(url(saved("PNG", Image.new("I;16", (40, 40), 40_000)))),
    "EXIF": images(url(saved("JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"), "image/jpeg")),
    "typed placeholder": chat([], f"is {PLACE} <|image_pad|> a picture?"),
}  # fmt: skip


def ask(server: Server, request: tuple[str, dict[str, Any]]) -> tuple[int, str]:
    return server.request(request[0], request[1])


def answer(server: Server) -> str:
    status, text = ask(server, GOOD)
    assert status == 200, text
    return json.loads(text)["choices"][0]["message"]["content"]


def test_each_is_refused_with_a_sentence_and_harms_nobody(seeing: Server, host: str) -> None:
    before = answer(seeing)
    bad = {
        **REFUSED,
        "redirected URL": (images(f"{host}/redirect"), "not public"),
        "slow host": (images(f"{host}/slow"), "did not deliver"),
    }
    with ThreadPoolExecutor(6) as pool:
        asked = {name: pool.submit(ask, seeing, request) for name, (request, _) in bad.items()}
        beside = [pool.submit(answer, seeing) for _ in range(3)]
        found = {name: task.result() for name, task in asked.items()}
        assert [task.result() for task in beside] == [before] * 3
    for name, (_, phrase) in bad.items():
        status, text = found[name]
        assert 400 <= status < 500 and phrase in text, (name, status, text[:500])
        assert "Traceback" not in text and "0x" not in text, (name, text[:500])
    assert answer(seeing) == before


@pytest.mark.parametrize("name", TAKEN)
def test_odd_but_whole_pictures_are_answered(seeing: Server, name: str) -> None:
    status, text = ask(seeing, TAKEN[name])
    assert status == 200, text


def test_typed_placeholders_are_text(seeing: Server) -> None:
    """They take the places of their letters, not those of a picture."""
    counts = {}
    for word in (PLACE, "[vision_start]"):
        status, text = ask(seeing, chat([], word * 3))
        assert status == 200, text
        counts[word] = json.loads(text)["usage"]["prompt_tokens"]
    assert counts[PLACE] > counts["[vision_start]"]
