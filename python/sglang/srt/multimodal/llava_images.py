"""The image processor of a LLaVA as its authors publish it: how the tower wants its squares, cut as config.json says."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sglang.srt.configs.llava import tower_path
from sglang.srt.utils.errors import ConfigError
from sglang.srt.utils.hf_transformers_utils import find_file, get_config
from sglang.srt.utils.light_transformers import import_processors

_KEPT = ("size", "crop_size", "image_mean", "image_std", "resample", "do_center_crop")


def original_llava_images(raw: Mapping[str, Any], model_path: str) -> Any:
    """The class of transformers that prepares pictures alike. `raw` is the model's config.json.

    Raises ConfigError when the tower's files say nothing about pictures.
    """
    # Heavy; and by its module, since 5.17 hides the name of the package where torchvision is missing.
    import_processors()
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    path = find_file(tower_path(raw, model_path), "preprocessor_config.json")
    if path is None:
        raise ConfigError(
            f"the vision tower {raw.get('mm_vision_tower')!r} has no preprocessor_config.json"
        )
    of_tower = json.loads(Path(path).read_text(encoding="utf-8"))
    settings = {key: of_tower[key] for key in _KEPT if key in of_tower}
    config = get_config(model_path)
    names = {"llava": "Llava", "llava_next": "LlavaNext", "llava_onevision": "LlavaOnevision"}
    settings["image_processor_type"] = f"{names[config.model_type]}ImageProcessor"
    if config.model_type == "llava":
        settings["do_pad"] = raw.get("image_aspect_ratio") == "pad"
    else:
        settings["image_grid_pinpoints"] = config.image_grid_pinpoints
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "preprocessor_config.json").write_text(json.dumps(settings))
        return AutoImageProcessor.from_pretrained(folder)
