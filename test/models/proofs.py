"""Makes a `Proof` of a tiny case."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models.configs import CASES
from models.tiny import write_checkpoint

from sglang.verify.proof import Proof
from sglang.verify.subject import SubjectConfig

# The forms need sequences of up to 193 tokens; these cases are made for shorter contexts. Everything else of them stays.
_LONGER: dict[str, dict[str, Any]] = {
    "llama-dynamic": {"max_position_embeddings": 128},
    "internlm2-dynamic": {"max_position_embeddings": 128},
    "llama-longrope-short": {
        "max_position_embeddings": 512,
        "rope_parameters": {
            **CASES["llama-longrope-short"].keys["rope_parameters"],
            "original_max_position_embeddings": 256,
        },
    },
}
_CONTEXT_LENGTH = {"llama-longrope-short": 256}


def make_proof(name: str, folder: Path, on_fallback: bool = False) -> Proof:
    """Writes the checkpoint of a case into `folder` and loads it on both sides."""
    write_checkpoint(name, folder, **_LONGER.get(name, {}))
    config = SubjectConfig(
        context_length=_CONTEXT_LENGTH.get(name, CASES[name].context_length),
        model_impl="transformers" if on_fallback or CASES[name].is_fallback else "auto",
    )
    return Proof(str(folder), config)
