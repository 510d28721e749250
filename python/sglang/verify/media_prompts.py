"""Prompts made of text and media in turn, for families whose media are lists of equal things: what `MediaFamily` classes share."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sglang.srt.multimodal.inputs import Modality, MultimodalDataItem
from sglang.verify.media import MediaPrompt

# Keyword arguments of transformers' model for the media of a prompt and a sequence that begins with it.
Arguments = Callable[[Sequence["Medium"], Sequence[int]], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Medium:
    """One picture or video: `ids` stand for it, `row_id` at each of its embedding rows.

    `feature` is its own tensor; `data` what else its item holds, one entry per medium, as tensors with a first axis of one.
    """

    modality: Modality
    ids: list[int]
    row_id: int
    feature: torch.Tensor
    data: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)


Piece = list[int] | Medium


def random_text(generator: torch.Generator, count: int) -> list[int]:
    """Tokens that are no special ones."""
    return torch.randint(3, 390, (count,), generator=generator).tolist()


def image_prompts(
    lay: Callable[[Sequence[Piece]], MediaPrompt],
    text: Callable[[int], list[int]],
    first: Medium,
    other: Medium,
    second: Medium,
) -> dict[str, MediaPrompt]:
    """The prompts of images that `media_forms` uses. `other` has as many ids as `first`."""
    before, between, after = text(7), text(5), text(9)
    return {
        "image": lay([before, first, after]),
        "other image": lay([before, other, after]),
        "two images": lay([before, first, between, second, after]),
        "second differs": lay([before, first, between, other, after]),
        "image first": lay([second, after]),
    }


def lay_out(
    arguments: Arguments, token_ids: Mapping[str, int], pieces: Sequence[Piece]
) -> MediaPrompt:
    """A prompt of text and media. `token_ids`: what a processor's result says of them, such as im_token_id."""
    ids: list[int] = []
    placed: list[tuple[Medium, tuple[int, int]]] = []
    for piece in pieces:
        if isinstance(piece, Medium):
            places = [len(ids) + i for i, token in enumerate(piece.ids) if token == piece.row_id]
            placed.append((piece, (places[0], places[-1])))
            ids += piece.ids
        else:
            ids += piece
    return MediaPrompt(
        token_ids=ids,
        inputs_for=functools.partial(_inputs, placed, dict(token_ids)),
        arguments_for=functools.partial(arguments, [medium for medium, _ in placed]),
        media_at=tuple(first for _, (first, _) in placed),
    )


def joined(tensors: Iterable[torch.Tensor]) -> Any:
    """Pictures in one tensor [n, C, S, S]; lists of pictures (tiles, frames) in a list."""
    found = list(tensors)
    return torch.stack(found) if found[0].dim() == 3 else found


def padded(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """[n, longest, ...] with zeros behind shorter ones."""
    return torch.nn.utils.rnn.pad_sequence(list(tensors), batch_first=True)


def in_one_tensor(
    prompt: MediaPrompt, join: Callable[[list[torch.Tensor]], torch.Tensor]
) -> MediaPrompt:
    """The same prompt, for a processor that gives the features of all media in one tensor."""

    def inputs_for(ids: list[int]) -> dict[str, Any]:
        inputs = prompt.inputs_for(ids)
        for item in inputs["mm_items"]:
            item.feature = join(list(item.feature))
        return inputs

    return dataclasses.replace(prompt, inputs_for=inputs_for)


def joined_data(media: Sequence[Medium], modality: Modality) -> dict[str, torch.Tensor]:
    """What the media of a kind hold beside their features, each in one tensor."""
    mine = [medium.data for medium in media if medium.modality is modality]
    return {key: torch.cat([data[key] for data in mine]) for key in (mine[0] if mine else {})}


def name_specials(folder: Path, names: Mapping[int, str]) -> None:
    """Give ids of the tiny tokenizer the names of a family's special tokens."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    vocab = tokenizer["model"]["vocab"]
    by_id = {index: token for token, index in vocab.items()}
    for index, name in names.items():
        vocab.pop(by_id.get(index), None)  # some stand behind the vocabulary
        vocab[name] = index
        added = {"id": index, "content": name, "special": True, "normalized": False}
        flags = {"single_word": False, "lstrip": False, "rstrip": False}
        tokenizer["added_tokens"].append({**added, **flags})
    path.write_text(json.dumps(tokenizer), encoding="utf-8")


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """The image processor's file."""
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(dict(settings), indent=2))


def _inputs(
    placed: Sequence[tuple[Medium, tuple[int, int]]], token_ids: dict[str, int], ids: list[int]
) -> dict[str, Any]:
    """As a processor returns it: one item per kind."""
    media = [medium for medium, _ in placed]
    items = []
    for modality in Modality.all():
        mine = [(medium, place) for medium, place in placed if medium.modality is modality]
        if mine:
            item = MultimodalDataItem(
                modality,
                offsets=[place for _, place in mine],
                feature=joined(medium.feature for medium, _ in mine),
            )
            for key, value in joined_data(media, modality).items():
                item.set(key, value)
            items.append(item)
    return {"mm_items": items, **token_ids}
