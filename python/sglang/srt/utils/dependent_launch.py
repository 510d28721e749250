"""Launches whose programs begin while the kernel before still runs (programmatic dependent launch).

    program   launch_dependents   what never changes, such as weights   wait_for_earlier   everything else

Each kernel's end and the next one's beginning then pass side by side; in a captured graph such launches become programmatic edges.
The rule, without which results are wrong now and then: **every program of a kernel that is launched with `launch_options` calls
`wait_for_earlier`, on every path, at the top of its body**: before its first `return`, its first store, and its first read of anything
that a kernel of the step writes. The end of such a kernel then means that all kernels before it have ended too, so that a reader needs
to know its own predecessor only, be it launched like this or plainly. `test/unit/layers/test_dependent_launch.py` checks the sources.

Before the wait only parameters are read. They are written while a model is loaded, long before a step. Whoever writes one later must
synchronise the device before the next step, or have something plain in between in the stream: a kernel, a copy, a replayed graph.
"""

from __future__ import annotations

import functools
import importlib.util

import torch
import triton
import triton.language as tl

from sglang.srt.environ import envs

_ON = {"PDL": True, "launch_pdl": True}
_OFF = {"PDL": False}


def launch_options(device: torch.device) -> dict[str, bool]:
    """What to add to the launch of a kernel that keeps the rule: its constexpr `PDL`, and the attribute of the launch."""
    return _ON if launches_early(device) else _OFF


@functools.cache
def launches_early(device: torch.device) -> bool:
    """Whether kernels on `device` are launched like this: on Hopper GPUs and newer, unless the environment says otherwise."""
    return (
        device.type == "cuda"
        and torch.version.cuda is not None
        and torch.cuda.get_device_capability(device)[0] >= 9
        and _has_instructions()
        and isinstance(wait_for_earlier, triton.JITFunction)  # not the interpreter's
        and envs.SGLANG_ENABLE_DEPENDENT_LAUNCH.get()
    )


def _has_instructions() -> bool:
    """Whether this Triton knows the two instructions. A package above the module may be missing, too."""
    try:
        return importlib.util.find_spec("triton.language.extra.cuda.gdc") is not None
    except ModuleNotFoundError:
        return False


@triton.jit
def launch_dependents(PDL: tl.constexpr):
    """The next kernel may begin where there is room, once all programs of this one have called this."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def wait_for_earlier(PDL: tl.constexpr):
    """Until the kernels before have ended and what they wrote can be read."""
    if PDL:
        tl.extra.cuda.gdc_wait()
