"""Memory that a step with media takes at its peak, beside what was kept back for it. Weights are made up; no file is needed but this.

    python test/gpu/media_memory.py                                      # Qwen2.5-VL-7B, some 40 seconds on a large GPU
    python test/gpu/media_memory.py --shape tiny --device cpu            # only that everything runs: torch counts memory of GPUs

The steps: text alone; pictures that fill the step, behind them the largest one that the model's processor makes, of which the step has the
beginning; one long video. A tower computes whole media, so the last two take what no number of tokens in a step bounds. The exit status says
whether all of it stayed within what was kept back.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python"))

import torch
from media_steps import MediaPrompt, first_chunk, make_prompt

from sglang.srt.multimodal.embedding_cache import clear_mm_embedding_caches
from sglang.srt.multimodal.inputs import Modality

MIB = 2**20
_TEXT: dict[str, Any] = dict(
    architectures=["Qwen2_5_VLForConditionalGeneration"],
    model_type="qwen2_5_vl",
    image_token_id=151655,
    video_token_id=151656,
    vision_start_token_id=151652,
    vision_end_token_id=151653,
    bos_token_id=151643,
    eos_token_id=151645,
    rms_norm_eps=1e-6,
    rope_theta=1000000.0,
    hidden_act="silu",
    max_position_embeddings=128000,
    tie_word_embeddings=False,
    torch_dtype="bfloat16",
)
_VISION: dict[str, Any] = dict(
    model_type="qwen2_5_vl",
    in_channels=3,
    patch_size=14,
    spatial_merge_size=2,
    temporal_patch_size=2,
    window_size=112,
    tokens_per_second=2,
    hidden_act="silu",
)
SHAPES: dict[str, dict[str, Any]] = {
    "qwen2.5-vl-7b": _TEXT
    | dict(
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        rope_scaling={"type": "mrope", "mrope_section": [16, 24, 24]},
        vision_config=_VISION
        | dict(
            depth=32,
            hidden_size=1280,
            intermediate_size=3420,
            num_heads=16,
            fullatt_block_indexes=[7, 15, 23, 31],
            out_hidden_size=3584,
        ),
    ),
    "tiny": _TEXT
    | dict(
        vocab_size=152064,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        rope_scaling={"type": "mrope", "mrope_section": [1, 1, 2]},
        vision_config=_VISION
        | dict(
            depth=2,
            hidden_size=32,
            intermediate_size=48,
            num_heads=2,
            fullatt_block_indexes=[1],
            out_hidden_size=32,
        ),
    ),
}
# (frames, rows, columns) of patches of 14 x 14 pixels: the largest picture, of at most 12,845,056 pixels as published; one of 1024 x 1024.
LARGEST, COMMON = (1, 256, 256), (1, 74, 74)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="qwen2.5-vl-7b")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--video-tokens", type=int, default=65536)
    parser.add_argument("--group-rows", type=int, help="rows of one call of the tower")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("torch sees no GPU")
        return 2
    from sglang.srt.multimodal import tower_calls

    if args.group_rows:
        tower_calls.GROUP_ROWS = args.group_rows
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(SHAPES[args.shape]))
        return measure(folder, args)


def measure(folder: str, args: argparse.Namespace) -> int:
    from sglang.srt.managers.scheduler_builder import load_runner
    from sglang.srt.model_executor.worker import TpWorker
    from sglang.srt.server_args import ServerArgs

    sizes = dict(max_total_tokens=1024, chunked_prefill_size=256) if args.device == "cpu" else {}
    flags = ServerArgs(
        model_path=folder,
        device=args.device,
        load_format="dummy",
        enable_multimodal=True,
        disable_cuda_graph=True,  # whose memory is kept back apart
        skip_tokenizer_init=True,
        **sizes,
    )
    _, resolved, _, runner = load_runner(flags)
    worker, chunk = TpWorker(runner, seed=0), resolved.chunked_prefill_size
    total = 0.0 if args.device == "cpu" else runner.platform.total_memory() / MIB
    kept = total * (1 - resolved.mem_fraction_static)
    print(f"{args.shape}: steps of {chunk} tokens, {kept:,.0f} MiB of {total:,.0f} kept back")
    failed = 0
    for name, prompt in prompts(runner, chunk, args).items():
        plan = first_chunk(prompt, chunk)
        worker.launch(plan).result()  # for what is compiled and allocated at its first use
        peak = peak_of(worker, plan) if args.device == "cuda" else 0.0
        failed += peak > kept
        print(
            f"{name:10} prompt of {len(prompt.token_ids):6} tokens: peak {peak:8,.0f} MiB",
            flush=True,
        )
    return int(failed > 0)


def prompts(runner: Any, chunk: int, args: argparse.Namespace) -> dict[str, MediaPrompt]:
    """The steps of this file's first lines. The tiny model has pictures of an eighth of the sides."""
    scale = 1 if args.shape != "tiny" else 8
    largest, common = (
        (1, rows // scale // 2 * 2, columns // scale // 2 * 2)
        for _, rows, columns in (LARGEST, COMMON)
    )
    places = common[1] * common[2] // 4
    pictures = [common] * max((chunk - 2) // (places + 1), 1) + [largest]
    video = (max(min(args.video_tokens, chunk * 8) // places, 2), *common[1:])
    return {
        "text": make_prompt(runner, [], length=chunk),
        "pictures": make_prompt(runner, pictures),
        "a video": make_prompt(runner, [video], Modality.VIDEO),
    }


def peak_of(worker: Any, plan: Any) -> float:
    """MiB above what was allocated before."""
    clear_mm_embedding_caches()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    worker.launch(plan).result()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / MIB


if __name__ == "__main__":
    sys.exit(main())
