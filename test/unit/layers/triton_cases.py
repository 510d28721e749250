"""The Triton attention kernels in Triton's interpreter, on a CPU; run by `test_triton_attention.py`.

Needs TRITON_INTERPRET=1 before Triton is imported, hence a process of its own, and `test/gpu` on the path. Blocks are
as small as kernels allow, so that short requests have several, whole and partial.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from attention_cases import INF, NAN, Case, World, errors, is_within, make_backend
from stale_cases import stale_cases
from triton.runtime.errors import InterpreterError

from sglang.srt.layers.attention.registry import create_attention_backend
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.layers.attention.triton_backend import TritonAttnBackend
from sglang.srt.layers.attention.triton_ops import plan
from sglang.srt.layers.attention.triton_ops.finite_values import move_to_keys_in_place
from sglang.srt.layers.radix_attention import AttentionType
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.utils.errors import ConfigError

BIDIRECTIONAL = {"attn_type": AttentionType.DECODER_BIDIRECTIONAL}
ENCODER = {"attn_type": AttentionType.ENCODER_ONLY}

CASES = [
    Case("decode", (37, 1, 16, 70)),
    Case("decode_window", (37, 3, 70), layer={"sliding_window_size": 20}),
    Case("decode_cap_sinks", (37, 9), layer={"logit_cap": 2.0}, has_sinks=True),
    Case("decode_window_sinks", (37, 70), layer={"sliding_window_size": 33}, has_sinks=True),
    Case("decode_chunk", (37, 33), layer={"use_irope": True}, chunk=16),
    Case("decode_odd_group", (20,), heads=(7, 1), dims=(24, 40)),
    Case("decode_latent", (40, 11), heads=(20, 1), dims=(48, 32), is_latent=True),
    Case("decode_pages", (37, 50), page_size=16),
    Case("decode_cross", (5, 4, 9), layer={"is_cross_attention": True}, encoder_lens=(30, 0, 3)),
    Case(
        "decode_cross_part",
        (5, 4, 9, 7),
        layer={"is_cross_attention": True},
        encoder_lens=(70, 0, 3, 40),
        views=(((0, 1, 30, 70),), ((0, 1, 0, 0),), ((0, 1, 0, 2),), ((0, 1, 0, 0),)),
    ),
    Case("decode_after_encoder", (5, 40), encoder_lens=(3, 0)),
    Case("decode_shared_cache", (20, 33), has_new=False),
    Case("extend", (37, 5, 18), (0, 0, 0)),
    Case("extend_prefix", (37, 5, 70), (20, 4, 69)),
    Case("extend_window", (60, 9), (25, 0), layer={"sliding_window_size": 12}),
    Case("extend_cap_sinks", (30, 9), (13, 0), layer={"logit_cap": 2.0}, has_sinks=True),
    Case("extend_chunk", (50, 20), (21, 0), layer={"use_irope": True}, chunk=16),
    Case("extend_odd_group", (21, 3), (9, 0), heads=(7, 1), dims=(24, 40)),
    Case("extend_latent", (25, 11), (9, 0), heads=(20, 1), dims=(48, 32), is_latent=True),
    Case("extend_pages", (37, 50), (16, 3), page_size=16),
    Case("extend_encoder_only", (21, 4), (0, 0), layer=ENCODER),
    Case(
        "extend_cross",
        (5, 4, 20),
        (0, 2, 0),
        layer={"is_cross_attention": True},
        encoder_lens=(30, 0, 3),
    ),
    Case(
        "extend_cross_parts",
        (50, 4, 20, 9),
        (3, 2, 0, 0),
        layer={"is_cross_attention": True},
        encoder_lens=(70, 0, 30, 40),
        views=(
            ((0, 5, 0, 0), (5, 30, 0, 33), (30, 31, 33, 40), (31, 47, 33, 70)),
            ((0, 2, 0, 0),),
            ((0, 20, 0, 30),),
            ((0, 9, 0, 0),),
        ),
    ),
    Case(
        "mixed_cross_parts",
        (20, 37, 9),
        (0, 36, 8),
        is_mixed=True,
        layer={"is_cross_attention": True},
        encoder_lens=(30, 17, 0),
        views=(((0, 4, 0, 0), (4, 20, 0, 30)), ((0, 1, 9, 17),), ((0, 1, 0, 0),)),
    ),
    Case("extend_after_encoder", (25, 9), (7, 0), encoder_lens=(3, 0)),
    Case("extend_shared_cache", (40, 9), (13, 0), has_new=False),
    Case("extend_spans", (50, 9), (4, 0), layer=BIDIRECTIONAL, spans=(((2, 21), (30, 47)), ())),
    Case(
        "extend_spans_window",
        (50, 9),
        (0, 0),
        layer={**BIDIRECTIONAL, "sliding_window_size": 6},
        spans=(((20, 41),), ((2, 5),)),
    ),
    Case("extend_mask", (40, 9), (17, 0), has_mask=True),
    Case("extend_mask_window", (40,), (17,), has_mask=True, layer={"sliding_window_size": 9}),
    Case("mixed", (20, 37, 9), (0, 36, 8), is_mixed=True),
    Case("mixed_window", (20, 37, 9), (3, 36, 8), is_mixed=True, layer={"sliding_window_size": 8}),
]
TORCH_LACKS = {"extend_mask", "extend_mask_window"}


@triton.jit
def _count(out, end):
    total = 0
    for _ in range(0, tl.load(end)):
        total += 1
    tl.store(out, total)


@pytest.fixture(scope="module", autouse=True)
def interpreter():
    """Some older Triton and newer numpy cannot run any loop whose end is a value."""
    out = torch.zeros(1, dtype=torch.int32)
    try:
        _count[(1,)](out, torch.tensor([3], dtype=torch.int32))
    except InterpreterError as error:
        if "only 0-dimensional arrays" not in str(error):
            raise
        pytest.skip(f"the interpreter cannot run loops: {triton.__version__}, {np.__version__}")
    assert out.item() == 3


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Tiles of 16 x 16, splits of 16 keys and more."""
    small = plan.KernelConfig(16, 16, 4, 1)
    monkeypatch.setattr(plan, "extend_config", lambda *_: small)
    monkeypatch.setattr(plan, "decode_config", lambda *_: small)
    monkeypatch.setattr(plan, "_MIN_SPLIT_LEN", 16)
    monkeypatch.setattr(plan, "_SPLIT_MULTIPLE", 16)


def check(actual: torch.Tensor, world: World) -> None:
    found = world.errors(actual)
    assert actual.dtype == world.dtype
    assert is_within(found, world.dtype), found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_against_the_oracle_and_torch(case):
    world = World(case, torch.float32, "cpu")
    out = world.run(make_backend(world))
    check(out, world)
    if case.name not in TORCH_LACKS:
        other = World(case, torch.float32, "cpu")
        native = other.run(TorchNativeAttnBackend(attention_chunk_size=case.chunk))
        torch.testing.assert_close(out, native, rtol=1e-5, atol=1e-5)
        if not case.is_latent and case.layer != ENCODER:
            slots = torch.cat(world.slots)
            for mine, theirs in zip(
                world.pool.get_kv_buffer(0), other.pool.get_kv_buffer(0), strict=True
            ):
                torch.testing.assert_close(
                    mine[slots], theirs[slots], rtol=0, atol=0, equal_nan=True
                )


LENS = ((37, 5, 70, 9), (20, 4, 0, 8))
LATENT = {"heads": (4, 1), "dims": (48, 32), "is_latent": True}
STALE = [
    *stale_cases(*LENS, (1,)),
    *stale_cases(*LENS, (1,), (16,), **LATENT),
    *stale_cases(*LENS, (1,), (16,), is_fp8=True),
    *stale_cases(*LENS, (1,), (16,), layer={"sliding_window_size": 20}, has_sinks=True),
]


# The interpreter multiplies by numpy, which warns.
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("case", STALE, ids=lambda case: f"{case.name}, {case.dims[0]}")
def test_what_is_no_number_stays_with_its_request(case):
    """Behind the end of a page, and beside a request."""
    world = World(case, torch.float32, "cpu")
    check(world.run(make_backend(world)), world)


def test_infinite_values_become_keys_that_are_no_numbers():
    """In tensors that are parts of a wider one, as they come out of a product."""
    qkv = torch.randn(70, 3, 24 + 40)
    k, v = qkv[:, :2, :24], qkv[:, :2, 24:]
    v[0, 1, 39], v[69, 0, 0], v[5, 1, 7] = INF, NAN, -INF
    before = qkv.clone()
    is_lost = torch.zeros(70, 3, dtype=torch.bool)
    is_lost[0, 1] = is_lost[69, 0] = is_lost[5, 1] = True
    move_to_keys_in_place(k, v)
    assert qkv[is_lost][:, :24].isnan().all() and not qkv[is_lost][:, 24:].any()
    assert torch.equal(qkv[~is_lost], before[~is_lost])


# Not in bfloat16, whose products the interpreter computes wrongly.
@pytest.mark.parametrize(
    "case",
    [Case("decode", (37, 5)), Case("extend", (37, 5), (20, 0))],
    ids=lambda case: case.name,
)
def test_half_precision(case):
    world = World(case, torch.float16, "cpu")
    check(world.run(make_backend(world)), world)


@pytest.mark.parametrize("num_kv_heads, splits", [(16, 1), (6, 2), (1, 5)])
def test_any_number_of_splits(num_kv_heads, splits):
    case = Case("decode", (40, 1, 70), has_sinks=True)
    world = World(case, torch.float32, "cpu")
    backend = make_backend(world)
    backend.num_kv_heads = num_kv_heads
    check(world.run(backend), world)
    (found,) = backend.forward_metadata.decode.splits.values()
    assert found.num_splits == splits


def test_cache_is_left_alone_when_told_to():
    case = Case("extend", (20,), (0,))
    world = World(case, torch.float32, "cpu")
    check(world.run(make_backend(world), save_kv_cache=False), world)
    assert not world.pool.get_key_buffer(0)[world.slots[0]].isfinite().any()


def test_encoder_only_needs_no_cache():
    world = World(Case("encoder", (20, 3), (0, 0), layer=ENCODER), torch.float32, "cpu")
    batch = world.batch()
    batch.req_to_token_pool = batch.token_to_kv_pool = batch.req_pool_indices = None
    batch.attn_backend = make_backend(world)
    batch.attn_backend.init_forward_metadata(batch)
    check(world.layer(*world.inputs(), batch), world)


def test_rotary_parts_that_come_apart():
    case = Case("latent", (20, 3), (7, 0), heads=(4, 1), dims=(48, 32), is_latent=True)
    world = World(case, torch.float32, "cpu")
    batch = world.batch()
    batch.attn_backend = make_backend(world)
    batch.attn_backend.init_forward_metadata(batch)
    q, k, v = world.inputs()
    q, k = q.view(-1, 4, 48), k.view(-1, 1, 48)
    out = batch.attn_backend.forward(
        q[..., :32], k[..., :32], v.view(-1, 1, 32), world.layer, batch,
        q_rope=q[..., 32:], k_rope=k[..., 32:],
    )  # fmt: skip
    check(out, world)


def test_scaled_cache():
    """A cache in fp8 is multiplied by the scales of its layer; new tokens are read as they are."""
    world = World(Case("fp8", (20, 9), (13, 8)), torch.float32, "cpu")
    k_scale, v_scale = 0.5, 2.0
    for i, prefix in enumerate(world.case.cached_lens):
        for tensors, scale in ((world.k, k_scale), (world.v, v_scale)):
            rounded = (tensors[i][:prefix] / scale).to(torch.float8_e4m3fn).float() * scale
            tensors[i][:prefix] = rounded
    stored = [torch.zeros_like(b).to(torch.float8_e4m3fn) for b in world.pool.get_kv_buffer(0)]
    for i, prefix in enumerate(world.case.cached_lens):
        slots = world.slots[i][:prefix]
        stored[0].view(torch.uint8)[slots] = (
            (world.k[i][:prefix] / k_scale).to(stored[0].dtype).view(torch.uint8)
        )
        stored[1].view(torch.uint8)[slots] = (
            (world.v[i][:prefix] / v_scale).to(stored[1].dtype).view(torch.uint8)
        )
    world.pool.k_buffer, world.pool.v_buffer = [stored[0]], [stored[1]]
    world.layer.k_scale_float, world.layer.v_scale_float = k_scale, v_scale
    check(world.run(make_backend(world), save_kv_cache=False), world)


@pytest.mark.parametrize("num_layouts", [1, 2])
@pytest.mark.parametrize("window", [-1, 20])
def test_captured_decode_reads_its_buffers_at_every_replay(window, num_layouts):
    """What the kernels read at a replay is what was captured last: same tensors, new contents."""
    case = Case("decode", (37, 5, 70, 1), layer={"sliding_window_size": window})
    world = World(case, torch.float32, "cpu")
    backend = make_backend(world)
    backend.init_cuda_graph_state(8, 8)
    fill = backend.get_cuda_graph_seq_len_fill_value()
    zeros, ones = torch.zeros(4, dtype=torch.int64), torch.full((4,), fill)
    for _ in range(num_layouts):
        backend.init_forward_metadata_capture_cuda_graph(
            4, 4, zeros, ones, None, ForwardMode.DECODE, None
        )
    captured = backend.forward_metadata.decode
    addresses = [captured.rows.data_ptr(), captured.lens.data_ptr()]
    laid_out = captured.splits[-1, 0, False]
    assert laid_out.num_splits * int(laid_out.split_len) >= backend.max_context_len
    splits = backend.find_splits(captured, window, 0, False)
    batch = world.batch()
    backend.init_forward_metadata_replay_cuda_graph(
        4, batch.req_pool_indices, batch.seq_lens, sum(case.lens), None, ForwardMode.DECODE, None,
        batch.seq_lens_cpu,
    )  # fmt: skip
    replayed = backend.forward_metadata.decode
    assert [replayed.rows.data_ptr(), replayed.lens.data_ptr()] == addresses
    assert backend.find_splits(replayed, window, 0, False) is splits
    batch.attn_backend = backend
    check(world.layer(*world.inputs(), batch), world)
    assert splits.num_splits * int(splits.split_len) >= (70 if window < 0 else window + 1)


def test_captured_cross_attention():
    layer = {"is_cross_attention": True}
    case = Case("cross", (5, 9), layer=layer, encoder_lens=(30, 3))
    world = World(case, torch.float32, "cpu")
    backend = make_backend(world)
    backend.init_cuda_graph_state(2, 2)
    rows, lens, encoder_lens = torch.zeros(3, 2, dtype=torch.int64)
    backend.init_forward_metadata_capture_cuda_graph(
        2, 2, rows, lens, encoder_lens, ForwardMode.DECODE, None
    )
    batch = world.batch()
    backend.init_forward_metadata_replay_cuda_graph(
        2, batch.req_pool_indices, batch.seq_lens, 14, torch.tensor(case.encoder_lens),
        ForwardMode.DECODE, None, batch.seq_lens_cpu,
    )  # fmt: skip
    batch.attn_backend = backend
    check(world.layer(*world.inputs(), batch), world)


def test_only_decodes_are_captured():
    world = World(CASES[0], torch.float32, "cpu")
    backend = make_backend(world)
    backend.init_cuda_graph_state(4, 4)
    lens = torch.ones(4, dtype=torch.int64)
    with pytest.raises(ValueError, match="TARGET_VERIFY"):
        backend.init_forward_metadata_capture_cuda_graph(
            4, 4, lens, lens, None, ForwardMode.TARGET_VERIFY, None
        )


def test_idle_step():
    world = World(CASES[0], torch.float32, "cpu")
    batch = world.batch()
    batch.forward_mode, batch.attn_backend = ForwardMode.IDLE, make_backend(world)
    batch.attn_backend.init_forward_metadata(batch)
    assert world.layer(torch.empty(0, 64), None, None, batch).shape == (0, 64)


def test_unknown_arguments_are_refused():
    world = World(CASES[0], torch.float32, "cpu")
    with pytest.raises(ValueError, match="topk_indices"):
        world.run(make_backend(world), topk_indices=torch.zeros(1))
    world.layer.xai_temperature_len = 8
    with pytest.raises(ValueError, match="xai_temperature_len"):
        world.run(make_backend(world))


def test_registered_under_its_name():
    runner = SimpleNamespace(
        device=torch.device("cpu"),
        dtype=torch.float32,
        model_config=SimpleNamespace(
            get_num_kv_heads=lambda tp: 2, facts=SimpleNamespace(attention_chunk_size=8)
        ),
        req_to_token_pool=SimpleNamespace(max_context_len=64),
    )
    backend = create_attention_backend("triton", runner)
    assert isinstance(backend, TritonAttnBackend)
    assert (backend.num_kv_heads, backend.max_context_len) == (2, 64)
    assert backend.attention_chunk_size == 8
    assert backend.support_triton()
    runner.dtype = torch.bfloat16
    with pytest.raises(ConfigError, match="bfloat16"):
        create_attention_backend("triton", runner)


def test_oracle_itself_sees_a_wrong_window():
    """The comparison can fail: the same case with another window is far off."""
    case = Case("extend_window", (40,), (10,), layer={"sliding_window_size": 8})
    world, other = (
        World(replace(case, layer={"sliding_window_size": n}), torch.float32, "cpu") for n in (8, 9)
    )
    norm, _ = errors(other.run(make_backend(other)), world.expected())
    assert np.isfinite(norm) and norm > 1e-2
