"""Media in chat requests: content parts, the templates that place them, and special tokens that clients type."""

from __future__ import annotations

import asyncio

import pytest
import tiny_processors

from sglang.srt.entrypoints.openai.chat_template import ChatTemplates
from sglang.srt.entrypoints.openai.messages import MessageMedia, template_messages
from sglang.srt.entrypoints.openai.protocol import ChatCompletionRequest, ChatMessage
from sglang.srt.entrypoints.openai.serving_base import ServingSettings
from sglang.srt.entrypoints.openai.serving_chat import ChatServing
from sglang.srt.utils.errors import RequestError

PLAIN = "{% for m in messages %}{{ m.content }}{% endfor %}"
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


def image(url="http://x/a.png", **more):
    return {"type": "image_url", "image_url": {"url": url, **more}}


def text(value):
    return {"type": "text", "text": value}


def message(*parts):
    return ChatMessage(role="user", content=list(parts))


def tokenizer(template=tiny_processors.QWEN_TEMPLATE):
    return tiny_processors.make_tokenizer(tiny_processors.QWEN_TOKENS, template)


def render(templates, *parts):
    messages = template_messages([message(*parts)], MessageMedia())
    return asyncio.run(templates.encode(messages))


def test_sources_are_collected_in_order():
    media = MessageMedia()
    parts = [image("a", detail="low"), text("x"), {"type": "video_url", "video_url": {"url": "v"}}]
    parts += [
        {"type": "audio_url", "audio_url": {"url": "s"}},
        {"type": "input_audio", "input_audio": {"data": "QUFB", "format": "wav"}},
        image("b"),
    ]
    (plain,) = template_messages([message(*parts)], media)
    assert [(i.url, i.detail) for i in media.images] == [("a", "low"), ("b", "auto")]
    assert media.videos == ["v"] and media.audios == ["s", "QUFB"]
    assert [p["type"] for p in plain["content"]] == [
        *("image", "text", "video", "audio", "audio", "image")
    ]


@pytest.mark.parametrize(
    ("part", "message_"),
    [
        ({"type": "image_url"}, 'needs {"image_url": {"url"'),
        ({"type": "image_url", "image_url": {"url": 3}}, 'needs {"image_url": {"url"'),
        (image(detail="most"), "allowed: auto, low, high"),
        ({"type": "smell"}, "allowed: text, image_url"),
        ({"type": ["image_url"]}, "is unknown"),
        ({"type": "input_audio", "input_audio": {}}, 'needs {"input_audio": {"data"'),
    ],
    ids=str,
)
def test_malformed_parts_are_refused(part, message_):
    with pytest.raises(RequestError) as caught:
        template_messages([message(part)], MessageMedia())
    assert message_ in str(caught.value)


def test_text_models_refuse_media():
    with pytest.raises(RequestError, match="takes text only"):
        template_messages([message(image())])


def test_the_tokenizers_template_places_images():
    tok = tokenizer()
    prompt = render(ChatTemplates.load(tok), text("a"), image(), text("b"))
    assert prompt.text == f"<|im_start|>user\na{IMAGE}b<|im_end|>\n<|im_start|>assistant\n"
    assert prompt.input_ids == tok.encode(prompt.text)


def test_placeholders_that_a_client_types_are_text():
    tok = tokenizer()
    prompt = render(ChatTemplates.load(tok), text("<|image_pad|>"), image())
    assert prompt.input_ids.count(tiny_processors.token_id(tok, "<|image_pad|>")) == 1


def test_templates_that_know_no_media_say_so():
    templates = ChatTemplates.load(tokenizer(PLAIN))
    with pytest.raises(RequestError, match="no place for media; .*--chat-template"):
        render(templates, text("a"), image())


def test_conversation_templates_place_images_too():
    tok = tokenizer(None)
    prompt = render(ChatTemplates.load(tok, "qwen2-vl"), text("a"), image())
    assert prompt.text.endswith(f"<|im_start|>user\na{IMAGE}<|im_end|>\n<|im_start|>assistant\n")
    assert prompt.input_ids == tok.encode(prompt.text) and prompt.stop == ("<|im_end|>",)


def test_conversation_templates_keep_typed_tokens_apart():
    tok = tokenizer(None)
    prompt = render(ChatTemplates.load(tok, "qwen2-vl"), text("<|im_end|><|image_pad|>"), image())
    count = prompt.input_ids.count
    assert count(tiny_processors.token_id(tok, "<|image_pad|>")) == 1
    # system, user; the client's own is text
    assert count(tiny_processors.token_id(tok, "<|im_end|>")) == 2


def test_conversation_templates_refuse_what_they_have_no_place_for():
    templates = ChatTemplates.load(tokenizer(None), "chatml")
    with pytest.raises(RequestError, match="'tool' has no place"):
        asyncio.run(templates.encode([{"role": "tool", "content": "x"}]))
    with pytest.raises(RequestError, match="no place for tools"):
        asyncio.run(templates.encode([{"role": "user", "content": "x"}], tools=[{}]))


def test_models_are_known_by_their_path():
    templates = ChatTemplates.load(tokenizer(PLAIN), model_path="lmms-lab/llava-onevision-qwen2-7b")
    assert "<image>\n" in render(templates, image(), text("a")).text


def serve(takes_media, template=None, **fields):
    """What the engine is asked for a chat request."""
    settings = ServingSettings("m", 64, {}, False, "v", 0, takes_media)
    serving = ChatServing(None, ChatTemplates.load(tokenizer(), template), settings)
    return asyncio.run(serving._engine_request(ChatCompletionRequest(**fields)))


def test_a_chat_request_carries_its_media():
    messages = [{"role": "user", "content": [image("data:x"), text("what?")]}]
    obj = serve(True, messages=messages)
    assert [item.url for item in obj.image_data] == ["data:x"] and obj.video_data is None
    assert not obj.media_is_local
    with pytest.raises(RequestError, match="takes text only"):
        serve(False, messages=messages)


def test_stop_strings_of_a_conversation_join_the_requests_own():
    obj = serve(True, "qwen2-vl", messages=[{"role": "user", "content": "a"}], stop="X")
    assert obj.sampling_params["stop"] == ["X", "<|im_end|>"]
