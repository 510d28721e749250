"""Transformers and this engine behind one interface, so that a test can compare what they say to the same prompts.

    with HFRunner(path, torch_dtype=torch.float32) as hf, SRTRunner(path, torch_dtype=torch.float32) as srt:
        check_close_model_outputs(hf.forward(prompts), srt.forward(prompts), 1e-3, 1e-3, 1.0)

Both start processes: call them below `if __name__ == "__main__":` or from a test.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import torch

from sglang.srt.entrypoints.engine import Engine
from sglang.srt.multimodal.media.loader import LoadOptions, load_image
from sglang.srt.multimodal.media.sources import SourcePolicy
from sglang.srt.utils.errors import ConfigError
from sglang.test.hf_process import MODEL_TYPES, Ask, Load, serve
from sglang.test.model_output import (
    NUM_TOP_LOGPROBS,
    ModelOutput,
    check_close_model_outputs,
)
from sglang.test.prompts import DEFAULT_PROMPTS
from sglang.test.test_utils import calculate_rouge_l, get_similarities

__all__ = [
    "DEFAULT_PROMPTS",
    "NUM_TOP_LOGPROBS",
    "HFRunner",
    "ModelOutput",
    "SRTRunner",
    "calculate_rouge_l",
    "check_close_model_outputs",
    "get_dtype_str",
    "get_similarities",
]

# Seconds in which transformers must have loaded, or answered.
_HF_PATIENCE = 3600.0
# Seconds in which it may leave by itself.
_LEAVING_PATIENCE = 10.0


def get_dtype_str(torch_dtype: torch.dtype) -> str:
    """`float16` for torch.float16."""
    return str(torch_dtype).removeprefix("torch.")


class HFRunner:
    """Transformers in a child process: greedy generation with logprobs, or vectors, or scores.

    Raises ConfigError for an unknown `model_type`, RuntimeError with the child's reason when it cannot load or answer.
    `patch_model_do_sample_false` changes nothing: generation is greedy in any case.
    """

    def __init__(
        self,
        model_path: str,
        torch_dtype: torch.dtype,
        model_type: str = "generation",
        output_str_only: bool = False,
        trust_remote_code: bool = False,
        patch_model_do_sample_false: bool = False,
        matryoshka_dim: int | None = None,
    ) -> None:
        _check_model_type(model_type)
        dtype = get_dtype_str(torch_dtype)
        load = Load(
            model_path, dtype, model_type, output_str_only, trust_remote_code, matryoshka_dim
        )
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, load), daemon=True)
        self._process.start()
        theirs.close()  # so that the end of the process is the end of the pipe
        try:
            _receive(self._connection)
        except RuntimeError:
            self.terminate()
            raise

    def forward(
        self,
        prompts: list[Any] | None = None,
        image_data: list[Any] | None = None,
        max_new_tokens: int = 8,
        lora_paths: list[str] | None = None,
        token_ids_logprob: list[int] | None = None,
    ) -> ModelOutput:
        """What the model says to every prompt (`DEFAULT_PROMPTS` by default).

        `image_data` has for every prompt an image (as `Engine` takes them), a list of images, or None; the prompt is then a text with the
        model's placeholders. Raises ValueError for another number of entries.
        """
        _refuse_adapters(lora_paths)
        asked = list(DEFAULT_PROMPTS if prompts is None else prompts)
        images = [_loaded(entry) for entry in _per_prompt(image_data, asked)]
        self._connection.send(Ask(asked, max_new_tokens, token_ids_logprob, images))
        return _receive(self._connection)

    def terminate(self) -> None:
        """End the process; safe to call twice."""
        self._connection.close()
        self._process.join(_LEAVING_PATIENCE)
        self._process.kill()
        self._process.join()

    def __enter__(self) -> HFRunner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.terminate()


class SRTRunner:
    """An `Engine` with the interface of `HFRunner`; the keywords are flags of the engine.

    Raises what `Engine` raises, for flags that are not implemented too.
    """

    def __init__(
        self,
        model_path: str,
        torch_dtype: torch.dtype,
        model_type: str = "generation",
        tp_size: int = 1,
        model_impl: str = "auto",
        port: int | None = None,
        lora_paths: list[str] | None = None,
        max_loras_per_batch: int = 4,
        attention_backend: str | None = None,
        prefill_attention_backend: str | None = None,
        decode_attention_backend: str | None = None,
        lora_backend: str = "csgmv",
        disable_cuda_graph: bool = False,
        disable_radix_cache: bool = False,
        chunked_prefill_size: int | None = None,
        context_length: int | None = None,
        max_total_tokens: int | None = None,
        page_size: int | None = None,
        dp_size: int = 1,
        tokenizer_path: str | None = None,
        mem_fraction_static: float = 0.65,
        trust_remote_code: bool = False,
        speculative_draft_model_path: str | None = None,
        speculative_draft_model_revision: str | None = None,
        speculative_algorithm: str | None = None,
        speculative_num_steps: int | None = None,
        speculative_eagle_topk: int | None = None,
        speculative_num_draft_tokens: int | None = None,
        speculative_ngram_min_match_window_size: int | None = None,
        speculative_ngram_max_match_window_size: int | None = None,
        disable_overlap_schedule: bool = False,
        disable_custom_all_reduce: bool = False,
        torchao_config: str | None = None,
        cuda_graph_max_bs: int = 4,
        sleep_on_idle: bool = False,
        max_lora_rank: int | None = None,
        lora_target_modules: list[str] | None = None,
        enable_lora: bool | None = None,
        max_loaded_loras: int | None = None,
        json_model_override_args: dict[str, Any] | None = None,
        lora_eviction_policy: str = "lru",
        enable_deterministic_inference: bool = False,
        **kwargs: Any,
    ) -> None:
        flags = {name: value for name, value in locals().items() if name not in _NOT_FLAGS}
        if not lora_paths and not enable_lora:
            flags = {name: value for name, value in flags.items() if name not in _LORA_SETTINGS}
        _check_model_type(model_type)
        self.model_type = model_type
        if model_type != "generation":
            flags["is_embedding"] = True
        flags["dtype"] = get_dtype_str(torch_dtype)
        # What is None is left to the engine.
        flags = {name: value for name, value in flags.items() if value is not None}
        self.engine = Engine(**flags, **kwargs)

    def forward(
        self,
        prompts: list[Any] | None = None,
        image_data: list[Any] | None = None,
        max_new_tokens: int = 8,
        lora_paths: list[str] | None = None,
        logprob_start_len: int = 0,
        top_k: int | None = None,
        token_ids_logprob: list[int] | None = None,
    ) -> ModelOutput:
        """Prompts one by one, with logprobs from position 0; `image_data` as for `HFRunner`. Raises ValueError when a text is empty."""
        _refuse_adapters(lora_paths)
        asked = list(DEFAULT_PROMPTS if prompts is None else prompts)
        images = _per_prompt(image_data, asked)
        if self.model_type != "generation":
            return self._encode(asked, images)
        output = ModelOutput(**{name: [] for name in _GENERATED})
        for prompt, image in zip(asked, images, strict=True):
            answer = self.engine.generate(
                **_prompt(prompt),
                image_data=image,
                sampling_params=_greedy(max_new_tokens, top_k),
                return_logprob=True,
                logprob_start_len=logprob_start_len,
                top_logprobs_num=NUM_TOP_LOGPROBS,
                token_ids_logprob=token_ids_logprob,
                return_text_in_logprobs=True,
            )
            _append(output, prompt, answer, token_ids_logprob)
        return output

    def batch_forward(
        self,
        prompts: list[Any] | None = None,
        image_data: list[Any] | None = None,
        max_new_tokens: int = 8,
        lora_paths: list[str] | None = None,
    ) -> ModelOutput:
        """All prompts in one call: texts and token ids only."""
        _refuse_adapters(lora_paths)
        asked = list(DEFAULT_PROMPTS if prompts is None else prompts)
        images = _per_prompt(image_data, asked)
        if self.model_type != "generation":
            return self._encode(asked, images)
        is_text = all(isinstance(prompt, str) for prompt in asked)
        batch: dict[str, Any] = {"prompt" if is_text else "input_ids": asked}
        if any(image is not None for image in images):
            batch["image_data"] = images
        answers = self.engine.generate(**batch, sampling_params=_greedy(max_new_tokens, None))
        for prompt, answer in zip(asked, answers, strict=True):
            _refuse_empty(prompt, answer)
        return ModelOutput(
            output_strs=[answer["text"] for answer in answers],
            output_ids=[answer["output_ids"] for answer in answers],
        )

    def load_lora_adapter(self, lora_name: str, lora_path: str, pinned: bool = False) -> Any:
        """Raises ConfigError: adapters are not supported yet."""
        raise ConfigError(
            f"adapter {lora_name!r}: LoRA is not supported yet; merge it into the model"
        )

    def unload_lora_adapter(self, lora_name: str) -> Any:
        """Raises ConfigError: adapters are not supported yet."""
        raise ConfigError(f"adapter {lora_name!r}: LoRA is not supported yet; none is loaded")

    def terminate(self) -> None:
        """End the engine; safe to call twice."""
        self.engine.shutdown()

    def _encode(self, prompts: list[Any], images: list[Any]) -> ModelOutput:
        if any(image is not None for image in images):
            raise ConfigError("image_data is supported for model_type='generation' only")
        answers = [self.engine.encode(prompt)["embedding"] for prompt in prompts]
        if self.model_type == "embedding":
            return ModelOutput(embed_logits=answers)
        return ModelOutput(scores=[answer[-1] for answer in answers])

    def __enter__(self) -> SRTRunner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.terminate()


_NOT_FLAGS = ("self", "torch_dtype", "model_type", "kwargs")
_LORA_SETTINGS = (
    "lora_paths",
    "max_loras_per_batch",
    "lora_backend",
    "max_lora_rank",
    "lora_target_modules",
    "enable_lora",
    "max_loaded_loras",
    "lora_eviction_policy",
)
_GENERATED = (
    "output_strs",
    "output_ids",
    "top_input_logprobs",
    "top_output_logprobs",
    "top_output_logprob_idx",
    "input_token_logprobs_lst",
    "output_token_logprobs_lst",
    "token_ids_input_logprobs",
    "token_ids_output_logprobs",
)


def _append(output: ModelOutput, prompt: Any, answer: Any, token_ids: list[int] | None) -> None:
    """What the engine said to one prompt, in the lists of transformers: what follows each token of the prompt, its last one included."""
    _refuse_empty(prompt, answer)
    meta = answer["meta_info"]
    output.output_strs.append(answer["text"])
    output.output_ids.append(answer["output_ids"])
    output.input_token_logprobs_lst.append(meta["input_token_logprobs"])
    output.output_token_logprobs_lst.append(meta["output_token_logprobs"])
    # The first token has no logprob; the last one is followed by the first output.
    inputs = [*meta["input_top_logprobs"][1:], meta["output_top_logprobs"][0]]
    output.top_input_logprobs.append(_values(inputs))
    output.top_output_logprobs.append(_values(meta["output_top_logprobs"]))
    output.top_output_logprob_idx.append(
        [[token for _, token, *_ in row] for row in meta["output_top_logprobs"]]
    )
    if token_ids is not None:
        first, *others = meta["output_token_ids_logprobs"]
        inputs = [*meta["input_token_ids_logprobs"][1:], first]
        output.token_ids_input_logprobs.append(_values(inputs))
        output.token_ids_output_logprobs.append(_values([first, *others]))


def _values(rows: list[Any]) -> list[list[float]]:
    return [[value for value, *_ in row] for row in rows]


def _refuse_empty(prompt: Any, answer: Any) -> None:
    if not answer["text"]:
        raise ValueError(f"the engine generated no text for the prompt {str(prompt)[:80]!r}")


def _prompt(prompt: Any) -> dict[str, Any]:
    return {"prompt": prompt} if isinstance(prompt, str) else {"input_ids": list(prompt)}


def _greedy(max_new_tokens: int, top_k: int | None) -> dict[str, Any]:
    params: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": 0}
    return params if top_k is None else {**params, "top_k": top_k}


def _check_model_type(model_type: str) -> None:
    if model_type not in MODEL_TYPES:
        raise ConfigError(
            f"model_type={model_type!r} is unknown; allowed: {', '.join(MODEL_TYPES)}"
        )


def _refuse_adapters(lora_paths: Any) -> None:
    if lora_paths is not None and any(lora_paths):
        raise ConfigError("lora_paths are not supported yet; merge the adapters into the model")


def _per_prompt(image_data: list[Any] | None, prompts: list[Any]) -> list[Any]:
    images = [None] * len(prompts) if image_data is None else list(image_data)
    if len(images) != len(prompts):
        raise ValueError(f"image_data has {len(images)} entries for {len(prompts)} prompts")
    return images


def _loaded(entry: Any) -> list[Any]:
    """The PIL images of one prompt. Raises RequestError for what is no image."""
    if entry is None:
        return []
    options = LoadOptions(SourcePolicy(any_path=True))
    return [load_image(item, options) for item in (entry if isinstance(entry, list) else [entry])]


def _receive(connection: Connection) -> Any:
    if not connection.poll(_HF_PATIENCE):
        raise RuntimeError(f"transformers gave no answer for {_HF_PATIENCE:.0f} s")
    try:
        failure, value = connection.recv()
    except EOFError:
        raise RuntimeError("the process of transformers has ended") from None
    if failure:
        raise RuntimeError(f"transformers: {failure}")
    return value
