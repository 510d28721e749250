"""Context parallelism of sparse attention. Compatibility: not implemented."""

from __future__ import annotations

from sglang.srt.layers.communicator import LayerCommunicator
from sglang.srt.utils.absent import absent_class

NSACPLayerCommunicator = absent_class(
    "NSACPLayerCommunicator", "context parallelism of sparse attention", LayerCommunicator
)
