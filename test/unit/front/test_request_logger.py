"""What each level of `--log-requests` shows."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from sglang.srt.managers.io_struct import GenerateReqInput
from sglang.srt.observability.request_logger import RequestLogger

ITEM = {
    "text": "answer",
    "output_ids": [1],
    "meta_info": {"id": "r", "finish_reason": {"type": "length"}, "prompt_tokens": 1, "odd": 5},
}


@pytest.fixture(autouse=True)
def no_bounds(monkeypatch):
    monkeypatch.delenv("SGLANG_DISABLE_REQUEST_LOGGING", raising=False)
    monkeypatch.delenv("SGLANG_LOG_REQUEST_EXCEEDED_MS", raising=False)


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


def flags(**changes):
    values = {"log_requests_level": 2, "log_requests_format": "text", "log_requests_target": None}
    return SimpleNamespace(**{"log_requests": True, **values, **changes})


def test_the_environment_forbids_what_the_flag_asks_for(monkeypatch):
    assert RequestLogger.from_server_args(flags(log_requests=False)) is None
    assert RequestLogger.from_server_args(flags()) is not None
    monkeypatch.setenv("SGLANG_DISABLE_REQUEST_LOGGING", "1")
    assert RequestLogger.from_server_args(flags()) is None
    monkeypatch.setenv("SGLANG_DISABLE_REQUEST_LOGGING", "0")
    assert RequestLogger.from_server_args(flags()) is not None


@pytest.mark.parametrize(("limit", "events"), [("-1", 4), ("0", 2), ("500", 1), ("2000", 0)])
def test_slow_requests_only(tmp_path, monkeypatch, limit, events):
    monkeypatch.setenv("SGLANG_LOG_REQUEST_EXCEEDED_MS", limit)
    logger = RequestLogger(0, "json", [str(tmp_path)])
    for seconds in (0.2, 0.9):
        logger.log_received(GenerateReqInput(text="a"), ["r"])
        meta = {**ITEM["meta_info"], "e2e_latency": seconds}
        logger.log_finished(GenerateReqInput(text="a"), {**ITEM, "meta_info": meta})
    logger.close()
    file = tmp_path / "requests.log"
    found = file.read_text().splitlines() if file.exists() else []
    assert len(found) == events
    if limit == "500":
        assert '"e2e_latency": 0.9' in found[0] and "request.finished" in found[0]
