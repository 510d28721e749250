"""From chat messages to a prompt: the model's template, rendered and tokenized.

`ChatTemplate.encode` is pure and may run in any thread; `ChatTemplates` chooses among a tokenizer's named templates and
runs `encode` off the event loop.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Mapping
from typing import Any, Protocol

import jinja2

from sglang.srt.entrypoints.openai.chat_prompt import ChatPrompt, check_unicode
from sglang.srt.entrypoints.openai.conversation_template import ConversationTemplate
from sglang.srt.entrypoints.openai.jinja_sandbox import (
    RenderLimits,
    compile_template,
    render_template,
)
from sglang.srt.entrypoints.openai.reserved_tokens import ReservedTokens
from sglang.srt.parser.template_choice import choose_template
from sglang.srt.utils.errors import ConfigError, RequestError

# Rendering checks its own deadline; this also covers the tokenizer.
ENCODE_TIMEOUT_SECONDS = 60.0
_NUM_THREADS = 2
# What the request itself decides and `chat_template_kwargs` may not replace.
_FIXED_VARIABLES = frozenset({"messages", "tools", "add_generation_prompt", "chat_template"})
_PROBE = "a1b2c3probe"


class Template(Protocol):
    """Renders and tokenizes a conversation; see `ChatTemplate.encode`."""

    def encode(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        prefix: str = "",
    ) -> ChatPrompt: ...


class ChatTemplate:
    """One compiled template of one tokenizer.

    Raises ConfigError when the template does not compile.
    """

    def __init__(
        self,
        source: str,
        tokenizer: Any,
        reserved: ReservedTokens,
        limits: RenderLimits | None = None,
    ) -> None:
        try:
            self._template = compile_template(source)
        except jinja2.TemplateError as error:
            raise ConfigError(f"the chat template does not compile: {error}") from error
        self._tokenizer = tokenizer
        self._reserved = reserved
        self._limits = limits
        self._constants = dict(tokenizer.special_tokens_map)
        # Whether content may be a list of parts ("openai" style) and whether it may be a string.
        self.accepts_parts = self._shows([{"type": "text", "text": _PROBE}])
        self.accepts_strings = self._shows(_PROBE) or not self.accepts_parts

    def encode(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        prefix: str = "",
    ) -> ChatPrompt:
        """Render and tokenize a conversation.

        Args:
            messages: `{"role", "content", ...}`; content is a string or a list of parts: texts, and media as
                `{"type": "image"}` (or video, audio).
            tools: tool descriptions for the template.
            variables: further template variables.
            prefix: beginning of the answer, appended to the prompt.

        Raises:
            RequestError: the template refused the messages or ran out of its limits, or a message holds a special token
                that the template alters.
        """
        variables = self._fitting({"messages": messages, "tools": tools, **(variables or {})})
        if any(self._reserved.is_risky(text) for text in _strings([variables, prefix])):
            return self._encode_guarded(variables, prefix)
        text = self._render(variables) + prefix
        check_unicode(text)
        return ChatPrompt(text, list(self._tokenizer.encode(text, add_special_tokens=False)))

    def _encode_guarded(self, variables: dict[str, Any], prefix: str) -> ChatPrompt:
        guard = self._reserved.guard()
        rendered = self._render(guard.protect(variables)) + guard.protect(prefix)
        pieces = guard.pieces(rendered)
        check_unicode("".join(pieces))
        return ChatPrompt("".join(pieces), self._reserved.encode_pieces(pieces))

    def _render(self, variables: dict[str, Any]) -> str:
        variables = {
            "documents": None,
            "add_generation_prompt": True,
            **self._constants,
            **variables,
        }
        return render_template(self._template, variables, self._limits)

    def _fitting(self, variables: dict[str, Any]) -> dict[str, Any]:
        messages = [self._fitting_message(message) for message in variables["messages"]]
        return {**variables, "messages": messages}

    def _fitting_message(self, message: dict[str, Any]) -> dict[str, Any]:
        content = message.get("content")
        if isinstance(content, list) and not self.accepts_parts:
            if any(part["type"] != "text" for part in content):
                raise RequestError(
                    "this model's chat template has no place for media; start the server with --chat-template "
                    "and a template that has"
                )
            return {**message, "content": " ".join(part["text"] for part in content)}
        if isinstance(content, str) and not self.accepts_strings:
            return {**message, "content": [{"type": "text", "text": content}]}
        return message

    def _shows(self, content: Any) -> bool:
        """Whether the template prints this content as text, rather than its Python form or nothing."""
        try:
            text = self._render({"messages": [{"role": "user", "content": content}], "tools": None})
        except RequestError:
            return False
        return _PROBE in text and "'type'" not in text and '"type"' not in text


class ChatTemplates:
    """The templates that a server answers with."""

    def __init__(self, templates: Mapping[str, Template]) -> None:
        self._templates: dict[str, Template] = dict(templates)
        self._threads = concurrent.futures.ThreadPoolExecutor(_NUM_THREADS, "chat-template")

    @classmethod
    def load(
        cls,
        tokenizer: Any,
        chat_template: str | None = None,
        hf_chat_template_name: str | None = None,
        model_path: str = "",
    ) -> ChatTemplates:
        """`--chat-template`, else a conversation template that knows the model's path, else the tokenizer's own.

        Raises ConfigError for what cannot be used.
        """
        reserved = ReservedTokens(tokenizer)
        choice = choose_template(chat_template, model_path)
        if choice.conversation is not None:
            return cls({"default": ConversationTemplate(choice.conversation, tokenizer, reserved)})
        sources = _read_sources(tokenizer, choice.jinja, hf_chat_template_name)
        return cls({k: ChatTemplate(v, tokenizer, reserved) for k, v in sources.items()})

    @property
    def default(self) -> Template:
        """Raises RequestError when the model has no template."""
        if "default" not in self._templates:
            raise RequestError(
                "this model has no chat template; start the server with --chat-template, "
                "or use /v1/completions"
            )
        return self._templates["default"]

    async def encode(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        prefix: str = "",
    ) -> ChatPrompt:
        """`ChatTemplate.encode` in a thread; `variables` are the client's and are checked."""
        fixed = sorted(_FIXED_VARIABLES & set(variables or {}))
        if fixed:
            raise RequestError(f"chat_template_kwargs may not set {', '.join(fixed)}")
        template = (
            self._templates["tool_use"] if tools and "tool_use" in self._templates else self.default
        )
        work = asyncio.get_running_loop().run_in_executor(
            self._threads,
            lambda: template.encode(messages, tools=tools, variables=variables, prefix=prefix),
        )
        try:
            return await asyncio.wait_for(work, ENCODE_TIMEOUT_SECONDS)
        except asyncio.TimeoutError as error:
            raise RequestError("the chat template and tokenizer took too long") from error

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def _read_sources(
    tokenizer: Any, given: str | None, hf_chat_template_name: str | None
) -> dict[str, str]:
    """Name -> template text; the name "default" is what requests use."""
    if given is not None:
        return {"default": given}
    own = tokenizer.chat_template
    if own is None or isinstance(own, str):
        if hf_chat_template_name not in (None, "default"):
            raise ConfigError(
                f"--hf-chat-template-name {hf_chat_template_name!r}: the tokenizer has no named templates"
            )
        return {} if own is None else {"default": own}
    if hf_chat_template_name is not None:
        if hf_chat_template_name not in own:
            raise ConfigError(
                f"--hf-chat-template-name {hf_chat_template_name!r} is unknown; allowed: {', '.join(own)}"
            )
        return {"default": own[hf_chat_template_name]}
    return {name: own[name] for name in ("default", "tool_use") if name in own}


def _strings(value: Any) -> list[str]:
    """Every string in a JSON-like value, keys included, without recursion."""
    found, waiting = [], [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            found.append(item)
        elif isinstance(item, Mapping):
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, (list, tuple)):
            waiting += item
    return found
