"""Training batches: conversations as token ids, in rows of similar length.

T is the padded row length, B the number of rows; labels are -100 wherever the assistant is not
speaking, so the model learns to answer and not to ask.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from data import draw_conversation
from item import Message
from transformers import PreTrainedTokenizerFast

IGNORED = -100
_POOL = 1024  # conversations that are sorted by length together
_PAD_TO = 16


def encode(
    tokenizer: PreTrainedTokenizerFast, messages: list[Message]
) -> tuple[list[int], list[int]]:
    """Token ids of a conversation in ChatML and, position by position, the label to predict."""
    return encode_many(tokenizer, [messages])[0]


def encode_many(
    tokenizer: PreTrainedTokenizerFast, conversations: list[list[Message]]
) -> list[tuple[list[int], list[int]]]:
    """`encode` for many conversations; contents go through the tokenizer in one call."""
    fast = tokenizer.backend_tokenizer
    contents = [m["content"] for messages in conversations for m in messages]
    encoded = iter(fast.encode_batch_fast(contents, add_special_tokens=False))
    heads = {
        role: fast.encode(f"<|im_start|>{role}\n", add_special_tokens=False).ids
        for role in ("system", "user", "assistant")
    }
    end = fast.encode("<|im_end|>\n", add_special_tokens=False).ids
    rows = []
    for messages in conversations:
        ids: list[int] = []
        labels: list[int] = []
        for message in messages:
            head, body = heads[message["role"]], next(encoded).ids
            ids += head + body + end
            if message["role"] == "assistant":
                labels += [IGNORED] * len(head) + body + end[:1] + [IGNORED] * (len(end) - 1)
            else:
                labels += [IGNORED] * (len(head) + len(body) + len(end))
        rows.append((ids, labels[1:] + [IGNORED]))
    return rows


def draw_batches(
    tokenizer: PreTrainedTokenizerFast, seed: str, batch_tokens: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (input ids, next-token labels), both [B, T] int64 with B * T <= batch_tokens."""
    rng = random.Random(seed)
    while True:
        pool = encode_many(tokenizer, [draw_conversation(rng) for _ in range(_POOL)])
        pool.sort(key=lambda row: len(row[0]))
        batches, rows = [], []
        for row in reversed(pool):
            width = _padded(len(rows[0][0]) if rows else len(row[0]))
            if rows and (len(rows) + 1) * width > batch_tokens:
                batches.append(rows)
                rows = []
            rows.append(row)
        # The last rows of a pool are few and short; they are dropped to keep batches even.
        rng.shuffle(batches)
        yield from (_stack(rows, tokenizer.pad_token_id) for rows in batches)


def _padded(length: int) -> int:
    return -(-length // _PAD_TO) * _PAD_TO


def _stack(
    rows: list[tuple[list[int], list[int]]], pad_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    width = _padded(max(len(ids) for ids, _ in rows))
    ids = [ids + [pad_id] * (width - len(ids)) for ids, _ in rows]
    labels = [labels + [IGNORED] * (width - len(labels)) for _, labels in rows]
    return torch.tensor(ids), torch.tensor(labels)
