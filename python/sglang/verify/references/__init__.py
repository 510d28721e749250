"""References of our own, for architectures that transformers has no class for. They are here, and not beside the tests, because
`sglang verify --tiny` compares with them in an installed package too.

A reference is a function from a config.json (a mapping, as published) to a module whose parameters have the published names and whose
`forward(input_ids)`, int64 [1, T], gives logits [1, T, V]; it caches nothing and shares no code with the model files. To add one,
write the function in a file of this folder and name it in `REFERENCES`. Classes derive from `OwnReference`. A model class from outside
names its own: `reference = "my_package.reference:acme"`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sglang.verify.outside import REFERENCE, named_by_class

# architecture -> "module in this folder:function"
REFERENCES: dict[str, str] = {
    "BaiChuanForCausalLM": "dense:baichuan",
    "BaichuanForCausalLM": "dense:baichuan",
    "BailingMoEForCausalLM": "moe:bailing_moe",
    "BailingMoeForCausalLM": "moe:bailing_moe",
    "BailingMoeV2ForCausalLM": "moe:bailing_moe",
    "ChatGLMForCausalLM": "dense:chatglm",
    "ChatGLMForConditionalGeneration": "dense:chatglm",
    "ChatGLMModel": "dense:chatglm",
    "DeepseekForCausalLM": "moe:deepseek",
    "ExaoneForCausalLM": "dense:exaone",
    "Grok1ForCausalLM": "moe:grok1",
    "Grok1ModelForCausalLM": "moe:grok1",
    "InternLM2ForCausalLM": "dense:internlm2",
    "InternLM3ForCausalLM": "dense:internlm3",
    "MiMoForCausalLM": "dense:mimo",
    "MiniCPMForCausalLM": "dense:minicpm",
    "OrionForCausalLM": "dense:orion",
    "Phi3SmallForCausalLM": "dense:phi3_small",
    "QWenLMHeadModel": "dense:qwen",
    "SolarForCausalLM": "dense:solar",
    "TeleFLMForCausalLM": "dense:teleflm",
    "XverseForCausalLM": "dense:xverse",
    "XverseMoeForCausalLM": "moe:xverse_moe",
}

# model_type -> the same, for classes of other names: a copy that `sglang new-model` began, a class of a plug-in.
MODEL_TYPES: dict[str, str] = {
    "TeleFLM": "dense:teleflm",
    "baichuan": "dense:baichuan",
    "bailing_moe": "moe:bailing_moe",
    "chatglm": "dense:chatglm",
    "deepseek": "moe:deepseek",
    "exaone": "dense:exaone",
    "grok-1": "moe:grok1",
    "internlm2": "dense:internlm2",
    "internlm3": "dense:internlm3",
    "mimo": "dense:mimo",
    "minicpm": "dense:minicpm",
    "orion": "dense:orion",
    "phi3small": "dense:phi3_small",
    "qwen": "dense:qwen",
    "solar": "dense:solar",
    "xverse": "moe:xverse",
}

Raw = Mapping[str, Any]


class OwnReference(nn.Module):
    """What the comparison asks of a reference besides `forward(input_ids)`."""

    config: Any  # set by `build_reference`

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @torch.inference_mode()
    def generate(
        self, ids: torch.Tensor, *, max_new_tokens: int, **options: Any
    ) -> torch.Tensor:  # int64 [B, n] -> [B, n + max_new_tokens]
        """Greedy, one sequence after the other; `options` of transformers' method that mean nothing here are passed over."""
        rows = []
        for row in ids:
            for _ in range(max_new_tokens):
                logits: torch.Tensor = self(row[None])
                row = torch.cat([row, logits[0, -1].argmax()[None]])
            rows.append(row)
        return torch.stack(rows)


def find_reference(raw: Raw) -> Callable[[Raw], OwnReference] | None:
    """The function that builds the reference of a config.json; None where transformers has the class.

    Raises ConfigError when a class from outside names one that cannot be imported.
    """
    for architecture in raw.get("architectures") or ():
        own = named_by_class(architecture, REFERENCE)
        if own is not None:
            return own
    named = [REFERENCES[name] for name in raw.get("architectures") or () if name in REFERENCES]
    if not named and _is_nameless(raw):
        named = [MODEL_TYPES[raw["model_type"]]]
    if not named:
        return None
    module, _, function = named[0].partition(":")
    return getattr(importlib.import_module(f"{__name__}.{module}"), function)


def _is_nameless(raw: Raw) -> bool:
    """A model type of ours with a class that transformers does not know either."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    known = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    return raw.get("model_type") in MODEL_TYPES and not known & set(raw.get("architectures") or ())


def build_reference(raw: Raw) -> OwnReference:
    """The reference of a config.json, float32, with torch's own initial values. Raises ValueError where there is none."""
    from sglang.srt.utils.hf_transformers_utils import published_config

    factory = find_reference(raw)
    if factory is None:
        raise ValueError(f"no reference of our own for {raw.get('architectures')}")
    model = factory(raw).eval()
    model.config = published_config(raw)
    return model


def load_reference(folder: str | Path, raw: Raw, dtype: torch.dtype, device: str) -> OwnReference:
    """The reference with the tensors of a checkpoint folder. Raises RuntimeError when a name or a shape differs."""
    from safetensors.torch import load_file

    model = build_reference(raw)
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        tensors.update(load_file(path))
    model.load_state_dict(tensors)
    return model.to(device=device, dtype=dtype)


def save_reference(model: OwnReference, folder: Path) -> None:
    """Write `model.safetensors`."""
    from safetensors.torch import save_file

    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
