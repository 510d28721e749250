"""Where transformers' model of a family departs from the authors', the reference is put right, as little as that takes.

Llama 3.2 Vision: a token in front of the first picture sees none, so that cross-attention adds nothing to it. transformers 5.23 masks the
MLP of such tokens but lets their attention see all pictures, padding and those of later turns included; the authors' code masks both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn


def correct_reference(model: Any) -> None:
    """Change a model of transformers, if its kind is one of those."""
    correct = _CORRECTIONS.get(model.config.model_type)
    if correct is not None:
        correct(model)


def _mask_attention(model: nn.Module) -> None:
    """Multiply what cross-attention says by the mask that the MLP behind it is multiplied by."""
    for layer in model.modules():
        if type(layer).__name__ == "MllamaCrossAttentionDecoderLayer":
            masks: list[torch.Tensor | None] = []
            layer.register_forward_pre_hook(_remember(masks), with_kwargs=True)
            layer.cross_attn.register_forward_hook(_apply(masks))


def _remember(masks: list[torch.Tensor | None]) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        masks[:] = [kwargs["full_text_row_masked_out_mask"]]  # [B, 1, n, 1]

    return hook


def _apply(masks: list[torch.Tensor | None]) -> Callable[..., Any]:
    def hook(module: nn.Module, args: Any, output: tuple[torch.Tensor, Any]) -> Any:
        (mask,) = masks
        return output if mask is None else (output[0] * mask[:, 0], *output[1:])

    return hook


_CORRECTIONS: dict[str, Callable[[Any], None]] = {"mllama": _mask_attention}
