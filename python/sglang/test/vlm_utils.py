"""Tests of servers whose models see and hear, to be mixed into one class per model:

    class TestMyModel(vlm_utils.ImageOpenAITestMixin, vlm_utils.VideoOpenAITestMixin):
        model = "org/my-model"

Published models are asked about files on the web and judged by words of their answers; they run where there are a GPU and a hub that
answers, or with SGLANG_TEST_TWINS=0. `twin_servers` has servers for every other machine, which are compared with transformers.
"""

from __future__ import annotations

import subprocess
import tempfile
import unittest
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

from sglang.srt.arg_groups.ports import find_free_port
from sglang.srt.environ import envs
from sglang.srt.utils.errors import ConfigError
from sglang.srt.utils.hf_transformers_utils import read_config_dict
from sglang.test.server_process import (
    DEFAULT_TIMEOUT_FOR_SERVER_LAUNCH,
    end_server,
    popen_launch_server,
)
from sglang.test.test_utils import CustomTestCase

_FILES = "https://raw.githubusercontent.com/sgl-project/sgl-test-files/refs/heads/main"
IMAGE_MAN_IRONING_URL = f"{_FILES}/images/man_ironing_on_back_of_suv.png"
IMAGE_SGL_LOGO_URL = f"{_FILES}/images/sgl_logo.png"
VIDEO_JOBS_URL = f"{_FILES}/videos/jobs_presenting_ipod.mp4"
AUDIO_SPEECH_URL = f"{_FILES}/audios/Trump_WEF_2018_10s.mp3"
AUDIO_BIRD_SONG_URL = f"{_FILES}/audios/bird_song.mp3"

_CAR = ("cab", "taxi", "car", "suv", "vehicle", "van")
_IRONING = ("iron", "hang", "cloth", "holding")
_MAN = ("man", "person", "driver", "individual")
_PRESENTER = (*_MAN, "speaker", "presenter", "hand", "steve")
_DEVICE = ("ipod", "device", "phone", "gadget")
_PRESENTING = ("present", "examine", "examining", "display", "hold", "gestur", "speak", "show")
_SPEECH = ("thank you", "privilege", "leader", "science", "art")
# Of every group one word must be in the answer.
_WORDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "single image": (_CAR, _IRONING),
    "several turns": ((*_MAN, "cab", "taxi"),),
    "several images": ((*_CAR, *_MAN), ("logo", "sgl", "lang", "graphic", "text", "letter")),
    "mixed batch": (),
    "video frames": (_DEVICE, _PRESENTER, _PRESENTING),
    "video file": (_DEVICE, _PRESENTER, _PRESENTING, ("dark", "black")),
    "speech": tuple((word,) for word in _SPEECH[:2]) + (_SPEECH[2:],),
    "ambient sound": (("bird",),),
    "image and sound": (_CAR, ("bird",)),
}
_NUM_FRAMES = 10
Message = dict[str, Any]


class TestOpenAIMLLMServerBase(CustomTestCase):
    """Starts the server of `model` (hub id or folder); a class whose model cannot be run here is skipped."""

    model: ClassVar[str] = ""
    extra_args: ClassVar[list[str]] = []
    fixed_args: ClassVar[list[str]] = ["--trust-remote-code", "--enable-multimodal"]
    trust_remote_code: ClassVar[bool] = True
    api_key: ClassVar[str] = "sk-123456"
    max_tokens: ClassVar[int] = 512
    images: ClassVar[tuple[str, str]] = (IMAGE_MAN_IRONING_URL, IMAGE_SGL_LOGO_URL)
    video: ClassVar[str] = VIDEO_JOBS_URL
    speech: ClassVar[str] = AUDIO_SPEECH_URL
    ambient: ClassVar[str] = AUDIO_BIRD_SONG_URL

    @classmethod
    def setUpClass(cls) -> None:
        if reason := reason_to_skip(cls.model):
            raise unittest.SkipTest(reason)
        import openai

        cls._files = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls._files.cleanup)
        cls.base_url = f"http://127.0.0.1:{find_free_port()}"
        cls.process: subprocess.Popen[bytes] = popen_launch_server(
            cls.model,
            cls.base_url,
            DEFAULT_TIMEOUT_FOR_SERVER_LAUNCH,
            api_key=cls.api_key,
            other_args=[*cls.fixed_args, *cls.extra_args],
            env={"SGLANG_MEDIA_ROOT": cls._files.name},
        )
        cls.addClassCleanup(end_server, cls.process)
        cls.client = openai.OpenAI(base_url=f"{cls.base_url}/v1", api_key=cls.api_key or "none")
        cls.addClassCleanup(cls.client.close)

    # --- hooks

    def get_request_kwargs(self) -> dict[str, Any]:
        """Further arguments of every request."""
        return {}

    def get_vision_request_kwargs(self) -> dict[str, Any]:
        return self.get_request_kwargs()

    def get_audio_request_kwargs(self) -> dict[str, Any]:
        return self.get_request_kwargs()

    def get_or_download_file(self, url: str) -> str:
        """A local path of a file on the web, under the folder that the server may read."""
        if Path(url).is_file():
            return url
        path = Path(self._files.name, Path(url).name)
        if not path.exists():
            path.write_bytes(_read(url))
        return str(path)

    def judge(self, case: str, messages: list[Message], text: str, response: Any) -> None:
        """Fails when an answer has none of the words of a group."""
        for group in _WORDS[case]:
            self.assertTrue(
                any(word in text.lower() for word in group), f"{case}: none of {group} in {text!r}"
            )

    # --- requests

    def ask(self, case: str, messages: list[Message], **options: Any) -> str:
        """The answer's text, after its form and `judge`."""
        response = self.client.chat.completions.create(
            model="default",
            messages=messages,  # type: ignore[arg-type]
            temperature=0,
            **{"max_tokens": self.max_tokens, **options},
        )
        message, usage = response.choices[0].message, response.usage
        self.assertEqual(message.role, "assistant")
        self.assertIsInstance(message.content, str)
        self.assertTrue(response.id)
        self.assertGreater(response.created, 0)
        self.assertGreater(usage.prompt_tokens, 0)
        self.assertGreater(usage.completion_tokens, 0)
        self.assertEqual(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens)
        self.judge(case, messages, message.content, response)
        return message.content


class ImageOpenAITestMixin(TestOpenAIMLLMServerBase):
    def test_single_image_chat_completion(self) -> None:
        question = "Describe this image in a sentence."
        messages = [user(image(self.images[0]), words(question))]
        self.ask("single image", messages, **self.get_vision_request_kwargs())

    def test_multi_turn_chat_completion(self) -> None:
        messages = [
            user(image(self.images[0]), words("Describe this image in a sentence.")),
            {
                "role": "assistant",
                "content": [words("There is a man at the back of a yellow cab.")],
            },
            user(words("Repeat your previous answer.")),
        ]
        self.ask("several turns", messages, **self.get_vision_request_kwargs())

    def test_multi_images_chat_completion(self) -> None:
        pictures = [{**image(url), "modalities": "multi-images"} for url in self.images]
        question = "There are two pictures. What does each of them show? Describe both."
        messages = [user(*pictures, words(question))]
        self.ask("several images", messages, **self.get_vision_request_kwargs())

    def test_mixed_batch(self) -> None:
        """Requests with one picture, with another and with none at the same time."""

        def ask(index: int) -> str:
            kind = index % 3
            pictures = [image(self.images[kind])] if kind < 2 else []
            messages = [user(*pictures, words("What is this? Answer in a sentence."))]
            return self.ask("mixed batch", messages, **self.get_vision_request_kwargs())

        with ThreadPoolExecutor(4) as threads:
            answers = list(threads.map(ask, range(12)))
        self.assertEqual(len(answers), 12)


class VideoOpenAITestMixin(TestOpenAIMLLMServerBase):
    def test_video_images_chat_completion(self) -> None:
        """A video as pictures."""
        frames = video_frames(self.get_or_download_file(self.video), _NUM_FRAMES)
        pictures = [{**image(url), "modalities": "video"} for url in frames]
        messages = [user(*pictures, words("Describe the video."))]
        self.ask("video frames", messages, **self.get_vision_request_kwargs())

    def test_video_chat_completion(self) -> None:
        path = self.get_or_download_file(self.video)
        part = {"type": "video_url", "video_url": {"url": path}}
        messages = [user(part, words("Describe the video."))]
        self.ask("video file", messages, **self.get_vision_request_kwargs())


class AudioOpenAITestMixin(TestOpenAIMLLMServerBase):
    def test_audio_speech_completion(self) -> None:
        self.ask_about_sound("speech", self.speech, "Write down what is said in this audio.")

    def test_audio_ambient_completion(self) -> None:
        self.ask_about_sound("ambient sound", self.ambient, "What do you hear in this audio?")

    def ask_about_sound(self, case: str, url: str, question: str) -> None:
        sound = audio(self.get_or_download_file(url))
        self.ask(case, [user(sound, words(question))], **self.get_audio_request_kwargs())


class OmniOpenAITestMixin(ImageOpenAITestMixin, VideoOpenAITestMixin, AudioOpenAITestMixin):
    def test_mixed_modality_chat_completion(self) -> None:
        sound = audio(self.get_or_download_file(self.ambient))
        question = "Describe the picture, and say what you hear."
        messages = [user(image(self.images[0]), sound, words(question))]
        self.ask("image and sound", messages, **self.get_vision_request_kwargs())


def reason_to_skip(model: str) -> str:
    """Why a model is not run here; "" for a folder. Raises ConfigError for a wrong SGLANG_TEST_TWINS."""
    choice = envs.SGLANG_TEST_TWINS.get()
    if choice not in ("auto", "0", "1"):
        raise ConfigError(f"SGLANG_TEST_TWINS={choice!r}; allowed: auto, 0, 1")
    if not model:
        return "the class names no model"
    if Path(model).is_dir() or choice == "0":
        return ""
    import torch

    if choice == "1" or not torch.cuda.is_available():
        return f"{model} needs a GPU; SGLANG_TEST_TWINS=0 runs it anyway"
    try:
        read_config_dict(model)
    except ConfigError as error:
        return f"{model} cannot be had: {error}"
    return ""


def user(*parts: dict[str, Any]) -> Message:
    return {"role": "user", "content": list(parts)}


def words(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def audio(url: str) -> dict[str, Any]:
    return {"type": "audio_url", "audio_url": {"url": url}}


def video_frames(path: str, count: int) -> list[str]:
    """JPEG data URLs of frames at equal distances."""
    from PIL import Image

    from sglang.srt.multimodal.media.video import decode_video
    from sglang.test.media_files import image_url

    def sample(total: int, fps: float) -> list[int]:
        return sorted({i * total // count for i in range(count)})

    frames = decode_video(Path(path).read_bytes(), sample).frames
    return [image_url(Image.fromarray(frame), "JPEG") for frame in frames]


def _read(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=60) as reply:
        return reply.read()
