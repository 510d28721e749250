"""Prompts with media on both sides: what a processor hands to the engine, and what transformers' own model takes.

A family says how its prompts look; everything else of a proof is shared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch

from sglang.srt.models.registry import ModelRegistry
from sglang.srt.multimodal.transport import pack
from sglang.srt.utils.errors import ConfigError
from sglang.verify.comparison import RELATIVE_BOUND
from sglang.verify.forms import Ask, Material
from sglang.verify.media_corrections import correct_reference
from sglang.verify.media_published import as_transformers
from sglang.verify.outside import MEDIA_FAMILY, named_by_class
from sglang.verify.proof import Proof
from sglang.verify.reference import Continuation, ReferenceModel
from sglang.verify.subject import Session, SubjectConfig, Trace


@dataclasses.dataclass(frozen=True)
class MediaPrompt:
    """A prompt with its media expanded.

    `inputs_for(ids)` is a processor's result for a prompt that begins with `token_ids`; `arguments_for(ids)` the keyword arguments of
    transformers' model for a sequence that does. `media_at` are the first positions of the media, `num_uncut` how many tokens must not be
    cut by chunks.
    """

    token_ids: list[int]
    inputs_for: Callable[[list[int]], dict[str, Any]]
    arguments_for: Callable[[Sequence[int]], dict[str, Any]]
    media_at: tuple[int, ...] = ()
    num_uncut: int = 0


class MediaFamily(Protocol):
    """How the models of an architecture are proven with media."""

    def prompts(self, raw: Mapping[str, Any]) -> dict[str, MediaPrompt]:
        """By the names that `media_forms` uses, for a config.json."""

    def silent_ids(self, raw: Mapping[str, Any]) -> list[int]:
        """Tokens that a random model must not produce: they would stand for media."""

    def write_processor(self, raw: Mapping[str, Any], folder: str) -> None:
        """Files of processor and tokenizer beside the weights."""


class MediaReference(ReferenceModel):
    """A model of transformers that takes media. `seen` is the prompt whose media the next sequences begin with."""

    def __init__(self, folder: str, *, trust_remote_code: bool = False) -> None:
        from transformers import AutoModelForMultimodalLM

        self.is_own = False
        with as_transformers(folder) as readable:
            self.model = AutoModelForMultimodalLM.from_pretrained(
                readable,
                dtype=torch.float32,
                attn_implementation="eager",
                trust_remote_code=trust_remote_code,
            )
        self.model.eval()
        correct_reference(self.model)
        self.vocab_size = self.model.config.get_text_config().vocab_size
        self.seen: MediaPrompt | None = None

    @torch.inference_mode()
    def logits(self, token_ids: Sequence[int]) -> torch.Tensor:
        media = {} if self.seen is None else self.seen.arguments_for(token_ids)
        ids = torch.tensor([list(token_ids)])
        return self.model(input_ids=ids, use_cache=False, **media).logits[0].float()


class MediaProof(Proof):
    """As `Proof`, with the prompts of a family beside the random ones."""

    off_tokens = ("visual.",)

    def __init__(
        self,
        folder: str,
        family: MediaFamily,
        raw: Mapping[str, Any],
        config: SubjectConfig | None = None,
    ) -> None:
        super().__init__(
            folder, dataclasses.replace(config or SubjectConfig(), enable_multimodal=True)
        )
        self.media = family.prompts(raw)
        self._answers: dict[tuple[str, tuple[int, ...]], Continuation] = {}
        silent = set(family.silent_ids(raw))
        known = self.material.prompts.items()
        plain = {name: [0 if i in silent else i for i in ids] for name, ids in known}
        plain |= {name: prompt.token_ids for name, prompt in self.media.items()}
        follow_up = [0 if i in silent else i for i in self.material.follow_up]
        self.material = Material(plain, follow_up)

    def _load_reference(self, context_len: int) -> ReferenceModel:
        return MediaReference(self.folder, trust_remote_code=self.config.trust_remote_code)

    def _submit(self, rid: str, ask: Ask, prompt: list[int], session: Session) -> None:
        media = self.media.get(ask.prompt)
        packed = None if media is None else pack(media.inputs_for(prompt))
        session.submit(rid, prompt, self.material.num_tokens_of(ask), ask.logprobs, packed)

    def packed_media(self) -> dict[str, bytes]:
        return {name: pack(one.inputs_for(one.token_ids)) for name, one in self.media.items()}

    def expect(self, ask: Ask, trace: Trace) -> Continuation:
        """As in `Proof`; answers are told apart by the name of the prompt, for other pictures give the same ids."""
        num_tokens, key = self.material.num_tokens_of(ask), (ask.prompt, tuple(trace.prompt_ids))
        known = self._answers.get(key)
        if known is None or list(known.output_ids[:num_tokens]) != trace.output_ids[:num_tokens]:
            self._look_at(ask.prompt)
            outputs = trace.output_ids
            known = self.reference.greedy(trace.prompt_ids, num_tokens, outputs, RELATIVE_BOUND)
            self._answers[key] = known
        return known.head(num_tokens)

    def name_in_reference(self, tensor: str) -> str:
        """transformers puts the parts of such models below `model`, and renames what it reads."""
        modules = dict(self.reference.model.named_parameters())
        inside = tensor.removeprefix("language_model.").removeprefix("model.")
        without = inside.replace("vision_tower.vision_model.", "vision_tower.")
        names = (tensor, inside, f"model.language_model.{inside}", f"model.{inside}")
        names += (without, f"model.{without}")
        return next((name for name in names if name in modules), tensor)

    def first_medium(self, rid: str) -> int | None:
        prompt = self.media.get(rid.partition("-")[2])
        return None if prompt is None or not prompt.media_at else prompt.media_at[0]

    def logits_of(self, rid: str, token_ids: list[int]) -> torch.Tensor:
        self._look_at(rid.partition("-")[2])
        return self.reference.logits(token_ids)

    def _look_at(self, name: str) -> None:
        assert isinstance(self.reference, MediaReference)
        self.reference.seen = self.media.get(name)


def family_of(architectures: Sequence[str]) -> MediaFamily | None:
    """The family that knows how to prove an architecture, or a class that it extends; None for a text model or an unknown one.

    A class from outside names one that is not here: `media_family = "my_package.media:Acme"`. Raises ConfigError when that cannot be
    imported.
    """
    from sglang.verify.media_families import FAMILIES  # late: families import this module

    names = list(architectures)
    for name in architectures:
        own = named_by_class(name, MEDIA_FAMILY)
        if own is not None:
            return own()
        if name in ModelRegistry.models:
            names += [base.__name__ for base in ModelRegistry.models[name].__mro__]
    return next((FAMILIES[name] for name in names if name in FAMILIES), None)


def require_family(architectures: Sequence[str]) -> MediaFamily:
    """Raises ConfigError when there is none."""
    family = family_of(architectures)
    if family is None:
        raise ConfigError(f"no media are known for {', '.join(architectures)}; only text is proven")
    return family
