"""Word lists for the demo model's data: names, places, things, and made-up words.

Made-up words (`invent_word`) keep the copying skills honest: the model cannot know them, so it has
to read them from the prompt.
"""

from __future__ import annotations

import random

NAMES = (
    "Ada Alan Alice Amir Ana Anna Anton Aria Ben Bella Bob Boris Bruno Carl Carla Carmen Chen "
    "Chloe Clara Cora Dan Dana David Diana Dora Ed Elena Eli Ella Emil Emma Eric Erik Eva Fatima "
    "Felix Finn Fiona Frank Freya George Gina Grace Greta Hana Hank Hannah Hans Hugo Ian Ida Ines "
    "Iris Isaac Ivan Ivy Jack Jane Jean Jim Joan Joe John Jonas Jose Julia Kai Karen Karl Kate "
    "Ken Kim Lara Laura Lea Leo Lena Liam Lily Lina Lisa Louis Lucy Luis Luka Maria Mark Marta "
    "Max Maya Mei Mia Milo Mina Mona Nadia Nick Nina Noah Nora Olga Oliver Omar Oscar Otto Paul "
    "Paula Pedro Peter Petra Priya Ravi Rita Robert Rosa Ruth Sam Sara Sofia Stefan Sven Tara "
    "Theo Tim Tina Tom Uma Vera Victor Viola Wei Will Yuki Yusuf Zara Zoe"
).split()
CITIES = (
    "Paris London Berlin Madrid Rome Vienna Oslo Lisbon Dublin Prague Athens Warsaw Helsinki Cairo "
    "Delhi Tokyo Seoul Lima Quito Boston Chicago Denver Dallas Toronto Sydney Geneva Milan Porto "
    "Lyon Munich Hamburg Zurich Nairobi Lagos Accra Jakarta Manila Osaka Kyoto Hanoi"
).split()
COLOURS = "red blue green yellow black white orange purple pink brown grey silver gold".split()
ITEMS = (
    "apple pear plum banana lemon melon book pen pencil cup plate spoon chair lamp ball hat coat "
    "shirt ticket coin stamp card box key bottle bag egg cake biscuit flower stone shell candle "
    "ring clock brush"
).split()
ANIMALS = "cat dog horse rabbit bird fish turtle hamster goat sheep duck parrot pony mouse".split()
WORDS = (
    "the a my our one and big small old new quiet bright cold warm happy slow quick river house "
    "tree garden road window door sun moon star rain snow wind morning night winter summer sea "
    "mountain forest bridge train boat letter song story table bread water milk tea paper music "
    "walks runs sleeps sings waits reads stands falls grows under over near with by here there"
).split()
WEEKDAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = (
    "January February March April May June July August September October November December"
).split()

_ONSETS = "b c d f g h j k l m n p r s t v w z br dr gr kr tr st sh ch pl fl".split()
_VOWELS = "a e i o u a e i o u ai ea oo ia".split()
_CODAS = ["", "", "", "n", "r", "l", "s", "t", "m", "k", "nd", "x"]


def invent_word(rng: random.Random) -> str:
    """A pronounceable lower-case word of two or three syllables."""
    syllables = rng.choice((1, 2, 2))
    word = "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(syllables))
    return word + rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS)


def pick_name(rng: random.Random) -> str:
    """A first name; one in seven is made up."""
    return invent_word(rng).capitalize() if rng.random() < 0.15 else rng.choice(NAMES)


def pick_names(rng: random.Random, count: int) -> list[str]:
    """`count` different first names, in random order."""
    names: list[str] = []
    while len(names) < count:
        name = pick_name(rng)
        if name not in names:
            names.append(name)
    return names


def pick_word(rng: random.Random) -> str:
    """A lower-case word; one in eight is made up."""
    if rng.random() < 0.12:
        return invent_word(rng)
    return rng.choice(rng.choice((WORDS, ITEMS, COLOURS, ANIMALS)))


def plural(noun: str) -> str:
    """The plural of a word in `ITEMS`."""
    return noun + "es" if noun.endswith(("x", "sh", "ch", "s")) else noun + "s"
