"""Every family against its own Hugging Face processor: the same ids, the same tensors."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import torch

pytest.importorskip("PIL")

import media_files
import tiny_processors
import transformers
from PIL import Image
from tiny_processors import make_tokenizer, token_id

from sglang.srt.multimodal.hf_processor import load_processor
from sglang.srt.multimodal.media.limits import MediaLimits
from sglang.srt.multimodal.media.sources import SourcePolicy
from sglang.srt.multimodal.processors.gemma3 import Gemma3ImageProcessor
from sglang.srt.multimodal.processors.internvl import (
    InternVLChatImageProcessor,
    InternVLImageProcessor,
)
from sglang.srt.multimodal.processors.llava import (
    LlavaImageProcessor,
    LlavaNextImageProcessor,
    LlavaOnevisionImageProcessor,
)
from sglang.srt.multimodal.processors.mllama import MllamaImageProcessor
from sglang.srt.multimodal.processors.qwen_audio import Qwen2AudioMultimodalProcessor
from sglang.srt.multimodal.processors.qwen_vl import QwenVLImageProcessor
from sglang.srt.server_args import ServerArgs
from sglang.srt.utils.errors import RequestError
from sglang.srt.utils.hf_transformers_utils import published_config

TEXT = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
TEXT |= {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 4096}
TOWER = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
TOWER |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
CLIP = {**TOWER, "model_type": "clip_vision_model"}
SIGLIP = {**TOWER, "model_type": "siglip_vision_model", "vision_use_head": False}
PINS = [[28, 56], [56, 28], [56, 56], [28, 84]]
LLAVA = ["<s>", "</s>", "<image>", "<video>"]


def image_processor(name, **settings):
    """Its twin that needs Pillow only, as is chosen without torchvision."""
    return getattr(transformers, f"{name}Pil")(**settings)


def llava_tokenizer():
    return make_tokenizer(LLAVA, named={"image_token": "<image>", "video_token": "<video>"})


def llava():
    tok = llava_tokenizer()
    images = image_processor(
        "LlavaImageProcessor", size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
    )
    hf = transformers.LlavaProcessor(
        images,
        tok,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    config = transformers.LlavaConfig(
        vision_config=CLIP, text_config={**TEXT, "model_type": "llama"},
        image_token_index=token_id(tok, "<image>"),
    )  # fmt: skip
    return hf, config, LlavaImageProcessor, "<image>"


def llava_full():
    hf, config, cls, placeholder = llava()
    hf.vision_feature_select_strategy = config.vision_feature_select_strategy = "full"
    return hf, config, cls, placeholder


def llava_next():
    tok = llava_tokenizer()
    images = image_processor(
        "LlavaNextImageProcessor",
        size={"shortest_edge": 28},
        crop_size={"height": 28, "width": 28},
        image_grid_pinpoints=PINS,
    )
    hf = transformers.LlavaNextProcessor(
        images,
        tok,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    config = transformers.LlavaNextConfig(
        vision_config=CLIP, text_config={**TEXT, "model_type": "llama"},
        image_token_index=token_id(tok, "<image>"), image_grid_pinpoints=PINS,
    )  # fmt: skip
    return hf, config, LlavaNextImageProcessor, "<image>"


def onevision(aspect="anyres_max_9"):
    tok = llava_tokenizer()
    images = image_processor(
        "LlavaOnevisionImageProcessor", size={"height": 28, "width": 28}, image_grid_pinpoints=PINS
    )
    hf = transformers.LlavaOnevisionProcessor(
        images, tok, None, num_image_tokens=4, vision_feature_select_strategy="full",
        vision_aspect_ratio=aspect,
    )  # fmt: skip
    config = transformers.LlavaOnevisionConfig(
        vision_config=SIGLIP, text_config={**TEXT, "model_type": "qwen2"},
        image_token_index=token_id(tok, "<image>"), video_token_index=token_id(tok, "<video>"),
        image_grid_pinpoints=PINS, vision_aspect_ratio=aspect,
    )  # fmt: skip
    return hf, config, LlavaOnevisionImageProcessor, "<image>"


def onevision_small():
    return onevision("anyres_max_1")


def gemma3():
    specials = ["<bos>", "<eos>", "<start_of_image>", "<end_of_image>", "<image_soft_token>"]
    named = {"boi_token": specials[2], "eoi_token": specials[3], "image_token": specials[4]}
    tok = make_tokenizer(specials, named=named)
    images = image_processor("Gemma3ImageProcessor", size={"height": 28, "width": 28})
    hf = transformers.Gemma3Processor(images, tok, image_seq_length=4)
    config = transformers.Gemma3Config(
        vision_config=SIGLIP, text_config=TEXT, mm_tokens_per_image=4,
        boi_token_index=token_id(tok, specials[2]), eoi_token_index=token_id(tok, specials[3]),
        image_token_index=token_id(tok, specials[4]),
    )  # fmt: skip
    return hf, config, Gemma3ImageProcessor, "<start_of_image>"


def internvl():
    specials = ["<s>", "</s>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>"]
    named = {"start_image_token": "<img>", "end_image_token": "</img>"}
    named |= {"context_image_token": "<IMG_CONTEXT>", "video_token": "<video>"}
    tok = make_tokenizer(specials, named=named)
    images = image_processor(
        "GotOcr2ImageProcessor", size={"height": 28, "width": 28}, max_patches=4
    )
    hf = transformers.InternVLProcessor(images, tok, None, image_seq_length=4)
    config = transformers.InternVLConfig(
        text_config={**TEXT, "model_type": "qwen2"}, image_seq_length=4,
        image_token_id=token_id(tok, "<IMG_CONTEXT>"),
    )  # fmt: skip
    return hf, config, InternVLImageProcessor, "<IMG_CONTEXT>"


def qwen2_vl():
    named = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    tok = make_tokenizer(tiny_processors.QWEN_TOKENS, named=named)
    size = {"shortest_edge": 28 * 28, "longest_edge": 112 * 112}
    hf = transformers.Qwen2VLProcessor(image_processor("Qwen2VLImageProcessor", size=size), tok)
    ids = {k: token_id(tok, token) for k, token in tiny_processors.QWEN_IDS.items()}
    config = transformers.Qwen2VLConfig(text_config=TEXT, **ids)
    return hf, config, QwenVLImageProcessor, "<|vision_start|><|image_pad|><|vision_end|>"


def mllama():
    tok = make_tokenizer(["<s>", "</s>", "<|image|>"], named={"image_token": "<|image|>"})
    tok.bos_token = "<s>"  # its processor writes one unless there is one
    images = image_processor(
        "MllamaImageProcessor", size={"height": 28, "width": 28}, max_image_tiles=4
    )
    hf = transformers.MllamaProcessor(images, tok)
    config = transformers.MllamaConfig(
        vision_config={"image_size": 28, "patch_size": 14, "hidden_size": 32},
        text_config={**TEXT, "cross_attention_layers": [0]},
        image_token_index=token_id(tok, "<|image|>"),
    )
    return hf, config, MllamaImageProcessor, "<|image|>"


FAMILIES = [
    llava,
    llava_full,
    llava_next,
    onevision,
    onevision_small,
    gemma3,
    internvl,
    mllama,
    qwen2_vl,
]
SIZES = [(60, 30), (30, 60), (28, 28), (100, 20), (57, 83)]


@pytest.fixture
def without_video(monkeypatch):
    """Processors with a slot for videos refuse to be built without torchvision; their halves for images work."""
    original = transformers.ProcessorMixin.check_argument_for_proper_class

    def check(self, name, value):
        return None if value is None else original(self, name, value)

    monkeypatch.setattr(transformers.ProcessorMixin, "check_argument_for_proper_class", check)


def build(family, folder):
    hf, config, cls, placeholder = family()
    config.architectures = [cls.models[0]]
    # An image processor's JSON and a tokenizer's are what published models have.
    for part in (hf.tokenizer, hf.image_processor, config):
        part.save_pretrained(folder)
    return hf, tiny_processors.build(str(folder), cls), placeholder


def run(processor, prompt, **media):
    request = tiny_processors.request(video_data=media.pop("video_data", None))
    arguments = {"image_data": None, "audio_data": None, **media}
    return asyncio.run(
        processor.process_mm_data_async(input_text=prompt, request_obj=request, **arguments)
    )


def pixels_of(item):
    """As Hugging Face has them: one tensor, tiles of all pictures padded to as many."""
    if isinstance(item.feature, list):
        return torch.nn.utils.rnn.pad_sequence(item.feature, batch_first=True)
    return item.feature


def is_equal(ours, theirs):
    """Llama 3.2's processor puts an axis of prompts in front."""
    theirs = torch.as_tensor(theirs)
    return torch.equal(ours, theirs) or torch.equal(ours[None], theirs)


def rows_of(result):
    (item,) = result["mm_items"]
    return sum(last - first + 1 for first, last in item.offsets)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_ids_and_tensors_are_those_of_the_hugging_face_processor(family, tmp_path, without_video):
    hf, processor, placeholder = build(family, tmp_path)
    for number, size in enumerate(SIZES):
        prompt = f"<s>see\n{placeholder}\n\nand"
        picture = media_files.picture(*size, seed=number)
        expected = hf(text=[prompt], images=[picture], return_tensors="pt")
        result = run(processor, prompt, image_data=[picture])
        assert result["input_ids"] == expected["input_ids"][0].tolist(), size
        (item,) = result["mm_items"]
        assert is_equal(pixels_of(item), expected["pixel_values"])
        for key in ("image_sizes", "image_grid_thw", "aspect_ratio_ids", "aspect_ratio_mask"):
            if key in expected:
                assert is_equal(torch.as_tensor(getattr(item, key)), expected[key])
        row = result["im_token_id"]
        assert rows_of(result) == result["input_ids"].count(row)
    processor.close()


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_two_images(family, tmp_path, without_video):
    hf, processor, placeholder = build(family, tmp_path)
    pictures = [media_files.picture(60, 30), media_files.picture(28, 56, seed=1)]
    prompt = f"<s>{placeholder}{placeholder}\nwhich?"
    nested = [pictures] if family in (onevision, onevision_small, gemma3, mllama) else pictures
    expected = hf(text=[prompt], images=nested, return_tensors="pt")
    result = run(processor, prompt, image_data=pictures)
    assert result["input_ids"] == expected["input_ids"][0].tolist()
    (item,) = result["mm_items"]
    assert is_equal(pixels_of(item), expected["pixel_values"])
    assert len(item.offsets) == 2
    with pytest.raises(RequestError, match="placeholders for"):
        run(processor, prompt, image_data=pictures[:1])
    processor.close()


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
@pytest.mark.parametrize("size", [(4000, 1), (1, 4000)], ids=["wide", "tall"])
def test_a_line_of_pixels_becomes_no_large_picture(
    family, size, tmp_path, without_video, monkeypatch
):
    """Scaled by its shorter side it would: 65,536 x 1 pixels become 22 GiB."""
    _, processor, placeholder = build(family, tmp_path)
    processor.source_policy = SourcePolicy(MediaLimits(max_pixels=250_000))
    made = []
    resize = Image.Image.resize

    def watched(image, size, *args, **kwargs):
        made.append(size[0] * size[1])
        return resize(image, size, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "resize", watched)
    try:
        run(processor, placeholder, image_data=[media_files.picture(*size)])
    except RequestError as error:
        assert not made, error
    assert max(made, default=0) <= 250_000
    # What is merely long goes through.
    assert rows_of(run(processor, placeholder, image_data=[media_files.picture(90, 30)]))
    processor.close()


# --- the authors' InternVL, whose image processor cuts no tiles


def test_internvl_chat_cuts_as_the_converted_one(tmp_path, without_video):
    hf, _, _, placeholder = internvl()
    hf.image_processor.image_mean = [0.485, 0.456, 0.406]
    hf.image_processor.image_std = [0.229, 0.224, 0.225]
    hf.tokenizer.save_pretrained(tmp_path)
    # What their repositories hold.
    image_processor("CLIPImageProcessor", size=28, crop_size=28).save_pretrained(tmp_path)
    raw = {
        "model_type": "internvl_chat", "architectures": ["InternVLChatModel"], "downsample_ratio": 0.5,
        "llm_config": {**TEXT, "model_type": "qwen2"}, "vision_config": {"image_size": 28, "patch_size": 7},
        "force_image_size": 28, "dynamic_image_size": True, "use_thumbnail": True, "min_dynamic_patch": 1,
        "max_dynamic_patch": 4,
    }  # fmt: skip
    parts = load_processor(str(tmp_path), hf.tokenizer)
    processor = InternVLChatImageProcessor(published_config(raw), ServerArgs(model_path="."), parts)
    for pictures in ([media_files.picture(60, 30)], [media_files.picture(28, 28), media_files.picture(57, 83)]):  # fmt: skip
        prompt = f"<s>{placeholder * len(pictures)}\nwhich?"
        expected = hf(text=[prompt], images=pictures, return_tensors="pt")
        result = run(processor, prompt, image_data=pictures)
        assert result["input_ids"] == expected["input_ids"][0].tolist()
        (item,) = result["mm_items"]
        assert torch.equal(item.feature, expected["pixel_values"])
        assert sum(item.num_patches) == len(item.feature)
    processor.close()


# --- tiles that a client prepared


@pytest.mark.parametrize("sizes", [[[0, 30]], [[60, 30], [60, 30]], [60, 30], [[60, 30, 3]]])
def test_sizes_that_fit_no_picture_are_refused(tmp_path, without_video, sizes):
    _, processor, _ = build(llava_next, tmp_path)
    item = {"format": "processor_output", "image_sizes": sizes}
    item["pixel_values"] = np.zeros((1, 3, 3, 28, 28), np.float32)
    with pytest.raises(RequestError, match="image_sizes must hold"):
        run(processor, "<image>x", image_data=[item])
    item["image_sizes"] = [[60, 30]]
    assert rows_of(run(processor, "<image>x", image_data=[item])) > 4
    processor.close()


@pytest.mark.parametrize(
    ("family", "name", "counts"),
    [
        (internvl, "num_patches", [10**9]),
        (internvl, "num_patches", [-1]),
        (internvl, "num_patches", [4000, 4000]),
        (internvl, "num_patches", [1.5]),
        (gemma3, "num_crops", [10**9]),
        (mllama, "num_tiles", [10**9]),
    ],
)
def test_counts_that_would_fill_the_memory_are_refused(
    tmp_path, without_video, family, name, counts
):
    """They say how many ids a prompt is expanded to."""
    _, processor, placeholder = build(family, tmp_path)
    for given in (
        {"format": "processor_output", "pixel_values": np.zeros((1, 3, 28, 28), np.float32)},
        {"format": "precomputed_embedding", "feature": np.zeros((1, 32), np.float32)},
    ):
        with pytest.raises(RequestError, match=f"{name} must hold whole numbers"):
            run(processor, placeholder, image_data=[{**given, name: counts}])
    processor.close()


@pytest.mark.parametrize("family", [llava, gemma3, mllama], ids=lambda family: family.__name__)
@pytest.mark.parametrize(
    "item",
    [
        {"format": "processor_output", "pixel_values": np.zeros((0, 3, 28, 28), np.float32)},
        {"format": "precomputed_embedding", "feature": np.zeros((0, 32), np.float32)},
    ],
    ids=lambda item: item["format"],
)
def test_prepared_data_without_media_are_refused(tmp_path, without_video, family, item):
    """Nothing would take the place of the placeholder."""
    _, processor, placeholder = build(family, tmp_path)
    with pytest.raises(RequestError, match="hold no media|rows were given for"):
        run(processor, f"{placeholder}x", image_data=[item])
    processor.close()


# --- videos of LLaVA-OneVision


def test_frames_are_pooled_to_a_quarter(tmp_path, without_video):
    _, processor, _ = build(onevision, tmp_path)
    frames = [media_files.picture(28, 28, seed=i) for i in range(3)]
    result = run(processor, "<video>x", video_data=[frames])
    (item,) = result["mm_items"]
    mean, std = processor._processor.image_processor.image_mean, processor._processor.image_processor.image_std  # fmt: skip
    expected = (np.stack([np.asarray(f) for f in frames]) / 255 - mean) / std
    np.testing.assert_allclose(item.feature[0].permute(0, 2, 3, 1), expected, atol=1e-5)
    assert item.offsets == [(0, 3)]  # one row for each frame of 2 x 2 patches, and the newline
    assert len(processor.sample_frames(1000, 24.0)) == 32
    processor.close()


# --- sounds


def test_sounds_match_the_hugging_face_processor(tmp_path):
    specials = ["<s>", "</s>", "<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>"]
    tok = make_tokenizer(specials, named={"audio_token": "<|AUDIO|>"})
    extractor = transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=2)
    hf = transformers.Qwen2AudioProcessor(extractor, tok)
    config = transformers.Qwen2AudioConfig(
        text_config={**TEXT, "model_type": "qwen2"}, audio_token_index=token_id(tok, "<|AUDIO|>")
    )
    config.architectures = ["Qwen2AudioForConditionalGeneration"]
    for part in (hf, config):
        part.save_pretrained(tmp_path)
    processor = tiny_processors.build(str(tmp_path), Qwen2AudioMultimodalProcessor)
    rng = np.random.default_rng(0)
    sounds = [rng.normal(0, 0.1, size).astype(np.float32) for size in (16000, 5000)]
    prompt = "<|audio_bos|><|AUDIO|><|audio_eos|> and <|audio_bos|><|AUDIO|><|audio_eos|>?"
    expected = hf(text=[prompt], audio=sounds, sampling_rate=16000, return_tensors="pt")
    result = run(processor, prompt, audio_data=sounds)
    assert result["input_ids"] == expected["input_ids"][0].tolist()
    (item,) = result["mm_items"]
    assert torch.equal(item.feature, expected["input_features"])
    assert torch.equal(item.feature_attention_mask, expected["feature_attention_mask"])
    assert len(item.offsets) == 2
    with pytest.raises(RequestError, match="too short"):
        run(processor, "<|AUDIO|>", audio_data=[np.zeros(100, np.float32)])
    with pytest.raises(RequestError, match="has no samples"):
        run(processor, "<|AUDIO|>", audio_data=[np.zeros(0, np.float32)])
    processor.close()
