"""Brings up everything behind an entry point: sockets, scheduler processes, tokenizer manager.

The scheduler starts first; the front imports its own half and loads the tokenizer while the scheduler loads the model.
"""

from __future__ import annotations

import atexit
import dataclasses
import json
import multiprocessing.util  # noqa: F401  (its exit function joins children: registered before ours, it runs after it)
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from sglang.srt.entrypoints.scheduler_processes import (
    SchedulerProcesses,
    SchedulerTarget,
    leave_if_imported_by_worker,
)
from sglang.srt.utils.errors import ConfigError

if TYPE_CHECKING:
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.managers.media_front import MediaFront
    from sglang.srt.managers.scheduler_client import SchedulerClient
    from sglang.srt.managers.tokenizer_manager import TokenizerManager
    from sglang.srt.server_args import PortArgs, ServerArgs


@dataclasses.dataclass
class Front:
    """A running engine, seen from the front. Owns its processes and socket folder until `close`."""

    tokenizer_manager: TokenizerManager
    scheduler_info: dict[str, Any]
    _processes: SchedulerProcesses
    _ports: PortArgs

    @property
    def scheduler_pids(self) -> list[int]:
        return self._processes.pids

    def close(self) -> None:
        """End the processes and remove the sockets; safe to call twice."""
        atexit.unregister(self.close)
        self._processes.mark_leaving()
        self.tokenizer_manager.close()
        self._processes.stop()
        self._ports.cleanup()


def launch_front(
    server_args: ServerArgs,
    *,
    on_scheduler_death: Callable[[str], None] | None = None,
    scheduler_target: SchedulerTarget | None = None,
    manager_class: Callable[..., TokenizerManager] | None = None,
) -> Front:
    """Start an engine and block until its model is loaded.

    Args:
        on_scheduler_death: called with the reason, in a thread, when a scheduler process ends unasked; its loop is about to
            tell every waiting call. A server then gives them a moment and ends with a non-zero code.
        scheduler_target: what the scheduler processes run; a module-level function.
        manager_class: replaces `TokenizerManager`.

    Raises RuntimeError with the scheduler's reason when it cannot start, ConfigError for a tokenizer that cannot be loaded, a model
    that cannot be cut into the ranks, and a machine other than the first, which has no engine of its own.
    """
    leave_if_imported_by_worker()
    if server_args.node_rank > 0:
        raise ConfigError(
            f"--node-rank {server_args.node_rank}: only machine 0 answers requests; on the others run "
            "`sglang serve` with the same flags"
        )
    from sglang.srt.managers.scheduler_client import SchedulerClient
    from sglang.srt.server_args import PortArgs

    config = check_ranks(server_args)
    ports = PortArgs.init_new(server_args)
    client = SchedulerClient(ports.scheduler_input_ipc_name, ports.tokenizer_ipc_name)
    processes = None
    try:
        processes = SchedulerProcesses(server_args, ports, scheduler_target)
        manager, info = _build_manager(server_args, config, client, processes, manager_class)
    except BaseException:  # also a keyboard interrupt must not leave processes behind
        if processes is not None:
            processes.kill()
        client.close()
        ports.cleanup()
        raise

    def on_death(reason: str) -> None:
        client.fail(reason)
        if on_scheduler_death is not None:
            on_scheduler_death(client.failure or reason)  # it may have said more itself

    processes.watch(on_death)
    front = Front(manager, info, processes, ports)
    atexit.register(front.close)
    return front


def check_ranks(server_args: ServerArgs) -> ModelConfig | None:
    """The model's facts, where they had to be read: None for one rank.

    Raises ConfigError, before any process starts, when the model cannot be cut into `tp_size` ranks.
    """
    if server_args.tp_size == 1:
        return None
    config = _read_facts(server_args)
    config.check_tp_size(server_args.tp_size)
    return config


def _build_manager(
    server_args: ServerArgs,
    config: ModelConfig | None,
    client: SchedulerClient,
    processes: SchedulerProcesses,
    manager_class: Callable[..., TokenizerManager] | None,
) -> tuple[TokenizerManager, dict[str, Any]]:
    # Late: the scheduler is on its way by now.
    from sglang.srt.managers.tokenizer_manager import TokenizerManager
    from sglang.srt.observability.metrics import FrontMetrics
    from sglang.srt.observability.request_logger import RequestLogger

    model_config = _read_model_config(
        server_args
    )  # first: without one nothing else is to be expected
    tokenizer = None if server_args.skip_tokenizer_init else _load_tokenizer(server_args)
    media = _build_media(server_args, model_config, config, tokenizer)
    info = client.wait_ready(processes.check_alive)
    build = manager_class or TokenizerManager
    manager = build(
        server_args,
        client,
        info,
        tokenizer,
        model_config,
        FrontMetrics.from_server_args(server_args),
        RequestLogger.from_server_args(server_args),
        **({} if media is None else {"media": media}),
    )
    return manager, info


def _load_tokenizer(server_args: ServerArgs) -> Any:
    from sglang.srt.utils.hf_transformers_utils import get_tokenizer

    return get_tokenizer(
        server_args.tokenizer_path or str(server_args.model_path),
        tokenizer_mode=server_args.tokenizer_mode,
        trust_remote_code=server_args.trust_remote_code,
        tokenizer_revision=server_args.revision,
    )


def _build_media(
    server_args: ServerArgs,
    model_config: Mapping[str, Any],
    config: ModelConfig | None,
    tokenizer: Any,
) -> MediaFront | None:
    """What prepares media, for models that take them; a text model imports none of it.

    `model_config`: the file as it is. `config`: the facts, where somebody has read them.
    """
    if tokenizer is None or not _may_take_media(server_args, model_config):
        return None
    from sglang.srt.managers.media_front import MediaFront

    return MediaFront.build(server_args, config or _read_facts(server_args), tokenizer)


def _may_take_media(server_args: ServerArgs, model_config: Mapping[str, Any]) -> bool:
    """Whether the architecture is one that can, the user's overrides included."""
    from sglang.srt.configs.model_config import is_multimodal_model

    overrides = json.loads(server_args.json_model_override_args)
    names = overrides.get("architectures") or model_config.get("architectures") or ()
    return is_multimodal_model(names)


def _read_facts(server_args: ServerArgs) -> ModelConfig:
    # Late: a text model on one rank does not need it here.
    from sglang.srt.configs.model_config import ModelConfig

    return ModelConfig(
        str(server_args.model_path),
        trust_remote_code=server_args.trust_remote_code,
        revision=server_args.revision,
        model_override_args=server_args.json_model_override_args,
        enable_multimodal=server_args.enable_multimodal,
    )


def _read_model_config(server_args: ServerArgs) -> Mapping[str, Any]:
    from sglang.srt.utils.hf_transformers_utils import read_config_dict

    return read_config_dict(str(server_args.model_path), server_args.revision)
