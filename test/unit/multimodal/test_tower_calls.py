"""A tower is called for a bounded number of rows, and makes of media in groups what it makes of them together."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sglang.srt.multimodal import tower_calls
from sglang.srt.multimodal.inputs import Modality, MultimodalDataItem
from sglang.srt.multimodal.tower_calls import call_in_groups, cuts_videos, on_device
from sglang.srt.multimodal.transport import pack
from sglang.verify.media import MediaFamily, require_family
from sglang.verify.media_tiny import write_media_config
from sglang.verify.subject import Subject, SubjectConfig
from sglang.verify.tiny import tiny_config

CPU = torch.device("cpu")
RAW = tiny_config("Qwen2_5_VLForConditionalGeneration")
FAMILY: MediaFamily = require_family(RAW["architectures"])


@pytest.fixture(autouse=True)
def _ten_rows_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tower_calls, "GROUP_ROWS", 10)


@pytest.fixture
def subject(tmp_path: Path) -> Iterator[Subject]:
    logging.disable(logging.ERROR)
    folder = write_media_config(RAW, tmp_path)
    yield Subject(str(folder), SubjectConfig(context_length=256))
    logging.disable(logging.NOTSET)


class Tower:
    """Rows that say which entry of a feature they are made of, four to a row; remembers its calls."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []

    def __call__(self, items: list[MultimodalDataItem]) -> torch.Tensor:
        self.calls.append([len(item.feature) for item in items])
        for item in items:
            grid = item.model_specific_data.get("video_grid_thw")
            assert grid is None or int(grid.prod()) == len(item.feature)
        return torch.cat([item.feature[::4] for item in items])


def part(rows: int, first: float = 0, **data: torch.Tensor) -> MultimodalDataItem:
    """`rows` places behind each other."""
    feature = first + torch.arange(4.0 * rows)[:, None]
    modality = Modality.VIDEO if data else Modality.IMAGE
    return MultimodalDataItem(
        modality, feature=feature, offsets=[(5, 4 + rows)], model_specific_data=data
    )


def video(frames: int, rows: int) -> MultimodalDataItem:
    """That many rows a frame."""
    return part(frames * rows, video_grid_thw=torch.tensor([[frames, 2, 2 * rows]]))


@pytest.mark.parametrize(
    ("parts", "calls"),
    [
        ([part(3), part(7, 1000), part(1, 2000)], [[12, 28], [4]]),
        ([part(4), part(25, 1000), part(4, 2000)], [[16], [100], [16]]),  # a picture is not cut
        ([video(5, 4), part(2, 1000)], [[32], [32], [16, 8]]),  # frames side by side fit in pairs
        ([video(2, 12)], [[48], [48]]),  # a frame is not cut
        ([video(2, 4)], [[32]]),
    ],
)
def test_calls_are_bounded_and_nothing_is_lost(
    parts: list[MultimodalDataItem], calls: list[list[int]]
) -> None:
    tower = Tower()
    rows = call_in_groups(tower, CPU, True, parts)
    assert tower.calls == calls
    assert torch.equal(rows, torch.cat([part.feature[::4] for part in parts]))
    assert all(part.offsets == [(5, 4 + len(part.feature) // 4)] for part in parts)


def test_other_towers_see_videos_whole() -> None:
    tower = Tower()
    call_in_groups(tower, CPU, False, [video(5, 4)])
    assert tower.calls == [[80]]
    assert not cuts_videos(tower)


@pytest.mark.parametrize("data", [{"video_grid_thw": torch.tensor([[3, 2, 8]])}, {}])
def test_a_video_whose_grid_says_something_else_is_not_cut(data: dict[str, torch.Tensor]) -> None:
    whole = part(20)
    whole.model_specific_data = data
    whole.modality = Modality.VIDEO
    seen: list[torch.Tensor] = []

    def tower(items: list[MultimodalDataItem]) -> torch.Tensor:
        seen.extend(item.feature for item in items)
        return torch.zeros(20, 1)

    assert len(call_in_groups(tower, CPU, True, [whole])) == 20
    assert [len(feature) for feature in seen] == [80]


def test_the_item_of_a_request_stays_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    meta = torch.device("meta")
    pieces = [torch.zeros(2, 3), torch.zeros(1, 3)]
    item = MultimodalDataItem(Modality.IMAGE, feature=pieces)
    sent = on_device(item, meta)
    assert [(one.shape, one.device) for one in sent.feature] == [((2, 3), meta), ((1, 3), meta)]
    assert item.feature is pieces and all(one.device == CPU for one in pieces)


@pytest.mark.parametrize("name", ["two images", "video"])
def test_a_model_makes_the_same_rows(subject: Subject, name: str, monkeypatch) -> None:
    """Tokens of media in one call of the tower, and in several."""
    prompt = FAMILY.prompts(RAW)[name]
    tokens, calls = [], []
    subject.model.visual.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))  # type: ignore[union-attr, operator]
    for rows in (10_000, 1):
        monkeypatch.setattr(tower_calls, "GROUP_ROWS", rows)
        monkeypatch.setenv("SGLANG_VLM_CACHE_SIZE_MB", "0")
        session = subject.session()
        packed = pack(prompt.inputs_for(prompt.token_ids))
        session.submit("r", prompt.token_ids, 6, mm_inputs=packed)
        session.run()
        tokens.append(session.traces["r"].output_ids)
    assert tokens[0] == tokens[1] and len(tokens[0]) == 6
    assert len(calls) > 2 and sum(calls[1:]) == calls[0]
