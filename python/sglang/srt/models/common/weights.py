"""From checkpoint tensors to parameters: rename, convert, place. What a model needs said is data.

Nothing is ignored silently. A tensor without a parameter is a problem, a shape that does not fit is a problem,
and a parameter (or a shard of a fused one) that no tensor filled is a problem that the loader finds afterwards
with `find_unfilled`. Problems are collected and raised together, with names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import nn

from sglang.srt.layers.parameter import filled_shards, unfilled_shards
from sglang.srt.layers.utils import get_layer_id
from sglang.srt.model_loader.weight_utils import (
    default_weight_loader,
    maybe_remap_kv_scale_name,
)
from sglang.srt.models.common.weight_problems import WeightLoadError, WeightProblem
from sglang.srt.models.utils import WeightsMapper

# (part of the fused parameter's name, part of the checkpoint name, shard id)
Stacked = tuple[str, str, str | int]
NamedTensor = tuple[str, torch.Tensor]


@dataclass(frozen=True)
class ExpertShard:
    """One matrix of one expert: `part` is "w1" (gate), "w2" (down) or "w3" (up)."""

    expert: int
    part: str

    def __str__(self) -> str:
        return f"{self.expert}.{self.part}"


ShardId = str | int | ExpertShard

QKV: tuple[Stacked, ...] = (
    (".qkv_proj", ".q_proj", "q"),
    (".qkv_proj", ".k_proj", "k"),
    (".qkv_proj", ".v_proj", "v"),
)
GATE_UP: tuple[Stacked, ...] = (
    (".gate_up_proj", ".gate_proj", 0),
    (".gate_up_proj", ".up_proj", 1),
)
# Values that are computed from the config and were written to disk all the same.
ALWAYS_SKIPPED = (r"rotary_emb\.(inv_freq|cos_cached|sin_cached)$",)


@dataclass(frozen=True)
class ExpertNames:
    """How a checkpoint names its experts: `experts.{e}.{gate}.weight` and so on, one tensor each, or all experts in
    `experts.{fused_gate_up}` `[E, 2I, D]` (gate rows, then up rows) and `experts.{fused_down}` `[E, D, I]`.
    """

    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    fused_gate_up: str = "gate_up_proj"
    fused_down: str = "down_proj"

    def split(self, name: str, tensor: torch.Tensor) -> Iterator[NamedTensor]:
        """A tensor of all experts as views under the names of single ones; other tensors pass."""
        found = self._all_experts.fullmatch(name)
        if found is None or tensor.dim() != 3:
            yield name, tensor
            return
        names = (self.down,) if found["part"] == self.fused_down else (self.gate, self.up)
        for expert, both in enumerate(tensor):
            for part, value in zip(names, both.tensor_split(len(names)), strict=True):
                yield f"{found['experts']}.{expert}.{part}.weight", value

    def place(self, name: str) -> tuple[str, ExpertShard] | None:
        """Parameter of `FusedMoE` and shard of a single expert's tensor; None for any other tensor."""
        found = self._one_expert.fullmatch(name)
        if found is None:
            return None
        part = {self.gate: "w1", self.down: "w2", self.up: "w3"}[found["part"]]
        kind = "weight_bias" if found["kind"] == "bias" else found["kind"]
        fused = "w2" if part == "w2" else "w13"
        return f"{found['experts']}.{fused}_{kind}", ExpertShard(int(found["expert"]), part)

    @cached_property
    def _one_expert(self) -> re.Pattern[str]:
        parts = "|".join(map(re.escape, (self.gate, self.up, self.down)))
        return re.compile(
            rf"(?P<experts>(?:.+\.)?experts)\.(?P<expert>\d+)\.(?P<part>{parts})\.(?P<kind>\w+)"
        )

    @cached_property
    def _all_experts(self) -> re.Pattern[str]:
        parts = "|".join(map(re.escape, (self.fused_gate_up, self.fused_down)))
        return re.compile(rf"(?P<experts>(?:.+\.)?experts)\.(?P<part>{parts})(?:\.weight)?")


class MappedTensor(NamedTuple):
    """A tensor on its way into the model. `rules`: those of the `WeightMap` that changed its name or its content so far."""

    on_disk: str
    name: str
    tensor: torch.Tensor
    rules: tuple[str, ...] = ()


@dataclass(frozen=True)
class WeightMap:
    """How checkpoint names map to parameters, applied in this order.

    `skip`: patterns (`re.search`) of tensors that are left out on purpose. `rename`: substring, prefix and
    suffix replacements. `convert`: for odd layouts, one tensor to any number of named tensors. `experts`: the names
    of expert weights, which `FusedMoE` holds together. `stacked`: tensors that are shards of a fused parameter.
    """

    stacked: tuple[Stacked, ...] = ()
    rename: WeightsMapper = field(default_factory=WeightsMapper)
    skip: tuple[str, ...] = ()
    convert: Callable[[str, torch.Tensor], Iterable[NamedTensor]] | None = None
    experts: ExpertNames | None = None

    def place(self, name: str, parameters: dict[str, nn.Parameter]) -> tuple[str, ShardId | None]:
        """Parameter name and shard id of a (renamed) tensor; the name itself when it is not a shard."""
        of_expert = self.experts.place(name) if self.experts else None
        if of_expert is not None and of_expert[0] in parameters:
            return of_expert
        for fused, part, shard_id in self.stacked:
            if f"{part}." in name:
                target = name.replace(f"{part}.", f"{fused}.")
                if target in parameters:
                    return target, shard_id
        return name, None

    def skips(self, on_disk: str) -> bool:
        """Whether a tensor is left out on purpose: by `skip`, or because it is computed from the config."""
        return self._skip.search(on_disk) is not None

    def skipped_for(self, names: Iterable[str], model: nn.Module) -> dict[str, list[str]]:
        """Parameters that tensors of a checkpoint would fill if `skip` did not leave them out, and those tensors."""
        parameters = dict(model.named_parameters(remove_duplicate=False))
        found: dict[str, list[str]] = {}
        for on_disk in filter(self.skips, names):
            for name, _ in self.rename.apply([(on_disk, torch.empty(0))]):
                found.setdefault(self.place(name, parameters)[0], []).append(on_disk)
        return found

    @cached_property
    def _skip(self) -> re.Pattern[str]:
        return re.compile("|".join((*ALWAYS_SKIPPED, *self.skip)))

    def convert_all(self, weights: Iterable[NamedTensor]) -> Iterator[MappedTensor]:
        """Everything that is not skipped, under our names. Raises WeightLoadError for a tensor that `convert` cannot take."""
        for on_disk, tensor in weights:
            if self.skips(on_disk):
                continue
            for name, value in self.rename.apply([(on_disk, tensor)]):
                rules = () if name == on_disk else ("rename",)
                for mapped in self._converted(MappedTensor(on_disk, name, value, rules)):
                    yield from self._split_experts(mapped)

    def _converted(self, before: MappedTensor) -> Iterable[MappedTensor]:
        if self.convert is None:
            return (before,)
        try:
            pairs = list(self.convert(before.name, before.tensor))
        except (ValueError, RuntimeError, IndexError, KeyError) as error:
            text = (
                f"tensor {before.on_disk} {list(before.tensor.shape)} is refused by rule convert "
                f"(read as {before.name}): {error}"
            )
            raise WeightLoadError([WeightProblem(text, before.on_disk)]) from error
        return (
            before
            if name == before.name and value is before.tensor
            else MappedTensor(before.on_disk, name, value, (*before.rules, "convert"))
            for name, value in pairs
        )

    def _split_experts(self, whole: MappedTensor) -> Iterator[MappedTensor]:
        if self.experts is None:
            yield whole
            return
        for name, value in self.experts.split(whole.name, whole.tensor):
            rules = whole.rules if name == whole.name else (*whole.rules, "experts")
            yield MappedTensor(whole.on_disk, name, value, rules)


def unfuse_heads(num_heads: int, name: str, tensor: torch.Tensor) -> Iterator[NamedTensor]:
    """A `convert` for `qkv_proj` tensors that hold [q | k | v] of one head after the other: all q, all k, all v.

    For models in which every query head has a key-value head. Other tensors pass.
    """
    if ".qkv_proj." in name:
        by_head = tensor.unflatten(0, (num_heads, 3, -1))  # [heads, 3, d, ...]
        tensor = by_head.transpose(0, 1).flatten(0, 2)
    yield name, tensor


def unfuse_groups(
    num_kv_heads: int, num_heads: int, name: str, tensor: torch.Tensor
) -> Iterator[NamedTensor]:
    """A `convert` for `qkv_proj` tensors that hold, one kv head after the other, its query heads, its key and its value: all q, all k,
    all v. Other tensors pass.
    """
    if ".qkv_proj." in name:
        group = num_heads // num_kv_heads
        by_group = tensor.unflatten(0, (num_kv_heads, group + 2, -1))  # [kv heads, g + 2, d, ...]
        parts = by_group.split([group, 1, 1], dim=1)
        tensor = torch.cat([part.flatten(0, 2) for part in parts])
    yield name, tensor


def load_weights(
    model: nn.Module,
    weights: Iterable[NamedTensor],
    weight_map: WeightMap,
    layer_range: tuple[int, int] | None = None,
) -> set[str]:
    """Copy tensors (full size, on the host) into the model's parameters; returns the names of those touched.

    May be called again with a subset of the tensors. Layers outside `layer_range` live on another pipeline
    stage and are passed over. Raises WeightLoadError after the last tensor, with everything that did not fit.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    touched: set[str] = set()
    problems: list[WeightProblem] = []
    for mapped in weight_map.convert_all(weights):
        layer_id = get_layer_id(mapped.name)
        if layer_range and layer_id is not None and layer_id not in range(*layer_range):
            continue
        # Scales of the cache are stored beside the projections and belong to the attention.
        name = maybe_remap_kv_scale_name(mapped.name, parameters) or mapped.name
        target, shard_id = weight_map.place(name, parameters)
        if target not in parameters:
            problems.append(_unknown(mapped))
            continue
        problem = _copy(mapped, model, parameters[target], target, shard_id)
        if problem is None:
            touched.add(target)
        else:
            problems.append(problem)
    if problems:
        raise WeightLoadError(problems)
    return touched


def find_unfilled(
    model: nn.Module,
    known_filled: Collection[str] = (),
    skipped: Mapping[str, Sequence[str]] | None = None,
) -> list[WeightProblem]:
    """One problem for every parameter, or shard of a fused one, that no tensor has filled.

    `known_filled`: parameters that are known to be written although no shard of them was reported. `skipped`: see
    `WeightMap.skipped_for`.
    """
    problems = []
    for name, param in model.named_parameters():
        missing = unfilled_shards(param)
        if name in known_filled and not filled_shards(param):
            continue
        if missing:
            shards = sorted(str(shard) for shard in missing if shard is not None)
            what = f"shard {', '.join(shards)} of parameter" if shards else "parameter"
            text = f"{what} {name} {list(param.shape)} is filled by no tensor"
            names = (skipped or {}).get(name)
            if names:
                text += f" (rule skip leaves out {', '.join(names)})"
            problems.append(WeightProblem(text))
    return problems


def _unknown(mapped: MappedTensor) -> WeightProblem:
    rules = _rule_names(mapped.rules)
    by_rules = f" ({rules}: read as {mapped.name})" if rules else ""
    return WeightProblem(
        f"tensor {mapped.on_disk}{by_rules} belongs to no parameter", mapped.on_disk
    )


def _rule_names(rules: tuple[str, ...]) -> str:
    """`rule rename`, `rules rename, stacked`; empty for none."""
    kinds = list(dict.fromkeys(rules))
    return f"rule{'s' if len(kinds) > 1 else ''} {', '.join(kinds)}" if kinds else ""


def _copy(
    mapped: MappedTensor,
    model: nn.Module,
    param: nn.Parameter,
    target: str,
    shard_id: ShardId | None,
) -> WeightProblem | None:
    on_disk, _, tensor, rules = mapped
    loader: Callable[..., None] = getattr(param, "weight_loader", default_weight_loader)
    try:
        if isinstance(shard_id, ExpertShard):
            _check_expert(model, target, shard_id.expert)
            loader(param, tensor, on_disk, shard_id.part, shard_id.expert)
        else:
            loader(param, tensor) if shard_id is None else loader(param, tensor, shard_id)
    except (ValueError, AssertionError, RuntimeError, IndexError) as error:
        shard = "" if shard_id is None else f" shard {shard_id}"
        if shard_id is not None:
            rules += ("experts" if isinstance(shard_id, ExpertShard) else "stacked",)
        by_rules = f" ({_rule_names(rules)})" if rules else ""
        return WeightProblem(
            f"tensor {on_disk} {list(tensor.shape)} does not fit parameter {target} "
            f"{list(param.shape)}{shard}{by_rules}: {error}",
            on_disk,
        )
    return None


def _check_expert(model: nn.Module, target: str, expert: int) -> None:
    """The layer passes over experts of other ranks, so it cannot tell one that no rank has."""
    # Late: models without experts do not need the layer.
    from sglang.srt.layers.moe.fused_moe_triton import FusedMoE

    layer = model.get_submodule(target.rpartition(".")[0])
    if isinstance(layer, FusedMoE) and expert >= layer.num_experts:
        raise ValueError(f"expert {expert} of a layer with {layer.num_experts} experts")
