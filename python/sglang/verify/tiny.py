"""Tiny random checkpoints: a config.json of a few lines becomes a folder that transformers and the engine both load.

Every parameter and correction bias is drawn at random: transformers' own initialisation leaves norms at one and biases at zero, so an
engine that forgot them would still agree with the reference. The files are what `save_pretrained` writes: the published names.

A configuration is found by name in `tiny_configs/*.json`, else derived from the config class of transformers, with windows, caps and
expert counts small enough to show within a few dozen tokens.
"""

from __future__ import annotations

import difflib
import functools
import json
import sys
import zlib
from pathlib import Path
from typing import Any

import torch

from sglang.srt.configs.aliases import ARCHITECTURE_ALIASES
from sglang.srt.configs.published import own_model_type
from sglang.srt.models.registry import ModelRegistry
from sglang.srt.utils.errors import ConfigError
from sglang.verify.references import OwnReference, find_reference, save_reference
from sglang.verify.references import build_reference as build_own_reference

CONFIG_FOLDER = Path(__file__).parent / "tiny_configs"
BASE: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# Replaced where the config class sets them to something.
_SHRUNK: dict[str, Any] = {
    "head_dim": 16,
    "rotary_dim": 8,
    "sliding_window": 8,
    "query_pre_attn_scalar": 12,
    "attn_logit_softcapping": 1.0,
    "final_logit_softcapping": 1.5,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 48,
}
# Buffers that training adjusts and checkpoints hold: biases of the choice of experts.
_CORRECTIONS = ("correction_bias", "expert_bias")
_MAX_LAYERS = 8
_MAX_PARAMETERS = 20_000_000


def tiny_config(name: str) -> dict[str, Any]:
    """The config.json of a tiny model, as a mapping with `model_type` and `architectures`.

    `name`: the path of a .json file, a file name of `tiny_configs`, an architecture, or a model_type. Raises ConfigError.
    """
    if name.endswith(".json"):
        return _read(Path(name))
    name = ARCHITECTURE_ALIASES.get(name, name)
    stored = {path.stem: path for path in sorted(CONFIG_FOLDER.glob("*.json"))}
    if name in stored:
        return _read(stored[name])
    for path in stored.values():
        if name in _read(path)["architectures"]:
            return _read(path)
    return _of_plugin(name) or _of_spelling(name) or _derive(name, list(stored))


def for_architecture(raw: dict[str, Any], architecture: str) -> dict[str, Any]:
    """A config.json of one architecture as that of another that computes the same."""
    return {**raw, "model_type": own_model_type(raw), "architectures": [architecture]}


def write_tiny(name: str, folder: str | Path) -> Path:
    """A checkpoint with tokenizer in `folder`, from `tiny_config(name)`. Raises ConfigError; returns the folder."""
    return write_config(tiny_config(name), Path(folder))


def write_config(raw: dict[str, Any], folder: Path) -> Path:
    """A checkpoint of a config.json. The reference is the class of its `model_type`, whatever `architectures` says."""
    model = build_reference(raw)
    randomise(model, seed=zlib.crc32(raw["architectures"][0].encode()))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.json"
    if isinstance(model, OwnReference):
        save_reference(model, folder)
        # A published config.json may name code, which the tiny checkpoint does not have.
        kept = {key: value for key, value in raw.items() if key != "auto_map"}
        path.write_text(json.dumps(kept, indent=2))
    else:
        model.save_pretrained(folder)
        written = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**written, "architectures": raw["architectures"]}, indent=2))
    write_tokenizer(folder, vocab_size=model.config.vocab_size)
    return folder


def build_reference(raw: dict[str, Any]) -> Any:
    """The causal language model of transformers for a config.json: float32, eager attention, its own random values; that of
    `references` where transformers has none.

    Raises ConfigError when neither has one, or when it would not be tiny.
    """
    if find_reference(raw) is not None:
        return build_own_reference(raw)
    from transformers import CONFIG_MAPPING

    require_reference(raw)
    config = CONFIG_MAPPING[raw["model_type"]].from_dict(raw)
    auto_class = _auto_class(raw["model_type"])
    with torch.device("meta"):
        shell = auto_class.from_config(config)
    count = sum(param.numel() for param in shell.parameters())
    if count > _MAX_PARAMETERS:
        raise ConfigError(
            f"the tiny {raw['architectures'][0]} would have {count} parameters, allowed {_MAX_PARAMETERS}; "
            f"write its sizes into a file of {CONFIG_FOLDER}, or give a .json file"
        )
    model = auto_class.from_config(config, attn_implementation="eager", dtype=torch.float32)
    return model.eval()


def require_reference(raw: dict[str, Any]) -> None:
    """Raises ConfigError when neither transformers nor `references` has a causal language model for a config.json."""
    import transformers

    if find_reference(raw) is not None:
        return

    model_type = raw.get("model_type")
    if model_type not in _generators() and model_type not in _media_generators():
        raise ConfigError(
            f"transformers {transformers.__version__} has no causal language model for model_type {model_type!r} "
            f"({', '.join(raw.get('architectures') or ['no architectures'])}), so there is no reference to compare "
            "with. A newer transformers may have one; a checkpoint folder that brings its code is its own reference with "
            "--trust-remote-code; else write one: docs/add_a_model.md, section 4"
        )


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Norm-like vectors around one, single numbers around 0.6, embeddings at 0.04 (so that tied models do not repeat a token), matrices at 0.12."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, param in model.named_parameters():
            values = torch.randn(param.shape, generator=generator)
            if param.dim() == 1 and ("norm" in name or "ln_" in name):
                param.copy_(1.0 + 0.2 * values)
            elif param.dim() == 1 and param.numel() == 1:  # the gate of a whole layer
                param.copy_(0.6 + 0.1 * values)
            else:
                param.copy_(values * (0.04 if "embed" in name or "wte" in name else 0.12))
        for name, buffer in model.named_buffers():
            if name.endswith(_CORRECTIONS):
                buffer.copy_(0.12 * torch.randn(buffer.shape, generator=generator))


def write_tokenizer(folder: Path, vocab_size: int = 512) -> None:
    """A byte-level tokenizer: three special tokens, then the 256 bytes, then fillers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<pad>", "<s>", "</s>", *letters]
    tokens += [f"<filler_{i}>" for i in range(vocab_size - len(tokens))]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ConfigError(f"cannot read the tiny configuration {str(path)!r}: {error}") from error
    if not isinstance(raw, dict) or not raw.get("model_type") or not raw.get("architectures"):
        raise ConfigError(f"{path} must be a JSON object with model_type and architectures")
    return raw


@functools.cache
def _generators() -> dict[str, str]:
    """`{model_type: architecture}` of what generates text in transformers."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return dict(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


@functools.cache
def _media_generators() -> dict[str, str]:
    """`{model_type: architecture}` of what makes text of media and text in transformers."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES

    return dict(MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES)


def _auto_class(model_type: str) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM

    # Some that take media are listed among those of text too.
    has_media = model_type in _media_generators()
    return AutoModelForMultimodalLM if has_media else AutoModelForCausalLM


def _of_plugin(name: str) -> dict[str, Any] | None:
    """For a class from outside: the .json file beside its module, else the configuration of a class that it extends."""
    if name not in ModelRegistry.models or ModelRegistry.source_of(name).kind == "built-in":
        return None
    cls = ModelRegistry.models[name]
    origin = sys.modules[cls.__module__].__file__
    if origin is not None and Path(origin).with_suffix(".json").is_file():
        return _read(Path(origin).with_suffix(".json"))
    for base in cls.__mro__[1:]:
        if base.__name__ in ModelRegistry.models and base.__name__ != name:
            return for_architecture(tiny_config(base.__name__), name)
    return None


def _of_spelling(name: str) -> dict[str, Any] | None:
    """For a built-in class without a configuration: that of a relative in the same file, of which it is another spelling."""
    if name not in ModelRegistry.models or name in _generators().values():
        return None
    cls = ModelRegistry.models[name]
    own = {base for base in cls.__mro__ if base.__module__ == cls.__module__}
    for path in sorted(CONFIG_FOLDER.glob("*.json")):
        raw = _read(path)
        relative = ModelRegistry.models.get(raw["architectures"][0])
        if relative is not None and own & set(relative.__mro__):
            return for_architecture(raw, name)
    return None


def _derive(name: str, stored: list[str]) -> dict[str, Any]:
    from transformers import CONFIG_MAPPING

    by_architecture = {arch: kind for kind, arch in reversed(_generators().items())}
    model_type = name if name in _generators() else by_architecture.get(name)
    if model_type is None:
        known = [*stored, *_generators(), *by_architecture]
        near = difflib.get_close_matches(name, known, n=3)
        hint = f" (did you mean {', '.join(near)}?)" if near else ""
        raise ConfigError(
            f"no tiny configuration for {name!r}: neither {CONFIG_FOLDER.name} nor transformers knows it{hint}. "
            "Give an architecture, a model_type, or the path of a .json file with model_type, architectures and sizes"
        )
    raw = _shrink(CONFIG_MAPPING[model_type])
    return {**raw, "model_type": model_type, "architectures": [_generators()[model_type]]}


def _shrink(config_class: Any) -> dict[str, Any]:
    """Small sizes for the keys that a config class has."""
    default = config_class().to_dict()
    has = {*default, *config_class.attribute_map}
    sizes = {key: value for key, value in BASE.items() if key in has}
    sizes |= {key: value for key, value in _SHRUNK.items() if default.get(key) is not None}
    sizes["num_hidden_layers"] = _num_layers(default.get("layer_types") or [])
    return sizes


def _num_layers(layer_types: list[str]) -> int:
    """Enough layers to see every type."""
    wanted = set(layer_types)
    enough = (n for n in range(2, _MAX_LAYERS) if set(layer_types[:n]) == wanted)
    return next(enough, _MAX_LAYERS) if wanted else 2
