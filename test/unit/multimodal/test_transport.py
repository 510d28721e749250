"""A processor's result as bytes and back; bytes that nobody packed."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang.srt.multimodal.inputs import Modality, MultimodalDataItem, MultimodalInputFormat
from sglang.srt.multimodal.transport import pack, unpack


def item(**fields) -> MultimodalDataItem:
    return MultimodalDataItem(Modality.VIDEO, **fields)


def test_values_come_back() -> None:
    feature = torch.randn(5, 3).bfloat16()
    source = item(
        feature=feature[:, 1:],  # not contiguous
        offsets=[(1, 2), (4, 6)],
        format=MultimodalInputFormat.PROCESSOR_OUTPUT,
        hash=2**64 - 1,
        model_specific_data={
            "video_grid_thw": torch.tensor([[1, 2, 3]]),
            "empty": np.zeros((0, 3), np.float16),
            "sizes": ((3, 4), [5, None]),
            "scale": np.float32(0.5),
        },
    )
    found = unpack(pack({"mm_items": [source], "im_token_id": 7, "text": "ü", "raw": b"\0"}))
    assert {key: found[key] for key in ("im_token_id", "text", "raw")} == {
        "im_token_id": 7,
        "text": "ü",
        "raw": b"\0",
    }
    (got,) = found["mm_items"]
    assert torch.equal(got.feature, feature[:, 1:]) and got.feature.dtype == torch.bfloat16
    assert got.offsets == [(1, 2), (4, 6)] and got.hash == 2**64 - 1
    assert got.format is MultimodalInputFormat.PROCESSOR_OUTPUT and got.is_video()
    data = got.model_specific_data
    assert data["video_grid_thw"].tolist() == [[1, 2, 3]]
    assert data["empty"].shape == (0, 3) and data["empty"].dtype == np.float16
    assert data["sizes"] == ((3, 4), [5, None]) and data["scale"] == 0.5


@settings(max_examples=30, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False)
        | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        | st.tuples(inner, inner),
        max_leaves=10,
    )
)  # fmt: skip
def test_plain_values_keep_their_types(value) -> None:
    assert unpack(pack({"value": value})) == {"value": value}


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float16])
def test_dtypes_and_scalars(dtype: torch.dtype) -> None:
    found = unpack(pack({"scalar": torch.ones((), dtype=dtype), "two": torch.ones(2, dtype=dtype)}))
    assert found["scalar"].shape == () and found["two"].dtype == dtype
    assert bool(found["two"].all())


def test_features_can_be_left_out() -> None:
    packed = pack({"mm_items": [item(feature=torch.ones(4, 2))], "other": torch.ones(2)})
    found = unpack(packed, with_features=False)
    feature = found["mm_items"][0].feature
    assert feature.device.type == "meta" and feature.shape == (4, 2)
    assert found["other"].tolist() == [1, 1]


def test_a_hash_that_somebody_claims_changes_no_digest() -> None:
    """Digests are what decides about sharing; they come from the content whatever a client says."""
    honest = item(feature=torch.ones(2))
    liar = item(feature=torch.zeros(2), hash=honest.hash, digests=[b"x" * 32])
    one, two = (unpack(pack({"mm_items": [i]}))["mm_items"][0] for i in (honest, liar))
    assert one.digests != two.digests and two.digests != [b"x" * 32]


@pytest.mark.parametrize("value", [object(), {1, 2}, torch.ones(2, dtype=torch.complex64)])
def test_other_things_do_not_travel(value) -> None:
    with pytest.raises(ValueError, match="cannot"):
        pack({"value": value})


def _bytes(header) -> bytes:
    encoded = msgspec.msgpack.encode(header)
    return len(encoded).to_bytes(8, "little") + encoded


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 8,
        _bytes(["dict", ["a", ["tensor", "float32", [1 << 40], 0]]]),
        _bytes(["dict", ["a", ["tensor", "float32", [-1, 2], 0]]]),
        _bytes(["dict", ["a", ["tensor", "object", [0], 0]]]),
        _bytes(["dict", ["a", ["array", "O", [0], 0]]]),
        _bytes(["dict", ["a", ["modality", "SMELL"]]]),
        _bytes(["dict", ["a", ["what"]]]),
        _bytes(["dict", ["a"]]),
        _bytes(["list"]),
        _bytes([]),
    ],
)
def test_malformed_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"malformed|cut off|cannot travel|must hold"):
        unpack(data)


def test_truncation_is_noticed() -> None:
    packed = pack({"mm_items": [item(feature=torch.ones(100))]})
    for size in range(0, len(packed), 37):
        with pytest.raises(ValueError):
            unpack(packed[:size])
