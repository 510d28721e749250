"""What transformers says to the correctness prompts, in the layout of `python -m sglang.bench_one_batch --correct`.

    python scripts/playground/reference_hf.py --model-path M --dtype float32 --device cpu

    python scripts/playground/reference_hf.py --model-path M --model-type vlm --image picture.png

Per prompt (per image): the logits of the last prompt position, then the prompt with its greedy continuation.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from sglang.test.prompts import CORRECTNESS_PROMPTS

DEFAULT_MODEL = "TinyLlama/TinyLlama-1.1B-Chat-v0.4"
QUESTION = "What is in this image?"
MODEL_TYPES = {"text": "text", "vlm": "vlm", "mllm": "vlm"}


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if MODEL_TYPES[args.model_type] == "vlm":
        run_vlm(args)
    else:
        run_text(args)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model-path", default=DEFAULT_MODEL, help="folder or hub name")
    parser.add_argument(
        "--model", dest="model_path", default=argparse.SUPPRESS, help="old name of --model-path"
    )
    parser.add_argument("--model-type", choices=sorted(MODEL_TYPES), default="text")
    parser.add_argument("--max-new-tokens", type=_positive, default=16)
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="float16")
    parser.add_argument("--device", help="cuda or cpu (default: cuda where there is one)")
    parser.add_argument(
        "--image",
        action="append",
        help="image file for --model-type vlm, several times for several",
    )
    parser.add_argument("--question", default=QUESTION, help="for --model-type vlm")
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run code of the checkpoint"
    )
    return parser.parse_args(argv)


def run_text(args: argparse.Namespace) -> None:
    # Heavy; --help and errors of usage come without it.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = AutoTokenizer.from_pretrained(
        args.model_path, trust_remote_code=args.trust_remote_code
    )
    model: Any = AutoModelForCausalLM.from_pretrained(
        args.model_path,
        dtype=getattr(torch, args.dtype),
        attn_implementation="eager",  # the others leave out soft caps of some models
        trust_remote_code=args.trust_remote_code,
    )
    model.eval().to(device)
    for index, prompt in enumerate(CORRECTNESS_PROMPTS):
        input_ids = torch.tensor([tokenizer.encode(prompt)], device=device)
        with torch.inference_mode():
            logits = model(input_ids).logits[0, -1]
            output_ids = model.generate(
                input_ids,
                attention_mask=torch.ones_like(input_ids),
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                max_new_tokens=args.max_new_tokens,
                eos_token_id=None,  # exactly that many tokens, as the other tool does
                pad_token_id=0,
            )
        print(f"\n========== Prompt {index} ==========")
        print("prefill logits (final)", logits)
        print(tokenizer.decode(output_ids[0]), "\n")


def run_vlm(args: argparse.Namespace) -> None:
    """Every image with the question; a drawn picture without --image."""
    import torch
    from PIL import Image

    from sglang.test.hf_media import HFMediaModel
    from sglang.test.media_files import draw

    try:
        images = [Image.open(path).convert("RGB") for path in args.image or []]
    except OSError as error:
        sys.exit(f"--image: {error}")
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = HFMediaModel(args.model_path, args.dtype, device, args.trust_remote_code)
    parts = [{"type": "image"}, {"type": "text", "text": args.question}]
    prompt = model.render([{"role": "user", "content": parts}])
    for index, image in enumerate(images or [draw("circle", "red")]):
        answer = model.answer(prompt, [image], max_new_tokens=args.max_new_tokens, ignore_eos=True)
        print(f"\n========== Image {index} ==========")
        print("prefill logits (final)", answer.final_logits)
        print(prompt + answer.text, "\n")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return value


if __name__ == "__main__":
    main()
