"""What a model class may declare about its loading, and what holds for one that declares nothing.

A model file needs no base class of ours, so these names are looked for; this is the one place that does. The fields below are the names,
their defaults and their meaning; docs/add_a_model.md tells authors when to use them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from torch import nn

from sglang.srt.utils.errors import ConfigError

if TYPE_CHECKING:
    from sglang.srt.model_loader.loader import DefaultModelLoader
    from sglang.srt.models.utils import WeightsMapper


class AfterLoading(Protocol):
    """The part of a quantization method that the loader calls."""

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Bring the weights of a layer, which are all in place, into the form that its kernels want."""


@dataclass(frozen=True)
class ClassDeclarations:
    """Of a model class, before a model is built.

    `packed_modules_mapping`: name of a fused module -> names that it has in the checkpoint, for the settings of quantized checkpoints,
    which list modules. `hf_to_sglang_mapper`: renames the modules in those settings. `fall_back_to_pt_during_load`: whether pickled files
    are read where there are no safetensors.
    """

    packed_modules_mapping: Mapping[str, Sequence[str]] = field(default_factory=dict)
    hf_to_sglang_mapper: WeightsMapper | None = None
    fall_back_to_pt_during_load: bool = True


@dataclass(frozen=True)
class ModelDeclarations:
    """Of a model that has been built.

    `secondary_weights`: checkpoints that are streamed after the model's own. `post_load_weights()`: what the model derives from its weights
    at the end of its `load_weights`; called where random numbers take the place of a checkpoint. `load_kv_cache_scales(path)`: reads a
    file with the scales of the cache; without it every `RadixAttention` gets its layer's.
    """

    secondary_weights: Iterable[DefaultModelLoader.Source] = ()
    post_load_weights: Callable[[], object] | None = None
    load_kv_cache_scales: Callable[[str], object] | None = None


@dataclass(frozen=True)
class LayerDeclarations:
    """Of any module inside a model. `quant_method`: is called once for the layer when all weights are in place."""

    quant_method: AfterLoading | None = None


Declarations = TypeVar("Declarations", ClassDeclarations, ModelDeclarations, LayerDeclarations)


def read_declared(kind: type[Declarations], owner: object) -> Declarations:
    """What `owner` (a class, a model or a module) declares; absent attributes and None are the defaults.

    Raises ConfigError for a property that is there and fails with AttributeError, which would look like an absent one.
    """
    found: dict[str, Any] = {}
    for attribute in fields(kind):
        value = _read(owner, attribute.name)
        if value is not None:
            found[attribute.name] = value
    return kind(**found)


def _read(owner: object, name: str) -> Any:
    try:
        return getattr(owner, name)
    except AttributeError as error:
        if inspect.getattr_static(owner, name, None) is None:
            return None
        cls = owner if isinstance(owner, type) else type(owner)
        raise ConfigError(
            f"{name} of {cls.__module__}.{cls.__qualname__} is declared, but reading it fails: {error}"
        ) from error
