"""Where the prompts of a benchmark come from. Everything is made from the seed or read from a local file."""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

from sglang.srt.utils.errors import ConfigError

Messages = list[dict[str, Any]]
Prompt = str | list[int] | Messages
Args = TypeVar("Args", bound="DatasetArgs")

# Decoding random ids and encoding the text again rarely gives as many ids at once.
MAX_LENGTH_ROUNDS = 8
MIN_SHAREGPT_LEN = 4
DEFAULT_CUSTOM_OUTPUT_LEN = 256


@dataclasses.dataclass(frozen=True)
class BenchRequest:
    """One prompt (text, token ids or chat messages); lengths in tokens, without pictures.

    With pictures (`images`: data URLs), `messages` is the same for chat routes.
    """

    prompt: Prompt
    prompt_len: int
    output_len: int
    messages: Messages | None = None
    images: tuple[str, ...] = ()


@dataclasses.dataclass
class DatasetArgs:
    """The dataset flags, shared by the serving and the offline benchmark."""

    dataset_name: str = "sharegpt"
    dataset_path: str = ""
    num_prompts: int = 1000
    sharegpt_output_len: int | None = None
    sharegpt_context_len: int | None = None
    random_input_len: int = 1024
    random_output_len: int = 1024
    random_range_ratio: float = 0.0
    gsp_num_groups: int = 64
    gsp_prompts_per_group: int = 16
    gsp_system_prompt_len: int = 2048
    gsp_question_len: int = 128
    gsp_output_len: int = 256
    gsp_range_ratio: float = 1.0
    gsp_ordered: bool = False
    gsp_fast_prepare: bool = False
    prompt_suffix: str = ""
    apply_chat_template: bool = False
    tokenize_prompt: bool = False
    seed: int = 1

    @staticmethod
    def add_cli_args(parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group("dataset")
        add = group.add_argument
        add("--dataset-name", choices=list(DATASETS), default="sharegpt")
        add("--dataset-path", default="", help="local file: ShareGPT JSON, or JSON lines")
        add("--num-prompts", type=int, default=1000)
        add("--sharegpt-output-len", type=int, help="output length instead of the dataset's")
        add("--sharegpt-context-len", type=int, help="leave out what is longer than this")
        add("--random-input-len", type=int, default=1024)
        add("--random-output-len", type=int, default=1024)
        add("--random-range-ratio", type=float, default=0.0, help="shortest length / longest")
        for name, default in _GSP_DEFAULTS.items():
            add(f"--gsp-{name}", type=type(default), default=default)
        add("--gsp-ordered", action="store_true", help="keep the groups together")
        add("--gsp-fast-prepare", action="store_true", help="do not measure prompt lengths")
        add("--prompt-suffix", default="", help="appended to every prompt")
        add("--apply-chat-template", action="store_true")
        add("--tokenize-prompt", action="store_true", help="send token ids, exact in length")
        add("--seed", type=int, default=1)

    @classmethod
    def from_cli_args(cls: type[Args], namespace: argparse.Namespace) -> Args:
        return cls(**{f.name: getattr(namespace, f.name) for f in dataclasses.fields(cls)})


def sample_requests(args: DatasetArgs, tokenizer: Any) -> list[BenchRequest]:
    """The requests of a run: the same for the same flags. Raises ConfigError for a dataset that cannot be had."""
    if args.dataset_name not in DATASETS:
        raise ConfigError(f"dataset {args.dataset_name!r} is none of {', '.join(DATASETS)}")
    if args.num_prompts < 1:
        raise ConfigError(f"num_prompts={args.num_prompts} must be at least 1")
    for name in ("random_range_ratio", "gsp_range_ratio"):
        if not 0.0 <= getattr(args, name) <= 1.0:
            raise ConfigError(f"{name}={getattr(args, name)} must be from 0 to 1")
    requests = DATASETS[args.dataset_name](args, PromptMaker(args, tokenizer))
    if not requests:
        raise ConfigError(
            f"dataset {args.dataset_name} {args.dataset_path!r} gives no usable prompt"
        )
    return requests


class PromptMaker:
    """Random tokens and finished requests in the form that the flags ask for."""

    def __init__(self, args: DatasetArgs, tokenizer: Any) -> None:
        self._args = args
        self._tokenizer = tokenizer
        self.rng = np.random.default_rng(args.seed)
        added = tokenizer.added_tokens_decoder.items()  # placeholders of pictures among them
        special = {*tokenizer.all_special_ids, *(i for i, token in added if token.special)}
        self._vocabulary = np.array([i for i in range(len(tokenizer)) if i not in special])

    def lengths(self, longest: int, ratio: float, count: int) -> list[int]:
        """Uniform from `ratio * longest` to `longest`, at least 1."""
        return self.rng.integers(max(int(longest * ratio), 1), longest + 1, count).tolist()

    def random_ids(self, count: int) -> list[int]:
        return self.rng.choice(self._vocabulary, count).tolist()

    def random_text(self, count: int) -> str:
        """Text that encodes to `count` ids, or as near as a few rounds get."""
        return self.text_of(self.random_ids(count), count)

    def text_of(self, ids: list[int], count: int) -> str:
        """Text of `ids`, mended until it encodes to `count` ids."""
        for _ in range(MAX_LENGTH_ROUNDS):
            text = self._tokenizer.decode(ids)
            again = self.encode(text)
            if len(again) == count:
                return text
            ids = (
                again[:count] if len(again) > count else again + self.random_ids(count - len(again))
            )
        return self._tokenizer.decode(ids)

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def prefix_and_random(self, prefix: str | list[int], count: int) -> str | list[int]:
        """`prefix` followed by `count` random tokens."""
        if isinstance(prefix, list):
            return prefix + self.random_ids(count)
        return f"{prefix}\n\n{self.random_text(count)}"

    def random_piece(self, count: int) -> str | list[int]:
        return self.random_ids(count) if self._args.tokenize_prompt else self.random_text(count)

    def finish(self, prompt: Prompt, output_len: int, known_len: int | None = None) -> BenchRequest:
        """Apply suffix and template, turn into ids when asked, and measure (unless `known_len` says it)."""
        args = self._args
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], int):
            return BenchRequest(prompt, len(prompt), output_len)
        if isinstance(prompt, str):
            prompt += args.prompt_suffix
        if args.apply_chat_template:
            prompt = self._templated(prompt)
        if not isinstance(prompt, str):
            return BenchRequest(prompt, self._message_len(prompt), output_len)
        if args.tokenize_prompt:
            ids = self._tokenizer.encode(prompt)
            return BenchRequest(ids, len(ids), output_len)
        length = len(self._tokenizer.encode(prompt)) if known_len is None else known_len
        return BenchRequest(prompt, length, output_len)

    def _templated(self, prompt: Prompt) -> str:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        try:
            text = self._tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False
            )
        except ValueError as error:
            raise ConfigError(f"--apply-chat-template: {error}") from error
        # The server adds the first token again.
        return text.removeprefix(self._tokenizer.bos_token or "")

    def _message_len(self, messages: Any) -> int:
        texts = [message.get("content") for message in messages]
        return sum(len(self.encode(text)) for text in texts if isinstance(text, str))


def _random_ids(args: DatasetArgs, maker: PromptMaker) -> list[BenchRequest]:
    """Uniformly random lengths and tokens."""
    count, ratio = args.num_prompts, args.random_range_ratio
    inputs = maker.lengths(args.random_input_len, ratio, count)
    outputs = maker.lengths(args.random_output_len, ratio, count)
    pairs = zip(inputs, outputs, strict=True)
    return [maker.finish(maker.random_piece(length), output) for length, output in pairs]


def _random(args: DatasetArgs, maker: PromptMaker) -> list[BenchRequest]:
    """Uniformly random lengths, filled with ShareGPT texts when there is a file, else with random tokens."""
    if not args.dataset_path:
        print("no --dataset-path: the prompts are random tokens, as with --dataset-name random-ids")
        return _random_ids(args, maker)
    texts = [turns[0] for turns in _sharegpt_turns(args)]
    random.Random(args.seed).shuffle(texts)
    count, ratio = args.num_prompts, args.random_range_ratio
    inputs = maker.lengths(args.random_input_len, ratio, count)
    outputs = maker.lengths(args.random_output_len, ratio, count)
    requests = []
    for index, (length, output) in enumerate(zip(inputs, outputs, strict=True)):
        ids = maker.encode(texts[index % len(texts)])
        ids = (ids * (length // max(len(ids), 1) + 1))[:length] or maker.random_ids(length)
        prompt = ids if args.tokenize_prompt else maker.text_of(ids, length)
        requests.append(maker.finish(prompt, output))
    return requests


def _sharegpt(args: DatasetArgs, maker: PromptMaker) -> list[BenchRequest]:
    """First question of each conversation; the output length is that of its answer."""
    conversations = list(_sharegpt_turns(args))
    random.Random(args.seed).shuffle(conversations)
    requests: list[BenchRequest] = []
    for question, answer in conversations:
        if len(requests) == args.num_prompts:
            break
        request = maker.finish(question, args.sharegpt_output_len or len(maker.encode(answer)))
        total = request.prompt_len + request.output_len
        fits = args.sharegpt_context_len is None or total <= args.sharegpt_context_len
        if fits and min(request.prompt_len, request.output_len) >= MIN_SHAREGPT_LEN:
            requests.append(request)
    return requests


def _generated_shared_prefix(args: DatasetArgs, maker: PromptMaker) -> list[BenchRequest]:
    """Groups of prompts that begin alike; `num_prompts` plays no part."""
    groups, each, ratio = args.gsp_num_groups, args.gsp_prompts_per_group, args.gsp_range_ratio
    requests = []
    for prefix_len in maker.lengths(args.gsp_system_prompt_len, ratio, groups):
        prefix = maker.random_piece(prefix_len)
        questions = maker.lengths(args.gsp_question_len, ratio, each)
        outputs = maker.lengths(args.gsp_output_len, ratio, each)
        for question_len, output_len in zip(questions, outputs, strict=True):
            known = prefix_len + question_len if args.gsp_fast_prepare else None
            prompt = maker.prefix_and_random(prefix, question_len)
            requests.append(maker.finish(prompt, output_len, known))
    if not args.gsp_ordered:
        random.Random(args.seed).shuffle(requests)
    return requests


def _custom(args: DatasetArgs, maker: PromptMaker) -> list[BenchRequest]:
    """JSON lines: `{"prompt": text, "output_len"?: n}`, or `{"conversations": [...]}` as in ShareGPT."""
    requests = []
    for number, line in _json_lines(args):
        if "prompt" in line:
            prompt, answer_len = line["prompt"], line.get("output_len", DEFAULT_CUSTOM_OUTPUT_LEN)
        else:
            turns = _turns(line)
            if len(turns) < 2:
                raise _bad_line(args, number, "'prompt', or 'conversations' with two turns")
            prompt, answer_len = turns[0], len(maker.encode(turns[1]))
        requests.append(maker.finish(prompt, args.sharegpt_output_len or max(answer_len, 1)))
        if len(requests) == args.num_prompts:
            break
    return requests


def _openai(args: DatasetArgs, maker: PromptMaker) -> list[BenchRequest]:
    """JSON lines of chat bodies: `{"messages": [...], "max_tokens"?: n}`; for chat backends."""
    requests = []
    for number, line in _json_lines(args):
        if not isinstance(line.get("messages"), list) or not line["messages"]:
            raise _bad_line(args, number, "a list 'messages'")
        limit = line.get("max_completion_tokens") or line.get("max_tokens")
        output_len = args.sharegpt_output_len or limit or DEFAULT_CUSTOM_OUTPUT_LEN
        requests.append(maker.finish(line["messages"], output_len))
        if len(requests) == args.num_prompts:
            break
    return requests


DATASETS: dict[str, Callable[[DatasetArgs, PromptMaker], list[BenchRequest]]] = {
    "sharegpt": _sharegpt,
    "custom": _custom,
    "openai": _openai,
    "random": _random,
    "random-ids": _random_ids,
    "generated-shared-prefix": _generated_shared_prefix,
}
_GSP_DEFAULTS: dict[str, int | float] = {
    "num-groups": 64,
    "prompts-per-group": 16,
    "system-prompt-len": 2048,
    "question-len": 128,
    "output-len": 256,
    "range-ratio": 1.0,
}


# Files


def _sharegpt_turns(args: DatasetArgs) -> Iterator[tuple[str, str]]:
    """(question, answer) of every conversation with at least two turns."""
    if not args.dataset_path:
        raise ConfigError(
            f"--dataset-name {args.dataset_name} reads a local ShareGPT file: give --dataset-path FILE.json; "
            "nothing is downloaded. --dataset-name random-ids needs no file"
        )
    content = _read(args.dataset_path)
    try:
        conversations = json.loads(content)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{args.dataset_path} is not valid JSON: {error}") from error
    for conversation in conversations:
        turns = _turns(conversation)
        if len(turns) >= 2:
            yield turns[0], turns[1]


def _turns(conversation: dict[str, Any]) -> list[str]:
    turns = conversation.get("conversations") or conversation.get("conversation") or []
    texts = [turn.get("value", turn.get("content")) for turn in turns]
    return [text for text in texts if isinstance(text, str)]


def _json_lines(args: DatasetArgs) -> Iterator[tuple[int, dict[str, Any]]]:
    if not args.dataset_path:
        raise ConfigError(f"--dataset-name {args.dataset_name} needs --dataset-path FILE.jsonl")
    for number, line in enumerate(_read(args.dataset_path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise _bad_line(args, number, f"JSON ({error})") from error
        if not isinstance(value, dict):
            raise _bad_line(args, number, "a JSON object")
        yield number, value


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError as error:
        raise ConfigError(f"--dataset-path: cannot read {path!r}: {error.strerror}") from error


def _bad_line(args: DatasetArgs, number: int, wanted: str) -> ConfigError:
    return ConfigError(f"{args.dataset_path}:{number}: expected {wanted}")
