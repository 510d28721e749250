"""Score the demo model on held-out questions, skill by skill, with greedy decoding.

python scripts/demo_vlm/score.py --model python/sglang/demo_vlm
"""

from __future__ import annotations

import argparse
import random
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "demo_model"))

import torch  # noqa: E402
from draw import render  # noqa: E402
from mixture import SKILLS, Question, sample_held_out  # noqa: E402
from pixels import MERGE, normalise, to_patches  # noqa: E402
from transformers import (  # noqa: E402
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen2VLForConditionalGeneration,
)

WATCH_SEED, REPORT_SEED = 0, 3  # questions looked at during training, and those reported
_BATCH = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="checkpoint folder")
    parser.add_argument("--skills", nargs="*", default=list(SKILLS), help="default: all")
    parser.add_argument("--per-skill", type=int, default=200, help="held-out questions per skill")
    parser.add_argument("--seed", type=int, default=REPORT_SEED, help="which questions")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--show-errors", type=int, default=0, help="wrong answers shown per skill")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    load = Qwen2VLForConditionalGeneration.from_pretrained
    model = load(args.model, dtype=torch.float32).eval().to(args.device)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    scores = score(model, tokenizer, args.per_skill, args.seed, args.skills, args.show_errors)
    print(format_scores(scores, args.per_skill))


def score(
    model: Qwen2VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    per_skill: int,
    seed: int = REPORT_SEED,
    skills: list[str] | None = None,
    show_errors: int = 0,
) -> dict[str, float]:
    """The share of held-out questions answered exactly right (the whole text), per skill."""
    names = skills or list(SKILLS)
    questions = [q for skill in names for q in sample_held_out(skill, per_skill, seed)]
    replies = answer(model, tokenizer, questions, seed)
    right, shown = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    for question, reply in zip(questions, replies, strict=True):
        skill = question.skill
        right[skill] += reply == question.answer
        if reply != question.answer and shown[skill] < show_errors:
            shown[skill] += 1
            asked = question.messages[-1]["content"]
            print(f"{skill}: {asked!r} {question.keys} -> {reply!r}, not {question.answer!r}")
    return {skill: count / per_skill for skill, count in right.items()}


def format_scores(scores: dict[str, float], per_skill: int) -> str:
    """A Markdown table."""
    lines = [f"| skill | accuracy on {per_skill} held-out questions |", "|---|---|"]
    lines += [f"| {skill} | {100 * share:.1f} % |" for skill, share in scores.items()]
    return "\n".join(lines)


def answer(
    model: Qwen2VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    questions: list[Question],
    seed: int,
) -> list[str]:
    """The model's greedy replies, in the order of `questions`; long answers stand together."""
    lengths = [len(tokenizer.encode(q.answer)) for q in questions]
    order = sorted(range(len(questions)), key=lambda i: lengths[i])
    replies = [""] * len(questions)
    for start in range(0, len(order), _BATCH):
        chosen = order[start : start + _BATCH]
        prompts = [
            build_prompt(tokenizer, questions[i], random.Random(f"{seed} {i}")) for i in chosen
        ]
        limit = max(lengths[i] for i in chosen) + 4
        for i, text in zip(chosen, _generate(model, tokenizer, prompts, limit), strict=True):
            replies[i] = text
    return replies


@dataclass(frozen=True)
class Prompt:
    """ids with one pad token per row of embeddings; pixel values [patches, 1176], grids [N][3]."""

    ids: list[int]
    pixels: list[torch.Tensor]
    grids: list[tuple[int, int, int]]


def build_prompt(
    tokenizer: PreTrainedTokenizerFast, question: Question, rng: random.Random
) -> Prompt:
    """The question through the chat template, its pictures drawn and cut into patches."""
    text = tokenizer.apply_chat_template(
        list(question.messages), add_generation_prompt=True, tokenize=False
    )
    pad = tokenizer.image_token
    pieces, pixels, grids = text.split(pad), [], []
    for picture in question.pictures:
        patches, (high, wide) = to_patches(render(picture, rng))
        pixels.append(normalise(torch.from_numpy(patches)))
        grids.append((1, high, wide))
    text = pieces[0]
    for grid, piece in zip(grids, pieces[1:], strict=True):
        text += pad * (grid[1] * grid[2] // MERGE**2) + piece
    return Prompt(tokenizer.encode(text, add_special_tokens=False), pixels, grids)


@torch.inference_mode()
def _generate(
    model: Qwen2VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    prompts: list[Prompt],
    max_new_tokens: int,
) -> list[str]:
    width, pad = max(len(p.ids) for p in prompts), tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(p.ids)) + p.ids for p in prompts])  # [B, T]
    mask = torch.tensor([[0] * (width - len(p.ids)) + [1] * len(p.ids) for p in prompts])
    inputs = {
        "input_ids": ids,
        "attention_mask": mask,
        "mm_token_type_ids": (ids == tokenizer.image_token_id).int(),
    }
    if any(p.pixels for p in prompts):
        inputs["pixel_values"] = torch.cat([x for p in prompts for x in p.pixels])
        inputs["image_grid_thw"] = torch.tensor([g for p in prompts for g in p.grids])
    output = model.generate(
        **{name: tensor.to(model.device) for name, tensor in inputs.items()},
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        max_new_tokens=max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=pad,
    )
    return [tokenizer.decode(row[width:], skip_special_tokens=True) for row in output]


if __name__ == "__main__":
    main()
