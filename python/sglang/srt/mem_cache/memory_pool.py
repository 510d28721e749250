"""Device tensors behind the KV cache: the row table and the key/value buffers.

Owned by the worker. Which slot belongs to whom is decided by `KVCacheManager`; here are only
tensors. Legend: T tokens in the batch, R rows, K local kv heads, d head dim.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Protocol

import numpy as np
import torch


class AttentionLayer(Protocol):
    """What a pool needs to know of the attention layer that writes to it."""

    layer_id: int


class KVPool(ABC):
    """Interface of every key/value pool (plain, latent, quantised, sliding window).

    A pool holds `size` slots per layer, page 0 (slots `0 .. page_size-1`) being padding. It owns
    the layers `start_layer .. start_layer+layer_num-1`. Buffers returned by `get_*_buffer` are
    the live storage in the pool's `dtype`, not copies.
    """

    dtypes: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float16, torch.float32)

    def __init__(
        self,
        size: int,
        page_size: int,
        dtype: torch.dtype,
        layer_num: int,
        device: str | torch.device,
        start_layer: int = 0,
    ) -> None:
        if page_size < 1 or size < 2 * page_size or size % page_size:
            raise ValueError(
                f"KV pool of {size} slots with page_size={page_size}: the size must be a multiple "
                "of the page size and hold at least two pages, the first being padding"
            )
        self.size = size
        self.page_size = page_size
        self.dtype = dtype
        self.layer_num = layer_num
        self.device = torch.device(device)
        self.start_layer = start_layer

    @abstractmethod
    def set_kv_buffer(
        self,
        layer: AttentionLayer,
        loc: torch.Tensor,
        cache_k: torch.Tensor,
        cache_v: torch.Tensor,
        k_scale: float | torch.Tensor | None = None,
        v_scale: float | torch.Tensor | None = None,
    ) -> None:
        """Write the keys [T, K, d] and values [T, K, v_d] of new tokens to the slots `loc` [T].

        A quantised pool stores `cache / scale`; a floating point pool stores the values as they
        are, without the scales.
        """

    @abstractmethod
    def get_key_buffer(self, layer_id: int) -> torch.Tensor:
        """Keys of one layer, [size, K, d]."""

    @abstractmethod
    def get_value_buffer(self, layer_id: int) -> torch.Tensor:
        """Values of one layer, [size, K, v_d]."""

    def get_kv_buffer(self, layer_id: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of one layer."""
        return self.get_key_buffer(layer_id), self.get_value_buffer(layer_id)

    @property
    @abstractmethod
    def buffers(self) -> list[torch.Tensor]:
        """All storage."""

    @property
    def total_bytes(self) -> int:
        """Memory of all buffers, in bytes."""
        return sum(buffer.nbytes for buffer in self.buffers)

    def _layer_index(self, layer_id: int) -> int:
        index = layer_id - self.start_layer
        if not 0 <= index < self.layer_num:
            raise ValueError(
                f"layer {layer_id} is not in this pool, which holds layers {self.start_layer} .. "
                f"{self.start_layer + self.layer_num - 1}"
            )
        return index


class MHATokenToKVPool(KVPool):
    """Keys and values of multi-head or grouped-query attention, in a floating point dtype.

    Args:
        size: slots, the padding page included.
        page_size: slots per page.
        dtype: bfloat16, float16 or float32; what is written is cast to it.
        head_num: local kv heads K.
        head_dim: key head dim d.
        layer_num: layers held.
        device: where the buffers live.
        v_head_dim: value head dim, `head_dim` if None.
        start_layer: `layer_id` of the first layer held.

    Raises:
        ValueError: size, page size or dtype do not fit.
    """

    def __init__(
        self,
        size: int,
        page_size: int,
        dtype: torch.dtype,
        head_num: int,
        head_dim: int,
        layer_num: int,
        device: str | torch.device,
        v_head_dim: int | None = None,
        start_layer: int = 0,
    ) -> None:
        super().__init__(size, page_size, dtype, layer_num, device, start_layer)
        _check_dtype(dtype, self.dtypes)
        self.head_num = head_num
        self.head_dim = head_dim
        self.v_head_dim = head_dim if v_head_dim is None else v_head_dim
        self.k_buffer = [self._make_buffer(self.head_dim) for _ in range(layer_num)]
        self.v_buffer = [self._make_buffer(self.v_head_dim) for _ in range(layer_num)]

    @staticmethod
    def bytes_per_token(
        head_num: int,
        head_dim: int,
        layer_num: int,
        dtype: torch.dtype,
        v_head_dim: int | None = None,
    ) -> int:
        """Bytes that one slot takes in all layers; for sizing the pool."""
        dims = head_dim + (head_dim if v_head_dim is None else v_head_dim)
        return layer_num * head_num * dims * dtype.itemsize

    def set_kv_buffer(
        self,
        layer: AttentionLayer,
        loc: torch.Tensor,
        cache_k: torch.Tensor,
        cache_v: torch.Tensor,
        k_scale: float | torch.Tensor | None = None,
        v_scale: float | torch.Tensor | None = None,
    ) -> None:
        """See `KVPool`. `loc` is int32 or int64; rows may repeat only in the padding page."""
        index = self._layer_index(layer.layer_id)
        keys, values = self.k_buffer[index], self.v_buffer[index]
        keys[loc] = cache_k.to(self.dtype).reshape(-1, *keys.shape[1:])
        values[loc] = cache_v.to(self.dtype).reshape(-1, *values.shape[1:])

    def get_key_buffer(self, layer_id: int) -> torch.Tensor:
        """Keys of one layer, [size, K, d]."""
        return self.k_buffer[self._layer_index(layer_id)]

    def get_value_buffer(self, layer_id: int) -> torch.Tensor:
        """Values of one layer, [size, K, v_d]."""
        return self.v_buffer[self._layer_index(layer_id)]

    @property
    def buffers(self) -> list[torch.Tensor]:
        return [*self.k_buffer, *self.v_buffer]

    def _make_buffer(self, dim: int) -> torch.Tensor:
        # Zeroed, so that the padding page never holds a NaN that masking could not hide.
        return lazy_zeros((self.size, self.head_num, dim), self.dtype, self.device)


class MLATokenToKVPool(KVPool):
    """The latent of multi-head latent attention, one head for all query heads, in a floating point dtype.

    A slot of a layer holds `kv_lora_rank` numbers of the latent, then `qk_rope_head_dim` of the rotated key. Its keys are all of them,
    its values the latent: a view of the keys.

    Raises:
        ValueError: size, page size or dtype do not fit.
    """

    def __init__(
        self,
        size: int,
        page_size: int,
        dtype: torch.dtype,
        kv_lora_rank: int,
        qk_rope_head_dim: int,
        layer_num: int,
        device: str | torch.device,
        start_layer: int = 0,
    ) -> None:
        super().__init__(size, page_size, dtype, layer_num, device, start_layer)
        _check_dtype(dtype, self.dtypes)
        self.kv_lora_rank = kv_lora_rank
        shape = (size, 1, kv_lora_rank + qk_rope_head_dim)
        # Zeroed for the sake of the padding page, as above.
        self.kv_buffer = [lazy_zeros(shape, dtype, self.device) for _ in range(layer_num)]

    @staticmethod
    def bytes_per_token(
        kv_lora_rank: int, qk_rope_head_dim: int, layer_num: int, dtype: torch.dtype
    ) -> int:
        """Bytes that one slot takes in all layers; for sizing the pool."""
        return layer_num * (kv_lora_rank + qk_rope_head_dim) * dtype.itemsize

    def set_kv_buffer(
        self,
        layer: AttentionLayer,
        loc: torch.Tensor,
        cache_k: torch.Tensor,
        cache_v: torch.Tensor,
        k_scale: float | torch.Tensor | None = None,
        v_scale: float | torch.Tensor | None = None,
    ) -> None:
        """See `KVPool`. `cache_k` [T, 1, rank + rope] is all that is kept; `cache_v` is its first columns."""
        buffer = self.get_key_buffer(layer.layer_id)
        buffer[loc] = cache_k.to(self.dtype).reshape(-1, *buffer.shape[1:])

    def set_mla_kv_buffer(
        self,
        layer: AttentionLayer,
        loc: torch.Tensor,
        cache_k_nope: torch.Tensor,
        cache_k_rope: torch.Tensor,
    ) -> None:
        """Write the latents [T, rank] and rotated keys [T, rope] of new tokens to the slots `loc` [T]."""
        parts = (cache_k_nope.flatten(1), cache_k_rope.flatten(1))
        self.get_key_buffer(layer.layer_id)[loc, 0] = torch.cat(parts, dim=-1).to(self.dtype)

    def get_key_buffer(self, layer_id: int) -> torch.Tensor:
        """Latents and rotated keys of one layer, [size, 1, rank + rope]."""
        return self.kv_buffer[self._layer_index(layer_id)]

    def get_value_buffer(self, layer_id: int) -> torch.Tensor:
        """Latents of one layer, [size, 1, rank]."""
        return self.get_key_buffer(layer_id)[..., : self.kv_lora_rank]

    @property
    def buffers(self) -> list[torch.Tensor]:
        return self.kv_buffer


class ReqToTokenPool:
    """The row table: `req_to_token[row, position]` is the slot of that position.

    `req_to_token` is int32 [size, max_context_len]; entries never written are 0, the padding slot.
    """

    def __init__(self, size: int, max_context_len: int, device: str | torch.device) -> None:
        if size < 1 or max_context_len < 1:
            raise ValueError(f"row table of {size} x {max_context_len}: both must be at least 1")
        self.size = size
        self.max_context_len = max_context_len
        self.device = torch.device(device)
        # [R, max_context_len]
        self.req_to_token = lazy_zeros((size, max_context_len), torch.int32, self.device)


def lazy_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros; on a CPU the memory is committed by the system when it is first touched, so an unused part costs nothing.

    (`torch.zeros` writes every page on a CPU.)
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    raw = np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)
    return torch.from_numpy(raw).view(dtype).view(shape)


def _check_dtype(dtype: torch.dtype, dtypes: tuple[torch.dtype, ...]) -> None:
    if dtype not in dtypes:
        raise ValueError(
            f"KV cache dtype {dtype} is not supported; use one of {[str(d) for d in dtypes]}"
        )
