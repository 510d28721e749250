"""A conversation as a value: who said what, the media in it, and how it is written down for one family of models."""

from __future__ import annotations

import dataclasses
from typing import Any

from sglang.srt.parser.separator_styles import SeparatorStyle, render


@dataclasses.dataclass
class Conversation:
    """A template when it has no messages, a conversation when it has.

    Media tokens are what `generate_chat_conv` writes in place of a medium. Sources of media (not pixels) are collected in
    `image_data`, `video_data` and `audio_data` in the order of their tokens.
    """

    name: str
    system_template: str = "{system_message}"
    system_message: str = ""
    roles: tuple[str, str] = ("USER", "ASSISTANT")
    messages: Any = ()  # list of [role, message or None]
    offset: int = 0  # messages before it are examples, not turns
    sep_style: SeparatorStyle = SeparatorStyle.ADD_COLON_SINGLE
    sep: str = "\n"
    sep2: str | None = None
    stop_str: str | list[str] | None = None
    image_token: str = "<image>"
    video_token: str = "<video>"
    audio_token: str = "<audio>"
    image_data: list[Any] | None = None
    video_data: list[Any] | None = None
    modalities: list[str] | None = None
    stop_token_ids: list[int] | None = None
    audio_data: list[Any] | None = None
    image_token_at_prefix: bool = False

    def get_prompt(self) -> str:
        """The text that the model is given. Raises ValueError for a style that cannot be rendered."""
        return render(self)

    def set_system_message(self, system_message: str) -> None:
        self.system_message = system_message

    def append_message(self, role: str, message: str | None) -> None:
        """Add a turn; None is where generation starts."""
        self.messages = [*self.messages, [role, message]]

    def update_last_message(self, message: str | None) -> None:
        self.messages = [*self.messages[:-1], [self.messages[-1][0], message]]

    def append_image(self, image: Any, detail: str = "auto") -> None:
        """Record the source of an image; its token stands in a message."""
        from sglang.srt.multimodal.media.data import ImageData  # only conversations with media

        self.image_data = [*(self.image_data or []), ImageData(image, detail)]

    def append_video(self, video: Any) -> None:
        self.video_data = [*(self.video_data or []), video]

    def append_audio(self, audio: Any) -> None:
        self.audio_data = [*(self.audio_data or []), audio]

    def to_openai_api_messages(self) -> list[dict[str, str]]:
        """Messages as dicts of role and content, the system message first when there is one."""
        found = [{"role": "system", "content": self.system_message}] if self.system_message else []
        for i, (_, message) in enumerate(self.messages[self.offset :]):
            if message is not None:
                found.append({"role": ("user", "assistant")[i % 2], "content": message})
        return found

    def to_gradio_chatbot(self) -> list[list[str | None]]:
        """Pairs of a user's message and its answer (None while it is open)."""
        pairs: list[list[str | None]] = []
        for i, (_, message) in enumerate(self.messages[self.offset :]):
            if i % 2 == 0:
                pairs.append([message, None])
            else:
                pairs[-1][1] = message
        return pairs

    def copy(self) -> Conversation:
        """The same conversation without its media."""
        return dataclasses.replace(
            self,
            messages=[[role, message] for role, message in self.messages],
            image_data=None,
            video_data=None,
            audio_data=None,
            modalities=None,
        )

    def dict(self) -> dict[str, Any]:
        """What a log of conversations keeps."""
        return {
            "template_name": self.name,
            "system_message": self.system_message,
            "roles": self.roles,
            "messages": self.messages,
            "offset": self.offset,
        }
