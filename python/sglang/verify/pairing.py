"""Sites of comparison: which module of the engine's model computes what which module of transformers computes.

Modules of one name are partners. Where names differ the weights decide: two modules that hold the same tensor of the checkpoint are
partners, and the rows that the tensor fills say which columns of a fused projection are its shard. Modules around partners (a layer, its attention) are partners of
what is around the other.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from sglang.srt.layers.linear import RowParallelLinear
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.layers.vocab_parallel_embedding import VocabParallelEmbedding
from sglang.verify.comparison import RELATIVE_BOUND
from sglang.verify.coverage import Placement

# Activations far below this are noise of their own.
MIN_SCALE = 1e-3
# What is compared at a site; the text is what a person reads.
OUTPUT = "output"
INPUT = "input"
RESIDUAL = "residual stream"
SCORES = "scores before softmax: norms of q and k, rotation, scale"
ATTENTION = "attention output: scores and mask, window, cap, keys and values of the cache"
LOGITS = "logits: head, scale and cap"


@dataclasses.dataclass(frozen=True)
class Site:
    """One comparison. `columns`: first column and width of the shard in our output; None for all of it."""

    ours: str
    theirs: str
    part: str
    shard: str = ""
    columns: tuple[int, int] | None = None
    is_block: bool = False  # a module made of modules: a layer, an attention, an MLP

    def __str__(self) -> str:
        shard = f", shard {self.shard}" if self.shard else ""
        return f"{self.ours}{shard} ({self.part})"


@dataclasses.dataclass
class SiteError:
    """How far one site is off. Errors are absolute; `bound` is 1e-4 of the largest value of transformers' module.

    `first_token` is the lowest position above the bound, `column` the worst column there (within the shard). `products`: sums over all
    values of ours x ours, ours x theirs, theirs x theirs.
    """

    site: Site
    order: int
    scale: float
    errors: torch.Tensor  # float32 [n], NaN where the position was not computed
    columns: torch.Tensor  # int64 [n]
    products: torch.Tensor = dataclasses.field(
        default_factory=lambda: torch.zeros(3, dtype=torch.float64)
    )

    @property
    def factor(self) -> float | None:
        """The number c where every value of ours is c times that of transformers; None where there is no such number."""
        ours, mixed, theirs = self.products.tolist()
        if not ours * theirs > 0 or 1.0 - mixed * mixed / (ours * theirs) > RELATIVE_BOUND**2:
            return None
        return mixed / theirs

    @property
    def bound(self) -> float:
        return RELATIVE_BOUND * max(self.scale, MIN_SCALE)

    @property
    def max_abs(self) -> float:
        return float(self.errors.nan_to_num(0.0, posinf=torch.inf).max())

    @property
    def passed(self) -> bool:
        return self.max_abs <= self.bound

    @property
    def first_token(self) -> int | None:
        above = (self.errors > self.bound).nonzero()
        return int(above[0]) if len(above) else None

    def describe(self) -> str:
        """One sentence about the first position above the bound, or about the largest error."""
        token = self.first_token
        if token is None:
            return f"{self.site}: at most {self.max_abs:.3g}, allowed {self.bound:.3g}"
        partner = f" beside {self.site.theirs} of transformers" if self.site.theirs else ""
        return (
            f"{self.site}{partner}: token {token} differs by {float(self.errors[token]):.3g} "
            f"(column {int(self.columns[token])}; allowed {self.bound:.3g}), {self.max_abs:.3g} at most"
        )


def pair_sites(ours: nn.Module, theirs: nn.Module, placements: Sequence[Placement]) -> list[Site]:
    """Everything that can be compared, in no particular order. Without placements, modules are paired by name."""
    our_modules, their_modules = dict(ours.named_modules()), dict(theirs.named_modules())
    found = _from_weights(placements, ours) if placements else _from_names(ours, theirs)
    leaves = [
        leaf
        for leaf in (_by_own_name(leaf, their_modules) for leaf in found)
        if leaf.ours in our_modules and leaf.theirs in their_modules
    ]
    parents = _parents(leaves)
    sites = [Site("logits", "", LOGITS)]
    for leaf in leaves:
        sites += _leaf_sites(leaf, our_modules[leaf.ours])
    for our_path, their_path in parents.items():
        module = our_modules[our_path]
        if our_path and not isinstance(module, nn.ModuleList):
            sites.append(Site(our_path, their_path, OUTPUT, is_block=True))
    for path, module in our_modules.items():
        if isinstance(module, RadixAttention):
            around = path.rpartition(".")[0]
            sites += _attention_sites(path, around, parents, leaves, our_modules)
    return list(dict.fromkeys(sites))


@dataclasses.dataclass(frozen=True)
class _Leaf:
    ours: str
    theirs: str
    shard: str = ""
    columns: tuple[int, int] | None = None


def _from_weights(placements: Sequence[Placement], ours: nn.Module) -> Iterator[_Leaf]:
    parameters, modules = dict(ours.named_parameters()), dict(ours.named_modules())
    blocks: dict[tuple[str, str], list[Placement]] = collections.defaultdict(list)
    sharers: dict[str, set[str]] = collections.defaultdict(set)
    for placement in placements:
        blocks[placement.tensor, placement.parameter].append(placement)
        sharers[placement.parameter].add(placement.tensor)
    for (tensor, parameter), parts in blocks.items():
        our_path, their_path = parameter.rpartition(".")[0], tensor.rpartition(".")[0]
        start, num_rows = min(p.start for p in parts), sum(p.num_rows for p in parts)
        is_cut = len(sharers[parameter]) > 1 and num_rows < len(parameters[parameter])
        if is_cut and not isinstance(modules.get(our_path), VocabParallelEmbedding):
            shard = their_path.rpartition(".")[2]
            yield _Leaf(our_path, their_path, shard, (start, num_rows))
        else:
            yield _Leaf(our_path, their_path)


def _by_own_name(leaf: _Leaf, their_modules: dict[str, nn.Module]) -> _Leaf:
    """Where both sides have the name, it decides: a tensor that went to the wrong place must not choose the partner."""
    if leaf.columns is None and leaf.ours in their_modules:
        return dataclasses.replace(leaf, theirs=leaf.ours)
    return leaf


def _from_names(ours: nn.Module, theirs: Any) -> Iterator[_Leaf]:
    """The transformers fallback keeps the decoder of transformers under the name `model`."""
    prefix = theirs.base_model_prefix
    for path, module in ours.named_modules():
        if next(module.parameters(recurse=False), None) is None:
            continue
        yield _Leaf(path, path)
        if path.startswith("model.") and prefix != "model":
            yield _Leaf(path, f"{prefix}.{path.removeprefix('model.')}")


def _parents(leaves: Iterable[_Leaf]) -> dict[str, str]:
    """Partners of the modules around paired modules, by majority."""
    votes: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    known = {leaf.ours for leaf in leaves}
    for leaf in leaves:
        ours, theirs = leaf.ours, leaf.theirs
        while ours and theirs:
            ours, theirs = ours.rpartition(".")[0], theirs.rpartition(".")[0]
            if ours not in known:
                votes[ours][theirs] += 1
    return {ours: counter.most_common(1)[0][0] for ours, counter in votes.items()}


def _leaf_sites(leaf: _Leaf, module: nn.Module) -> list[Site]:
    sites = [Site(leaf.ours, leaf.theirs, OUTPUT, leaf.shard, leaf.columns)]
    if isinstance(module, RowParallelLinear):
        sites.append(Site(leaf.ours, leaf.theirs, INPUT))
    elif leaf.columns is None:
        # A norm that also adds returns the sum; transformers gives it to its norm.
        sites.append(Site(leaf.ours, leaf.theirs, RESIDUAL))
    return sites


def _attention_sites(
    path: str,
    around: str,
    parents: dict[str, str],
    leaves: Sequence[_Leaf],
    modules: dict[str, nn.Module],
) -> list[Site]:
    if around not in parents:
        return []
    sites = [Site(path, parents[around], SCORES)]
    after = [
        leaf
        for leaf in leaves
        if leaf.ours.startswith(f"{around}.") and isinstance(modules[leaf.ours], RowParallelLinear)
    ]
    if len(after) == 1:
        sites.append(Site(path, after[0].theirs, ATTENTION))
    return sites
