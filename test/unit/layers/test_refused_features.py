"""What an attention backend cannot compute is refused with the name of one that can."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch


@pytest.mark.parametrize("feature", ["alibi_slopes", "block_sparse"])
def test_triton_points_to_torch_native(feature: str) -> None:
    pytest.importorskip("triton")
    from sglang.srt.layers.attention.triton_layer import TritonLayerCall

    backend = SimpleNamespace(forward_metadata=object(), attention_chunk_size=None)
    layer = SimpleNamespace(xai_temperature_len=-1, use_irope=False)
    match = f"does not support {feature}; choose --attention-backend torch_native"
    with pytest.raises(ValueError, match=match):
        TritonLayerCall(backend, layer, SimpleNamespace(), {feature: torch.ones(1)})
