"""The demo: start the server on the demo model, ask it a few things through the official `openai` client, print answers and speeds.

When a person is watching (standard input is a terminal) the server stays up until Ctrl-C; otherwise it is stopped.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import math
import subprocess
import sys
import time
import urllib.error
import urllib.request

from sglang.srt.arg_groups.ports import find_free_port

START_TIMEOUT = 120.0
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
PICTURE_QUESTIONS = [
    "What do you see?",
    "What colour is the star?\nA) red\nB) blue\nC) green\nWhich option is right?",
]
QUESTIONS = [
    "Who are you?",
    "What is 27 + 46?",
    "What day comes 3 days after Tuesday?",
    "How many seconds are 4 minutes?",
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--port", type=int, default=0, help="port of the server; 0 picks a free one"
    )
    args = parser.parse_args()
    port = args.port or find_free_port()
    base_url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "sglang.launch_server", "--port", str(port)]
    print("$ python -m sglang.launch_server --port", port, flush=True)
    started = time.perf_counter()
    server = subprocess.Popen([*command, "--log-level", "warning"])
    try:
        _wait_ready(server, base_url)
        print(f"ready after {time.perf_counter() - started:.1f} s at {base_url}\n", flush=True)
        _talk(base_url)
        if sys.stdin.isatty():
            print(
                f"\nThe server stays up at {base_url} (OpenAI API under /v1). Stop it with Ctrl-C."
            )
            server.wait()
    except KeyboardInterrupt:
        print()
    finally:
        server.terminate()
        server.wait(timeout=20)
    return 0


def _talk(base_url: str) -> None:
    import openai

    client = openai.OpenAI(base_url=f"{base_url}/v1", api_key="none")
    for question in QUESTIONS:
        _ask(client, question)
    picture = _draw_picture()
    for question in PICTURE_QUESTIONS:
        _ask(client, question, picture)
    _ask_streamed(client, "Who are you?")
    _ask_json(client, "Mia is 31 years old. Answer as JSON with the keys name and age.")


def _draw_picture() -> str:
    """A data URL of a picture with a blue star in the top left and a red circle at the bottom."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (112, 112), (245, 245, 245))
    canvas = ImageDraw.Draw(image)
    canvas.polygon(_star(20, 20, 15), fill=(35, 75, 220))
    canvas.ellipse((42, 80, 70, 108), fill=(220, 30, 35))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _star(x: float, y: float, radius: float) -> list[tuple[float, float]]:
    corners = []
    for i in range(10):
        angle, reach = math.pi * (i / 5 - 0.5), radius if i % 2 == 0 else 0.42 * radius
        corners.append((x + reach * math.cos(angle), y + reach * math.sin(angle)))
    return corners


def _ask(client, question: str, picture: str = "") -> None:
    """Ask a question, on a picture if its URL is given."""
    content: object = question
    if picture:
        print("(a picture: a blue star in the top left, a red circle at the bottom)")
        image = {"type": "image_url", "image_url": {"url": picture}}
        content = [image, {"type": "text", "text": question}]
    started = time.perf_counter()
    answer = client.chat.completions.create(
        model="default", messages=[{"role": "user", "content": content}], temperature=0
    )
    seconds = time.perf_counter() - started
    tokens = answer.usage.completion_tokens
    print(f"Q: {question}\nA: {answer.choices[0].message.content}")
    print(f"   [{tokens} tokens in {seconds * 1000:.0f} ms]", flush=True)


def _ask_streamed(client, question: str) -> None:
    print(f"Q: {question}  (streamed)\nA: ", end="", flush=True)
    started = time.perf_counter()
    first, pieces = None, 0
    stream = client.chat.completions.create(
        model="default",
        messages=[{"role": "user", "content": question}],
        temperature=0,
        stream=True,
    )
    for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            first = first or time.perf_counter() - started
            pieces += 1
            print(chunk.choices[0].delta.content, end="|", flush=True)
    seconds = time.perf_counter() - started
    print(f"\n   [first piece after {(first or 0) * 1000:.0f} ms, {pieces / seconds:.0f} pieces/s]")


def _ask_json(client, question: str) -> None:
    answer = client.chat.completions.create(
        model="default",
        messages=[{"role": "user", "content": question}],
        temperature=0,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "person", "schema": PERSON, "strict": True},
        },
    )
    text = answer.choices[0].message.content
    print(
        f"Q: {question}  (constrained by a JSON schema)\nA: {text}\n   parsed: {json.loads(text)}"
    )


def _wait_ready(server: subprocess.Popen, base_url: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise SystemExit(f"the server ended with code {server.returncode} before it was ready")
        try:
            with urllib.request.urlopen(f"{base_url}/health", timeout=5) as reply:
                if reply.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise SystemExit(f"the server was not ready within {START_TIMEOUT:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
