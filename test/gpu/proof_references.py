"""What transformers says to a text: in float32 on the CPU, which is right, and in bfloat16 on the device, whose error is the measure of ours."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from sglang.test.hf_media import HFMediaModel
from sglang.verify.reference import ReferenceModel


@dataclasses.dataclass(frozen=True)
class Prompt:
    """Token ids, those of a text with pictures being where the pictures are; `text` and `images` for models that see."""

    ids: tuple[int, ...]
    text: str = ""
    images: tuple[Any, ...] = ()


@dataclasses.dataclass(frozen=True)
class Scores:
    """About the tokens of a text behind the first, float32 [n - 1] each: their logprobs, and how far their logits are below the largest one of
    their place. `scale`: the largest magnitude of a logit."""

    logprobs: torch.Tensor
    behind: torch.Tensor
    scale: float


class References:
    """Both models of a checkpoint, loaded when they are first asked. Answers are kept.

    Raises whatever transformers raises for a folder that it cannot load.
    """

    def __init__(self, folder: str, device: str, takes_media: bool) -> None:
        self._folder = folder
        self._device = device
        self._model_class = _MediaModel if takes_media else _TextModel
        self._models: dict[torch.dtype, Any] = {}
        self._known: dict[Any, Scores] = {}

    def exact(self, prompt: Prompt, output_ids: list[int]) -> Scores:
        """In float32."""
        return self._scores(torch.float32, "cpu", prompt, output_ids)

    def rounded(self, prompt: Prompt, output_ids: list[int]) -> Scores:
        """In bfloat16."""
        return self._scores(torch.bfloat16, self._device, prompt, output_ids)

    def media_prompt(self, text: str, images: list[Any]) -> Prompt:
        """A text with placeholders as the ids that the model gets."""
        ids = self._model(torch.float32, "cpu").ids_of(text, images)
        return Prompt(tuple(ids), text, tuple(images))

    def _scores(
        self, dtype: torch.dtype, device: str, prompt: Prompt, output_ids: list[int]
    ) -> Scores:
        key = (dtype, prompt.ids, tuple(map(id, prompt.images)), tuple(output_ids))
        if key not in self._known:
            # The last token predicts nothing that is compared.
            logits = self._model(dtype, device).logits(prompt, output_ids[:-1])
            self._known[key] = _scores_of(logits, [*prompt.ids, *output_ids])
        return self._known[key]

    def _model(self, dtype: torch.dtype, device: str) -> Any:
        if dtype not in self._models:
            self._models[dtype] = self._model_class(self._folder, dtype, device)
        return self._models[dtype]


def _scores_of(logits: torch.Tensor, token_ids: list[int]) -> Scores:
    """`logits` float32 [n - 1, V] for n tokens."""
    targets = torch.tensor(token_ids[1:])[:, None]
    chosen = logits.gather(1, targets)[:, 0]
    return Scores(
        logprobs=chosen - logits.logsumexp(dim=-1),
        behind=logits.amax(dim=-1) - chosen,
        scale=float(logits.abs().max()),
    )


class _TextModel:
    def __init__(self, folder: str, dtype: torch.dtype, device: str) -> None:
        self._model = ReferenceModel(folder, dtype=dtype, device=device)

    def logits(self, prompt: Prompt, output_ids: list[int]) -> torch.Tensor:
        return self._model.logits([*prompt.ids, *output_ids])


class _MediaModel:
    def __init__(self, folder: str, dtype: torch.dtype, device: str) -> None:
        self._model = HFMediaModel(folder, str(dtype).removeprefix("torch."), device)

    def ids_of(self, text: str, images: list[Any]) -> list[int]:
        return self._model.inputs_of(text, images, [])["input_ids"][0].tolist()

    @torch.inference_mode()
    def logits(self, prompt: Prompt, output_ids: list[int]) -> torch.Tensor:
        inputs = self._model.inputs_of(prompt.text, list(prompt.images), [])
        more = torch.tensor([output_ids], dtype=torch.long, device=self._model.model.device)
        fillers = {"input_ids": more, "attention_mask": torch.ones_like(more)}
        fillers["mm_token_type_ids"] = torch.zeros_like(more)
        for name, filler in fillers.items():
            if name in inputs:
                values = inputs[name]
                inputs[name] = torch.cat([values, filler.to(values.dtype)], dim=1)
        return self._model.model(**inputs, use_cache=False).logits[0].float().cpu()
