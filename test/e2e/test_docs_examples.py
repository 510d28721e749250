"""Examples of the documentation run as they stand: blocks behind `<!-- run -->`, against the demo model."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "advanced_features" / "structured_outputs.md"


def blocks(page: Path) -> list[tuple[str, str]]:
    found = re.findall(r"<!-- run -->\n```(\w+)\n(.*?)```", page.read_text("utf-8"), re.S)
    assert found
    return found


def run(server, language: str, code: str, tmp_path: Path) -> str:
    code = code.replace("http://127.0.0.1:30000", server.base_url)
    script = tmp_path / "example"
    script.write_text(code)  # a file: spawned processes import the main module again
    program = [sys.executable] if language == "python" else ["bash"]
    done = subprocess.run([*program, str(script)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


CHECKS = [
    r"\{'name': '.*', 'age': \d+\}\n\d{1,4}\n(yes|no)\n",  # the client
    r'"text":\s?"(19|20)\d\d-(0[1-9]|1[0-2])-[0-3]\d"',  # curl
    r"^(yes|no)\n$",  # offline
]


@pytest.mark.parametrize("index", range(len(CHECKS)))
def test_structured_outputs(server, tmp_path, index):
    examples = blocks(PAGE)
    assert len(examples) == len(CHECKS)
    output = run(server, *examples[index], tmp_path)
    assert re.search(CHECKS[index], output), output
