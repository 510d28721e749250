"""How answers to MMMU's questions are read and scored, and how its items become prompts."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("yaml")
_FOLDER = Path(__file__).resolve().parents[3] / "benchmark" / "mmmu"
OPTIONS = ["top", "top left", "12 apples", "none"]


@pytest.fixture(scope="module")
def utils() -> ModuleType:
    sys.path.insert(0, str(_FOLDER))
    try:
        return importlib.import_module("eval_utils")
    finally:
        sys.path.remove(str(_FOLDER))


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("B", "B"),
        ("The answer is (C).", "C"),
        ("(A) is wrong, so (D)", "D"),
        ("A or B? B", "B"),
        ("It is (B), though A Z", "B"),
        ("it is at the Top Left", "B"),
        ("it is at the top", "A"),
        ("Apple: 12 apples", "C"),
        ("None", "D"),
    ],
)
def test_letters_are_found(utils: ModuleType, response: str, letter: str) -> None:
    assert utils.parse_multi_choice_response(response, OPTIONS) == letter


def test_without_any_letter_one_is_drawn_the_same_way_each_time(utils: ModuleType) -> None:
    drawn = [utils.parse_multi_choice_response("?", OPTIONS, 3, f"item {i}") for i in range(40)]
    again = [utils.parse_multi_choice_response("?", OPTIONS, 3, f"item {i}") for i in range(40)]
    assert drawn == again and set(drawn) == set("ABCD")


@pytest.mark.parametrize(
    ("response", "answer", "is_right"),
    [
        ("The result is 1,234.5", "1234.5", True),
        ("The result is 12.346", "12.35", True),
        ("The result is 12.3", "12.4", False),
        ("It shows the Eiffel Tower.", "eiffel tower", True),
        ("a bridge", ["tower", "Bridge"], True),
        ("a bridge", "tower", False),
    ],
)
def test_open_answers(utils: ModuleType, response: str, answer: object, is_right: bool) -> None:
    parsed = utils.parse_open_response(response)
    assert utils.is_open_answer_right(parsed, answer) is is_right


def test_thoughts_are_left_out(utils: ModuleType) -> None:
    sample = utils.Sample("x", "Math", [], ["a", "b"], "B")
    args = utils.EvalArgs()
    result = utils.process_result("(A)? Hm.</think> (B)", sample, args)
    assert result["is_right"] and result["response"] == "(A)? Hm.</think> (B)"
    args = utils.EvalArgs(response_answer_regex="answer: (.*)!")
    assert utils.process_result("(A), answer: (B)! not (A)", sample, args)["parsed"] == "B"


def test_scores_by_subject_and_domain(utils: ModuleType, tmp_path: Path) -> None:
    rows = [
        {"subject": "Math", "is_right": True},
        {"subject": "Math", "is_right": False},
        {"subject": "Physics", "is_right": True},
        {"subject": "Music", "is_right": False},
    ]
    scores = utils.eval_result(rows, str(tmp_path / "val.json"))
    assert scores["Math"] == {"num": 2, "acc": 0.5}
    assert scores["Overall-Science"] == {"num": 3, "acc": 0.667}
    assert scores["Overall-Art and Design"] == {"num": 1, "acc": 0.0}
    assert scores["Overall"] == {"num": 4, "acc": 0.5}


def test_pictures_stand_where_the_question_names_them(utils: ModuleType) -> None:
    data = sys.modules["data_utils"]
    item = {"question": "See <image 2> here", "options": "['x', 'y']"}
    prompt = data.build_prompt(item, data.read_prompt_format(utils.EvalArgs().prompt_format_file))
    parts = data.split_prompt(prompt, {1: "one.png", 2: "two.png"})
    assert [part for part in parts if part[0] == "image"] == [
        ("image", "one.png"),
        ("image", "two.png"),
    ]
    assert [kind for kind, _ in parts] == ["image", "text", "image", "text"]
    assert "(A) x\n(B) y" in parts[-1][1]
    assert sum(map(len, data.DOMAIN_CAT2SUB_CAT.values())) == 30
