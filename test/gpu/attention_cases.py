"""Cases for an attention backend and their oracle: softmax written out in high precision, request by request.

Used on a GPU by `run_attention.py` and `test_attention_gpu.py`, and in Triton's interpreter by the unit tests. What must
not be read is not a number, or infinite: free slots of the pool, slots behind the end of a request on its last page, stale
entries of the row table, the padding page, and all that a `poisoned` request computed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from sglang.srt.layers.radix_attention import AttentionType, RadixAttention
from sglang.srt.mem_cache.fp8_pool import Fp8MHATokenToKVPool
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, ReqToTokenPool
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode

# Largest relative error (norm of the difference over norm of the result) and largest single error over the largest
# value. Weights and results are rounded to the dtype once each.
BOUNDS = {
    torch.float32: (1e-5, 1e-5),
    torch.float16: (1.5e-3, 4e-3),
    torch.bfloat16: (1e-2, 2.5e-2),
}
FP8 = torch.float8_e4m3fn
FP8_SCALES = (0.5, 2.0)  # of keys and of values
NAN, INF = float("nan"), float("inf")


@dataclass(frozen=True)
class Case:
    """One step of one layer. `lens` are whole sequences, `prefix_lens` what of them is cached (decode: all but one)."""

    name: str
    lens: tuple[int, ...]
    prefix_lens: tuple[int, ...] | None = None  # None: a decode
    heads: tuple[int, int] = (4, 2)
    dims: tuple[int, int] = (16, 16)
    page_size: int = 1
    layer: dict[str, Any] = field(default_factory=dict)
    has_sinks: bool = False
    has_new: bool = True  # keys and values of the new tokens are given as tensors
    is_latent: bool = False  # values are the first part of the keys
    is_mixed: bool = False
    chunk: int | None = None
    encoder_lens: tuple[int, ...] | None = None
    # Which new tokens see which encoder tokens: (first, end, low, high) for each request.
    views: tuple[tuple[tuple[int, int, int, int], ...], ...] | None = None
    spans: tuple[tuple[tuple[int, int], ...], ...] | None = None
    has_mask: bool = False
    is_fp8: bool = False  # the cache; keys and values are numbers that it holds exactly
    # Requests whose first value is infinite and whose last query, key and value are not numbers: theirs alone may be wrong.
    poisoned: tuple[int, ...] = ()

    @property
    def is_decode(self) -> bool:
        return self.prefix_lens is None

    @property
    def cached_lens(self) -> tuple[int, ...]:
        return self.prefix_lens or tuple(n - 1 for n in self.lens)


def make_backend(world: World, name: str = "triton") -> Any:
    """The backend of this name for a case. Packages are imported here, after the caller chose how they run."""
    table, page_size = world.rows.req_to_token, world.case.page_size
    if name == "flashinfer":
        from sglang.srt.layers.attention.flashinfer_backend import FlashInferAttnBackend

        return FlashInferAttnBackend(table, page_size, lambda: make_other_backend(world))
    if name == "fa3":
        from sglang.srt.layers.attention.fa3_backend import Fa3AttnBackend

        # A split whose sum is no number is left out when splits are added up: of a poisoned request other layers tell.
        world.hides_poison = world.case.is_decode
        return Fa3AttnBackend(table, page_size, lambda: make_other_backend(world))
    if name == "torch_native":
        from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend

        return TorchNativeAttnBackend(attention_chunk_size=world.case.chunk)
    if name != "triton":
        raise ValueError(f"backend {name!r}; known: torch_native, triton, flashinfer, fa3")
    from sglang.srt.layers.attention.triton_backend import TritonAttnBackend

    return TritonAttnBackend(
        world.num_kv,
        world.rows.max_context_len,
        torch.device(world.device),
        attention_chunk_size=world.case.chunk,
    )


def make_other_backend(world: World) -> Any:
    """What runs the layers that a backend declines."""
    return make_backend(world, "torch_native" if world.device == "cpu" else "triton")


class LatentPool:
    """Keys of one layer, whose first columns are the values."""

    def __init__(self, keys: torch.Tensor, v_dim: int) -> None:
        self.keys, self.v_dim = keys, v_dim

    def set_kv_buffer(self, layer, loc, k, v) -> None:
        self.keys[loc] = k

    def get_key_buffer(self, layer_id: int) -> torch.Tensor:
        return self.keys

    def get_value_buffer(self, layer_id: int) -> torch.Tensor:
        return self.keys[..., : self.v_dim]


class World:
    """The tensors of a case. Keys and values [tokens, K, d] per request, encoder tokens apart."""

    def __init__(self, case: Case, dtype: torch.dtype, device: str, seed: int = 0) -> None:
        self.case, self.dtype, self.device = case, dtype, device
        self.hides_poison = False  # whether a poisoned request may come out finite
        self.generator = torch.Generator(device=device).manual_seed(seed)
        (self.num_heads, self.num_kv), (dim, v_dim) = case.heads, case.dims
        self.layer = RadixAttention(
            self.num_heads, dim, dim**-0.5, self.num_kv, layer_id=0, v_head_dim=v_dim, **case.layer
        )
        if case.is_fp8:
            self.layer.k_scale_float, self.layer.v_scale_float = FP8_SCALES
            self.layer.k_scale, self.layer.v_scale = torch.tensor(FP8_SCALES, device=device)
        self.sinks = self._randn(self.num_heads).float() if case.has_sinks else None
        new_lens = [n - p for n, p in zip(case.lens, case.cached_lens, strict=True)]
        self.q = [self._randn(n, self.num_heads, dim) for n in new_lens]
        self.k = [self._held(self._randn(n, self.num_kv, dim), FP8_SCALES[0]) for n in case.lens]
        self.v = [self._values(k) for k in self.k]
        for i in case.poisoned:
            self.v[i][0] = INF
            self.q[i][-1] = self.k[i][-1] = self.v[i][-1] = NAN
        encoder_lens = case.encoder_lens or (0,) * len(case.lens)
        self.encoder_k = [self._randn(n, self.num_kv, dim) for n in encoder_lens]
        self.encoder_v = [self._values(k) for k in self.encoder_k]
        self.masks = None
        if case.has_mask:
            self.masks = [
                self._mask(n, p) for n, p in zip(case.lens, case.cached_lens, strict=True)
            ]
        self._lay_out(encoder_lens)

    def _randn(self, *shape: int) -> torch.Tensor:
        x = torch.randn(*shape, generator=self.generator, device=self.device)
        return x.to(self.dtype)

    def _values(self, k: torch.Tensor) -> torch.Tensor:
        v_dim = self.case.dims[1]
        if self.case.is_latent:
            return k[..., :v_dim]
        return self._held(self._randn(len(k), self.num_kv, v_dim), FP8_SCALES[1])

    def _held(self, x: torch.Tensor, scale: float) -> torch.Tensor:
        """Numbers near `x` that the cache holds exactly."""
        return (x.float() / scale).to(FP8).to(x.dtype) * scale if self.case.is_fp8 else x

    def _mask(self, length: int, prefix: int) -> torch.Tensor:
        """Random visibility [new, length] in which every token sees itself."""
        shape = (length - prefix, length)
        mask = torch.rand(shape, generator=self.generator, device=self.device) < 0.5
        mask |= torch.arange(prefix, length, device=self.device)[:, None] == torch.arange(
            length, device=self.device
        )
        return mask

    def _lay_out(self, encoder_lens: tuple[int, ...]) -> None:
        """Pages in random order; what is cached is in the pool, all else in it is not a number."""
        case, page = self.case, self.case.page_size
        totals = [e + n for e, n in zip(encoder_lens, case.lens, strict=True)]
        pages = [-(-n // page) for n in totals]
        num_pages = sum(pages) + 2
        order = torch.randperm(num_pages - 1, generator=self.generator, device=self.device) + 1
        width = max(totals) + 8
        self.rows = ReqToTokenPool(len(totals) + 1, width, self.device)
        stale = int(order[-1]) * page  # a free slot
        self.rows.req_to_token.fill_(stale)
        self.pool: Any = self._make_pool(num_pages * page)
        self.slots, used = [], 0
        for i, (total, count) in enumerate(zip(totals, pages, strict=True)):
            offsets = torch.arange(page, device=self.device)
            slots = (order[used : used + count, None] * page + offsets).flatten()[:total]
            used += count
            self.rows.req_to_token[i + 1, :total] = slots.int()
            self.slots.append(slots)
            cached = encoder_lens[i] + case.cached_lens[i]
            k = torch.cat([self.encoder_k[i], self.k[i]])
            v = torch.cat([self.encoder_v[i], self.v[i]])
            if not case.has_new:
                cached = total
            if cached:
                self.pool.set_kv_buffer(self.layer, slots[:cached], k[:cached], v[:cached])

    def _make_pool(self, size: int) -> Any:
        """A pool without a finite number."""
        case, (dim, v_dim) = self.case, self.case.dims
        make, dtype = (Fp8MHATokenToKVPool, FP8) if case.is_fp8 else (MHATokenToKVPool, self.dtype)
        page, num_kv = case.page_size, self.num_kv
        pool = make(size, page, dtype, num_kv, dim, 1, self.device, v_head_dim=v_dim)
        for buffer in pool.buffers:
            if case.is_fp8:  # which has no infinity
                buffer.view(torch.uint8).fill_(0x7F)
                continue
            for first, value in enumerate((NAN, INF, -INF)):
                buffer[first::3] = value
        return LatentPool(pool.get_key_buffer(0), v_dim) if case.is_latent else pool

    def batch(self) -> ForwardBatch:
        case = self.case
        new_lens = [n - p for n, p in zip(case.lens, case.cached_lens, strict=True)]
        encoder_lens = case.encoder_lens or (0,) * len(case.lens)
        new_slots = [s[len(s) - n :] for s, n in zip(self.slots, new_lens, strict=True)]
        mode = ForwardMode.MIXED if case.is_mixed else ForwardMode.EXTEND
        lens = torch.tensor(case.lens)
        return ForwardBatch(
            forward_mode=ForwardMode.DECODE if case.is_decode else mode,
            batch_size=len(case.lens),
            req_pool_indices=torch.arange(1, len(case.lens) + 1, device=self.device),
            seq_lens=lens.to(self.device),
            seq_lens_cpu=lens,
            out_cache_loc=torch.cat(new_slots),
            extend_seq_lens_cpu=None if case.is_decode else new_lens,
            extend_prefix_lens_cpu=None if case.is_decode else list(case.cached_lens),
            req_to_token_pool=self.rows,
            token_to_kv_pool=self.pool,
            encoder_lens_cpu=None if case.encoder_lens is None else list(encoder_lens),
            encoder_out_cache_loc=torch.cat(
                [s[:n] for s, n in zip(self.slots, encoder_lens, strict=True)]
            ),
            encoder_views=None if case.views is None else [list(v) for v in case.views],
            bidirectional_spans=None if case.spans is None else [list(s) for s in case.spans],
        )

    def inputs(self) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """What the layer is called with: q, k, v of the new tokens, flat."""

        def new(tensors: list[torch.Tensor]) -> torch.Tensor:
            cached = self.case.cached_lens
            return torch.cat([t[p:] for t, p in zip(tensors, cached, strict=True)]).flatten(1)

        q, k, v = torch.cat(self.q).flatten(1), new(self.k), new(self.v)
        if not self.case.has_new:
            return q, None, None
        if self.layer.is_cross_attention:
            k, v = (torch.cat(t).flatten(1) for t in (self.encoder_k, self.encoder_v))
        return q, k, v

    def run(self, backend: Any, **kwargs: Any) -> torch.Tensor:
        """The layer's output [T, H * d_v]."""
        batch = self.batch()
        batch.attn_backend = backend
        backend.init_forward_metadata(batch)
        if self.masks is not None:
            sizes = torch.tensor([0] + [m.numel() for m in self.masks], device=self.device)
            backend.forward_metadata.custom_mask = torch.cat([m.flatten() for m in self.masks])
            backend.forward_metadata.mask_indptr = sizes.cumsum(0)
        if self.sinks is not None:
            kwargs["sinks"] = self.sinks
        q, k, v = self.inputs()
        poison_free_memory(q, self.num_heads * self.layer.v_head_dim)
        return self.layer(q, k, v, batch, **kwargs)

    def run_captured(self, backend: Any) -> torch.Tensor:
        """A decode captured as a CUDA graph with stand-in requests and replayed with those of the case."""
        batch = self.batch()
        size, mode = batch.batch_size, ForwardMode.DECODE
        backend.init_cuda_graph_state(size, size)
        stand_ins = torch.full_like(batch.seq_lens, backend.get_cuda_graph_seq_len_fill_value())
        backend.init_forward_metadata_capture_cuda_graph(
            size, size, batch.req_pool_indices, stand_ins, None, mode, None
        )
        real = self.inputs()
        inputs = [torch.zeros_like(x) for x in real]
        loc, batch.out_cache_loc = batch.out_cache_loc, torch.zeros_like(batch.out_cache_loc)
        batch.attn_backend = backend
        kwargs = {} if self.sinks is None else {"sinks": self.sinks}
        self.layer(*inputs, batch, **kwargs)  # compiles
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = self.layer(*inputs, batch, **kwargs)
        out.fill_(NAN)
        for static, value in zip(inputs, real, strict=True):
            static.copy_(value)
        batch.out_cache_loc.copy_(loc)
        lens = batch.seq_lens_cpu
        backend.init_forward_metadata_replay_cuda_graph(
            size, batch.req_pool_indices, batch.seq_lens, int(lens.sum()), None, mode, None, lens
        )
        graph.replay()
        torch.cuda.synchronize()
        return out

    # --- oracle

    def expected(self) -> torch.Tensor:
        """Output [T, H * d_v] in float64 on a CPU, float32 on a GPU."""
        return torch.cat([self._attend(i) for i in range(len(self.case.lens))])

    def errors(self, actual: torch.Tensor) -> tuple[float, float]:
        """`errors` of all requests but the poisoned ones; inf if one of those came out finite, which hides what happened to it, where the
        backend is not known to do so."""
        expected, lens = self.expected(), [len(q) for q in self.q]
        pairs = list(zip(actual.split(lens), expected.split(lens), strict=True))
        lost = [pairs[i][0][-1] for i in self.case.poisoned]
        if not self.hides_poison and any(torch.isfinite(row).any() for row in lost):
            return INF, INF
        sound = [pair for i, pair in enumerate(pairs) if i not in self.case.poisoned]
        found, wanted = (torch.cat(parts) for parts in zip(*sound, strict=True))
        return errors(found, wanted)

    def _attend(self, i: int) -> torch.Tensor:
        exact = torch.float64 if self.device == "cpu" else torch.float32
        prefix, length, layer = self.case.cached_lens[i], self.case.lens[i], self.layer
        q = self.q[i].to(exact)
        k, v = self.k[i].to(exact), self.v[i].to(exact)
        if layer.is_cross_attention:
            k, v = self.encoder_k[i].to(exact), self.encoder_v[i].to(exact)
        group = self.num_heads // self.num_kv
        heads = []
        for head in range(self.num_heads):
            scores = q[:, head] @ k[:, head // group].T * layer.scaling
            if layer.logit_cap > 0:
                scores = layer.logit_cap * torch.tanh(scores / layer.logit_cap)
            if layer.is_cross_attention:
                scores.masked_fill_(~self._visible_encoder(i, len(q), len(k)), float("-inf"))
            else:
                scores.masked_fill_(~self._visible(i, prefix, length), float("-inf"))
            if self.sinks is not None:
                sink = self.sinks[head].to(exact).expand(len(q), 1)
                scores = torch.cat([scores, sink], dim=1)
            weights = torch.softmax(scores, dim=1)[:, : len(k)]
            weights = weights.nan_to_num(0.0)  # of a query that sees no key
            heads.append(weights @ v[:, head // group])
        return torch.cat(heads, dim=1)

    def _visible_encoder(self, i: int, num_new: int, num_keys: int) -> torch.Tensor:
        """bool [new, encoder tokens]."""
        visible = torch.zeros(num_new, num_keys, dtype=torch.bool, device=self.device)
        views = ((0, num_new, 0, num_keys),) if self.case.views is None else self.case.views[i]
        for first, end, low, high in views:
            visible[first:end, low:high] = True
        return visible

    def _visible(self, i: int, prefix: int, length: int) -> torch.Tensor:
        """bool [new, length]."""
        query = torch.arange(prefix, length, device=self.device)[:, None]
        key = torch.arange(length, device=self.device)[None]
        window, layer = self.layer.sliding_window_size or -1, self.layer
        if layer.attn_type == AttentionType.ENCODER_ONLY:
            return torch.ones_like(query < key)
        visible = key <= query
        if self.masks is not None:
            visible = self.masks[i]
        if window > 0:
            visible = visible & (key >= query - window)
        if self.case.chunk is not None and layer.use_irope:
            visible = visible & (key >= query // self.case.chunk * self.case.chunk)
        for first, last in self.case.spans[i] if self.case.spans else ():
            visible = visible | ((query >= first) & (query < last) & (key >= first) & (key < last))
        return visible


def poison_free_memory(like: torch.Tensor, width: int) -> None:
    """Leave not-a-number where a caching allocator will put the output, so that rows never written show."""
    torch.full((len(like), width), NAN, dtype=like.dtype, device=like.device)


def errors(actual: torch.Tensor, expected: torch.Tensor) -> tuple[float, float]:
    """Norm of the difference over norm of the result, and largest difference over largest value; inf for any value
    that is not a number."""
    actual = actual.to(expected.dtype)
    if actual.shape != expected.shape or not torch.isfinite(actual).all():
        return INF, INF
    difference = actual - expected
    norm = (difference.norm() / expected.norm()).item()
    return norm, (difference.abs().max() / expected.abs().max()).item()


def is_within(found: tuple[float, float], dtype: torch.dtype) -> bool:
    return found[0] <= BOUNDS[dtype][0] and found[1] <= BOUNDS[dtype][1]
