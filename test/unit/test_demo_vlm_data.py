"""The data and the training pass of the demo model that sees: right answers, an honest split, transformers' own numbers."""

from __future__ import annotations

import importlib.util
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("PIL")
pytest.importorskip("transformers")

_ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(_ROOT / "scripts" / name) for name in ("demo_model", "demo_vlm")]

import choice  # noqa: E402
import draw  # noqa: E402
import font  # noqa: E402
import forward  # noqa: E402
import mixture  # noqa: E402
import model  # noqa: E402
import pixels  # noqa: E402
import publish  # noqa: E402
import rows  # noqa: E402
import score  # noqa: E402
from item import is_held_out  # noqa: E402
from PIL import Image  # noqa: E402
from scene import COLOURS, PLACES, SHAPES, Figure, Print, Scene  # noqa: E402

TOKENIZER = _ROOT / "python" / "sglang" / "demo_model"
PICTURE_SKILLS = [skill for skill in mixture.NEW_SKILLS if skill.startswith("picture_")]


def _questions(skill: str, held_out: bool, count: int = 60) -> list[mixture.Question]:
    rng = random.Random(f"test {skill} {held_out}")
    return [mixture.sample(skill, rng, held_out) for _ in range(count)]


def _load_train() -> Any:
    """The training script, by its path: the text demo's has the same name."""
    spec = importlib.util.spec_from_file_location(
        "demo_vlm_train", _ROOT / "scripts" / "demo_vlm" / "train.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


train = _load_train()


def _text(question: mixture.Question) -> str:
    content = question.messages[-1]["content"]
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return model.load_tokenizer(TOKENIZER)


@pytest.fixture(scope="module")
def random_model(tokenizer: Any) -> Any:
    """The model with every parameter away from its start, in float32."""
    torch.manual_seed(0)
    built = model.build_model(tokenizer).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return built


# The split and the generator.


@pytest.mark.parametrize("skill", mixture.NEW_SKILLS)
def test_held_out_content_is_never_trained(skill: str) -> None:
    assert not any(is_held_out(k) for q in _questions(skill, False) for k in q.keys)
    assert all(is_held_out(k) for q in _questions(skill, True, 10) for k in q.keys)


def test_conversations_show_no_held_out_picture() -> None:
    rng = random.Random(4)
    drawn = [mixture.draw_conversation(rng) for _ in range(300)]
    shown = [picture for conversation in drawn for picture in conversation.pictures]
    assert len(shown) > 100
    assert not any(is_held_out(picture.key) for picture in shown)
    for conversation in drawn:
        parts = [
            part
            for message in conversation.messages
            if not isinstance(message["content"], str)
            for part in message["content"]
        ]
        assert sum(part["type"] == "image" for part in parts) == len(conversation.pictures)


def test_the_same_seed_gives_the_same_questions_and_pictures() -> None:
    one, same = (mixture.sample_held_out("picture_describe", 8, seed=3) for _ in range(2))
    assert one == same
    assert one != mixture.sample_held_out("picture_describe", 8, seed=4)
    images = [draw.render(q.pictures[0], random.Random(7)) for q in (*one, *same)]
    assert [i.tobytes() for i in images[:8]] == [i.tobytes() for i in images[8:]]


def test_unknown_skill_is_named_in_the_error() -> None:
    with pytest.raises(ValueError, match="unknown skill 'poetry'"):
        mixture.sample("poetry", random.Random(0), held_out=True)


# The answers, checked by other means than those that made them.


def _named(scene: Scene, words: str) -> list[Figure]:
    """The figures that words such as "red shapes" or "stars" speak of."""
    tints = [c for c in COLOURS if re.search(rf"\b{c}\b", words)]
    kinds = [s for s in SHAPES if s in words]
    return [
        figure
        for figure in scene.figures
        if (not tints or figure.colour in tints) and (not kinds or figure.shape in kinds)
    ]


def _check_count(scene: Scene, text: str, answer: str) -> None:
    found = re.search(r"There (is|are) (\d+) (.*)\.$", answer)
    assert found is not None
    figures = _named(scene, found[3])
    assert int(found[2]) == len(figures)
    counted = re.findall(r"\d+ ([a-z ]+?)[,.]", answer[: found.start()])
    assert counted == [PLACES[f.place][0] for f in figures]


def _check_position(scene: Scene, text: str, answer: str) -> None:
    where = next(w for _, w in sorted(PLACES, key=lambda p: -len(p[1])) if w + "." in answer)
    place = [w for _, w in PLACES].index(where)
    here = [figure for figure in scene.figures if figure.place == place]
    if answer.startswith("Nothing"):
        assert not here
    else:
        assert here == [f for f in _named(scene, answer.lower()) if f.place == place]


def _check_relation(scene: Scene, text: str, answer: str) -> None:
    question = text.lower()
    word = next(w for w in ("to the left of", "to the right of", "above", "below") if w in question)
    before, after = question.split(word)
    (one,), (other,) = _named(scene, before), _named(scene, after)
    dx, dy = one.place % 3 - other.place % 3, one.place // 3 - other.place // 3
    holds = {"to the left of": dx < 0, "to the right of": dx > 0, "above": dy < 0, "below": dy > 0}
    assert answer.endswith("so yes." if holds[word] else "so no.")
    assert PLACES[one.place][1] in answer and PLACES[other.place][1] in answer


def _check_yes_no(scene: Scene, text: str, answer: str) -> None:
    assert answer.endswith("so yes." if _named(scene, text.lower()) else "so no.")
    assert all(figure.name in answer for figure in scene.figures)


def _check_one(scene: Scene, text: str, answer: str) -> None:
    if "background" in answer:
        assert answer == f"The background is {scene.background}."
    else:
        (figure,) = _named(scene, answer)
        assert figure.colour in answer and figure.shape in answer


def _check_describe(picture: Scene | Print, text: str, answer: str) -> None:
    if isinstance(picture, Print):
        assert re.sub(r"\D", "", answer) == picture.text
        return
    order = [answer.index(f"{f.name} {PLACES[f.place][1]}") for f in picture.figures]
    assert order == sorted(order)


def _check_sum(picture: Print, text: str, answer: str) -> None:
    left, right = answer.rstrip(".").split(" = ")
    assert left.replace(" ", "") == picture.text
    assert eval(left) == int(right)  # noqa: S307 - digits and one sign only


CHECKS: dict[str, Callable[[Any, str, str], None]] = {
    "picture_colour": _check_one,
    "picture_shape": _check_one,
    "picture_count": _check_count,
    "picture_position": _check_position,
    "picture_relation": _check_relation,
    "picture_yes_no": _check_yes_no,
    "picture_describe": _check_describe,
    "picture_sum": _check_sum,
    "picture_number": lambda picture, text, answer: _same(picture.text, answer),
}


def _same(number: str, answer: str) -> None:
    assert answer == f"The number is {number}."


@pytest.mark.parametrize("skill", CHECKS)
def test_answers_are_true_of_the_picture(skill: str) -> None:
    for question in _questions(skill, held_out=True):
        CHECKS[skill](question.pictures[0], _text(question), question.answer)


def test_every_picture_skill_is_checked() -> None:
    assert set(CHECKS) == set(PICTURE_SKILLS) - {"picture_choice"}


@pytest.mark.parametrize("skill", ["picture_choice", "choice"])
def test_the_letter_names_the_only_right_option(skill: str) -> None:
    for question in _questions(skill, held_out=False, count=150):
        options = dict(
            re.findall(
                r"(?:^|[\s(])([A-D])[.):]+ ([\w ]+?)(?=\s+\(?[A-D][.):]|\n|$)", _text(question)
            )
        )
        letter = question.answer.rstrip(".")[-1]
        assert 2 <= len(options) <= 4 and letter in options
        assert len(set(options.values())) == len(options)
        if question.pictures:
            picture = question.pictures[0]
            right = [option for option in options.values() if _is_right(picture, question, option)]
            assert right == [options[letter]]
        elif len(question.answer) > 1:
            assert options[letter].lower() in question.answer.lower()


def _is_right(picture: Scene | Print, question: mixture.Question, option: str) -> bool:
    if isinstance(picture, Print):
        return option == picture.text
    asked = _text(question).lower().split("?")[0]
    if "how many" in asked:
        return int(option) == len(picture.figures)
    (figure,) = _named(picture, asked.replace("shape", ""))
    return option in (figure.colour, figure.shape, PLACES[figure.place][0])


def test_the_letter_stands_alone_where_it_is_asked_for_and_nothing_is_to_be_worked_out() -> None:
    for question in _questions("choice", held_out=False, count=100):
        text = _text(question)
        alone = "letter" in text or "Answer:" in text
        worked = question.keys[0].split()[0] in ("add", "subtract")
        assert (question.answer in choice._LETTERS) == (alone and not worked)
    for question in _questions("picture_choice", held_out=False, count=100):
        assert re.fullmatch(r".+, so [A-D]\.", question.answer)


def test_no_wrong_number_gives_itself_away_by_being_held_out() -> None:
    for held_out in (False, True):
        for question in _questions("picture_choice", held_out, count=150):
            if isinstance(question.pictures[0], Print):
                options = re.findall(r"[A-D][.):]+ (\d+)", _text(question))
                wrong = [n for n in options if n != question.pictures[0].text]
                assert wrong and not any(is_held_out(f"number {n}") for n in wrong)


# What is trained how often.


def test_a_factor_makes_a_skill_come_more_often() -> None:
    def count(shares: mixture.Shares) -> int:
        rng = random.Random(6)
        drawn = [mixture.draw_conversation(rng, shares) for _ in range(200)]
        texts = [str(message["content"]) for c in drawn for message in c.messages[:2]]
        return sum(bool(re.search(r"A[.):]+ .*B[.):]+ ", text)) for text in texts)

    few = count(mixture.Shares(0.5))
    assert count(mixture.Shares(0.5, {"picture_choice": 10.0, "choice": 10.0})) > 2 * few
    assert not any(
        conversation.pictures
        for conversation in (
            mixture.draw_conversation(random.Random(i), mixture.Shares(1.0)) for i in range(30)
        )
    )
    with pytest.raises(ValueError, match=r"no weight for \['poetry'\]"):
        mixture.Shares(0.5, {"poetry": 2.0})


def test_the_command_of_a_stage_repeats_what_was_unusual(monkeypatch: Any) -> None:
    line = "train --out x --from y --rows 8 --lr 2e-4 --weight choice=2 --steps 100 --device cpu"
    monkeypatch.setattr(sys, "argv", line.split())
    args = train._parse_args()
    command = train._command(args, 90)
    assert command.startswith("python scripts/demo_vlm/train.py --out python/sglang/demo_vlm ")
    assert command.endswith(
        "--from python/sglang/demo_vlm --rows 8 --lr 0.0002 --weight choice=2 --steps 90"
    )


def test_a_finished_model_is_gone_on_from(
    tokenizer: Any, random_model: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    first = {"steps": 3, "rows": 2, "tokens": 9e6, "pictures": 2e5, "minutes": 0.1}
    first |= {"device": "one card", "commit": "abc", "command": "first command"}
    finished = model.build_model(tokenizer)
    finished.load_state_dict(random_model.state_dict())
    publish.publish(finished, tokenizer, tmp_path / "old", {"choice": 0.5}, 10, [first])
    assert "| training | 3 steps of 2 rows" in (tmp_path / "old" / "README.md").read_text()

    line = f"train --out {tmp_path}/new --from {tmp_path}/old --rows 2 --pictures 9 --lr 1e-3"
    line += f" --steps 1 --device cpu --workers 0 --checkpoint {tmp_path}/state --per-skill 0"
    monkeypatch.setattr(sys, "argv", line.split())
    args = train._parse_args()
    trainer = train.Trainer(args, tokenizer)
    weights = trainer.model.state_dict()
    start = random_model.state_dict()
    assert all(torch.equal(weights[name], start[name].bfloat16().float()) for name in start)
    before = {name: value.clone() for name, value in weights.items()}
    trainer.train()
    trainer.publish()
    after = model.read_weights(tmp_path / "new")
    assert any(not torch.equal(after[name], before[name]) for name in before)
    stages = publish.read_stages(tmp_path / "new")
    assert stages[0] == first and stages[1]["steps"] == 1 and len(stages) == 2
    card = (tmp_path / "new" / "README.md").read_text()
    assert card.index("first command") < card.index("--from python/sglang/demo_vlm")


# What is drawn.


def test_figures_stand_in_their_places_in_their_colours() -> None:
    for place in range(9):
        scene = Scene((Figure(place, "red", "square"),), "white")
        image = draw.render(scene, random.Random(place))
        values = torch.tensor(list(image.tobytes())).view(image.height, image.width, 3)
        red = (values[..., 0] > 150) & (values[..., 1] < 100)
        y, x = torch.nonzero(red).float().mean(0).tolist()
        assert (int(y * 3 / image.height), int(x * 3 / image.width)) == divmod(place, 3)


def test_printed_digits_can_be_told_apart() -> None:
    bitmaps = {sign: frozenset(font.dots(sign)) for sign in "0123456789+-"}
    for sign, dots in bitmaps.items():
        for other, others in bitmaps.items():
            assert sign == other or len(dots ^ others) >= 4, (sign, other)
    image = draw.render(Print("8231", "black", "white"), random.Random(0))
    assert 0.03 < sum(v < 100 for v in image.convert("L").tobytes()) / (image.width * image.height)
    with pytest.raises(ValueError, match="no glyph for"):
        font.dots("12x")


# The same numbers as transformers.


@pytest.mark.parametrize(
    "size", [(112, 112), (84, 84), (90, 120), (200, 100), (640, 480), (33, 60)]
)
def test_patches_equal_those_of_transformers(size: tuple[int, int]) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    noise = random.Random(str(size)).randbytes(size[0] * size[1] * 3)
    image = Image.frombytes("RGB", size, noise)
    limits = {"shortest_edge": pixels.MIN_PIXELS, "longest_edge": pixels.MAX_PIXELS}
    reference = Qwen2VLImageProcessorPil(size=limits)(image, return_tensors="pt")
    patches, grid = pixels.to_patches(image)
    assert reference["image_grid_thw"].tolist() == [[1, *grid]]
    ours = pixels.normalise(torch.from_numpy(patches))
    assert torch.equal(ours, reference["pixel_values"])


def test_no_drawn_picture_has_more_patches_than_a_step_has_room_for() -> None:
    for height in set(draw._SIDES):
        for ratio in set(draw._RATIOS):
            wide, high = pixels.target_size(round(height * ratio), height)
            assert wide * high // pixels.PATCH**2 <= rows.PICTURE_PATCHES


def test_a_packed_step_has_the_logits_of_transformers(tokenizer: Any, random_model: Any) -> None:
    rng = random.Random(3)
    drawn = [mixture.draw_conversation(rng, mixture.Shares(0.3)) for _ in range(8)]
    encoded = rows.Encoder(tokenizer).encode(drawn, rng)
    assert sum(len(row.patches) for row in encoded) > 3
    step, left = rows.pack(encoded, 3, 20)
    assert len(left) < 4
    with torch.inference_mode():
        ours = forward.all_logits(random_model, step)
        for number, row in enumerate(encoded, 1):
            if any(row is other for other in left):
                continue
            reference = random_model(**score.collate(tokenizer, [row])).logits[0]
            error = (ours[step["owners"] == number] - reference).abs().max()
            assert error <= 1e-4 * max(1.0, float(reference.abs().max()))


def test_what_finds_no_place_is_kept_for_the_next_step(tokenizer: Any) -> None:
    rng = random.Random(2)
    drawn = [mixture.draw_conversation(rng, mixture.Shares(0.0)) for _ in range(12)]
    encoded = rows.Encoder(tokenizer).encode(drawn, rng)
    step, left = rows.pack(encoded, 2, 5)
    assert left and int(step["owners"].max()) > 0
    packed = [row for row in encoded if not any(row is other for other in left)]
    assert int((step["owners"] > 0).sum()) == sum(len(row.ids) for row in packed)
    assert sum(len(row.patches) for row in packed) <= 5


def test_rows_read_as_the_chat_template_writes_them(tokenizer: Any) -> None:
    for skill in ("picture_choice", "several_pictures", "memory"):
        (question,) = mixture.sample_held_out(skill, 1, seed=5)
        answer = {"role": "assistant", "content": question.answer}
        talk = mixture.Conversation((*question.messages, answer), question.pictures)
        (row,) = rows.Encoder(tokenizer).encode([talk], random.Random(0))
        text = tokenizer.apply_chat_template(list(talk.messages), tokenize=False)
        pads = re.escape(tokenizer.image_token)
        read = tokenizer.decode(row.ids)
        assert re.sub(f"({pads})+", tokenizer.image_token, read) == text
        spoken = [label for label, weight in zip(row.labels, row.weights, strict=True) if weight]
        assert tokenizer.decode(spoken).endswith(question.answer + "<|im_end|>")


def test_the_tokenizer_keeps_the_ids_of_the_text_demo(tokenizer: Any) -> None:
    from transformers import AutoTokenizer

    base = AutoTokenizer.from_pretrained(TOKENIZER)
    assert base.get_vocab().items() <= tokenizer.get_vocab().items()
    assert len(tokenizer) == 1028 <= model.VOCAB_ROWS
    text = "Where is the 3rd star? <|im_end|>"
    assert tokenizer.encode(text) == base.encode(text)


def test_a_right_answer_scores_and_a_wrong_one_does_not(tokenizer: Any, random_model: Any) -> None:
    questions = mixture.sample_held_out("picture_colour", 3, seed=1)
    found = score.predict(random_model, tokenizer, questions, random.Random(1))
    assert not any(prediction.right for prediction in found)
    lengths = [len(tokenizer.encode(q.answer + "<|im_end|>")) for q in questions]
    assert [len(prediction.likeliest) for prediction in found] == lengths
