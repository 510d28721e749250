"""Score the demo model on held-out questions, skill by skill, as greedy decoding would answer.

Greedy decoding gives the right answer if and only if each of its tokens, and the end, is the
likeliest one behind those before it, so one forward pass shows it, without generating.

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
from mixture import SKILLS, Conversation, Question, sample_held_out  # noqa: E402
from pixels import normalise  # noqa: E402
from rows import Encoder, Row  # noqa: E402
from transformers import (  # noqa: E402
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen2VLForConditionalGeneration,
)

WATCH_SEED, REPORT_SEED = 0, 3  # questions looked at during training, and those reported
_BATCH = 50


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
    shares = {}
    for skill in skills or list(SKILLS):
        questions = sample_held_out(skill, per_skill, seed)
        found = predict(model, tokenizer, questions, random.Random(f"{seed} {skill}"))
        wrong = [(q, p) for q, p in zip(questions, found, strict=True) if not p.right]
        print(f"{skill}: {per_skill - len(wrong)} of {per_skill}", file=sys.stderr, flush=True)
        shares[skill] = 1 - len(wrong) / per_skill
        for question, prediction in wrong[:show_errors]:
            asked = question.messages[-1]["content"]
            told = tokenizer.decode(prediction.likeliest)
            print(f"{skill}: {asked!r} {question.keys} -> {told!r}, not {question.answer!r}")
    return shares


def format_scores(scores: dict[str, float], per_skill: int) -> str:
    """A Markdown table."""
    lines = [f"| skill | accuracy on {per_skill} held-out questions |", "|---|---|"]
    lines += [f"| {skill} | {100 * share:.1f} % |" for skill, share in scores.items()]
    return "\n".join(lines)


@dataclass(frozen=True)
class Prediction:
    """The likeliest token at each place of the right answer, and whether all are its own."""

    likeliest: list[int]
    right: bool


def predict(
    model: Qwen2VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    questions: list[Question],
    rng: random.Random,
) -> list[Prediction]:
    """One prediction per question, in order; pictures are drawn with `rng`."""
    conversations = [
        Conversation((*q.messages, {"role": "assistant", "content": q.answer}), q.pictures)
        for q in questions
    ]
    rows = Encoder(tokenizer).encode(conversations, rng)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    found: dict[int, Prediction] = {}
    for start in range(0, len(order), _BATCH):
        chosen = order[start : start + _BATCH]
        found |= zip(chosen, _predict(model, tokenizer, [rows[i] for i in chosen]), strict=True)
    return [found[i] for i in range(len(rows))]


@torch.inference_mode()
def _predict(
    model: Qwen2VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, rows: list[Row]
) -> list[Prediction]:
    inputs = collate(tokenizer, rows)
    hidden = model.model(**{k: v.to(model.device) for k, v in inputs.items()}).last_hidden_state
    predictions = []
    for row, states in zip(rows, hidden, strict=True):
        # Only the last answer counts; those before it belong to the conversation.
        end = max(i for i, weight in enumerate(row.weights) if weight)
        begin = end
        while row.weights[begin - 1]:
            begin -= 1
        likeliest = model.lm_head(states[begin : end + 1]).argmax(-1).tolist()
        predictions.append(Prediction(likeliest, likeliest == row.labels[begin : end + 1]))
    return predictions


def collate(tokenizer: PreTrainedTokenizerFast, rows: list[Row]) -> dict[str, torch.Tensor]:
    """The inputs of transformers' model for rows, padded on the right."""
    width, pad = max(len(row.ids) for row in rows), tokenizer.pad_token_id
    ids = torch.tensor([row.ids + [pad] * (width - len(row.ids)) for row in rows])  # [B, T]
    mask = torch.tensor([[1] * len(row.ids) + [0] * (width - len(row.ids)) for row in rows])
    inputs = {
        "input_ids": ids,
        "attention_mask": mask,
        "mm_token_type_ids": (ids == tokenizer.image_token_id).int(),
    }
    pictures = [picture for row in rows for picture in row.patches]
    if pictures:
        values = [normalise(torch.from_numpy(patches)) for patches, _ in pictures]
        inputs["pixel_values"] = torch.cat(values)
        inputs["image_grid_thw"] = torch.tensor([(1, *grid) for _, grid in pictures])
    return inputs


if __name__ == "__main__":
    main()
