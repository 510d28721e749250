"""From a model path to a model on the device with its weights in place."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

    from sglang.srt.configs.load_config import LoadConfig
    from sglang.srt.configs.model_config import ModelConfig


def get_model(
    *, model_config: ModelConfig, load_config: LoadConfig, device_config: str | torch.device
) -> nn.Module:
    """See `sglang.srt.model_loader.loader.get_model`."""
    from sglang.srt.model_loader import (
        loader,  # late: plug-ins import sibling modules of this package
    )

    return loader.get_model(
        model_config=model_config, load_config=load_config, device_config=device_config
    )


__all__ = ["get_model"]
