"""Vision server tests without a network: the demo model or a random twin, asked about drawn media and compared with transformers."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any, ClassVar

from sglang.test import media_files, vlm_utils
from sglang.test.hf_media import NUM_TOP_LOGPROBS, HFMediaModel, MediaAnswer
from sglang.test.tiny_vlm import find_or_write_vlm, write_vlm_twin

# Of logprobs, in float32.
_TOLERANCE = 2e-3
_PART_TYPES = {"image_url": "image", "audio_url": "audio"}


class ComparedWithTransformers(vlm_utils.TestOpenAIMLLMServerBase):
    """Answers must be those of transformers, in tokens of the prompt, text and logprobs. `architecture` "" is the demo model."""

    architecture: ClassVar[str] = ""
    fixed_args = ["--enable-multimodal", "--dtype", "float32", "--device", "cpu"]
    extra_args = ["--max-total-tokens", "2048"]
    max_tokens = 6

    @classmethod
    def setUpClass(cls) -> None:
        media = tempfile.TemporaryDirectory()
        cls.addClassCleanup(media.cleanup)
        folder = Path(media.name, "model")
        cls.model = (
            write_vlm_twin(folder, cls.architecture)
            if cls.architecture
            else find_or_write_vlm(folder)
        )
        pictures = (media_files.draw("circle", "red"), media_files.draw("square", "blue"))
        cls.images = tuple(map(media_files.image_url, pictures))
        cls.speech, cls.ambient = (
            media_files.data_url(media_files.tone(hertz), "audio/wav") for hertz in (440, 880)
        )
        cls.reference = HFMediaModel(cls.model)
        super().setUpClass()

    def get_request_kwargs(self) -> dict[str, Any]:
        return {"logprobs": True, "top_logprobs": NUM_TOP_LOGPROBS}

    def get_or_download_file(self, url: str) -> str:
        """Drawn media; the video is written for the server to read."""
        if url != self.video:
            return url
        path = Path(self._files.name, "video.mp4")
        if not path.exists():
            shapes = [("circle", "red")] * 6 + [("square", "blue")] * 6
            frames = [media_files.draw(*shape) for shape in shapes]
            path.write_bytes(media_files.encode_video(frames))
        return str(path)

    def judge(self, case: str, messages: list[Any], text: str, response: Any) -> None:
        if case == "video file":  # transformers makes frames of files in its own way
            self._judge_video(messages, response)
            return
        expected = self._expected(messages)
        self.assertEqual(response.usage.prompt_tokens, expected.prompt_tokens, case)
        self.assertEqual(response.usage.completion_tokens, len(expected.output_ids), case)
        self.assertEqual(text, expected.text, case)
        for step, best in zip(
            response.choices[0].logprobs.content, expected.top_logprobs, strict=False
        ):
            for found, wanted in zip(step.top_logprobs, best, strict=True):
                self.assertAlmostEqual(found.logprob, wanted, delta=_TOLERANCE, msg=case)

    def _judge_video(self, messages: list[Any], response: Any) -> None:
        """It takes more tokens than the question alone, and as many as its frames two by two."""
        *media, question = messages[0]["content"]
        alone = self.reference.render([vlm_utils.user(question)])
        bare = len(self.reference.tokenizer.encode(alone, add_special_tokens=False))
        self.assertGreater(response.usage.prompt_tokens, bare + len(media))

    def _expected(self, messages: list[Any]) -> MediaAnswer:
        images, audios, rendered = [], [], []
        for message in messages:
            parts = []
            for part in message["content"]:
                kind = _PART_TYPES.get(part["type"])
                if kind is not None:
                    url = part[part["type"]]["url"]
                    (images if kind == "image" else audios).append(url)
                parts.append(part if kind is None else {"type": kind})
            rendered.append({**message, "content": parts})
        prompt = self.reference.render(rendered)
        return _answer(self.reference, prompt, tuple(images), tuple(audios), self.max_tokens)


@functools.lru_cache(maxsize=32)
def _answer(
    reference: HFMediaModel,
    prompt: str,
    images: tuple[str, ...],
    audios: tuple[str, ...],
    max_tokens: int,
) -> MediaAnswer:
    from sglang.srt.multimodal.media.audio import decode_audio
    from sglang.srt.multimodal.media.image import decode_image

    read = media_files.read_data_url
    return reference.answer(
        prompt,
        [decode_image(read(url)) for url in images],
        [decode_audio(read(url), 16000) for url in audios],
        max_tokens,
    )


class ContextLengthServer(ComparedWithTransformers):
    """A server whose context is shorter than the prompt with its media."""

    extra_args = ["--context-length", "300", "--max-total-tokens", "2048"]

    def test_media_that_do_not_fit_are_refused(self) -> None:
        import openai

        pictures = [vlm_utils.image(url) for url in self.images * 20]
        messages = [vlm_utils.user(*pictures, vlm_utils.words("What is this?"))]
        with self.assertRaises(openai.BadRequestError) as caught:
            self.client.chat.completions.create(model="default", messages=messages)
        self.assertRegex(
            str(caught.exception),
            "Multimodal prompt is too long after expanding multimodal tokens|longer than the model's context length",
        )
        self.ask("single image", [vlm_utils.user(pictures[0])], **self.get_request_kwargs())
