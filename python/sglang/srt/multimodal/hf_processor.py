"""The Hugging Face processor of a model, or its parts where the whole cannot be built.

Without torchvision, transformers refuses every processor that has a slot for videos. Its image processors have twins that need only
Pillow, and the rest of such a processor is text work that ours do themselves, so the parts are enough.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

from sglang.srt.configs.llava import is_original_llava
from sglang.srt.multimodal.llava_images import original_llava_images
from sglang.srt.utils.errors import ConfigError
from sglang.srt.utils.hf_transformers_utils import find_file
from sglang.srt.utils.light_transformers import import_processors

logger = logging.getLogger(__name__)

_customized: dict[str, Any] = {}


@dataclasses.dataclass
class ProcessorParts:
    """What a processor is made of. `settings` and `video_settings` are their JSON files, or empty."""

    tokenizer: Any
    image_processor: Any = None
    video_processor: Any = None
    feature_extractor: Any = None
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    video_settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    whole: Any = None  # the Hugging Face processor, where there is one

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The whole processor's call. Raises ConfigError where it could not be built."""
        if self.whole is None:
            raise ConfigError(
                "this model needs its whole Hugging Face processor, which could not be built; install torchvision"
            )
        return self.whole(*args, **kwargs)


def customize(model_type: str, processor_class: Any) -> None:
    """Have `processor_class.from_pretrained` make the processors of a model type."""
    _customized[model_type] = processor_class


def load_processor(
    model_path: str,
    tokenizer: Any,
    *,
    model_type: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    use_fast: bool | None = None,
) -> ProcessorParts:
    """Everything that prepares media for a model. Raises ConfigError for a model that has neither processor nor parts."""
    raw = _read_json(model_path, "config.json", revision)
    if is_original_llava(raw):
        return ProcessorParts(tokenizer, original_llava_images(raw, model_path))
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    if use_fast is not None:
        options["use_fast"] = use_fast
    whole = _load_whole(model_path, model_type, options)
    settings = _read_json(model_path, "processor_config.json", revision)
    video_settings = _read_json(model_path, "video_preprocessor_config.json", revision)
    parts = ProcessorParts(
        tokenizer=tokenizer,
        settings=settings,
        video_settings=video_settings or settings.get("video_processor") or {},
        whole=whole,
    )
    known = vars(whole) if whole is not None else {}
    for name in ("image_processor", "video_processor", "feature_extractor"):
        setattr(parts, name, known.get(name))
    _fill(parts, model_path, options)
    return parts


def _load_whole(model_path: str, model_type: str | None, options: dict[str, Any]) -> Any:
    import_processors()
    from transformers import AutoProcessor, ProcessorMixin

    if model_type in _customized:
        return _customized[model_type].from_pretrained(model_path, **options)
    try:
        found = AutoProcessor.from_pretrained(model_path, **options)
    except (ImportError, OSError, TypeError, ValueError, KeyError, AttributeError) as error:
        # No such class, a file or a library is missing: its parts may do.
        logger.info(
            "Media of %s go through the parts of its processor, because transformers cannot build the whole: %s",
            model_path,
            _first_line(error).partition(". ")[0],
        )
        return None
    return found if isinstance(found, ProcessorMixin) else None


def _fill(parts: ProcessorParts, model_path: str, options: dict[str, Any]) -> None:
    """Load what the whole processor did not bring."""
    from transformers import AutoFeatureExtractor

    # By its module: 5.17 hides the name of the package where torchvision is missing.
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    problems = []
    for name, loader in (
        ("image_processor", AutoImageProcessor),
        ("feature_extractor", AutoFeatureExtractor),
    ):
        if getattr(parts, name) is not None:
            continue
        try:
            setattr(parts, name, loader.from_pretrained(model_path, **options))
        except (ImportError, OSError, TypeError, ValueError, KeyError) as error:
            problems.append(f"{name}: {_first_line(error)}")
    if parts.image_processor is None and parts.feature_extractor is None:
        raise ConfigError(
            f"model {model_path!r} takes media but nothing that prepares them could be loaded ({'; '.join(problems)}); "
            "install Pillow, and torchvision if the model's image processor asks for it"
        )


def _read_json(model_path: str, name: str, revision: str | None) -> dict[str, Any]:
    path = find_file(model_path, name, revision)
    if path is None:
        return {}
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from error
    return value if isinstance(value, dict) else {}


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
