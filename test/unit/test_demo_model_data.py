"""The demo model's data: right answers, an honest split, labels on answers only."""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path

import pytest

_SCRIPTS = Path(__file__).resolve().parents[2] / "scripts" / "demo_model"
sys.path.insert(0, str(_SCRIPTS))

import data  # noqa: E402
from item import Item, reword  # noqa: E402

CHECKPOINT = Path(__file__).resolve().parents[2] / "python" / "sglang" / "demo_model"


def _items(skill: str, held_out: bool, count: int = 200) -> list[Item]:
    rng = random.Random(f"test {skill}")
    return [data.sample(skill, rng, held_out) for _ in range(count)]


@pytest.mark.parametrize("skill", data.SKILLS)
def test_held_out_content_is_never_trained(skill: str) -> None:
    trained = {item.key for item in _items(skill, held_out=False)}
    held_out = {item.key for item in _items(skill, held_out=True)}
    assert None not in held_out
    assert len(held_out) >= 8
    assert not trained & held_out


@pytest.mark.parametrize("skill", data.SKILLS)
def test_items_end_with_a_question_and_carry_a_clean_answer(skill: str) -> None:
    for item in _items(skill, held_out=True, count=50):
        assert item.skill == skill
        assert item.messages[-1]["role"] == "user"
        assert item.answer and item.answer == item.answer.strip()
        assert all(m["content"] == m["content"].strip() for m in item.messages)


@pytest.mark.parametrize("skill", ["addition", "subtraction", "times_table"])
def test_equations_hold(skill: str) -> None:
    for item in _items(skill, held_out=True):
        sides = item.answer.rstrip(".").replace("x", "*").split(" = ")
        values = [eval(side) for side in sides]  # noqa: S307 - digits and operators only
        assert len(values) >= 2 and len(set(values)) == 1
        asked = sorted(re.findall(r"\d+", item.messages[-1]["content"]))
        assert asked == sorted(re.findall(r"\d+", sides[0]))


def test_addition_is_held_out_in_both_orders() -> None:
    held_out = {item.key for item in _items("addition", held_out=True)}
    for skill in ("addition", "json_answer", "word_problem"):
        assert held_out.isdisjoint(item.key for item in _items(skill, held_out=False))
    pairs = {tuple(map(int, key.split()[1:])) for key in held_out if key is not None}
    assert all(low <= high for low, high in pairs)


def test_weekday_steps_are_counted_right() -> None:
    days = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
    pattern = re.compile(r"(\d+) days? (after|before) (\w+) is (\w+)\.$")
    for item in _items("weekdays", held_out=True):
        found = pattern.search(item.answer)
        assert found is not None, item.answer
        n, direction, start, end = found.groups()
        step = int(n) if direction == "after" else -int(n)
        assert (days.index(start) + step) % 7 == days.index(end)


def test_comparisons_are_true() -> None:
    pattern = re.compile(r"(\d+) is (larger|smaller) than (\d+), so (.*)\.$")
    for item in _items("comparison", held_out=True):
        found = pattern.search(item.answer)
        assert found is not None, item.answer
        a, relation, b, conclusion = int(found[1]), found[2], int(found[3]), found[4]
        assert (a > b) == (relation == "larger")
        question = item.messages[-1]["content"].lower()
        less = "smaller" in question or "less" in question
        if conclusion in ("yes", "no"):
            assert (conclusion == "yes") == ((a < b) == less)
        else:
            assert int(conclusion.split()[0]) == (min(a, b) if less else max(a, b))


def test_units_of_one_factor_do_not_hold_out_the_same_number() -> None:
    for unit, sister in (("minute", "hour"), ("hour", "degree")):
        held_out: dict[str, set[str]] = {unit: set(), sister: set()}
        for item in _items("units", held_out=True, count=600):
            _, name, n, _ = str(item.key).split()
            held_out.setdefault(name, set()).add(n)
        assert held_out[unit] and held_out[sister]
        assert not held_out[unit] & held_out[sister]


@pytest.mark.parametrize("skill", ["json_answer", "json_record"])
def test_json_answers_parse(skill: str) -> None:
    for item in _items(skill, held_out=True):
        record = json.loads(item.answer)
        assert isinstance(record, dict) and record


def test_table_answers_stand_in_the_table() -> None:
    for item in _items("table_lookup", held_out=True):
        words = re.findall(r"\w+", item.messages[-1]["content"])
        value = re.findall(r"\w+", item.answer.replace(" years old", ""))[-1]
        assert value in words
        quoted = item.answer.split('"')[1]
        assert quoted in item.messages[-1]["content"]
        assert value in quoted


def test_the_same_seed_gives_the_same_questions() -> None:
    assert data.sample_held_out("lists", 20, seed=3) == data.sample_held_out("lists", 20, seed=3)
    assert data.sample_held_out("lists", 20, seed=3) != data.sample_held_out("lists", 20, seed=4)


def test_unknown_skill_is_named_in_the_error() -> None:
    with pytest.raises(ValueError, match="unknown skill 'poetry'"):
        data.sample("poetry", random.Random(0), held_out=True)


def test_conversations_alternate_and_end_with_the_assistant() -> None:
    rng = random.Random(5)
    turns = set()
    for _ in range(300):
        roles = [message["role"] for message in data.draw_conversation(rng)]
        body = roles[1:] if roles[0] == "system" else roles
        assert body == ["user", "assistant"] * (len(body) // 2)
        turns.add(len(body) // 2)
    assert {1, 2, 3, 4} <= turns


def test_rewording_keeps_names_when_asked_to() -> None:
    rng = random.Random(6)
    texts = {reword(rng, "What is the age of Ada?", lower=False) for _ in range(300)}
    assert len(texts) > 5
    assert all("Ada" in text for text in texts)


def test_labels_cover_the_assistants_words_only() -> None:
    transformers = pytest.importorskip("transformers")
    from batches import IGNORED, encode

    tokenizer = transformers.AutoTokenizer.from_pretrained(CHECKPOINT)
    messages = [
        {"role": "system", "content": "Be brief and correct."},
        {"role": "user", "content": "What is 3 + 4?"},
        {"role": "assistant", "content": "3 + 4 = 7."},
    ]
    ids, labels = encode(tokenizer, messages)
    assert ids == tokenizer.encode(tokenizer.apply_chat_template(messages, tokenize=False))
    assert len(ids) == len(labels)
    spoken = [label for label in labels if label != IGNORED]
    assert tokenizer.decode(spoken) == "3 + 4 = 7.<|im_end|>"
    first = next(i for i, label in enumerate(labels) if label != IGNORED)
    assert ids[first + 1 : first + 1 + len(spoken)] == spoken


def test_shipped_tokenizer_round_trips_any_text() -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(CHECKPOINT)
    assert tokenizer.is_fast
    for text in ("Hello, Ada!", "héllo  日本\n\n🎉 \x00", "a\tb 1234567890"):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    digits = tokenizer.tokenize("2026")
    assert digits == ["2", "0", "2", "6"]


def test_shipped_folder_is_small_and_complete() -> None:
    sizes = {file.name: file.stat().st_size for file in CHECKPOINT.iterdir()}
    assert sum(sizes.values()) <= 6_000_000
    assert {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "README.md",
    } <= set(sizes)
    generation = json.loads((CHECKPOINT / "generation_config.json").read_text())
    vocabulary = json.loads((CHECKPOINT / "tokenizer.json").read_text())["added_tokens"]
    ids = {token["content"]: token["id"] for token in vocabulary}
    assert generation["eos_token_id"] == [ids["<|im_end|>"], ids["<|endoftext|>"]]
