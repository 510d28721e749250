"""Train the demo model that sees, on a GPU or slowly on a CPU; an interrupted run resumes.

    python scripts/demo_vlm/train.py --out python/sglang/demo_vlm
    python scripts/demo_vlm/train.py --out NEW --from OLD --lr 2.5e-4 --weight picture_choice=4

Many processes draw the data while one trains. The learning rate is constant after a short warm-up
and falls to zero over the last part of the steps. `--from` goes on from a finished model.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(_ROOT / "scripts" / "demo_model"))

import torch  # noqa: E402
from forward import weighted_loss  # noqa: E402
from mixture import Shares  # noqa: E402
from model import build_model, load_tokenizer, read_weights  # noqa: E402
from publish import publish, read_stages  # noqa: E402
from rows import PICTURE_TOKENS, Step, Steps  # noqa: E402
from score import REPORT_SEED, WATCH_SEED, format_scores, score  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402
from transformers import PreTrainedTokenizerFast  # noqa: E402

_LOG_EVERY = 50
_KERNELS = {
    "cuda": [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH],
    "cpu": [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH],
}
# What a stage's command leaves out where it is as usual.
_DEFAULTS = {
    "rows": 48,
    "pictures": 168,
    "lr": 1.2e-3,
    "warm_up": 300,
    "hold": 0.4,
    "text_share": 0.35,
    "seed": 0,
}
_COMMAND = "python scripts/demo_vlm/train.py --out python/sglang/demo_vlm"


def main() -> None:
    args = _parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.manual_seed(args.seed)
    torch.backends.cuda.matmul.allow_tf32 = True
    trainer = Trainer(args, load_tokenizer(args.tokenizer))
    trainer.resume()
    trainer.train()
    trainer.publish()


class Trainer:
    """Owns the model, the optimizer and the data stream; `done["steps"]` counts finished steps."""

    def __init__(self, args: argparse.Namespace, tokenizer: PreTrainedTokenizerFast) -> None:
        self.args, self.tokenizer = args, tokenizer
        self.shares = Shares(args.text_share, dict(args.weight))
        self.model = build_model(tokenizer)
        self.stages: list[dict[str, Any]] = []  # what the weights that it starts from went through
        if args.start:
            self.model.load_state_dict(read_weights(args.start))
            self.stages = read_stages(args.start)
        self.model.to(args.device).train()
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
        cuda = args.device == "cuda"
        self.lr = torch.tensor(args.lr, device=args.device)
        self.optimizer = torch.optim.AdamW(
            groups, lr=self.lr, betas=(0.9, 0.98), weight_decay=0.05, fused=True, capturable=cuda
        )
        self.update = RecordedUpdate(self._update) if cuda else self._update
        self.done = {"steps": 0, "tokens": 0, "pictures": 0, "seconds": 0.0, "waited": 0.0}

    def train(self) -> None:
        if self._share() >= 1:
            return
        began, losses, steps = time.time(), [], iter(self._steps())
        while self._share() < 1:
            asked = time.time()
            step = next(steps)
            self.done["waited"] += time.time() - asked
            self.lr.fill_(self._rate())
            losses.append(self.update(step).clone())
            self._count(step)
            number = self.done["steps"]
            if number % _LOG_EVERY == 0:
                loss = torch.stack(losses).nanmean().item()  # waits for the GPU
                self.done["seconds"] += time.time() - began
                began, losses = time.time(), []
                self._log(loss)
                if not math.isfinite(loss):
                    raise SystemExit("the loss is not a number: start again, it will resume")
            if number % self.args.save_every == 0:
                self._save()
            if number % self.args.score_every == 0 and self._share() < 1:
                print(format_scores(self._score(20, WATCH_SEED), 20), flush=True)
                began = time.time()
        self._save()

    def publish(self) -> None:
        """Score the model as it will be stored, in bf16, and write the folder."""
        args, per_skill = self.args, self.args.per_skill
        seed = REPORT_SEED if per_skill == 200 else WATCH_SEED
        scores = self._score(per_skill, seed) if per_skill else {}
        print(format_scores(scores, per_skill), flush=True)
        stages = [*self.stages, self._stage()]
        note = f"\n{args.note}\n" if args.note else ""
        publish(self._rounded(), self.tokenizer, args.out, scores, per_skill, stages, note)

    def _stage(self) -> dict[str, Any]:
        """What was done, for the model card; the command repeats it."""
        args, done = self.args, self.done
        cuda = args.device == "cuda"
        return {
            "steps": done["steps"],
            "rows": args.rows,
            "tokens": done["tokens"],
            "pictures": done["pictures"],
            "minutes": round(done["seconds"] / 60, 1),
            "device": f"one {torch.cuda.get_device_name()}" if cuda else _describe_cpu(),
            "commit": args.commit,
            "command": _command(args, done["steps"]),
        }

    def resume(self) -> None:
        path = self.args.checkpoint / "state.pt"
        if not path.exists():
            return
        state = torch.load(path, map_location=self.args.device)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        self.done = state["done"]
        print(f"resumed at step {self.done['steps']}", flush=True)

    def _steps(self) -> torch.utils.data.DataLoader:
        args = self.args
        seed = f"{args.seed} {self.done['steps']}"
        return torch.utils.data.DataLoader(
            Steps(self.tokenizer, seed, args.rows, args.pictures, self.shares),
            batch_size=None,
            num_workers=args.workers,
            prefetch_factor=4 if args.workers else None,
            pin_memory=args.device == "cuda",
        )

    def _update(self, step: Step) -> torch.Tensor:
        """One step of the optimizer; the loss, on the device."""
        self.optimizer.zero_grad(set_to_none=True)
        kernels = sdpa_kernel(_KERNELS[self.args.device])
        half = torch.autocast(self.args.device, torch.bfloat16, self.args.dtype == "bfloat16")
        with kernels, half:
            loss = weighted_loss(self.model, step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for parameter in self.model.parameters():
            # One gradient that is not a number would spoil the model for good.
            if parameter.grad is not None:
                parameter.grad.nan_to_num_(0.0, 0.0, 0.0)
        self.optimizer.step()
        return loss.detach()

    def _share(self) -> float:
        """How much of the training is done, by steps or, where it is limited, by time."""
        share = self.done["steps"] / self.args.steps
        return max(share, self.done["seconds"] / self.args.seconds) if self.args.seconds else share

    def _rate(self) -> float:
        warm = min(1.0, (self.done["steps"] + 1) / self.args.warm_up)
        fall = max(0.0, (self._share() - self.args.hold) / (1 - self.args.hold))
        return self.args.lr * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, fall)))

    def _count(self, step: Step) -> None:
        self.done["steps"] += 1
        self.done["tokens"] += int((step["owners"] > 0).sum())
        nowhere = step["ids"].numel()
        self.done["pictures"] += int(
            (step["places"].view(-1, PICTURE_TOKENS)[:, 0] < nowhere).sum()
        )

    def _log(self, loss: float) -> None:
        done = self.done
        print(
            f"step {done['steps']} loss {loss:.4f} lr {self._rate():.2e} "
            f"{done['tokens'] / 1e6:.1f}M tokens {done['pictures'] / 1e6:.2f}M pictures "
            f"{done['seconds']:.1f} s, {done['waited']:.1f} s of them waiting for data",
            flush=True,
        )

    def _rounded(self) -> torch.nn.Module:
        """A copy with the weights that a bf16 file holds."""
        plain = build_model(self.tokenizer).to(self.args.device).eval()
        plain.load_state_dict({k: v.bfloat16() for k, v in self.model.state_dict().items()})
        return plain

    def _score(self, per_skill: int, seed: int) -> dict[str, float]:
        return score(self._rounded(), self.tokenizer, per_skill, seed)

    def _save(self) -> None:
        self.args.checkpoint.mkdir(parents=True, exist_ok=True)
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        temporary = self.args.checkpoint / "state.tmp"
        torch.save({**state, "done": self.done}, temporary)
        os.replace(temporary, self.args.checkpoint / "state.pt")


class RecordedUpdate:
    """Runs an update a few times, records its GPU work once, and from then on repeats that.

    The many small operations of a small model would otherwise keep one CPU core busy and the GPU
    idle. All steps have one shape, and nothing in the update waits for the GPU.
    """

    _BEFORE = 5  # updates that run as usual, so that all memory is there

    def __init__(self, update: Callable[[Step], torch.Tensor]) -> None:
        self._plain = update
        self._inputs: Step = {}
        self._loss = torch.empty(())
        self._graph: torch.cuda.CUDAGraph | None = None
        self._stream = torch.cuda.Stream()
        self._copied = torch.cuda.Event()
        self._held: Step = {}
        self._count = 0

    def __call__(self, step: Step) -> torch.Tensor:
        if not self._inputs:
            self._inputs = {name: value.cuda() for name, value in step.items()}
        self._copied.synchronize()
        for name, value in step.items():
            self._inputs[name].copy_(value, non_blocking=True)
        self._copied.record()
        self._held = step  # its memory must not be used again before it is copied
        self._count += 1
        if self._count <= self._BEFORE:
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                loss = self._plain(self._inputs)
            torch.cuda.current_stream().wait_stream(self._stream)
            return loss
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            # Another thread pins the memory of steps to come; that is not part of the record.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._loss = self._plain(self._inputs)
        self._graph.replay()
        return self._loss


def _command(args: argparse.Namespace, steps: int) -> str:
    """The command that repeats a run of so many steps."""
    words = [_COMMAND]
    if args.start:
        words += ["--from python/sglang/demo_vlm"]
    for name in ("rows", "pictures", "lr", "warm_up", "hold", "text_share", "seed"):
        if (value := getattr(args, name)) != _DEFAULTS[name]:
            words.append(f"--{name.replace('_', '-')} {value}")
    words += [f"--weight {skill}={factor:g}" for skill, factor in args.weight]
    return " ".join([*words, f"--steps {steps}"])


def _describe_cpu() -> str:
    threads = torch.get_num_threads()
    return "one CPU core" if threads == 1 else f"{threads} CPU cores"


def _default_dtype(device: str) -> str:
    """bfloat16 where products of it are faster than those of float32."""
    fast = device == "cuda" or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if fast else "float32"


def _parse_weight(text: str) -> tuple[str, float]:
    skill, sign, factor = text.partition("=")
    if not sign:
        raise argparse.ArgumentTypeError(f"{text!r} is not SKILL=FACTOR, such as choice=2")
    return skill, float(factor)


def _parse_args() -> argparse.Namespace:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    parser.add_argument(
        "--tokenizer",
        type=Path,
        default=_ROOT / "python" / "sglang" / "demo_model",
        help="folder of the tokenizer to extend",
    )
    parser.add_argument(
        "--from", dest="start", type=Path, help="folder of a finished model to go on from"
    )
    parser.add_argument("--steps", type=int, default=21000)
    parser.add_argument("--seconds", type=float, default=0, help="end after this time, if given")
    parser.add_argument("--rows", type=int, help="rows of 384 tokens per step")
    parser.add_argument("--pictures", type=int, help="most pictures per step")
    parser.add_argument("--lr", type=float)
    parser.add_argument("--warm-up", type=int, help="steps before the full learning rate")
    parser.add_argument("--hold", type=float, help="share of steps before the fall")
    parser.add_argument("--text-share", type=float, help="share of conversations on text alone")
    parser.add_argument(
        "--weight",
        type=_parse_weight,
        action="append",
        default=[],
        metavar="SKILL=FACTOR",
        help="train a skill so many times as often as usual; may be repeated",
    )
    parser.add_argument("--seed", type=int)
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), help="of the products")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--checkpoint", type=Path, help="folder of what a run resumes from")
    parser.add_argument("--save-every", type=int, default=1000)
    parser.add_argument("--score-every", type=int, default=2000)
    parser.add_argument(
        "--per-skill", type=int, default=200, help="questions for the card's scores"
    )
    parser.add_argument("--commit", default="(not given)", help="for the model card")
    parser.add_argument("--note", default="", help="a sentence for the model card")
    parser.set_defaults(**_DEFAULTS)
    args = parser.parse_args()
    args.dtype = args.dtype or _default_dtype(args.device)
    # A run that goes on from a finished model must not resume the run that made it.
    folder = "build/demo_vlm_from" if args.start else "build/demo_vlm"
    args.checkpoint = args.checkpoint or Path(folder)
    return args


if __name__ == "__main__":
    main()
