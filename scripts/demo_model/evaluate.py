"""Score the demo model on held-out questions, skill by skill, with greedy decoding.

python scripts/demo_model/evaluate.py --model python/sglang/demo_model
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from data import SKILLS, sample_held_out
from item import Item
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerFast as Tokenizer

_BATCH = 50
WATCH_SEED, REPORT_SEED = 0, 3  # questions looked at during training, and those reported


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="checkpoint folder")
    parser.add_argument("--per-skill", type=int, default=200, help="held-out questions per skill")
    parser.add_argument("--seed", type=int, default=REPORT_SEED, help="which questions")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--show-errors", type=int, default=0, help="wrong answers shown per skill")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    scores = evaluate(model, tokenizer, args.per_skill, args.seed, args.show_errors)
    print(format_scores(scores, args.per_skill))


def evaluate(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    per_skill: int,
    seed: int = REPORT_SEED,
    show_errors: int = 0,
) -> dict[str, float]:
    """The share of held-out questions answered exactly right (the whole text), per skill."""
    scores = {}
    for skill in SKILLS:
        items = sample_held_out(skill, per_skill, seed)
        replies = answer(model, tokenizer, items)
        wrong = [(i, r) for i, r in zip(items, replies, strict=True) if r != i.answer]
        scores[skill] = 1 - len(wrong) / per_skill
        for item, reply in wrong[:show_errors]:
            print(f"{skill}: {item.messages[-1]['content']!r} -> {reply!r}, not {item.answer!r}")
    return scores


def format_scores(scores: dict[str, float], per_skill: int) -> str:
    """A Markdown table."""
    lines = [f"| skill | accuracy on {per_skill} held-out questions |", "|---|---|"]
    lines += [f"| {skill} | {100 * score:.1f} % |" for skill, score in scores.items()]
    return "\n".join(lines)


def answer(model: PreTrainedModel, tokenizer: Tokenizer, items: list[Item]) -> list[str]:
    """The model's greedy replies, in the order of `items`."""
    prompts = [_prompt_ids(tokenizer, item) for item in items]
    order = sorted(range(len(items)), key=lambda i: len(prompts[i]))
    replies = [""] * len(items)
    for start in range(0, len(order), _BATCH):
        chosen = order[start : start + _BATCH]
        longest = max(len(tokenizer.encode(items[i].answer)) for i in chosen)
        texts = _generate(model, tokenizer, [prompts[i] for i in chosen], longest + 4)
        for i, text in zip(chosen, texts, strict=True):
            replies[i] = text
    return replies


def _prompt_ids(tokenizer: Tokenizer, item: Item) -> list[int]:
    text = tokenizer.apply_chat_template(
        list(item.messages), add_generation_prompt=True, tokenize=False
    )
    return tokenizer.encode(text, add_special_tokens=False)


@torch.inference_mode()
def _generate(
    model: PreTrainedModel, tokenizer: Tokenizer, prompts: list[list[int]], max_new_tokens: int
) -> list[str]:
    width = max(map(len, prompts))
    pad = tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts])  # [B, T]
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    output = model.generate(
        ids,
        attention_mask=mask,
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
