"""Media on the front's side: dealt out to prompts, fetched under one policy, prepared in threads, bounded, packed."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace

import pytest

pytest.importorskip("PIL")

import media_files
import tiny_processors

from sglang.srt.managers import media_front
from sglang.srt.managers.input_expansion import expand_input
from sglang.srt.managers.io_struct import GenerateReqInput
from sglang.srt.managers.media_front import MediaFront
from sglang.srt.managers.media_input import describe_media
from sglang.srt.managers.tokenizer_manager import TokenizerManager
from sglang.srt.multimodal.inputs import Modality
from sglang.srt.multimodal.media import budget
from sglang.srt.multimodal.media.data import ImageData
from sglang.srt.multimodal.media.sources import SourcePolicy
from sglang.srt.multimodal.processors.qwen_vl import QwenVLImageProcessor
from sglang.srt.multimodal.transport import unpack
from sglang.srt.server_args import ServerArgs
from sglang.srt.utils.errors import RequestError

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
PNG = media_files.encoded(media_files.picture(56, 84))
INFO = {"context_len": 64, "vocab_size": 300}


class Client:
    """Takes what would go to the scheduler."""

    is_alive = True

    def __init__(self):
        self.sent = []

    def send(self, message):
        self.sent.append(message)

    def bind_loop(self, loop):
        pass

    def close(self):
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_processors.qwen_folder(tmp_path_factory.mktemp("qwen"))


@pytest.fixture
def make_manager(folder):
    managers = []

    def make(policy=None, **flags):
        processor = tiny_processors.build(folder, QwenVLImageProcessor, **flags)
        args = ServerArgs(model_path=folder, **flags)
        front = MediaFront(processor, args, policy)
        tokenizer = processor._processor.tokenizer
        managers.append(TokenizerManager(args, Client(), INFO, tokenizer, media=front))
        return managers[-1]

    yield make
    for manager in managers:
        manager.close()


def tokenize(manager, **fields):
    obj = GenerateReqInput(**fields)
    return asyncio.run(manager._tokenize(expand_input(obj), stream=False))


# --- dealing out


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ("a", "x", [["x"]]),
        ("a", ["x", "y"], [["x", "y"]]),
        ("a", [["x", "y"]], [["x", "y"]]),
        ("a", None, [None]),
        ("a", [None], [None]),
        (["a", "b"], ["x", "y"], [["x"], ["y"]]),
        (["a", "b"], [["x", "y"], None], [["x", "y"], None]),
        (["a", "b"], "x", [["x"], ["x"]]),
        (["a"], [["x", "y"]], [["x", "y"]]),
    ],
    ids=str,
)
def test_media_are_dealt_out_to_prompts(text, value, expected):
    prompts = expand_input(GenerateReqInput(text=text, image_data=value)).prompts
    assert [p.media and p.media.image_data for p in prompts] == expected


def test_a_batch_needs_one_entry_per_prompt():
    with pytest.raises(RequestError, match="3 entries for 2 prompts"):
        expand_input(GenerateReqInput(text=["a", "b"], image_data=["x", "y", "z"]))


def test_logs_show_sizes_not_content():
    shown = describe_media(["A" * 500, b"123", {"format": "x"}, "http://host/a.png", object()])
    assert shown == [
        "<500 characters>",
        "<3 bytes>",
        "<prepared: format>",
        "http://host/a.png",
        "<object>",
    ]


# --- the way through


def test_a_request_with_an_image_is_expanded_and_packed(make_manager):
    manager = make_manager()
    (request,) = tokenize(manager, text=f"a{IMAGE}", image_data=media_files.data_url(PNG))
    pad = manager.media.processor.hf_config.image_token_id
    assert request.input_ids.count(pad) == 6
    item = unpack(request.mm_inputs)["mm_items"][0]
    assert item.modality is Modality.IMAGE and item.offsets == [(2, 7)] and item.digests


def test_text_requests_carry_nothing(make_manager):
    (request,) = tokenize(make_manager(), text="abc")
    assert request.mm_inputs is None and len(request.input_ids) == 3


def test_batches_mix_prompts_with_and_without_images(make_manager):
    requests = tokenize(make_manager(), text=["a", f"b{IMAGE}", "c"], image_data=[None, PNG, None])
    assert [request.mm_inputs is not None for request in requests] == [False, True, False]


def test_options_travel_with_the_source(make_manager):
    (request,) = tokenize(make_manager(), text=IMAGE, image_data=ImageData(PNG, "low"))
    assert request.mm_inputs


def test_what_model_info_says(make_manager):
    info = make_manager().model_info
    assert info["has_image_understanding"] and not info["has_audio_understanding"]


def refused(manager, **fields):
    with pytest.raises(RequestError) as caught:
        tokenize(manager, **fields)
    assert 400 <= caught.value.status_code < 500
    return str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text": IMAGE}, "1 placeholders for media, and the request brings no media"),
        ({"text": "a", "image_data": PNG}, "0 placeholders for 1 image items"),
        ({"text": IMAGE, "image_data": [PNG] * 2}, "1 placeholders for 2 image items"),
        ({"text": IMAGE, "image_data": [PNG] * 500}, "500 image items; this server allows 256"),
        ({"text": IMAGE, "audio_data": b"x"}, "takes no audio input; it takes: image, video"),
        ({"text": IMAGE, "image_data": 3}, "cannot be given as int"),
        ({"text": IMAGE, "image_data": b"no image"}, "known format"),
        ({"text": IMAGE, "image_data": "/etc/passwd.png"}, "reads no files for its clients"),
        ({"text": IMAGE, "image_data": "http://127.0.0.1:9/a.png"}, "not public"),
        ({"text": "a" * 50 + IMAGE * 3, "image_data": [PNG] * 3}, "too long after expanding multimodal tokens"),
        ({"input_ids": [10**6], "image_data": PNG}, "outside the vocabulary"),
    ],
    ids=lambda value: "" if isinstance(value, str) else ",".join(value),
)  # fmt: skip
def test_bad_requests_are_refused_with_a_sentence(make_manager, fields, message):
    assert message in refused(make_manager(), **fields)


def test_media_to_a_text_model_are_refused(folder):
    args = ServerArgs(model_path=folder)
    tokenizer = tiny_processors.make_tokenizer(["<s>", "</s>"])
    manager = TokenizerManager(args, Client(), INFO, tokenizer)
    assert "takes text only" in refused(manager, text="a", image_data=PNG)
    manager.close()


def test_the_engines_own_user_may_name_files(make_manager, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    manager = make_manager()
    (request,) = tokenize(manager, text=IMAGE, image_data=str(path), media_is_local=True)
    assert request.mm_inputs
    rooted = make_manager(SourcePolicy(root=str(tmp_path)))
    (request,) = tokenize(rooted, text=IMAGE, image_data=path.as_uri())
    assert request.mm_inputs


def test_counts_may_be_limited(make_manager):
    manager = make_manager(limit_mm_data_per_request={"image": 1, "video": 0})
    assert tokenize(manager, text=IMAGE, image_data=PNG)
    assert "allows 1 per request" in refused(manager, text=IMAGE * 2, image_data=[PNG] * 2)
    assert "allows 0 per request" in refused(manager, text=IMAGE, video_data=PNG)


class Stuck(QwenVLImageProcessor):
    models: list = []
    release = threading.Event()

    async def process_mm_data_async(
        self, image_data, audio_data, input_text, request_obj, **kwargs
    ):
        if image_data[0] == b"stuck":
            self.release.wait(20)
        if image_data[0] == b"bug":
            raise KeyError("somewhere at 0x7f0000000000")
        return {"input_ids": input_text, "mm_items": []}


@pytest.fixture
def stuck(folder):
    processor = tiny_processors.build(folder, Stuck)
    args = SimpleNamespace(
        limit_mm_data_per_request=None, mm_per_request_timeout=0.2, mm_max_concurrent_calls=2
    )
    front = MediaFront(processor, args)
    Stuck.release.clear()
    yield front
    Stuck.release.set()
    front.close()


def prompt(source):
    return expand_input(GenerateReqInput(text="a", image_data=source)).prompts[0]


def test_a_stuck_medium_times_out_and_harms_nobody(stuck):
    async def both():
        bad = asyncio.ensure_future(stuck.prepare(prompt(b"stuck"), [1], 9))
        good = await stuck.prepare(prompt(b"fine"), [1, 2], 9)
        with pytest.raises(RequestError, match="not ready within 0.2 seconds") as caught:
            await bad
        return good, caught.value.status_code

    good, status = asyncio.run(both())
    assert good.input_ids == [1, 2] and status == 408


def test_a_processor_that_breaks_says_nothing_of_its_insides(stuck):
    with pytest.raises(RequestError) as caught:
        asyncio.run(stuck.prepare(prompt(b"bug"), [1], 9))
    assert str(caught.value) == "the media of the request could not be prepared"


def test_files_of_a_request_are_limited_together(stuck, monkeypatch):
    monkeypatch.setattr(budget, "MAX_REQUEST_BYTES", 1000)
    with pytest.raises(RequestError, match="allowed together") as caught:
        asyncio.run(stuck.prepare(prompt([bytes(400)] * 3), [1], 9))
    assert caught.value.status_code == 413
    assert asyncio.run(stuck.prepare(prompt([bytes(400)] * 2), [1], 9)).input_ids == [1]


def test_what_nobody_waits_for_is_not_read(stuck, monkeypatch):
    """The threads that read are few, and those of a request that is over are somebody else's."""
    read = []

    def slow(source, kind, policy):
        read.append(source)
        Stuck.release.wait(20)
        return source

    monkeypatch.setattr(media_front, "read_source", slow)
    with pytest.raises(RequestError, match="not ready within"):
        asyncio.run(stuck.prepare(prompt([b"one"] * 100), [1], 9))
    Stuck.release.set()
    stuck.processor.io_executor.submit(int).result()  # behind whatever was queued
    assert 0 < len(read) <= 4


def test_threads_that_never_come_back_are_noticed(stuck, monkeypatch):
    """Waiting for a thread is not counted, but others must get on."""
    monkeypatch.setattr(media_front, "_STUCK_SECONDS", 0.1)

    async def crowd():
        bad = [asyncio.ensure_future(stuck.prepare(prompt(b"stuck"), [1], 9)) for _ in range(2)]
        await asyncio.gather(*bad, return_exceptions=True)
        with pytest.raises(RequestError, match="do not get ready") as caught:
            await asyncio.wait_for(stuck.prepare(prompt(b"fine"), [1], 9), 10)
        Stuck.release.set()
        good = await stuck.prepare(prompt(b"fine"), [1, 2], 9)
        return good, caught.value.status_code

    good, status = asyncio.run(crowd())
    assert good.input_ids == [1, 2] and status == 503
