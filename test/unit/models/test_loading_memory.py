"""Loading streams: beside the weights there is room for two of the largest tensors, however large the checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

LAYERS, WIDTH, INNER, VOCAB = 6, 768, 3072, 4096
_CODE = """
import json, sys, threading
import torch
from sglang.srt.configs.load_config import LoadConfig
from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.model_loader import get_model
from sglang.srt.model_loader.loader import build_model
from sglang.srt.model_loader.utils import get_model_architecture
import safetensors.torch

torch.set_num_threads(1)

def read(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))

small = ModelConfig(sys.argv[1])  # a model of the same kind brings in every module that loading needs
get_model(model_config=small, load_config=LoadConfig(), device_config="cpu")
config = ModelConfig(sys.argv[2])
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the high-water mark starts again
before = read("VmRSS:")
model = get_model(model_config=config, load_config=LoadConfig(), device_config="cpu")
weights = sum(p.numel() * p.element_size() for p in model.parameters())
print(json.dumps({"weights": weights, "peak": read("VmHWM:") - before}))
"""


def write_checkpoint(folder: Path, layers: int, width: int, inner: int, vocab: int) -> int:
    """A Llama in float32 with one file per layer; returns the bytes of the largest tensor."""
    from safetensors.torch import save_file

    folder.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": vocab,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    files = {
        "ends": {"model.embed_tokens.weight": (vocab, width), "lm_head.weight": (vocab, width)}
    }
    files["ends"]["model.norm.weight"] = (width,)
    for i in range(layers):
        names = {f"self_attn.{p}_proj": (width, width) for p in "qkvo"}
        names |= {"mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width)}
        names |= {"mlp.down_proj": (width, inner)}
        names |= {"input_layernorm": (width,), "post_attention_layernorm": (width,)}
        files[f"layer{i}"] = {f"model.layers.{i}.{n}.weight": s for n, s in names.items()}
    index = {}
    for file, shapes in files.items():
        name = f"model-{file}.safetensors"
        save_file({key: torch.full(shape, 0.01) for key, shape in shapes.items()}, folder / name)
        index |= dict.fromkeys(shapes, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return 4 * max(vocab * width, inner * width)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the high-water mark from /proc")
def test_peak_is_the_weights_and_two_tensors(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "small", 1, 16, 32, 64)
    largest = write_checkpoint(tmp_path / "large", LAYERS, WIDTH, INNER, VOCAB)
    command = [sys.executable, "-c", _CODE, str(tmp_path / "small"), str(tmp_path / "large")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["weights"] > 150e6, "too small to tell streaming from holding everything"
    assert found["peak"] <= found["weights"] + 2 * largest, found
