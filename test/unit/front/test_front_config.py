"""The front reads the model's facts once, with the user's overrides."""

from __future__ import annotations

import json

import pytest

from sglang.srt.configs import model_config
from sglang.srt.entrypoints import launch
from sglang.srt.managers.media_front import MediaFront
from sglang.srt.server_args import ServerArgs

TEXT, MEDIA = ["LlamaForCausalLM"], ["Qwen2VLForConditionalGeneration"]


@pytest.fixture
def built(monkeypatch):
    """What `MediaFront.build` was given, and how often facts were read."""
    seen: dict[str, list] = {"built": [], "read": []}
    monkeypatch.setattr(
        MediaFront, "build", lambda args, config, tokenizer: seen["built"].append(config) or config
    )

    class Facts:
        def __init__(self, path, **options):
            seen["read"].append(options)

        def check_tp_size(self, size):
            assert size == 2

    monkeypatch.setattr(model_config, "ModelConfig", Facts)
    return seen


def args(**options) -> ServerArgs:
    return ServerArgs(model_path="/somewhere", enable_multimodal=True, **options)


def test_facts_are_read_once_for_ranks_and_media(built):
    server_args = args(tp_size=2)
    config = launch.check_ranks(server_args)
    media = launch._build_media(server_args, {"architectures": MEDIA}, config, object())
    assert media is config and len(built["read"]) == 1
    assert built["read"][0]["enable_multimodal"] is True


def test_one_rank_reads_them_for_media_only(built):
    assert launch.check_ranks(args()) is None
    assert launch._build_media(args(), {"architectures": TEXT}, None, object()) is None
    assert built["read"] == []
    assert launch._build_media(args(), {"architectures": MEDIA}, None, object()) is not None
    assert len(built["read"]) == 1


@pytest.mark.parametrize("named, meant", [(TEXT, MEDIA), (MEDIA, TEXT)])
def test_an_override_of_the_architecture_counts(built, named, meant):
    server_args = args(json_model_override_args=json.dumps({"architectures": meant}))
    found = launch._build_media(server_args, {"architectures": named}, None, object())
    assert (found is not None) == (meant is MEDIA)
