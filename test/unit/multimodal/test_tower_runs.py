"""How often the tower runs: once for an image, however many requests bring it, in one batch or one after the other."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sglang.srt.multimodal.transport import pack
from sglang.verify.media import MediaPrompt, require_family
from sglang.verify.media_tiny import write_media_config
from sglang.verify.subject import Schedule, Subject, SubjectConfig
from sglang.verify.tiny import tiny_config

RAW = tiny_config("Qwen2VLForConditionalGeneration")
PROMPTS = require_family(RAW["architectures"]).prompts(RAW)


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = write_media_config(RAW, Path(tmp_path_factory.mktemp("tiny")))
    return Subject(str(folder), SubjectConfig(context_length=256))


@pytest.fixture
def runs(subject: Subject) -> Iterator[list[int]]:
    """Grows by the number of patches whenever the tower runs."""
    seen: list[int] = []

    def note(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append(len(inputs[0]))

    handle = subject.model.visual.register_forward_pre_hook(note)  # type: ignore[union-attr, operator]
    yield seen
    handle.remove()


def ids_of(prompt: MediaPrompt, number: int) -> list[int]:
    """The prompt with a text behind the image that no other request has."""
    return [*prompt.token_ids, 3 + number % 300, 3 + number // 300]


@pytest.mark.parametrize("prefix_cache", [True, False])
@pytest.mark.parametrize("is_one_batch", [True, False])
def test_a_hundred_requests_with_one_image(
    subject: Subject, runs: list[int], prefix_cache: bool, is_one_batch: bool
) -> None:
    session = subject.session(Schedule(prefix_cache=prefix_cache))
    image, other = PROMPTS["image"], PROMPTS["other image"]
    for number in range(100):
        ids = ids_of(image, number)
        session.submit(f"r{number}", ids, 1, mm_inputs=pack(image.inputs_for(ids)))
        if not is_one_batch:
            session.run()
    session.run()
    assert runs == [6 * 8]
    assert {trace.finish_reason for trace in session.traces.values()} == {"length"}
    # Different questions on it are different rows of one image: an image that is another one runs again.
    ids = ids_of(other, 0)
    session.submit("other", ids, 1, mm_inputs=pack(other.inputs_for(ids)))
    session.run()
    assert runs == [6 * 8] * 2


def test_an_image_cut_by_chunks_runs_once_without_a_cache(
    subject: Subject, runs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGLANG_VLM_CACHE_SIZE_MB", "0")
    session = subject.session(Schedule(chunk_size=4, prefix_cache=False))
    image = PROMPTS["image"]
    for number in range(2):
        ids = ids_of(image, number)
        session.submit(f"r{number}", ids, 1, mm_inputs=pack(image.inputs_for(ids)))
        session.run()
    # Nothing is kept between requests, and within each the image lies in four steps.
    assert runs == [6 * 8] * 2
    assert len(session.steps) > 8
