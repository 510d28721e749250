"""The tokens that stand for media in a prompt, and media that were loaded for it."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from sglang.srt.multimodal.inputs import Modality

_NAMES = {Modality.IMAGE: "image", Modality.VIDEO: "video", Modality.AUDIO: "audio"}


@dataclasses.dataclass
class MultimodalSpecialTokens:
    """A token per kind of media, as text, id and regular expression; `build` fills in what can be derived.

    A regular expression may match more than the token, for instance a run that is expanded already.
    """

    image_token: str | list[str] | None = None
    video_token: str | list[str] | None = None
    audio_token: str | list[str] | None = None
    image_token_id: int | None = None
    video_token_id: int | None = None
    audio_token_id: int | None = None
    image_token_regex: re.Pattern[str] | None = None
    video_token_regex: re.Pattern[str] | None = None
    audio_token_regex: re.Pattern[str] | None = None
    combined_regex: re.Pattern[str] | None = None

    def build(self, processor: Any) -> MultimodalSpecialTokens:
        """Fill in missing texts from ids, missing expressions from texts, and the combined expression."""
        for name in _NAMES.values():
            token_id = getattr(self, f"{name}_token_id")
            if getattr(self, f"{name}_token") is None and token_id is not None:
                setattr(
                    self, f"{name}_token", processor.tokenizer.convert_ids_to_tokens([token_id])[0]
                )
        for name in _NAMES.values():
            token = getattr(self, f"{name}_token")
            if getattr(self, f"{name}_token_regex") is None and token is not None:
                words = [token] if isinstance(token, str) else token
                setattr(self, f"{name}_token_regex", re.compile("|".join(map(re.escape, words))))
        self.combined_regex = self.get_combined_regex()
        return self

    def get_combined_regex(self) -> re.Pattern[str]:
        """All expressions in one capture group, so that `re.split` keeps what they match."""
        if self.combined_regex is None:
            patterns = [p.pattern for p in self._regexes().values()]
            self.combined_regex = re.compile(f"({'|'.join(patterns)})" if patterns else "((?!))")
        return self.combined_regex

    def get_modality_of_token(self, token: str) -> Modality | None:
        """The kind of media that a piece of the prompt stands for."""
        for modality, name in _NAMES.items():
            known = getattr(self, f"{name}_token")
            if token in ([known] if isinstance(known, str) else known or []):
                return modality
        for modality, regex in self._regexes().items():
            if regex.fullmatch(token):
                return modality
        return None

    def get_token_id_by_modality(self, modality: Modality) -> int | None:
        name = "image" if modality is Modality.MULTI_IMAGES else _NAMES[modality]
        return getattr(self, f"{name}_token_id")

    def _regexes(self) -> dict[Modality, re.Pattern[str]]:
        found = {
            modality: getattr(self, f"{name}_token_regex") for modality, name in _NAMES.items()
        }
        return {modality: regex for modality, regex in found.items() if regex is not None}


@dataclasses.dataclass
class BaseMultiModalProcessorOutput:
    """A prompt and its media, loaded, in the order of their placeholders.

    `prompt_ids` are the prompt's token ids where they are known; they decide, and `input_text` is for processors that want text.
    """

    input_text: str
    images: list[Any] = dataclasses.field(default_factory=list)
    videos: list[Any] = dataclasses.field(default_factory=list)
    audios: list[Any] = dataclasses.field(default_factory=list)
    prompt_ids: list[int] | None = None

    def organize_results(self) -> list[tuple[Modality, Any]]:
        """(kind, medium) of every medium: images, then videos, then sounds."""
        return [
            *((Modality.IMAGE, item) for item in self.images),
            *((Modality.VIDEO, item) for item in self.videos),
            *((Modality.AUDIO, item) for item in self.audios),
        ]
