"""MMMU on a running server.

python -m sglang.launch_server --model-path Qwen/Qwen2.5-VL-7B-Instruct &
python benchmark/mmmu/bench_sglang.py --concurrency 16
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from data_utils import save_json
from eval_utils import EvalArgs, Sample, eval_result, prepare_samples, process_result

from sglang.srt.utils.errors import ConfigError
from sglang.test.bench_args import add_common_sglang_args_and_parse, base_url, post


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    EvalArgs.add_cli_args(parser)
    args = add_common_sglang_args_and_parse(parser, argv)
    eval_args = EvalArgs.from_cli_args(args)
    try:
        samples = prepare_samples(eval_args)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    url = base_url(args)
    if eval_args.profile:
        samples = samples[: eval_args.profile_number]
        post(f"{url}/start_profile", {})
    started = time.perf_counter()
    answers = asyncio.run(_answer_all(samples, eval_args, f"{url}/v1"))
    print(f"Benchmark time: {time.perf_counter() - started:.1f} s")
    if eval_args.profile:
        post(f"{url}/stop_profile", {})
    results = [
        process_result(answer, sample, eval_args)
        for answer, sample in zip(answers, samples, strict=True)
    ]
    save_json(eval_args.result_filename or "./answer_sglang.json", results)
    eval_result(results, "./val_sglang.json")
    return 0


async def _answer_all(samples: Sequence[Sample], eval_args: EvalArgs, url: str) -> list[str]:
    import openai

    gate = asyncio.Semaphore(max(eval_args.concurrency, 1))
    extra = json.loads(eval_args.extra_request_body or "{}")
    model = eval_args.lora_path or "default"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", timeout=3600) as client:

        async def answer(sample: Sample) -> str:
            async with gate:
                response = await client.chat.completions.create(
                    model=model,
                    messages=_messages(sample),
                    temperature=eval_args.temperature,
                    max_tokens=eval_args.max_new_tokens,
                    seed=eval_args.seed,
                    extra_body=extra,
                )
            return response.choices[0].message.content or ""

        return list(await asyncio.gather(*map(answer, samples)))


def _messages(sample: Sample) -> list[Any]:
    content = [
        {"type": "text", "text": value} if kind == "text" else _image(value)
        for kind, value in sample.parts
    ]
    return [{"role": "user", "content": content}]


def _image(path: str) -> dict[str, Any]:
    encoded = base64.b64encode(Path(path).read_bytes()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}}


if __name__ == "__main__":
    sys.exit(main())
