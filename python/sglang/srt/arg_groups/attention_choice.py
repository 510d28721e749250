"""Which attention backend serves when none is asked for."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection

from sglang.srt.environ import envs

# Only these are chosen without being asked for. Add one when `test/gpu/run_attention.py --backend NAME` and `test/gpu/run_proof.py` have
# passed on a GPU.
PROVEN_BACKENDS = frozenset({"fa3", "triton", "torch_native"})
_HOPPER = 9
# What a backend imports.
_MODULES = {"fa3": "sgl_kernel", "flashinfer": "flashinfer", "triton": "triton"}


def default_attention_backend(
    device: str,
    capability: tuple[int, int] | None,
    packages: Collection[str],
    proven: Collection[str] = PROVEN_BACKENDS,
) -> tuple[str, str]:
    """The backend and why: on a Hopper GPU fa3, else flashinfer, else triton, the first that is proven and installed.

    `packages` are names of modules that can be imported, `capability` that of the GPU.
    """
    order = ["flashinfer", "triton"] if device == "cuda" else []
    if order and capability is not None and capability[0] == _HOPPER:
        order.insert(0, "fa3")
    for name in order:
        if name in proven and _MODULES[name] in packages:
            return name, f"a GPU, and {_MODULES[name]} is installed"
    return "torch_native", f"works on {device}"


def installed_attention_packages() -> frozenset[str]:
    """Of the modules that attention backends import, those that can be found and are not hidden."""
    hidden = set() if envs.SGLANG_IS_FLASHINFER_AVAILABLE.get() else {"flashinfer"}
    modules = set(_MODULES.values()) - hidden
    return frozenset(name for name in modules if importlib.util.find_spec(name) is not None)
