"""Media by row on a rank, positions with three axes, and plans that carry media to other ranks."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch

from sglang.srt.layers.rotary_embedding import MRotaryEmbedding
from sglang.srt.managers.step_plan import RowMedia, RowSetup, RowWork, SamplingSpec, StepPlan
from sglang.srt.model_executor.media_rows import MediaRows
from sglang.srt.model_executor.parallel_worker import without_sampling
from sglang.srt.multimodal.inputs import Modality, MultimodalDataItem
from sglang.srt.multimodal.transport import pack

PAD = 1_000_003
POSITIONS = torch.tensor([[0, 1, 1, 3, 4], [0, 1, 2, 3, 4], [0, 1, 1, 3, 4]]) * 10


def work(row: int, start: int, ids: list[int] | None) -> RowWork:
    count = 1 if ids is None else len(ids)
    return RowWork(
        row=row,
        start=start,
        num_tokens=count,
        token_ids=ids,
        prefix_slots=None,
        new_slots=bytes(4 * count),
        sample=True,
    )


def media() -> RowMedia:
    item = MultimodalDataItem(Modality.IMAGE, feature=torch.ones(2), offsets=[(1, 2)])
    inputs = {"mm_items": [item], "mrope_positions": POSITIONS}
    padded = np.array([5, PAD, PAD, 6, 7], np.int64)
    return RowMedia(
        inputs=pack({**inputs, "mrope_position_delta": torch.tensor([[36]])}),
        padded_ids=padded.tobytes(),
    )


def test_rows_of_media_and_text() -> None:
    rows = MediaRows(4, has_mrope=True)
    rows.update({2: media(), 1: None})
    works = [work(2, 0, [5, 9, 9]), work(1, 0, [8, 8])]
    ids = rows.overlay(works, np.array([5, 9, 9, 8, 8]))
    assert ids.tolist() == [5, PAD, PAD, 8, 8]
    turned = rows.mrope_positions(works, np.array([0, 1, 2, 0, 1]))
    assert turned[:, :3].tolist() == POSITIONS[:, :3].tolist()
    assert turned[:, 3:].tolist() == [[0, 1]] * 3
    first = rows.inputs_of(works)
    assert first is not None and first[0] is not None and first[1] is None
    # The end of the prompt, in a step with a decoding request of another row.
    works = [work(2, 3, [6, 7]), work(1, 2, None)]
    assert rows.overlay(works, np.array([6, 7, 0])).tolist() == [6, 7, 0]
    assert rows.inputs_of(works) is not None
    assert rows.inputs_of([work(2, 0, [5])]) is None, "the features were let go"


def test_positions_of_outputs() -> None:
    """Decoding, and a prefill after a retraction that goes beyond the prompt."""
    rows = MediaRows(4, has_mrope=True)
    rows.update({2: media()})
    decode = rows.mrope_positions([work(2, 5, None)], np.array([5]))
    assert decode.tolist() == [[41]] * 3
    again = rows.mrope_positions([work(2, 4, [7, 1, 1])], np.array([4, 5, 6]))
    assert again.tolist() == [[40, 41, 42]] * 3


def test_a_row_forgets() -> None:
    rows = MediaRows(4, has_mrope=True)
    rows.update({2: media()})
    rows.update({2: None})
    works = [work(2, 0, [5, 9])]
    assert rows.overlay(works, np.array([5, 9])).tolist() == [5, 9]
    assert rows.inputs_of(works) is None
    assert rows.mrope_positions(works, np.array([0, 1])).tolist() == [[0, 1]] * 3


def test_other_ranks_are_sent_the_media() -> None:
    setup = RowSetup(row=2, sampling=SamplingSpec(), prompt_ids=[1], output_ids=[])
    plan = StepPlan(
        step_id=1, mode="extend", works=[work(2, 0, [5])], setups=[setup], media={2: media()}
    )
    frame = msgspec.msgpack.encode(without_sampling(plan))
    received = msgspec.msgpack.decode(frame, type=StepPlan)
    assert received.setups == [] and received.media == plan.media


# --- get_rope_index

IMAGE, VIDEO, START = 40, 41, 42


def index(ids: list[int], model_type: str = "qwen2_vl", **grids):
    positions, delta = MRotaryEmbedding.get_rope_index(
        2, IMAGE, VIDEO, START, model_type, input_ids=torch.tensor([ids]), **grids
    )
    return positions[:, 0].tolist(), delta.tolist()


def test_text_and_an_image() -> None:
    assert index([1, 2, 3]) == ([[0, 1, 2]] * 3, [[0]])
    positions, delta = index([1, *[IMAGE] * 6, 2], image_grid_thw=torch.tensor([[1, 4, 6]]))
    assert positions == [
        [0, 1, 1, 1, 1, 1, 1, 4],
        [0, 1, 1, 1, 2, 2, 2, 4],
        [0, 1, 2, 3, 1, 2, 3, 4],
    ]
    assert delta == [[-3]]


def test_videos_advance_by_frames_or_seconds() -> None:
    ids = [1, *[VIDEO] * 6, 2]
    grid = torch.tensor([[3, 2, 4]])
    assert index(ids, video_grid_thw=grid)[0][0] == [0, 1, 1, 2, 2, 3, 3, 4]
    seconds = {"tokens_per_second": 4, "second_per_grid_ts": torch.tensor([0.4])}
    by_time, delta = index(ids, "qwen2_5_vl", video_grid_thw=grid, **seconds)
    assert by_time[0] == [0, 1, 1, 2, 2, 4, 4, 5], "1.6 a frame, rounded down"
    assert by_time[1] == [0, 1, 1, 1, 1, 1, 1, 5] and delta == [[-2]]


def test_frames_of_qwen3_vl_are_blocks_of_their_own() -> None:
    ids = [VIDEO, VIDEO, 1, VIDEO, VIDEO]
    positions, _ = index(ids, "qwen3_vl", video_grid_thw=torch.tensor([[2, 2, 4]]))
    assert positions == [[0, 0, 2, 3, 3], [0, 0, 2, 3, 3], [0, 1, 2, 3, 4]]


def test_two_sequences_share_the_grids_in_order() -> None:
    ids = torch.tensor([[IMAGE, IMAGE, 1], [1, IMAGE, IMAGE]])
    grids = torch.tensor([[1, 2, 4], [1, 4, 2]])
    positions, delta = MRotaryEmbedding.get_rope_index(
        2, IMAGE, VIDEO, START, "qwen2_vl", input_ids=ids, image_grid_thw=grids
    )
    assert positions[:, 0].tolist() == [[0, 0, 2], [0, 0, 2], [0, 1, 2]]
    assert positions[:, 1].tolist() == [[0, 1, 1], [0, 1, 2], [0, 1, 1]]
    assert delta.tolist() == [[0], [0]]


def test_what_does_not_fit_is_named() -> None:
    grid = torch.tensor([[1, 4, 4]])
    with pytest.raises(RuntimeError, match="'llama' has no rule"):
        index([1], "llama")
    with pytest.raises(ValueError, match="does not fit the grids"):
        index([1, IMAGE, IMAGE], image_grid_thw=grid)
    with pytest.raises(ValueError, match="does not fit the grids"):
        index([1, IMAGE])
    with pytest.raises(ValueError, match="more image or video grids"):
        index([1], image_grid_thw=grid)
