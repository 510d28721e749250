"""Checks a tokenized prompt against the model, before anything reaches the scheduler.

Every refusal is a `RequestError` that says what was asked and what is allowed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from sglang.srt.managers.input_expansion import PromptInput
from sglang.srt.managers.io_struct import TokenizedGenerateReq
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.utils.errors import RequestError

# Logprobs of every position travel through two processes; clients of the OpenAI API ask for 20 at most.
MAX_TOP_LOGPROBS = 128
MAX_TOKEN_IDS_LOGPROB = 4096


@dataclasses.dataclass(frozen=True)
class ModelLimits:
    """What the scheduler says about the model it loaded; lengths in tokens."""

    context_len: int
    vocab_size: int
    max_req_input_len: int  # a prompt that fills the KV cache has no room for an answer
    num_embeddings: int | None = None  # ids that a prompt may hold, where these are more

    @classmethod
    def from_info(cls, info: Mapping[str, Any]) -> ModelLimits:
        """From `SchedulerReady.info`."""
        context_len = info["context_len"]
        return cls(
            context_len=context_len,
            vocab_size=info["vocab_size"],
            max_req_input_len=info.get("max_req_input_len", context_len - 1),
            num_embeddings=info.get("num_embeddings"),
        )


class RequestValidator:
    """Turns prompts into `TokenizedGenerateReq`s or refuses them."""

    def __init__(self, limits: ModelLimits, tokenizer: Any, allow_auto_truncate: bool) -> None:
        self._limits = limits
        self._tokenizer = tokenizer
        self._allow_auto_truncate = allow_auto_truncate

    @property
    def max_input_len(self) -> int:
        """Tokens that a prompt may have."""
        return min(self._limits.max_req_input_len, self._limits.context_len - 1)

    def build(
        self,
        prompt: PromptInput,
        input_ids: list[int],
        stream: bool,
        received_ts: float,
        mm_inputs: bytes | None = None,
    ) -> TokenizedGenerateReq:
        """The checked request of one prompt (its first sample, when there are several).

        `mm_inputs` are its packed media, whose places in `input_ids` are counted already.
        """
        input_ids = self._checked_ids(input_ids)
        params = self._sampling_params(prompt, len(input_ids))
        return TokenizedGenerateReq(
            rid=prompt.rid,
            input_ids=input_ids,
            sampling_params=params,
            stream=stream,
            return_logprob=prompt.return_logprob,
            logprob_start_len=self._logprob_start(prompt, len(input_ids)),
            top_logprobs_num=self._top_logprobs(prompt),
            token_ids_logprob=self._token_ids_logprob(prompt),
            extra_key=prompt.extra_key,
            mm_inputs=mm_inputs,
            received_ts=received_ts,
        )

    # --- the prompt

    def check_ids(self, ids: list[int]) -> None:
        """Raises RequestError for what is no token of the vocabulary, or none at all."""
        if not ids:
            raise RequestError("the prompt is empty; give at least one token")
        _check_token_ids("input_ids", ids, self._limits.num_embeddings or self._limits.vocab_size)

    def _checked_ids(self, ids: list[int]) -> list[int]:
        self.check_ids(ids)
        context_len = self._limits.context_len
        longest = self.max_input_len
        if len(ids) <= longest:
            return ids
        if self._allow_auto_truncate and longest > 0:
            return ids[:longest]
        if len(ids) >= context_len:
            raise RequestError(
                f"The input ({len(ids)} tokens) is longer than the model's context length "
                f"({context_len} tokens, of which one is for the answer)."
            )
        raise RequestError(
            f"The input ({len(ids)} tokens) is longer than the {longest} tokens that the KV cache holds "
            "for one request; shorten it or raise --max-total-tokens."
        )

    # --- sampling

    def _sampling_params(self, prompt: PromptInput, num_input: int) -> SamplingParams:
        params = SamplingParams(**prompt.sampling_params)
        params.normalize(self._tokenizer)
        params.verify(self._limits.vocab_size)
        room = self._limits.context_len - num_input
        # A default is nobody's wish, so the scheduler cuts it silently; what was asked for is not cut.
        wanted = params.max_new_tokens
        if prompt.asks_for_length and wanted is not None and wanted >= room:
            if not self._allow_auto_truncate:
                raise RequestError(
                    f"max_completion_tokens is too large: {wanted}. The model's context length "
                    f"is {self._limits.context_len} tokens and the input has {num_input}; ask for fewer than "
                    f"{room} new tokens."
                )
            params.max_new_tokens = room
            params.min_new_tokens = min(params.min_new_tokens, room)
        return params

    # --- logprobs

    def _logprob_start(self, prompt: PromptInput, num_input: int) -> int:
        start = prompt.logprob_start_len
        if not prompt.return_logprob:
            return -1
        if not -1 <= start <= num_input:
            raise RequestError(
                f"logprob_start_len={start} must be from -1 (output only) to the {num_input} tokens of the input"
            )
        return -1 if start == num_input else start

    def _top_logprobs(self, prompt: PromptInput) -> int:
        num = prompt.top_logprobs_num
        limit = min(MAX_TOP_LOGPROBS, self._limits.vocab_size)
        if not 0 <= num <= limit:
            raise RequestError(f"top_logprobs_num={num} must be from 0 to {limit}")
        return num if prompt.return_logprob else 0

    def _token_ids_logprob(self, prompt: PromptInput) -> list[int] | None:
        ids = prompt.token_ids_logprob
        if not ids:
            return None
        if len(ids) > MAX_TOKEN_IDS_LOGPROB:
            raise RequestError(
                f"token_ids_logprob has {len(ids)} entries; at most {MAX_TOKEN_IDS_LOGPROB} are allowed"
            )
        _check_token_ids("token_ids_logprob", ids, self._limits.vocab_size)
        return ids if prompt.return_logprob else None


def _check_token_ids(name: str, ids: list[Any], vocab_size: int) -> None:
    """Whole lists at a time: prompts have many thousands of ids."""
    if set(map(type, ids)) != {int}:
        wrong = next(item for item in ids if type(item) is not int)
        raise RequestError(f"{name} holds {ascii(wrong)[:80]}, which is not a whole number")
    low, high = min(ids), max(ids)
    if low < 0 or high >= vocab_size:
        wrong = ascii(low if low < 0 else high)[:40]
        raise RequestError(f"{name} holds {wrong}, outside the vocabulary (0 to {vocab_size - 1})")
