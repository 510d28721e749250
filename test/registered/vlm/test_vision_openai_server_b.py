"""As `test_vision_openai_server_a`, for further families: a random model that hears against transformers, and published models."""

from __future__ import annotations

import unittest

from sglang.test import twin_servers, vlm_utils


class TestAudioTwinServer(twin_servers.ComparedWithTransformers, vlm_utils.AudioOpenAITestMixin):
    architecture = "Qwen2AudioForConditionalGeneration"


class TestQwen2VLServer(vlm_utils.ImageOpenAITestMixin, vlm_utils.VideoOpenAITestMixin):
    model = "Qwen/Qwen2-VL-2B-Instruct"


class TestLlavaServer(vlm_utils.ImageOpenAITestMixin):
    model = "llava-hf/llava-1.5-7b-hf"


class TestLlavaNextServer(vlm_utils.ImageOpenAITestMixin):
    model = "llava-hf/llava-v1.6-mistral-7b-hf"


class TestInternVL3Server(vlm_utils.ImageOpenAITestMixin):
    model = "OpenGVLab/InternVL3-2B"


class TestMllamaServer(vlm_utils.ImageOpenAITestMixin):
    model = "meta-llama/Llama-3.2-11B-Vision-Instruct"


if __name__ == "__main__":
    unittest.main()
