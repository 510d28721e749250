"""How a flag is declared: one annotated dataclass field with `flag(...)`; the command line, the documentation
and the checks are derived from it.

    page_size: int = flag(1, "Tokens per page of the KV cache.", minimum=1)
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import functools
import json
import math
import types
import typing
from collections.abc import Callable
from typing import Any

from sglang.srt.utils.errors import ConfigError


class Status(enum.Enum):
    """What a value other than the default does."""

    IMPLEMENTED = "implemented"
    ACCEPTED = "accepted"  # nothing to do here yet, and leaving it undone changes no result
    REFUSED = "refused"  # an error: the subject is not implemented
    IGNORED = "ignored"  # a warning: vendor specific or deprecated


IMPLEMENTED, ACCEPTED, REFUSED, IGNORED = Status


@dataclasses.dataclass(frozen=True)
class FlagSpec:
    """The declaration of one flag, joined with its field's name, type and default."""

    name: str
    kind: type  # bool, int, float, str, or dict for JSON objects and object for Python values
    is_list: bool
    optional: bool
    default: Any
    help: str
    options: tuple[
        str, ...
    ]  # long options, the preferred one first; empty: not on the command line
    choices: tuple[Any, ...] | None
    supports: tuple[Any, ...] | None  # choices that work; None: all of them
    status: Status
    tier: str
    minimum: float | None
    maximum: float | None
    is_json: bool
    secret: bool

    @property
    def option(self) -> str:
        """How messages call the flag."""
        return self.options[0] if self.options else self.name


def flag(
    default: Any,
    help: str,
    *,
    status: Status = IMPLEMENTED,
    tier: str = "T1",
    choices: tuple[Any, ...] | None = None,
    supports: tuple[Any, ...] | None = None,
    aliases: tuple[str, ...] = (),
    option: str | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    is_json: bool = False,
    cli: bool = True,
    secret: bool = False,
) -> Any:
    """Declare a flag as a dataclass field.

    Args:
        default: value when it is not given; a list or dict is copied per instance.
        status: what a non-default value does.
        tier: how soon a user expects it, T1 to T4.
        choices: every value that parses.
        supports: the choices that are implemented; the others are refused by name.
        aliases: further long options.
        option: the long option, when it is not the field's name with dashes.
        minimum, maximum: inclusive range of a number.
        is_json: a string that must hold JSON.
        cli: False for a value that only Python callers can give.
        secret: never printed, logged or answered.
    """
    declared = {
        "help": help,
        "status": status,
        "tier": tier,
        "choices": choices,
        "supports": supports,
        "aliases": aliases,
        "option": option,
        "minimum": minimum,
        "maximum": maximum,
        "is_json": is_json,
        "cli": cli,
        "secret": secret,
    }
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=declared)
    return dataclasses.field(default=default, metadata=declared, repr=not secret)


def flag_specs(args_class: type) -> dict[str, FlagSpec]:
    """Field name -> specification, computed once per class; subclasses may add flags."""
    return _flag_specs(args_class)


@functools.cache
def _flag_specs(args_class: Any) -> dict[str, FlagSpec]:
    hints = typing.get_type_hints(args_class)
    return {f.name: _spec(f, hints[f.name]) for f in dataclasses.fields(args_class) if f.metadata}


def _spec(field: dataclasses.Field, hint: Any) -> FlagSpec:
    declared = dict(field.metadata)
    kind, is_list, optional = _analyse_type(hint)
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    preferred = declared.pop("option") or "--" + field.name.replace("_", "-")
    aliases = declared.pop("aliases")
    options = (preferred, *aliases) if declared.pop("cli") else ()
    return FlagSpec(
        name=field.name,
        kind=kind,
        is_list=is_list,
        optional=optional,
        default=default,
        options=options,
        **declared,
    )


def _analyse_type(hint: Any) -> tuple[type, bool, bool]:
    """`list[int] | None` -> (int, True, True)."""
    members = [hint]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        members = list(typing.get_args(hint))
    optional = type(None) in members
    concrete = [m for m in members if m is not type(None)]
    if len(concrete) != 1:
        return object, False, optional
    if typing.get_origin(concrete[0]) is list:
        return typing.get_args(concrete[0])[0], True, optional
    return typing.get_origin(concrete[0]) or concrete[0], False, optional


# Command line


def add_flags(parser: argparse.ArgumentParser, args_class: type) -> None:
    """Add every flag, one argument group per topic."""
    for title, specs in flags_by_topic(args_class).items():
        group = parser.add_argument_group(title)
        for spec in specs:
            if spec.options:
                group.add_argument(*spec.options, **_argparse_keywords(spec))


def flags_by_topic(args_class: type) -> dict[str, list[FlagSpec]]:
    """Title -> flags; the title is the first docstring line of the dataclass that declares them."""
    specs = flag_specs(args_class)
    topics: dict[str, list[FlagSpec]] = {}
    for owner in args_class.__mro__:
        names = [n for n in vars(owner).get("__annotations__", {}) if n in specs]
        if names:
            title = (owner.__doc__ or owner.__name__).strip().splitlines()[0].rstrip(".")
            topics.setdefault(title, []).extend(specs[n] for n in names)
    return topics


def _argparse_keywords(spec: FlagSpec) -> dict[str, Any]:
    keywords: dict[str, Any] = {
        "dest": spec.name,
        "default": spec.default,
        "help": _help_text(spec).replace("%", "%%"),
    }
    if spec.kind is bool:
        return keywords | {"action": "store_true"}
    keywords["type"] = json_object if spec.kind is dict else spec.kind
    if spec.is_list:
        keywords["nargs"] = "+"
    if spec.choices:
        keywords["choices"] = list(spec.choices)
    else:
        keywords["metavar"] = spec.name.rsplit("_", 1)[-1].upper()
    return keywords


def _help_text(spec: FlagSpec) -> str:
    words = [spec.help]
    if spec.default not in (None, False, "", [], {}):
        words.append(f"Default: {spec.default}.")
    if spec.status is REFUSED:
        words.append("[not implemented]")
    elif spec.status is IGNORED:
        words.append("[ignored]")
    elif spec.supports is not None and set(spec.supports) != set(spec.choices or ()):
        words.append(f"[implemented: {_words(spec.supports)}]")
    return " ".join(words)


def json_object(text: str) -> dict:
    """Parse a flag whose value is a JSON object; argparse turns the error into a usage message."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    return value


# Values


def check_value(spec: FlagSpec, value: Any) -> None:
    """Raise ConfigError when a value has the wrong type, is no choice, is out of range or is no JSON."""
    if value is None and spec.optional:
        return
    if spec.is_list and not isinstance(value, (list, tuple)):
        raise ConfigError(f"{spec.option} {value!r} must be a list")
    for item in value if spec.is_list else [value]:
        _check_type(spec, item)
        if spec.choices and item not in spec.choices:
            raise ConfigError(f"{spec.option} {item!r} is unknown; allowed: {_words(spec.choices)}")
        _check_range(spec, item)
    if spec.is_json:
        _check_json(spec, value)


def _check_type(spec: FlagSpec, item: Any) -> None:
    if spec.kind is object or not isinstance(spec.kind, type):
        return
    accepted = (int, float) if spec.kind is float else spec.kind
    wrong_bool = isinstance(item, bool) and spec.kind is not bool
    if wrong_bool or not isinstance(item, accepted):
        raise ConfigError(f"{spec.option} {item!r} must be of type {spec.kind.__name__}")


def _check_range(spec: FlagSpec, item: Any) -> None:
    if spec.kind is float and not math.isfinite(item):
        raise ConfigError(f"{spec.option} {item!r} must be a finite number")
    if spec.minimum is not None and item < spec.minimum:
        raise ConfigError(f"{spec.option} {item!r} must be at least {spec.minimum}")
    if spec.maximum is not None and item > spec.maximum:
        raise ConfigError(f"{spec.option} {item!r} must be at most {spec.maximum}")


def _check_json(spec: FlagSpec, value: str) -> None:
    try:
        parsed = json.loads(value)
    except ValueError as error:
        raise ConfigError(f"{spec.option} {value!r} is not JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise ConfigError(f"{spec.option} {value!r} must be a JSON object")


def check_status(spec: FlagSpec, value: Any, warn: Callable[[str], None]) -> None:
    """Refuse or warn about a value that differs from the default, as the flag's status says."""
    if value == spec.default or value is False:  # False turns off what is off already
        return
    if spec.status is REFUSED:
        raise ConfigError(
            f"{spec.option} {_shown(value)} is not implemented; "
            f"leave it at its default ({_shown(spec.default)})"
        )
    if spec.supports is not None and value is not None:
        for item in value if spec.is_list else [value]:
            if item not in spec.supports:
                raise ConfigError(
                    f"{spec.option} {item} is not implemented; use one of: {_words(spec.supports)}"
                )
    if spec.status is IGNORED:
        warn(f"{spec.option} {_shown(value)} is ignored: it has no meaning in this implementation")


def _shown(value: Any) -> str:
    return "unset" if value is None else str(value)


def _words(values: tuple[Any, ...]) -> str:
    return ", ".join(str(v) for v in values)
