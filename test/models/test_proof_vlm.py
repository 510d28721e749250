"""Every tiny model that takes media, in every form with media, against transformers; and what the prefix cache must not share."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from models.configs_vlm import VLM_CASES
from models.record import note

from sglang.srt.managers.step_plan import StepPlan
from sglang.srt.model_executor import encoder_rows
from sglang.srt.model_executor.batch_builder import BatchBuilder
from sglang.srt.models import gemma3_mm
from sglang.srt.models import mllama as mllama_model
from sglang.srt.multimodal import intake
from sglang.srt.multimodal.inputs import MultimodalDataItem
from sglang.verify import media_corrections
from sglang.verify.forms import Ask, Form, batch_of, forms_named
from sglang.verify.media import MediaPrompt, MediaProof, require_family
from sglang.verify.media_forms import media_forms
from sglang.verify.media_tiny import write_media_config
from sglang.verify.ranks import TP_MEDIA_FORM, TP_SIZES, Ranks, prove_on_ranks
from sglang.verify.tiny import tiny_config


def _prompts(name: str) -> dict[str, MediaPrompt]:
    case = VLM_CASES[name]
    return require_family([case.architecture]).prompts(case.config())


PROMPTS = {name: _prompts(name) for name in VLM_CASES}
FORMS = media_forms(PROMPTS["qwen2-vl"])
TEXT_FORMS = forms_named(["whole prefill", "full hit", "mixed with prefill, page 1"])
WHOLE = Form("an image and a video", (Ask("image and video", num_tokens=2),))
IMAGES = Form("images", (Ask("image", num_tokens=2), Ask("two images", num_tokens=2)))
CASES = [
    (name, form)
    for name, prompts in PROMPTS.items()
    for form in (*media_forms(prompts), *TEXT_FORMS)
]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def proof(request: Any, tmp_path_factory: pytest.TempPathFactory) -> MediaProof:
    """One per model, used for all of its forms."""
    raw = VLM_CASES[request.param].config()
    folder = write_media_config(raw, tmp_path_factory.mktemp(request.param))
    return MediaProof(str(folder), require_family(raw["architectures"]), raw)


@pytest.mark.parametrize(
    ("proof", "form"),
    CASES,
    indirect=["proof"],
    ids=[f"{name}-{form.name}" for name, form in CASES],
    scope="module",
)
def test_form(proof: MediaProof, form: Form, request: pytest.FixtureRequest) -> None:
    result = proof.run(form)
    case = request.node.callspec.params["proof"]
    note(request, case, VLM_CASES[case].architecture, result)
    assert result.passed, result.detail


@pytest.mark.parametrize("proof", list(VLM_CASES), indirect=True, scope="module")
def test_every_parameter_counts(proof: MediaProof) -> None:
    """A tenth of its spread added at random to any one parameter is noticed, those of the tower included."""
    whole = WHOLE if "video" in proof.media else IMAGES
    assert proof.run(whole).passed
    unnoticed = []
    for name, parameter in proof.subject(1).model.named_parameters():
        original = parameter.detach().clone()
        noise = torch.randn(original.shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            parameter += 0.1 * _spread(original) * noise
        if proof.run(whole).passed:
            unnoticed.append(name)
        with torch.no_grad():
            parameter.copy_(original)
    assert not unnoticed
    assert proof.run(whole).passed, "the parameters were not restored"


def _spread(values: torch.Tensor) -> torch.Tensor:
    """Of the gate of a whole layer, which is one number, its size."""
    return values.std() if values.numel() > 1 else values.abs()


# --- controls: what must be noticed


@pytest.fixture
def qwen2_vl(tmp_path_factory: pytest.TempPathFactory) -> MediaProof:
    raw = tiny_config("Qwen2VLForConditionalGeneration")
    folder = write_media_config(raw, tmp_path_factory.mktemp("control"))
    return MediaProof(str(folder), require_family(raw["architectures"]), raw)


def _collide(monkeypatch: pytest.MonkeyPatch) -> None:
    """All media have one pad value and one hash."""

    def set_pad_value(self: MultimodalDataItem) -> None:
        self.hash, self.pad_value = 7, 1_000_007

    monkeypatch.setattr(MultimodalDataItem, "set_pad_value", set_pad_value)


def _forms(part: str) -> list[Form]:
    return [form for form in FORMS if part in form.name]


@pytest.mark.parametrize(
    "form",
    [*_forms("another image"), *_forms("second image differs"), *_forms("together")],
    ids=lambda form: form.name,
)
def test_colliding_pad_values_leak_nothing(
    qwen2_vl: MediaProof, form: Form, monkeypatch: pytest.MonkeyPatch
) -> None:
    _collide(monkeypatch)
    result = qwen2_vl.run(form)
    assert result.passed, result.detail


def test_keys_made_of_pad_values_would_leak(
    qwen2_vl: MediaProof, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The adversary is real: with pad values as cache keys the second image is answered with the first."""
    _collide(monkeypatch)
    monkeypatch.setattr(intake, "cache_keys", lambda padded, items, positions: list(padded))
    result = qwen2_vl.run(_forms("another image, page 1")[0])
    assert not result.passed
    assert result.max_abs_diff > result.bound


def test_positions_in_one_row_are_noticed(
    qwen2_vl: MediaProof, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = BatchBuilder.build

    def build(self: BatchBuilder, plan: StepPlan) -> Any:
        batch = honest(self, plan)
        batch.mrope_positions = batch.positions.repeat(3, 1)
        return batch

    monkeypatch.setattr(BatchBuilder, "build", build)
    assert not qwen2_vl.run(WHOLE).passed
    text = Form("text", (Ask("short", num_tokens=4),))
    assert qwen2_vl.run(text).passed, "text has three equal rows"


def test_the_tower_runs_once_for_the_same_image(
    qwen2_vl: MediaProof, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight requests at once, their prefix not cached yet, and chunks that cut the image."""
    model: Any = qwen2_vl.subject(1).model
    honest, runs = model.visual.forward, []

    def forward(patches: torch.Tensor, grid: Any) -> torch.Tensor:
        runs.append(len(patches))
        return honest(patches, grid)

    monkeypatch.setattr(model.visual, "forward", forward)
    asks = tuple(Ask("image", num_tokens=2) for _ in range(8))
    assert qwen2_vl.run(Form("eight", asks, expects=(batch_of(8, "decode"),))).passed
    assert len(runs) == 1
    runs.clear()
    chunked = next(form for form in FORMS if form.name == "media: chunks of 5, page 1")
    assert qwen2_vl.run(chunked).passed
    assert len(runs) == 3, "two images and a video"


# --- Gemma 3: rows of an image see each other


@pytest.fixture
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> MediaProof:
    raw = VLM_CASES["gemma3-images"].config()
    folder = write_media_config(raw, tmp_path_factory.mktemp("gemma3"))
    return MediaProof(str(folder), require_family(raw["architectures"]), raw)


def _gemma3_form(name: str) -> Form:
    return next(form for form in media_forms(PROMPTS["gemma3-images"]) if form.name == name)


def test_images_that_see_only_what_is_before_are_noticed(
    gemma3: MediaProof, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = _gemma3_form("media: one by one, page 1")
    assert gemma3.run(form).passed
    monkeypatch.setattr(gemma3_mm, "spans_of", lambda mm_inputs: [])
    assert not gemma3.run(form).passed


def test_images_that_chunks_cut_are_noticed(
    gemma3: MediaProof, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = _gemma3_form("media: chunks of 5, page 1")
    assert gemma3.run(form).passed
    monkeypatch.setattr(intake.RequestMedia, "chunk", lambda self, start, wanted, *rest: wanted)
    assert not gemma3.run(form).passed


# --- Llama 3.2 Vision: pictures are attended to across


@pytest.fixture
def mllama(tmp_path_factory: pytest.TempPathFactory) -> MediaProof:
    raw = VLM_CASES["mllama"].config()
    folder = write_media_config(raw, tmp_path_factory.mktemp("mllama"))
    return MediaProof(str(folder), require_family(raw["architectures"]), raw)


def _mllama_forms(part: str) -> list[Form]:
    return [form for form in media_forms(PROMPTS["mllama"]) if part in form.name]


_PICTURES_FIRST = Form(
    "pictures first", (Ask("image first", num_tokens=4), Ask("side by side first", num_tokens=4))
)


def test_tokens_before_the_first_picture_see_none(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There transformers is corrected; elsewhere it is as it is. Uncorrected, what comes later changes what was said before."""
    monkeypatch.setattr(media_corrections, "_CORRECTIONS", {})
    raw = VLM_CASES["mllama"].config()
    folder = write_media_config(raw, tmp_path_factory.mktemp("uncorrected"))
    proof = MediaProof(str(folder), require_family(raw["architectures"]), raw)
    assert proof.run(_PICTURES_FIRST).passed
    assert not proof.run(IMAGES).passed
    one, other = (proof.media[name] for name in ("two images", "second differs"))
    before = one.media_at[0]
    assert one.token_ids == other.token_ids
    names = ("two images", "second differs")
    theirs = [proof.logits_of(f"0-{name}", one.token_ids)[:before] for name in names]
    assert not torch.allclose(*theirs, atol=1e-3)


def test_pictures_that_are_seen_by_all_tokens_behind_them_are_noticed(
    mllama: MediaProof, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mllama.run(IMAGES).passed
    honest = mllama_model.views_of

    def views_of(places: list[int], rows: list[int]) -> list[tuple[int, int, int]]:
        return [(place, 0, end) for place, _, end in honest(places, rows)]

    monkeypatch.setattr(mllama_model, "views_of", views_of)
    assert not mllama.run(IMAGES).passed


def test_encoder_keys_of_another_request_are_noticed(
    mllama: MediaProof, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys are written for the request that brings them, and nobody else's are read."""
    form = Form("two at once", (Ask("image", num_tokens=3), Ask("other image", num_tokens=3)))
    assert mllama.run(form).passed
    honest = encoder_rows.EncoderRows.update

    def update(self: Any, media: Any) -> Any:
        return {row: slots[::-1].copy() for row, slots in honest(self, media).items()}

    monkeypatch.setattr(encoder_rows.EncoderRows, "update", update)
    assert mllama.run(form).passed, "keys have no order of their own within one picture"

    def shifted(self: Any, media: Any) -> Any:
        return {row: slots + 1 for row, slots in honest(self, media).items()}

    monkeypatch.setattr(encoder_rows.EncoderRows, "update", shifted)
    assert not mllama.run(form).passed


def test_the_tower_of_tiles_runs_once_for_the_same_picture(
    mllama: MediaProof, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Together and later; keys of its own are what each request has."""
    model: Any = mllama.subject(1).model
    honest, runs = model.visual.forward, []

    def forward(pixels: torch.Tensor, ratio_ids: list[int]) -> torch.Tensor:
        runs.append(len(pixels))
        return honest(pixels, ratio_ids)

    monkeypatch.setattr(model.visual, "forward", forward)
    asks = (*(Ask("image", num_tokens=2) for _ in range(7)), Ask("image", None, 2))
    assert mllama.run(Form("eight", asks, expects=(batch_of(7, "decode"),))).passed
    assert runs == [1]
    runs.clear()
    assert mllama.run(Form("twice", (Ask("image twice", num_tokens=2),))).passed
    assert runs == [1]


@pytest.mark.parametrize("part", ["another image, page 1", "second image differs", "together"])
def test_colliding_pad_values_of_pictures_leak_nothing(
    mllama: MediaProof, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _collide(monkeypatch)
    for form in _mllama_forms(part):
        result = mllama.run(form)
        assert result.passed, result.detail


@pytest.mark.parametrize("tp_size", TP_SIZES)
def test_pictures_on_ranks(mllama: MediaProof, tp_size: int) -> None:
    """Two key heads on four ranks too."""
    with Ranks(tp_size) as ranks:
        (result,) = prove_on_ranks(ranks, mllama, tp_size, (TP_MEDIA_FORM,))
    assert result.passed, result.detail
