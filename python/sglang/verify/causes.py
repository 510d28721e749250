"""What to look at where a module differs: a likely cause in words, and constants of norms that are too small to show in the numbers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from sglang.verify.pairing import (
    ATTENTION,
    INPUT,
    LOGITS,
    OUTPUT,
    RESIDUAL,
    SCORES,
    Site,
    SiteError,
)

# Under these names norms keep the number that they add to the mean square or the variance.
_EPSILONS = ("variance_epsilon", "eps")
# Parts in which a row is of one token and knows no other.
_ROWS = (OUTPUT, RESIDUAL)
_CAUSES = {
    INPUT: "the activation, the order of gate and up, a norm before this projection",
    RESIDUAL: "the branch before it: how it is scaled and added, a norm that is missing",
    LOGITS: "the head (its tensor, tied or not, its bias), the scale and the cap of logits",
}


def likely_cause(error: SiteError, first_medium: int | None = None) -> str:
    """What an author should look at, one sentence without a full stop. `first_medium`: position of a medium's first row."""
    if first_medium and (error.first_token or 0) >= first_medium and error.site.part in _ROWS:
        return "the tokens before the first medium agree: look at the tower, its projector, which of its rows are kept and their order"
    factor = error.factor
    if factor is not None and abs(factor - 1.0) > 1e-4:
        return f"every value is {factor:.6g} times the reference's: look at a scale"
    part = error.site.part
    if part == SCORES:
        return _cause_of_scores(error)
    if part == ATTENTION:
        return _cause_of_attention(error)
    if part == OUTPUT and error.site.is_block:
        return (
            "look at how its parts are added and scaled, and at their order; of experts at the router: scores, correction bias, "
            "renormalization, factor"
        )
    if part == OUTPUT:
        return (
            "look at its weight (another tensor, transposed, its shards in another order) and bias, of a norm its kind and "
            "epsilon, and at what enters it"
        )
    return f"look at {_CAUSES[part]}"


def _cause_of_scores(error: SiteError) -> str:
    if error.first_token == 0:
        return "token 0, which is not rotated, differs: look at the norms of q and k and at the scale of scores"
    return "token 0, which is not rotated, agrees: look at theta, the rotated part of a head, its pairs, and rope scaling"


def _cause_of_attention(error: SiteError) -> str:
    if not error.first_token:
        return "token 0, which sees itself only, differs: look at the values (rows of v, sinks)"
    return (
        f"the tokens before {error.first_token} agree: look at the window, the mask and the cap of scores, and when only forms with a cache "
        "fail at the layer_id of RadixAttention"
    )


def different_epsilons(ours: nn.Module, theirs: nn.Module, sites: Sequence[Site]) -> list[str]:
    """One sentence for each norm whose epsilon is not that of its partner."""
    our_modules, their_modules = dict(ours.named_modules()), dict(theirs.named_modules())
    found = []
    for site in sites:
        if site.part != OUTPUT or site.is_block:
            continue
        here = _epsilon(our_modules[site.ours])
        there = _epsilon(their_modules[site.theirs])
        if here is not None and there is not None and here != there:
            found.append(
                f"{site.ours} has epsilon {here:g}, {site.theirs} of the reference {there:g}"
            )
    return list(dict.fromkeys(found))


def _epsilon(module: nn.Module) -> float | None:
    known = (vars(module).get(name) for name in _EPSILONS)
    return next((float(value) for value in known if isinstance(value, float)), None)
