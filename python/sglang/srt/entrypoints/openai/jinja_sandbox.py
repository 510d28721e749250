"""The one place that builds a Jinja environment.

Chat templates come with model files, so they are untrusted programs: the environment is sandboxed and immutable, and a
rendering has a deadline and a size limit. The deadline is checked at every call, attribute and item access and at
every piece of output, which any loop that runs for long passes through (`range` is capped by the sandbox).
"""

from __future__ import annotations

import contextvars
import dataclasses
import datetime
import functools
import json
import re
import time
from collections.abc import Callable
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sglang.srt.utils.errors import RequestError

MAX_RENDER_SECONDS = 10.0
MAX_RENDER_CHARS = 32 * 1024 * 1024


class TemplateLimitError(Exception):
    """A rendering ran out of time or produced too much."""


@dataclasses.dataclass(frozen=True)
class RenderLimits:
    """What one rendering may use."""

    seconds: float = MAX_RENDER_SECONDS
    chars: int = MAX_RENDER_CHARS


# Filters whose result is as large as a number says.
_WIDTH_FILTERS = ("batch", "center", "format", "indent", "slice", "truncate", "wordwrap")

_deadline: contextvars.ContextVar[float] = contextvars.ContextVar("deadline")
_max_chars: contextvars.ContextVar[int] = contextvars.ContextVar("max_chars")


def compile_template(source: str) -> jinja2.Template:
    """Compile a template. Raises `jinja2.TemplateSyntaxError`."""
    return _environment().from_string(source)


def render_template(
    template: jinja2.Template, variables: dict[str, Any], limits: RenderLimits | None = None
) -> str:
    """Render within the limits.

    Raises:
        RequestError: whatever went wrong inside the template, as a message for the client.
    """
    limits = limits or RenderLimits()
    return contextvars.copy_context().run(_render, template, variables, limits)


def _render(template: jinja2.Template, variables: dict[str, Any], limits: RenderLimits) -> str:
    _deadline.set(time.monotonic() + limits.seconds)
    _max_chars.set(limits.chars)
    pieces: list[str] = []
    num_chars = 0
    try:
        for piece in template.generate(variables):
            _check_deadline()
            num_chars += len(piece)
            if num_chars > limits.chars:
                raise TemplateLimitError(f"it produced more than {limits.chars} characters")
            pieces.append(piece)
    except TemplateLimitError as error:
        raise RequestError(f"the chat template was stopped: {error}") from error
    except MemoryError as error:
        raise RequestError("the chat template was stopped: it ran out of memory") from error
    except Exception as error:  # the template is foreign code: any of its errors is the request's
        raise RequestError(
            f"the chat template failed on this request: {_describe(error)}"
        ) from error
    return "".join(pieces)


def _describe(error: Exception) -> str:
    text = str(error) or type(error).__name__
    if not isinstance(error, jinja2.TemplateError):
        text = f"{type(error).__name__}: {text}"
    return text if len(text) <= 500 else text[:500] + "..."


def _check_deadline() -> None:
    # Outside a rendering (constant folding while compiling) there is no deadline.
    if time.monotonic() > _deadline.get(float("inf")):
        raise TemplateLimitError("it took too long")


class _Sandbox(ImmutableSandboxedEnvironment):
    """Adds the limits to the sandbox of the library."""

    # Operators that can blow up a value in one step.
    intercepted_binops = frozenset(["*", "**", "+", "%"])

    def call(self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        _check_deadline()
        # The sandbox hands out a wrapper for str.format.
        owner = getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)
        if isinstance(owner, str):
            _check_numbers(owner, (*args, *kwargs.values()))
        return _bounded(super().call(__context, __obj, *args, **kwargs))

    def getattr(self, obj: Any, attribute: str) -> Any:
        _check_deadline()
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        _check_deadline()
        return super().getitem(obj, argument)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        _check_deadline()
        if operator == "*":
            _check_repetition(left, right)
        if operator == "**" and not (abs(left) <= 2**32 and abs(right) <= 64):
            raise TemplateLimitError("a power is too large")
        if operator == "%" and isinstance(left, str):
            _check_numbers(left, right if isinstance(right, tuple) else (right,))
        return _bounded(super().call_binop(context, operator, left, right))


def _bounded(value: Any) -> Any:
    if isinstance(value, (str, list, tuple)) and len(value) > _max_chars.get(MAX_RENDER_CHARS):
        raise TemplateLimitError("a value grew too large")
    return value


def _check_repetition(left: Any, right: Any) -> None:
    """Refuse `"a" * 10**9` before it is computed."""
    for sequence, count in ((left, right), (right, left)):
        if isinstance(sequence, (str, list, tuple)) and isinstance(count, int):
            if len(sequence) * count > _max_chars.get(MAX_RENDER_CHARS):
                raise TemplateLimitError("a value grew too large")


def _check_numbers(text: Any, args: tuple[Any, ...]) -> None:
    """Refuse `"".center(10**9)`, `"%999999999d" % 1` and their relatives before they are computed."""
    limit = _max_chars.get(MAX_RENDER_CHARS)
    too_wide = isinstance(text, str) and re.search(r"[%{][^%{}]{0,40}\d{7}", text)
    if too_wide or any(isinstance(arg, int) and abs(arg) > limit for arg in args):
        raise TemplateLimitError("a width or count is too large")


def _guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that keeps the limits. `wraps` also copies the marks that say which context it takes."""

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        _check_deadline()
        text = next((arg for arg in args if isinstance(arg, str)), None)
        _check_numbers(text, (*args, *kwargs.values()))
        return _bounded(function(*args, **kwargs))

    return guarded


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}` marks assistant text for training; here it only prints its body."""

    tags = {"generation"}

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _Namespace(jinja2.utils.Namespace):
    """The writable object of templates, without names that reach into the interpreter."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, args = args[0], args[1:]
        values = dict(*args, **kwargs)
        for name in values:
            _check_public(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_public(name)
        super().__setitem__(name, value)


def _check_public(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"the name {name!r} is not available in templates")


def _environment() -> jinja2.Environment:
    environment = _Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationTag, jinja2.ext.loopcontrols],
    )
    environment.filters["tojson"] = _tojson
    for name in _WIDTH_FILTERS:
        environment.filters[name] = _guarded(environment.filters[name])
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["namespace"] = _Namespace
    # A function instead of the type: the type would hand its methods to templates.
    environment.globals["dict"] = lambda *args, **kwargs: dict(*args, **kwargs)
    environment.globals.pop("lipsum")
    return environment


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(str(message))


def _strftime_now(format: str) -> str:
    return datetime.datetime.now().strftime(format)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, which models have not seen in training.
    if indent is not None and not 0 <= int(indent) <= 16:
        raise jinja2.TemplateError(f"tojson: indent={indent!r} must be from 0 to 16")
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
