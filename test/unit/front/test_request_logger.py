"""What each level of `--log-requests` shows."""

from __future__ import annotations

import json

import pytest

from sglang.srt.managers.io_struct import GenerateReqInput
from sglang.srt.observability.request_logger import RequestLogger

ITEM = {
    "text": "answer",
    "output_ids": [1],
    "meta_info": {"id": "r", "finish_reason": {"type": "length"}, "prompt_tokens": 1, "odd": 5},
}


def lines(folder, level, text="prompt", format="json"):
    logger = RequestLogger(level, format, [str(folder)])
    obj = GenerateReqInput(text=text, sampling_params={"top_k": 2})
    logger.log_received(obj, ["r"])
    logger.log_finished(obj, ITEM)
    for handler in logger._logger.handlers:
        handler.close()
    raw = (folder / "requests.log").read_text().splitlines()
    return [line.split("] ", 1)[1] for line in raw]


@pytest.mark.parametrize(
    ("level", "has_params", "has_content"), [(0, False, False), (1, True, False), (2, True, True)]
)
def test_levels(tmp_path, level, has_params, has_content):
    received, finished = map(json.loads, lines(tmp_path, level))
    assert received["event"] == "request.received" and finished["event"] == "request.finished"
    for line in (received, finished):
        assert line["rid"] == "r"
        assert ("sampling_params" in line) == has_params
    assert ("text" in received) == has_content
    assert ("out" in finished) == has_content
    assert finished["meta_info"] == {
        "id": "r",
        "finish_reason": {"type": "length"},
        "prompt_tokens": 1,
    }


def test_level_2_shortens_and_level_3_does_not(tmp_path):
    long = "x" * 5000
    short = json.loads(lines(tmp_path / "a", 2, long)[0])["text"]
    assert len(short) < 2200 and "5000 characters" in short
    assert json.loads(lines(tmp_path / "b", 3, long)[0])["text"] == long


def test_a_prompt_cannot_forge_a_line(tmp_path):
    assert len(lines(tmp_path, 2, "a\n[now] request.received: rid='fake'", format="text")) == 2
