"""MMMU with transformers, on the same pictures and prompts as `bench_sglang.py`.

python benchmark/mmmu/bench_hf.py --model-path Qwen/Qwen2.5-VL-7B-Instruct
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from data_utils import save_json
from eval_utils import EvalArgs, Sample, eval_result, prepare_samples, process_result

from sglang.srt.utils.errors import ConfigError


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model-path", required=True, help="folder or hub name")
    parser.add_argument("--dtype", default="auto", help="auto: bfloat16 on a GPU, else float32")
    parser.add_argument("--trust-remote-code", action="store_true")
    EvalArgs.add_cli_args(parser)
    args = parser.parse_args(argv)
    eval_args = EvalArgs.from_cli_args(args)
    try:
        samples = prepare_samples(eval_args)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    answers = _answer_all(samples, args)
    results = [
        process_result(answer, sample, eval_args)
        for answer, sample in zip(answers, samples, strict=True)
    ]
    name = Path(args.model_path).name
    save_json(eval_args.result_filename or f"./{name}_answer_hf.json", results)
    eval_result(results, f"./{name}_val_hf.json")
    return 0


def _answer_all(samples: Sequence[Sample], args: argparse.Namespace) -> list[str]:
    """Greedy, one by one."""
    import torch
    from PIL import Image

    from sglang.test.hf_media import HFMediaModel

    has_gpu = torch.cuda.is_available()
    dtype = args.dtype if args.dtype != "auto" else ("bfloat16" if has_gpu else "float32")
    device = "cuda" if has_gpu else "cpu"
    model = HFMediaModel(args.model_path, dtype, device, args.trust_remote_code)
    answers = []
    for sample in samples:
        content = [
            {"type": "text", "text": value} if kind == "text" else {"type": "image"}
            for kind, value in sample.parts
        ]
        images = [Image.open(value) for kind, value in sample.parts if kind == "image"]
        prompt = model.render([{"role": "user", "content": content}])
        found = model.answer(prompt, images, max_new_tokens=args.max_new_tokens)
        answers.append(found.text.strip())
    return answers


if __name__ == "__main__":
    sys.exit(main())
