"""Questions whose answer stands in the prompt: tables, lists, copying, JSON records, memory."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass

from arithmetic import short_sum
from item import Item, Message, ask, reword
from words import (
    ANIMALS,
    CITIES,
    COLOURS,
    ITEMS,
    invent_word,
    pick_name,
    pick_names,
    pick_word,
    plural,
)


@dataclass(frozen=True)
class _Field:
    """A column of a table: how its value is asked for, answered, and told in a sentence."""

    name: str
    question: str  # with {who}
    answer: str  # with {who} and {value}


_FIELDS = (
    _Field("age", "How old is {who}?", "{who} is {value} years old."),
    _Field("score", "What is the score of {who}?", "The score of {who} is {value}."),
    _Field("city", "Where does {who} live?", "{who} lives in {value}."),
    _Field("colour", "Which colour does {who} like?", "{who} likes {value}."),
    _Field("room", "Which room is {who} in?", "{who} is in room {value}."),
    _Field("pet", "Which pet does {who} have?", "{who} has a {value}."),
    _Field("phone", "What is the phone number of {who}?", "The phone number of {who} is {value}."),
)


def _value(rng: random.Random, field: str) -> str:
    if field == "city":
        return invent_word(rng).capitalize() if rng.random() < 0.2 else rng.choice(CITIES)
    if field == "colour":
        return rng.choice(COLOURS)
    if field == "pet":
        return rng.choice(ANIMALS)
    low, high = {"age": (1, 99), "score": (0, 100), "room": (1, 400), "phone": (1000, 9999)}[field]
    return str(rng.randint(low, high))


def _layout(rng: random.Random, field: _Field, rows: list[tuple[str, str]]) -> list[str]:
    """The lines of a table in one of several layouts; the last lines are the rows, one each."""
    kind = rng.choice(("colon", "dash", "equals", "sentence", "csv", "markdown"))
    if kind == "csv":
        return [", ".join(row) for row in (("name", field.name), *rows)]
    if kind == "markdown":
        return [f"| {a} | {b} |" for a, b in (("name", field.name), ("---", "---"), *rows)]
    if kind == "sentence":
        return [field.answer.format(who=who, value=value) for who, value in rows]
    pattern = {"colon": "{}: {}", "dash": "- {}: {}", "equals": "{} = {}"}[kind]
    return [pattern.format(*row) for row in rows]


def table_lookup(rng: random.Random) -> Item:
    """A question about one row of a table; the answer quotes the row first."""
    field = rng.choice(_FIELDS)
    names = pick_names(rng, rng.choice((2, 2, 3, 3, 3, 4, 4, 5, 6, 8, 12)))
    rows = [(name, _value(rng, field.name)) for name in names]
    lines = _layout(rng, field, rows)
    chosen = rng.randrange(len(rows))
    (who, value), line, table = rows[chosen], lines[chosen - len(rows)], "\n".join(lines)
    question = rng.choice((field.question, field.question, "What is the {f} of {who}?"))
    question = question.format(who=who, f=field.name)
    intro = rng.choice(("", "Here is a table.\n", "Here is a list:\n", "Table:\n", "Read this:\n"))
    text = f"{intro}{table}\n{question}"
    if rng.random() < 0.25:
        text = f"{question}\n{table}"
    quoted = line.strip("-| ").rstrip(".")
    answer = f'I read "{quoted}". {field.answer.format(who=who, value=value)}'
    return ask("table_lookup", text, answer, f"table {who} {field.name} {table}")


def lists(rng: random.Random) -> Item:
    """Reverse a list of up to four words, or name its first or last word."""
    things = list(dict.fromkeys(pick_word(rng) for _ in range(rng.randint(2, 4))))
    task = rng.choice(("reverse", "first", "last"))
    if task == "reverse":
        question = rng.choice(("Reverse this list: ", "Write this list backwards: ", "Reverse: "))
        question += ", ".join(things) + "."
        answer = ", ".join(reversed(things)) + "."
    else:
        question = f"What is the {task} word in this list: {', '.join(things)}?"
        answer = f"The {task} word is {things[0 if task == 'first' else -1]}."
    return ask("lists", question, answer, f"list {question}")


def copying(rng: random.Random) -> Item:
    words = " ".join(pick_word(rng) for _ in range(rng.randint(1, 8)))
    words = words.capitalize() if rng.random() < 0.3 else words
    template = rng.choice(
        ("Repeat after me: {w}", 'Say "{w}".', "Repeat: {w}", "Copy this text: {w}", "Echo: {w}")
        + ("Write this again: {w}", "Say this: {w}", 'Repeat "{w}"')
    )
    return ask("copying", template.format(w=words), words, f"copy {words}")


_SUM_KEYS = ("answer", "result", "value", "total", "number", "solution")


def json_answer(rng: random.Random) -> Item:
    """A sum whose answer is wanted as a JSON object; the sum itself comes first."""
    question, result, key, written = short_sum(rng)
    field = rng.choice(_SUM_KEYS)
    order = rng.choice(
        (f"Answer as JSON with the keys question and {field}.",)
        + (f'Answer as JSON with the keys "question" and "{field}".',)
        + (f"Reply in JSON, keys question and {field}.",)
    )
    if rng.random() < 0.25:
        order, field = rng.choice(("Answer as JSON.", "Answer in JSON.", "As JSON.")), "answer"
    answer = json.dumps({"question": written, field: result})
    place = rng.random()
    if place < 0.25:
        return ask("json_answer", question, answer, key, system=order)
    text = f"{order} {question}" if place < 0.45 else f"{question} {order}"
    return ask("json_answer", text, answer, key)


def _person(rng: random.Random) -> tuple[str, dict[str, object]]:
    name, age = pick_name(rng), rng.randint(1, 99)
    record: dict[str, object] = {"name": name, "age": age}
    extra = rng.choice(("", "city", "city", "colour", "pet"))
    if not extra:
        told = rng.choice(
            ("{n} is {a} years old.", "{n} is {a}.", "My friend {n} is {a} years old.")
        )
        return told.format(n=name, a=age), record
    value = record[extra] = _value(rng, extra)
    verb = {"city": "lives in {v}", "colour": "likes {v}", "pet": "has a {v}"}[extra]
    told = rng.choice(
        ("{n} is {a} years old and " + verb + ".", "{n}, {a}, " + verb + ".")
        + ("{n} " + verb + " and is {a} years old.", "My friend {n} " + verb + ". {n} is {a}.")
    )
    return told.format(n=name, a=age, v=value), record


def _order(rng: random.Random) -> tuple[str, dict[str, object]]:
    name, item = pick_name(rng), rng.choice(ITEMS)
    count, price = rng.randint(2, 99), rng.randint(1, 99)
    told = rng.choice(
        ("{n} buys {c} {i} for {p} euros.", "{n} ordered {c} {i} and paid {p} euros.")
    )
    things = plural(item)
    record: dict[str, object] = {"name": name, "item": things, "count": count, "price": price}
    return told.format(n=name, c=count, i=things, p=price), record


def json_record(rng: random.Random) -> Item:
    """A sentence to be turned into a JSON object with the keys asked for, in their order."""
    told, record = (_person if rng.random() < 0.65 else _order)(rng)
    keys = list(record)
    if rng.random() < 0.4:
        rng.shuffle(keys)
    keys = keys[: rng.randint(1, len(keys))]
    answer = json.dumps({key: record[key] for key in keys})
    names = [f'"{key}"' for key in keys] if rng.random() < 0.3 else keys
    listed = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
    noun = "key" if len(keys) == 1 else "keys"
    order = rng.choice(
        (f"Answer as JSON with the {noun} {listed}.", f"Extract the {listed} as JSON.")
        + (f"Give me JSON with the {noun} {listed}.", f"Write JSON with the {noun} {listed}.")
        + (f"Return a JSON object with the {noun} {listed}.", f"JSON with {noun} {listed}.")
    )
    key = f"record {told} {keys}"
    place = rng.random()
    if place < 0.2:
        return ask("json_record", told, answer, key, system=order)
    text = f"{order} {told}" if place < 0.5 else f"{told} {order}"
    return ask("json_record", text.replace(". ", ".\n") if place > 0.85 else text, answer, key)


_TOPICS = ("colour", "city", "animal")


def memory(rng: random.Random, between: tuple[Message, ...] = ()) -> Item:
    """A fact about the user, told first and asked for later; `between` lies in the middle."""
    if rng.random() < 0.6:
        name = pick_name(rng)
        told = rng.choice(("My name is {}.", "I am {}.", "Hi, I am {}.", "Hello, my name is {}."))
        told, reply = told.format(name), f"Nice to meet you, {name}."
        asked = rng.choice(("What is my name?", "Who am I?", "Do you know my name?"))
        answer, key = f"Your name is {name}.", f"name {name}"
    else:
        topic = rng.choice(_TOPICS)
        value = rng.choice({"colour": COLOURS, "city": CITIES, "animal": ANIMALS}[topic])
        value = (invent_word(rng) if rng.random() < 0.3 else value).lower()
        told = f"My favourite {topic} is {value}."
        reply = f"I will remember that your favourite {topic} is {value}."
        asked = f"What is my favourite {topic}?"
        answer, key = f"Your favourite {topic} is {value}.", f"favourite {topic} {value}"
    messages = (
        {"role": "user", "content": told},
        {"role": "assistant", "content": reply},
        *between,
        {"role": "user", "content": reword(rng, asked, lower=False)},
    )
    return Item("memory", messages, answer, key)
