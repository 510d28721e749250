"""`sglang verify` on a plug-in that sees: media are proven for a class that extends one with media, and what is wrong is found."""

from __future__ import annotations

from pathlib import Path

import pytest
from models.test_verify_command import verify, write_plugin

SEES = """
from sglang.srt.models.qwen2_vl import Qwen2VLForConditionalGeneration


class CustomQwen2VL(Qwen2VLForConditionalGeneration):
    def get_image_feature(self, items):
        return super().get_image_feature(items) * FACTOR


FACTOR = 1.0
EntryClass = CustomQwen2VL
"""


@pytest.mark.parametrize("factor", ["1.0", "1.01"])
def test_pictures_are_proven_for_a_class_from_outside(tmp_path: Path, factor: str) -> None:
    plugin = write_plugin(tmp_path, SEES.replace("1.0", factor))
    status, report = verify("--tiny", "CustomQwen2VL", cwd=tmp_path, plugin=plugin)
    assert "acme_models" in report["steps"]["checkpoint"]["summary"]
    forms = {form["name"]: form["passed"] for form in report["steps"]["forms"]["data"]["forms"]}
    pictures = [name for name in forms if name.startswith("media: ")]
    assert len(pictures) >= 5
    if factor == "1.0":
        assert status == 0 and all(forms.values())
    else:
        assert status == 1 and not any(forms[name] for name in pictures)
        texts = [passed for name, passed in forms.items() if "whole prefill" in name]
        assert texts and all(texts), "text is not touched"
