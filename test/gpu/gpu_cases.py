"""The cases that prove the Triton attention backend on a GPU: every option at the head dims that models have."""

from __future__ import annotations

import torch
from attention_cases import Case

from sglang.srt.layers.radix_attention import AttentionType

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
BIDIRECTIONAL = {"attn_type": AttentionType.DECODER_BIDIRECTIONAL}
ENCODER = {"attn_type": AttentionType.ENCODER_ONLY}
CROSS = {"is_cross_attention": True}
LLAMA = {"heads": (32, 8), "dims": (128, 128)}
GEMMA = {"heads": (8, 4), "dims": (256, 256)}
QWEN = {"heads": (14, 2), "dims": (64, 64)}
GPT_OSS = {"heads": (64, 8), "dims": (64, 64), "has_sinks": True}
MLA = {"heads": (128, 1), "dims": (576, 512), "is_latent": True}
MLA_TP8 = {"heads": (16, 1), "dims": (576, 512), "is_latent": True}
MIXED_LENS = (1, 2000, 63, 64, 65, 517, 1024)
PREFIXES = (0, 1500, 62, 0, 64, 130, 1000)

CASES: list[tuple[Case, tuple[torch.dtype, ...]]] = [
    (Case("decode", MIXED_LENS, **LLAMA), (BF16, FP16, FP32)),
    (Case("decode one long", (20000,), **LLAMA), (BF16,)),
    (Case("decode many short", tuple(range(1, 301)), **LLAMA), (BF16,)),
    (Case("decode pages of 16", MIXED_LENS, page_size=16, **LLAMA), (BF16,)),
    (Case("decode group of 7", MIXED_LENS, **QWEN), (BF16, FP16)),
    (Case("decode no group", MIXED_LENS, heads=(8, 8), dims=(80, 80)), (BF16,)),
    (Case("decode 192/128", MIXED_LENS, heads=(8, 8), dims=(192, 128)), (BF16,)),
    (Case("decode 256", MIXED_LENS, **GEMMA), (BF16,)),
    (Case("decode window", MIXED_LENS, layer={"sliding_window_size": 511}, **LLAMA), (BF16,)),
    (Case("decode cap", MIXED_LENS, layer={"logit_cap": 3.0}, **GEMMA), (BF16, FP16)),
    (Case("decode sinks", MIXED_LENS, **GPT_OSS), (BF16,)),
    (
        Case("decode window sinks", MIXED_LENS, layer={"sliding_window_size": 127}, **GPT_OSS),
        (BF16,),
    ),
    (Case("decode chunk", MIXED_LENS, layer={"use_irope": True}, chunk=512, **LLAMA), (BF16,)),
    (Case("decode latent", MIXED_LENS, **MLA), (BF16, FP16)),
    (Case("decode latent 16", MIXED_LENS, **MLA_TP8), (BF16, FP32)),
    (Case("decode cross", (5, 9, 3), layer=CROSS, encoder_lens=(1601, 0, 40), **LLAMA), (BF16,)),
    (
        Case(
            "decode cross, parts",
            (5, 9, 3),
            layer=CROSS,
            encoder_lens=(6404, 0, 3202),
            views=(((0, 1, 1601, 6404),), ((0, 1, 0, 0),), ((0, 1, 0, 0),)),
            **LLAMA,
        ),
        (BF16, FP32),
    ),
    (Case("decode after encoder", (500, 9), encoder_lens=(1601, 0), **LLAMA), (BF16,)),
    (Case("extend", MIXED_LENS, (0,) * 7, **LLAMA), (BF16, FP16, FP32)),
    (Case("extend prefix", MIXED_LENS, PREFIXES, **LLAMA), (BF16, FP16, FP32)),
    (Case("extend one long", (6000,), (1000,), **LLAMA), (BF16,)),
    (Case("extend few tokens", (1000, 65, 9), (997, 64, 7), **LLAMA), (BF16,)),
    (Case("extend some tokens", (1000, 65, 9), (988, 64, 7), **LLAMA), (BF16,)),
    (Case("extend pages of 64", MIXED_LENS, PREFIXES, page_size=64, **LLAMA), (BF16,)),
    (Case("extend group of 7", MIXED_LENS, PREFIXES, **QWEN), (BF16, FP16)),
    (Case("extend no group", MIXED_LENS, PREFIXES, heads=(8, 8), dims=(80, 80)), (BF16,)),
    (Case("extend 192/128", MIXED_LENS, PREFIXES, heads=(8, 8), dims=(192, 128)), (BF16,)),
    (Case("extend 256", MIXED_LENS, PREFIXES, **GEMMA), (BF16,)),
    (
        Case("extend window", MIXED_LENS, PREFIXES, layer={"sliding_window_size": 511}, **LLAMA),
        (BF16,),
    ),
    (Case("extend cap", MIXED_LENS, PREFIXES, layer={"logit_cap": 3.0}, **GEMMA), (BF16, FP16)),
    (
        Case(
            "extend window sinks",
            MIXED_LENS,
            PREFIXES,
            layer={"sliding_window_size": 127},
            **GPT_OSS,
        ),
        (BF16,),
    ),
    (
        Case("extend chunk", MIXED_LENS, PREFIXES, layer={"use_irope": True}, chunk=512, **LLAMA),
        (BF16,),
    ),
    (Case("extend latent", (700, 65, 9), (300, 0, 8), **MLA), (BF16,)),
    (Case("extend latent 16", (700, 65, 9), (300, 0, 8), **MLA_TP8), (BF16,)),
    (Case("extend encoder only", (700, 65, 9), (0, 0, 0), layer=ENCODER, **QWEN), (BF16,)),
    (
        Case(
            "extend cross",
            (500, 9, 3),
            (100, 0, 0),
            layer=CROSS,
            encoder_lens=(1601, 0, 40),
            **LLAMA,
        ),
        (BF16,),
    ),
    (
        Case(
            "extend cross, parts",
            (500, 9, 3),
            (100, 8, 0),
            layer=CROSS,
            encoder_lens=(6404, 1601, 40),
            views=(
                ((0, 17, 0, 0), (17, 18, 0, 1601), (18, 201, 0, 3202), (201, 400, 3202, 6404)),
                ((0, 1, 0, 1601),),
                ((0, 3, 0, 0),),
            ),
            **LLAMA,
        ),
        (BF16, FP32),
    ),
    (Case("extend shared cache", MIXED_LENS, PREFIXES, has_new=False, **LLAMA), (BF16,)),
    (
        Case(
            "extend spans",
            (900, 300),
            (100, 0),
            spans=(((150, 406), (500, 756)), ()),
            layer={**BIDIRECTIONAL, "sliding_window_size": 127},
            **GEMMA,
        ),
        (BF16,),
    ),
    (Case("extend mask", (400, 70), (336, 6), has_mask=True, **LLAMA), (BF16,)),
    (
        Case(
            "mixed",
            (700, 65, 1000, 2000, 3),
            (0, 8, 999, 1999, 2),
            is_mixed=True,
            **LLAMA,
        ),
        (BF16, FP16),
    ),
]
CASE_DTYPES = [(case, dtype) for case, dtypes in CASES for dtype in dtypes]

# Decodes that are captured as CUDA graphs with stand-ins and replayed with these lengths.
CAPTURED = [
    Case("captured decode", MIXED_LENS, **LLAMA),
    Case("captured one long", (20000,), **LLAMA),
    Case("captured window sinks", MIXED_LENS, layer={"sliding_window_size": 127}, **GPT_OSS),
    Case("captured latent", MIXED_LENS, **MLA_TP8),
]

# What is timed, in bfloat16.
TIMED = [
    Case("decode 1 x 8k", (8192,), **LLAMA),
    Case("decode 1 x 128k", (131072,), **LLAMA),
    Case("decode 16 x 4k", (4096,) * 16, **LLAMA),
    Case("decode 64 x 2k", (2048,) * 64, **LLAMA),
    Case("decode 256 x 1k", (1024,) * 256, **LLAMA),
    Case("decode 63 x 500 + 64k", (500,) * 63 + (65536,), **LLAMA),
    Case("decode 64 x 2k, 14/2 x 64", (2048,) * 64, **QWEN),
    Case("decode 64 x 4k, window 1k", (4096,) * 64, layer={"sliding_window_size": 1023}, **GEMMA),
    Case("decode 32 x 4k, latent 16", (4096,) * 32, **MLA_TP8),
    Case("decode 32 x 4k, latent 128", (4096,) * 32, **MLA),
    Case("extend 8k", (8192,), (0,), **LLAMA),
    Case("extend 8 x 1k", (1024,) * 8, (0,) * 8, **LLAMA),
    Case("extend 2k after 30k", (32768,), (30720,), **LLAMA),
    Case("extend 8k, 14/2 x 64", (8192,), (0,), **QWEN),
    Case("extend 8k, 256", (8192,), (0,), **GEMMA),
    Case("extend 8k, window 1k", (8192,), (0,), layer={"sliding_window_size": 1023}, **LLAMA),
    Case("extend 2k, latent 16", (2048,), (0,), **MLA_TP8),
]
