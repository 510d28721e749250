"""Questions about numbers: sums, differences, products, comparisons, counting, units."""

from __future__ import annotations

import random

from item import Item, ask, is_held_out, reword
from words import ITEMS, pick_name, plural

_ADD = (
    "What is {a} + {b}?|{a} + {b}|{a}+{b}|{a} + {b} =|{a}+{b}=?|{a} + {b} = ?|Add {a} and {b}.|"
    "What is the sum of {a} and {b}?|How much is {a} plus {b}?|Compute {a} + {b}.|"
    "Calculate {a} + {b}.|What's {a} plus {b}?|Can you add {a} and {b}?|{a} plus {b}?|"
    "Tell me {a} + {b}.|What do you get if you add {b} to {a}?|How much is {a} + {b}?|"
    "What is {a} plus {b}?|What's {a} + {b}?|What is {a}+{b}?"
).split("|")
_SUBTRACT = (
    "What is {a} - {b}?|{a} - {b}|{a}-{b}|{a} - {b} =|{a}-{b}=?|{a} - {b} = ?|"
    "Subtract {b} from {a}.|What is the difference between {a} and {b}?|How much is {a} minus {b}?|"
    "Compute {a} - {b}.|Calculate {a} - {b}.|What's {a} minus {b}?|{a} minus {b}?|"
    "Take {b} away from {a}.|Tell me {a} - {b}.|Can you subtract {b} from {a}?|"
    "What is {a} minus {b}?|What's {a} - {b}?|How much is {a} - {b}?|What is {a}-{b}?"
).split("|")
_MULTIPLY = (
    "What is {a} x {b}?|{a} x {b}|{a}*{b}|{a} * {b}|What is {a} times {b}?|Multiply {a} by {b}.|"
    "How much is {a} times {b}?|Compute {a} x {b}.|Calculate {a} * {b}.|What's {a} times {b}?|"
    "{a} times {b}?|What is the product of {a} and {b}?|{a} x {b} =|Tell me {a} x {b}.|"
    "What is {a} * {b}?|Can you multiply {a} by {b}?|{a} × {b}|What is {a} × {b}?"
).split("|")


def _phrase(rng: random.Random, templates: list[str], a: int, b: int) -> str:
    return reword(rng, rng.choice(templates).format(a=a, b=b))


def _draw_number(rng: random.Random) -> int:
    """0 to 99; small numbers are few among these and asked for often, so they come more often."""
    return rng.randint(0, rng.choice((12, 99, 99)))


def _add_pair(rng: random.Random) -> tuple[int, int, str]:
    a, b = _draw_number(rng), _draw_number(rng)
    return a, b, f"add {min(a, b)} {max(a, b)}"


def _subtract_pair(rng: random.Random) -> tuple[int, int, str]:
    a, b = sorted((_draw_number(rng), _draw_number(rng)), reverse=True)
    return a, b, f"subtract {a} {b}"


def addition(rng: random.Random) -> Item:
    a, b, key = _add_pair(rng)
    return ask("addition", _phrase(rng, _ADD, a, b), f"{a} + {b} = {a + b}.", key)


def subtraction(rng: random.Random) -> Item:
    a, b, key = _subtract_pair(rng)
    return ask("subtraction", _phrase(rng, _SUBTRACT, a, b), f"{a} - {b} = {a - b}.", key)


def times_table(rng: random.Random) -> Item:
    """Tables 0-12. Every fact is trained; held out are combinations of a fact and a wording."""
    a, b = rng.randint(0, 12), rng.randint(0, 12)
    template = rng.choice(_MULTIPLY)
    question = reword(rng, template.format(a=a, b=b))
    return ask("times_table", question, f"{a} x {b} = {a * b}.", f"times {template} {a} {b}")


def word_problem(rng: random.Random) -> Item:
    name, things = pick_name(rng), plural(rng.choice(ITEMS))
    if rng.random() < 0.5:
        a, b, key = _add_pair(rng)
        story = rng.choice(("gets {b} more", "finds {b} more", "buys {b} more"))
        work, result = f"{a} + {b}", a + b
    else:
        a, b, key = _subtract_pair(rng)
        story = rng.choice(("gives away {b}", "loses {b}", "sells {b}"))
        work, result = f"{a} - {b}", a - b
    question = f"{name} has {a} {things} and {story.format(b=b)}. " + rng.choice(
        (
            f"How many {things} does {name} have now?",
            f"How many {things} are there now?",
            f"How many {things} is that?",
        )
    )
    answer = f"{work} = {result}. {name} has {result} {things}."
    return ask("word_problem", question, answer, key)


def short_sum(rng: random.Random) -> tuple[str, int, str, str]:
    """A sum or difference as (question, result, key, the sum as written, such as "3 + 4")."""
    if rng.random() < 0.5:
        a, b, key = _add_pair(rng)
        return rng.choice(_ADD).format(a=a, b=b), a + b, key, f"{a} + {b}"
    a, b, key = _subtract_pair(rng)
    return rng.choice(_SUBTRACT).format(a=a, b=b), a - b, key, f"{a} - {b}"


def comparison(rng: random.Random) -> Item:
    """Two numbers, compared in the order of the question before the answer is drawn from it."""
    a, b = rng.sample(range(100), 2)
    key = f"compare {min(a, b)} {max(a, b)}"
    fact = f"{a} is {'larger' if a > b else 'smaller'} than {b}"
    if rng.random() < 0.5:
        word = rng.choice(("larger", "bigger", "greater", "smaller"))
        template = rng.choice(_WHICH)
        chosen = min(a, b) if word == "smaller" else max(a, b)
        answer = f"{fact}, so {chosen} is {word}."
    else:
        word, less = rng.choice(_RELATIONS)
        template = rng.choice(_WHETHER)
        answer = f"{fact}, so {'yes' if (a < b) == less else 'no'}."
    return ask("comparison", reword(rng, template.format(a=a, b=b, w=word)), answer, key)


_WHICH = (
    "Which is {w}, {a} or {b}?|Which number is {w}: {a} or {b}?|What is {w}, {a} or {b}?|"
    "{a} or {b}, which is {w}?|Which is the {w} number, {a} or {b}?"
).split("|")
_WHETHER = "Is {a} {w} {b}?|Is it true that {a} is {w} {b}?|{a} is {w} {b}?".split("|")
_RELATIONS = (  # (words, whether they say "less")
    ("larger than", False),
    ("bigger than", False),
    ("greater than", False),
    ("more than", False),
    ("smaller than", True),
    ("less than", True),
)


def counting(rng: random.Random) -> Item:
    low = rng.randint(0, 90)
    high = low + rng.randint(2, 9)
    if rng.random() < 0.65:
        words = rng.choice(("Count from {a} to {b}.", "List the numbers from {a} to {b}."))
        start, stop, step = low, high, 1
    else:
        words = rng.choice(("Count down from {a} to {b}.", "Count backwards from {a} to {b}."))
        start, stop, step = high, low, -1
    numbers = ", ".join(str(n) for n in range(start, stop + step, step))
    question = reword(rng, words.format(a=start, b=stop))
    return ask("counting", question, f"{numbers}.", f"count {start} {stop}")


# (from, to, factor, largest number asked, shift of the split); names are (singular, plural).
_UNITS: tuple[tuple[tuple[str, str], tuple[str, str], int, int, int], ...] = (
    (("minute", "minutes"), ("second", "seconds"), 60, 12, 0),
    (("hour", "hours"), ("minute", "minutes"), 60, 12, 2),
    (("degree", "degrees"), ("arc minute", "arc minutes"), 60, 12, 4),
    (("metre", "metres"), ("centimetre", "centimetres"), 100, 99, 2),
    (("euro", "euros"), ("cent", "cents"), 100, 99, 4),
    (("dollar", "dollars"), ("cent", "cents"), 100, 99, 1),
    (("century", "centuries"), ("year", "years"), 100, 20, 3),
    (("kilogram", "kilograms"), ("gram", "grams"), 1000, 99, 0),
    (("kilometre", "kilometres"), ("metre", "metres"), 1000, 99, 2),
    (("kg", "kg"), ("g", "g"), 1000, 99, 4),
    (("km", "km"), ("m", "m"), 1000, 99, 1),
    (("litre", "litres"), ("millilitre", "millilitres"), 1000, 99, 3),
    (("centimetre", "centimetres"), ("millimetre", "millimetres"), 10, 99, 0),
)


def units(rng: random.Random) -> Item:
    """Whole numbers of a larger unit in a smaller one; held out are (unit, number) pairs.

    The units of one factor share their facts, so a held-out number is seen with a sister unit:
    the split is by number modulo five, shifted per unit.
    """
    source, target, factor, top, shift = rng.choice(_UNITS)
    n = rng.randint(1, top)
    many, result = source[n != 1], n * factor
    template = rng.choice(
        ("How many {t} are in {n} {s}?", "How many {t} are there in {n} {s}?", "{n} {s} in {t}?")
        + ("Convert {n} {s} to {t}.", "What is {n} {s} in {t}?", "How many {t} is {n} {s}?")
    )
    question = reword(rng, template.format(n=n, s=many, t=target[1]))
    verb = "is" if n == 1 else "are"
    key = _unit_key(source[0], n, shift)
    return ask("units", question, f"{n} {many} {verb} {result} {target[1]}.", key)


def _unit_key(unit: str, n: int, shift: int) -> str:
    """A key whose hash says held out for every fifth number of a unit, else in training."""
    wanted = (n + shift) % 5 == 0
    return next(
        key for salt in range(1000) if is_held_out(key := f"units {unit} {n} {salt}") == wanted
    )
