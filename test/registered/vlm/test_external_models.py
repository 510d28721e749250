"""A model and a processor of an external package in an `Engine`: a text prompt, and one with an image."""

from __future__ import annotations

import contextlib
import tempfile
import unittest
from pathlib import Path

import sglang as sgl
from sglang.srt.environ import envs
from sglang.test.media_files import draw
from sglang.test.tiny_vlm import write_vlm_twin

PACKAGE = "sglang.test.external_models"
ARCHITECTURE = "Qwen2VLForConditionalGeneration"
PLACE = "<|vision_start|><|image_pad|><|vision_end|>"
PARAMS = {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True}


class TestExternalModels(unittest.TestCase):
    def test_external_model(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            model = write_vlm_twin(Path(folder, "model"), ARCHITECTURE)
            with contextlib.ExitStack() as stack:
                for variable, value in (
                    (envs.SGLANG_EXTERNAL_MODEL_PACKAGE, (PACKAGE,)),
                    (envs.SGLANG_EXTERNAL_MM_MODEL_ARCH, (ARCHITECTURE,)),
                    (envs.SGLANG_EXTERNAL_MM_PROCESSOR_PACKAGE, (PACKAGE,)),
                ):
                    stack.enter_context(variable.override(value))
                engine = sgl.Engine(
                    model_path=model,
                    max_total_tokens=64,
                    cuda_graph_max_bs=1,
                    enable_multimodal=True,
                    dtype="float32",
                    device="cpu",
                )
                stack.callback(engine.shutdown)
                text = engine.generate("Today is", PARAMS)
                self.assertTrue(text["text"])
                seen = engine.generate(f"{PLACE}a", PARAMS, image_data=draw("circle", "red"))
                self.assertGreater(seen["meta_info"]["prompt_tokens"], 4)
                self.assertEqual(len(seen["output_ids"]), 8)


if __name__ == "__main__":
    unittest.main()
