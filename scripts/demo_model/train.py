"""Train the demo model on a CPU and write its folder; an interrupted run resumes.

    python scripts/demo_model/train.py --out python/sglang/demo_model

The learning rate is constant after a short warm-up and falls to zero over the last part, so a run
can be continued with more --steps as long as the fall has not begun. With glibc's allocator,
MALLOC_MMAP_THRESHOLD_=4000000000 MALLOC_TRIM_THRESHOLD_=40000000000 saves a third of the time;
on a machine shared with others OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=0 saves more.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import time
from pathlib import Path

import torch
from batches import IGNORED, draw_batches
from evaluate import REPORT_SEED, WATCH_SEED, evaluate, format_scores
from export import export
from item import HELD_OUT_PERCENT
from tokenizer import MAX_LEN, VOCAB_SIZE, save_tokenizer, train_tokenizer
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.modeling_utils import AttentionInterface


def main() -> None:
    args = _parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    tokenizer = load_or_train_tokenizer(args)
    trainer = Trainer(args, tokenizer)
    trainer.resume()
    trainer.train()
    trainer.publish(per_skill=200, seed=REPORT_SEED)


class Trainer:
    """Owns the model, the optimizer and the data stream; `step` counts finished steps."""

    def __init__(self, args: argparse.Namespace, tokenizer: PreTrainedTokenizerFast) -> None:
        self.args, self.tokenizer = args, tokenizer
        self.model = build_model(tokenizer)
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(
            groups, lr=args.lr, betas=(0.9, 0.95), weight_decay=0.05, fused=True
        )
        # Only the stack of layers is compiled: the head runs on the few positions with a label.
        self.layers = torch.compile(self.model.model, dynamic=True, disable=not args.compile)
        self.step, self.seconds, self.tokens = 0, 0.0, 0

    def train(self) -> None:
        args = self.args
        batches = draw_batches(
            self.tokenizer, f"{args.seed} {self.step}", args.batch_tokens // args.parts
        )
        began, loss_sum = time.time(), 0.0
        while self.step < args.steps:
            parts = list(itertools.islice(batches, args.parts))
            loss_sum += self._update(parts)
            self.step += 1
            self.tokens += sum(ids.numel() for ids, _ in parts)
            if self.step % 20 == 0:
                now = time.time()
                self.seconds, began = self.seconds + now - began, now
                print(
                    f"step {self.step} loss {loss_sum / 20:.4f} lr {self._lr():.2e} "
                    f"{self.tokens / 1e6:.1f}M tokens {self.seconds / 60:.1f} min",
                    flush=True,
                )
                loss_sum = 0.0
            if self.step % args.save_every == 0:
                self._save()
            if self.step % args.eval_every == 0 and self.step < args.steps:
                self.publish(per_skill=40, seed=WATCH_SEED)
                began = time.time()

    def publish(self, per_skill: int, seed: int) -> None:
        """Evaluate the model as it will be stored, in bf16, and export it."""
        plain = build_model(self.tokenizer, attention="sdpa")
        plain.load_state_dict({k: v.bfloat16() for k, v in self.model.state_dict().items()})
        scores = evaluate(plain.eval(), self.tokenizer, per_skill, seed)
        print(format_scores(scores, per_skill), flush=True)
        facts = {
            "steps": self.step,
            "batch_tokens": self.args.batch_tokens,
            "tokens": self.tokens / 1e6,
            "minutes": self.seconds / 60,
            "trained": 350,
            "percent": HELD_OUT_PERCENT,
            "note": f"\n{self.args.note}\n" if self.args.note else "",
        }
        export(plain, self.tokenizer, self.args.out, scores, per_skill, facts)

    def resume(self) -> None:
        path = self.args.checkpoint / "state.pt"
        if not path.exists():
            return
        state = torch.load(path)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds, self.tokens = state["step"], state["seconds"], state["tokens"]
        print(f"resumed at step {self.step}", flush=True)

    def _save(self) -> None:
        self.args.checkpoint.mkdir(parents=True, exist_ok=True)
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        state |= {"step": self.step, "seconds": self.seconds, "tokens": self.tokens}
        temporary = self.args.checkpoint / "state.tmp"
        torch.save(state, temporary)
        os.replace(temporary, self.args.checkpoint / "state.pt")

    def _update(self, parts: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
        """One step on several batches: rows of one length alone would be of few skills."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr()
        total = sum(int((labels != IGNORED).sum()) for _, labels in parts)
        loss_sum = 0.0
        for ids, labels in parts:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                hidden = self.layers(input_ids=ids, use_cache=False).last_hidden_state  # [B, T, D]
                spoken = labels != IGNORED
                logits = self.model.lm_head(hidden[spoken])  # [labels, V]
            loss = functional.cross_entropy(logits.float(), labels[spoken], reduction="sum")
            (loss / total).backward()
            loss_sum += loss.item()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss_sum / total

    def _lr(self) -> float:
        args = self.args
        warm = min(1.0, (self.step + 1) / 200)
        fall = max(0.0, (self.step - args.hold * args.steps) / ((1 - args.hold) * args.steps))
        return args.lr * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, fall)))


def load_or_train_tokenizer(args: argparse.Namespace) -> PreTrainedTokenizerFast:
    """The tokenizer of the run to resume, else a new one, kept beside the run's state."""
    folder = args.checkpoint / "tokenizer"
    if (folder / "tokenizer.json").exists():
        return PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer = train_tokenizer(args.seed)
    save_tokenizer(tokenizer, folder)
    return tokenizer


def build_model(tokenizer: PreTrainedTokenizerFast, attention: str = "grouped") -> Qwen3ForCausalLM:
    """The untrained model; "grouped" is this module's attention, which ignores padding masks."""
    AttentionInterface.register("grouped", grouped_attention)
    config = Qwen3Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=192,
        intermediate_size=384,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=MAX_LEN,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        attn_implementation=attention,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config).train()


def grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # [B, H, T, d]
    key: torch.Tensor,  # [B, K, T, d]
    value: torch.Tensor,  # [B, K, T, d]
    attention_mask: torch.Tensor | None,
    scaling: float,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Causal attention as two matrix products, several times faster than SDPA on a CPU.

    Rows are padded on the right, where a causal mask hides the padding from every real token.
    Returns [B, T, H, d].
    """
    b, h, t, d = query.shape
    k = key.shape[1]
    grouped = (query * scaling).reshape(b * k, h // k * t, d)
    scores = torch.bmm(grouped, key.reshape(b * k, t, d).transpose(1, 2)).view(b * k, h // k, t, t)
    place = torch.arange(t)
    scores = scores.masked_fill(place[None, :] > place[:, None], -1e4)
    weights = torch.softmax(scores.float(), -1).to(value.dtype).view(b * k, h // k * t, t)
    mixed = torch.bmm(weights, value.reshape(b * k, t, d))
    return mixed.view(b, h, t, d).transpose(1, 2).contiguous(), None


def _parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--batch-tokens", type=int, default=8192)
    parser.add_argument("--parts", type=int, default=2, help="batches per step")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--hold", type=float, default=0.4, help="share of steps before the fall")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--checkpoint", type=Path, default=Path("build/demo_model"))
    parser.add_argument("--note", default="", help="a sentence for the model card")
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument("--eval-every", type=int, default=750)
    return parser.parse_args()


if __name__ == "__main__":
    main()
