"""What every route can reach: the engine, the handlers of the OpenAI routes, and whether the server is up."""

from __future__ import annotations

import dataclasses
import enum
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from sglang.srt.entrypoints.openai.chat_template import ChatTemplates
from sglang.srt.entrypoints.openai.sampling_fields import model_defaults
from sglang.srt.entrypoints.openai.serving_base import ServingSettings, now
from sglang.srt.entrypoints.openai.serving_chat import ChatServing
from sglang.srt.entrypoints.openai.serving_completions import CompletionServing
from sglang.srt.entrypoints.openai.serving_models import ModelServing
from sglang.srt.entrypoints.openai.serving_tokenize import TokenizeServing
from sglang.srt.utils.hf_transformers_utils import get_generation_config

if TYPE_CHECKING:
    from sglang.srt.managers.tokenizer_manager import TokenizerManager
    from sglang.srt.server_args import ServerArgs


class ServerStatus(enum.Enum):
    """`/health` answers 200 only in `READY`."""

    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"


@dataclasses.dataclass
class ServerState:
    """One per app, in `app.state.server`."""

    manager: TokenizerManager
    server_args: ServerArgs
    chat: ChatServing
    completions: CompletionServing
    models: ModelServing
    tokenize: TokenizeServing
    status: ServerStatus = ServerStatus.STARTING

    @classmethod
    def build(cls, manager: TokenizerManager, server_args: ServerArgs) -> ServerState:
        """Raises ConfigError for a chat template that cannot be used."""
        settings = _settings(manager, server_args)
        templates = None
        if manager.tokenizer is not None:
            templates = ChatTemplates.load(
                manager.tokenizer,
                server_args.chat_template,
                server_args.hf_chat_template_name,
                str(server_args.model_path),
            )
        return cls(
            manager=manager,
            server_args=server_args,
            chat=ChatServing(manager, templates, settings),
            completions=CompletionServing(manager, settings),
            models=ModelServing(settings),
            tokenize=TokenizeServing(manager.tokenizer, settings),
        )


def server_state(request: Request) -> ServerState:
    """The state of the app that a request came to."""
    return request.app.state.server


def _settings(manager: TokenizerManager, server_args: ServerArgs) -> ServingSettings:
    defaults: dict[str, Any] = {}
    model_path = str(server_args.model_path)
    if server_args.sampling_defaults == "model":
        defaults = model_defaults(get_generation_config(model_path, server_args.revision))
    return ServingSettings(
        served_model_name=server_args.served_model_name or model_path,
        context_len=manager.context_len,
        sampling_defaults=defaults,
        report_cached=server_args.enable_cache_report,
        weight_version=server_args.weight_version,
        created=now(),
        takes_media=_takes_media(manager.model_info),
    )


def _takes_media(model_info: dict[str, Any]) -> bool:
    return any(model_info.get(f"has_{kind}_understanding") for kind in ("image", "audio"))
