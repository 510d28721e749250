"""What one large image costs before the language model: decoding, the processor and the tower, here and in transformers.

    python benchmark/cpu/image_cost.py                  # 4096 x 4096 pixels
    python benchmark/cpu/image_cost.py --side 512 --repeat 1

Each side runs in a process of its own on the same PNG file with the same random weights: seconds by step, and the most memory that the
process had, less what it had before the image.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import records

SIDES = ("transformers", "here")
STEPS = ("decode and prepare", "pack and unpack", "tower")
Seconds = dict[str, float]


def main() -> None:
    args = parse_args()
    if args.only:
        run_side(args.only, args.checkpoint, args.image)
        return
    records.warn_if_busy()
    with tempfile.TemporaryDirectory() as folder, records.limited_cores(args.cores):
        checkpoint, image = Path(folder, "model"), Path(folder, "image.png")
        write_checkpoint(checkpoint, args.architecture, args.side)
        write_image(image, args.side)
        record = records.Record.begin(
            "cpu-image-cost",
            cores=args.cores,
            image=f"{args.side} x {args.side} pixels, PNG, {image.stat().st_size / 2**20:.1f} MiB",
            model=f"random tiny {args.architecture}, float32",
        )
        found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
        for _ in range(args.repeat):  # in turns, so that a slow minute hits both
            for side in SIDES:
                found[side].append(_in_process(side, checkpoint, image, args.cores))
    report(record, found)
    record.write(args.results)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=4096, help="pixels of a side")
    parser.add_argument("--architecture", default="Qwen2_5_VLForConditionalGeneration")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--results", type=Path, default=records.RESULTS, metavar="FOLDER")
    for name in ("--only", "--checkpoint", "--image"):  # of the processes of the two sides
        parser.add_argument(name, help=argparse.SUPPRESS)
    return parser.parse_args()


def write_checkpoint(folder: Path, architecture: str, side: int) -> None:
    """A tiny model whose processor leaves the image as large as it is."""
    from sglang.verify.media_tiny import write_media_config
    from sglang.verify.tiny import tiny_config

    write_media_config(tiny_config(architecture), folder)
    path = folder / "preprocessor_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["size"]["longest_edge"] = 2 * side * side
    path.write_text(json.dumps(settings), encoding="utf-8")


def write_image(path: Path, side: int) -> None:
    """Smooth colours with noise, as a photograph has."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), dtype=np.int16)
    noise = rng.integers(-4, 5, (side, side, 1), dtype=np.int16)
    pixels = np.clip(smooth + noise, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(path, "PNG", compress_level=1)


def report(record: records.Record, found: dict[str, list[dict[str, Any]]]) -> None:
    medians = {
        side: {step: statistics.median(run["seconds"][step] for run in runs) for step in STEPS}
        for side, runs in found.items()
    }
    theirs, ours = (medians[side] for side in SIDES)
    rows = [["step", *(f"{side}, s" for side in SIDES), "ratio"]]
    for step in STEPS:
        ratio = f"{ours[step] / theirs[step]:.2f} x" if theirs[step] else ""
        rows.append([step, f"{theirs[step]:.3f}", f"{ours[step]:.3f}", ratio])
    total = [sum(side.values()) for side in (theirs, ours)]
    rows.append(["total", *(f"{value:.3f}" for value in total), f"{total[1] / total[0]:.2f} x"])
    record.add_table("Seconds, medians", rows)
    memory = [statistics.median(run["mib"] for run in found[side]) for side in SIDES]
    figures = [f"{value:.0f}" for value in memory]
    ratio = f"{memory[1] / max(memory[0], 1.0):.2f} x"
    header = ["memory above the start", *(f"{side}, MiB" for side in SIDES), "ratio"]
    record.add_table("Memory, medians", [header, ["most", *figures, ratio]])
    rows_of = {run["rows"] for runs in found.values() for run in runs}
    if len(rows_of) != 1:
        raise RuntimeError(f"the two sides made different numbers of rows: {sorted(rows_of)}")
    record.data = {"runs": found, "rows": rows_of.pop()}


def _in_process(side: str, checkpoint: Path, image: Path, cores: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--only", side]
    command += ["--checkpoint", str(checkpoint), "--image", str(image)]
    path = os.pathsep.join([str(records.ROOT / "python"), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(cores)}
    done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


# --- one side


def run_side(side: str, checkpoint: str, image: str) -> None:
    """Print one line of JSON."""
    run = {"transformers": _prepare_transformers, "here": _prepare_here}[side](checkpoint)
    content = Path(image).read_bytes()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the most so far is now
    before = _most_mib()
    seconds, rows = run(content)
    print(json.dumps({"seconds": seconds, "mib": _most_mib() - before, "rows": rows}))


def _prepare_transformers(checkpoint: str) -> Callable[[bytes], tuple[Seconds, int]]:
    import torch
    from PIL import Image
    from transformers import AutoImageProcessor, AutoModelForMultimodalLM

    processor = AutoImageProcessor.from_pretrained(checkpoint)
    model = AutoModelForMultimodalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()

    @torch.inference_mode()
    def run(content: bytes) -> tuple[Seconds, int]:
        started = time.perf_counter()
        image = Image.open(io.BytesIO(content)).convert("RGB")
        features = processor(images=[image], return_tensors="pt")
        prepared = time.perf_counter()
        found = model.model.get_image_features(
            features["pixel_values"], image_grid_thw=features["image_grid_thw"]
        )
        rows = found if isinstance(found, tuple | list) else found.pooler_output
        done = time.perf_counter()
        seconds = dict(zip(STEPS, (prepared - started, 0.0, done - prepared), strict=True))
        return seconds, sum(len(part) for part in rows)

    return run


def _prepare_here(checkpoint: str) -> Callable[[bytes], tuple[Seconds, int]]:
    import torch
    from transformers import AutoTokenizer

    from sglang.srt.managers.multimodal_processor import get_mm_processor, load_all_processors
    from sglang.srt.multimodal.hf_processor import load_processor
    from sglang.srt.multimodal.transport import pack, unpack
    from sglang.srt.server_args import ServerArgs
    from sglang.verify.subject import Subject

    model: Any = Subject(checkpoint)
    config, model = model.model_config.hf_config, model.model
    load_all_processors()
    parts = load_processor(checkpoint, AutoTokenizer.from_pretrained(checkpoint))
    processor = get_mm_processor(config, ServerArgs(model_path=checkpoint), parts)
    request = SimpleNamespace(image_data=None, video_data=None, audio_data=None, rid="r")
    ids = [config.vision_start_token_id, config.image_token_id, config.vision_end_token_id]

    @torch.inference_mode()
    def run(content: bytes) -> tuple[Seconds, int]:
        started = time.perf_counter()
        inputs = asyncio.run(
            processor.process_mm_data_async([content], None, ids, request_obj=request)
        )
        prepared = time.perf_counter()
        packed = pack(inputs)
        del inputs
        items = unpack(packed)["mm_items"]
        del packed
        moved = time.perf_counter()
        rows = model.get_image_feature(items)
        done = time.perf_counter()
        times = (prepared - started, moved - prepared, done - moved)
        return dict(zip(STEPS, times, strict=True)), len(rows)

    return run


def _most_mib() -> float:
    """The most memory that this process has had since its record was reset."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


if __name__ == "__main__":
    main()
