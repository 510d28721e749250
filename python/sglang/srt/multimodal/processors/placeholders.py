"""Placeholders of media in a prompt's token ids: found, counted, and replaced by as many ids as there are embedding rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from sglang.srt.multimodal.inputs import Modality
from sglang.srt.utils.errors import RequestError

Run = tuple[int, int]  # first and last place, both inclusive


@dataclasses.dataclass(frozen=True)
class MediaPlaces:
    """The media of one kind, and what stands for them.

    Args:
        token_id: the placeholder in a prompt.
        row_id: the id that stands at each embedding row.
        replacements: ids that take each placeholder's place, `row_id` among them.
        joins_runs: placeholders side by side may stand for one medium.
    """

    modality: Modality
    token_id: int
    row_id: int
    replacements: list[list[int]]
    joins_runs: bool = False


@dataclasses.dataclass(frozen=True)
class ExpandedPrompt:
    """Ids with every placeholder replaced, and where the rows of each kind lie (one run per medium or part of one)."""

    input_ids: list[int]
    offsets: dict[Modality, list[Run]]


def expand_placeholders(ids: Sequence[int], media: Sequence[MediaPlaces]) -> ExpandedPrompt:
    """Replace the placeholders of all kinds.

    A prompt that holds the rows already (as many as all media have) keeps them. Raises RequestError when there are more or fewer placeholders than media.
    """
    found: list[tuple[Run, Modality, list[int], int]] = []
    for places in media:
        runs = _runs_to_replace(ids, places)
        found += [
            (run, places.modality, new, places.row_id)
            for run, new in zip(runs, places.replacements, strict=True)
        ]
    expanded: list[int] = []
    offsets: dict[Modality, list[Run]] = {places.modality: [] for places in media}
    end = 0
    for (first, last), modality, new, row_id in sorted(found):
        expanded += ids[end:first]
        offsets[modality] += [
            (a + len(expanded), b + len(expanded)) for a, b in runs_of(new, row_id)
        ]
        expanded += new
        end = last + 1
    return ExpandedPrompt([*expanded, *ids[end:]], offsets)


def runs_of(ids: Sequence[int], token_id: int) -> list[Run]:
    """Maximal runs of a token: `[1, 2, 3, 3, 3, 4, 3, 3]`, 3 -> `[(2, 4), (6, 7)]`."""
    runs: list[Run] = []
    for place, token in enumerate(ids):
        if token != token_id:
            continue
        if runs and runs[-1][1] == place - 1:
            runs[-1] = (runs[-1][0], place)
        else:
            runs.append((place, place))
    return runs


def _runs_to_replace(ids: Sequence[int], places: MediaPlaces) -> list[Run]:
    count = len(places.replacements)
    ready = _ready_runs(ids, places)
    if ready is not None:
        return ready
    runs = runs_of(ids, places.token_id)
    single = [(place, place) for first, last in runs for place in range(first, last + 1)]
    if len(single) == count:
        return single
    if places.joins_runs and len(runs) == count:
        return runs
    raise mismatch(places.modality, len(single), count)


def _ready_runs(ids: Sequence[int], places: MediaPlaces) -> list[Run] | None:
    """Where the replacements stand already, all of them in order; None when they do not."""
    runs: list[Run] = []
    start = 0
    for new in places.replacements:
        place = _find(ids, new, start)
        if place < 0:
            return None
        start = place + len(new)
        runs.append((place, start - 1))
    if runs and places.row_id in ids[start:]:
        return None  # more of them than media
    return runs


def _find(ids: Sequence[int], part: list[int], start: int) -> int:
    """Place of the first occurrence of `part` from `start`, or -1."""
    length = len(part)
    for place in range(start, len(ids) - length + 1):
        # Both ends first: a run that is one too short would otherwise be compared from each of its places.
        ends_fit = ids[place] == part[0] and ids[place + length - 1] == part[-1]
        if ends_fit and list(ids[place : place + length]) == part:
            return place
    return -1


def mismatch(modality: Modality, num_places: int, num_media: int) -> RequestError:
    """The error of a prompt whose placeholders are not as many as its media."""
    name = "sound" if modality is Modality.AUDIO else modality.name.lower()
    return RequestError(
        f"the prompt has {num_places} placeholders for {num_media} {name} items; give one placeholder for each "
        "(a chat template that knows no media leaves none: see --chat-template)"
    )
