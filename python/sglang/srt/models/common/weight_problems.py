"""What is wrong with a checkpoint: one problem for each tensor or parameter, and the error that tells all of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sglang.srt.utils.errors import ConfigError

_MAX_SHOWN = 20
# What differs between problems of one kind: the number of a layer or an expert, and the file.
_PLACE = re.compile(r"(?<=\.)\d+(?=\.)|\(in [^)]*\)$")


@dataclass(frozen=True)
class WeightProblem:
    """One thing that is wrong with a checkpoint; `tensor` is its name on disk, when it has one."""

    text: str
    tensor: str | None = None


class WeightLoadError(ConfigError):
    """A checkpoint that does not fit the model. `problems` holds every one; the message the first of each kind, 20 at most."""

    def __init__(self, problems: list[WeightProblem], source: str = "the checkpoint") -> None:
        lines = _by_kind(problems)
        shown = [f"  - {line}" for line in lines[:_MAX_SHOWN]]
        if len(lines) > _MAX_SHOWN:
            shown.append(f"  ... and {len(lines) - _MAX_SHOWN} more")
        super().__init__(
            f"{source} does not fit the model ({len(problems)} problems):\n"
            + "\n".join(shown)
            + "\nCheck that config.json and the weight files belong together. The weight_map of a model file says where "
            "tensors go: docs/add_a_model.md, section 3."
        )
        self.problems = problems


def _by_kind(problems: Sequence[WeightProblem]) -> list[str]:
    """One line for problems that differ only in the layer or the expert: sixty layers must not hide a second mistake."""
    kinds: dict[str, list[str]] = {}
    for problem in problems:
        kinds.setdefault(_PLACE.sub("*", problem.text), []).append(problem.text)
    return [
        texts[0] if len(texts) == 1 else f"{texts[0]}; the same in {len(texts) - 1} other places"
        for texts in kinds.values()
    ]
