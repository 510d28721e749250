"""`ModelConfig`: paths, lengths, dtypes and kinds of models, without touching a weight."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from models.tiny import build_config, write_tokenizer

from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.environ import envs
from sglang.srt.utils.errors import ConfigError
from sglang.srt.utils.hf_transformers_utils import get_tokenizer

PUBLISHED: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 256,
    "rope_theta": 500000.0,
    "rope_scaling": None,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}


def write_config(folder: Path, **keys: Any) -> str:
    (folder / "config.json").write_text(json.dumps({**PUBLISHED, **keys}))
    return str(folder)


def test_published_and_saved_spelling_agree(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    published = ModelConfig(write_config(tmp_path / "a"))
    published.hf_config.save_pretrained(tmp_path / "b")
    assert "rope_parameters" in json.loads((tmp_path / "b" / "config.json").read_text())
    saved = ModelConfig(str(tmp_path / "b"))
    assert published.facts == saved.facts
    assert published.facts.rope is not None and published.facts.rope.theta == 500000.0
    assert published.hf_config.rope_theta == 500000.0


def test_sizes(tmp_path: Path) -> None:
    config = ModelConfig(write_config(tmp_path))
    assert (config.vocab_size, config.context_len, config.num_attention_layers) == (512, 256, 2)
    assert config.hf_eos_token_id == {2}
    assert [config.get_num_kv_heads(tp) for tp in (1, 2, 4)] == [2, 1, 1]
    assert config.get_num_attention_heads(2) == 2
    with pytest.raises(ConfigError, match="tp_size=3"):
        config.get_num_attention_heads(3)


def test_generation_config_adds_eos_ids(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    assert ModelConfig(write_config(tmp_path)).hf_eos_token_id == {2, 7, 9}


def test_class_defaults_fill_what_the_file_leaves_out(tmp_path: Path) -> None:
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert ModelConfig(str(tmp_path)).vocab_size == build_config("llama").__class__().vocab_size


def test_front_process_needs_no_torch(tmp_path: Path) -> None:
    write_config(tmp_path)
    write_tokenizer(tmp_path)
    code = (
        "import sys; from sglang.srt.configs.model_config import ModelConfig\n"
        "from sglang.srt.utils.hf_transformers_utils import get_tokenizer\n"
        f"assert ModelConfig({str(tmp_path)!r}).context_len == 256\n"
        "assert 'transformers' not in sys.modules, 'config imported transformers'\n"
        # Older transformers import torch for any tokenizer at all.
        "import transformers.tokenization_utils_tokenizers; before = 'torch' in sys.modules\n"
        f"assert get_tokenizer({str(tmp_path)!r}).decode([70, 71])\n"
        "assert ('torch' in sys.modules) == before, 'the tokenizer imported torch'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("mode", ["auto"])
def test_tokenizer_round_trip(tmp_path: Path, mode: str) -> None:
    write_config(tmp_path)
    write_tokenizer(tmp_path)
    tokenizer = get_tokenizer(str(tmp_path), tokenizer_mode=mode)
    assert tokenizer.decode(tokenizer.encode("Grüße, 7 Äpfel")) == "Grüße, 7 Äpfel"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)


def test_tokenizer_errors_name_the_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        get_tokenizer(str(tmp_path / "absent"))
    with pytest.raises(ConfigError, match="tokenizer_mode='odd'"):
        get_tokenizer(str(tmp_path), tokenizer_mode="odd")


def test_context_length_rule(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_config(tmp_path)
    assert ModelConfig(path, context_length=100).context_len == 100
    with pytest.raises(ConfigError, match="SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN"):
        ModelConfig(path, context_length=300)
    with pytest.raises(ConfigError, match="at least 1"):
        ModelConfig(path, context_length=0)
    with (
        envs.SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN.override(True),
        caplog.at_level(logging.WARNING),
    ):
        longer = ModelConfig(path, context_length=300)
    assert longer.context_len == 300 and "300" in caplog.text
    assert longer.facts.max_position_embeddings == 300  # rotary tables must reach that far


@pytest.mark.parametrize(
    ("stored", "flag", "device", "expected"),
    [
        ("bfloat16", "auto", "cpu", torch.bfloat16),
        ("float16", "auto", "cuda", torch.float16),
        ("float32", "auto", "cpu", torch.float32),
        ("float32", "auto", "cuda", torch.bfloat16),
        ("float32", "float32", "cuda", torch.float32),
        ("bfloat16", "half", "cpu", torch.float16),
        (None, "auto", "cpu", torch.float32),
    ],
)
def test_dtype(
    tmp_path: Path, stored: str | None, flag: str, device: str, expected: torch.dtype
) -> None:
    path = write_config(tmp_path, torch_dtype=stored)
    assert ModelConfig(path, dtype=flag).torch_dtype(device) == expected


def test_overrides_change_the_config_and_its_mathematics(tmp_path: Path) -> None:
    scaling = {"rope_type": "linear", "factor": 2.0}
    overrides = json.dumps({"rope_scaling": scaling, "num_hidden_layers": 1})
    config = ModelConfig(write_config(tmp_path), model_override_args=overrides)
    assert config.context_len == 512
    assert config.facts.num_hidden_layers == 1
    assert config.facts.rope is not None
    assert (config.facts.rope.kind, config.facts.rope.theta) == ("linear", 500000.0)


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_bad_overrides(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="json_model_override_args"):
        ModelConfig(write_config(tmp_path), model_override_args=text)


@pytest.mark.parametrize(
    ("arch", "flag", "expected"),
    [
        ("LlamaForCausalLM", None, True),
        ("LlamaForCausalLM", True, False),
        ("LlamaForSequenceClassification", None, False),
    ],
)
def test_is_generation(tmp_path: Path, arch: str, flag: bool | None, expected: bool) -> None:
    path = write_config(tmp_path, architectures=[arch])
    assert ModelConfig(path, is_embedding=flag).is_generation is expected


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, "quant_method='gptq'"),
        ({"rope_scaling": {"type": "spiral"}}, "type='spiral'"),
        ({"architectures": None}, "names no architectures"),
        ({"num_attention_heads": None}, "num_attention_heads"),
    ],
)
def test_configs_that_cannot_be_served(tmp_path: Path, keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ModelConfig(write_config(tmp_path, **keys))


def test_paths_that_are_no_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no config.json"):
        ModelConfig(str(tmp_path))
    with pytest.raises(ConfigError, match="does not exist"):
        ModelConfig(str(tmp_path / "absent"))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="not valid JSON"):
        ModelConfig(str(tmp_path))


def test_hub_id_while_offline(tmp_path: Path) -> None:
    code = (
        "from sglang.srt.configs.model_config import ModelConfig\n"
        "try: ModelConfig('some-org/some-model')\n"
        "except ValueError as error: assert 'cannot be fetched' in str(error), error\n"
        "else: raise SystemExit('not refused')\n"
    )
    environment = {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path),
        "PYTHONPATH": ":".join(sys.path),
    }
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=environment)


@pytest.mark.parametrize(("flag", "value"), [("dtype", "int3"), ("model_impl", "mindspore")])
def test_unknown_choices_list_the_allowed_ones(tmp_path: Path, flag: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"{flag}='{value}'.*allowed: auto"):
        ModelConfig(write_config(tmp_path), **{flag: value})


def test_alias_reads_a_model_type_that_transformers_lacks(tmp_path: Path) -> None:
    from sglang.srt.configs import aliases

    path = write_config(tmp_path, model_type="a_llama_by_another_name")
    assert type(ModelConfig(path).hf_config).__name__ == "PreTrainedConfig"
    aliases.register_model_type("a_llama_by_another_name", "llama")
    try:
        assert type(ModelConfig(path).hf_config).__name__ == "LlamaConfig"
    finally:
        del aliases.MODEL_TYPE_ALIASES["a_llama_by_another_name"]
