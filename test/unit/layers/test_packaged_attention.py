"""The attention backends flashinfer and fa3 over stand-ins for their packages, against attention written out and torch_native.

The stand-ins read by what the backends plan; what must not be read is not a number (`attention_cases`).
"""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from triton_interpreter import ROOT, output_of, run_script

sys.path.insert(0, str(ROOT / "test" / "gpu"))

import fake_attention_packages as fakes  # noqa: E402
from attention_cases import NAN, Case, World, errors, is_within, make_backend  # noqa: E402
from stale_cases import stale_cases  # noqa: E402

from sglang.srt.layers.attention import (  # noqa: E402
    fa3_backend,
    flashinfer_backend,
    packaged_backend,
    page_index,
    registry,
)
from sglang.srt.layers.attention.fa3_backend import kernel_page_size  # noqa: E402
from sglang.srt.layers.attention.finite_values import move_to_keys  # noqa: E402
from sglang.srt.layers.attention.flashinfer_backend import FlashInferAttnBackend  # noqa: E402
from sglang.srt.layers.attention.phase_backend import PhaseAttnBackend  # noqa: E402
from sglang.srt.layers.attention.registry import (  # noqa: E402
    create_attention_backend,
    join_phases,
)
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend  # noqa: E402
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention  # noqa: E402
from sglang.srt.model_executor.forward_batch_info import ForwardMode  # noqa: E402
from sglang.srt.model_executor.model_runner import ModelRunner  # noqa: E402
from sglang.srt.utils.errors import ConfigError  # noqa: E402

ENCODER = {"attn_type": AttentionType.ENCODER_ONLY}
BIDIRECTIONAL = {"attn_type": AttentionType.DECODER_BIDIRECTIONAL}
CROSS = {"is_cross_attention": True}
D64 = {"dims": (64, 64)}
LATENT = {"heads": (5, 1), "dims": (576, 512), "is_latent": True}
WINDOW = {"sliding_window_size": 20}

CASES = [
    Case("decode", (37, 1, 16, 70), **D64),
    Case("decode_pages", (37, 50, 16, 17), page_size=16, **D64),
    Case("decode_window", (37, 3, 70), layer=WINDOW, **D64),
    Case("decode_window_pages", (37, 3, 70, 53), layer=WINDOW, page_size=16, **D64),
    Case("decode_cap", (37, 9), layer={"logit_cap": 2.0}, **D64),
    Case("decode_no_group", (20, 9), heads=(3, 3), dims=(128, 128)),
    Case("decode_group_of_7", (20, 9), heads=(7, 1), **D64),
    Case("decode_group_of_5", (20, 9), heads=(10, 2), **D64),
    Case("decode_shared_cache", (20, 33), has_new=False, **D64),
    Case("decode_latent", (40, 11, 1), **LATENT),
    Case("decode_latent_pages", (40, 16), page_size=16, **LATENT),
    Case("extend", (37, 5, 18), (0, 0, 0), **D64),
    Case("extend_prefix", (37, 5, 70), (20, 4, 0), **D64),
    Case("extend_prefix_pages", (37, 50, 16), (16, 3, 0), page_size=16, **D64),
    Case("extend_window", (60, 9), (0, 0), layer={"sliding_window_size": 12}, **D64),
    Case("extend_prefix_window", (60, 9), (25, 0), layer=WINDOW, page_size=16, **D64),
    Case("extend_cap", (30, 9), (0, 0), layer={"logit_cap": 2.0}, **D64),
    Case("extend_prefix_cap", (30, 9), (13, 0), layer={"logit_cap": 2.0}, **D64),
    Case("extend_group_of_7", (21, 3), (9, 0), heads=(7, 1), **D64),
    Case("extend_shared_cache", (40, 9), (13, 0), has_new=False, **D64),
    Case("extend_shared_whole", (40, 9), (0, 0), has_new=False, **D64),
    Case("extend_latent", (25, 11), (9, 0), **LATENT),
    Case("extend_latent_whole", (25, 11), (0, 0), page_size=16, **LATENT),
    Case("extend_expanded_latent", (25, 11), (0, 0), heads=(2, 2), dims=(192, 128)),
    Case("extend_no_spans", (30, 9), (4, 0), layer=BIDIRECTIONAL, spans=((), ()), **D64),
    Case("mixed", (20, 37, 9), (0, 36, 8), is_mixed=True, **D64),
    Case("mixed_window", (20, 37, 9), (3, 36, 8), is_mixed=True, layer=WINDOW, **D64),
    Case("mixed_latent", (20, 37, 9), (3, 36, 8), is_mixed=True, **LATENT),
]
# Run by the other backend; who declines them.
BOTH = ("flashinfer", "fa3")
DECLINED = [
    (Case("extend_encoder_only", (21, 4), (0, 0), layer=ENCODER, **D64), BOTH),
    (Case("decode_cross", (5, 9), layer=CROSS, encoder_lens=(30, 3), **D64), BOTH),
    (Case("extend_cross", (5, 20), (0, 0), layer=CROSS, encoder_lens=(30, 3), **D64), BOTH),
    (Case("decode_after_encoder", (5, 40), encoder_lens=(3, 0), **D64), BOTH),
    (Case("decode_chunk", (37, 33), layer={"use_irope": True}, chunk=16, **D64), BOTH),
    (
        Case("extend_spans", (50, 9), (4, 0), layer=BIDIRECTIONAL, spans=(((2, 21),), ()), **D64),
        BOTH,
    ),
    (Case("decode_sinks", (37, 9), has_sinks=True, **D64), ("flashinfer",)),
    (Case("extend_sinks", (37, 9), (9, 0), has_sinks=True, layer=WINDOW, **D64), ("flashinfer",)),
    (Case("decode_96", (37, 9), dims=(96, 96)), ("flashinfer",)),
    (Case("extend_whole_80", (37, 9), (0, 0), dims=(80, 80)), ("flashinfer",)),
    (Case("decode_expanded_latent", (37, 9), dims=(192, 128)), ("flashinfer",)),
    (Case("decode_odd_dims", (37, 9), dims=(24, 40)), BOTH),
    (Case("decode_latent_window", (37, 9), layer=WINDOW, **LATENT), ("flashinfer",)),
]


@pytest.fixture(autouse=True)
def packages(monkeypatch):
    fakes.install(monkeypatch)
    monkeypatch.setattr(flashinfer_backend, "WORKSPACE_BYTES", 1024)


def check(actual: torch.Tensor, world: World) -> None:
    found = world.errors(actual)
    assert actual.dtype == world.dtype
    assert is_within(found, world.dtype), found


def num_runs() -> int:
    return sum(count for name, count in fakes.CALLS.items() if name.startswith("run"))


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_against_the_oracle_and_torch(case, name):
    world = World(case, torch.float16, "cpu")
    out = world.run(make_backend(world, name))
    check(out, world)
    assert num_runs() == 1
    native = World(case, torch.float16, "cpu").run(TorchNativeAttnBackend())
    torch.testing.assert_close(out, native, rtol=1e-2, atol=5e-3)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("case, decliners", DECLINED, ids=lambda x: getattr(x, "name", ""))
def test_layers_without_a_kernel_go_to_the_other_backend(case, decliners, name, caplog):
    world = World(case, torch.float16, "cpu")
    backend = make_backend(world, name)
    check(world.run(backend), world)
    assert (num_runs() == 0) == (name in decliners)
    assert ("leaves layers to another backend" in caplog.text) == (name in decliners)


LENS = ((37, 5, 70, 130, 9), (20, 4, 0, 128, 8))
STALE = [
    *stale_cases(*LENS, (1, 3), **D64),
    *stale_cases(*LENS, (1, 3), (16, 64), **LATENT),
    *stale_cases(*LENS, (1, 3), (16, 64), is_fp8=True, **D64),
]


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("case", STALE, ids=lambda case: f"{case.name}, {case.dims[0]}")
def test_what_is_no_number_stays_with_its_request(case, name):
    """Behind the end of a page, and beside a request."""
    world = World(case, torch.float16, "cpu")
    check(world.run(make_backend(world, name)), world)
    assert num_runs() == (0 if case.is_fp8 and name == "fa3" else 1)


@pytest.mark.parametrize("name", BOTH)
def test_the_stand_ins_spoil_a_request_where_the_packages_would(name, monkeypatch):
    monkeypatch.setattr(packaged_backend, "move_to_keys", lambda k, v: None)
    world = World(Case("prompts", (37, 5), (0, 0), poisoned=(1,), **D64), torch.float16, "cpu")
    assert world.errors(world.run(make_backend(world, name))) == (float("inf"), float("inf"))
    if name == "fa3":
        monkeypatch.setattr(fa3_backend, "kernel_page_size", lambda size: size)
        world = World(Case("decode", (37, 5), page_size=64, **D64), torch.float16, "cpu")
        assert world.errors(world.run(make_backend(world, name))) == (float("inf"), float("inf"))


def test_pages_for_kernels_are_parts_of_the_cache_s():
    sizes = {1: 1, 16: 16, 32: 32, 64: 32, 80: 20, 97: 1, 128: 32}
    assert {size: kernel_page_size(size) for size in sizes} == sizes


def test_infinite_values_become_keys_that_are_no_numbers():
    k, v = torch.randn(3, 2, 4), torch.randn(3, 2, 5)
    v[0, 1, 2], v[2, 0, 4] = float("inf"), NAN
    keys, values = k.clone(), v.clone()
    move_to_keys(keys, values)
    is_lost = torch.tensor([[False, True], [False, False], [True, False]])
    assert keys[is_lost].isnan().all() and not values[is_lost].any()
    assert torch.equal(keys[~is_lost], k[~is_lost]) and torch.equal(values[~is_lost], v[~is_lost])


@pytest.mark.parametrize("name", BOTH)
def test_bfloat16(name):
    world = World(Case("extend", (37, 5), (20, 0), page_size=16, **D64), torch.bfloat16, "cpu")
    check(world.run(make_backend(world, name)), world)
    assert num_runs() == 1


@pytest.mark.parametrize("name", BOTH)
def test_a_mask_needs_the_triton_backend_and_goes_along_to_it(name, monkeypatch):
    world = World(Case("mask", (40, 9), (17, 0), has_mask=True, **D64), torch.float16, "cpu")
    with pytest.raises(ValueError, match="custom mask needs --attention-backend triton"):
        world.run(make_backend(world, name))
    metadata = flashinfer_backend.FlashInferStep()
    other = SimpleNamespace(
        forward_metadata=metadata,
        init_forward_metadata=lambda batch: None,
        forward=lambda q, *_, **__: q,
    )
    monkeypatch.setattr("attention_cases.make_other_backend", lambda world: other)
    backend = make_backend(world, name)
    world.run(backend)
    assert metadata.custom_mask is backend.forward_metadata.custom_mask is not None
    assert metadata.mask_indptr is backend.forward_metadata.mask_indptr is not None


@pytest.mark.parametrize("name", BOTH)
def test_a_window_is_not_ignored(name):
    """The bound of the errors is below what another window makes of it."""
    case = Case("extend_prefix_window", (60,), (25,), layer=WINDOW, **D64)
    world = World(case, torch.float16, "cpu")
    other = World(replace(case, layer={"sliding_window_size": 19}), torch.float16, "cpu")
    assert not is_within(
        errors(other.run(make_backend(other, name)), world.expected()), world.dtype
    )


@pytest.mark.parametrize("name", BOTH)
def test_cache_is_left_alone_when_told_to(name):
    world = World(Case("extend", (20,), (0,), **D64), torch.float16, "cpu")
    check(world.run(make_backend(world, name), save_kv_cache=False), world)
    assert not world.pool.get_key_buffer(0)[world.slots[0]].isfinite().any()


@pytest.mark.parametrize("name", BOTH)
def test_rotary_parts_that_come_apart(name):
    world = World(Case("latent", (20, 3), (7, 0), **LATENT), torch.float16, "cpu")
    batch = world.batch()
    batch.attn_backend = backend = make_backend(world, name)
    backend.init_forward_metadata(batch)
    q, k, v = world.inputs()
    q, k = q.view(-1, 5, 576), k.view(-1, 1, 576)
    out = backend.forward(
        q[..., :512], k[..., :512], v.view(-1, 1, 512), world.layer, batch,
        q_rope=q[..., 512:], k_rope=k[..., 512:],
    )  # fmt: skip
    check(out, world)


@pytest.mark.parametrize("lens, cached", [((20, 9), None), ((20, 9), (13, 0)), ((20, 9), (0, 0))])
def test_scaled_cache(lens, cached):
    """flashinfer multiplies a cache in fp8 by the scales of its layer."""
    world = World(Case("fp8", lens, cached, **D64), torch.float16, "cpu")
    scales, fp8 = (0.5, 2.0), torch.float8_e4m3fn
    stored = [torch.zeros_like(b).to(fp8) for b in world.pool.get_kv_buffer(0)]
    for i, slots in enumerate(world.slots):
        for tensors, scale, buffer in zip((world.k, world.v), scales, stored, strict=True):
            codes = (tensors[i] / scale).to(fp8)
            buffer.view(torch.uint8)[slots] = codes.view(torch.uint8)
            if cached != (0, 0):  # whole prompts are attended as they are
                tensors[i] = (codes.float() * scale).half()
    world.pool.k_buffer, world.pool.v_buffer = [stored[0]], [stored[1]]
    world.layer.k_scale_float, world.layer.v_scale_float = scales
    check(world.run(make_backend(world, "flashinfer"), save_kv_cache=False), world)
    assert num_runs() == 1


def test_a_plan_serves_all_layers_of_its_kind():
    case = Case("decode", (37, 5, 70), **D64)
    world = World(case, torch.float16, "cpu")
    batch = world.batch()
    batch.attn_backend = backend = make_backend(world, "flashinfer")
    windowed = RadixAttention(4, 64, 0.125, 2, layer_id=0, sliding_window_size=20)
    for _ in range(2):
        backend.init_forward_metadata(batch)
        for _ in range(3):
            world.layer(*world.inputs(), batch)
            windowed(*world.inputs(), batch)
    assert (fakes.CALLS["plan decode"], fakes.CALLS["run decode"]) == (4, 12)


@pytest.mark.parametrize("cached", [None, (20, 0, 33)])
def test_a_schedule_of_fa3_is_made_by_the_first_layer_of_its_kind(cached):
    """In each run of a step: the second may be a capture, which must hold the kernel that makes it."""
    world = World(Case("any", (37, 5, 70), cached, **D64), torch.float16, "cpu")
    batch = world.batch()
    batch.attn_backend = backend = make_backend(world, "fa3")
    layers = [
        RadixAttention(4, 64, 0.125, 2, layer_id=0, sliding_window_size=20),
        *(RadixAttention(4, 64, 0.125, 2, layer_id=i) for i in (1, 2)),
        RadixAttention(4, 64, 0.125, 2, layer_id=3, sliding_window_size=20),
    ]
    world.pool.k_buffer, world.pool.v_buffer = world.pool.k_buffer * 4, world.pool.v_buffer * 4
    world.pool.layer_num = 4
    backend.init_forward_metadata(batch)
    for _ in range(2):
        for layer in layers:
            layer(*world.inputs(), batch)
    assert (fakes.CALLS["schedule"], fakes.CALLS["run cache"]) == (4, 8)


# --- captured decodes


def replay(world: World, backend, size: int) -> torch.Tensor:
    """Capture `size` requests with stand-ins, then run the case's requests and padding through what was captured.

    Row 0 is the padding's; one key of it is read.
    """
    case, padding = world.case, size - len(world.case.lens)
    backend.init_cuda_graph_state(size, size)
    rows = torch.zeros(size, dtype=torch.int64)
    lens = torch.full((size,), backend.get_cuda_graph_seq_len_fill_value())
    backend.init_forward_metadata_capture_cuda_graph(
        size, size, rows, lens, None, ForwardMode.DECODE, None
    )
    batch = world.batch()
    batch.batch_size, batch.attn_backend = size, backend
    inputs = [
        torch.cat([x, torch.zeros(padding, x.shape[1], dtype=x.dtype)]) for x in world.inputs()
    ]
    real_loc, batch.out_cache_loc = batch.out_cache_loc, torch.zeros(size, dtype=torch.int64)
    world.rows.req_to_token[0] = 0
    kwargs = {} if world.sinks is None else {"sinks": world.sinks}
    world.layer(*[torch.zeros_like(x) for x in inputs], batch, **kwargs)
    rows[: len(case.lens)] = torch.arange(1, len(case.lens) + 1)
    lens[: len(case.lens)] = torch.tensor(case.lens)
    batch.out_cache_loc[: len(real_loc)] = real_loc
    seq_lens_cpu = torch.tensor(case.lens)  # of the real requests, as the graph runner gives it
    backend.init_forward_metadata_replay_cuda_graph(
        size, rows, lens, sum(case.lens), None, ForwardMode.DECODE, None, seq_lens_cpu
    )
    return world.layer(*inputs, batch, **kwargs)[: len(case.lens)]


CAPTURED = [
    Case("decode", (37, 5, 70), **D64),
    Case("decode_pages", (37, 16, 70), page_size=16, **D64),
    Case("decode_window", (37, 5, 70), layer=WINDOW, **D64),
    Case("decode_window_pages", (37, 5, 70), layer=WINDOW, page_size=16, **D64),
    Case("decode_latent", (37, 5), **LATENT),
]


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("case", CAPTURED, ids=lambda case: case.name)
def test_captured_decode_with_padding(case, name):
    world = World(case, torch.float16, "cpu")
    backend = make_backend(world, name)
    check(replay(world, backend, 8), world)
    assert num_runs() == 2


def test_captured_sizes_read_their_own_buffers_in_place():
    """Whatever was captured before or since, a replay of flashinfer finds its lengths and pages where the capture had them."""
    world = World(Case("decode", (37, 5, 70), **D64), torch.float16, "cpu")
    backend = make_backend(world, "flashinfer")
    check(replay(world, backend, 8), world)
    (plan,) = backend._graph_steps[8].plans.values()
    buffers = plan._wrapper.paged.buffers
    addresses = {key: buffer.data_ptr() for key, buffer in buffers.items()}
    rows = torch.tensor([3, 0, 0, 0, 0, 0, 0, 0])
    backend.init_forward_metadata_replay_cuda_graph(
        8, rows, rows, 70, None, ForwardMode.DECODE, None, torch.tensor([70])
    )
    assert {key: buffer.data_ptr() for key, buffer in buffers.items()} == addresses
    assert buffers["starts"].tolist() == [0, *range(70, 78)]
    torch.testing.assert_close(buffers["pages"][:70].long(), world.slots[2])


def test_fa3_reads_its_own_buffers_in_place():
    world = World(Case("decode", (37, 5, 70), **D64), torch.float16, "cpu")
    backend = make_backend(world, "fa3")
    check(replay(world, backend, 8), world)
    step = backend._graph_steps[8]
    addresses = [x.data_ptr() for x in (step.lens, step.pages, step.query_starts)]
    rows = torch.tensor([3, 0, 0, 0, 0, 0, 0, 0])
    backend.init_forward_metadata_replay_cuda_graph(
        8, rows, rows, 70, None, ForwardMode.DECODE, None, torch.tensor([70])
    )
    assert [x.data_ptr() for x in (step.lens, step.pages, step.query_starts)] == addresses
    assert step.lens.tolist() == [70] + [1] * 7
    torch.testing.assert_close(step.pages[0, :70].long(), world.slots[2])


class _Recorder:
    """A backend that notes what it is asked to prepare."""

    def __init__(self, world: World) -> None:
        self.calls: list[str] = []
        self.forward_metadata = None
        self.num_heads, self.v_dim = world.num_heads, world.layer.v_head_dim

    def init_cuda_graph_state(self, *_):
        self.calls.append("state")

    def init_forward_metadata(self, batch):
        self.calls.append("eager")

    def init_forward_metadata_capture_cuda_graph(self, bs, *_):
        self.calls.append(f"capture {bs}")

    def init_forward_metadata_replay_cuda_graph(self, bs, *_):
        self.calls.append(f"replay {bs}")

    def forward(self, q, *_, **__):
        self.calls.append("forward")
        return q.new_zeros(len(q), self.num_heads * self.v_dim)


def test_declined_layers_are_captured_by_the_other_backend():
    world = World(Case("decode", (37, 5), has_sinks=True, **D64), torch.float16, "cpu")
    recorder = _Recorder(world)
    table = world.rows.req_to_token
    backend = FlashInferAttnBackend(table, 1, lambda: recorder)
    replay(world, backend, 4)
    assert recorder.calls == ["state", "capture 4", "forward", "replay 4", "forward"]
    recorder.calls.clear()
    rows = torch.tensor([1, 2, 0, 0])
    backend.init_forward_metadata_replay_cuda_graph(
        4, rows, rows, 42, None, ForwardMode.DECODE, None, torch.tensor([37, 5])
    )
    assert recorder.calls == ["replay 4"]  # no layer runs in a replay
    recorder.calls.clear()
    # A size whose graph has no declined layer does not prepare it.
    backend.init_forward_metadata_capture_cuda_graph(
        2, 2, torch.zeros(2, dtype=torch.int64), None, None, ForwardMode.DECODE, None
    )
    backend.init_forward_metadata_replay_cuda_graph(
        2, rows, rows, 42, None, ForwardMode.DECODE, None, torch.tensor([37, 5])
    )
    assert recorder.calls == []
    # In eager steps it is prepared once, by the first layer that is declined.
    batch = world.batch()
    batch.attn_backend = backend
    backend.init_forward_metadata(batch)
    for _ in range(2):
        world.layer(*world.inputs(), batch, sinks=world.sinks)
    assert recorder.calls == ["eager", "forward", "forward"]


@pytest.mark.parametrize("name", BOTH)
def test_only_plain_decodes_are_captured(name):
    world = World(Case("decode", (5,), **D64), torch.float16, "cpu")
    backend = make_backend(world, name)
    backend.init_cuda_graph_state(1, 1)
    zero = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="plain decodes only, not TARGET_VERIFY"):
        backend.init_forward_metadata_capture_cuda_graph(
            1, 1, zero, zero, None, ForwardMode.TARGET_VERIFY, None
        )
    with pytest.raises(ValueError, match="plans from seq_lens_cpu"):
        backend.init_forward_metadata_replay_cuda_graph(
            1, zero, zero, 1, None, ForwardMode.DECODE, None, None
        )


# --- pages


def test_page_index_of_a_window():
    """Of a decode only pages within the window are listed."""
    table = torch.arange(200, dtype=torch.int32).view(2, 100)
    requests = page_index.PagedRequests(
        table, torch.tensor([1, 0]), np.array([70, 3]), np.array([1, 1]), 16
    )
    whole = page_index.build_page_index(requests)
    assert whole.starts_cpu.tolist() == [0, 5, 6]
    assert whole.last_lens_cpu.tolist() == [6, 3] and whole.lens_cpu.tolist() == [70, 3]
    part = page_index.build_page_index(requests, window=20)  # keys 49 .. 69, pages 3 and 4
    assert part.starts_cpu.tolist() == [0, 2, 3] and part.lens_cpu.tolist() == [22, 3]
    assert part.pages.tolist() == [(100 + 48) // 16, (100 + 64) // 16, 0]


@pytest.mark.skipif(not page_index.has_triton(), reason="the package triton is not installed")
def test_gather_kernel_in_the_interpreter():
    assert output_of(run_script("page_gather_case.py")).strip() == "equal"


# --- choice


def test_phases_go_to_their_backends():
    case = Case("decode", (37, 5), **D64)
    world = World(case, torch.float16, "cpu")
    backend = PhaseAttnBackend(TorchNativeAttnBackend(), make_backend(world, "flashinfer"))
    check(world.run(backend), world)
    assert num_runs() == 1 and backend.forward_metadata is backend.decode.forward_metadata
    world = World(Case("extend", (37, 5), (9, 0), **D64), torch.float16, "cpu")
    backend = PhaseAttnBackend(TorchNativeAttnBackend(), make_backend(world, "flashinfer"))
    check(world.run(backend), world)
    assert num_runs() == 1 and backend.forward_metadata is backend.prefill.forward_metadata
    captured = World(case, torch.float16, "cpu")
    backend = PhaseAttnBackend(TorchNativeAttnBackend(), make_backend(captured, "fa3"))
    check(replay(captured, backend, 4), captured)


def test_a_pair_of_names_makes_a_backend_of_both():
    facts = SimpleNamespace(facts=SimpleNamespace(attention_chunk_size=None))
    runner = SimpleNamespace(model_config=facts)
    assert join_phases("triton", "triton") == "triton"
    pair = create_attention_backend(join_phases("torch_native", "torch_native"), runner)
    assert isinstance(pair, TorchNativeAttnBackend)
    pair = create_attention_backend("torch_native+torch_native", runner)
    assert isinstance(pair, PhaseAttnBackend) and pair.prefill is not pair.decode


@pytest.mark.parametrize(
    "name, package", [("flashinfer", "flashinfer-python"), ("fa3", "sglang-kernel")]
)
def test_refused_without_the_package(name, package, monkeypatch):
    runner = SimpleNamespace(device=torch.device("cuda"), dtype=torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(registry.importlib.util, "find_spec", lambda name: None)
    message = rf"needs the package {package}.*sglang\[cuda\].*--attention-backend triton"
    with pytest.raises(ConfigError, match=message):
        create_attention_backend(name, runner)


@pytest.mark.parametrize("has_package", [True, False])
@pytest.mark.parametrize("name", BOTH)
def test_refused_on_other_machines(name, has_package, monkeypatch):
    """What is advised runs there, whatever is installed."""
    found = object() if has_package else None
    monkeypatch.setattr(registry.importlib.util, "find_spec", lambda name: found)
    runner = SimpleNamespace(device=torch.device("cpu"), dtype=torch.bfloat16)
    with pytest.raises(ConfigError, match="needs device cuda, not cpu.*torch_native"):
        create_attention_backend(name, runner)
    runner = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32)
    with pytest.raises(ConfigError, match="not torch.float32; choose --dtype bfloat16"):
        create_attention_backend(name, runner)


@pytest.mark.parametrize("has_package", [True, False])
def test_fa3_is_refused_below_hopper(has_package, monkeypatch):
    found = object() if has_package else None
    monkeypatch.setattr(registry.importlib.util, "find_spec", lambda name: found)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    runner = SimpleNamespace(device=torch.device("cuda"), dtype=torch.bfloat16)
    with pytest.raises(ConfigError, match="9.0 .Hopper., this one has 8.9"):
        create_attention_backend("fa3", runner)


@pytest.mark.parametrize("name", BOTH)
def test_made_for_a_runner(name, monkeypatch):
    for check_name in ("_check_gpu", "_check_hopper", "_check_package"):
        monkeypatch.setattr(registry, check_name, lambda *_: None)
    world = World(Case("decode", (37, 17), page_size=16, **D64), torch.float16, "cpu")
    runner = SimpleNamespace(
        device=torch.device("cpu"),
        config=SimpleNamespace(page_size=16),
        req_to_token_pool=world.rows,
    )
    backend = create_attention_backend(name, runner)
    check(world.run(backend), world)
    assert num_runs() == 1 and backend.declined == frozenset()


@pytest.mark.parametrize(
    "name, taken",
    [
        ("triton", 0),
        ("torch_native", 0),
        ("fa3", 4 * 64 * 100),
        ("flashinfer", 288 * 2**20 + 4 * 64 * 100),
        ("flashinfer+triton", 288 * 2**20 + 4 * 64 * 100),
        ("fa3+flashinfer", 288 * 2**20 + 2 * 4 * 64 * 100),
    ],
)
def test_the_cache_leaves_room_for_the_backend(name, taken, monkeypatch):
    """100 pages of 16 tokens for each of 64 requests, an int32 each."""
    monkeypatch.setattr(flashinfer_backend, "WORKSPACE_BYTES", 256 * 2**20)
    monkeypatch.setattr(flashinfer_backend, "PLAN_BYTES", 8 * 2**20)
    runner = ModelRunner.__new__(ModelRunner)
    runner.platform = SimpleNamespace(
        is_cpu=False, free_memory=lambda: 60 * 2**30, total_memory=lambda: 80 * 2**30
    )
    runner.model_config = SimpleNamespace(row_width=1600)
    runner.config = SimpleNamespace(
        attention_backend=name,
        page_size=16,
        graph_batch_sizes=(1, 64, 256),
        max_running_requests=50,
        mem_fraction_static=0.75,
    )
    assert runner._memory_for_kv() == 40 * 2**30 - taken


@pytest.mark.parametrize("name", ["flashinfer", "fa3"])
def test_a_package_that_does_not_fit_is_named(name, monkeypatch):
    def fail(module):
        raise ImportError(f"{module}: undefined symbol")

    runner = SimpleNamespace(device=torch.device("cuda"), dtype=torch.bfloat16)
    monkeypatch.setattr(registry.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(registry.importlib, "import_module", fail)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    message = r"cannot be imported \(ImportError: .*undefined symbol\).*--attention-backend triton"
    with pytest.raises(ConfigError, match=message):
        create_attention_backend(name, runner)


def test_flashinfer_can_be_hidden(monkeypatch):
    monkeypatch.setenv("SGLANG_IS_FLASHINFER_AVAILABLE", "false")
    runner = SimpleNamespace(device=torch.device("cuda"), dtype=torch.bfloat16)
    with pytest.raises(ConfigError, match="hidden by SGLANG_IS_FLASHINFER_AVAILABLE"):
        create_attention_backend("flashinfer", runner)
