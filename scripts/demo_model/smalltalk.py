"""Greetings, what the model says about itself, and what it says when it does not know."""

from __future__ import annotations

import random

from item import Item, ask, reword
from words import CITIES, ITEMS, WORDS, invent_word, pick_name

_ABILITIES = (
    "I can do small sums, times tables, days and months, units, tables, lists, and JSON. "
    "Try: What is 17 + 25?"
)
_TALK: tuple[tuple[str, str], ...] = (
    (
        "Hello|Hi|Hey|Hello!|Hi!|Good morning|Good evening|Hello there|Hi there|Hey there|Hey!|"
        "Good afternoon|Greetings|Hello there!|Hi there!|Good day",
        "Hello! How can I help you?",
    ),
    (
        "How are you?|How are you today?|Hello, how are you?|Hi, how are you?|How is it going?|"
        "How do you do?|Hi! How are you doing?|Are you well?",
        "I am fine, thank you. How can I help you?",
    ),
    (
        "Who are you?|What are you?|What is your name?|Tell me about yourself.|"
        "Who am I talking to?|Introduce yourself.|What model are you?|Which model is this?|"
        "What's your name?|Can you introduce yourself?|Hello, who are you?|Hi, who are you?",
        "I am a tiny demo model, made to try out this server. Ask me a small sum.",
    ),
    (
        "What can you do?|Help|What do you know?|How can you help me?|What can I ask you?|Help me|"
        "What are you able to do?|What are your skills?|Can you help me?|What can I ask?|"
        "What do you do?|What things can you do?|Hello, what can you do?|Hi, what can you do?",
        _ABILITIES,
    ),
    (
        "Thank you|Thanks|Thank you very much|Thanks a lot|Great, thanks|Thanks!|Many thanks|"
        "Thank you!|OK, thanks|Nice, thank you|Perfect, thanks|Thank you so much",
        "You are welcome!",
    ),
    (
        "Bye|Goodbye|See you later|Bye bye|See you|Good night|Goodbye!|Bye!|See you tomorrow",
        "Goodbye!",
    ),
    (
        "Are you human?|Are you a robot?|Are you a person?|Are you real?|Are you an AI?|"
        "Am I talking to a human?|Are you a machine?|Is this a person?",
        "I am a small language model, not a person.",
    ),
)
_UNKNOWN = "Sorry, I do not know that. " + _ABILITIES.replace("I can do", "I can only do")
_BEYOND = (
    "What is the capital of {x}?|Write a poem about {x}.|Tell me a story about {x}.|"
    "Who invented {x}?|What is the meaning of {x}?|Explain {x} to me.|Why is {x} important?|"
    "How do I make {x}?|What do you think about {x}?|Translate {x} into French.|"
    "When was {x} built?|Tell me a joke about {x}.|How does {x} work?|What is {x}?|"
    "Who is {x}?|Write a song about {x}.|Write code for {x}.|What is the weather in {x}?|"
    "What is the best {x}?|Can you buy me {x}?|"
    "Tell me about {x}.|Where can I find {x}?|Tell me the history of {x}."
).split("|")


def small_talk(rng: random.Random) -> Item:
    """Fixed answers; held out are wordings of the question."""
    questions, answer = rng.choice(_TALK)
    question = reword(rng, rng.choice(questions.split("|")))
    if rng.random() < 0.25:
        question = question.rstrip(".!?") + rng.choice(("!", ".", "?", ""))
    if rng.random() < 0.1:
        question = rng.choice((question.upper(), question.capitalize(), question.lower()))
    return ask("small_talk", question, answer, f"talk {question}")


def beyond(rng: random.Random) -> Item:
    """Questions outside the skills, answered by saying so."""
    topic = rng.choice((*CITIES, *ITEMS, *WORDS[10:], *(["?"] * 60)))
    if topic == "?":
        topic = rng.choice((invent_word(rng), pick_name(rng), invent_word(rng).capitalize()))
    topic = rng.choice(("", "", "", "the ", "a ", "my ", "old ", "new ")) + topic
    template = rng.choice(_BEYOND)
    question = reword(rng, template.format(x=topic), lower=False)
    return ask("beyond", question, _UNKNOWN, f"beyond {template} {topic}")
