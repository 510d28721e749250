"""Which attention backend serves when none is asked for."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Mapping

from sglang.srt.environ import envs

# Only these are chosen without being asked for. Add one when `test/gpu/run_attention.py --backend NAME` and `test/gpu/run_proof.py` have
# passed on a GPU.
PROVEN_BACKENDS = frozenset({"fa3", "flashinfer", "triton", "torch_native"})
_HOPPER = 9
# What must be installed for a backend to be chosen; the first is the module that it imports. flashinfer's second one holds its kernels:
# without it they are compiled when they are first needed, for minutes and in the middle of serving.
_MODULES = {
    "fa3": ("sgl_kernel",),
    "flashinfer": ("flashinfer", "flashinfer_jit_cache"),
    "triton": ("triton",),
}
_WOULD_COMPILE = "flashinfer is installed without flashinfer-jit-cache, whose kernels it would compile while serving"


def default_attention_backend(
    device: str,
    capability: tuple[int, int] | None,
    packages: Collection[str],
    proven: Collection[str] = PROVEN_BACKENDS,
    unusable: Mapping[str, str] | None = None,
) -> tuple[str, str]:
    """The backend and why: on a Hopper GPU fa3, else flashinfer, else triton, the first that is proven, usable and installed.

    `packages` are names of modules that can be found, `capability` that of the GPU. `unusable` has backends that are not to be chosen
    though they are installed, and why not.
    """
    order = ["flashinfer", "triton"] if device == "cuda" else []
    if order and capability is not None and capability[0] == _HOPPER:
        order.insert(0, "fa3")
    passed_over = []
    for name in order:
        if name not in proven:
            continue
        if unusable and name in unusable:
            passed_over.append(unusable[name])
        elif all(module in packages for module in _MODULES[name]):
            return name, "; ".join([f"a GPU, and {_MODULES[name][0]} is installed", *passed_over])
        elif name == "flashinfer" and name in packages:
            passed_over.append(_WOULD_COMPILE)
    return "torch_native", "; ".join([f"works on {device}", *passed_over])


def installed_attention_packages() -> frozenset[str]:
    """Of the modules that attention backends need, those that can be found and are not hidden."""
    hidden = set() if envs.SGLANG_IS_FLASHINFER_AVAILABLE.get() else {"flashinfer"}
    modules = {module for needed in _MODULES.values() for module in needed} - hidden
    return frozenset(name for name in modules if importlib.util.find_spec(name) is not None)
