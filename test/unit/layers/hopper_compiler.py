"""Compiles the kernels that a function launches for a Hopper GPU, without one. Run by `test_dependent_launch.py` in a process of its own.

Prints one line of JSON: for each kernel what its PTX does with memory and with the kernels around it, in order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from sglang.srt.distributed.device_communicators.peer_memory import PeerMemory
from sglang.srt.layers.attention.triton_ops.decode import DecodeOptions, decode_attention
from sglang.srt.layers.few_rows_tiles import Tile as RowsTile
from sglang.srt.layers.moe.expert_matrix import ExpertMatrix
from sglang.srt.layers.moe.fused_experts import run_fused
from sglang.srt.layers.moe.moe_runner import MoeRunnerConfig
from sglang.srt.layers.moe.tiles import Tile, Tiles
from sglang.srt.layers.triton_ops.choose import choose_tokens
from sglang.srt.layers.triton_ops.choose_kept import KeptDraw, choose_kept
from sglang.srt.layers.triton_ops.few_rows import one_row_linear
from sglang.srt.layers.triton_ops.few_rows_linear import few_rows_linear
from sglang.srt.layers.triton_ops.gated import gated_activation
from sglang.srt.layers.triton_ops.graph_inputs import fill_graph_inputs
from sglang.srt.layers.triton_ops.moe.route import choose_experts
from sglang.srt.layers.triton_ops.norm import rms_norm
from sglang.srt.layers.triton_ops.norm_rope import HeadNorm, norm_rope_store
from sglang.srt.utils import dependent_launch

TYPES = {
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.bool: "*i1",
}
STEPS = {
    "griddepcontrol.launch_dependents": "launch",
    "griddepcontrol.wait": "wait",
    "ld.global": "read",
    "cp.async": "read",
    "st.global": "write",
    "atom": "write",
    "red.": "write",
    "ret;": "end",
}


def compile_launches(call: Callable[[], Any]) -> dict[str, str]:
    """The PTX of every kernel that `call` launches, whose tensors are on the device "meta"."""
    found: dict[str, str] = {}

    def run(self: Any, *args: Any, grid: Any, warmup: Any = None, **kwargs: Any) -> None:
        given = dict(zip([p.name for p in self.params], args, strict=False))
        given |= {name: kwargs.pop(name) for name in list(kwargs) if name in self.arg_names}
        if self.fn.__name__ not in found:
            found[self.fn.__name__] = _compile(self, given, kwargs)

    before, JITFunction.run = JITFunction.run, run
    try:
        call()
    finally:
        JITFunction.run = before
    return found


def _compile(kernel: Any, given: dict[str, Any], options: dict[str, Any]) -> str:
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        value = given[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name] = "constexpr"
            constants[(index,)] = value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = TYPES[value.dtype]
            attributes[(index,)] = [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]


def steps(ptx: str) -> list[str]:
    """What a program does, in order, repetitions left out."""
    found: list[str] = []
    for match in re.finditer("|".join(map(re.escape, STEPS)), ptx):
        step = STEPS[match[0]]
        if found[-1:] != [step]:
            found.append(step)
    return found


def launch_all() -> None:
    def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(*shape, dtype=dtype, device="meta")

    def numbers(*shape: int) -> torch.Tensor:
        return empty(*shape, dtype=torch.int64)

    one_row_linear(empty(1, 256), empty(64, 256), empty(64))
    few_rows_linear(empty(4, 256), empty(64, 256), None, RowsTile(32, 64, 2, True, 4, 2))
    rms_norm(empty(1, 256), empty(256), 1e-6, empty(1, 256))
    gated_activation(empty(1, 256), "silu")
    fill_graph_inputs(numbers(5, 16), *[numbers(2)] * 5, size=4, padding_len=1)
    norm = HeadNorm(empty(64), empty(64), 1e-6)
    pools = empty(8, 2, 64), empty(8, 2, 64)
    table = empty(32, 64, dtype=torch.float32)
    norm_rope_store(
        empty(1, 256), empty(1, 128), empty(1, 128), numbers(1), table, norm, *pools, numbers(1)
    )
    rows, split_len = empty(4, 128, dtype=torch.int32), empty(1, dtype=torch.int32)
    options = DecodeOptions(0.1)
    decode_attention(
        empty(1, 4, 64), *pools, rows, numbers(1), numbers(1), None, 4, split_len, options
    )
    latent = empty(8, 1, 128)
    many_heads = empty(1, 16, 128)
    decode_attention(
        many_heads, latent, latent, rows, numbers(1), numbers(1), None, 4, split_len, options
    )
    logits, column = (empty(2, width, dtype=torch.float32) for width in (9000, 1))
    choose_tokens(logits)
    choose_kept(logits, KeptDraw(None, numbers(2, 1), column, column, 1))
    weights, ids = choose_experts(empty(2, 8), 2, is_sigmoid=False, renormalize=True)
    matrices = ExpertMatrix(empty(8, 128, 64)), ExpertMatrix(empty(8, 64, 64))
    config = MoeRunnerConfig(num_experts=8)
    for tiles in (
        Tiles(1, Tile(2, 64, 1, 4, 1), Tile(2, 64, 1, 4, 1)),
        Tiles(16, Tile(32, 32, 1, 4, 2), Tile(32, 32, 1, 4, 2)),
    ):
        run_fused(empty(2, 64), *matrices, weights, ids, config, tiles)
    peers = PeerMemory(1, 2, numbers(2), numbers(1))
    peers.all_reduce_add_norm(empty(1, 256), empty(1, 256), empty(256), 1e-6)


if __name__ == "__main__":
    dependent_launch.launches_early = lambda device: True
    print(json.dumps({name: steps(ptx) for name, ptx in compile_launches(launch_all).items()}))
