"""Weight files: which ones make up a checkpoint, and streaming their tensors one at a time.

Tensors come memory-mapped on the host, so a checkpoint is never in memory twice. Pickled files are read with
`weights_only`, which runs no code.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from sglang.srt.distributed import get_tensor_model_parallel_rank
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

_SAFETENSORS = ("model.safetensors.index.json", "model.safetensors", "*.safetensors")
_PICKLED = ("pytorch_model.bin.index.json", "pytorch_model.bin", "*.bin")
_MADV_DONTNEED = 4  # of madvise(2)
# Copies of the weights in another layout, and what trainers leave behind.
_NOT_WEIGHTS = re.compile(r"^(consolidated|adapter_model|training_args|optimizer|scheduler)")


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
        for path in self.paths:
            read = _stream_safetensors if self.is_safetensors else _stream_pickled
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

    Raises ConfigError when there is none, the index is broken, or a file the index names is absent.
    """
    folder = Path(folder)
    if load_format in ("auto", "safetensors"):
        found = _find(folder, _SAFETENSORS, is_safetensors=True)
        if found is not None:
            return found
    if load_format == "pt" or (load_format == "auto" and fall_back_to_pt):
        found = _find(folder, _PICKLED, is_safetensors=False)
        if found is not None:
            return found
    wanted = {"safetensors": "*.safetensors", "pt": "*.bin"}.get(
        load_format, "*.safetensors or *.bin"
    )
    present = sorted(path.name for path in folder.iterdir())[:20]
    raise ConfigError(
        f"model folder {str(folder)!r} has no weight files ({wanted}) for load_format={load_format!r}; "
        f"it holds {present}"
    )


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
    """`model_path` when it is a folder, else a hub snapshot with its weight and JSON files."""
    patterns = ["*.json"]
    patterns += ["*.bin"] if load_format == "pt" else ["*.safetensors"]
    folder = download_from_hf(model_path, patterns, revision, download_dir)
    if load_format == "auto" and not any(Path(folder).glob("*.safetensors")):
        folder = download_from_hf(model_path, ["*.json", "*.bin"], revision, download_dir)
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

    It raises ValueError when the slice is not of the parameter's shape.
    """

    def load(param: torch.Tensor, loaded_weight: torch.Tensor) -> None:
        rank = get_tensor_model_parallel_rank()
        size = param.shape[shard_axis]
        end = (rank + 1) * size
        if end > loaded_weight.shape[shard_axis]:
            raise ValueError(
                f"shape {list(loaded_weight.shape)} has no rows {end - size}:{end} along dimension {shard_axis}"
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
    form, belongs to another model, or lacks a rank or a layer.
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
    return sorted(scales.items())


def _find(
    folder: Path, names: tuple[str, str, str], is_safetensors: bool
) -> CheckpointFiles | None:
    index_name, single_name, pattern = names
    if (folder / index_name).is_file():
        index = _read_index(folder / index_name)
        return CheckpointFiles(
            [folder / name for name in sorted(set(index.values()))], is_safetensors, index
        )
    if (folder / single_name).is_file():
        return CheckpointFiles([folder / single_name], is_safetensors)
    paths = sorted(path for path in folder.glob(pattern) if not _NOT_WEIGHTS.match(path.name))
    return CheckpointFiles(paths, is_safetensors) if paths else None


def _read_index(path: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is not a weight index: {type(error).__name__} {error}"
        ) from error
    for name in sorted(set(weight_map.values())):
        if Path(name).name != name:
            raise ConfigError(f"{path} names the file {name!r}, which is outside the model folder")
        if not (path.parent / name).is_file():
            raise ConfigError(
                f"{path} names the weight file {name!r}, which is not in {str(path.parent)!r}; "
                "download or copy the checkpoint again"
            )
    return dict(weight_map)


def _stream_safetensors(path: Path, use_mmap: bool) -> Iterator[tuple[str, torch.Tensor]]:
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load

    try:
        if not use_mmap:
            yield from load(path.read_bytes()).items()
            return
        with safe_open(path, framework="pt", device="cpu") as file:
            for name in file.keys():  # noqa: SIM118  (not a mapping)
                tensor = file.get_tensor(name)
                yield name, tensor
                _release_pages(tensor)
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def _release_pages(mapped: torch.Tensor) -> None:
    """Let the system drop the pages of a file that a tensor is mapped to; reading them again would read the file.

    Without this the whole checkpoint stays resident beside the parameters until the file is closed.
    """
    if sys.platform != "linux":
        return
    page = os.sysconf("SC_PAGE_SIZE")
    start = -(-mapped.data_ptr() // page) * page
    length = (mapped.data_ptr() + mapped.nbytes) // page * page - start
    if length > 0:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), _MADV_DONTNEED)


def _stream_pickled(path: Path, use_mmap: bool) -> Iterator[tuple[str, torch.Tensor]]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=use_mmap)
    except Exception as error:  # a boundary: damaged or hostile bytes may raise anything
        raise _unreadable(path, error) from error
    while state:
        name = next(iter(state))
        yield name, state.pop(name)


def _unreadable(path: Path, error: Exception) -> ConfigError:
    size = path.stat().st_size if path.is_file() else 0
    return ConfigError(
        f"weight file {path} ({size} bytes) cannot be read, it is probably truncated or damaged: {error}"
    )
