"""Finds the first module, token and shard at which the engine's model leaves transformers.

Both models are hooked. transformers runs the tokens that the engine produced, once; the engine then plays the form again, and every row of the
watched request is compared as it is computed.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from sglang.verify.causes import different_epsilons, likely_cause
from sglang.verify.comparison import Difference, compare_trace
from sglang.verify.coverage import Placement
from sglang.verify.forms import Form
from sglang.verify.hooks import ReferenceRecord, SubjectWatch
from sglang.verify.pairing import LOGITS, MIN_SCALE, RESIDUAL, Site, SiteError, pair_sites
from sglang.verify.proof import Proof
from sglang.verify.subject import Session


@dataclasses.dataclass
class ModuleTrace:
    """All sites of one request of one form, in the order in which transformers computes them."""

    form: str
    rid: str
    num_tokens: int
    sites: list[SiteError]
    epsilons: list[str] = dataclasses.field(default_factory=list)  # of norms, where they differ
    first_medium: int | None = None  # position of a medium's first row

    @property
    def first(self) -> SiteError | None:
        """The first site above its bound whose difference goes on: models that scale at another place than transformers (the embedding,
        the queries) differ inside and agree again behind it."""
        healed = max((e.order for e in self.sites if e.passed and _is_whole(e.site)), default=-1)
        blocks = [f"{e.site.ours}." for e in self.sites if e.passed and e.site.is_block]
        for error in self.sites:
            inside = any(error.site.ours.startswith(block) for block in blocks)
            if not error.passed and error.order > healed and not inside:
                return error
        return None

    @property
    def cause(self) -> str:
        """What an author should look at first; empty when nothing differs."""
        return "" if self.first is None else likely_cause(self.first, self.first_medium)

    def layers(self) -> list[tuple[str, float]]:
        """`(label, relative error)` of the embedding-to-logits chain: every layer's output, then the logits."""
        found: dict[int, float] = {}
        for error in self.sites:
            layer = _layer_of(error.site)
            if layer is not None:
                found[layer] = error.max_abs / max(error.scale, MIN_SCALE)
        rows = [(str(layer), value) for layer, value in sorted(found.items())]
        logits = [e.max_abs / max(e.scale, 1.0) for e in self.sites if e.site.part == LOGITS]
        return rows + [("logits", value) for value in logits]


def trace_modules(proof: Proof, form: Form, placements: Sequence[Placement]) -> ModuleTrace:
    """Play a form with both models hooked; the request that differs is watched, the first one when none does."""
    subject = proof.subject(form.page_size)
    session = subject.session(form.schedule)
    proof.play(form, session)
    rid = _differing(proof, form, session)
    trace = session.traces[rid]
    # The last token of an answer is sampled but never computed.
    token_ids = trace.prompt_ids + trace.output_ids[:-1]
    named = [
        dataclasses.replace(place, tensor=proof.name_in_reference(place.tensor))
        for place in placements
    ]
    pairs = pair_sites(subject.model, proof.reference.model, named)
    sites = [site for site in pairs if not site.ours.startswith(proof.off_tokens)]
    with ReferenceRecord(proof.reference.model, sites) as record:
        logits = proof.logits_of(rid, token_ids)
    record.finish(logits, len(token_ids))
    again = subject.session(form.schedule)
    with SubjectWatch(subject.runner, again, rid, record) as watch:
        proof.play(form, again)
    epsilons = different_epsilons(subject.model, proof.reference.model, sites)
    first_medium = proof.first_medium(rid)
    return ModuleTrace(
        form.name, rid, len(token_ids), watch.errors(), epsilons, first_medium=first_medium
    )


def _layer_of(site: Site) -> int | None:
    """The number of the layer whose output this is."""
    match = re.fullmatch(r"\D*\.(\d+)", site.ours)
    return int(match.group(1)) if site.is_block and match is not None else None


def _is_whole(site: Site) -> bool:
    """Whether everything computed so far goes through here."""
    return site.part in (RESIDUAL, LOGITS) or _layer_of(site) is not None


def _differing(proof: Proof, form: Form, session: Session) -> str:
    for ask, (rid, trace) in zip(form.asks, session.traces.items(), strict=True):
        found = Difference()
        compare_trace(rid, trace, proof.expect(ask, trace), found)
        if not found.passed:
            return rid
    return next(iter(session.traces))
