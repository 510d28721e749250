"""From one call to its prompts: which fields are per prompt, scalars broadcast, request ids made.

Looks at shapes only; whether a prompt can be served is decided in `request_validation`.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Mapping
from typing import Any, cast

from sglang.srt.managers.io_struct import GenerateReqInput
from sglang.srt.managers.media_input import PromptMedia, media_of_prompts
from sglang.srt.utils.errors import RequestError

# One call may ask for so many samples (prompts times n): enough for an offline run, too few to fill the memory of the front.
MAX_SAMPLES_PER_CALL = 65536
MAX_RID_CHARS = 256


@dataclasses.dataclass(slots=True)
class PromptInput:
    """One prompt of a call. Exactly one of `text` and `input_ids` is set."""

    rid: str
    text: str | None
    input_ids: list[int] | None
    sampling_params: dict[str, Any]
    asks_for_length: bool  # the caller itself set `max_new_tokens`
    return_logprob: bool
    logprob_start_len: int
    top_logprobs_num: int
    token_ids_logprob: list[int] | None
    extra_key: str | None
    media: PromptMedia | None = None


@dataclasses.dataclass(slots=True)
class ExpandedInput:
    """The prompts of a call; each is sampled `n` times. `is_batch`: the answer is a list, or items with an index."""

    prompts: list[PromptInput]
    n: int
    is_batch: bool


def expand_input(
    obj: GenerateReqInput, preferred_sampling_params: Mapping[str, Any] | None = None
) -> ExpandedInput:
    """Split a call into prompts.

    Args:
        preferred_sampling_params: defaults of the server, under the call's own.

    Raises RequestError for missing or contradicting fields and for lists of a wrong length.
    """
    _refuse_unsupported(obj)
    texts, ids, is_list = _prompts(obj)
    size = len(texts if texts is not None else ids)  # type: ignore[arg-type]
    if is_list and size == 0:
        raise RequestError("the batch is empty; give at least one prompt")
    if size > MAX_SAMPLES_PER_CALL:
        raise RequestError(
            f"{size} prompts in one call; at most {MAX_SAMPLES_PER_CALL} are allowed"
        )
    columns = _Columns(obj, size, is_list)
    prompts = [
        columns.prompt(
            i,
            texts[i] if texts is not None else None,
            ids[i] if ids is not None else None,
            preferred_sampling_params or {},
        )
        for i in range(size)
    ]
    n = _common_n(prompts)
    if size * n > MAX_SAMPLES_PER_CALL:
        raise RequestError(
            f"{size} prompts with n={n} are {size * n} samples; at most {MAX_SAMPLES_PER_CALL} are allowed"
        )
    return ExpandedInput(prompts, n, is_batch=is_list or n > 1)


class _Columns:
    """The fields of a call as one list per field."""

    def __init__(self, obj: GenerateReqInput, size: int, is_list: bool) -> None:
        def column(name: str, default: Any, kind: type) -> list[Any]:
            return _spread(name, getattr(obj, name), default, kind, size, is_list)

        self.rid = _rids(obj.rid, size, is_list)
        self.sampling_params = column("sampling_params", {}, dict)
        self.return_logprob = column("return_logprob", False, bool)
        self.logprob_start_len = column("logprob_start_len", -1, int)
        self.top_logprobs_num = column("top_logprobs_num", 0, int)
        self.extra_key = column("extra_key", None, str)
        self.token_ids_logprob = _spread_ids(obj.token_ids_logprob, size, is_list)
        self.media = media_of_prompts(obj, size, is_list)

    def prompt(
        self, i: int, text: str | None, ids: list[int] | None, preferred: Mapping[str, Any]
    ) -> PromptInput:
        return PromptInput(
            rid=self.rid[i],
            text=text,
            input_ids=ids,
            sampling_params={**preferred, **self.sampling_params[i]},
            asks_for_length=self.sampling_params[i].get("max_new_tokens") is not None,
            return_logprob=self.return_logprob[i],
            logprob_start_len=self.logprob_start_len[i],
            top_logprobs_num=self.top_logprobs_num[i],
            token_ids_logprob=self.token_ids_logprob[i],
            extra_key=self.extra_key[i],
            media=self.media[i],
        )


def _refuse_unsupported(obj: GenerateReqInput) -> None:
    if obj.input_embeds is not None:
        raise RequestError("input_embeds is not supported; give text or input_ids")


def _prompts(obj: GenerateReqInput) -> tuple[list[str] | None, list[list[int]] | None, bool]:
    """(texts or None, id lists or None, whether the call is a list of prompts)."""
    if (obj.text is None) == (obj.input_ids is None):
        problem = "none was given" if obj.text is None else "both were given"
        raise RequestError(f"give exactly one of text and input_ids; {problem}")
    if obj.text is not None:
        if isinstance(obj.text, str):
            return [obj.text], None, False
        if isinstance(obj.text, list) and all(isinstance(text, str) for text in obj.text):
            return obj.text, None, True
        raise RequestError("text must be a string or a list of strings")
    ids = obj.input_ids
    if not isinstance(ids, list):
        raise RequestError("input_ids must be a list of token ids or a list of such lists")
    if ids and all(isinstance(item, list) for item in ids):
        return None, cast("list[list[int]]", ids), True
    return None, [cast("list[int]", ids)], False


def _spread(name: str, value: Any, default: Any, kind: type, size: int, is_list: bool) -> list[Any]:
    """`value` once per prompt: a list has one entry per prompt, anything else is for all."""
    if is_list and isinstance(value, list):
        if len(value) != size:
            raise RequestError(f"{name} has {len(value)} entries for {size} prompts")
        values = value
    else:
        values = [value]
    values = [default if item is None else item for item in values]
    for item in values:
        if item is not default and not _is_kind(item, kind):
            raise RequestError(
                f"{name} holds {ascii(item)[:80]}, which is not of type {kind.__name__}"
            )
    return values if len(values) == size else values * size


def _is_kind(item: Any, kind: type) -> bool:
    if kind is int:
        return isinstance(item, int) and not isinstance(item, bool)
    return isinstance(item, kind)


def _spread_ids(value: Any, size: int, is_list: bool) -> list[list[int] | None]:
    """Like `_spread` for a field that is a list already: nested lists are per prompt."""
    name = "token_ids_logprob"
    if value is None:
        return [None] * size
    if not isinstance(value, list):
        raise RequestError(f"{name} must be a list of token ids")
    is_nested = any(item is None or isinstance(item, list) for item in value)
    if not is_nested:
        return [value] * size
    if not is_list or len(value) != size:
        raise RequestError(f"{name} has {len(value)} lists for {size} prompts")
    return value


def _rids(rid: Any, size: int, is_list: bool) -> list[str]:
    if rid is None:
        return [uuid.uuid4().hex for _ in range(size)]
    if isinstance(rid, str):
        rids = [f"{rid}_{i}" for i in range(size)] if is_list else [rid]
    elif isinstance(rid, list) and is_list and all(isinstance(item, str) for item in rid):
        rids = rid
    else:
        raise RequestError("rid must be a string, or in a batch a list of strings")
    if len(rids) != size:
        raise RequestError(f"rid has {len(rids)} entries for {size} prompts")
    if not all(0 < len(item) <= MAX_RID_CHARS for item in rids):
        raise RequestError(f"rid must have from 1 to {MAX_RID_CHARS} characters")
    return rids


def _common_n(prompts: list[PromptInput]) -> int:
    counts = {_n_of(prompt.sampling_params) for prompt in prompts}
    if len(counts) > 1:
        raise RequestError(f"all prompts of a batch must ask for the same n, not {sorted(counts)}")
    return counts.pop()


def _n_of(params: dict[str, Any]) -> int:
    n = params.get("n", 1)
    # What is not a positive whole number is refused with the other sampling parameters.
    return n if isinstance(n, int) and not isinstance(n, bool) and n > 0 else 1
