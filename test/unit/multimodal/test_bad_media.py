"""Media that do not fit end their own request with a sentence; others go on."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sglang.srt.multimodal.transport import pack
from sglang.verify.media import MediaFamily, MediaPrompt, require_family
from sglang.verify.media_tiny import write_media_config
from sglang.verify.subject import Session, Subject, SubjectConfig
from sglang.verify.tiny import tiny_config

RAW = tiny_config("Qwen2_5_VLForConditionalGeneration")
FAMILY: MediaFamily = require_family(RAW["architectures"])


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = write_media_config(RAW, Path(tmp_path_factory.mktemp("tiny")))
    return Subject(str(folder), SubjectConfig(context_length=256))


@pytest.fixture(scope="module")
def prompt() -> MediaPrompt:
    return FAMILY.prompts(RAW)["video"]


def _broken(inputs: dict[str, Any], how: str) -> bytes:
    inputs = {**inputs, "mm_items": [copy.copy(item) for item in inputs["mm_items"]]}
    item = inputs["mm_items"][0]
    item.model_specific_data = dict(item.model_specific_data)
    grid = item.model_specific_data["video_grid_thw"]
    if how == "fewer patches":
        item.feature = item.feature[:-1]
    elif how == "narrow patches":
        item.feature = item.feature[:, :-1]
    elif how == "a list":
        item.feature = item.feature.tolist()
    elif how == "no grid":
        del item.model_specific_data["video_grid_thw"]
    elif how == "odd grid":
        item.model_specific_data["video_grid_thw"] = (
            grid * torch.tensor([2, 1, 1]) // torch.tensor([1, 2, 4])
        )
    elif how == "larger grid":
        item.model_specific_data["video_grid_thw"] = grid * 2
    elif how == "too long":
        inputs["mrope_positions"] = inputs["mrope_positions"] + 1000
    elif how == "wide rows":  # as of a model whose later layers get some, too
        places = sum(last - first + 1 for first, last in item.offsets)
        width = 2 * RAW["text_config"]["hidden_size"]
        item.feature, item.precomputed_embeddings = None, torch.zeros(places, width)
    elif how == "no token id":
        inputs["video_token_id"] = None
    return pack(inputs)


@pytest.mark.parametrize(
    "how",
    [
        "fewer patches",
        "narrow patches",
        "a list",
        "no grid",
        "odd grid",
        "larger grid",
        "too long",
        "wide rows",
        "no token id",
    ],
)
def test_refused(subject: Subject, prompt: MediaPrompt, how: str) -> None:
    session = subject.session()
    inputs = prompt.inputs_for(prompt.token_ids)
    session.submit("good", prompt.token_ids, 3, mm_inputs=pack(inputs))
    session.submit("bad", prompt.token_ids, 3, mm_inputs=_broken(inputs, how))
    session.run()
    assert _ends(session) == {"good": "length", "bad": "abort"}


def test_garbage_and_media_for_a_text_model(subject: Subject, prompt: MediaPrompt) -> None:
    session = subject.session()
    session.submit("bad", prompt.token_ids, 3, mm_inputs=b"garbage")
    session.submit("text", [5, 6, 7], 3)
    session.run()
    assert _ends(session) == {"bad": "abort", "text": "length"}
    session._scheduler.media = None  # as for a model that takes text only
    session.submit("media", prompt.token_ids, 3, mm_inputs=b"")
    session.run()
    assert _ends(session)["media"] == "abort"


def _ends(session: Session) -> dict[str, str | None]:
    return {rid: trace.finish_reason for rid, trace in session.traces.items()}
