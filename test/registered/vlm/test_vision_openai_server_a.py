"""Images, videos and sounds through the OpenAI API: the demo model (or its random twin) against transformers, and published models.

cd test/registered/vlm
python3 -m unittest test_vision_openai_server_a.TestDemoServer
SGLANG_TEST_TWINS=0 python3 -m unittest test_vision_openai_server_a.TestQwen25VLServer
"""

from __future__ import annotations

import unittest

from sglang.test import media_files, twin_servers, vlm_utils
from sglang.test.tiny_vlm import has_demo_vlm

# What the demo model says of drawn pictures: (shape, colour, question, a word of the answer).
_QUESTIONS = [
    ("circle", "red", "What colour is the circle?", "red"),
    ("circle", "blue", "What colour is it?", "blue"),
    ("square", "green", "What colour is the shape?", "green"),
    ("square", "black", "What shape is it?", "square"),
    ("triangle", "red", "What shape is this?", "triangle"),
    ("circle", "black", "What shape is it?", "circle"),
    ("triangle", "blue", "Describe the picture.", "blue triangle"),
    ("square", "red", "What do you see?", "red square"),
]


class TestDemoServer(
    twin_servers.ComparedWithTransformers,
    vlm_utils.ImageOpenAITestMixin,
    vlm_utils.VideoOpenAITestMixin,
):
    @unittest.skipUnless(has_demo_vlm(), "a random twin has nothing to say")
    def test_answers_about_drawn_pictures(self) -> None:
        right = 0
        for shape, colour, question, word in _QUESTIONS:
            url = media_files.image_url(media_files.draw(shape, colour))
            messages = [vlm_utils.user(vlm_utils.image(url), vlm_utils.words(question))]
            answer = self.client.chat.completions.create(
                model="default", messages=messages, temperature=0, max_tokens=24
            )
            right += word in (answer.choices[0].message.content or "")
        # The model card claims nine of ten.
        self.assertGreaterEqual(right, len(_QUESTIONS) - 2)


class TestContextLength(twin_servers.ContextLengthServer):
    pass


class TestLlavaOneVisionServer(vlm_utils.ImageOpenAITestMixin, vlm_utils.VideoOpenAITestMixin):
    model = "lmms-lab/llava-onevision-qwen2-0.5b-ov"


class TestQwen25VLServer(vlm_utils.ImageOpenAITestMixin, vlm_utils.VideoOpenAITestMixin):
    model = "Qwen/Qwen2.5-VL-7B-Instruct"
    extra_args = ["--mem-fraction-static", "0.35"]


class TestInternVL25Server(vlm_utils.ImageOpenAITestMixin):
    model = "OpenGVLab/InternVL2_5-2B"


class TestGemma3Server(vlm_utils.ImageOpenAITestMixin):
    model = "google/gemma-3-4b-it"


class TestQwen2AudioServer(vlm_utils.AudioOpenAITestMixin):
    model = "Qwen/Qwen2-Audio-7B-Instruct"


if __name__ == "__main__":
    unittest.main()
