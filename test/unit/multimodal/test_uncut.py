"""Chunks of a prompt whose media must be computed in one step."""

from __future__ import annotations

import pytest

from sglang.srt.managers.step_plan import RowMedia
from sglang.srt.multimodal.intake import RequestMedia


def media(*spans: tuple[int, int]) -> RequestMedia:
    return RequestMedia(RowMedia(inputs=b"", padded_ids=b""), [], 0, list(spans))


@pytest.mark.parametrize(
    ("start", "wanted", "page", "expected"),
    [
        (0, 8, 1, 8),  # before the first image
        (0, 10, 1, 10),  # its first place begins the next chunk
        (0, 15, 1, 10),  # back to its beginning
        (10, 3, 1, 10),  # nothing before it is left: beyond the budget, to its end
        (12, 3, 1, 8),  # from within, after a hit in the cache
        (0, 16, 16, 32),  # the page border lies within the image
        (32, 16, 16, 18),  # the second image ends on no page border: to the end of the prompt
    ],
)
def test_borders_lie_outside_of_images(start: int, wanted: int, page: int, expected: int) -> None:
    found = media((10, 20), (35, 49)).chunk(start, wanted, 50 - start, page)
    assert found == expected


def test_prompts_without_such_media_are_cut_anywhere() -> None:
    assert media().chunk(3, 4, 20, 1) == 4
