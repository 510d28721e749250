"""Stand-ins for the packages flashinfer and sgl_kernel: what their wrappers are documented to do, in plain torch.

They read the cache by the arguments of `plan` and nothing else, those of a graph from the buffers that the wrapper was given, and
refuse what the packages refuse. Where kernels of the packages read whole tiles of keys and values, beyond the end of a request, they do, too.
`CALLS` counts plans and runs by kernel.
"""

from __future__ import annotations

import sys
import types
from collections import Counter
from typing import Any, NamedTuple

import torch

CALLS: Counter[str] = Counter()
_CUDA_CORE_GROUPS = (1, 2, 3, 4, 8)
_HEAD_DIMS = (64, 128, 256)
_HALF = (torch.float16, torch.bfloat16)
# Keys that a kernel reads at once.
_TILE = 64


def attend(q, k, v, scale, causal, window=-1, cap=0.0, sinks=None, num_keys=None):
    """q [n, H, d], the last n of `num_keys` positions of k [m, K, d], v [m, K, d_v] -> [n, H, d_v] in float64.

    What comes behind `num_keys`, all by default, is masked, and its values are multiplied by 0.
    """
    num_keys = len(k) if num_keys is None else num_keys
    q, k, v = q.double(), k.double(), v.double()
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("nhd,mhd->hnm", q, k) * scale
    if cap:
        scores = cap * torch.tanh(scores / cap)
    at = torch.arange(num_keys - len(q), num_keys)[:, None]
    keys = torch.arange(len(k))[None]
    visible = keys <= at if causal else (keys < num_keys).expand(len(q), -1)
    if window >= 0:
        visible = visible & (keys >= at - window)
    scores = scores.masked_fill(~visible, float("-inf"))
    if sinks is not None:
        column = sinks.double()[:, None, None].expand(-1, len(q), 1)
        scores = torch.cat([scores, column], dim=2)
    return torch.einsum("hnm,mhd->nhd", scores.softmax(-1)[..., : len(k)], v)


def attend_prompts(bounds, q, k, v, *options):
    """`attend` for prompts side by side, `bounds` being pairs of first rows of queries and keys: by tiles, the last of which may reach into
    the next prompt."""
    out = []
    for (a, first), (b, last) in zip(bounds, bounds[1:], strict=False):
        end = first + -(-(last - first) // _TILE) * _TILE
        tiles = (q[a:b], k[first:end], v[first:end])
        out.append(attend(*tiles, *options, num_keys=last - first))
    return torch.cat(out).to(q.dtype)


def _check_host(*tensors):
    for tensor in tensors:
        assert (
            tensor.dtype == torch.int32 and tensor.device.type == "cpu" and tensor.is_contiguous()
        )


class _Paged:
    """Pages of a plan: copies of its tensors, or the buffers of a graph."""

    def __init__(self, buffers):
        self.buffers = buffers

    def keep(self, **tensors):
        if self.buffers is None:
            for name, tensor in tensors.items():
                setattr(self, name, tensor.clone())
            return
        for name, tensor in tensors.items():
            buffer = self.buffers[name]
            if name == "pages":
                assert len(tensor) <= len(buffer), "the buffer of pages is too small"
                buffer[: len(tensor)] = tensor
            else:
                assert buffer.shape == tensor.shape, "the batch size of a graph is fixed"
                buffer.copy_(tensor)
            setattr(self, name, buffer)

    def gather(self, i, paged, page_size, length=None):
        begin, end = int(self.starts[i]), int(self.starts[i + 1])
        if length is None:
            length = (end - begin - 1) * page_size + int(self.last[i])
        rows = paged[self.pages[begin:end].long()].flatten(0, 1)
        assert len(rows) - page_size < length <= len(rows)
        return rows[:length]


class BatchDecodeWithPagedKVCacheWrapper:
    def __init__(
        self,
        float_workspace_buffer,
        kv_layout="NHD",
        use_cuda_graph=False,
        use_tensor_cores=False,
        paged_kv_indptr_buffer=None,
        paged_kv_indices_buffer=None,
        paged_kv_last_page_len_buffer=None,
    ):
        assert float_workspace_buffer.dtype == torch.uint8 and kv_layout == "NHD"
        self.use_tensor_cores = use_tensor_cores
        buffers = {
            "starts": paged_kv_indptr_buffer,
            "pages": paged_kv_indices_buffer,
            "last": paged_kv_last_page_len_buffer,
        }
        self.paged = _Paged(buffers if use_cuda_graph else None)

    def reset_workspace_buffer(self, float_workspace_buffer, int_workspace_buffer):
        assert int_workspace_buffer.dtype == torch.uint8

    def plan(
        self,
        indptr,
        indices,
        last_page_len,
        num_qo_heads,
        num_kv_heads,
        head_dim,
        page_size,
        pos_encoding_mode="NONE",
        window_left=-1,
        logits_soft_cap=None,
        q_data_type="float16",
        kv_data_type=None,
        sm_scale=None,
    ):
        CALLS["plan decode"] += 1
        _check_host(indptr, last_page_len)
        assert indices.dtype == torch.int32 and len(indices) == int(indptr[-1])
        group = num_qo_heads // num_kv_heads
        assert self.use_tensor_cores or group in _CUDA_CORE_GROUPS, f"group {group}"
        assert head_dim in _HEAD_DIMS and q_data_type in _HALF
        self.paged.keep(starts=indptr, pages=indices, last=last_page_len)
        self.shape = (num_qo_heads, head_dim)
        self.num_kv, self.page_size = num_kv_heads, page_size
        self.dtypes = (q_data_type, kv_data_type)
        self.options = (sm_scale, window_left, logits_soft_cap)

    def run(self, q, paged_kv_cache, k_scale=None, v_scale=None):
        CALLS["run decode"] += 1
        keys, values = paged_kv_cache
        assert q.shape[1:] == self.shape and (q.dtype, keys.dtype) == self.dtypes
        assert keys.shape[1:] == (self.page_size, self.num_kv, self.shape[1])
        assert len(q) == len(self.paged.last)
        scale, window, cap = self.options
        scale = scale * (1.0 if k_scale is None else k_scale)
        out = []
        for i in range(len(q)):
            k = self.paged.gather(i, keys, self.page_size)
            v = self.paged.gather(i, values, self.page_size)
            out.append(attend(q[i : i + 1], k, v, scale, False, window, cap))
        return (torch.cat(out) * (1.0 if v_scale is None else v_scale)).to(q.dtype)


class BatchPrefillWithPagedKVCacheWrapper:
    def __init__(self, float_workspace_buffer, kv_layout="NHD"):
        assert float_workspace_buffer.dtype == torch.uint8 and kv_layout == "NHD"
        self.paged = _Paged(None)

    def plan(
        self,
        qo_indptr,
        paged_kv_indptr,
        paged_kv_indices,
        paged_kv_last_page_len,
        num_qo_heads,
        num_kv_heads,
        head_dim_qk,
        page_size,
        head_dim_vo=None,
        causal=False,
        sm_scale=None,
        window_left=-1,
        logits_soft_cap=None,
        q_data_type="float16",
        kv_data_type=None,
    ):
        CALLS["plan paged"] += 1
        _check_host(qo_indptr, paged_kv_indptr, paged_kv_last_page_len)
        assert head_dim_qk in _HEAD_DIMS and head_dim_vo == head_dim_qk and q_data_type in _HALF
        self.paged.keep(starts=paged_kv_indptr, pages=paged_kv_indices, last=paged_kv_last_page_len)
        self.bounds, self.page_size = qo_indptr.tolist(), page_size
        self.dtypes = (q_data_type, kv_data_type)
        self.options = (causal, window_left, logits_soft_cap)
        self.scale = sm_scale

    def run(self, q, paged_kv_cache, k_scale=None, v_scale=None):
        CALLS["run paged"] += 1
        keys, values = paged_kv_cache
        assert (q.dtype, keys.dtype) == self.dtypes and len(q) == self.bounds[-1]
        scale = self.scale * (1.0 if k_scale is None else k_scale)
        out = []
        for i, (begin, end) in enumerate(zip(self.bounds, self.bounds[1:], strict=False)):
            k = self.paged.gather(i, keys, self.page_size)
            v = self.paged.gather(i, values, self.page_size)
            out.append(attend(q[begin:end], k, v, scale, *self.options))
        return (torch.cat(out) * (1.0 if v_scale is None else v_scale)).to(q.dtype)


class BatchPrefillWithRaggedKVCacheWrapper:
    def __init__(self, float_workspace_buffer, kv_layout="NHD"):
        assert float_workspace_buffer.dtype == torch.uint8 and kv_layout == "NHD"

    def plan(
        self,
        qo_indptr,
        kv_indptr,
        num_qo_heads,
        num_kv_heads,
        head_dim_qk,
        head_dim_vo=None,
        causal=False,
        sm_scale=None,
        window_left=-1,
        logits_soft_cap=None,
        q_data_type="float16",
        kv_data_type=None,
    ):
        CALLS["plan ragged"] += 1
        _check_host(qo_indptr, kv_indptr)
        dims = (head_dim_qk, head_dim_vo)
        assert dims in [(d, d) for d in _HEAD_DIMS] + [(192, 128)], dims
        self.bounds = list(zip(qo_indptr.tolist(), kv_indptr.tolist(), strict=True))
        self.dtypes = (q_data_type, kv_data_type)
        self.shapes = ((num_qo_heads, head_dim_qk), (num_kv_heads, head_dim_vo))
        self.options = (sm_scale, causal, window_left, logits_soft_cap)

    def run(self, q, k, v):
        CALLS["run ragged"] += 1
        assert (q.dtype, k.dtype) == self.dtypes
        assert (q.shape[1:], v.shape[1:]) == self.shapes
        return attend_prompts(self.bounds, q, k, v, *self.options)


class BatchMLAPagedAttentionWrapper:
    def __init__(
        self,
        float_workspace_buffer,
        use_cuda_graph=False,
        qo_indptr=None,
        kv_indptr=None,
        kv_indices=None,
        kv_len_arr=None,
    ):
        buffers = {"q": qo_indptr, "starts": kv_indptr, "pages": kv_indices, "lens": kv_len_arr}
        self.paged = _Paged(buffers if use_cuda_graph else None)

    def plan(
        self,
        qo_indptr,
        kv_indptr,
        kv_indices,
        kv_len_arr,
        num_heads,
        head_dim_ckv,
        head_dim_kpe,
        page_size,
        causal,
        sm_scale,
        q_data_type,
        kv_data_type,
    ):
        CALLS["plan latent"] += 1
        _check_host(qo_indptr, kv_indptr, kv_len_arr)
        assert (head_dim_ckv, head_dim_kpe) == (512, 64) and kv_data_type in _HALF
        self.paged.keep(q=qo_indptr, starts=kv_indptr, pages=kv_indices, lens=kv_len_arr)
        self.page_size, self.options = page_size, (sm_scale, causal)

    def run(self, q_nope, q_pe, ckv_cache, kpe_cache):
        CALLS["run latent"] += 1
        assert ckv_cache.dim() == kpe_cache.dim() == 3
        bounds, out = self.paged.q.tolist(), []
        for i, (begin, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
            length = int(self.paged.lens[i])
            v, rope = (
                self.paged.gather(i, x, self.page_size, length) for x in (ckv_cache, kpe_cache)
            )
            q = torch.cat([q_nope[begin:end], q_pe[begin:end]], -1)
            k = torch.cat([v, rope], -1)[:, None]
            out.append(attend(q, k, v[:, None], *self.options))
        return torch.cat(out).to(q_nope.dtype)


def _check_fa3(q, v, softmax_scale, causal, sinks, window_size):
    assert q.dtype in _HALF and v.dtype == q.dtype and causal and softmax_scale is not None
    assert sinks is None or (sinks.dtype == torch.bfloat16 and sinks.shape == (q.shape[1],))
    assert window_size[1] in (-1, 0)


def get_scheduler_metadata(
    batch_size,
    max_seqlen_q,
    max_seqlen_k,
    num_heads,
    num_heads_k,
    headdim,
    cache_seqlens,
    qkv_dtype=torch.bfloat16,
    headdim_v=None,
    cu_seqlens_q=None,
    page_size=None,
    causal=False,
    window_size=(-1, -1),
    has_softcap=False,
):
    """What it was made of, which must be what the kernel is called with."""
    CALLS["schedule"] += 1
    dims = batch_size, max_seqlen_q, max_seqlen_k, num_heads, num_heads_k, headdim, headdim_v
    return _Schedule(
        (*dims, qkv_dtype, page_size, causal, window_size, has_softcap),
        (cache_seqlens.tolist(), cu_seqlens_q.tolist()),
    )


class _Schedule(NamedTuple):
    options: tuple[Any, ...]
    lens: tuple[list[int], list[int]]


def flash_attn_with_kvcache(
    q,
    k_cache,
    v_cache,
    qv=None,
    scheduler_metadata=None,
    cache_seqlens=None,
    page_table=None,
    cu_seqlens_q=None,
    max_seqlen_q=None,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    sinks=None,
):
    CALLS["run cache"] += 1
    _check_fa3(q, v_cache, softmax_scale, causal, sinks, window_size)
    assert page_table.dtype == cache_seqlens.dtype == cu_seqlens_q.dtype == torch.int32
    assert len(page_table) == len(cache_seqlens) == len(cu_seqlens_q) - 1
    assert page_table.stride(-1) == 1
    if scheduler_metadata is not None:
        size, most_keys = k_cache.shape[1], page_table.shape[1] * k_cache.shape[1]
        dims = q.shape[1], *k_cache.shape[2:], v_cache.shape[3]
        assert scheduler_metadata == (
            (len(page_table), max_seqlen_q, most_keys, *dims, q.dtype, size, causal, window_size)
            + (softcap > 0,),
            (cache_seqlens.tolist(), cu_seqlens_q.tolist()),
        )
    if qv is not None:
        assert q.shape[-1] <= 64 and v_cache.shape[-1] >= 256
    bounds, out = cu_seqlens_q.tolist(), []
    assert len(q) == bounds[-1]
    for i, (begin, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
        assert end - begin <= max_seqlen_q
        length, page_size = int(cache_seqlens[i]), k_cache.shape[1]
        pages = page_table[i, : -(-length // page_size)].long()
        # Pages that hold whole tiles are read as such.
        num_read = len(pages) * page_size if page_size % _TILE == 0 else length
        k, v = (x[pages].flatten(0, 1)[:num_read] for x in (k_cache, v_cache))
        queries = q[begin:end]
        if qv is not None:
            queries, k = torch.cat([queries, qv[begin:end]], -1), torch.cat([k, v], -1)
        options = (softmax_scale, causal, window_size[0], softcap, sinks)
        out.append(attend(queries, k, v, *options, num_keys=length))
    return torch.cat(out).to(q.dtype)


def flash_attn_varlen_func(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q=None,
    max_seqlen_k=None,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    sinks=None,
):
    CALLS["run prompts"] += 1
    _check_fa3(q, v, softmax_scale, causal, sinks, window_size)
    bounds = list(zip(cu_seqlens_q.tolist(), cu_seqlens_k.tolist(), strict=True))
    assert max(b[0] - a[0] for a, b in zip(bounds, bounds[1:], strict=False)) == max_seqlen_q
    return attend_prompts(bounds, q, k, v, softmax_scale, causal, window_size[0], softcap, sinks)


def install(monkeypatch) -> None:
    """Make `import flashinfer` and `import sgl_kernel` find the stand-ins."""
    CALLS.clear()
    flashinfer, mla = types.ModuleType("flashinfer"), types.ModuleType("flashinfer.mla")
    for wrapper in (
        BatchDecodeWithPagedKVCacheWrapper,
        BatchPrefillWithPagedKVCacheWrapper,
        BatchPrefillWithRaggedKVCacheWrapper,
    ):
        setattr(flashinfer, wrapper.__name__, wrapper)
    mla.BatchMLAPagedAttentionWrapper = BatchMLAPagedAttentionWrapper
    flashinfer.mla = mla
    sgl_kernel = types.ModuleType("sgl_kernel")
    flash_attn = types.ModuleType("sgl_kernel.flash_attn")
    flash_attn.flash_attn_with_kvcache = flash_attn_with_kvcache
    flash_attn.flash_attn_varlen_func = flash_attn_varlen_func
    flash_attn.get_scheduler_metadata = get_scheduler_metadata
    sgl_kernel.flash_attn = flash_attn
    for module in (flashinfer, mla, sgl_kernel, flash_attn):
        monkeypatch.setitem(sys.modules, module.__name__, module)
