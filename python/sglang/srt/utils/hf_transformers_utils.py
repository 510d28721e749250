"""Configs, tokenizers and processors of a model folder or hub repository.

Importing this module is cheap: transformers (and torch behind it) is imported by the functions that need it.
`read_config_dict` needs neither, so that the front process can learn sizes without paying for them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sglang.srt.configs.aliases import MODEL_TYPE_ALIASES
from sglang.srt.configs.llava import as_transformers, is_original_llava, tower_path
from sglang.srt.configs.published import (
    PUBLISHED,
    own_model_type,
    plain_config_class,
    usual_keys,
)
from sglang.srt.utils.errors import ConfigError

CONFIG_NAME = "config.json"
# Tokenizer classes that are nothing but their tokenizer.json.
_PLAIN_TOKENIZERS = ("PreTrainedTokenizerFast", "TokenizersBackend")


def read_config_dict(model_path: str, revision: str | None = None) -> dict[str, Any]:
    """The model's config.json, unchanged. Raises ConfigError when there is none or it is not JSON."""
    path = find_file(model_path, CONFIG_NAME, revision)
    if path is None:
        raise ConfigError(
            f"model path {model_path!r} has no {CONFIG_NAME}; give a folder in Hugging Face format "
            "(config.json, tokenizer files, *.safetensors) or a hub repository id"
        )
    return _read_json(path)


def find_file(model_path: str, name: str, revision: str | None = None) -> Path | None:
    """Local path of one file of the model, downloaded if need be; None when the model does not have it.

    Raises ConfigError when the model itself cannot be found.
    """
    folder = Path(model_path)
    if folder.is_dir():
        path = folder / name
        return path if path.is_file() else None
    _refuse_missing_folder(model_path)
    return _download_file(model_path, name, revision)


def get_config(
    model_path: str,
    trust_remote_code: bool = False,
    revision: str | None = None,
    model_override_args: Mapping[str, Any] | None = None,
) -> Any:
    """The transformers config of a model, with `model_override_args` applied before it is interpreted.

    Sets `rope_theta` in the published spelling where transformers only keeps `rope_parameters`, for model
    files that read it. Raises ConfigError for an unknown model type.
    """
    raw = apply_overrides(read_config_dict(model_path, revision), model_override_args or {})
    config = _build_config(model_path, raw, trust_remote_code, revision, model_override_args)
    config._name_or_path = model_path
    _restore_published_names(config)
    return config


def apply_overrides(raw: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`raw` with top-level keys replaced; mappings merge into a nested config of the same name.

    Rotary settings are accepted in either spelling, whichever one the file uses.
    """
    merged = dict(raw)
    for key, value in overrides.items():
        if key.endswith("_config") and isinstance(value, Mapping):
            merged[key] = apply_overrides(merged.get(key) or {}, value)
        elif key == "rope_scaling" and "rope_parameters" in raw:
            old = dict(raw["rope_parameters"] or {})
            kept = {k: old[k] for k in ("rope_theta", "partial_rotary_factor") if k in old}
            merged["rope_parameters"] = {**kept, **(value or {"rope_type": "default"})}
        elif key == "rope_theta" and raw.get("rope_parameters"):
            merged["rope_parameters"] = {**merged["rope_parameters"], "rope_theta": value}
        else:
            merged[key] = value
    return merged


def get_tokenizer(
    tokenizer_name: str,
    *args: Any,
    tokenizer_mode: str = "auto",
    trust_remote_code: bool = False,
    tokenizer_revision: str | None = None,
    **kwargs: Any,
) -> Any:
    """The tokenizer of a model. `tokenizer_mode` "slow" asks for the Python implementation.

    Raises ConfigError naming the path when the files are missing or cannot be read.
    """
    if tokenizer_mode not in ("auto", "slow"):
        raise ConfigError(f"tokenizer_mode={tokenizer_mode!r}; allowed: auto, slow")
    if tokenizer_mode == "slow":
        kwargs["use_fast"] = False
    if not Path(tokenizer_name).is_dir():
        _refuse_missing_folder(tokenizer_name)
    try:
        if not args and not kwargs and _is_plain_tokenizer(tokenizer_name, tokenizer_revision):
            return _load_plain_tokenizer(tokenizer_name, tokenizer_revision)
        if not trust_remote_code and _is_code_only(tokenizer_name, tokenizer_revision):
            return _load_without_code(tokenizer_name, tokenizer_revision)
        return _load_auto_tokenizer(
            tokenizer_name,
            *args,
            trust_remote_code=trust_remote_code,
            revision=tokenizer_revision,
            **kwargs,
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot load a tokenizer from {tokenizer_name!r}: {error}") from error


def get_processor(
    processor_name: str,
    *args: Any,
    tokenizer_mode: str = "auto",
    trust_remote_code: bool = False,
    tokenizer_revision: str | None = None,
    use_fast: bool = True,
    **kwargs: Any,
) -> Any:
    """The multimodal processor of a model. Raises ConfigError naming the path when it cannot be loaded."""
    if not Path(processor_name).is_dir():
        _refuse_missing_folder(processor_name)
    # Late, here and below: model files, which import this module, need none of it.
    from sglang.srt.utils.light_transformers import import_processors

    import_processors()
    from transformers import AutoProcessor  # heavy: imports torch

    try:
        return AutoProcessor.from_pretrained(
            processor_name,
            *args,
            trust_remote_code=trust_remote_code,
            revision=tokenizer_revision,
            use_fast=use_fast and tokenizer_mode != "slow",
            **kwargs,
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot load a processor from {processor_name!r}: {error}") from error


def get_generation_config(model_path: str, revision: str | None = None) -> dict[str, Any]:
    """The model's generation_config.json as a mapping; empty when it has none."""
    path = find_file(model_path, "generation_config.json", revision)
    return {} if path is None else _read_json(path)


def download_from_hf(
    model_path: str,
    allow_patterns: list[str] | None = None,
    revision: str | None = None,
    cache_dir: str | None = None,
) -> str:
    """A local folder with the files of `model_path`: itself when it is one, else a snapshot of the hub.

    Raises ConfigError when the model is neither a folder nor reachable.
    """
    if Path(model_path).is_dir():
        return model_path
    _refuse_missing_folder(model_path)
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(
            model_path, allow_patterns=allow_patterns, revision=revision, cache_dir=cache_dir
        )
    except _hub_errors() as error:
        raise _unreachable(model_path, error) from error


def _build_config(
    model_path: str,
    raw: dict[str, Any],
    trust_remote_code: bool,
    revision: str | None,
    overrides: Mapping[str, Any] | None,
) -> Any:
    if is_original_llava(raw):
        tower = {} if "vision_config" in raw else read_config_dict(tower_path(raw, model_path))
        raw = as_transformers(raw, tower or raw["vision_config"])
    model_type = own_model_type(raw)
    if model_type in PUBLISHED:
        return published_config(raw)
    from sglang.srt.utils.light_transformers import light_imports, without_model_classes

    with light_imports():  # heavy: brings torch
        from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

    known = MODEL_TYPE_ALIASES.get(model_type, model_type)
    if "AutoConfig" in (raw.get("auto_map") or {}) and known not in CONFIG_MAPPING:
        if not trust_remote_code:
            raise ConfigError(
                f"model {model_path!r} (model_type {model_type!r}) brings its own Python code; "
                "read it, then pass --trust-remote-code to run it, or, where a model file reads the config as it is written, "
                "--json-model-override-args '{\"auto_map\": null}'"
            )
        config = AutoConfig.from_pretrained(
            model_path, trust_remote_code=trust_remote_code, revision=revision
        )
        for key, value in (overrides or {}).items():
            setattr(config, key, value)
        return config
    if known in CONFIG_MAPPING:
        with light_imports():
            return without_model_classes(
                lambda: CONFIG_MAPPING[known].from_dict({**raw, "model_type": known})
            )
    # A plug-in may bring a model file for a type that transformers has never heard of.
    plain: Any = PretrainedConfig.from_dict(_with_rope_parameters(raw))
    plain.model_type = model_type
    return plain


def published_config(raw: Mapping[str, Any]) -> Any:
    """The config object of a model_type in `PUBLISHED`: the keys as written and the usual ones, no code of the checkpoint."""
    plain = _with_rope_parameters({**usual_keys(raw), "model_type": own_model_type(raw)})
    plain.pop("auto_map", None)
    config = plain_config_class(plain["model_type"]).from_dict(plain)
    inner = plain.get("llm_config")
    if inner is not None:  # where transformers keeps a language model's part
        config.text_config = _build_config("llm_config", dict(inner), False, None, None)
    return config


def _with_rope_parameters(raw: dict[str, Any]) -> dict[str, Any]:
    """The published rotary keys in transformers' present spelling, which config classes do by themselves."""
    renamed = {key: value for key, value in raw.items() if key != "rope_scaling"}
    settings = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
    if settings or "rope_theta" in raw:
        settings.setdefault("rope_type", settings.get("type", "default"))
        settings.setdefault("rope_theta", raw.get("rope_theta", 10000.0))
        renamed["rope_parameters"] = settings
    return renamed


def _restore_published_names(config: Any) -> None:
    """Keys that config classes rename when they read a file, under their published names too: model files of others ask for those."""
    for part in (config, config.get_text_config()):
        settings = part.to_dict().get("rope_parameters") or {}
        published = {
            key: settings[key] for key in ("rope_theta", "partial_rotary_factor") if key in settings
        }
        if "hidden_activation" in vars(part):
            published["hidden_act"] = part.hidden_activation
        for key, value in published.items():
            if key not in vars(part):
                setattr(part, key, value)


def _load_auto_tokenizer(name: str, *args: Any, trust_remote_code: bool, **kwargs: Any) -> Any:
    """By transformers' rules, for which it also reads the model's config."""

    def load() -> Any:
        from transformers import AutoTokenizer  # heavy: imports torch

        return AutoTokenizer.from_pretrained(
            name, *args, trust_remote_code=trust_remote_code, **kwargs
        )

    if trust_remote_code:
        return load()
    from sglang.srt.utils.light_transformers import light_imports, without_model_classes

    with light_imports():
        return without_model_classes(load)


def _is_plain_tokenizer(name: str, revision: str | None) -> bool:
    """True when the tokenizer is exactly its tokenizer.json, which loads without torch."""
    if not Path(name).is_dir() or not (Path(name) / "tokenizer.json").is_file():
        return False
    path = find_file(name, "tokenizer_config.json", revision)
    settings = {} if path is None else _read_json(path)
    return settings.get("tokenizer_class") in _PLAIN_TOKENIZERS and "auto_map" not in settings


def _is_code_only(name: str, revision: str | None) -> bool:
    """True when the tokenizer's class is Python code of the checkpoint and transformers has none of that name."""
    path = find_file(name, "tokenizer_config.json", revision)
    settings = {} if path is None else _read_json(path)
    if "AutoTokenizer" not in (settings.get("auto_map") or {}):
        return False
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    return tokenizer_class_from_name(settings.get("tokenizer_class") or "") is None


def _load_without_code(name: str, revision: str | None) -> Any:
    """From tokenizer.json alone. Raises ConfigError where there is none."""
    if find_file(name, "tokenizer.json", revision) is None:
        raise ConfigError(
            "its class is Python code of the checkpoint, and there is no tokenizer.json beside it; "
            "add one, give a folder that has one with --tokenizer-path, pass --skip-tokenizer-init and send token ids, "
            "or read that code and pass --trust-remote-code to run it"
        )
    return _load_plain_tokenizer(name, revision)


def _load_plain_tokenizer(name: str, revision: str | None) -> Any:
    from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(name, revision=revision or "main")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds a {type(value).__name__}, not a JSON object")
    return value


def _refuse_missing_folder(model_path: str) -> None:
    """Refuse what looks like a path (absolute, relative, or deeper than org/name) and is not a folder."""
    looks_like_path = model_path.startswith((os.sep, ".", "~")) or model_path.count("/") > 1
    if looks_like_path or not model_path:
        raise ConfigError(
            f"model path {model_path!r} does not exist; give an existing folder or a hub repository id "
            "of the form org/name"
        )


def _download_file(repo_id: str, name: str, revision: str | None) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repo_id, name, revision=revision))
    except LocalEntryNotFoundError as error:
        raise _unreachable(repo_id, error) from error
    except EntryNotFoundError:
        return None
    except _hub_errors() as error:
        raise _unreachable(repo_id, error) from error


def _hub_errors() -> tuple[type[Exception], ...]:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    return (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError)


def _unreachable(repo_id: str, error: Exception) -> ConfigError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ConfigError(
        f"model {repo_id!r} is not a folder here and cannot be fetched from the hub: {reason}. "
        "Give a local folder, check the name and the network, or unset HF_HUB_OFFLINE"
    )
