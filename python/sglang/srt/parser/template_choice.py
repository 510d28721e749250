"""Which chat template a server answers with: `--chat-template NAME`, a .jinja or .json file, a plug-in's, or the tokenizer's own."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

from sglang.srt.parser.conversation import (
    Conversation,
    SeparatorStyle,
    chat_template_exists,
    chat_templates,
    get_conv_template_by_model_path,
    register_conv_template,
)
from sglang.srt.plugins import find_plugins
from sglang.srt.utils.errors import ConfigError

logger = logging.getLogger(__name__)

TEMPLATE_GROUP = "sglang.chat_templates"
_JINJA_SUFFIXES = (".jinja", ".jinja2", ".j2")
_JSON_KEYS = ("name", "system", "user", "assistant", "sep_style", "stop_str")


@dataclasses.dataclass(frozen=True)
class TemplateChoice:
    """At most one of the two is set; neither: the tokenizer's own template."""

    conversation: str | None = None  # name of a conversation template
    jinja: str | None = None  # text of a Jinja template


def choose_template(chat_template: str | None, model_path: str) -> TemplateChoice:
    """Resolve `--chat-template`, or find a conversation for the model's path when it is not given.

    Raises ConfigError for a name that is neither registered nor a file.
    """
    load_plugin_templates()
    if chat_template is None:
        return TemplateChoice(conversation=get_conv_template_by_model_path(model_path))
    if chat_template_exists(chat_template):
        return TemplateChoice(conversation=chat_template)
    path = Path(chat_template)
    if path.suffix in _JINJA_SUFFIXES:
        return TemplateChoice(jinja=_read(path))
    if path.suffix == ".json":
        return TemplateChoice(conversation=register_template_file(path))
    raise ConfigError(
        f"--chat-template {chat_template!r} is neither the name of a conversation template nor a .jinja or .json file; "
        f"names: {', '.join(sorted(chat_templates))}"
    )


def register_template_file(path: Path) -> str:
    """Register the template of a JSON file and return its name. Raises ConfigError for a file that is none."""
    try:
        values = json.loads(_read(path))
    except json.JSONDecodeError as error:
        raise ConfigError(f"--chat-template {str(path)!r} is not valid JSON: {error}") from error
    missing = [key for key in _JSON_KEYS if not isinstance(values, dict) or key not in values]
    if missing:
        raise ConfigError(f"--chat-template {str(path)!r} lacks {', '.join(missing)}")
    register_conv_template(_from_json(values, path), override=True)
    return values["name"]


def load_plugin_templates() -> None:
    """Let installed packages register their templates. A plug-in that fails is logged and left out."""
    for plugin in find_plugins(TEMPLATE_GROUP):
        try:
            found = plugin.load()
        except Exception as error:  # foreign code: whatever it raises must not stop the server
            logger.warning("The %s was left out: %s: %s", plugin, type(error).__name__, error)
            continue
        if isinstance(found, Conversation):
            register_conv_template(found, override=True)


def _from_json(values: dict[str, Any], path: Path) -> Conversation:
    style = str(values["sep_style"])
    if style not in SeparatorStyle.__members__:
        raise ConfigError(
            f"--chat-template {str(path)!r}: sep_style {style!r} is unknown; "
            f"allowed: {', '.join(SeparatorStyle.__members__)}"
        )
    return Conversation(
        name=values["name"],
        system_template=values["system"] + "\n{system_message}",
        system_message=values.get("system_message", ""),
        roles=(values["user"], values["assistant"]),
        sep_style=SeparatorStyle[style],
        sep=values.get("sep", "\n"),
        stop_str=values["stop_str"],
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--chat-template {str(path)!r} cannot be read: {error}") from error
