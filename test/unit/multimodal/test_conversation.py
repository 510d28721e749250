"""Conversation templates: what they print, how they are found, and files that define one."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from sglang.srt.parser import conversation as module
from sglang.srt.parser.conversation import (
    Conversation,
    SeparatorStyle,
    chat_templates,
    generate_chat_conv,
    generate_embedding_convs,
    get_conv_template_by_model_path,
    register_conv_template,
    register_conv_template_matching_function,
)
from sglang.srt.parser.template_choice import choose_template
from sglang.srt.utils.errors import ConfigError

EOS = "<｜end▁of▁sentence｜>"
TALK = [("user", "hi"), ("assistant", "yes"), ("user", "and?")]
# The published chat format of each family, with the system message "sys" (or none, where the format has no place).
RENDERED = {
    "llama-2": "[INST] <<SYS>>\nsys\n<</SYS>>\n\nhi [/INST] yes </s><s>[INST] and? [/INST]",
    "llama-4": "<|header_start|>system<|header_end|>\n\nsys<|eot|><|header_start|>user<|header_end|>\n\nhi<|eot|>"
    "<|header_start|>assistant<|header_end|>\n\nyes<|eot|><|header_start|>user<|header_end|>\n\nand?<|eot|>"
    "<|header_start|>assistant<|header_end|>\n\n",
    "phi-4-mm": "<|system|>sys<|end|><|user|>hi<|end|><|assistant|>yes<|end|><|user|>and?<|end|><|assistant|>",
    "chatml": "<|im_start|>system\nsys<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
    "<|im_start|>user\nand?<|im_end|>\n<|im_start|>assistant\n",
    "vicuna_v1.1": "sys USER: hi ASSISTANT: yes</s>USER: and? ASSISTANT:",
    "llama_3_vision": "<|start_header_id|>system<|end_header_id|>\n\nsys<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nhi"
    "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nyes<|eot_id|><|start_header_id|>user<|end_header_id|>"
    "\n\nand?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "deepseek-vl2": f"sys\n\n<|User|>: hi\n\n<|Assistant|>: yes{EOS}<|User|>: and?\n\n<|Assistant|>:",
    "janus-pro": f"sys\n\n<|User|>: hi\n\n<|Assistant|>: yes{EOS}<|User|>: and?\n\n<|Assistant|>:",
    "deepseek-ocr": "syshiyesand?",
    "paddle-ocr": "<|begin_of_sentence|>sysUser: hi\nAssistant: yes<|end_of_sentence|>User: and?\nAssistant: ",
    "gemma-it": "<start_of_turn>user\nsys\n\nhi<end_of_turn>\n<start_of_turn>model\nyes<end_of_turn>\n"
    "<start_of_turn>user\nand?<end_of_turn>\n<start_of_turn>model\n",
    "kimi-vl": "<|im_system|>system<|im_middle|>sys<|im_end|><|im_user|>user<|im_middle|>hi<|im_end|>"
    "<|im_assistant|>assistant<|im_middle|>yes<|im_end|><|im_user|>user<|im_middle|>and?<|im_end|>"
    "<|im_assistant|>assistant<|im_middle|>",
    "mistral": "[SYSTEM_PROMPT]sys[/SYSTEM_PROMPT][INST] hi [/INST] yes </s><s>[INST] and? [/INST]",
}
RENDERED["devstral"] = RENDERED["mistral"]
RENDERED["llava_llama_3"] = RENDERED["llama_3_vision"]
for _name in (
    *("chatml-llava", "internlm2-chat", "internvl-2-5", "qwen2-vl", "points-v15-chat"),
    *("minicpmv", "minicpmo", "qwen2-audio"),
):
    RENDERED[_name] = RENDERED["chatml"]
RENDERED["gme-qwen2-vl"] = RENDERED["chatml"] + "<|endoftext|>"


def image(url="http://x/a.png", **more):
    return {"type": "image_url", "image_url": {"url": url, **more}}


def text(value):
    return {"type": "text", "text": value}


def request(*messages):
    return SimpleNamespace(messages=[SimpleNamespace(role=r, content=c) for r, c in messages])


@pytest.fixture(autouse=True)
def fresh_registries(monkeypatch):
    monkeypatch.setattr(module, "chat_templates", chat_templates)
    saved, functions = dict(chat_templates), list(module.matching_function_registry)
    yield
    chat_templates.clear()
    chat_templates.update(saved)
    module.matching_function_registry[:] = functions


def test_there_are_24_templates_and_each_has_its_text_here():
    assert len(chat_templates) == 24 and set(RENDERED) == set(chat_templates)


@pytest.mark.parametrize("name", sorted(RENDERED))
def test_template_prints_the_published_format(name):
    conv = generate_chat_conv(request(("system", "sys"), *TALK), name)
    assert conv.get_prompt() == RENDERED[name]


def test_no_system_message_leaves_no_empty_system_turn():
    for name, start in {
        "gemma-it": "<start_of_turn>user\nhi",
        "llama_3_vision": "<|start_header_id|>user",
        "llama-2": "[INST] hi [/INST]",
        "points-v15-chat": "<|im_start|>user\nhi",
        "phi-4-mm": "<|user|>hi",
    }.items():
        assert generate_chat_conv(request(("user", "hi")), name).get_prompt().startswith(start)


def test_vendor_system_messages_are_the_default():
    prompt = generate_chat_conv(request(("user", "hi")), "qwen2-vl").get_prompt()
    assert prompt.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n")


def test_media_become_tokens_and_sources():
    parts = [text("a"), image(), {"type": "video_url", "video_url": {"url": "v.mp4"}}, text("b")]
    conv = generate_chat_conv(request(("user", parts)), "qwen2-vl")
    vision = "<|vision_start|><|{}_pad|><|vision_end|>"
    assert conv.messages[0][1] == "a" + vision.format("image") + vision.format("video") + "b"
    assert [item.url for item in conv.image_data] == ["http://x/a.png"]
    assert conv.video_data == ["v.mp4"] and conv.audio_data is None


def test_image_tokens_stand_on_a_line_or_in_front():
    parts = [text("what?"), image(detail="low")]
    conv = generate_chat_conv(request(("user", parts)), "vicuna_v1.1")
    assert conv.messages[0][1] == "what?<image>\n" and conv.image_data[0].detail == "low"
    prefixed = generate_chat_conv(request(("user", parts)), "internvl-2-5")
    assert prefixed.messages[0][1] == "<IMG_CONTEXT>\nwhat?"
    paddle = generate_chat_conv(request(("user", [image(), text("OCR:")])), "paddle-ocr")
    assert "User: <|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>OCR:\n" in paddle.get_prompt()


def test_sounds_are_numbered():
    audio = {"type": "audio_url", "audio_url": {"url": "a.wav"}}
    prompt = generate_chat_conv(request(("user", [audio, audio, text("x")])), "qwen2-audio")
    assert "Audio 1: <|audio_bos|>" in prompt.get_prompt()
    assert "Audio 2: <|audio_bos|><|AUDIO|><|audio_eos|>\nx" in prompt.get_prompt()


def test_deepseek_vl2_adds_only_the_tokens_that_are_missing():
    def prompt(parts):
        return generate_chat_conv(request(("user", parts)), "deepseek-vl2").messages[0][1]

    assert prompt([text("see <image>"), image()]) == "see <image>"
    assert prompt([image(), image(), text("see <image>")]) == "<image>\nsee <image>"
    with pytest.raises(ValueError, match="2 image tokens for 1 images"):
        prompt([text("<image><image>"), image()])


def test_roles_without_a_place_are_refused():
    with pytest.raises(ValueError, match="'tool' has no place"):
        generate_chat_conv(request(("tool", "x")), "chatml")


def test_embedding_conversations_have_one_image_each():
    convs = generate_embedding_convs(["a", "b"], ["i.png", None], [None, None], "gme-qwen2-vl")
    assert "<|vision_end|>a" in convs[0].get_prompt() and "vision" not in convs[1].get_prompt()


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("org/InternVL2_5-2B", "internvl-2-5"),
        ("liuhaotian/llava-v1.5-7b", "vicuna_v1.1"),
        ("lmms-lab/llava-onevision-qwen2-7b-ov", "chatml-llava"),
        ("openbmb/MiniCPM-V-2_6", "minicpmv"),
        ("deepseek-ai/deepseek-vl2-small", "deepseek-vl2"),
        ("meta-llama/Llama-3.1-8B", None),
    ],
)
def test_templates_are_found_by_path(path, name):
    assert get_conv_template_by_model_path(path) == name


def test_templates_are_found_by_model_type(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "phi4mm"}))
    assert get_conv_template_by_model_path(str(tmp_path)) == "phi-4-mm"


def test_plugins_register_templates_and_matching_functions():
    register_conv_template(Conversation(name="mine"))

    @register_conv_template_matching_function
    def mine(model_path):
        return "mine" if "acme" in model_path else None

    assert mine("acme/x") == "mine" and choose_template(None, "acme/x").conversation == "mine"
    with pytest.raises(AssertionError, match="registered already"):
        register_conv_template(Conversation(name="mine"))
    register_conv_template(Conversation(name="mine", sep="|"), override=True)
    assert chat_templates["mine"].sep == "|"


def test_chat_template_may_be_a_name_or_a_file(tmp_path):
    assert choose_template("chatml-llava", "x").conversation == "chatml-llava"
    jinja = tmp_path / "a.jinja"
    jinja.write_text("{{ messages }}")
    assert choose_template(str(jinja), "x").jinja == "{{ messages }}"
    with pytest.raises(ConfigError, match="'nothing' is neither .* chatml"):
        choose_template("nothing", "x")


def test_json_templates(tmp_path):
    values = {
        "name": "filed",
        "system": "<|im_start|>system",
        "user": "<|im_start|>user",
        "assistant": "<|im_start|>assistant",
        "sep_style": "CHATML",
        "sep": "<|im_end|>",
        "stop_str": ["<|im_end|>"],
    }
    path = tmp_path / "t.json"
    path.write_text(json.dumps(values))
    assert choose_template(str(path), "x").conversation == "filed"
    conv = generate_chat_conv(request(("system", "sys"), *TALK), "filed")
    assert conv.get_prompt() == RENDERED["chatml"] and conv.stop_str == ["<|im_end|>"]
    path.write_text(json.dumps({**values, "sep_style": "NEW"}))
    with pytest.raises(ConfigError, match="'NEW' is unknown; allowed: ADD_COLON_SINGLE"):
        choose_template(str(path), "x")
    path.write_text('{"name": "x"}')
    with pytest.raises(ConfigError, match="lacks system, user"):
        choose_template(str(path), "x")


def test_styles_that_are_not_rendered_say_so():
    with pytest.raises(ValueError, match="RWKV cannot be rendered; allowed"):
        Conversation(name="x", sep_style=SeparatorStyle.RWKV).get_prompt()


def test_conversations_as_messages():
    conv = generate_chat_conv(request(("system", "sys"), *TALK), "vicuna_v1.1")
    assert [m["role"] for m in conv.to_openai_api_messages()] == [
        *("system", "user", "assistant", "user")
    ]
    assert conv.to_gradio_chatbot() == [["hi", "yes"], ["and?", None]]
    assert conv.dict()["template_name"] == "vicuna_v1.1"
    conv.append_image("x")
    assert conv.copy().image_data is None and conv.copy().messages == conv.messages
