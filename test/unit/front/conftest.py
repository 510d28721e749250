"""Lets the tests of this folder import its helper modules by name, and gives them a front over a scripted scheduler."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import tiny_tokenizers  # noqa: E402
from scripted_scheduler import ScriptedScheduler  # noqa: E402

from sglang.srt.managers.scheduler_client import SchedulerClient  # noqa: E402
from sglang.srt.managers.tokenizer_manager import TokenizerManager  # noqa: E402
from sglang.srt.observability.metrics import FrontMetrics  # noqa: E402
from sglang.srt.server_args import PortArgs, ServerArgs  # noqa: E402


@dataclasses.dataclass
class Setup:
    manager: TokenizerManager
    scheduler: ScriptedScheduler


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A folder with a tokenizer and a config, no weights."""
    folder = tmp_path_factory.mktemp("model")
    tiny_tokenizers.word_level().save_pretrained(folder)
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 110}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.fixture
def make_front(model_folder):
    """Builds a tokenizer manager; keywords are flags, `tokenizer` replaces the one-token-per-word one."""
    cleanups = []

    def make(tokenizer="word_level", **flags):
        server_args = ServerArgs(model_path=model_folder, **flags)
        ports = PortArgs.init_new(server_args)
        cleanups.append(ports.cleanup)
        client = SchedulerClient(ports.scheduler_input_ipc_name, ports.tokenizer_ipc_name)
        scheduler = ScriptedScheduler(ports).start()
        info = client.wait_ready(lambda: None)
        loaded = getattr(tiny_tokenizers, tokenizer)() if tokenizer else None
        metrics = FrontMetrics.from_server_args(server_args)
        manager = TokenizerManager(server_args, client, info, loaded, metrics=metrics)
        cleanups.append(lambda: (manager.close(), scheduler.stop()))
        return Setup(manager, scheduler)

    yield make
    for cleanup in reversed(cleanups):
        cleanup()
