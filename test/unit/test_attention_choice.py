"""Which attention backend serves when none is asked for: the order, what must be installed, and what gives way to the next."""

from __future__ import annotations

import dataclasses
import logging
from types import SimpleNamespace
from typing import Any

import pytest

from sglang.srt.arg_groups import attention_choice
from sglang.srt.arg_groups import resolve as resolve_module
from sglang.srt.arg_groups.attention_choice import (
    default_attention_backend,
    installed_attention_packages,
)
from sglang.srt.arg_groups.resolve import Facts, ResolvedArgs, resolve
from sglang.srt.configs.hf_config import read_facts
from sglang.srt.layers.attention.registry import why_no_kernels
from sglang.srt.managers import scheduler_builder
from sglang.srt.managers.scheduler_builder import load_runner, with_usable_attention
from sglang.srt.server_args import ServerArgs

FLASHINFER = {"flashinfer", "flashinfer_jit_cache"}
ALL = {"triton", "sgl_kernel", *FLASHINFER}
HOPPER = Facts("cuda", 141 * 1024, 16, 42, compute_capability=(9, 0))
AMPERE = dataclasses.replace(HOPPER, compute_capability=(8, 0))
CHUNKED, FULL = ["chunked_attention"] * 3, "full_attention"
PACKAGED = ("flashinfer", "fa3")
MLA = {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}


def model_config(head_dim: int = 128, is_encoder_decoder: bool = False, **changes: Any) -> Any:
    config = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 9}
    config |= {"head_dim": head_dim, **changes}
    return SimpleNamespace(
        facts=read_facts(config),
        is_encoder_decoder=is_encoder_decoder,
        hf_config=config,
        is_multimodal=False,
    )


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """What is installed: everything, until a test takes something out."""
    packages = set(ALL)
    monkeypatch.setattr(resolve_module, "installed_attention_packages", lambda: frozenset(packages))
    return packages


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Backends whose packages cannot be imported."""
    names: set[str] = set()

    def why_not(name: str) -> str | None:
        return "ImportError: undefined symbol" if name in names else None

    monkeypatch.setattr(scheduler_builder, "why_not_imported", why_not)
    return names


def usable(args: ServerArgs, facts: Facts, config: Any = None) -> ResolvedArgs:
    return with_usable_attention(args, facts, resolve(args, facts), config or model_config())


def line_of(resolved: ResolvedArgs) -> str:
    [line] = [line for line in resolved.decisions if line.startswith("attention_backend=")]
    return line


# --- order


@pytest.mark.parametrize(
    "device, capability, packages, proven, expected",
    [
        ("cuda", (9, 0), ALL, {"fa3", "flashinfer", "triton"}, "fa3"),
        ("cuda", (10, 0), ALL, {"fa3", "flashinfer", "triton"}, "flashinfer"),
        ("cuda", (8, 0), ALL, {"fa3", "flashinfer", "triton"}, "flashinfer"),
        ("cuda", (9, 0), {"triton", *FLASHINFER}, {"fa3", "flashinfer", "triton"}, "flashinfer"),
        ("cuda", (9, 0), {"triton"}, {"fa3", "flashinfer", "triton"}, "triton"),
        ("cuda", (9, 0), ALL, {"triton"}, "triton"),
        ("cuda", (9, 0), set(), {"fa3", "flashinfer", "triton"}, "torch_native"),
        ("cpu", None, ALL, {"fa3", "flashinfer", "triton"}, "torch_native"),
    ],
)
def test_default_backend(device, capability, packages, proven, expected):
    name, reason = default_attention_backend(device, capability, packages, proven)
    assert name == expected
    assert reason.startswith("works on" if expected == "torch_native" else "a GPU, and")


def test_all_that_have_run_on_a_gpu_are_chosen_unasked():
    assert default_attention_backend("cuda", (9, 0), ALL)[0] == "fa3"
    assert default_attention_backend("cuda", (8, 0), ALL)[0] == "flashinfer"


# --- flashinfer and its kernels


@pytest.mark.parametrize("missing", sorted(FLASHINFER))
def test_flashinfer_is_chosen_with_its_kernels_only(missing):
    name, reason = default_attention_backend("cuda", (8, 0), ALL - {missing})
    would_compile = "flashinfer is installed without flashinfer-jit-cache"
    assert name == "triton"
    assert (would_compile in reason) == (missing == "flashinfer_jit_cache")


def test_the_log_says_why_flashinfer_is_passed_over(installed):
    installed.remove("flashinfer_jit_cache")
    assert line_of(resolve(ServerArgs(), AMPERE)) == (
        "attention_backend=triton (a GPU, and triton is installed; flashinfer is installed without "
        "flashinfer-jit-cache, whose kernels it would compile while serving)"
    )
    assert line_of(resolve(ServerArgs(), HOPPER)) == (
        "attention_backend=fa3 (a GPU, and sgl_kernel is installed)"
    )
    asked = resolve(ServerArgs(attention_backend="flashinfer"), AMPERE)
    assert asked.attention_backend == asked.decode_attention_backend == "flashinfer"


def test_hidden_flashinfer_is_not_found(monkeypatch):
    monkeypatch.setattr(attention_choice.importlib.util, "find_spec", lambda name: object())
    assert installed_attention_packages() == ALL
    monkeypatch.setenv("SGLANG_IS_FLASHINFER_AVAILABLE", "false")
    name, reason = default_attention_backend("cuda", (8, 0), installed_attention_packages())
    assert (name, reason) == ("triton", "a GPU, and triton is installed")


# --- packages that do not fit


@pytest.mark.parametrize(
    "flags, unfit, missing, expected",
    [
        ({}, set(), set(), ("fa3", "fa3", "fa3")),
        ({}, {"fa3"}, set(), ("flashinfer", "flashinfer", "flashinfer")),
        ({}, {"fa3"}, {"flashinfer_jit_cache"}, ("triton", "triton", "triton")),
        ({}, {"fa3"}, FLASHINFER, ("triton", "triton", "triton")),
        ({}, {"fa3", "flashinfer"}, set(), ("triton", "triton", "triton")),
        ({}, {"fa3"}, {*FLASHINFER, "triton"}, ("torch_native", "torch_native", "torch_native")),
        ({"decode_attention_backend": "fa3"}, {"fa3"}, FLASHINFER, ("triton", "triton", "fa3")),
        ({"attention_backend": "fa3"}, {"fa3"}, set(), ("fa3", "fa3", "fa3")),
    ],
)
def test_nobody_s_choice_gives_way_to_the_next(
    flags, unfit, missing, expected, installed, broken, caplog
):
    """What somebody asked for is left to be refused, with the reason."""
    installed -= missing
    broken |= unfit
    got = usable(ServerArgs(**flags), HOPPER)
    names = (got.attention_backend, got.prefill_attention_backend, got.decode_attention_backend)
    assert names == expected
    assert got.disable_cuda_graph == (expected[2] == "torch_native")
    has_warned = "backend fa3 is not used, " in caplog.text
    assert has_warned == (expected[0] != "fa3")
    if has_warned:
        assert f"{expected[0]} takes its place: ImportError: undefined symbol" in caplog.text
        assert "fa3 cannot be imported" in line_of(got)


def test_what_runs_is_what_the_server_says(installed, broken, monkeypatch, caplog):
    """Between the flags and the runner the values are filled in, which does not make them asked for."""
    broken.add("fa3")
    built, told = [], []
    replaced = {
        "collect_facts": lambda args: HOPPER,
        "build_model_config": lambda args, resolved: model_config(),
        "build_runner": lambda *args: built.append(args),
        "set_global_server_args_for_scheduler": told.append,
    }
    for name, function in replaced.items():
        monkeypatch.setattr(scheduler_builder, name, function)
    with caplog.at_level(logging.INFO):
        server_args = load_runner(ServerArgs(model_path="m"))[0]
    assert built[0][0].attention_backend == built[0][1].decode_attention_backend == "flashinfer"
    assert told == [server_args] and server_args.attention_backend == "flashinfer"
    assert "attention_backend=flashinfer (" in caplog.text
    assert "attention_backend=fa3" not in caplog.text


# --- what the model's layers need


@pytest.mark.parametrize(
    "head_dim, changes, on_ampere, on_hopper",
    [
        (64, {}, "flashinfer", "fa3"),
        (128, {}, "flashinfer", "fa3"),
        (256, {}, "flashinfer", "fa3"),
        (80, {}, "triton", "fa3"),
        (96, {}, "triton", "fa3"),
        (192, {}, "triton", "fa3"),
        (36, {}, "triton", "triton"),
        (512, {}, "triton", "triton"),
        (64, MLA, "flashinfer", "fa3"),
        (64, {**MLA, "kv_lora_rank": 256, "qk_rope_head_dim": 32}, "triton", "triton"),
        (64, {"model_type": "gpt_oss"}, "triton", "fa3"),
        (128, {"is_encoder_decoder": True}, "triton", "triton"),
        (128, {"num_hidden_layers": 4, "layer_types": [*CHUNKED, FULL]}, "triton", "triton"),
        (128, {"num_hidden_layers": 4, "layer_types": [FULL, *CHUNKED[1:], FULL]}, *PACKAGED),
        (128, {"position_embedding": "ALIBI"}, "torch_native", "torch_native"),
        (128, {"position_embedding": "ROPE"}, "flashinfer", "fa3"),
        (128, {"blocksparse_block_size": 64}, "torch_native", "torch_native"),
    ],
)
def test_a_backend_is_chosen_for_models_whose_layers_it_runs(
    head_dim, changes, on_ampere, on_hopper, installed, broken, caplog
):
    config = model_config(head_dim, **changes)
    for facts, expected in ((AMPERE, on_ampere), (HOPPER, on_hopper)):
        got = usable(ServerArgs(), facts, config)
        assert got.attention_backend == got.decode_attention_backend == expected
        assert got.disable_cuda_graph == (expected == "torch_native")
    asked = ServerArgs(attention_backend="flashinfer")
    assert usable(asked, AMPERE, config).attention_backend == "flashinfer"
    assert not caplog.text


@pytest.mark.parametrize(
    "changes, what",
    [
        ({"head_dim": 96}, "flashinfer has no kernels for head dims 96 and 96"),
        ({"model_type": "gpt_oss"}, "flashinfer has no kernels for attention sinks"),
        (
            {"is_encoder_decoder": True},
            "flashinfer has no kernels for slots of encoder tokens before those of a request",
        ),
    ],
)
def test_the_log_says_what_the_model_needs(changes, what, installed, broken):
    assert line_of(usable(ServerArgs(), AMPERE, model_config(**changes))) == (
        f"attention_backend=triton (a GPU, and triton is installed; {what})"
    )


def test_what_only_torch_native_has():
    config = model_config(position_embedding="ALIBI")
    reason = "has no kernels for linear biases of scores (ALiBi)"
    for name in ("fa3", "flashinfer", "triton"):
        assert why_no_kernels(name, config) == f"{name} {reason}"
    assert why_no_kernels("torch_native", config) is None


def test_latents_are_of_one_size():
    latent = model_config(**{**MLA, "kv_lora_rank": 256})
    for name in ("fa3", "flashinfer"):
        assert why_no_kernels(name, latent) == f"{name} has no kernels for head dims 320 and 256"
    assert why_no_kernels("triton", latent) is None
