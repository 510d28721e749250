"""Which files make up a checkpoint, streaming their tensors, and what model files use to place them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from sglang.srt.distributed import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
)
from sglang.srt.layers.parameter import mark_filled
from sglang.srt.utils.errors import ConfigError
from sglang.srt.utils.hf_transformers_utils import download_from_hf

__all__ = [
    "CheckpointFiles",
    "default_weight_loader",
    "download_weights_from_hf",
    "find_checkpoint_files",
    "kv_cache_scales_loader",
    "maybe_remap_kv_scale_name",
    "replace_prefix",
    "replace_substrings",
    "sharded_weight_loader",
]

# Index, single file, any other files.
_SAFETENSORS = ("model.safetensors.index.json", "model.safetensors", ("*.safetensors",))
_PICKLED = ("pytorch_model.bin.index.json", "pytorch_model.bin", ("*.bin", "*.pt"))
# Copies of the weights in another layout, and what trainers leave behind.
_NOT_WEIGHTS = re.compile(r"^(consolidated|adapter_model|training_args|optimizer|scheduler)")
_NUMBERED = re.compile(r"(?P<stem>.+)-(?P<part>\d+)-of-(?P<count>\d+)(?P<kind>\.\w+)")
_MAX_NAMED = 20
_MAX_PARTS = 10**5  # a larger number counts something else


@dataclass
class CheckpointFiles:
    """The weight files of one checkpoint, in order. `file_of` learns each tensor's file while streaming."""

    paths: list[Path]
    is_safetensors: bool
    index: Mapping[str, str] | None = None  # tensor name -> file name, as the checkpoint states it
    file_of: dict[str, str] = field(default_factory=dict)
    use_mmap: bool = True

    def stream(self) -> Iterator[tuple[str, torch.Tensor]]:
        """`(name, tensor)` of every tensor, on the host.

        Raises ConfigError naming the file when one is unreadable or truncated, when a tensor is in two files,
        or when a file and the index disagree.
        """
        # Late, here and below: model files import this module for its loaders and read no file.
        from sglang.srt.model_loader.weight_files import stream_pickled, stream_safetensors

        for path in self.paths:
            read = stream_safetensors if self.is_safetensors else stream_pickled
            seen: set[str] = set()
            for name, tensor in read(path, self.use_mmap):
                if name in self.file_of and self.file_of[name] != path.name:
                    raise ConfigError(
                        f"tensor {name} is in both {self.file_of[name]} and {path.name} of {path.parent}; "
                        "remove the file that does not belong to the checkpoint"
                    )
                self.file_of[name] = path.name
                seen.add(name)
                yield name, tensor
            self._check_against_index(path, seen)

    def _check_against_index(self, path: Path, seen: set[str]) -> None:
        if self.index is None:
            return
        promised = {name for name, file in self.index.items() if file == path.name}
        missing = sorted(promised - seen)
        if missing:
            raise ConfigError(
                f"{path} lacks {len(missing)} tensors that the index promises, e.g. {missing[:3]}; "
                "the file belongs to another checkpoint or was written incompletely"
            )


def find_checkpoint_files(
    folder: str | Path, load_format: str = "auto", fall_back_to_pt: bool = True
) -> CheckpointFiles:
    """The weight files of a folder: by index, else the single file, else every file of the kind.

    Raises ConfigError when there is none, the index is broken, or a file is absent that the index names, or that belongs to numbered ones.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ConfigError(f"model folder {str(folder)!r} does not exist")
    if load_format in ("auto", "safetensors"):
        found = _find(folder, _SAFETENSORS, is_safetensors=True)
        if found is not None:
            return found
    if load_format == "pt" or (load_format == "auto" and fall_back_to_pt):
        found = _find(folder, _PICKLED, is_safetensors=False)
        if found is not None:
            return found
    raise _no_weights(folder, load_format, fall_back_to_pt)


def download_weights_from_hf(
    model_name_or_path: str,
    cache_dir: str | None,
    allow_patterns: list[str],
    revision: str | None = None,
    ignore_patterns: str | list[str] | None = None,
    max_retries: int = 3,
) -> str:
    """A local folder with the files that match; `model_name_or_path` itself when it is a folder."""
    if Path(model_name_or_path).is_dir():
        return model_name_or_path
    from huggingface_hub import snapshot_download

    return snapshot_download(
        model_name_or_path,
        cache_dir=cache_dir,
        allow_patterns=allow_patterns,
        ignore_patterns=ignore_patterns,
        revision=revision,
    )


def local_checkpoint_folder(
    model_path: str, revision: str | None, load_format: str, download_dir: str | None = None
) -> str:
    """`model_path` when it is a folder, else a hub snapshot with its JSON files and its weights of the first kind that it has."""
    kinds = {"safetensors": _SAFETENSORS[2], "pt": _PICKLED[2]}.get(
        load_format, (*_SAFETENSORS[2], *_PICKLED[2])
    )
    folder = model_path
    for kind in kinds:
        folder = download_from_hf(model_path, ["*.json", kind], revision, download_dir)
        if _weights_of(Path(folder), (kind,)):
            break
    return folder


def default_weight_loader(param: torch.Tensor, loaded_weight: torch.Tensor) -> None:
    """Copy a whole tensor into a parameter of the same shape; one-element tensors of any rank fit a scalar.

    Raises ValueError when the shapes differ.
    """
    if param.numel() == 1 and loaded_weight.numel() == 1:
        param.data.fill_(loaded_weight.item())
    elif param.shape != loaded_weight.shape:
        raise ValueError(f"shape {list(loaded_weight.shape)} does not fit {list(param.shape)}")
    else:
        param.data.copy_(loaded_weight)
    mark_filled(param, None)


def sharded_weight_loader(shard_axis: int) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """A loader that takes this rank's slice of a tensor along `shard_axis`; its parts must be equal.

    It raises ValueError when the parts of all ranks are not the whole tensor.
    """

    def load(param: torch.Tensor, loaded_weight: torch.Tensor) -> None:
        rank, num_ranks = get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size()
        size = param.shape[shard_axis]
        if loaded_weight.shape[shard_axis] != size * num_ranks:
            raise ValueError(
                f"shape {list(loaded_weight.shape)} is not {num_ranks} times {size} along dimension {shard_axis}"
            )
        default_weight_loader(param, loaded_weight.narrow(shard_axis, rank * size, size))

    return load


def replace_prefix(key: str, prefix_mapping: Mapping[str, str]) -> str:
    """`key` with the first matching prefix replaced."""
    for old, new in prefix_mapping.items():
        if key.startswith(old):
            return new + key[len(old) :]
    return key


def replace_substrings(key: str, substring_mapping: Mapping[str, str]) -> str:
    """`key` with every listed substring replaced, in the order of the mapping."""
    for old, new in substring_mapping.items():
        key = key.replace(old, new)
    return key


def maybe_remap_kv_scale_name(name: str, params_dict: Mapping[str, object]) -> str | None:
    """Our parameter name for a checkpoint's KV-cache scale; other names unchanged, None when we have none."""
    if name.endswith(".kv_scale"):
        target = name.removesuffix(".kv_scale") + ".attn.k_scale"
        return target if target in params_dict else None
    match = re.fullmatch(r"(.*)\.([kv])_proj\.(?:([kv])_scale|output_scale)", name)
    if match is None:
        match = re.fullmatch(r"(.*)()\.([kv])_scale", name)
    if match is None:
        return None if name.endswith(".q_proj.output_scale") else name
    if name in params_dict:
        return name
    owner, letter = match.group(1), match.group(3) or match.group(2)
    target = f"{owner}.attn.{letter}_scale"
    return target if target in params_dict else None


def kv_cache_scales_loader(
    filename: str, tp_rank: int, tp_size: int, num_hidden_layers: int, model_type: str | None
) -> list[tuple[int, float]]:
    """`(layer, scale)` of this rank from a JSON file of KV-cache scales.

    The file holds `{"model_type": ..., "kv_cache": {"scaling_factor": {rank: {layer: scale}}}}`. Raises ConfigError when it is not of that
    form, belongs to another model, lacks a rank or a layer, or has a scale that is no positive number.
    """
    try:
        content = json.loads(Path(filename).read_text(encoding="utf-8"))
        by_rank = content["kv_cache"]["scaling_factor"]
        scales = {int(layer): float(x) for layer, x in by_rank[str(tp_rank)].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{filename!r} is no file of KV-cache scales for rank {tp_rank}: {type(error).__name__}: {error}"
        ) from error
    written_for = content.get("model_type")
    if model_type is not None and written_for not in (None, model_type):
        raise ConfigError(
            f"{filename!r} holds scales for {written_for!r}, the model is {model_type!r}"
        )
    if len(by_rank) != tp_size or set(scales) != set(range(num_hidden_layers)):
        raise ConfigError(
            f"{filename!r} holds scales for {len(by_rank)} ranks and {len(scales)} layers; the model runs on "
            f"{tp_size} ranks and has {num_hidden_layers} layers"
        )
    wrong = {layer: scale for layer, scale in scales.items() if not 0 < scale < math.inf}
    if wrong:
        raise ConfigError(f"{filename!r} holds scales that are not positive numbers: {wrong}")
    return sorted(scales.items())


def _find(
    folder: Path, names: tuple[str, str, tuple[str, ...]], is_safetensors: bool
) -> CheckpointFiles | None:
    index_name, single_name, patterns = names
    if (folder / index_name).is_file():
        index = _read_index(folder / index_name)
        return CheckpointFiles(
            [folder / name for name in sorted(set(index.values()))], is_safetensors, index
        )
    if (folder / single_name).is_file():
        return CheckpointFiles([folder / single_name], is_safetensors)
    paths = _weights_of(folder, patterns)
    _refuse_gaps(folder, paths)
    return CheckpointFiles(paths, is_safetensors) if paths else None


def _weights_of(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    """Files of the first kind that the folder has."""
    for pattern in patterns:
        paths = sorted(path for path in folder.glob(pattern) if not _NOT_WEIGHTS.match(path.name))
        if paths:
            return paths
    return []


def _refuse_gaps(folder: Path, paths: list[Path]) -> None:
    """Without an index, names like model-00002-of-00004 tell which files there should be."""
    present = {path.name for path in paths}
    missing: set[str] = set()
    for name in present:
        if (found := _NUMBERED.fullmatch(name)) is None or int(found["count"]) > _MAX_PARTS:
            continue
        stem, part, count, kind = found.group("stem", "part", "count", "kind")
        first = 0 if f"{stem}-{0:0{len(part)}}-of-{count}{kind}" in present else 1
        numbers = range(first, first + int(count))
        missing |= {f"{stem}-{number:0{len(part)}}-of-{count}{kind}" for number in numbers}
    missing -= present
    if missing:
        more = f" and {len(missing) - _MAX_NAMED} more" if len(missing) > _MAX_NAMED else ""
        raise ConfigError(
            f"model folder {str(folder)!r} lacks {', '.join(sorted(missing)[:_MAX_NAMED])}{more}; download or copy the "
            "checkpoint again"
        )


def _no_weights(folder: Path, load_format: str, fall_back_to_pt: bool) -> ConfigError:
    """The error for a folder without weight files, with what its files are instead."""
    present = sorted(path.name for path in folder.iterdir())
    kinds = {"safetensors": "*.safetensors", "pt": "*.bin or *.pt"}
    wanted = kinds.get(load_format, "*.safetensors, *.bin or *.pt")
    advice = ""
    if any(name.endswith(".gguf") for name in present):
        advice = ". GGUF files are not supported; take the checkpoint in Hugging Face format"
    elif any(name.startswith("adapter_model") for name in present):
        advice = ". This is a LoRA adapter and no model; merge it into its base model first"
    elif any(name.startswith("consolidated") for name in present):
        advice = (
            ". Consolidated files have another layout; take the checkpoint in Hugging Face format"
        )
    elif load_format == "auto" and not fall_back_to_pt and _weights_of(folder, _PICKLED[2]):
        wanted = kinds["safetensors"]
        advice = ". The model class does not read pickled files (fall_back_to_pt_during_load); convert them to safetensors"
    return ConfigError(
        f"model folder {str(folder)!r} has no weight files ({wanted}) for load_format={load_format!r}; "
        f"it holds {present[:_MAX_NAMED]}{advice}"
    )


def _read_index(path: Path) -> dict[str, str]:
    from sglang.srt.model_loader.weight_files import check_present

    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is not a weight index: {type(error).__name__} {error}"
        ) from error
    is_map = isinstance(weight_map, dict)
    if not is_map or not all(isinstance(name, str) for name in weight_map.values()):
        raise ConfigError(
            f"{path} is not a weight index: weight_map must map tensors to file names"
        )
    if not weight_map:
        raise ConfigError(f"{path} names no tensors; download or copy the checkpoint again")
    for name in sorted(set(weight_map.values())):
        if Path(name).name != name:
            raise ConfigError(f"{path} names the file {name!r}, which is outside the model folder")
        check_present(path.parent / name)
    return weight_map
