"""Build a model on its device and fill every parameter from the checkpoint, or say exactly what does not fit."""

from __future__ import annotations

import logging
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from sglang.srt.configs.load_config import LoadConfig
from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.layers.rotary_embedding.switched import SwitchedRotaryEmbedding
from sglang.srt.model_loader.declared import (
    ClassDeclarations,
    LayerDeclarations,
    ModelDeclarations,
    read_declared,
)
from sglang.srt.model_loader.fill_watch import FillWatch
from sglang.srt.model_loader.quantization import create_quant_config
from sglang.srt.model_loader.read_watch import ReadWatch, passed_over
from sglang.srt.model_loader.tied_head import TiedHead
from sglang.srt.model_loader.utils import get_model_architecture, set_default_torch_dtype
from sglang.srt.model_loader.weight_utils import (
    CheckpointFiles,
    find_checkpoint_files,
    local_checkpoint_folder,
)
from sglang.srt.models.common.causal_lm import CausalLM
from sglang.srt.models.common.weights import WeightLoadError, WeightProblem
from sglang.srt.utils.errors import ConfigError

logger = logging.getLogger(__name__)

# Dummy weights: small enough that activations stay finite in float16, not all alike.
_DUMMY_SCALE = 0.02
_MAX_NAMED = 10  # tensors in a warning


def get_model(
    *, model_config: ModelConfig, load_config: LoadConfig, device_config: str | torch.device
) -> nn.Module:
    """A model in evaluation mode on the device with all weights in place.

    Raises ConfigError (WeightLoadError when the checkpoint does not fit the model).
    """
    loader = DummyModelLoader if load_config.load_format == "dummy" else DefaultModelLoader
    return loader(load_config).load_model(
        model_config=model_config, device=torch.device(device_config)
    )


class DefaultModelLoader:
    """Loads Hugging Face checkpoints: safetensors, or pickled .bin files."""

    @dataclass(frozen=True)
    class Source:
        """One checkpoint; `prefix` is put before each of its tensor names."""

        model_or_path: str
        revision: str | None
        prefix: str = ""
        fall_back_to_pt: bool = True
        model_config: Any = None

    def __init__(self, load_config: LoadConfig) -> None:
        self.load_config = load_config

    def load_model(self, *, model_config: ModelConfig, device: torch.device) -> nn.Module:
        """Find the files, build the model, stream the tensors into it, check that all is filled."""
        started = time.monotonic()
        model_class, name = get_model_architecture(model_config)
        streams = _Streams(self.load_config)
        primary = self.Source(
            model_config.model_path,
            model_config.revision,
            fall_back_to_pt=read_declared(
                ClassDeclarations, model_class
            ).fall_back_to_pt_during_load,
            model_config=model_config,
        )
        streams.add(primary)  # before construction: a missing file should not cost an allocation
        model = build_model(model_class, model_config, device)
        for source in read_declared(ModelDeclarations, model).secondary_weights:
            streams.add(source)
        _fill(model, streams, model_config.model_path)
        finish_model(model, model_config.context_len)
        logger.info(
            "Loaded %s from %s in %.1f s (%d files)",
            name,
            model_config.model_path,
            time.monotonic() - started,
            sum(len(files.paths) for _, files in streams.sources),
        )
        return model


class DummyModelLoader:
    """Builds the model and fills it with seeded random numbers: for measuring speed without a checkpoint."""

    def __init__(self, load_config: LoadConfig) -> None:
        self.load_config = load_config

    def load_model(self, *, model_config: ModelConfig, device: torch.device) -> nn.Module:
        model_class, _ = get_model_architecture(model_config)
        model = build_model(model_class, model_config, device)
        fill_with_random(model)
        post_load_weights = read_declared(ModelDeclarations, model).post_load_weights
        if post_load_weights is not None:
            post_load_weights()
        finish_model(model, model_config.context_len)
        return model


def build_model(model_class: type, model_config: ModelConfig, device: torch.device) -> nn.Module:
    """Construct with parameters in the model's dtype on the target device; their values are undefined."""
    quant_config = create_quant_config(model_class, model_config)
    with set_default_torch_dtype(model_config.torch_dtype(device.type)), device:
        return model_class(config=model_config.hf_config, quant_config=quant_config)


def finish_model(model: nn.Module, context_len: int) -> None:
    """Let every layer bring its weights into the form its kernels want, then freeze the model.

    Rotary embeddings with two tables choose by the served context length, so that no request's result depends
    on the length of another.
    """
    for module in list(model.modules()):  # a method may add modules of its own
        if isinstance(module, SwitchedRotaryEmbedding):
            module.fix_context_length(context_len)
        quant_method = read_declared(LayerDeclarations, module).quant_method
        if quant_method is not None:
            quant_method.process_weights_after_loading(module)
    model.requires_grad_(False)
    model.eval()


def fill_with_random(model: nn.Module) -> None:
    """Uniform numbers in +-0.02, the same for a parameter's name and shape on every run."""
    for name, param in model.named_parameters():
        if param.is_floating_point():
            generator = torch.Generator(param.device).manual_seed(zlib.crc32(name.encode()))
            values = torch.empty(param.shape, dtype=torch.float32, device=param.device)
            values.uniform_(-_DUMMY_SCALE, _DUMMY_SCALE, generator=generator)
            param.data.copy_(values)
        else:
            param.data.zero_()


@dataclass
class _Streams:
    """The checkpoints that make up one model, as one stream of tensors."""

    load_config: LoadConfig
    sources: list[tuple[DefaultModelLoader.Source, CheckpointFiles]] = field(default_factory=list)
    current: str = "the checkpoint, before its first tensor,"  # what was handed out last
    current_name: str | None = None
    is_read: bool = False  # to the end

    def add(self, source: DefaultModelLoader.Source) -> None:
        load = self.load_config
        folder = local_checkpoint_folder(
            source.model_or_path, source.revision, load.load_format, load.download_dir
        )
        files = find_checkpoint_files(folder, load.load_format, source.fall_back_to_pt)
        files.use_mmap = load.use_mmap
        self.sources.append((source, files))

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for source, files in self.sources:
            for name, tensor in files.stream():
                self.current_name = source.prefix + name
                self.current = f"tensor {self.current_name} {list(tensor.shape)}"
                yield self.current_name, tensor
        self.is_read = True

    def names(self) -> list[str]:
        """Of all tensors."""
        return [source.prefix + name for source, files in self.sources for name in files.file_of]

    def file_of(self, tensor_name: str) -> str | None:
        for source, files in self.sources:
            file = files.file_of.get(tensor_name.removeprefix(source.prefix))
            if file is not None and tensor_name.startswith(source.prefix):
                return file
        return None


def _fill(model: Any, streams: _Streams, model_path: str) -> None:
    """Run the model's `load_weights` and check both directions. Raises WeightLoadError with everything found."""
    watch = FillWatch(model)
    try:
        found = _load(model, streams)
    except WeightLoadError as error:
        found = error.problems
    except ConfigError:
        raise  # an unreadable file, which is named
    except Exception as error:  # a boundary: the loader of somebody's model file may raise anything
        owner = f"{type(model).__module__}.{type(model).__name__}.load_weights"
        text = f"{streams.current} is refused by {owner}: {type(error).__name__}: {error}"
        problem = _with_file(WeightProblem(text, streams.current_name), streams)
        raise WeightLoadError([problem], source=f"checkpoint {model_path!r}") from error
    problems = [_with_file(problem, streams) for problem in found]
    if streams.is_read or not problems:  # else the tensors of what is unfilled may be still to come
        skipped = {}
        if isinstance(model, CausalLM):
            skipped = model.weight_map.skipped_for(streams.names(), model)
        problems += watch.find_unfilled(skipped)
    if problems:
        raise WeightLoadError(problems, source=f"checkpoint {model_path!r}")


def _load(model: Any, streams: _Streams) -> list[WeightProblem]:
    """`load_weights`, and what can be told of it afterwards. One that is not ours need not be strict: it gets a warning."""
    if not type(model).load_weights.__module__.startswith("sglang.srt.models."):
        _load_and_warn(model, streams)
        return []
    if not isinstance(model, CausalLM):
        model.load_weights(iter(streams))
        return []
    head = TiedHead(model)
    model.load_weights(head.stream(streams))
    return head.problems()


def _load_and_warn(model: Any, streams: _Streams) -> None:
    """A warning names the tensors that `load_weights` passed over."""
    load = type(model).load_weights
    with ReadWatch() as reads:
        model.load_weights(reads.stream(streams))
    names = passed_over(model, reads.unused())
    if names:
        more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
        logger.warning(
            "%s.%s does not use these tensors of the checkpoint: %s%s. If the model needs them, its results are wrong.",
            load.__module__,
            load.__qualname__,
            ", ".join(names[:_MAX_NAMED]),
            more,
        )


def _with_file(problem: WeightProblem, streams: _Streams) -> WeightProblem:
    file = None if problem.tensor is None else streams.file_of(problem.tensor)
    return problem if file is None else WeightProblem(f"{problem.text} (in {file})", problem.tensor)
