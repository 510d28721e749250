"""What a quantization format must provide.

A format is a `QuantizationConfig` (read from the checkpoint) that answers, for every layer, with
the method that creates, converts and applies its weights.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch


class QuantizeMethodBase(ABC):
    """How one layer stores its weights and computes with them."""

    @abstractmethod
    def create_weights(self, layer: torch.nn.Module, *weight_args: Any, **extra_attrs: Any) -> None:
        """Register the parameters of `layer`."""

    @abstractmethod
    def apply(self, layer: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Compute the layer's output."""

    def embedding(self, layer: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Rows of the table. Raises ValueError where the format has no embeddings."""
        raise ValueError(f"{type(self).__name__} cannot be used for an embedding table")

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:  # noqa: B027  (optional)
        """Convert what was loaded into what `apply` wants; called once after loading."""


class LinearMethodBase(QuantizeMethodBase):
    """The method of a linear layer."""

    @abstractmethod
    def create_weights(
        self,
        layer: torch.nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """Register parameters. `extra_weight_attrs` holds `weight_loader`, which each of them gets
        with its `input_dim` and `output_dim`; `output_partition_sizes` are this rank's widths of
        the fused parts."""

    @abstractmethod
    def apply(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """[..., in] -> [..., out], in the dtype of `x`."""

    def leave_plain_weight(self, layer: torch.nn.Module) -> bool:
        """Ask, before loading, that the layer have an ordinary `weight` in its dtype after loading, for callers that multiply by parts
        of it themselves. False: the method cannot."""
        return False


class FusedMoEMethodBase(QuantizeMethodBase):
    """The method of a layer of experts."""

    @abstractmethod
    def create_weights(
        self,
        layer: torch.nn.Module,
        num_experts: int,
        hidden_size: int,
        intermediate_size_per_partition: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """Register the stacked expert weights."""

    @abstractmethod
    def create_moe_runner(self, layer: torch.nn.Module, moe_runner_config: Any) -> None:
        """Prepare what computes the experts."""

    def why_waits_for_host(self, layer: torch.nn.Module) -> str | None:
        """Why computing the layer needs the router's choices on the host, so that no graph can hold it; None when all stays on the
        device. Asked once the weights are there."""
        return f"{type(self).__name__} does not say that it leaves them on the device"


class QuantizationConfig(ABC):
    """One quantization format with the settings of one checkpoint."""

    def __init__(self) -> None:
        # Fused name -> names in the checkpoint, from the model class.
        self.packed_modules_mapping: dict[str, list[str]] = {}

    @abstractmethod
    def get_name(self) -> str:
        """Name of the format, as in `--quantization`."""

    @abstractmethod
    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        """Dtypes that activations may have."""

    @classmethod
    @abstractmethod
    def get_min_capability(cls) -> int:
        """Least CUDA compute capability, e.g. 80."""

    @staticmethod
    @abstractmethod
    def get_config_filenames() -> list[str]:
        """Files in the model folder that may hold the settings."""

    @classmethod
    @abstractmethod
    def from_config(cls, config: dict[str, Any]) -> QuantizationConfig:
        """Build from the checkpoint's settings. Raises ValueError for settings that are not
        supported."""

    @abstractmethod
    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> QuantizeMethodBase | None:
        """The method of the layer at `prefix`. None only where the layer allows it (embeddings,
        attention)."""

    @abstractmethod
    def get_scaled_act_names(self) -> list[str]:
        """Activations whose output needs a per-channel scale."""

    @classmethod
    def override_quantization_method(
        cls, hf_quant_cfg: dict[str, Any], user_quant: str | None
    ) -> str | None:
        """The name of this format when it should take over a checkpoint of another, else None."""
        return None

    @staticmethod
    def get_from_keys(config: dict[str, Any], keys: list[str]) -> Any:
        """The value under the first key that is there. Raises ValueError when none is."""
        for key in keys:
            if key in config:
                return config[key]
        raise ValueError(f"the quantization config has none of the keys {keys}; it has {[*config]}")

    @staticmethod
    def get_from_keys_or(config: dict[str, Any], keys: list[str], default: Any) -> Any:
        """As `get_from_keys`, with a default."""
        return next((config[key] for key in keys if key in config), default)

    def get_cache_scale(self, name: str) -> str | None:
        """The parameter that a KV-cache scale of the checkpoint belongs to, None if it is no such
        scale."""
        return None

    def apply_weight_name_mapper(self, hf_to_sglang_mapper: Any) -> None:  # noqa: B027  (optional)
        """Rename the modules in per-module rules to the names of the model; nothing to do without
        rules."""
