"""Solar Pro; published as code, architecture `SolarForCausalLM`.

    h = t * h_kept + (1 - t) * h  before the layers that mix
    h = h + attention(rms_norm(h));  h = h + down(silu(gate(x)) * up(x)),  x = rms_norm(h)

Differs from Llama: the inputs of the layers in `bskcn_1` (`bskcn_2`) are kept, and the inputs of those in `bskcn_3` (`bskcn_4`) are
mixed with the one that was kept last; t is the second number of `bskcn_tv`. `sliding_window` of the config is not used by the model.
"""

from __future__ import annotations

from typing import Any

import torch

from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.models.common.norm import add_residual
from sglang.srt.models.llama import LlamaDecoderLayer, LlamaForCausalLM, LlamaModel
from sglang.srt.utils.errors import ConfigError

# (layers whose input is kept, layers whose input is mixed with it)
_CONNECTIONS = (("bskcn_1", "bskcn_3"), ("bskcn_2", "bskcn_4"))


class SkipConnections:
    """The residual streams `[T, D]` of one forward pass that later layers still need."""

    def __init__(self, config: Any) -> None:
        self._keys = config.to_dict()
        self._share = config.bskcn_tv[1]
        self._kept: dict[str, torch.Tensor] = {}

    def touches(self, layer_id: int) -> bool:
        return any(layer_id in self._keys[name] for pair in _CONNECTIONS for name in pair)

    def apply(self, layer_id: int, stream: torch.Tensor) -> torch.Tensor:
        """The input of a layer, after it was kept or mixed. All is kept before anything is mixed."""
        for kept, _ in _CONNECTIONS:
            if layer_id in self._keys[kept]:
                self._kept[kept] = stream.clone()  # norms may overwrite a residual
        for kept, mixed in _CONNECTIONS:
            if layer_id in self._keys[mixed]:
                stream = self._kept[kept] * self._share + stream * (1 - self._share)
        return stream

    def check_stage(self, start: int, end: int) -> None:
        """Raises ConfigError where a pipeline stage would need what another one kept, or nothing was kept at all."""
        for kept, mixed in _CONNECTIONS:
            for layer in self._keys[mixed]:
                source = max((n for n in self._keys[kept] if n <= layer), default=None)
                if start <= layer < end and (source is None or source < start):
                    raise ConfigError(
                        f"layer {layer} of {mixed} needs the input of layer {source} of {kept}, which is not in its "
                        f"pipeline stage (layers {start} to {end - 1}); use a smaller --pp-size"
                    )


class SolarDecoderLayer(LlamaDecoderLayer):
    """Llama's layer behind a skip connection; `skips` is set by the model."""

    skips: SkipConnections

    def __init__(
        self,
        config: Any,
        layer_id: int = 0,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__(config, layer_id, quant_config, prefix)
        self.layer_id = layer_id

    def forward(
        self,
        positions: torch.Tensor,  # [T]
        hidden_states: torch.Tensor,  # [T, D]
        forward_batch: ForwardBatch,
        residual: torch.Tensor | None,  # [T, D]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.skips.touches(self.layer_id):
            stream = add_residual(hidden_states, residual)
            hidden_states, residual = self.skips.apply(self.layer_id, stream), None
        return super().forward(positions, hidden_states, forward_batch, residual)


class SolarModel(LlamaModel):
    layer_cls = SolarDecoderLayer

    def __init__(
        self, config: Any, quant_config: QuantizationConfig | None = None, prefix: str = ""
    ) -> None:
        super().__init__(config, quant_config, prefix)
        skips = SkipConnections(config)
        skips.check_stage(self.start_layer, self.end_layer)
        for layer_id in range(self.start_layer, self.end_layer):
            self.layers[layer_id].skips = skips


class SolarForCausalLM(LlamaForCausalLM):
    model_cls = SolarModel


EntryClass = SolarForCausalLM
