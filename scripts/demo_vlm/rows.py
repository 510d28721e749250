"""Conversations as token ids, labels, positions and patches, packed into steps of one shape.

A step has B rows of T positions, each with as many conversations as fit, and N pictures of at most
P patches. As all steps have one shape, a GPU can record its work once and repeat it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from draw import render
from mixture import Conversation, Message, Shares, draw_conversation
from model import VISION_TOKENS
from pixels import MERGE, PATCH_VALUES, to_patches
from transformers import PreTrainedTokenizerFast

ROW_LENGTH = 384  # T: the longest conversation that is trained
PICTURE_PATCHES = 64  # P: 112 x 112 pixels; no other size within the budget has more
PICTURE_TOKENS = PICTURE_PATCHES // MERGE**2
_UNSPOKEN = -1
_SPARE = 1200  # tokens drawn beyond a step, so that its rows become full
_DRAWN = 64  # conversations that are drawn at once
Grid = tuple[int, int]  # rows and columns of patches
Step = dict[str, torch.Tensor]


@dataclass
class Row:
    """One conversation: positions [3][n] and patches as the model takes them."""

    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    positions: list[list[int]] = field(default_factory=lambda: [[], [], []])
    patches: list[tuple[np.ndarray, Grid]] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)  # place of each picture's first token

    def add_text(self, ids: list[int], spoken: int = 0) -> None:
        """Tokens of text, the first `spoken` of them to be learned.

        An answer's weight grows with the root of its length, so that one letter is not lost
        among long descriptions.
        """
        begin = self._next_position()
        for axis in self.positions:
            axis.extend(range(begin, begin + len(ids)))
        self.ids += ids
        self.labels += ids[:spoken] + [_UNSPOKEN] * (len(ids) - spoken)
        weight = spoken**-0.5 if spoken else 0.0
        self.weights += [weight] * spoken + [0.0] * (len(ids) - spoken)

    def add_picture(self, pad: int, patches: np.ndarray, grid: Grid) -> None:
        """As many pad tokens as the picture has blocks of patches."""
        begin = self._next_position()
        high, wide = grid[0] // MERGE, grid[1] // MERGE
        self.starts.append(len(self.ids))
        self.patches.append((patches, grid))
        for row in range(high):
            for column in range(wide):
                for axis, step in zip(self.positions, (0, row, column), strict=True):
                    axis.append(begin + step)
        self.ids += [pad] * (high * wide)
        self.labels += [_UNSPOKEN] * (high * wide)
        self.weights += [0.0] * (high * wide)

    def _next_position(self) -> int:
        """One behind the largest so far, on any axis; enough of the end is looked at."""
        return 1 + max((max(axis[-64:], default=-1) for axis in self.positions), default=-1)


class Encoder:
    """Turns conversations into rows; contents go through the tokenizer in one call."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.fast = tokenizer.backend_tokenizer
        self.pad = tokenizer.pad_token_id
        self.vision_start, self.vision_end, self.image_pad, _ = tokenizer.convert_tokens_to_ids(
            list(VISION_TOKENS)
        )
        self.heads = {
            role: self._ids(f"<|im_start|>{role}\n") for role in ("system", "user", "assistant")
        }
        self.end = self._ids("<|im_end|>\n")

    def encode(self, conversations: list[Conversation], rng: random.Random) -> list[Row]:
        texts = [text for c in conversations for m in c.messages for text in _texts(m)]
        encoded = iter(self.fast.encode_batch_fast(texts, add_special_tokens=False))
        return [self._row(c, encoded, rng) for c in conversations]

    def _row(self, conversation: Conversation, encoded: Iterator[Any], rng: random.Random) -> Row:
        row, pictures = Row(), iter(conversation.pictures)
        for message in conversation.messages:
            row.add_text(self.heads[message["role"]])
            if message["role"] == "assistant":
                answer = next(encoded).ids + self.end
                row.add_text(answer, spoken=len(answer) - len(self.end) + 1)
                continue
            for part in _parts(message):
                if part["type"] == "text":
                    row.add_text(next(encoded).ids)
                else:
                    row.add_text([self.vision_start])
                    row.add_picture(self.image_pad, *to_patches(render(next(pictures), rng)))
                    row.add_text([self.vision_end])
            row.add_text(self.end)
        row.labels = [*row.labels[1:], _UNSPOKEN]
        row.weights = [*row.weights[1:], 0.0]
        return row

    def _ids(self, text: str) -> list[int]:
        return self.fast.encode(text, add_special_tokens=False).ids


def _parts(message: Message) -> list[Message]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _texts(message: Message) -> list[str]:
    return [part["text"] for part in _parts(message) if part["type"] == "text"]


def pack(rows: list[Row], count: int, pictures: int) -> tuple[Step, list[Row]]:
    """A step of `count` rows and `pictures` pictures, and the conversations that found no place.

    ids, labels, owners, weights [B, T] (owners: the number of a place's conversation, 0 for
    padding), positions [3, B, T], patches uint8 [N, P, 588], spots [N, P, 2] (row and column of
    each patch), sizes [N] (patches that count), places [N * P / 4] (where a picture's tokens stand
    in the flattened rows; B * T if nowhere).
    """
    ids, labels, owners = (np.zeros((count, ROW_LENGTH), np.int64) for _ in range(3))
    weights = np.zeros((count, ROW_LENGTH), np.float32)
    positions = np.zeros((3, count, ROW_LENGTH), np.int64)
    patches = np.zeros((pictures, PICTURE_PATCHES, PATCH_VALUES), np.uint8)
    spots = np.zeros((pictures, PICTURE_PATCHES, 2), np.int64)
    sizes = np.full(pictures, PICTURE_PATCHES, np.int64)
    places = np.full((pictures, PICTURE_TOKENS), count * ROW_LENGTH, np.int64)
    used, shown, left = [0] * count, 0, []
    for number, row in enumerate(rows, 1):
        n = len(row.ids)
        found = next((i for i, place in enumerate(used) if place + n <= ROW_LENGTH), None)
        if found is None or shown + len(row.patches) > pictures:
            left.append(row)
            continue
        span = slice(used[found], used[found] + n)
        ids[found, span], owners[found, span] = row.ids, number
        labels[found, span], weights[found, span] = row.labels, row.weights
        positions[:, found, span] = row.positions
        for start, (values, grid) in zip(row.starts, row.patches, strict=True):
            size = len(values)
            first = found * ROW_LENGTH + span.start + start
            patches[shown, :size], sizes[shown] = values, size
            spots[shown, :size] = patch_spots(*grid)
            places[shown, : size // MERGE**2] = np.arange(first, first + size // MERGE**2)
            shown += 1
        used[found] = span.stop
    arrays = {
        "ids": ids,
        "labels": np.maximum(labels, 0),
        "owners": owners,
        "weights": weights,
        "positions": positions,
        "patches": patches,
        "spots": spots,
        "sizes": sizes,
        "places": places.reshape(-1),
    }
    return {name: torch.from_numpy(array) for name, array in arrays.items()}, left


def patch_spots(high: int, wide: int) -> np.ndarray:
    """[high * wide, 2]: row and column of each patch, in the order that the tower takes them."""
    row, column = np.meshgrid(np.arange(high), np.arange(wide), indexing="ij")
    both = np.stack((row, column), -1).reshape(high // MERGE, MERGE, wide // MERGE, MERGE, 2)
    return both.transpose(0, 2, 1, 3, 4).reshape(high * wide, 2)


class Steps(torch.utils.data.IterableDataset):
    """Endless training steps; every worker has a stream of its own."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        seed: str,
        rows: int,
        pictures: int,
        shares: Shares,
    ) -> None:
        self.tokenizer, self.seed = tokenizer, seed
        self.rows, self.pictures, self.shares = rows, pictures, shares

    def __iter__(self) -> Iterator[Step]:
        worker = torch.utils.data.get_worker_info()
        rng = random.Random(f"{self.seed} {worker.id if worker else 0}")
        encoder = Encoder(self.tokenizer)
        waiting: list[Row] = []
        while True:
            room = self.rows * ROW_LENGTH + _SPARE
            while sum(len(row.ids) for row in waiting) < room:
                drawn = [draw_conversation(rng, self.shares) for _ in range(_DRAWN)]
                rows = encoder.encode(drawn, rng)
                waiting += [row for row in rows if len(row.ids) <= ROW_LENGTH]
            step, waiting = pack(waiting, self.rows, self.pictures)
            yield step
