"""`--config file.yaml`: flags from a file, turned into arguments that stand before those of the command line."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sglang.srt.arg_groups.fields import FlagSpec, flag_specs
from sglang.srt.utils.errors import ConfigError

# Long options may be shortened as long as they are unambiguous.
_SPELLINGS = ("--config", "--confi", "--conf")


def expand_config_file(argv: Sequence[str], args_class: type) -> list[str]:
    """Replace `--config FILE` by the flags in the file; what `argv` says itself comes later and wins.

    Raises ConfigError for two files, a wrong suffix, a missing file, a wrong shape or an unknown key.
    """
    rest, files = _split(argv)
    if not files:
        return rest
    if len(files) > 1:
        raise ConfigError(f"--config may be given once, not for {', '.join(files)}")
    return _as_arguments(_read(Path(files[0])), files[0], args_class) + rest


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    rest: list[str] = []
    files: list[str] = []
    words = iter(argv)
    for word in words:
        if word in _SPELLINGS:
            value = next(words, None)
            if value is None:
                raise ConfigError("--config needs the path of a .yaml file")
            files.append(value)
        elif word.partition("=")[0] in _SPELLINGS:
            files.append(word.partition("=")[2])
        else:
            rest.append(word)
    return rest, files


def _read(path: Path) -> dict[str, Any]:
    import yaml  # only for users of --config

    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"--config {str(path)!r} must end in .yaml or .yml")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {str(path)!r} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"--config {str(path)!r} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"--config {str(path)!r} must hold a mapping from flags to values")
    return content


def _as_arguments(content: dict[str, Any], path: str, args_class: type) -> list[str]:
    by_name = _flags_by_spelling(args_class)
    arguments: list[str] = []
    for key, value in content.items():
        name = str(key).replace("_", "-")
        if name not in by_name:
            near = difflib.get_close_matches(name, by_name, n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise ConfigError(f"--config {path!r}: {key!r} is no flag{hint}")
        arguments += _one_flag(by_name[name], value)
    return arguments


def _flags_by_spelling(args_class: type) -> dict[str, FlagSpec]:
    """Every long option and every field name, with dashes."""
    spellings: dict[str, FlagSpec] = {}
    for spec in flag_specs(args_class).values():
        if spec.options:
            for option in (*spec.options, spec.name.replace("_", "-")):
                spellings[option.removeprefix("--")] = spec
    return spellings


def _one_flag(spec: FlagSpec, value: Any) -> list[str]:
    if value is None:
        return []
    if spec.kind is bool:
        if not isinstance(value, bool):
            raise ConfigError(f"{spec.option} {value!r} in the config file must be true or false")
        return [spec.option] if value else []
    if spec.is_list:
        return [spec.option, *map(str, value if isinstance(value, list) else [value])]
    # A value in the same word as its flag may start with a dash.
    text = json.dumps(value) if isinstance(value, (dict, list)) else str(value)
    return [f"{spec.option}={text}"]
