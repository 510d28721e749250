"""What one request asks of the sampler, checked and bounded before anything else sees it.

A plain msgspec struct: the front builds it from JSON, `normalize` completes it, and it crosses to the scheduler as it is.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from sglang.srt.utils.errors import RequestError

# Below this temperature sampling is greedy: a division by it would overflow float32.
GREEDY_TEMPERATURE = 1e-6

# Limits on what a client may ask for, so that a request can only hurt itself.
MAX_N = 4096
MAX_NEW_TOKENS = 2**31 - 1
MAX_STOP_STRINGS = 64
MAX_STOP_STRING_CHARS = 4096
MAX_STOP_TOKEN_IDS = 4096
MAX_STOP_REGEX_CHARS = 512
MAX_LOGIT_BIAS_ENTRIES = 4096
MAX_REGEX_CHARS = 16 * 1024
MAX_GRAMMAR_BYTES = 256 * 1024
MAX_SCHEMA_DEPTH = 64
MAX_CUSTOM_PARAMS_BYTES = 64 * 1024
# A regex has no longest match; it is searched in this many tokens at the end of the output.
STOP_REGEX_WINDOW_TOKENS = 128

_GRAMMAR_FIELDS = ("json_schema", "regex", "ebnf", "structural_tag")
_INT64 = 2**63


class Tokenizer(Protocol):
    """The part of a tokenizer that `normalize` needs: that there is one."""

    def encode(self, text: str) -> list[int]: ...


class _StrictStructMeta(type(msgspec.Struct)):  # type: ignore[misc]
    """Turns an unknown keyword into a `RequestError`: clients choose the keywords."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        unknown = sorted(set(kwargs) - set(CLIENT_FIELDS))
        if unknown:
            raise RequestError(
                f"unknown sampling parameter {', '.join(map(repr, unknown))[:200]}; "
                f"allowed: {', '.join(sorted(CLIENT_FIELDS))}"
            )
        return super().__call__(*args, **kwargs)


class SamplingParams(msgspec.Struct, metaclass=_StrictStructMeta, kw_only=True, omit_defaults=True):
    """Sampling parameters of one request; `SamplingParams(**d)` with the keys of a client.

    Construction checks names only. `normalize` (which calls `verify`) must run once before the values are used.
    """

    max_new_tokens: int | None = 128  # None: to the end of the context
    min_new_tokens: int = 0
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    stop_regex: str | list[str] | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1  # -1: off
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    n: int = 1
    json_schema: str | None = None
    regex: str | None = None
    ebnf: str | None = None
    structural_tag: str | None = None
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    no_stop_trim: bool = False
    logit_bias: dict[int | str, float] | None = None  # after `normalize` the keys are ints
    sampling_seed: int | None = None
    stream_interval: int | None = None
    custom_params: dict[str, Any] | None = None

    # Filled by `normalize`; not accepted from clients.
    stop_strs: list[str] = []
    stop_regex_strs: list[str] = []
    stop_str_max_len: int = 0  # tokens: enough of the output's end to hold any stop string
    stop_regex_max_len: int = 0  # tokens

    @property
    def is_greedy(self) -> bool:
        """True when the most likely token is always taken."""
        return self.top_k == 1 or self.temperature < GREEDY_TEMPERATURE

    @property
    def has_grammar(self) -> bool:
        return any(getattr(self, name) is not None for name in _GRAMMAR_FIELDS)

    def verify(self, vocab_size: int | None = None) -> None:
        """Raise RequestError for the first value that is of a wrong type or out of range.

        Args:
            vocab_size: number of token ids; None skips only the upper bound of token ids.
        """
        self._verify_lengths()
        self._verify_distribution()
        self._verify_flags()
        self._verify_stops(vocab_size)
        self._verify_grammar()
        _check_logit_bias(self.logit_bias, vocab_size)
        _check_custom_params(self.custom_params)

    def normalize(self, tokenizer: Tokenizer | None) -> None:
        """Verify, then bring the values into the one form that the scheduler reads; idempotent.

        Greedy becomes `temperature=1, top_k=1`; stops become lists; keys of `logit_bias` become ints.
        `tokenizer` None means that no text is produced: stop strings and regexes are then refused.
        """
        self.verify()
        if self.temperature < GREEDY_TEMPERATURE:
            self.temperature, self.top_k = 1.0, 1
        self.stop_strs = _as_list(self.stop)
        self.stop_regex_strs = _as_list(self.stop_regex)
        if tokenizer is None and (self.stop_strs or self.stop_regex_strs):
            raise RequestError(
                "stop and stop_regex need a tokenizer, which the server runs without; use stop_token_ids"
            )
        # A token carries at least one byte, so a string of n bytes ends within the last n tokens.
        self.stop_str_max_len = max((len(s.encode()) for s in self.stop_strs), default=0)
        self.stop_regex_max_len = STOP_REGEX_WINDOW_TOKENS if self.stop_regex_strs else 0
        if self.stop_token_ids is not None:
            self.stop_token_ids = sorted(set(self.stop_token_ids))
        if self.logit_bias is not None:
            self.logit_bias = {int(token): float(bias) for token, bias in self.logit_bias.items()}

    def _verify_lengths(self) -> None:
        if self.max_new_tokens is not None:
            _check_int("max_new_tokens", self.max_new_tokens, 0, MAX_NEW_TOKENS)
        _check_int("min_new_tokens", self.min_new_tokens, 0, MAX_NEW_TOKENS)
        if self.max_new_tokens is not None and self.min_new_tokens > self.max_new_tokens:
            raise RequestError(
                f"min_new_tokens={self.min_new_tokens} must not exceed "
                f"max_new_tokens={self.max_new_tokens}"
            )
        _check_int("n", self.n, 1, MAX_N)
        if self.stream_interval is not None:
            _check_int("stream_interval", self.stream_interval, 1, MAX_NEW_TOKENS)
        if self.sampling_seed is not None:
            _check_int("sampling_seed", self.sampling_seed, -_INT64, _INT64 - 1)

    def _verify_distribution(self) -> None:
        _check_float("temperature", self.temperature, 0.0, math.inf)
        _check_float("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _check_float("min_p", self.min_p, 0.0, 1.0)
        _check_float("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _check_float("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check_float("repetition_penalty", self.repetition_penalty, 0.0, 2.0, open_low=True)
        _check_int("top_k", self.top_k, -1, _INT64 - 1)
        if self.top_k == 0:
            raise RequestError(
                "top_k=0 is invalid; use -1 to turn it off, or a number of at least 1"
            )

    def _verify_flags(self) -> None:
        for name in (
            "ignore_eos",
            "skip_special_tokens",
            "spaces_between_special_tokens",
            "no_stop_trim",
        ):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise RequestError(f"{name}={_show(value)} must be true or false")

    def _verify_stops(self, vocab_size: int | None) -> None:
        _check_strings("stop", self.stop, MAX_STOP_STRINGS, MAX_STOP_STRING_CHARS)
        _check_strings("stop_regex", self.stop_regex, MAX_STOP_STRINGS, MAX_STOP_REGEX_CHARS)
        for pattern in _as_list(self.stop_regex):
            _check_regex("stop_regex", pattern)
        if self.stop_token_ids is None:
            return
        if not isinstance(self.stop_token_ids, list):
            raise RequestError(
                f"stop_token_ids={_show(self.stop_token_ids)} must be a list of token ids"
            )
        _check_count("stop_token_ids", len(self.stop_token_ids), MAX_STOP_TOKEN_IDS)
        for token in self.stop_token_ids:
            _check_token_id("stop_token_ids", token, vocab_size)

    def _verify_grammar(self) -> None:
        given = [name for name in _GRAMMAR_FIELDS if getattr(self, name) is not None]
        if len(given) > 1:
            raise RequestError(
                f"at most one of {', '.join(_GRAMMAR_FIELDS)} may be set, not {given}"
            )
        for name in given:
            text = getattr(self, name)
            _check_text(name, text)
            limit = MAX_REGEX_CHARS if name == "regex" else MAX_GRAMMAR_BYTES
            _check_count(f"the length of {name}", len(text.encode()), limit)
            if name in ("json_schema", "structural_tag"):
                _check_json(name, text)


# Fields that a client may set; the rest is derived by `normalize`.
_DERIVED_FIELDS = ("stop_strs", "stop_regex_strs", "stop_str_max_len", "stop_regex_max_len")
CLIENT_FIELDS = tuple(f for f in SamplingParams.__struct_fields__ if f not in _DERIVED_FIELDS)


def _as_list(value: str | list[str] | None) -> list[str]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value)


def _show(value: object) -> str:
    """A value for a message, cut: what a client sends may be large."""
    if isinstance(value, int) and value.bit_length() > 256:
        return "a number of more than 256 bits"
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _check_int(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise RequestError(f"{name}={_show(value)} must be a whole number")
    if not low <= value <= high:
        raise RequestError(f"{name}={_show(value)} must be from {low} to {high}")


def _check_float(
    name: str, value: object, low: float, high: float, *, open_low: bool = False
) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RequestError(f"{name}={_show(value)} must be a number")
    # Comparing before converting keeps whole numbers beyond the range of a float out of `isfinite`.
    inside = (low < value if open_low else low <= value) and value <= high
    if not inside or value > 1e30 or not math.isfinite(value):
        interval = f"{'(' if open_low else '['}{low:g}, {high:g}{')' if high == math.inf else ']'}"
        raise RequestError(f"{name}={_show(value)} must be a finite number in {interval}")


def _check_count(name: str, count: int, limit: int) -> None:
    if count > limit:
        raise RequestError(f"{name} is {count}, more than the {limit} that are allowed")


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise RequestError(f"{name}={_show(value)} must be a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON lets through
        raise RequestError(f"{name} is not valid Unicode: {error.reason}") from error


def _check_strings(name: str, value: object, max_count: int, max_chars: int) -> None:
    if value is None:
        return
    if not isinstance(value, (str, list)):
        raise RequestError(f"{name}={_show(value)} must be a string or a list of strings")
    texts = [value] if isinstance(value, str) else value
    _check_count(f"the number of {name} strings", len(texts), max_count)
    for text in texts:
        _check_text(name, text)
        _check_count(f"the length of a {name} string", len(text), max_chars)
        if not text:
            raise RequestError(f"{name} must not contain an empty string")


def _check_regex(name: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise RequestError(
            f"{name}={_show(pattern)} is not a regular expression: {error}"
        ) from error


def _check_token_id(name: str, token: object, vocab_size: int | None) -> None:
    if isinstance(token, bool) or not isinstance(token, int) or token < 0:
        raise RequestError(f"{name} holds {_show(token)}, which is not a token id")
    if token >= (vocab_size if vocab_size is not None else 2**31):
        raise RequestError(f"{name} holds {_show(token)}, outside the vocabulary of {vocab_size}")


def _check_json(name: str, text: str) -> None:
    if _nesting_depth(text) > MAX_SCHEMA_DEPTH:
        raise RequestError(f"{name} is nested deeper than the {MAX_SCHEMA_DEPTH} levels allowed")
    try:
        json.loads(text)
    except ValueError as error:
        raise RequestError(f"{name} is not valid JSON: {error}") from error


def _nesting_depth(text: str) -> int:
    """Depth of brackets outside string literals, found without recursion."""
    depth = deepest = 0
    for bracket in re.sub(r'"(?:[^"\\]|\\.)*"|[^][{}"]', "", text, flags=re.DOTALL):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _check_logit_bias(logit_bias: object, vocab_size: int | None) -> None:
    if logit_bias is None:
        return
    if not isinstance(logit_bias, Mapping):
        raise RequestError(f"logit_bias={_show(logit_bias)} must map token ids to numbers")
    _check_count("the number of logit_bias entries", len(logit_bias), MAX_LOGIT_BIAS_ENTRIES)
    for token, bias in logit_bias.items():
        # JSON has only string keys; one spelling per id, so no id can be given twice.
        if isinstance(token, str) and re.fullmatch(r"0|[1-9][0-9]{0,9}", token):
            token = int(token)
        _check_token_id("logit_bias", token, vocab_size)
        _check_float(f"logit_bias[{token}]", bias, -1e30, 1e30)


def _check_custom_params(custom_params: object) -> None:
    if custom_params is None:
        return
    if not isinstance(custom_params, dict):
        raise RequestError(f"custom_params={_show(custom_params)} must be an object")
    try:
        encoded = msgspec.msgpack.encode(custom_params)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise RequestError(f"custom_params holds a value that cannot be sent: {error}") from error
    _check_count("the size of custom_params in bytes", len(encoded), MAX_CUSTOM_PARAMS_BYTES)
