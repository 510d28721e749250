"""How a conversation becomes text: one function per separator style.

Legend: `system` is the filled system template, a turn is (role, message), and a turn without a message is where generation starts.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum, auto
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sglang.srt.parser.conversation_value import Conversation


class SeparatorStyle(IntEnum):
    """Ways to separate turns. Template files name them by identifier."""

    ADD_COLON_SINGLE = auto()
    ADD_COLON_TWO = auto()
    ADD_COLON_SPACE_SINGLE = auto()
    NO_COLON_SINGLE = auto()
    NO_COLON_TWO = auto()
    ADD_NEW_LINE_SINGLE = auto()
    LLAMA2 = auto()
    LLAMA3 = auto()
    LLAMA4 = auto()
    CHATGLM = auto()
    CHATML = auto()
    CHATINTERN = auto()
    DOLLY = auto()
    RWKV = auto()
    PHOENIX = auto()
    ROBIN = auto()
    FALCON_CHAT = auto()
    CHATGLM3 = auto()
    DEEPSEEK_CHAT = auto()
    METAMATH = auto()
    DeepSeekVL2 = auto()
    QWEN2_VL_EMBED = auto()
    QWEN2_AUDIO = auto()
    GEMMA3 = auto()
    MPT = auto()
    PADDLE_OCR = auto()


def render(conv: Conversation) -> str:
    """The prompt. Raises ValueError for a style that cannot be rendered, naming those that can."""
    if conv.sep_style not in _RENDERERS:
        allowed = ", ".join(style.name for style in _RENDERERS)
        raise ValueError(
            f"sep_style {SeparatorStyle(conv.sep_style).name} cannot be rendered; allowed: {allowed}"
        )
    return _RENDERERS[conv.sep_style](conv)


def _system(conv: Conversation) -> str:
    """The filled system template; nothing when it frames a system message that is empty."""
    is_empty_frame = not conv.system_message and "{system_message}" in conv.system_template
    return "" if is_empty_frame else conv.system_template.format(system_message=conv.system_message)


def _or_nothing(system: str, end: str) -> str:
    return system + end if system else ""


def _turns(
    conv: Conversation, between: str, *, opening: str | None = None, alternate: bool = False
) -> str:
    """Every turn as role, `between`, message, separator; the last open one as role and `opening`."""
    seps = [conv.sep, _second(conv) if alternate else conv.sep]
    opening = between if opening is None else opening
    return "".join(
        f"{role}{between}{message}{seps[i % 2]}" if message else f"{role}{opening}"
        for i, (role, message) in enumerate(conv.messages)
    )


def _second(conv: Conversation) -> str:
    return conv.sep if conv.sep2 is None else conv.sep2


def _colon_single(conv: Conversation) -> str:
    return _system(conv) + conv.sep + _turns(conv, ": ", opening=":")


def _colon_two(conv: Conversation) -> str:
    return _system(conv) + conv.sep + _turns(conv, ": ", opening=":", alternate=True)


def _colon_space_single(conv: Conversation) -> str:
    return _system(conv) + conv.sep + _turns(conv, ": ")


def _falcon_chat(conv: Conversation) -> str:
    return _or_nothing(_system(conv), conv.sep) + _turns(conv, ": ", opening=":")


def _robin(conv: Conversation) -> str:
    return _system(conv) + conv.sep + _turns(conv, ":\n")


def _no_colon_single(conv: Conversation) -> str:
    return _system(conv) + _turns(conv, "")


def _no_colon_two(conv: Conversation) -> str:
    return _system(conv) + _turns(conv, "", alternate=True)


def _new_line_single(conv: Conversation) -> str:
    return _or_nothing(_system(conv), conv.sep) + _turns(conv, "\n")


def _qwen2_vl_embed(conv: Conversation) -> str:
    return _new_line_single(conv) + (conv.stop_str if isinstance(conv.stop_str, str) else "")


def _qwen2_audio(conv: Conversation) -> str:
    """The audio token holds `{idx}`: sounds are numbered from 1."""
    pieces = _new_line_single(conv).split(conv.audio_token)
    numbered = [conv.audio_token.format(idx=i) + p for i, p in enumerate(pieces[1:], start=1)]
    return "".join([pieces[0], *numbered])


def _chatml(conv: Conversation) -> str:
    turns = [f"{role}\n{m}{conv.sep}\n" if m else f"{role}\n" for role, m in conv.messages]
    return "".join([_or_nothing(_system(conv), conv.sep + "\n"), *turns])


def _llama2(conv: Conversation) -> str:
    """The first message follows the system text directly; tags alternate whatever the roles say."""
    text = (_system(conv) if conv.system_message else "") or "[INST] "
    for i, (_, message) in enumerate(conv.messages):
        tag, sep = conv.roles[i % 2], [conv.sep, _second(conv)][i % 2]
        if not message:
            text += tag
        elif i == 0:
            text += f"{message} "
        else:
            text += f"{tag} {message}{sep}"
    return text


def _llama3(conv: Conversation) -> str:
    return _headers(conv, "<|start_header_id|>{}<|end_header_id|>\n\n", "<|eot_id|>")


def _llama4(conv: Conversation) -> str:
    return _headers(conv, "<|header_start|>{}<|header_end|>\n\n", "<|eot|>")


def _headers(conv: Conversation, header: str, end: str) -> str:
    turns = [
        header.format(role) + (f"{message.strip()}{end}" if message else "")
        for role, message in conv.messages
    ]
    return "".join([_system(conv) if conv.system_message else "", *turns])


def _deepseek_vl2(conv: Conversation) -> str:
    return _or_nothing(_system(conv), conv.sep) + _turns(conv, ": ", opening=":", alternate=True)


def _gemma3(conv: Conversation) -> str:
    """The system text opens the first user turn; without one, the role does."""
    text = _system(conv) or conv.roles[0]
    for i, (role, message) in enumerate(conv.messages):
        if not message:
            text += role
        else:
            text += f"{message}{conv.sep}" if i == 0 else f"{role}{message}{conv.sep}"
    return text


def _mpt(conv: Conversation) -> str:
    return _system(conv) + conv.sep + _turns(conv, "")


def _paddle_ocr(conv: Conversation) -> str:
    text = _system(conv)
    for role, message in conv.messages:
        text += f"{role}: "
        if not message:
            continue
        if role == conv.roles[0]:
            text += message.replace(conv.image_token + "\n", conv.image_token) + "\n"
        else:
            text += message + conv.sep
    return text


_RENDERERS: dict[SeparatorStyle, Callable[[Conversation], str]] = {
    SeparatorStyle.ADD_COLON_SINGLE: _colon_single,
    SeparatorStyle.ADD_COLON_TWO: _colon_two,
    SeparatorStyle.ADD_COLON_SPACE_SINGLE: _colon_space_single,
    SeparatorStyle.NO_COLON_SINGLE: _no_colon_single,
    SeparatorStyle.NO_COLON_TWO: _no_colon_two,
    SeparatorStyle.ADD_NEW_LINE_SINGLE: _new_line_single,
    SeparatorStyle.LLAMA2: _llama2,
    SeparatorStyle.LLAMA3: _llama3,
    SeparatorStyle.LLAMA4: _llama4,
    SeparatorStyle.CHATML: _chatml,
    SeparatorStyle.ROBIN: _robin,
    SeparatorStyle.FALCON_CHAT: _falcon_chat,
    SeparatorStyle.DeepSeekVL2: _deepseek_vl2,
    SeparatorStyle.QWEN2_VL_EMBED: _qwen2_vl_embed,
    SeparatorStyle.QWEN2_AUDIO: _qwen2_audio,
    SeparatorStyle.GEMMA3: _gemma3,
    SeparatorStyle.MPT: _mpt,
    SeparatorStyle.PADDLE_OCR: _paddle_ocr,
}
