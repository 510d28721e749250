"""Transformers' model and processor on chat messages with media: what servers, runners and benchmarks are compared with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

NUM_TOP_LOGPROBS = 5
_BLOCK = 4  # patches that one row of Qwen-VL stands for


@dataclasses.dataclass(frozen=True)
class MediaAnswer:
    """A greedy answer. `top_logprobs[i]` are the logprobs of the most likely tokens at step i, best first; `final_logits` [V] those that
    the first token was chosen from."""

    text: str
    output_ids: list[int]
    prompt_tokens: int
    top_logprobs: list[list[float]]
    final_logits: torch.Tensor


class HFMediaModel:
    """A model of transformers that takes media, with its processor.

    Where transformers builds no processor because torchvision is missing, the parts of Qwen-VL models are used one by one.
    Raises whatever transformers raises for a checkpoint that it cannot load.
    """

    def __init__(
        self,
        model_path: str,
        dtype: str = "float32",
        device: str = "cpu",
        trust_remote_code: bool = False,
    ) -> None:
        from transformers import AutoModelForMultimodalLM, AutoTokenizer

        options = {"trust_remote_code": trust_remote_code}
        self.tokenizer = AutoTokenizer.from_pretrained(model_path, **options)
        model: Any = AutoModelForMultimodalLM.from_pretrained(
            model_path, dtype=getattr(torch, dtype), attn_implementation="eager", **options
        )
        self.model = model.eval().to(device)
        self._processor = _load_processor(model_path, options)
        self._image_processor = None
        if self._processor is None:
            # By its module: 5.17 hides the name of the package where torchvision is missing.
            from transformers.models.auto.image_processing_auto import AutoImageProcessor

            self._image_processor = AutoImageProcessor.from_pretrained(model_path, **options)

    def render(self, messages: Sequence[dict[str, Any]]) -> str:
        """The prompt: `messages` hold texts, or parts of the types text, image, video, audio."""
        templated = self.tokenizer if self.tokenizer.chat_template else self._processor
        return templated.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=False
        )

    def answer(
        self,
        prompt: str,
        images: Sequence[Any] = (),
        audios: Sequence[Any] = (),
        max_new_tokens: int = 8,
        ignore_eos: bool = False,
    ) -> MediaAnswer:
        """Greedy, for a rendered prompt. `images` are PIL images, `audios` float arrays at the model's sample rate."""
        inputs = self.inputs_of(prompt, list(images), list(audios))
        count = inputs["input_ids"].shape[1]
        options: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None}
        options |= {"eos_token_id": None} if ignore_eos else {}
        with torch.inference_mode():
            found = self.model.generate(
                **inputs,
                **options,
                top_k=None,
                max_new_tokens=max_new_tokens,
                return_dict_in_generate=True,
                output_logits=True,
                pad_token_id=0,
            )
        logits = torch.stack([step[0] for step in found.logits]).float().cpu()
        new_ids = found.sequences[0, count:].tolist()
        return MediaAnswer(
            text=self.tokenizer.decode(new_ids, skip_special_tokens=True),
            output_ids=new_ids,
            prompt_tokens=count,
            top_logprobs=logits.log_softmax(-1).topk(NUM_TOP_LOGPROBS).values.tolist(),
            final_logits=logits[0],
        )

    def inputs_of(
        self,
        prompt: str,
        images: list[Any],
        audios: list[Any],
        add_special_tokens: bool = False,
    ) -> dict[str, Any]:
        """What the model takes, on its device. `add_special_tokens`: as for a text that is no rendered conversation."""
        texts = {"return_tensors": "pt", "add_special_tokens": add_special_tokens}
        if not images and not audios:
            ids = self.tokenizer(prompt, **texts)
            inputs = {key: ids[key] for key in ("input_ids", "attention_mask")}
        elif self._processor is not None:
            media = {"images": images or None, "audio": audios or None}
            given = {key: value for key, value in media.items() if value is not None}
            inputs = self._processor(text=[prompt], **texts, **given)
        else:
            inputs = self._inputs_of_parts(prompt, images, texts)
        dtype = self.model.dtype
        return {
            key: value.to(self.model.device, dtype if value.is_floating_point() else None)
            for key, value in inputs.items()
        }

    def _inputs_of_parts(
        self, prompt: str, images: list[Any], texts: dict[str, Any]
    ) -> dict[str, Any]:
        """As the processor of Qwen-VL does: one placeholder becomes as many as the image has rows."""
        assert self._image_processor is not None
        features = dict(self._image_processor(images=images, return_tensors="pt"))
        token_id = self.model.config.image_token_id
        pad = self.tokenizer.convert_ids_to_tokens(token_id)
        first, *others = prompt.split(pad)
        rows = (features["image_grid_thw"].prod(-1) // _BLOCK).tolist()
        text = first + "".join(
            pad * count + piece for count, piece in zip(rows, others, strict=True)
        )
        ids = self.tokenizer(text, **texts)
        kinds = (ids["input_ids"] == token_id).int()
        return {
            "input_ids": ids["input_ids"],
            "attention_mask": ids["attention_mask"],
            "mm_token_type_ids": kinds,
            **features,
        }


def _load_processor(model_path: str, options: dict[str, Any]) -> Any:
    from transformers import AutoProcessor, ProcessorMixin

    try:
        found = AutoProcessor.from_pretrained(model_path, **options)
    except ImportError:  # torchvision, for processors with a slot for videos
        return None
    return found if isinstance(found, ProcessorMixin) else None
