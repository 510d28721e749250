"""Weight coverage: which tensor of the checkpoint ends up in which rows of which parameter, and what is left over on either side.

The model's own `load_weights` runs under a mode that sees every copy PyTorch makes, so the answer does not depend on how the model
file places its weights (our weight maps, a plug-in's loop). Parameters are NaN before: one that still has a NaN was not filled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.model_loader.declared import ModelDeclarations, read_declared
from sglang.srt.model_loader.loader import build_model
from sglang.srt.model_loader.utils import get_model_architecture
from sglang.srt.model_loader.weight_utils import find_checkpoint_files, local_checkpoint_folder
from sglang.srt.models.common.causal_lm import CausalLM
from sglang.srt.models.common.weights import WeightLoadError, find_unfilled
from sglang.srt.models.registry import FALLBACK_ARCH


@dataclasses.dataclass(frozen=True)
class Placement:
    """A tensor of the checkpoint went into rows `start .. start + num_rows - 1` of a parameter."""

    tensor: str
    parameter: str
    start: int
    num_rows: int


@dataclasses.dataclass
class Coverage:
    """What loading did. `ignored` are tensors that reached no parameter; `allowed` those of them that may be left out.

    `is_traced` is False where the copies cannot be seen (transformers loads in threads of its own); then nothing is known about ignored
    tensors except that the loader, which is strict, did not complain.
    """

    class_name: str = ""
    num_tensors: int = 0
    num_parameters: int = 0
    num_elements: int = 0
    placements: list[Placement] = dataclasses.field(default_factory=list)
    ignored: list[str] = dataclasses.field(default_factory=list)
    allowed: list[str] = dataclasses.field(default_factory=list)
    unfilled: list[str] = dataclasses.field(default_factory=list)
    is_traced: bool = True

    @property
    def passed(self) -> bool:
        return self.num_tensors > 0 and not self.unfilled and not self.not_accounted

    @property
    def crossed(self) -> list[str]:
        """Tensors that went to another parameter although there is one of their name."""
        targets = {placement.parameter for placement in self.placements}
        moved = (p for p in self.placements if p.tensor != p.parameter and p.tensor in targets)
        return [f"{p.tensor} -> {p.parameter}" for p in moved]

    @property
    def not_accounted(self) -> list[str]:
        """Ignored tensors that nobody declared as such."""
        return [name for name in self.ignored if name not in self.allowed]


def measure_coverage(folder: str, model_config: ModelConfig) -> Coverage:
    """Load the checkpoint once more, on the CPU, and follow its tensors.

    Raises ConfigError for files that cannot be read, WeightLoadError for what the model refuses, and what a plug-in raises.
    """
    model_class, name = get_model_architecture(model_config)
    model: Any = build_model(model_class, model_config, torch.device("cpu"))
    found = Coverage(class_name=model_class.__name__, is_traced=name != FALLBACK_ARCH)
    _fill_with_nan(model)
    flow = WeightFlow(model)
    names: list[str] = []
    try:
        with flow:
            model.load_weights(_named(_streams(folder, model), names, flow))
    except (
        WeightLoadError
    ) as error:  # a tensor without a place often has a parameter that waits for it
        problems = [*error.problems, *find_unfilled(model)]
        raise WeightLoadError(problems, source=f"checkpoint {folder!r}") from error
    flow.adopt(model)
    found.num_tensors = len(names)
    found.placements = flow.placements if found.is_traced else []
    parameters = dict(model.named_parameters())
    found.num_parameters = len(parameters)
    found.num_elements = sum(param.numel() for param in parameters.values())
    found.unfilled = [name for name, param in parameters.items() if _has_nan(param)]
    if found.is_traced:
        reached = {placement.tensor for placement in flow.placements} | flow.read_as_number
        found.ignored = [name for name in names if name not in reached]
        found.allowed = [name for name in found.ignored if _may_ignore(model, name)]
    return found


class WeightFlow(TorchDispatchMode):
    """Follows tensors through copies, views and arithmetic into the parameters of a model.

    Tensors are told apart by their storage. A result carries the names of everything it was computed from.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.placements: list[Placement] = []
        self.read_as_number: set[str] = set()
        self._names: dict[int, frozenset[str]] = {}
        # Detached: a parameter whose data is replaced must not free an address that others then get.
        self._parameters = {_key(p): (n, p.detach()) for n, p in model.named_parameters()}

    def announce(self, name: str, tensor: torch.Tensor) -> None:
        """What lies in this tensor's storage is the tensor `name` of the checkpoint."""
        self._names[_key(tensor)] = frozenset({name})

    def adopt(self, model: torch.nn.Module) -> None:
        """Notice parameters that were replaced by a loaded tensor instead of being copied into."""
        for parameter, param in model.named_parameters():
            key = _key(param)
            if key not in self._parameters:
                rows = param.shape[0] if param.dim() else 1
                for name in sorted(self._names.get(key, ())):
                    self._note(Placement(name, parameter, 0, rows))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        sources = [t for t in tree_iter((args, kwargs)) if isinstance(t, torch.Tensor)]
        if func.overloadpacket is torch.ops.aten.copy_:
            sources = sources[1:]  # what the target held before does not matter
        names = frozenset().union(*(self._names.get(_key(t), frozenset()) for t in sources))
        result = func(*args, **kwargs)
        if func.overloadpacket is torch.ops.aten._local_scalar_dense:
            self.read_as_number |= names
        writes = func._schema.is_mutable
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor):
                self._hold(tensor, names, writes)
        return result

    def _hold(self, tensor: torch.Tensor, names: frozenset[str], writes: bool) -> None:
        key = _key(tensor)
        if key not in self._parameters:
            self._names[key] = names
        elif writes:
            parameter, whole = self._parameters[key]
            start, num_rows = _rows(tensor, whole)
            for name in sorted(names):
                self._note(Placement(name, parameter, start, num_rows))

    def _note(self, placement: Placement) -> None:
        if placement not in self.placements:
            self.placements.append(placement)


def _key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _rows(part: torch.Tensor, whole: torch.Tensor) -> tuple[int, int]:
    """First row and number of rows of a view into a parameter; all of them when it is no block of rows."""
    if whole.dim() == 0 or part.dim() != whole.dim() or part.stride() != whole.stride():
        return 0, whole.shape[0] if whole.dim() else 1
    return (part.storage_offset() - whole.storage_offset()) // whole.stride(0), part.shape[0]


def _streams(folder: str, model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors of the checkpoint, and of others that the model declares as `secondary_weights`."""
    yield from find_checkpoint_files(folder).stream()
    for source in read_declared(ModelDeclarations, model).secondary_weights:
        path = local_checkpoint_folder(source.model_or_path, source.revision, "auto")
        for name, tensor in find_checkpoint_files(path).stream():
            yield source.prefix + name, tensor


def _named(
    stream: Iterator[tuple[str, torch.Tensor]], names: list[str], flow: WeightFlow
) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in stream:
        names.append(name)
        flow.announce(name, tensor)
        yield name, tensor


def _fill_with_nan(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for param in model.parameters():
            if param.is_floating_point():
                param.fill_(torch.nan)


def _has_nan(param: torch.Tensor) -> bool:
    return param.is_floating_point() and bool(torch.isnan(param).any())


def _may_ignore(model: torch.nn.Module, name: str) -> bool:
    """Tables computed from the config, the copy of a tied head, what a weight map skips; a plug-in's own loading decides itself."""
    if not isinstance(model, CausalLM):
        return True
    is_tied_head = model.is_tied and name == "lm_head.weight"
    return is_tied_head or model.weight_map.skips(name)
