"""Kernels that begin before the one ahead has ended keep the rule that makes it safe; when launches are such, and what is compiled."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import kernel_sources
import pytest
import torch
from triton_interpreter import ROOT, output_of, run_cases

from sglang.srt.environ import envs

has_triton = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not has_triton, reason="the package triton is not installed")
# The way of a decode step.
EARLY = {
    "triton_ops/choose.py": {"_block_kernel", "_row_kernel"},
    "triton_ops/choose_kept.py": {
        "_again_kernel",
        "_count_kernel",
        "_race_kernel",
        "_settle_kernel",
    },
    "triton_ops/few_rows.py": {"_one_row_kernel"},
    "triton_ops/few_rows_linear.py": {"_few_rows_kernel"},
    "triton_ops/gated.py": {"_gated_kernel"},
    "triton_ops/graph_inputs.py": {"_fill_kernel"},
    "triton_ops/norm.py": {"_rms_norm_kernel"},
    "triton_ops/norm_rope.py": {"_norm_rope_store_kernel"},
    "triton_ops/moe/grouped.py": {"_grouped_kernel"},
    "triton_ops/moe/route.py": {"_choose_kernel"},
    "triton_ops/moe/single.py": {"_first_kernel", "_second_kernel"},
    "triton_ops/moe/sort.py": {"_sort_kernel"},
    "triton_ops/moe/total.py": {"_add_up_kernel"},
    "attention/triton_ops/decode.py": {"_decode_kernel"},
    "attention/triton_ops/decode_splits.py": {"_combine_kernel"},
    "distributed/peer_kernel.py": {"peer_kernel"},
}
MODULES = dict(kernel_sources.modules())


# --- the rule


def test_the_kernels_of_a_decode_step_are_launched_early() -> None:
    for name, kernels in EARLY.items():
        assert kernel_sources.launched_early(MODULES[name]) == kernels


@pytest.mark.parametrize("name", MODULES)
def test_kernels_keep_the_rule(name: str) -> None:
    module = MODULES[name]
    compiled = kernel_sources.kernels(module)
    early = kernel_sources.launched_early(module)
    for kernel, is_early in kernel_sources.launches(module):
        assert is_early == (kernel in early), f"{kernel} is launched in both ways"
        assert is_early == kernel_sources.has_flag(compiled[kernel]), kernel
    for kernel in early:
        assert not kernel_sources.broken_rules(compiled[kernel], compiled), kernel


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("launch_dependents(PDL)\nwait_for_earlier(PDL)\ntl.store(out, tl.load(x))", None),
        ("launch_dependents(PDL)\nw = tl.load(weight + 1)\nwait_for_earlier(PDL)", None),
        ("launch_dependents(PDL)\nw = read(weight)\nwait_for_earlier(PDL)", None),
        ("launch_dependents(PDL)\ntl.store(out, tl.load(x))", "not wait at the top"),
        ("launch_dependents(PDL)\nif n:\n    wait_for_earlier(PDL)", "not wait at the top"),
        ("wait_for_earlier(PDL)", "not call launch_dependents"),
        ("launch_dependents(PDL)\nif n:\n    return\nwait_for_earlier(PDL)", "it returns"),
        ("launch_dependents(PDL)\ntl.store(out, n)\nwait_for_earlier(PDL)", "it writes"),
        ("launch_dependents(PDL)\ntl.atomic_add(out, n)\nwait_for_earlier(PDL)", "it writes"),
        ("launch_dependents(PDL)\nv = tl.load(x + n)\nwait_for_earlier(PDL)", "it reads x"),
        (
            "launch_dependents(PDL)\ny = (weight if n else x) + n\nv = tl.load(y)\nwait_for_earlier(PDL)",
            "it reads x",
        ),
        ("launch_dependents(PDL)\nv = read(x)\nwait_for_earlier(PDL)", "it reads x"),
        ("launch_dependents(PDL)\nwrite(weight)\nwait_for_earlier(PDL)", "it calls write"),
        ("launch_dependents(PDL)\nw = read(where(weight, n))\nwait_for_earlier(PDL)", None),
        ("launch_dependents(PDL)\nw = read(where(x, n))\nwait_for_earlier(PDL)", "it reads x"),
        ("launch_dependents(PDL)\nask(weight)\nwait_for_earlier(PDL)", None),
        ("launch_dependents(PDL)\ndo(weight)\nwait_for_earlier(PDL)", "it calls do"),
        ("launch_dependents(PDL)\nother(weight)\nwait_for_earlier(PDL)", "it calls other"),
    ],
)
def test_the_rule_finds_mistakes(body: str, reason: str | None) -> None:
    helpers = (
        "def read(p):\n    return tl.load(p)\n"
        "def write(p):\n    tl.store(p, 1)\n"
        "def where(p, n):\n    return p + n.to(tl.int64)\n"
        "def ask(p):\n    tl.inline_asm_elementwise('prefetch.L2', p)\n"
        "def do(p):\n    tl.inline_asm_elementwise('st.global', p)\n"
    )
    lines = "".join(f"    {line}\n" for line in body.split("\n"))
    module = ast.parse(f"{helpers}def kernel(x, weight, out, n, PDL):\n{lines}")
    functions = {node.name: node for node in module.body if isinstance(node, ast.FunctionDef)}
    found = kernel_sources.broken_rules(functions["kernel"], functions)
    assert not found if reason is None else any(reason in text for text in found)


# --- when


@needs_triton
@pytest.mark.parametrize(
    ("device", "capability", "cuda", "wanted", "is_early"),
    [
        ("cuda", (9, 0), "13.0", True, True),
        ("cuda", (12, 0), "13.0", True, True),
        ("cuda", (8, 9), "13.0", True, False),
        ("cuda", (9, 4), None, True, False),  # AMD
        ("cuda", (9, 0), "13.0", False, False),
        ("cpu", (9, 0), "13.0", True, False),
    ],
)
def test_when_kernels_are_launched_early(
    monkeypatch, device, capability, cuda, wanted, is_early
) -> None:
    from sglang.srt.utils import dependent_launch

    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    dependent_launch.launches_early.cache_clear()
    with envs.SGLANG_ENABLE_DEPENDENT_LAUNCH.override(wanted):
        found = dependent_launch.launch_options(torch.device(device))
    dependent_launch.launches_early.cache_clear()
    assert found == ({"PDL": True, "launch_pdl": True} if is_early else {"PDL": False})


# --- what is compiled


@needs_triton
def test_kernels_in_the_interpreter() -> None:
    output = output_of(run_cases("triton_dependent_cases.py"))
    assert " passed" in output and "skipped" not in output


@needs_triton
def test_programs_wait_as_compiled_for_hopper(tmp_path: Path) -> None:
    """The compiler keeps the order: parameters, wait, everything else."""
    script = Path(__file__).with_name("hopper_compiler.py")
    env = os.environ | {"PYTHONPATH": str(ROOT / "python"), "TRITON_CACHE_DIR": str(tmp_path)}
    env.pop("TRITON_INTERPRET", None)
    command = [sys.executable, str(script)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    compiled = json.loads(output_of(done))
    assert set(compiled) == set().union(*EARLY.values())
    reading = {"_one_row_kernel", "_rms_norm_kernel", "_norm_rope_store_kernel", "peer_kernel"}
    for name, steps in compiled.items():
        before, after = steps[: steps.index("wait")], steps[steps.index("wait") + 1 :]
        # Small weights are not worth asking for ahead of several rows.
        may_read = name in reading or name == "_few_rows_kernel"
        assert before == ["launch", "read"][: len(before)] and len(before) <= 1 + may_read, name
        assert name not in reading or before == ["launch", "read"], name
        assert "wait" not in after and "write" in after and after[-1] == "end", (name, steps)
