"""Random checkpoints in bf16, made once into a cache folder: the shape of Qwen3-0.6B, and a tiny Llama.

python benchmark/cpu/checkpoints.py [--cache-dir DIR] [qwen3-0.6b] [tiny-llama]
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

SEED = 20240
DEFAULT_CACHE = Path(tempfile.gettempdir()) / "sglang-benchmark-models"

# name -> (transformers config class, its arguments)
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3-0.6b": (
        "Qwen3Config",
        {
            "num_hidden_layers": 28,
            "hidden_size": 1024,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "intermediate_size": 3072,
            "vocab_size": 151936,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": True,
        },
    ),
    "tiny-llama": (
        "LlamaConfig",
        {
            "num_hidden_layers": 4,
            "hidden_size": 256,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "intermediate_size": 1024,
            "vocab_size": 32000,
            "max_position_embeddings": 65536,
        },
    ),
}


def vocab_size(name: str) -> int:
    return SHAPES[name][1]["vocab_size"]


def checkpoint(name: str, cache_dir: Path = DEFAULT_CACHE) -> Path:
    """Folder of a checkpoint, made if it is not there yet. Imports transformers only then."""
    folder = cache_dir / name
    if (folder / "config.json").is_file():
        return folder
    print(f"making {folder}", flush=True)
    scratch = cache_dir / f".{name}.{os.getpid()}"
    scratch.mkdir(parents=True, exist_ok=True)
    _write_model(name, scratch)
    _write_tokenizer(name, scratch)
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)  # whoever looks sees nothing or everything
    return folder


def _write_model(name: str, folder: Path) -> None:
    import torch
    import transformers

    kind, arguments = SHAPES[name]
    torch.manual_seed(SEED)
    # No end-of-sequence id: every request runs to the length it asks for.
    ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    config = getattr(transformers, kind)(**arguments, **ids)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)


def _write_tokenizer(name: str, folder: Path) -> None:
    """One word per id, so that text of any ids can be shown and sent."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {f"w{i}": i for i in range(vocab_size(name))}
    words = Tokenizer(models.WordLevel(vocab, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(SHAPES), metavar="NAME")
    parser.add_argument("--cache-dir", type=Path, default=DEFAULT_CACHE)
    args = parser.parse_args()
    for name in args.names:
        print(checkpoint(name, args.cache_dir))


if __name__ == "__main__":
    main()
