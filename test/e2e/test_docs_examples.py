"""Examples of the documentation run as they stand: blocks behind `<!-- run -->`, against the demo model."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import sglang

ROOT = Path(__file__).resolve().parents[2]
DEMO = str(Path(sglang.__file__).parent / "demo_model")
MARKED = re.compile(r"<!-- run( after the one before)? -->\n```(\w+)\n(.*?)```", re.S)
SUM = r"27 \+ 46 = 73\."
# A page and what its examples print, in their order.
PRINTED = {
    "README.md": [rf"^{SUM}\n$", r"^.*\n$"],
    "docs/get_started/install.md": [rf'"content":\s?"{SUM}"'],
    "docs/basic_usage/send_request.md": [
        r'"role":\s?"assistant"',  # curl
        r"^(?s:.+)$",  # the client, then a stream
        r"^(?s:.*)\n$",
        r"^(?s:.*)$",
    ],
    "docs/basic_usage/openai_api_completions.md": [r'^\{"name":\s?"'],
    "docs/basic_usage/native_api.md": [
        r'(?s)"model_path".*"internal_states".*"num_waiting_reqs".*# TYPE sglang:.*Cache flushed\..*"count":\s?\d.*"text":'
    ],
    "docs/basic_usage/offline_engine_api.md": [
        r"^(?:(?s:.*)\{'type': '(?:length|stop)'.*\}\n){2}$",
        r"^(?s:.*)\n(?:\d+\n)+$",
    ],
    "docs/advanced_features/structured_outputs.md": [
        r"\{'name': '.*', 'age': \d+\}\n\d{1,4}\n(yes|no)\n",  # the client
        r'"text":\s?"(19|20)\d\d-(0[1-9]|1[0-2])-[0-3]\d"',  # curl
        r"^(yes|no)\n$",  # offline
    ],
}


def examples(page: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for follows, language, code in MARKED.findall((ROOT / page).read_text("utf-8")):
        found.append((language, found.pop()[1] + code if follows else code))
    return found


def run(server, language: str, code: str, tmp_path: Path) -> str:
    for address in ("http://127.0.0.1:30000", "http://localhost:30000"):
        code = code.replace(address, server.base_url)
    for checkpoint in ("Qwen/Qwen3-0.6B", "path/to/checkpoint"):
        code = code.replace(checkpoint, DEMO)
    script = tmp_path / "example"
    script.write_text(code)  # a file: spawned processes import the main module again
    program = [sys.executable] if language == "python" else ["bash"]
    done = subprocess.run([*program, str(script)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_every_marked_page_is_listed():
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    marked = {str(p.relative_to(ROOT)) for p in pages if MARKED.search(p.read_text("utf-8"))}
    assert marked == set(PRINTED)
    assert {page: len(examples(page)) for page in PRINTED} == {
        page: len(printed) for page, printed in PRINTED.items()
    }


@pytest.mark.parametrize(
    ("page", "index"),
    [(page, index) for page, printed in PRINTED.items() for index in range(len(printed))],
)
def test_example(server, tmp_path, page, index):
    output = run(server, *examples(page)[index], tmp_path)
    assert re.search(PRINTED[page][index], output), output
