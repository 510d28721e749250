"""What a scheduler tells the front, when it is ready, of the flags that were left open."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import pytest
from models.tiny import write_checkpoint

from sglang.srt.arg_groups.resolve import ResolvedArgs
from sglang.srt.managers.scheduler_builder import build_scheduler
from sglang.srt.server_args import ServerArgs

FLAGS: dict[str, Any] = {"device": "cpu", "max_total_tokens": 128, "skip_tokenizer_init": True}


class NoMailbox:
    """Nobody asks for anything."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_checkpoint("qwen3-tied", tmp_path_factory.mktemp("model")))


def settled_flags(folder: str, **flags: Any) -> dict[str, Any]:
    args = ServerArgs(model_path=folder, **{**FLAGS, **flags})
    scheduler, info = build_scheduler(args, NoMailbox())  # type: ignore[arg-type]
    scheduler.worker.close()
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(info)) == info
    assert args.attention_backend is None, "the user's flags stay as they are"
    return info["settled_flags"]


def test_open_flags_are_told_as_they_were_settled(folder: str) -> None:
    settled = settled_flags(folder)
    assert set(settled) <= {field.name for field in dataclasses.fields(ServerArgs)}
    expected = {
        "model_path": folder,
        "tokenizer_path": folder,
        "served_model_name": folder,
        "attention_backend": "torch_native",
        "prefill_attention_backend": "torch_native",
        "decode_attention_backend": "torch_native",
        "sampling_backend": "pytorch",
        "chunked_prefill_size": 4096,
        "disable_cuda_graph": True,
        "disable_overlap_schedule": True,
        "cuda_graph_bs": [],
        "dtype": "float32",
        "kv_cache_dtype": "float32",
        "max_total_tokens": 128,
        "quantization": None,
    }
    assert {name: settled[name] for name in expected} == expected
    assert settled["random_seed"] is not None and settled["context_length"] > 0
    open_still = {name for name, value in settled.items() if value is None}
    assert open_still == {"quantization"}


def test_what_was_given_stays(folder: str) -> None:
    given = {"kv_cache_dtype": "fp8_e5m2", "chunked_prefill_size": 32, "random_seed": 7}
    settled = settled_flags(folder, **given)
    assert {name: settled[name] for name in given} == given


def test_every_resolved_value_that_is_a_flag_is_told() -> None:
    resolved = {field.name for field in dataclasses.fields(ResolvedArgs)}
    flags = {field.name for field in dataclasses.fields(ServerArgs)}
    assert resolved - flags == {"overlap_depth", "num_cpus", "decisions"}
