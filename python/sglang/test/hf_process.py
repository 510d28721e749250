"""The process in which `HFRunner` runs transformers: the model is loaded once, then lists of prompts are answered until the pipe closes.

Where transformers has no class of the architecture, generation is compared with the decoder of `sglang.verify.references`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch

from sglang.srt.utils.errors import ConfigError
from sglang.srt.utils.hf_transformers_utils import get_tokenizer, read_config_dict
from sglang.test.hf_media import HFMediaModel
from sglang.test.model_output import NUM_TOP_LOGPROBS, ModelOutput
from sglang.verify.media import family_of
from sglang.verify.reference import ReferenceModel, fetch_checkpoint

MODEL_TYPES = ("generation", "embedding", "reward", "cross_encoder")


@dataclasses.dataclass(frozen=True)
class Load:
    """What to load. `dtype` is a name of torch."""

    model_path: str
    dtype: str
    model_type: str
    output_str_only: bool
    trust_remote_code: bool
    matryoshka_dim: int | None


@dataclasses.dataclass(frozen=True)
class Ask:
    """One call of `HFRunner.forward`. A prompt is a text or token ids; for a cross encoder a pair of texts.

    `images` has for every prompt its PIL images; such a prompt is a text with the model's placeholders.
    """

    prompts: list[Any]
    max_new_tokens: int
    token_ids_logprob: list[int] | None
    images: list[list[Any]] = dataclasses.field(default_factory=list)


def serve(connection: Connection, load: Load) -> None:
    """Send an empty word when the model is there, then `(failure, output)` for every Ask."""
    try:
        answer = _answerer(load)
    except Exception as error:  # a process boundary
        connection.send((_describe(error), None))
        return
    connection.send(("", None))
    while True:
        try:
            ask = connection.recv()
        except EOFError:
            return
        try:
            connection.send(("", answer.answer(ask)))
        except Exception as error:  # a process boundary
            connection.send((_describe(error), None))


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _answerer(load: Load) -> Any:
    if load.model_type == "generation":
        folder = fetch_checkpoint(load.model_path)
        takes_media = family_of(read_config_dict(folder).get("architectures") or []) is not None
        return _MediaGenerator(load, folder) if takes_media else _Generator(load, folder)
    return _Embedder(load) if load.model_type == "embedding" else _Scorer(load)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


class _Generator:
    """Greedy continuations with the logprobs of every position."""

    def __init__(self, load: Load, folder: str) -> None:
        self._with_logprobs = not load.output_str_only
        self._tokenizer = get_tokenizer(folder, trust_remote_code=load.trust_remote_code)
        self._reference = ReferenceModel(
            folder,
            dtype=getattr(torch, load.dtype),
            device=_device(),
            trust_remote_code=load.trust_remote_code,
        )

    def answer(self, ask: Ask) -> ModelOutput:
        output = ModelOutput(output_strs=[], output_ids=[])
        if self._with_logprobs:
            for name in ("top_input_logprobs", "top_output_logprobs", "top_output_logprob_idx"):
                setattr(output, name, [])
            if ask.token_ids_logprob is not None:
                output.token_ids_input_logprobs, output.token_ids_output_logprobs = [], []
        for index, prompt in enumerate(ask.prompts):
            self._append(output, prompt, ask.images[index] if ask.images else [], ask)
        return output

    def _say(
        self, prompt: Any, images: list[Any], max_new_tokens: int
    ) -> tuple[list[int], torch.Tensor, torch.Tensor]:
        """New ids, what was said to choose each [n, V], and what was said behind every token of the prompt. Raises ConfigError."""
        if images:
            raise ConfigError("image_data was given to a model that takes no images")
        ids = self._tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        return *self._continue(ids, max_new_tokens), self._reference.logits(ids)

    def _append(self, output: ModelOutput, prompt: Any, images: list[Any], ask: Ask) -> None:
        new_ids, scores, logits = self._say(prompt, images, ask.max_new_tokens)
        output.output_ids.append(new_ids)
        output.output_strs.append(self._tokenizer.decode(new_ids, skip_special_tokens=True))
        if not self._with_logprobs:
            return
        prefill = torch.log_softmax(logits, dim=-1)
        decode = torch.log_softmax(scores.float(), dim=-1)
        best = decode.topk(NUM_TOP_LOGPROBS)
        output.top_input_logprobs.append(prefill.topk(NUM_TOP_LOGPROBS).values.tolist())
        output.top_output_logprobs.append(best.values.tolist())
        output.top_output_logprob_idx.append(best.indices.tolist())
        if ask.token_ids_logprob is not None:
            output.token_ids_input_logprobs.append(prefill[:, ask.token_ids_logprob].tolist())
            output.token_ids_output_logprobs.append(decode[:, ask.token_ids_logprob].tolist())

    @torch.inference_mode()
    def _continue(self, ids: list[int], max_new_tokens: int) -> tuple[list[int], torch.Tensor]:
        """New tokens, the one that ends the text included, and what the model said to choose each: float32 [n, V], on the host."""
        if self._reference.is_own:
            return self._continue_own(ids, max_new_tokens)
        model = self._reference.model
        found = model.generate(
            torch.tensor([ids], device=model.device),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=model.device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            return_dict_in_generate=True,
            output_scores=True,
        )
        scores = torch.stack([score[0] for score in found.scores]).float().cpu()
        return found.sequences[0, len(ids) :].tolist(), scores

    def _continue_own(self, ids: list[int], max_new_tokens: int) -> tuple[list[int], torch.Tensor]:
        ends = self._reference.model.config.eos_token_id
        stops = set(ends if isinstance(ends, list) else [ends])
        new_ids: list[int] = []
        rows = []
        while len(new_ids) < max_new_tokens and not stops & set(new_ids):
            rows.append(self._reference.logits([*ids, *new_ids])[-1])
            new_ids.append(int(rows[-1].argmax()))
        return new_ids, torch.stack(rows)


class _MediaGenerator(_Generator):
    """As `_Generator`, for a model that takes images, with its processor."""

    def __init__(self, load: Load, folder: str) -> None:
        self._with_logprobs = not load.output_str_only
        self._seeing = HFMediaModel(folder, load.dtype, _device(), load.trust_remote_code)
        self._tokenizer = self._seeing.tokenizer

    @torch.inference_mode()
    def _say(
        self, prompt: Any, images: list[Any], max_new_tokens: int
    ) -> tuple[list[int], torch.Tensor, torch.Tensor]:
        model = self._seeing.model
        if isinstance(prompt, str):
            inputs = self._seeing.inputs_of(prompt, images, [], add_special_tokens=True)
        elif images:
            raise ConfigError("a prompt with image_data must be a text")
        else:
            ids = torch.tensor([list(prompt)], device=model.device)
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        logits = model(**inputs, use_cache=False).logits[0].float().cpu()
        found = model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            return_dict_in_generate=True,
            output_logits=True,
        )
        scores = torch.stack([step[0] for step in found.logits]).float().cpu()
        return found.sequences[0, inputs["input_ids"].shape[1] :].tolist(), scores, logits


class _Embedder:
    """The state of the last token behind the last norm, of length one."""

    def __init__(self, load: Load) -> None:
        from transformers import AutoModel

        self._model = _load(AutoModel, load)
        self._tokenizer = get_tokenizer(load.model_path, trust_remote_code=load.trust_remote_code)
        self._dim = load.matryoshka_dim

    @torch.inference_mode()
    def answer(self, ask: Ask) -> ModelOutput:
        vectors = []
        for prompt in ask.prompts:
            inputs = self._tokenizer(prompt, return_tensors="pt").to(self._model.device)
            state = self._model(**inputs).last_hidden_state[0, -1].float()[: self._dim]
            vectors.append(torch.nn.functional.normalize(state, dim=-1).tolist())
        return ModelOutput(embed_logits=vectors)


class _Scorer:
    """One number per prompt. A prompt is a text, a pair of texts or a conversation (a list of messages)."""

    def __init__(self, load: Load) -> None:
        from transformers import AutoModelForSequenceClassification

        self._model = _load(AutoModelForSequenceClassification, load)
        self._tokenizer = get_tokenizer(load.model_path, trust_remote_code=load.trust_remote_code)

    @torch.inference_mode()
    def answer(self, ask: Ask) -> ModelOutput:
        return ModelOutput(scores=[self._score(prompt) for prompt in ask.prompts])

    def _score(self, prompt: Any) -> float:
        texts: Sequence[str] = (prompt,)
        if not isinstance(prompt, str):
            is_pair = all(isinstance(part, str) for part in prompt)
            text = (
                prompt if is_pair else self._tokenizer.apply_chat_template(prompt, tokenize=False)
            )
            texts = text if is_pair else (text,)
        inputs = self._tokenizer(*texts, return_tensors="pt").to(self._model.device)
        return float(self._model(**inputs).logits[0].float().squeeze())


def _load(auto_class: Any, load: Load) -> Any:
    model = auto_class.from_pretrained(
        load.model_path,
        dtype=getattr(torch, load.dtype),
        trust_remote_code=load.trust_remote_code,
    )
    return model.eval().to(_device())
