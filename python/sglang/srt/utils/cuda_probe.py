"""Why torch cannot use a GPU, in torch's own words."""

from __future__ import annotations


def why_no_cuda() -> str:
    """One line: a build without CUDA, no driver, a driver that is too old, or no visible GPU.

    For the case that `torch.cuda.is_available()` is false, which does not say why.
    """
    import torch  # late: this package must load without torch

    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
    return "torch.cuda.is_available() is false"
